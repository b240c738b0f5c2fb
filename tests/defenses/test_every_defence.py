"""What every defence promises, tested for all that are registered at once."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import small
from untaint import run, spec
from untaint.defenses import DEFENSES, Defense, Detector, Mender
from untaint.errors import RunError, SpecError
from untaint.scores import Fraction, parse_rule

POISONED = np.arange(5, 60, 10)
SMALL = {
    "eigenguard": "eigenguard:k=4",  # than batches of the small pictures
    "fine-tuning": "fine-tuning:steps=5",
    "fine-pruning": "fine-pruning:steps=5",
    "nad": "nad:teacher-steps=3,steps=3",
    "anp": "anp:steps=5",
    "neural-cleanse": "neural-cleanse:steps=3,tune-steps=2",
    "feature-re": "feature-re:steps=5,tune-steps=5",
    "asset": "asset:steps=8",
    "d-br": "d-br:steps=5",
    "confusion-training": "confusion-training:steps=5,base-steps=2",
}
OTHERS = [  # other options
    "clustering:reduce=pca,dimensions=3",
    "whitening:kind=iterative",
    "eigenguard:k=4,until=0.5",
    "label-errors:filter-by=both",
    "isolation:epochs=2,floor=0.2",
    "strip:overlays=8,mix=blend,alpha=0.5",
    "cognitive-distillation:beta=1,steps=20",
    "scale-up:largest=5,by=class",
    "psbd:passes=1",
    "ibd-psc:scale=3,error=0.3",
    "vote:of=pattern+spectral,needed=1",
]


def detects(text: str) -> bool:
    return issubclass(DEFENSES.kind(spec.parse(text)[0]), Detector)


USUAL = [SMALL.get(name, name) for name in DEFENSES.names()]
VARIANTS = [*USUAL, *(pytest.param(text, marks=pytest.mark.slow) for text in OTHERS)]
DETECTORS = [
    *filter(detects, USUAL),
    *(pytest.param(text, marks=pytest.mark.slow) for text in filter(detects, OTHERS)),
]

every_defence = pytest.mark.parametrize("text", VARIANTS)
every_detector = pytest.mark.parametrize("text", DETECTORS)


def made(text: str) -> Defense:
    judge = DEFENSES.build(text)
    return judge.told(POISONED) if hasattr(judge, "told") else judge


def task(scratch, **changes):
    return small.task(scratch, small.pictures(120), np.arange(0, 120, 4), **changes)


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Give for each text the task and its scores, made once."""
    made_before = {}

    def give(text):
        if text not in made_before:
            here = task(tmp_path_factory.mktemp("run"))
            made_before[text] = here, made(text).score(here)
        return made_before[text]

    return give


@every_defence
def test_the_name_is_the_file_name_and_settings_survive_repr_and_text(text):
    judge = made(text)
    name = spec.parse(text)[0]
    assert DEFENSES.name_of(judge) == name
    assert DEFENSES.build(spec.text(name, judge)) == judge
    assert eval(repr(judge), {type(judge).__name__: type(judge)}) == judge


@pytest.mark.parametrize("name", DEFENSES.names())
def test_its_card_says_what_it_is_of_and_what_it_needs(name):
    kind = DEFENSES.kind(name)
    assert kind.card is not None
    assert kind.card.paper
    assert kind.card.assumes
    assert not kind.card.assumes.endswith(".")
    assert bool(kind.card.why) == (kind.card.several != "yes")
    if issubclass(kind, Mender):
        assert kind.card.clean == kind.needs


@every_detector
def test_without_probes_it_scores_all_the_same_or_says_how_many_it_needs(text, scored):
    judge, here = made(text), dataclasses.replace(scored(text)[0], probes=np.empty(0, dtype=np.int64))
    if judge.card.clean:
        with pytest.raises(SpecError, match=r"[Gg]ive --probes|untaint probes"):
            judge.score(here)
    else:
        assert np.isfinite(judge.score(here).values).all()


@every_defence
def test_it_ends_with_a_model_and_leaves_what_it_was_given_alone(text, tmp_path):
    here = task(tmp_path)
    before = here.examples.images.copy(), here.examples.labels.copy(), here.probes.copy()
    for array in (here.examples.images, here.examples.labels, here.probes):
        array.flags.writeable = False
    outcome = made(text).defend(here)
    assert run.finished(outcome.model) is not None
    rejected = outcome.verdict.rows if outcome.verdict is not None else []
    assert run.read_json(outcome.model / "model.json")["rows"] == 120 - len(rejected)
    for one, other in zip(before, (here.examples.images, here.examples.labels, here.probes), strict=True):
        assert np.array_equal(one, other)


@every_detector
def test_every_row_has_one_score_under_the_name_of_the_detector(text, scored):
    _, scores = scored(text)
    assert scores.values.dtype == np.float32
    assert scores.values.shape == (120,)
    assert np.isfinite(scores.values).all()
    assert scores.name == spec.parse(text)[0]


@every_detector
def test_rows_that_are_no_members_have_no_score(text, tmp_path):
    whole = task(tmp_path)
    part = dataclasses.replace(whole, examples=whole.examples.without(np.arange(100, 120)), probes=np.arange(0, 100, 4))
    values = made(text).score(part).values
    assert np.isfinite(values[:100]).all()
    if not text.startswith(("badloss", "cross-examination")):
        assert np.isnan(values[100:]).all()


@every_detector
def test_the_models_it_announces_are_those_it_trains(text, scored):
    here, _ = scored(text)
    announced = [stage for stage, *_ in made(text).work(here)]
    trained = {path.parent.name for path in here.scratch.glob("*/model.safetensors")}
    assert trained <= set(made(text).stages), "no more than usually"
    assert set(announced) == trained


@every_detector
def test_a_second_score_trains_nothing_and_is_the_same(text, scored):
    here, scores = scored(text)
    again = made(text).score(dataclasses.replace(here, train=False))
    assert np.array_equal(scores.values, again.values)


@every_detector
def test_nothing_is_trained_where_that_is_forbidden(text, tmp_path):
    judge = made(text)
    if judge.work(task(tmp_path)):
        with pytest.raises(RunError, match="has no finished"):
            judge.score(task(tmp_path, train=False))
        assert not list(tmp_path.glob("*/model.safetensors"))


@every_detector
def test_probes_are_never_set_aside_and_each_who_is_has_a_reason(text, scored):
    here, scores = scored(text)
    judge = made(text)
    rules = [here.rule, Fraction(0.9), *([parse_rule(judge.usual_rule)] if judge.usual_rule else [])]
    for rule in rules:
        verdict = judge.decide(scores, dataclasses.replace(here, rule=rule))
        assert not verdict.rejected[here.probes].any()
        reasons = judge.explain(scores, verdict.rows)
        assert len(reasons) == len(verdict.rows)
        assert all(reasons)
    assert all(sentence.endswith(".") for sentence in judge.limits())
