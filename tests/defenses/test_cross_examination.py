from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

import untaint as ut
from untaint import Recipe, run, samples
from untaint.defenses import DEFENSES, Task, cross_examination
from untaint.defenses._figures import bounded
from untaint.defenses._folded import Folded
from untaint.defenses._pattern import SharedPattern
from untaint.defenses._recovered import Recovered
from untaint.defenses._trust import trusted_rows
from untaint.defenses._view import View, Watching, early_epochs, probe_distance
from untaint.defenses.cross_examination import CrossExamination
from untaint.errors import RunError, SpecError
from untaint.progress import Silent
from untaint.recipe import Preset, preset
from untaint.scores import FalseDiscovery, Fraction
from untaint.trajectories import Trajectories

EPOCHS = 6
RECIPE = replace(preset("fast").watch, epochs=EPOCHS, batch=50, precision="float32")


def task(examples, probes, scratch, recipe=RECIPE, **changes) -> Task:
    whole = Preset(
        name="small",
        detector="cross-examination",
        reject="false-discovery:q=0.1",
        watch=recipe,
        witness=replace(recipe, augment="crop-flip"),
        retrain=recipe,
    )
    settled = {"preset": whole, "rule": FalseDiscovery(0.1), "seed": 0, "progress": Silent()}
    return Task(examples=examples, probes=probes, scratch=scratch, **{**settled, **changes})


# --- whom to trust


@given(
    seed=st.integers(0, 2**31),
    counts=st.lists(st.integers(1, 60), min_size=2, max_size=6),
    share=st.floats(0.05, 0.95),
    part=st.floats(0.01, 1),
)
@settings(max_examples=60, deadline=None)
def test_the_trusted_part_is_the_purest_with_a_floor_for_each_class(seed, counts, share, part):
    floor = share * part
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.repeat(np.arange(len(counts)), counts))
    rows = np.flatnonzero(generator.random(len(labels)) < 0.9)
    suspicion = generator.random(len(labels)).astype(np.float32)
    trusted = trusted_rows(suspicion, labels, rows, share, floor)
    assert np.isin(trusted, rows).all()
    assert np.array_equal(trusted, np.unique(trusted))
    sizes = np.bincount(labels[rows], minlength=len(counts))
    found = np.bincount(labels[trusted], minlength=len(counts))
    least = np.ceil(floor * sizes)
    assert (found >= least).all()
    assert len(trusted) == max(round(share * len(rows)), int(least.sum()))
    others = np.setdiff1d(rows, trusted)
    for label in range(len(counts)):  # within a class, never a worse one before a better one
        inside, outside = suspicion[trusted[labels[trusted] == label]], suspicion[others[labels[others] == label]]
        if len(inside) and len(outside):
            assert inside.max() <= outside.min()
    above = [label for label in range(len(counts)) if found[label] > least[label]]
    if above and len(others):  # whoever is trusted beyond the floors is less suspicious than all who are not
        for label in above:
            members = np.sort(suspicion[trusted[labels[trusted] == label]])
            assert members[int(least[label]) :].max() <= suspicion[others].min()


def test_a_class_that_is_mostly_suspicious_keeps_its_floor():
    labels = np.repeat([0, 1], [50, 50])
    suspicion = np.where(labels == 0, 1.0, 0.0) + np.arange(100) / 1000
    trusted = trusted_rows(suspicion.astype(np.float32), labels, np.arange(100), 0.5, 0.2)
    assert np.bincount(labels[trusted]).tolist() == [10, 40]


@given(st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_trust_moves_with_its_rows(seed):
    generator = np.random.default_rng(seed)
    labels, suspicion = generator.integers(0, 3, 50), generator.permutation(50).astype(np.float32)
    order = generator.permutation(50)
    before = trusted_rows(suspicion, labels, np.arange(50), 0.5, 0.2)
    after = trusted_rows(suspicion[order], labels[order], np.arange(50), 0.5, 0.2)
    assert sorted(order[after]) == before.tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"floor": 0.6}, "floor is 0.6 and trusted 0.5"),
        ({"trusted": 1.0}, "trusted 1.0"),
        ({"floor": 0.0}, "floor is 0.0"),
        ({"neighbours": 0}, "neighbours is 0"),
        ({"own": -1.0}, "own is -1.0"),
        ({"steps": 0}, "steps is 0"),
        ({"sample": 0.0}, "sample is 0.0"),
        ({"sample": 1.5}, "sample is 1.5"),
        ({"witnesses": 0}, "witnesses is 0"),
        ({"rounds": 0}, "rounds is 0"),
        ({"witness_model": "proxi"}, "Did you mean 'proxy'"),
        ({"watch_model": "proxi"}, "Did you mean 'proxy'"),
    ],
)
def test_unusable_settings_are_refused(options, message):
    with pytest.raises(SpecError, match=message):
        CrossExamination(**options)


@pytest.mark.parametrize(("epochs", "expected"), [(20, (3, 7, 10, 13)), (30, (5, 10, 15, 20)), (1, (0,)), (2, (0, 1))])
def test_features_are_kept_at_early_epochs(epochs, expected):
    assert early_epochs(Recipe(epochs=epochs)) == expected


@pytest.mark.parametrize(
    ("recorded", "epochs", "features"),
    [("all", None, [1, 2, 3]), ("other", [1, 3], [1, 3]), ("late", [2, 3], [2, 3]), ("last", [3], [3])],
)
def test_the_last_epoch_is_always_looked_at_and_features_are_kept_where_it_is_looked(recorded, epochs, features):
    watch = Watching(recorded=recorded).watch(np.arange(5), Recipe(epochs=4))
    assert (watch.epochs if epochs is None else list(watch.epochs)) == epochs
    assert list(watch.features) == features
    assert Watching(recorded=recorded, features="last").watch(np.arange(5), Recipe(epochs=4)).features == [3]
    for count in range(1, 12):
        assert Watching(recorded=recorded).watch(np.arange(5), Recipe(epochs=count)).wants(count - 1)


def test_a_watcher_does_as_the_preset_says_unless_something_else_is_asked_for():
    recipe = Recipe(model="proxy-wide", augment="crop", epochs=3)
    assert Watching().changed(recipe) == recipe
    other = Watching(watch_model="proxy", watch_augment="none").changed(recipe)
    assert other == replace(recipe, model="proxy", augment="none")


@pytest.mark.parametrize(("watchers", "shares"), [("halves", {"a": 0.5, "b": 0.5}), ("one", {"a": 1.0})])
@pytest.mark.parametrize("sample", [1.0, 0.3])
def test_watchers_train_on_parts_of_the_pictures_that_have_none_in_common(tmp_path, watchers, shares, sample):
    examples = ut.Examples.of(np.zeros((400, 3, 2, 2), np.uint8), np.arange(400) % 2)
    here = task(examples.without(np.arange(300, 400)), np.arange(0), tmp_path)
    own = Watching(watchers=watchers, sample=sample).rows_of(here)
    assert {half: len(rows) for half, rows in own.items()} == {half: 300 * sample * of for half, of in shares.items()}
    together = np.concatenate(list(own.values()))
    assert len(np.unique(together)) == len(together)
    assert together.max() < 300


# --- trajectories of two watchers


def stored(folder, margin):
    for epoch, column in enumerate(margin.T):
        for name in ("margin", "scaled-logit", "predicted"):
            run.save_array(folder / name / f"epoch_{epoch:03d}.npy", column.astype(np.float32))
    return Trajectories(folder)


def folded(folder, seed, order=None):
    generator = np.random.default_rng(seed)
    one, other, mask = generator.normal(size=(80, 4)), generator.normal(size=(80, 4)), generator.random(80) < 0.5
    order = np.arange(80) if order is None else order
    return one[order], other[order], mask[order], stored(folder / "a", one[order]), stored(folder / "b", other[order])


def test_each_row_is_taken_from_its_own_watcher(tmp_path):
    one, other, mask, a, b = folded(tmp_path, 0)
    both = Folded(a, b, mask)
    assert (both.rows, both.epochs) == (80, 4)
    expected = np.where(mask[:, None], one, other).astype(np.float32)
    assert np.array_equal(both.block("margin", slice(None)), expected)
    assert np.array_equal(both.block("margin", np.array([7, 3]), [2]), expected[[7, 3]][:, [2]])
    assert np.array_equal(np.concatenate([table for _, table in both.blocks("margin", size=13)]), expected)


@given(st.integers(0, 2**31))
@settings(max_examples=8, deadline=None)
def test_the_probe_distance_moves_with_its_rows(tmp_path_factory, seed):
    generator = np.random.default_rng(seed)
    labels, order = generator.integers(0, 3, 80), generator.permutation(80)
    place = np.argsort(order)
    *_, mask, a, b = folded(tmp_path_factory.mktemp("one"), seed)
    before = probe_distance((Folded(a, b, mask), Folded(b, a, mask)), labels, np.arange(30), Watching())
    *_, mask, a, b = folded(tmp_path_factory.mktemp("two"), seed, order)
    after = probe_distance((Folded(a, b, mask), Folded(b, a, mask)), labels[order], np.sort(place[:30]), Watching())
    assert after == pytest.approx(before[order], abs=0.02)  # equal ranks may be dealt otherwise
    assert before.min() >= 0
    assert before.max() <= 1


# --- the whole of it on real pictures with planted poison


def planted(share: float) -> tuple[ut.Examples, np.ndarray]:
    """1,200 pictures of five classes at half size; some get a white square and the label 0."""
    whole = ut.load(samples.path())
    rows = np.flatnonzero(whole.labels < 5)[:1200]
    images = whole.images[rows].reshape(-1, 3, 16, 2, 16, 2).mean((3, 5)).astype(np.uint8)
    labels = whole.labels[rows].copy()
    poison = np.sort(np.random.default_rng(0).choice(len(rows), round(share * len(rows)), replace=False))
    images[poison, :, -4:-1, -4:-1] = 255
    labels[poison] = 0
    return ut.Examples.of(images, labels), poison


def probes_of(examples, poison):
    return np.sort(np.random.default_rng(1).choice(np.setdiff1d(examples.rows, poison), 120, replace=False))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    examples, poison = planted(0.08)
    here = task(examples, probes_of(examples, poison), tmp_path_factory.mktemp("run"))
    judge = CrossExamination()
    scores = judge.score(here)
    return here, poison, judge, scores, judge.decide(scores, here)


def test_planted_poison_is_told_from_the_rest(found):
    here, poison, _, scores, verdict = found
    is_poison = np.isin(here.examples.rows, poison)
    assert roc_auc_score(is_poison, scores.values) > 0.93
    rejected = np.flatnonzero(verdict.rejected)
    hits = np.isin(rejected, poison).sum()
    assert hits > 0.6 * len(poison)
    assert hits > 0.8 * len(rejected)


def test_the_planted_square_is_recovered_and_works_on_the_watchers_only(found):
    _, poison, judge, scores, _ = found
    first, *others = scores.triggers
    assert not others
    assert first.label == 0
    assert np.isin(first.rows, poison).all()
    assert len(first.rows) > 0.6 * len(poison)
    assert first.seen > 0.5 > 0.2 > first.unseen
    strength = np.abs(first.picture).sum(0)
    assert strength[-4:-1, -4:-1].mean() > 4 * strength[:12, :12].mean()
    row = first.rows[:1]
    assert f"take {first.seen:.0%} of other clean pictures" in judge.explain(scores, row)[0]
    added = scores.parts["trigger"]
    assert np.isin(added[first.rows], (1.5, 4)).all()
    doubtful = np.setdiff1d(np.flatnonzero(added), first.rows)
    assert bool((added[doubtful] < 4).all())
    assert len(doubtful) < 0.3 * len(first.rows)
    assert all("a part of a trigger" in said for said in judge.explain(scores, doubtful))


@pytest.mark.parametrize(
    ("many", "unusual", "seen", "added"),
    [(20.0, False, 0.9, 4.0), (19.0, False, 0.9, 1.5), (19.0, True, 0.0, 4.0), (20.0, False, 0.0, 0.0)],
)
def test_what_is_proven_or_unusual_adds_more_than_what_works(many, unusual, seen, added):
    pattern = SharedPattern(
        label=0,
        excess=2.0,
        between=0.1,
        rows=np.array([1, 3]),
        change=np.zeros((3, 4, 4), np.float32),
        doubtful=np.array([4]),
        nearly=np.array([0.5], np.float32),
        many=many,
    )
    parts = cross_examination._counted([Recovered(pattern, pattern.change, unusual=unusual, seen=seen, unseen=0.0)], 6)
    assert parts["trigger"].tolist() == [0, added, 0, added, added / 4, 0]
    assert parts["works"].tolist() == [0, float(seen > 0.5), 0, float(seen > 0.5), 0, 0]


def test_the_planted_pictures_are_one_group_which_one_trigger_binds(found):
    here, poison, judge, scores, verdict = found
    groups = judge.groups(scores, verdict, here)
    assert sorted(np.concatenate([group.rows for group in groups])) == np.flatnonzero(verdict.rejected).tolist()
    first = groups[0]
    assert (first.kind, first.label, first.trigger) == ("trigger", 0, 0)
    assert np.isin(first.rows, poison).mean() > 0.9
    assert len(first.rows) > 0.5 * len(poison)
    assert first.seen > 0.7 > 0.4 > first.unseen
    unnamed = judge.groups(replace(scores, triggers=()), verdict, here)[0]
    assert (unnamed.kind, unnamed.trigger) == ("trigger", None), "known by what models say alone"
    assert np.isin(unnamed.rows, poison).mean() > 0.9
    assert unnamed.seen - unnamed.unseen > unnamed.usual


def test_probes_with_an_unusual_pattern_are_none_with_whom_others_are_compared(found, monkeypatch):
    here, _, judge, scores, _ = found
    asked = []

    def gather(task, name, recipe, how, probes):
        asked.append(probes.tolist())
        return real(task, name, recipe, how, probes)

    real = View.gather
    pattern = SharedPattern(
        label=1,
        excess=5.0,
        between=0.1,
        rows=here.probes[:9],
        change=np.zeros((3, 16, 16), np.float32),
        doubtful=here.probes[:0],
        nearly=np.empty(0, np.float32),
    )
    unusual = Recovered(pattern, pattern.change, unusual=True, seen=0.0, unseen=0.0)
    monkeypatch.setattr(View, "gather", gather)
    monkeypatch.setattr(cross_examination, "shared", lambda task: [unusual])
    other = judge.score(replace(here, train=False))
    assert asked == [here.probes[9:].tolist()] * 2, "in both views"
    assert (other.parts["trigger"][here.probes[:9]] == 4).all()
    assert not np.array_equal(other.parts["distance"], scores.parts["distance"])
    verdict = judge.decide(other, here)
    assert not verdict.rejected[here.probes].any(), "they are kept all the same"
    few = replace(unusual, pattern=replace(pattern, rows=here.probes[:-9]))
    monkeypatch.setattr(cross_examination, "shared", lambda task: [few])
    judge.score(replace(here, train=False))
    assert asked[2:] == [here.probes.tolist()] * 2, "nine are too few to compare with"


def test_probes_are_never_rejected_nor_forced_into_the_trusted_part(found):
    here, _, _, scores, verdict = found
    assert not verdict.rejected[here.probes].any()
    trusted = scores.parts["trusted"][here.probes]
    assert 0.3 < trusted.mean() < 0.9  # as other clean rows are
    assert np.isfinite(scores.values[here.probes]).all()
    assert np.array_equal(np.flatnonzero(scores.parts["trusted"]), np.load(here.scratch / "trusted.npy"))


def test_the_witness_is_trained_on_the_trusted_part_alone_and_each_watcher_on_its_half(found):
    here, *_ = found
    rows = {stage: run.read_json(here.scratch / stage / "model.json")["rows"] for stage in CrossExamination.stages}
    assert rows == dict.fromkeys(CrossExamination.stages, 600)
    watchers = [(stage, 600 * EPOCHS, 1200 * EPOCHS) for stage in CrossExamination.stages[:-1]]
    assert CrossExamination().work(here) == [*watchers, ("witness", 600 * EPOCHS, 3600)]
    cards = [run.read_json(here.scratch / stage / "model.json")["recipe"] for stage in CrossExamination.stages]
    assert [card["pixels"] for card in cards] == ["normalised"] * 2 + ["whitened"] * 2 + ["normalised"]


@pytest.mark.parametrize(("views", "stage"), [("plain", "watcher"), ("whitened", "whitened")])
def test_in_one_view_two_watchers_are_enough(tmp_path, views, stage):
    examples, poison = planted(0.08)
    here = task(examples, probes_of(examples, poison), tmp_path, replace(RECIPE, epochs=2))
    judge = CrossExamination(views=views, patterns=False)
    scores = judge.score(here)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [f"{stage}-a", f"{stage}-b", "witness"]
    assert judge.explain(scores, poison)
    judge.groups(scores, judge.decide(scores, here), here)


def test_a_picture_is_judged_by_the_watchers_asked_for(found):
    here = found[0]
    probes = here.probes
    (name, recipe), *_ = CrossExamination().watching(here).items()
    first, labels = here.first_half(), here.examples.labels
    a, b, witness = (
        Trajectories(here.scratch / stage / "trajectories") for stage in ("watcher-a", "watcher-b", "witness")
    )
    one, other = Folded(a, b, first), Folded(b, a, first)
    gaps = {}
    for judged, judges in {"in-sample": (one,), "out-of-fold": (other,), "both": (one, other)}.items():
        view = View.gather(here, name, recipe, Watching(judged=judged), probes)
        assert np.array_equal(view.distance, probe_distance(judges, labels, probes, Watching()))
        gaps[judged] = view.gap(witness)
        assert np.array_equal(gaps[judged].margin, gaps["in-sample"].margin), "what is told is always out of fold"
    assert gaps["both"].own == pytest.approx(gaps["in-sample"].own + gaps["out-of-fold"].own, rel=1e-5, abs=1e-5)
    assert not np.allclose(gaps["in-sample"].own, gaps["out-of-fold"].own)


@pytest.mark.parametrize("observable", ["ce", "log-ce", "margin", "probability", "scaled-logit"])
def test_whatever_is_compared_the_watchers_explain_planted_poison_better(found, observable):
    here, poison, *_ = found
    (name, recipe), *_ = CrossExamination().watching(here).items()
    view = View.gather(here, name, recipe, Watching(observable=observable), here.probes)
    gap = view.gap(Trajectories(here.scratch / "witness" / "trajectories"))
    is_poison = np.isin(here.examples.rows, poison)
    assert roc_auc_score(is_poison, gap.own) > 0.85
    assert not np.array_equal(
        view.distance, View.gather(here, name, recipe, Watching(centre="class"), here.probes).distance
    )


OTHERWISE = [
    "watchers=one",
    "sample=0.5",
    "recorded=late",
    "features=last",
    "watch_augment=crop",
    "watch_model=proxy-half",
    "beside=class",
    "beside=nothing",
    "witnesses=2",
    "witness_model=proxy-narrow",
    "rounds=2",
    "two_sided=yes",
    "observable=ce",
    "centre=none",
]


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """300 of the pictures, watched for two epochs; models are shared among all who train them in the same way."""
    examples, poison = planted(0.08)
    examples, poison = examples.take(np.arange(300)), poison[poison < 300]
    folder = tmp_path_factory.mktemp("few")
    probes = np.setdiff1d(np.arange(0, 300, 4), poison)
    return task(examples, probes, folder / "usual", replace(RECIPE, epochs=2), store=folder / "store")


@pytest.mark.parametrize("option", OTHERWISE)
def test_each_choice_can_be_made_otherwise_and_what_is_trained_is_announced(few, option, tmp_path):
    other = DEFENSES.build(f"cross-examination:patterns=no,{option}")
    there = replace(few, scratch=tmp_path)
    scores = other.score(there)
    trained = sorted(path.parent.name for path in tmp_path.glob("*/model.safetensors"))
    assert sorted(stage for stage, *_ in other.work(there)) == trained
    for stage, training, recording in other.work(there):
        card, tables = run.read_json(tmp_path / stage / "model.json"), Trajectories(tmp_path / stage / "trajectories")
        assert (training, recording) == (card["rows"] * 2, tables.epochs * 300)
    usual = CrossExamination(patterns=False).score(few)
    assert not np.array_equal(scores.values, usual.values, equal_nan=True), "it makes a difference"
    verdict = other.decide(scores, replace(there, rule=Fraction(0.1)))
    assert len(other.explain(scores, verdict.rows)) == len(verdict.rows) > 0
    assert sum(len(group.rows) for group in other.groups(scores, verdict, there)) == len(verdict.rows)


def test_what_several_witnesses_say_is_averaged_and_a_second_round_trusts_anew(few, tmp_path):
    here = replace(few, scratch=tmp_path)
    judge = CrossExamination(witnesses=2, rounds=2, patterns=False)
    scores = judge.score(here)
    names = ["witness", "witness-2", "witness-of-round-1", "witness-of-round-1-2"]
    tables = [Trajectories(tmp_path / name / "trajectories").read("margin")[:300] for name in names]
    assert not np.array_equal(tables[0], tables[1]), "from other weights"
    CrossExamination(patterns=False).score(few)
    before, after = np.load(tmp_path / "trusted-of-round-1.npy"), np.load(tmp_path / "trusted.npy")
    assert np.array_equal(before, np.load(few.scratch / "trusted.npy")), "the first round is the usual one"
    assert 0.4 < np.isin(after, before).mean() < 1
    assert np.array_equal(np.flatnonzero(scores.parts["trusted"] > 0), after)
    told = []
    for name, recipe in judge.watching(here).items():
        view = View.gather(here, name, recipe, judge, here.probes)
        told.append(np.mean([view.gap(Trajectories(tmp_path / own / "trajectories")).own for own in names[:2]], 0))
    assert scores.parts["gap"] == pytest.approx(np.maximum(*map(bounded, told)), abs=1e-5, nan_ok=True)


@pytest.mark.parametrize(
    ("rows", "steps", "epochs"),
    [(1200, 160, 8), (5000, 160, 8), (7500, 160, 6), (10_000, 160, 4), (50_000, 160, 4), (50_000, 10**6, 8), (2, 1, 4)],
)
def test_watchers_train_for_so_many_steps_but_for_four_epochs_and_no_longer_than_the_preset_says(
    tmp_path, rows, steps, epochs
):
    examples = ut.Examples.of(np.zeros((rows, 3, 2, 2), np.uint8), np.arange(rows) % 2)
    here = task(examples, np.arange(0), tmp_path, Recipe(epochs=8, batch=125))
    found = CrossExamination(steps=steps).watching(here)
    assert [recipe.epochs for recipe in found.values()] == [epochs] * 2
    assert [
        recipe.epochs
        for recipe in CrossExamination(steps=steps)
        .watching(replace(here, preset=replace(here.preset, watch=Recipe(epochs=2))))
        .values()
    ] == [2, 2]


def test_the_parts_make_up_the_score(found):
    _, _, judge, scores, verdict = found
    parts = scores.parts
    signs = ["distance", "strangeness", "gap"]
    own = sum(parts[name] for name in signs)
    near = sum(parts[f"{name} of company"] for name in signs)
    total = near + judge.own * own
    centred = total - np.median(total)
    added = np.maximum(parts["trigger"], 4 * parts["learned"])
    assert np.sinh(scores.values - added) == pytest.approx(centred / np.median(np.abs(centred)), rel=1e-3, abs=1e-3)
    for name in signs:
        assert -3 <= parts[name].min() <= parts[name].max() <= 8
    rejected = np.flatnonzero(verdict.rejected)
    reasons = judge.explain(scores, rejected)
    assert len(reasons) == len(rejected)
    assert all(reason and reason != "no sign is strong, but all point the same way" for reason in reasons[:20])


@pytest.mark.parametrize("kind", ["gap", "distance", "strangeness", "company"])
def test_what_is_left_out_does_not_count(found, kind):
    here, _, judge, scores, _ = found
    left = CrossExamination(without=kind).score(replace(here, train=False))
    counted = {
        name: part
        for name, part in scores.parts.items()
        if name.partition(" ")[0] in ("distance", "strangeness", "gap") and kind not in name
    }
    assert len(counted) == (3 if kind == "company" else 4)
    total = sum(counted.values())
    centred = total - np.median(total)
    added = np.maximum(left.parts["trigger"], 4 * left.parts["learned"])
    assert np.sinh(left.values - added) == pytest.approx(centred / np.median(np.abs(centred)), rel=1e-3, abs=1e-3)
    assert judge.explain(left, here.examples.rows[:3])


def test_a_learned_trigger_adds_to_the_score_and_is_told_of(found, monkeypatch):
    here, poison, judge, scores, _ = found
    rows = np.union1d(poison, here.examples.rows[:2])
    with_it = scores.parts["learned"] * 0
    with_it[rows[:-1]], with_it[rows[-1]] = 1, 0.5
    monkeypatch.setattr("untaint.defenses.cross_examination.learned", lambda *_: with_it)
    after = judge.score(replace(here, train=False))
    bare = scores.values - np.maximum(scores.parts["trigger"], 4 * scores.parts["learned"])
    assert after.values - bare == pytest.approx(np.maximum(scores.parts["trigger"], 4 * with_it), abs=1e-5)
    alone = rows[(scores.parts["trigger"][rows] == 0) & (with_it[rows] == 1)]
    assert len(alone)
    assert all(said.startswith("pictures like it teach its label") for said in judge.explain(after, alone))
    off = CrossExamination(learned=False).score(replace(here, train=False))
    assert not off.parts["learned"].any()


def test_scoring_again_trains_nothing_and_gives_the_same(found):
    here, _, judge, scores, _ = found
    again = judge.score(replace(here, train=False))
    assert np.array_equal(again.values, scores.values)
    other = CrossExamination(own=2.0).score(replace(here, train=False))
    assert not np.array_equal(other.values, scores.values)


def test_where_nothing_is_planted_next_to_nothing_is_set_aside(tmp_path):
    """Mostly nothing at all; now and then a clump of one class goes, so that one scan proves little."""
    examples, poison = planted(0)
    shares = []
    for seed in range(3):
        here = task(examples, probes_of(examples, poison), tmp_path / str(seed), seed=seed)
        shares.append(CrossExamination().decide(CrossExamination().score(here), here).rejected.mean())
    assert np.mean(shares) <= 0.015


def test_recording_in_the_training_step_is_refused(tmp_path):
    examples, _ = planted(0)
    here = task(examples, np.arange(20), tmp_path)
    with pytest.raises(SpecError, match="record is train, but cross-examination asks"):
        ut.scan(examples, probes=np.arange(20), out=tmp_path / "run", preset=replace(here.preset, record="train"))
    assert not (tmp_path / "run").exists()  # the corrected command may use the same folder


def test_an_unfinished_run_cannot_be_scored(tmp_path):
    examples, _ = planted(0)
    with pytest.raises(RunError, match="has no finished patterns"):
        CrossExamination().score(task(examples, np.arange(20), tmp_path, train=False))
