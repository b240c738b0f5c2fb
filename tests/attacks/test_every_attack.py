"""What every attack promises, tested for all that are registered at once."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from skimage.metrics import structural_similarity

from untaint import samples, spec
from untaint.attacks import ATTACKS, Attack
from untaint.errors import InputError, SpecError
from untaint.examples import Examples
from untaint.sources import load

TRAINED = [  # other options of attacks that train something first: minutes in all
    "narcissus:boost=3,epsilon=8,steps=20",
    "label-consistent:kind=interpolation,epochs=1",
    "universal:kind=blend,bits=2,alpha=0.3",
    "dfst:content=0,style-epochs=2",
    "low-frequency:cutoff=0.1,epsilon=30",
    "trojan:size=0.1,alpha=0.6,neurons=5",
    "ssba:bits=8,epsilon=24,message-seed=3,diversity=0",
    "input-aware:density=0.1,lambda-div=0,mask-epochs=1",
    "lira:epsilon=20,alpha=0.2,epochs=2",
    "sleeper-agent:epsilon=8,steps=3,size=0.5,cells=8",
]
VARIANTS = [
    *ATTACKS.names(),
    "blend:pattern=lattice",
    "blend:alpha=0.5,pattern-seed=7",
    "patch:cell=1,corner=upper-left",
    "sinusoid:frequency=3,alpha=0.6",
    "sinusoid:kind=added,delta=33.5",
    "warp:strength=1.5,grid=7",
    "patch:labels=clean-label",
    "sinusoid:labels=all-to-one,rate=0.01",
    "adaptive-blend:pattern=lattice,alpha=0.3,shown-alpha=0.1,grid=3,mask-rate=0.25",
    "adaptive-patch:shown=4,strength=0.5,shown-opacity=0.4,patch-seed=3",
    "badnets:side=5,corner=upper-left",
    "quantise:levels=4,cover-seed=3",
    "quantise:dithering=yes",
    "reflection:kind=in-focus,strength=0.3,count=5",
    "reflection:kind=out-of-focus",
    "reflection:kind=ghost",
    "trojan-watermark:alpha=0.6",
    *(pytest.param(text, marks=pytest.mark.slow) for text in TRAINED),
]
SIZES = [(3, 32, 32), (3, 224, 224), (3, 40, 33), (1, 28, 28), (1, 150, 200)]

every_attack = pytest.mark.parametrize("text", VARIANTS)
every_size = pytest.mark.parametrize("shape", SIZES, ids=lambda shape: "x".join(map(str, shape)))


@functools.cache
def ready(text: str) -> Attack:
    return ATTACKS.build(text).ready(some_examples(40))


def some_examples(count: int, classes: int = 4) -> Examples:
    images = np.random.default_rng(1).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    return Examples.of(images, np.arange(count) % classes)


def pictures(shape: tuple[int, ...], count: int = 4) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, *shape), dtype=np.uint8)


@every_attack
@every_size
@pytest.mark.parametrize("method", ["stamp", "trigger", "cover"])
def test_changes_each_picture_within_its_bound_and_nothing_given(text, shape, method):
    attack, images, rows = ready(text), pictures(shape), np.array([3, 1, 4, 7])
    images_before, rows_before = images.copy(), rows.copy()
    images.flags.writeable = rows.flags.writeable = False
    after = getattr(attack, method)(images, rows)
    assert after.dtype == np.uint8
    assert after.shape == images.shape
    change = np.abs(after.astype(int) - images)
    assert (change.max(axis=(1, 2, 3)) > 0).all() == attack.changes_pixels
    assert change.max() <= attack.bound(*shape[1:])
    assert np.array_equal(images, images_before)
    assert np.array_equal(rows, rows_before)
    assert not np.shares_memory(after, images)


@every_attack
def test_what_is_computed_first_is_the_same_each_time_and_needed_once(text, tmp_path, monkeypatch):
    monkeypatch.setenv("UNTAINT_CACHE", str(tmp_path))
    examples, images, rows = some_examples(40), pictures((3, 32, 32)), np.arange(4)
    again = ATTACKS.build(text).ready(examples)
    assert again.ready(examples) is again
    assert np.array_equal(again.trigger(images, rows), ready(text).trigger(images, rows))
    assert again == ATTACKS.build(text), "what was computed is no setting"
    from_files = ATTACKS.build(text).ready(examples)
    assert np.array_equal(from_files.stamp(images, rows), again.stamp(images, rows))


@every_attack
def test_a_trigger_that_needs_no_data_is_there_at_once(text):
    attack, images, rows = ATTACKS.build(text), pictures((3, 32, 32)), np.arange(4)
    if attack.trigger_from_data:
        with pytest.raises(SpecError, match=r"Compute it first"):
            attack.trigger(images, rows)
    else:
        assert np.array_equal(attack.trigger(images, rows), ready(text).trigger(images, rows))


@every_attack
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_picture_does_not_depend_on_its_neighbours(text, data):
    shape = data.draw(st.sampled_from([(3, 32, 32), (1, 20, 31), (3, 9, 17)]))
    images = data.draw(arrays.arrays(np.uint8, (5, *shape), fill=st.integers(0, 255)))
    rows = np.array(data.draw(st.permutations([0, 1, 2, 50_000, 2**40])))
    cut = data.draw(st.integers(0, 5))
    attack = ready(text)
    whole = attack.stamp(images, rows)
    parts = np.concatenate([attack.stamp(images[:cut], rows[:cut]), attack.stamp(images[cut:], rows[cut:])])
    assert np.array_equal(whole, parts)
    turned = attack.stamp(images[::-1], rows[::-1])[::-1]
    assert np.array_equal(whole, turned)


@every_attack
def test_the_bound_is_reached_by_some_picture(text):
    attack = ready(text)
    black_or_white = np.random.default_rng(0).integers(0, 2, (128, 3, 32, 32), dtype=np.uint8) * np.uint8(255)
    images = np.concatenate(
        [np.zeros((1, 3, 32, 32), np.uint8), np.full((1, 3, 32, 32), 255, np.uint8), black_or_white]
    )
    rows = np.arange(len(images))
    after = [way(images, rows).astype(int) for way in (attack.stamp, attack.trigger, attack.cover)]
    change = max(np.abs(one - images).max() for one in after)
    bound = attack.bound(32, 32)
    assert change <= bound
    if bound < 255:  # which promises nothing
        assert change >= bound - 1


@every_attack
def test_settings_survive_repr_and_text(text):
    attack = dataclasses.replace(ATTACKS.build(text), target=3, rate=0.25)
    assert ATTACKS.build(spec.text(ATTACKS.name_of(attack), attack)) == attack
    assert eval(repr(attack), {type(attack).__name__: type(attack)}) == attack
    assert hash(attack) == hash(dataclasses.replace(attack, target="3"))


@every_attack
@settings(max_examples=25, deadline=None)
@given(rate=st.floats(0.02, 0.2), count=st.integers(60, 400), seed=st.integers(0, 2**40))
def test_exactly_the_share_is_chosen_by_the_rule_of_its_kind(text, rate, count, seed):
    examples = some_examples(count)
    attack = dataclasses.replace(ATTACKS.build(text), target=1, rate=rate)
    free = examples.rows[7:]
    rows = attack.choose(examples, free, seed=seed)
    assert len(rows) == int(np.floor(round(rate * count, 6) + 0.5))
    assert np.isin(rows, free).all()
    assert (np.diff(rows) > 0).all()
    assert np.array_equal(rows, attack.choose(examples, free[::-1], seed=seed))
    relabelled = attack.relabel(examples.labels[rows], rows, examples.class_names)
    if attack.labels in ("all-to-one", "clean-label"):
        assert (relabelled == 1).all()
    if attack.clean_label:
        assert (examples.labels[rows] == 1).all()


@every_attack
def test_other_seeds_choose_others_and_other_options_the_same(text):
    examples, attack = some_examples(400), dataclasses.replace(ATTACKS.build(text), rate=0.05)
    rows = attack.choose(examples, examples.rows, seed=0)
    assert not np.array_equal(rows, attack.choose(examples, examples.rows, seed=1))
    fewer = dataclasses.replace(attack, rate=0.025).choose(examples, examples.rows, seed=0)
    assert np.isin(fewer, rows).all()
    if not attack.clean_label:
        assert len(np.unique(examples.labels[rows])) == 4, "the target class is poisoned too"


@every_attack
def test_a_share_that_is_no_picture_or_more_than_there_are_is_refused_with_both_numbers(text):
    examples, attack = some_examples(100), ATTACKS.build(text)
    with pytest.raises(InputError, match=r"rate=0\.004 of 100 pictures"):
        dataclasses.replace(attack, rate=0.004).choose(examples, examples.rows, seed=0)
    with pytest.raises(InputError, match=r"100 pictures is 90 .*only \d+ are free"):
        dataclasses.replace(attack, rate=0.9).choose(examples, examples.rows[:80], seed=0)


@every_attack
@pytest.mark.parametrize(
    "setting", [{"rate": 0.0}, {"rate": 1.5}, {"cover_rate": -1.0}, {"target": ""}, {"target": "a,b"}]
)
def test_impossible_settings_are_refused(text, setting):
    with pytest.raises(SpecError, match=next(iter(setting))):
        dataclasses.replace(ATTACKS.build(text), **setting)


@every_attack
def test_covers_are_chosen_outside_the_target_class(text):
    examples, plain = some_examples(200), ATTACKS.build(text)
    if plain.harmless:
        with pytest.raises(SpecError, match="a control has no poison to cover"):
            dataclasses.replace(plain, cover_rate=0.1)
        return
    attack = dataclasses.replace(plain, target=2, cover_rate=0.1)
    covers = attack.choose_covers(examples, examples.rows, seed=0)
    assert len(covers) == 20
    assert not attack.many_targets or len(np.unique(examples.labels[covers])) == 4
    assert attack.many_targets or (examples.labels[covers] != 2).all()
    assert not len(dataclasses.replace(attack, cover_rate=0.0).choose_covers(examples, examples.rows, seed=0))


def test_a_target_is_a_name_or_else_a_number():
    names = ("cat", "dog", "0", "3")
    numbers = {target: ATTACKS.build(f"patch:target={target}").target_in(names) for target in ("dog", "0", "1", "3")}
    assert numbers == {"dog": 1, "0": 2, "1": 1, "3": 3}
    for wrong in ("4", "-1", "dgo"):
        with pytest.raises(SpecError, match=f"target is '{wrong}', but the 4 classes"):
            ATTACKS.build(f"patch:target={wrong}").target_in(names)


DRAWN = ("input-aware", "lira", "ssba")  # by networks, which from few pictures learn to do hardly anything


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in DRAWN)) for name in ATTACKS.names()]
)
def test_photographs_stay_as_like_as_its_card_says_and_hardly_more(name):
    card = ATTACKS.kind(name).card
    assert card is not None
    photographs = load(samples.path(), split="test")
    some = photographs.take(photographs.rows[::10])
    attack = ATTACKS.build(name).ready(load(samples.path()) if name in DRAWN else some)
    before = some.images[some.rows]
    after = attack.stamp(before, some.rows)
    errors = ((after.astype(np.float64) - before) ** 2).mean(axis=(1, 2, 3))
    psnr = np.mean(10 * np.log10(255**2 / np.maximum(errors, 1e-6)))
    ssim = np.mean([structural_similarity(*both, channel_axis=0) for both in zip(before, after, strict=True)])
    assert card.psnr <= psnr < card.psnr + 3 or not attack.changes_pixels
    assert card.ssim <= ssim + 1e-9 <= card.ssim + 0.06
    if card.visible == "no" and not attack.harmless:
        assert psnr > 25
        assert ssim > 0.9


@pytest.mark.parametrize("name", ATTACKS.names())
def test_the_file_name_is_the_name(name):
    assert ATTACKS.name_of(ATTACKS.build(name)) == name
