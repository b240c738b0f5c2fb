from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

import untaint as ut
from small import RECIPE, Stopping, WithDropout, contents, pictures, preset
from untaint import run, scanning
from untaint.cli import finding
from untaint.concluding import conclude
from untaint.defenses import Task
from untaint.defenses.badloss import BaDLoss
from untaint.errors import InputError, ProbeError, RunError, SpecError
from untaint.findings import left_out
from untaint.probing import suggest_probes, with_probes
from untaint.progress import Silent
from untaint.report.marks import write_marks
from untaint.scores import Above, Fraction, Group, KeepPerClass, Scores, Trigger, rule_text

PROBES = np.arange(0, 90, 4)
AWKWARD = ["two\nlines", 'a "quoted" one', "\ttabbed ", "#hash", "<script>", "ünï/çødé", " ", '"', "nul\x00", "\u2028"]


def pictures_with_awkward_keys() -> ut.Examples:
    examples = pictures(90)
    keys = AWKWARD + [f"class/{row}.png" for row in range(len(AWKWARD), 90)]
    return ut.Examples.of(examples.images, examples.labels, keys=keys, class_names=["cat", "dog", "e,e l"])


def awkward_task(scratch, rule) -> Task:
    settled = {"preset": preset(), "seed": 0, "progress": Silent()}
    return Task(examples=pictures_with_awkward_keys(), probes=PROBES, rule=rule, scratch=scratch, **settled)


@pytest.fixture(scope="module")
def scanned(tmp_path_factory):
    out = tmp_path_factory.mktemp("scanned") / "run"
    examples = pictures_with_awkward_keys()
    return ut.scan(examples, probes=PROBES, out=out, preset=preset(epochs=2), reject=Fraction(0.2))


@pytest.fixture
def copy(tmp_path, scanned):
    return Path(shutil.copytree(scanned.run, tmp_path / "copy"))


def table_of(folder):
    return pq.read_table(folder / "scores.parquet").to_pandas()


# --- what a scan leaves


def test_kept_and_rejected_are_the_whole_and_agree_with_the_table(scanned):
    examples, table = scanned.examples, table_of(scanned.run)
    kept, rejected = examples.find(scanned.run / "kept.txt"), examples.find(scanned.run / "rejected.txt")
    assert np.array_equal(np.sort(np.concatenate([kept, rejected])), examples.rows)
    assert np.array_equal(rejected, scanned.rejected)
    assert np.array_equal(kept, scanned.kept.rows)
    assert len(rejected) == 18
    assert table["row"].tolist() == list(range(90))
    assert table.loc[table["verdict"] == "rejected", "row"].tolist() == rejected.tolist()
    assert table["key"].tolist() == list(examples.keys)
    assert table.loc[table["row"] == 2, "label"].item() == "e,e l"
    assert np.array_equal(table["score"].to_numpy(), scanned.scores.values)
    order = table.sort_values("rank")["score"].to_numpy()
    assert sorted(table["rank"]) == list(range(1, 91))
    assert (np.diff(order) <= 0).all()
    assert np.flatnonzero(table["probe"]).tolist() == PROBES.tolist()
    assert (table["reason"].str.len() > 0).tolist() == (table["verdict"] == "rejected").tolist()


def test_probes_are_not_rejected(scanned):
    assert not np.isin(PROBES, scanned.rejected).any()
    assert np.isfinite(scanned.scores.values[PROBES]).all()


def test_the_run_holds_what_the_design_says(scanned):
    there = set(contents(scanned.run))
    stages = ("watcher-a", "watcher-b", "whitened-a", "whitened-b", "witness", "model")
    assert {f"{stage}/{name}" for stage in stages for name in ("model.safetensors", "model.json", "done.json")} <= there
    assert {"scores.parquet", "kept.txt", "rejected.txt", "unreadable.txt", "settings.json", "report.html"} <= there
    assert not [name for name in there if name.endswith(".part") or "checkpoint" in name or "state.json" in name]
    summary = run.read_json(scanned.run / "summary.json")
    assert [entry["name"] for entry in summary["stages"]] == list(stages)
    assert all(entry["seconds"] >= 0 for entry in summary["stages"])
    counts = {"scored": 90, "rejected": 18, "kept": 72, "probes": len(PROBES)}
    assert summary["counts"] == {**counts, "doubtful_probes": len(run.read_keys(scanned.run / "doubtful_probes.txt"))}
    assert {"python", "torch", "untaint"} <= set(summary["versions"])
    assert [entry["rows"] for entry in summary["per_class"]] == [30, 30, 30]
    assert "18 of 90 pictures set aside" in repr(scanned)


def test_the_clean_model_was_trained_on_what_is_kept(scanned):
    assert run.read_json(scanned.run / "model" / "model.json")["rows"] == 72
    model = scanned.model()
    assert not model.training
    assert model(torch.rand(2, 3, 8, 8)).shape == (2, 3)
    assert 0 <= ut.accuracy(model, pictures(seed=1)) <= 1


def test_kept_is_a_data_set_that_a_data_loader_takes(scanned):
    seen = 0
    for images, labels in DataLoader(scanned.kept, batch_size=10, shuffle=False):
        assert images.dtype == torch.uint8
        assert images.shape[1:] == (3, 8, 8)
        rows = scanned.kept.rows[seen : seen + len(labels)]
        assert labels.tolist() == scanned.examples.labels[rows].tolist()
        assert np.array_equal(images.numpy(), scanned.examples.images[rows])
        seen += len(labels)
    assert seen == 72


@given(
    st.lists(st.text(st.characters(codec=None, exclude_categories=[]), max_size=8), unique=True, min_size=1, max_size=8)
)
@settings(max_examples=60, deadline=None)
def test_any_key_survives_being_listed_and_found(tmp_path_factory, keys):
    keys = [*keys, *(key for key in AWKWARD if key not in keys)]
    folder = tmp_path_factory.mktemp("keys")
    images = np.zeros((len(keys), 1, 2, 2), np.uint8)
    examples = ut.Examples.of(images, [0] * len(keys), keys=keys)
    run.write_keys(folder / "kept.txt", keys[::2])
    assert examples.find(folder / "kept.txt").tolist() == list(range(0, len(keys), 2))
    write_marks(folder / "marks.txt", dict.fromkeys(keys, "poison"))
    assert left_out(examples, None, folder / "marks.txt").tolist() == list(range(len(keys)))


# --- scoring again


def test_scoring_again_trains_nothing_and_gives_the_same(copy, scanned):
    before = table_of(copy)
    models = {name: data for name, data in contents(copy).items() if name.count("/")}
    told = Stopping(10**9)
    result = ut.score(copy, progress=told)
    assert [step for step in told.steps if "watch" in step[0] or "train" in step[0]] == []
    assert np.array_equal(result.scores.values, scanned.scores.values)
    assert np.array_equal(result.rejected, scanned.rejected)
    assert table_of(copy).equals(before)
    assert {name: data for name, data in contents(copy).items() if name.count("/")} == models


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"reject": "fraction:share=0.1"}, 9),
        ({"reject": Fraction(0.5)}, 45),
        ({"reject": Above(1e9)}, 0),
        ({"detector": "cross-examination:own=2.0"}, 18),
        ({"reject": "fraction:share=0.7", "keep_per_class": 0.5}, 45),
        ({"reject": KeepPerClass(Fraction(0.7), 0.5)}, 45),
    ],
    ids=str,
)
def test_another_rule_or_other_weights_need_no_training(copy, options, count):
    result = ut.score(copy, **options)
    assert len(result.rejected) <= count if "keep" in str(options).lower() else len(result.rejected) == count
    assert len((copy / "rejected.txt").read_text().splitlines()) >= len(result.rejected)
    assert np.array_equal(result.examples.find(copy / "rejected.txt"), result.rejected)
    assert len(result.kept) + len(result.rejected) == 90


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"detector": "cross-examination:trusted=0.6"},
            r"trusted = 0.6 would change whom the witness trusts \(it was 0.5\)",
        ),
        ({"detector": "cross-examination:floor=0.1"}, "floor = 0.1 would change"),
        ({"detector": "badloss"}, "each watcher .* trained on half the pictures"),
        ({"probes": np.arange(30)}, "whom the witness of .* trusts depends on its probes"),
    ],
)
def test_what_changes_whom_the_witness_trusts_is_refused_with_the_command_that_can(copy, options, message):
    before = contents(copy)
    with pytest.raises(RunError, match=message) as refused:
        ut.score(copy, **options)
    assert "untaint scan --" in str(refused.value)
    assert contents(copy) == before


def test_a_run_of_badloss_is_scored_again_with_other_options_and_probes(tmp_path):
    small = preset("badloss:k=5", epochs=2)
    ut.scan(pictures(90), probes=PROBES, out=tmp_path / "run", preset=small, retrain=False)
    assert not (tmp_path / "run" / "model").exists()
    plain = ut.score(tmp_path / "run", detector=BaDLoss(k=5)).scores.values
    margin = ut.score(tmp_path / "run", detector="badloss:k=5,observable=margin").scores.values
    others = ut.score(tmp_path / "run", detector="badloss:k=5", probes=np.arange(40)).scores.values
    assert not np.allclose(plain, margin)
    assert not np.allclose(plain, others)
    own = ut.score(tmp_path / "run", detector=BaDLoss(k=5)).scores.values
    assert np.array_equal(plain, own)  # other probes were for once, the run's own stay
    with pytest.raises(RunError, match=r"was made by badloss\. Run another detector anew: untaint scan"):
        ut.score(tmp_path / "run", detector="cross-examination")


def test_folders_that_are_no_scan_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="is no run"):
        ut.score(tmp_path / "empty", probes=[1, 2])
    ut.train(pictures(), out=tmp_path / "model", preset=preset(epochs=1))
    with pytest.raises(RunError, match="of no scan"):
        ut.score(tmp_path / "model")
    with pytest.raises(KeyboardInterrupt):
        ut.scan(pictures(), probes=np.arange(0, 60, 4), out=tmp_path / "run", preset=preset(), progress=Stopping(2))
    with pytest.raises(RunError, match="is not finished: nothing was found yet"):
        ut.score(tmp_path / "run")


def test_a_recording_needs_probes_and_a_distance(tmp_path):
    recorder = ut.Recorder(np.arange(40) % 2, tmp_path)
    for _ in range(3):
        recorder.record(np.arange(40), torch.randn(40, 2))
        recorder.end_epoch()
    with pytest.raises(ProbeError, match="no probes were given"):
        ut.score(tmp_path)
    with pytest.raises(SpecError, match="needs models of its own"):
        ut.score(tmp_path, probes=np.arange(20), detector="cross-examination")
    examples = ut.Examples.of(
        np.zeros((40, 3, 4, 4), np.uint8), np.arange(40) % 2, keys=[f"k{row}" for row in range(40)]
    )
    result = ut.score(tmp_path, probes=["k1", "k2", "k3", "k4"], examples=examples, reject="fraction:share=0.25")
    assert all(key.startswith("k") for key in (tmp_path / "rejected.txt").read_text().split())
    assert len(result.rejected) == 10


# --- a person's word


def test_marks_are_obeyed_in_scoring_and_training(copy, scanned, tmp_path):
    examples = scanned.examples
    fine = scanned.rejected[:2]
    poison = np.setdiff1d(scanned.kept.rows, PROBES)[:3]
    said = {examples.keys[row]: "fine" for row in fine} | {examples.keys[row]: "poison" for row in poison}
    write_marks(tmp_path / "marks.txt", said)
    result = ut.score(copy, marks=tmp_path / "marks.txt")
    assert np.array_equal(result.rejected, np.union1d(np.setdiff1d(scanned.rejected, fine), poison))
    assert "marked 2 pictures fine and 3 poison" in result.verdict.note
    without = left_out(examples, scanned.run / "rejected.txt", tmp_path / "marks.txt")
    assert np.array_equal(without, result.rejected)
    assert np.array_equal(left_out(examples, None, tmp_path / "marks.txt"), poison)
    assert left_out(examples, None, None).tolist() == []


def test_a_probe_marked_as_poison_is_a_contradiction(copy, scanned, tmp_path):
    write_marks(tmp_path / "marks.txt", {scanned.examples.keys[PROBES[3]]: "poison"})
    with pytest.raises(InputError, match="as poison, but it is a probe"):
        ut.score(copy, marks=tmp_path / "marks.txt")


def test_the_clean_model_is_replaced_when_the_verdict_changed(copy, scanned, tmp_path):
    again = {"probes": PROBES, "out": copy, "preset": preset(epochs=2), "reject": Fraction(0.2)}
    before = (copy / "model" / "model.safetensors").read_bytes()
    ut.scan(pictures_with_awkward_keys(), **again)
    assert (copy / "model" / "model.safetensors").read_bytes() == before
    marked = np.setdiff1d(scanned.kept.rows, PROBES)[0]
    write_marks(tmp_path / "marks.txt", {scanned.examples.keys[marked]: "poison"})
    result = ut.scan(pictures_with_awkward_keys(), marks=tmp_path / "marks.txt", **again)
    assert marked in result.rejected
    assert run.read_json(copy / "model" / "model.json")["rows"] == 71
    assert (copy / "model" / "model.safetensors").read_bytes() != before
    with pytest.raises(KeyboardInterrupt):  # back to the first verdict, and stopped while it is trained
        ut.scan(pictures_with_awkward_keys(), progress=Stopping(6), **again)
    ut.scan(pictures_with_awkward_keys(), **again)
    assert (copy / "model" / "model.safetensors").read_bytes() == before


# --- probes from elsewhere


@pytest.fixture(scope="module")
def with_outside(tmp_path_factory):
    trusted = pictures(30, seed=9)
    trusted = ut.Examples.of(trusted.images, trusted.labels, keys=[f"good/{row}" for row in range(30)])
    out = tmp_path_factory.mktemp("outside") / "run"
    rule = "false-discovery:q=0.5"
    return ut.scan(pictures(90), probes=trusted, out=out, preset=preset(epochs=2), reject=rule, retrain=True)


def test_probes_from_elsewhere_are_rows_of_their_own_and_appear_in_no_list(with_outside):
    result = with_outside
    assert result.outside.tolist() == list(range(90, 120))
    assert len(result.examples) == 120
    assert run.read_json(result.run / "watcher-a" / "model.json")["rows"] == 60  # they are trained on
    assert np.isfinite(result.scores.values).all()
    table = table_of(result.run)
    assert table["row"].tolist() == list(range(90))
    assert not table["probe"].any()
    lines = (result.run / "kept.txt").read_text().split() + (result.run / "rejected.txt").read_text().split()
    assert sorted(lines) == sorted(pictures(90).keys)
    assert np.isnan(result.verdict.p_values[90:]).all()
    assert np.isfinite(result.verdict.p_values[:90]).all()
    assert not result.verdict.rejected[90:].any()
    assert result.kept.rows.max() < 90
    assert run.read_json(result.run / "model" / "model.json")["rows"] == len(result.kept)
    assert run.read_json(result.run / "summary.json")["rows"] == 90


def test_they_stay_outside_when_scored_again(with_outside, tmp_path):
    folder = Path(shutil.copytree(with_outside.run, tmp_path / "copy"))
    result = ut.score(folder, reject="fraction:share=0.5")
    assert result.outside.tolist() == list(range(90, 120))
    assert len(result.rejected) == 45
    assert result.kept.rows.max() < 90
    assert table_of(folder)["row"].tolist() == list(range(90))


def test_a_folder_of_trusted_pictures_takes_the_classes_and_the_size_of_the_data(tmp_path, monkeypatch):
    monkeypatch.setenv("UNTAINT_CACHE", str(tmp_path / "cache"))
    examples = ut.Examples.of(pictures(60).images, pictures(60).labels, class_names=["ant", "bee", "cat"])
    for name in ("cat", "ant"):
        (tmp_path / "good" / name).mkdir(parents=True)
        for index in range(6):
            shade = Image.new("RGB", (20, 20), (index, 99, 7))
            shade.save(tmp_path / "good" / name / f"{index}.png")
    whole, rows, outside = with_probes(examples, tmp_path / "good", Stopping(10**9))
    assert np.array_equal(rows, outside)
    assert rows.tolist() == list(range(60, 72))
    assert [whole.class_names[label] for label in whole.labels[60:]] == ["ant"] * 6 + ["cat"] * 6
    assert whole.images.shape == (72, 3, 8, 8)
    assert all(whole.keys[row].startswith("probes/") for row in rows)
    (tmp_path / "good" / "cat").rename(tmp_path / "good" / "dgo")
    with pytest.raises(ProbeError, match="have a class 'dgo', which the data has not"):
        with_probes(examples, tmp_path / "good", Stopping(10**9))
    with pytest.raises(ProbeError, match="Load both at one size"):
        with_probes(examples, pictures(30, side=16), Stopping(10**9)) if examples.class_names == ("0", "1", "2") else (
            with_probes(pictures(60), pictures(30, side=16), Stopping(10**9))
        )


@pytest.mark.parametrize(
    ("probes", "message"),
    [
        ([1, 2, 3], "there are 3 probes; give at least 10"),
        (list(range(0, 60, 3)), "all 20 probes are of the class '0', but the data has 3"),
        (["00", "01", "0x"], "1 of 3 keys in the list given are not in the data, first '0x'"),
        ([999], "row 999 is not among the 60 rows"),
        ("nowhere.txt", "nowhere.txt does not exist"),
    ],
)
def test_probes_that_do_not_do_are_refused(tmp_path, probes, message):
    with pytest.raises(ProbeError, match=message):
        ut.scan(pictures(), probes=probes, out=tmp_path / "run", preset=preset())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("balanced", [False, True])
def test_suggested_probes_are_members_drawn_by_the_seed(balanced):
    examples = pictures(90).take(np.arange(10, 90))
    rows = suggest_probes(examples, 30, balanced=balanced, seed=1)
    assert len(np.unique(rows)) == 30
    assert np.isin(rows, examples.rows).all()
    assert np.array_equal(rows, suggest_probes(examples, 30, balanced=balanced, seed=1))
    assert not np.array_equal(rows, suggest_probes(examples, 30, balanced=balanced, seed=2))
    if balanced:
        assert np.bincount(examples.labels[rows]).tolist() == [10, 10, 10]
    with pytest.raises(ProbeError, match="91 probes were asked for, of 80"):
        suggest_probes(examples, 91)


# --- one's own network, subsets, training


def test_a_network_of_ones_own_is_watched_and_trained(tmp_path):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    result = ut.scan(
        pictures(), probes=np.arange(0, 60, 4), out=tmp_path / "run", preset=preset(epochs=2), model=WithDropout
    )
    assert torch.equal(torch.get_rng_state(), before)
    card = run.read_json(tmp_path / "run" / "witness" / "model.json")
    assert card["model"] == "custom"
    assert np.load(tmp_path / "run" / "watcher-a" / "features" / "epoch_000.npy").shape == (60, 16)
    assert isinstance(ut.load_model(tmp_path / "run" / "model", model=WithDropout()), WithDropout)
    with pytest.raises(InputError, match="architecture of your own"):
        result.model()


def test_only_the_members_of_a_subset_are_judged(tmp_path):
    examples = pictures(90).take(np.arange(20, 80))
    result = ut.scan(examples, probes=np.arange(0, 90, 4), out=tmp_path, preset=preset(epochs=1), retrain=False)
    assert np.flatnonzero(np.isfinite(result.scores.values)).tolist() == list(range(20, 80))
    assert table_of(tmp_path)["row"].tolist() == list(range(20, 80))
    assert len(result.rejected) + len(result.kept) == 60
    again = ut.score(tmp_path, reject="fraction:share=0.5")
    assert len(again.rejected) == 30
    assert np.array_equal(again.examples.rows, examples.rows)


def test_a_model_is_trained_on_what_is_kept_and_given_back(tmp_path):
    examples = pictures(90).without(np.arange(30))
    one = ut.train(examples, preset=preset(epochs=2))
    two = ut.train(examples, preset=preset(epochs=2), out=tmp_path / "model")
    images = torch.rand(4, 3, 8, 8)
    with torch.inference_mode():
        assert torch.equal(one(images), two(images))
        assert torch.equal(ut.load_model(tmp_path / "model")(images), two(images))
    assert run.read_json(tmp_path / "model" / "model.json")["rows"] == 60
    with pytest.raises(RunError, match=r"recipe.epochs = 2, now it is 3"):
        ut.train(examples, preset=preset(epochs=3), out=tmp_path / "model")
    with pytest.raises(RunError, match=r"was begun with other data\. Give the same data to continue it"):
        ut.train(pictures(90), preset=preset(epochs=2), out=tmp_path / "model")
    ut.train(examples, preset=preset(epochs=1), out=tmp_path / "own", model=WithDropout)
    with pytest.raises(RunError, match=r"recipe.epochs = 1, now it is 2"):
        ut.train(examples, preset=preset(epochs=2), out=tmp_path / "own", model=WithDropout)


def test_training_that_fails_says_so_and_looks_unfinished(tmp_path):
    with pytest.raises(ut.TrainingError, match="at epoch"):
        ut.scan(pictures(), probes=np.arange(0, 60, 4), out=tmp_path, preset=preset(learning_rate=1e6, epochs=20))
    assert [path.parent.name for path in tmp_path.rglob("done.json")] == ["patterns"]  # which needs no model
    assert not (tmp_path / "scores.parquet").exists()
    assert RECIPE.learning_rate < 1


def test_too_few_pictures_to_learn_from_are_refused_but_by_what_trains_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(scanning, "FEWEST", 500)
    with pytest.raises(InputError, match=r"there are 90 pictures; .* --detector pattern"):
        ut.scan(pictures(90), probes=PROBES, out=tmp_path / "refused", preset=preset())
    assert not (tmp_path / "refused").exists()
    found = ut.scan(
        pictures(90), probes=PROBES, out=tmp_path / "run", preset=preset(), detector="pattern", retrain=False
    )
    assert len(found.rejected) < 90


@pytest.mark.parametrize("each", ["one picture", "one picture for each class", "every picture twice"])
def test_nothing_but_duplicates_is_scanned_and_nothing_is_set_aside(each, tmp_path):
    different = pictures(150)
    rows = {
        "one picture": np.zeros(300, int),
        "one picture for each class": np.arange(300) % 3,
        "every picture twice": np.arange(300) % 150,
    }[each]
    made = ut.Examples.of(different.images[rows], np.arange(300) % 3)
    result = ut.scan(made, probes=np.arange(0, 300, 5), out=tmp_path, preset=preset(reject="false-discovery"))
    assert result.summary["counts"]["scored"] == 300
    assert not len(result.rejected)
    assert np.isfinite(table_of(tmp_path)["score"]).all()


def test_a_scan_needs_no_probes_and_says_what_is_lost(tmp_path):
    said = []
    told = Stopping(10**9)
    told.say = said.append
    result = ut.scan(pictures(90), out=tmp_path, preset=preset(), reject="fraction:share=0.1", progress=told)
    assert any("No probes" in text for text in said)
    assert (result.summary["counts"]["probes"], result.summary["counts"]["doubtful_probes"]) == (0, 0)
    assert len(result.rejected) == 9
    assert not table_of(tmp_path)["probe"].any()
    assert "No probes were scored" in (tmp_path / "report.html").read_text()
    again = ut.score(tmp_path, reject="fraction:share=0.2")
    assert len(again.rejected) == 18


def test_probes_with_a_trigger_are_kept_but_vouch_for_nothing(tmp_path):
    values = np.linspace(-1, 1, 90).astype(np.float32)
    trigger = Trigger(
        label=1, rows=PROBES[-3:], picture=np.zeros((3, 8, 8), np.float32), seen=0.9, unseen=0, works=True
    )
    asked = []

    class Asked(Fraction):
        def decide(self, scores, *, labels, probes):
            asked.append(np.isnan(scores.values[PROBES]).tolist())
            return super().decide(scores, labels=labels, probes=probes)

    task = awkward_task(tmp_path, Asked(0.1))
    verdict = BaDLoss().decide(Scores(values=values, name="made up", triggers=(trigger,)), task)
    assert asked == [[False] * (len(PROBES) - 3) + [True] * 3]
    assert not verdict.rejected[PROBES].any()


@pytest.mark.parametrize(
    ("given", "keep", "expected"),
    [
        ("false-discovery:q=0.2", None, "false-discovery:q=0.2,keep=0.05"),
        ("false-discovery:keep=0", None, "false-discovery:keep=0.0"),
        ("false-discovery:q=0.2", 0.3, "false-discovery:q=0.2,keep=0.3"),
        ("fraction:share=0.9", None, "fraction:share=0.9"),
        ("above:score=1", 0.5, "above:score=1.0,keep=0.5"),
    ],
)
def test_a_rule_that_decides_how_many_go_leaves_no_class_without_pictures(given, keep, expected):
    rule = scanning.rule_of(given, keep)
    assert rule_text(rule) == expected
    assert scanning.rule_of(expected, None) == rule


def test_a_class_that_scores_like_poison_as_a_whole_is_not_lost(tmp_path):
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 200)
    values = generator.normal(size=800).astype(np.float32)
    values[labels == 3] += 30
    verdict = scanning.rule_of("false-discovery", None).decide(
        Scores(values=values, name="made up"), labels=labels, probes=np.empty(0, np.int64)
    )
    assert np.count_nonzero(verdict.rejected & (labels == 3)) == 190
    assert "10 of them were reinstated so that every class keeps at least 5%" in verdict.note


def test_groups_are_told_in_all_that_a_scan_leaves(tmp_path, capsys):
    groups = (
        Group(kind="trigger", label=1, rows=np.array([80, 88]), taken_for=((2, 2),), seen=1.0, unseen=0.0),
        Group(kind="mislabelled", rows=np.array([81]), taken_for=((0, 1),)),
        Group(kind="odd", rows=np.array([82, 83]), taken_for=((0, 1), (2, 1))),
    )

    class Grouping(BaDLoss):
        def groups(self, scores, verdict, task):
            assert verdict.rejected.sum() == 9
            return groups

    scores = Scores(values=np.linspace(-1, 1, 90).astype(np.float32), name="made up")
    result = conclude(awkward_task(tmp_path, Fraction(0.1)), Grouping(), scores, None, retrain=False)
    assert result.groups == groups
    first, second, third = result.summary["groups"]
    names = result.examples.class_names
    assert (first["kind"], first["label"], first["rows"], first["trigger"]) == ("trigger", names[1], 2, None)
    assert (first["seen"], first["unseen"], first["usual"]) == (1, 0, None)
    assert (first["taken_for"], second["label"], third["classes"]) == ([[names[2], 2]], None, 2)
    table = table_of(tmp_path).set_index("row")
    assert [table.index[table["in_group"] == number].tolist() for number in (1, 2, 3)] == [[80, 88], [81], [82, 83]]
    assert {80, 81, 82, 83, 88} <= set(np.load(tmp_path / "thumbnails_rows.npy").tolist())
    finding._tell(result, as_json=False, check=False)
    told = " ".join(capsys.readouterr().out.split())
    assert (
        f"Without a recovered trigger: 2 pictures labelled {names[1]} that one trigger binds; 1 probably mislabelled; 2 by themselves."
        in told
    )


def test_triggers_are_told_in_all_that_a_scan_leaves(tmp_path, capsys):
    values = np.linspace(-1, 1, 90).astype(np.float32)
    shape = np.zeros((3, 8, 8), np.float32)
    found = tuple(
        Trigger(label=label, rows=np.array(rows), picture=shape + 0.1 * label, seen=0.9, unseen=0.01, works=True)
        for label, rows in ((0, [3, 5]), (1, [4, 88, 89]), (2, [2, 87, 88]))
    )
    scores = Scores(values=values, name="made up", triggers=found)
    task = awkward_task(tmp_path, Fraction(0.1))
    result = conclude(task, BaDLoss(), scores, None, retrain=False)
    assert [(told["label"], told["rows"], told["rejected"]) for told in result.summary["triggers"]] == [
        ("dog", 3, 1),  # row 88 is a probe
        ("e,e l", 3, 1),
    ], "nobody who has the first is set aside: it is not called a trigger"
    table = table_of(tmp_path).set_index("row")
    assert table.index[table["in_trigger"] == 1].tolist() == [4, 88, 89], "the surer trigger counts"
    assert table.index[table["in_trigger"] == 2].tolist() == [2, 87]
    assert np.load(tmp_path / "triggers.npy").shape == (2, 3, 8, 8)
    assert {4, 88, 89, 2} <= set(np.load(tmp_path / "thumbnails_rows.npy").tolist())
    assert "2 triggers recovered" in (tmp_path / "report.html").read_text()
    finding._tell(result, as_json=False, check=False)
    assert re.search(r"dog +3 +1 +90% +1%", capsys.readouterr().out)
    conclude(task, BaDLoss(), replace(scores, triggers=()), None, retrain=False)
    assert not (tmp_path / "triggers.npy").exists()
    assert "in_trigger" not in table_of(tmp_path).columns


def test_who_sets_nearly_all_aside_is_told_to_have_found_nothing(tmp_path):
    settings = {"out": tmp_path, "preset": preset(), "detector": "random", "retrain": False}
    result = ut.scan(pictures(60), **settings, reject=Fraction(0.95))
    assert len(result.rejected) == 57
    assert "These are 95% of all: that finds nothing" in result.summary["rule"]["note"]
    assert "finds nothing" in (tmp_path / "report.html").read_text()
    assert "finds nothing" not in ut.score(tmp_path, reject=Fraction(0.9)).summary["rule"]["note"]
