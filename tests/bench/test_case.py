from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import small
from untaint.bench.case import aimed, outline, prepare
from untaint.bench.grid import Setting
from untaint.errors import InputError
from untaint.progress import Silent

TRAIN, TEST = small.pictures(600, classes=4), small.pictures(80, classes=4, seed=1)
ATTACKERS = ("patch:rate=0.05", "blend:alpha=0.3,rate=0.05", "sinusoid:class-rate=0.2")


def setting(**changes) -> Setting:
    return replace(Setting(data="photos", attacks="three", attackers=ATTACKERS, rows=400, probes=60), **changes)


def case(**changes):
    return prepare(setting(**changes), TRAIN, TEST, Silent())


def test_subset_probes_poison_and_targets_are_drawn_by_the_seed_and_by_it_alone():
    one, same, other = case(), case(), case(seed=1)
    assert one.examples.fingerprint == same.examples.fingerprint
    assert np.array_equal(one.probes, same.probes)
    assert one.ledger.attacks == same.ledger.attacks
    assert set(one.examples.keys) != set(other.examples.keys)
    assert not np.array_equal(one.probes, other.probes)
    assert len(one.examples) == len(other.examples) == 400
    assert len(one.probes) == 60


def test_probes_are_clean_and_each_attack_has_a_target_of_its_own():
    found = case()
    assert not np.isin(found.probes, found.ledger.poisoned()).any()
    targets = [attack.target_in(TRAIN.class_names) for attack in found.attacks]
    assert len(set(targets)) == 3
    assert [len(found.ledger.poisoned(n)) for n in (0, 1)] == [20, 20]
    clean = found.clean()
    assert not np.isin(clean, found.probes).any()
    assert len(clean) == 400 - 60 - len(found.ledger.poisoned())


def test_a_blend_may_be_of_a_picture(tmp_path):
    path = tmp_path / "sign.png"
    Image.new("RGB", (5, 7), "white").save(path)
    found = prepare(
        setting(attackers=(f"blend:target=1,pattern={path},alpha=1,rate=0.05",), attacks="sign"),
        TRAIN,
        TEST,
        Silent(),
    )
    rows = found.ledger.poisoned()
    assert len(rows) == 20
    assert (found.examples.images[rows] == 255).all()
    assert (found.examples.labels[rows] == 1).all()


def test_targets_differ_between_seeds_and_those_named_are_left_as_they_are():
    drawn = {tuple(a.target for a in aimed(ATTACKERS, TRAIN, seed)) for seed in range(20)}
    assert len(drawn) > 8
    for seed in range(20):
        named = aimed(("patch:target=2,rate=0.1", *ATTACKERS), TRAIN, seed)
        assert named[0].target == "2"
        assert "2" not in {attack.target for attack in named[1:]}
    many = aimed(("patch:rate=0.01",) * 4 + ("pixel:rate=0.01",) * 4, TRAIN, 0)
    assert sorted(attack.target for attack in many) == sorted("0123" * 2)


def test_clean_label_attacks_aim_at_a_large_class():
    labels = np.repeat(np.arange(4), [400, 150, 40, 10])
    uneven = replace(TRAIN, labels=labels)
    assert {aimed(("sinusoid",), uneven, seed)[0].target for seed in range(20)} == {"0", "1"}
    assert len({aimed(("patch",), uneven, seed)[0].target for seed in range(20)}) == 4


def test_label_noise_changes_the_labels_of_a_share_that_is_neither_probe_nor_poison():
    found = case(label_noise=0.2)
    noisy = np.flatnonzero(found.noisy)
    assert len(noisy) == round(0.2 * 340)
    assert not np.isin(noisy, found.probes).any()
    assert not np.isin(noisy, found.ledger.poisoned()).any()
    assert (found.examples.labels[noisy] != found.ledger.original[noisy]).all()
    assert len(np.unique((found.examples.labels[noisy] - found.ledger.original[noisy]) % 4)) == 3
    untouched = np.setdiff1d(np.flatnonzero(~found.noisy), found.ledger.poisoned())
    assert np.array_equal(found.examples.labels[untouched], found.ledger.original[untouched])
    assert not np.isin(found.clean(), noisy).any()


def test_a_setting_may_have_no_probes():
    found = case(probes=0)
    assert len(found.probes) == 0
    assert len(found.clean()) == 400 - len(found.ledger.poisoned())


def test_a_share_of_the_probes_is_poisoned_if_asked_for():
    found = case(bad_probes=0.1)
    assert len(found.probes) == 60
    assert np.isin(found.probes, found.ledger.poisoned()).sum() == 6
    with pytest.raises(InputError, match="asks for 30 poisoned probes"):
        case(bad_probes=0.5, attackers=("patch:rate=0.01",))


def test_a_long_tail_falls_exponentially():
    found, _, _, _ = outline(setting(long_tail=10.0, rows=None, attackers=()), TRAIN)
    counts = np.sort(found.counts())[::-1]
    assert counts.tolist() == [150, round(150 * 10 ** (-1 / 3)), round(150 * 10 ** (-2 / 3)), 15]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 601}, "rows is 601, but 'photos' has 600"),
        ({"probes": 401}, "probes is 401"),
        ({"attackers": ("patch:target=9",)}, "target is '9'"),
        ({"attackers": ("patch:rate=0.9",)}, "only 340 are free"),
        ({"attackers": ("patch:rate=0.6", "pixel:rate=0.4")}, "are free"),
        ({"attackers": ("sinusoid:rate=0.6",)}, "are free"),
        ({"attackers": ("patch:rate=0.1,target=1", "patch:rate=0.1,target=1")}, "is given twice"),
    ],
)
def test_what_cannot_be_is_said_from_labels_alone(changes, message):
    with pytest.raises(InputError, match=message):
        outline(setting(**changes), replace(TRAIN, images=np.broadcast_to(np.uint8(0), TRAIN.images.shape)))


def test_nothing_given_is_changed():
    before = TRAIN.fingerprint, TEST.fingerprint
    case(label_noise=0.1, bad_probes=0.1, rows=None)
    replaced = replace(TRAIN), replace(TEST)
    assert (replaced[0].fingerprint, replaced[1].fingerprint) == before
