from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from page_reader import EVIL, TAGS, Page
from PIL import Image

from untaint import run
from untaint.errors import InputError, RunError
from untaint.report import write_report
from untaint.report.belonging import belonging
from untaint.report.lines import band
from untaint.report.marks import key_line, read_marks
from untaint.report.reading import Findings
from untaint.report.selection import select


def page_of(path: Path) -> Page:
    return Page(path.read_text("utf-8"))


def test_says_what_was_found(make_run):
    folder = make_run(rows=400, rejected=40).folder
    path = write_report(folder)
    assert path == folder / "report.html"
    page = page_of(path)
    assert "40 of 400 pictures (10 %) were set aside, 82 % of them labelled “cat”." in page.text
    assert "up to about 4 of these 40 are clean" in page.text
    assert "Of 45 probes, known to be clean, none reaches the threshold." in page.text
    assert "fewer than 6.4 % of them reach it" in page.text  # 1 - 0.05 ** (1 / 45)
    assert "The null was fitted to the centre of all scores" in page.text
    assert "A class in which most pictures are poisoned looks clean." in page.text
    assert "zero\\nbytes.png" in page.text
    assert "untaint train photos/train --without runs/photos/rejected.txt" in page.text
    assert "accuracy is 91.2 %" in page.text
    assert "resnet18" in page.text
    assert "61 s" in page.text
    assert not list(folder.glob("*.part"))


def group(kind, **facts):
    usual = {"label": None, "trigger": None, "seen": None, "unseen": None, "usual": None, "classes": 1, "taken_for": []}
    return {"kind": kind, "rows": 9, **usual, **facts}


def test_recovered_triggers_and_other_groups_are_shown_with_who_belongs_to_them(make_run):
    made = make_run(rows=400, rejected=40)
    assert "recovered" not in page_of(write_report(made.folder)).text
    table = pq.read_table(made.folder / "scores.parquet")
    number = np.zeros(400, dtype=np.int32)
    number[made.rejected[:12]], number[made.rejected[12:30]] = 1, 2
    table = table.append_column("in_trigger", pa.array(number))
    belongs = np.zeros(400, dtype=np.int32)
    belongs[made.rejected[:12]], belongs[made.rejected[30:38]], belongs[made.rejected[38:]] = 1, 2, 4
    pq.write_table(table.append_column("in_group", pa.array(belongs)), made.folder / "scores.parquet")
    shapes = np.zeros((2, 3, 8, 8), dtype=np.float32)
    shapes[0, :, 6:, 6:] = 0.25
    run.save_array(made.folder / "triggers.npy", shapes)
    summary = json.loads((made.folder / "summary.json").read_text())
    summary["triggers"] = [
        {"label": "cat", "rows": 12, "rejected": 11, "seen": 0.973, "unseen": -0.01, "works": True, "strength": 2},
        {"label": "<i>dog</i>", "rows": 18, "rejected": 18, "seen": 0.04, "unseen": 0.03, "works": False},
    ]
    summary["groups"] = [
        group("trigger", label="cat", trigger=1, seen=0.95, unseen=0.1, usual=0.071, classes=7),
        group("trigger", label="bird", rows=8, seen=1.0, unseen=0.0, classes=3),
        group("alike", label="dog", seen=0.5, unseen=0.4, usual=-0.02, taken_for=[["cat", 5], ["dog", 2]]),
        group("mislabelled", rows=2, taken_for=[["cat", 1], ["<b>", 1]]),
        group("odd", rows=1),
    ]
    (made.folder / "summary.json").write_text(json.dumps(summary))
    path = write_report(made.folder)
    page = page_of(path)
    assert "2 triggers recovered, 2 other groups" in page.text
    assert "say cat of 95.0 %; the model that saw none, of 10 % (it takes them for 7 classes)." in page.text
    assert "Clean pictures as much alike differ by no more than 7 points." in page.text
    assert "8 pictures are alike to the models, by something that makes them say bird" in page.text
    assert "No clean pictures of the class are left to compare with." in page.text
    assert "nothing says that a trigger binds them" in page.text
    assert "takes 5 of them for cat: they may be mislabelled" in page.text
    assert (
        "2 pictures in no group: models that did not train on them agree on another class, most often cat (1)"
        in page.text
    )
    assert "12 pictures labelled cat have it, 11 of them set aside." in page.text
    assert "take 97.3 % of them for cat; a model that did not see it: 0 %." in page.text
    assert "These models have not learned it" in page.text
    assert "<i>dog</i>" in page.text
    shown = belonging(Findings.read(made.folder))
    assert [len(one["members"]) for one in shown] == [5, 5, 7, 0, 2, 0]
    assert [bool(one["uri"]) for one in shown] == [True, True, False, False, False, False]
    assert [one["title"] for one in shown[2:]] == ["bird", "dog", "Probably mislabelled", "By themselves"]
    drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown[0]["uri"].partition(",")[2]))))
    assert (drawn[:6, :6] == 128).all(), "grey where nothing is changed"
    assert (drawn[6:, 6:] == 255).all()
    assert shown[0]["gain"] == "2"
    alone = {**summary, "triggers": [], "groups": [one for one in summary["groups"] if one["trigger"] is None]}
    (made.folder / "summary.json").write_text(json.dumps(alone))
    text = page_of(write_report(made.folder)).text
    assert "What was set aside, in groups" in text
    assert "No trigger was recovered." in text


def test_cards_are_the_rejected_then_the_closest(make_run):
    made = make_run(rows=400, rejected=40)
    page = page_of(write_report(made.folder))
    cards = page.having("article", "card")
    verdicts = [page.data["pictures"][int(card["data-i"])]["verdict"] for card in cards]
    assert verdicts.count("set aside") == 40
    assert verdicts.count("kept") == 60
    shown = {page.data["pictures"][int(c["data-i"])]["key"] for c in cards}
    assert {made.keys[row] for row in made.rejected} <= shown


def test_compared_are_kept_of_the_same_class_and_no_suspects(make_run):
    findings = Findings.read(make_run(rows=400, rejected=40).folder)
    chosen = select(findings, 300)
    labels = np.array(findings.table.texts("label", np.arange(400)))
    assert set(chosen.compared) == set(labels[chosen.suspects])
    for name, positions in chosen.compared.items():
        assert 2 <= len(positions) <= 8
        assert not findings.table.rejected[positions].any()
        assert set(labels[positions]) == {name}
        assert not np.isin(positions, chosen.suspects).any()


@pytest.mark.parametrize("most", [0, 1, 25, 300])
def test_never_more_pictures_than_asked_and_the_rest_listed(make_run, most):
    page = page_of(write_report(make_run(rows=300, rejected=50).folder, max_pictures=most))
    cards = page.having("article", "card")
    rest = page.data["rest"]
    assert len(cards) <= most
    aside = [page.data["pictures"][int(card["data-i"])] for card in cards]
    aside = [one["key"] for one in aside if one["verdict"] == "set aside"]
    assert len(aside) == min(most, 50)
    assert len(aside) + len(rest["keys"]) == 50
    assert not set(aside) & set(rest["keys"])
    assert {len(rest[column]) for column in ("keys", "labels", "scores", "ps", "reasons")} == {len(rest["keys"])}


def test_what_is_not_shown_can_be_marked_class_by_class(make_run, tmp_path):
    """Whatever is in their keys, a file of marks made from the list names the pictures that were set aside."""
    keys = EVIL + [f"k{i}" for i in range(300 - len(EVIL))]
    made = make_run(rows=300, rejected=300 - 40, keys=keys[::-1])
    page = page_of(write_report(made.folder, max_pictures=10))
    rest = page.data["rest"]
    written = [rest["lines"].get(str(index), key) for index, key in enumerate(rest["keys"])]
    (tmp_path / "marks.txt").write_text("".join(f"fine\t{line}\n" for line in written))
    shown = {page.data["pictures"][int(card["data-i"])]["line"] for card in page.having("article", "card")}
    meant = {made.keys[row] for row in made.rejected if key_line(made.keys[row]) not in shown}
    assert set(read_marks(tmp_path / "marks.txt")) == meant
    assert len(meant & set(EVIL)) > len(EVIL) // 2
    groups = len([one for one in page.having("section", "group") if one["data-class"] in rest["names"]])
    assert sum(attributes.get("data-listed") == "fine" for _, attributes in page.tags) == groups > 0
    counts = {name: sum(rest["names"][label] == name for label in rest["labels"]) for name in rest["names"]}
    assert all(f"the {count} not shown:" in page.text for count in counts.values())


def test_probes_that_reach_the_threshold_are_shown(make_run):
    made = make_run(rows=400, rejected=40, doubted=3)
    page = page_of(write_report(made.folder))
    assert "A poisoned probe hides its like." in page.text
    shown = [
        page.data["pictures"][int(one["data-i"])]
        for one in page.having("button", "open")
        if "probe" in one["class"].split()
    ]
    high = [one for one in shown if one["score"] == "5"]
    assert len(high) == 3
    assert {one["verdict"] for one in high} == {"probe"}
    assert len({one["key"] for one in high}) == 3


def test_probes_below_the_threshold_are_not_in_doubt(make_run):
    for options in ({"rejected": 40}, {"rejected": 0, "doubted": 3}):
        page = page_of(write_report(make_run(rows=400, **options).folder))
        assert "hides its like" not in page.text


def test_every_class_gets_pictures_however_many_are_set_aside_in_another(make_run):
    labels = np.where(np.arange(400) % 10 == 0, 5, 3)
    findings = Findings.read(make_run(rows=400, rejected=300, labels=labels, thumbnails=400).folder)
    table = findings.table
    names = np.array(table.texts("label", np.arange(400)))
    chosen = select(findings, 80).suspects
    assert table.rejected[chosen].all()
    assert (np.diff(table.rank[chosen]) > 0).all()
    for name in set(names[table.rejected]):
        own = table.rank[table.rejected & (names == name)]
        shown = table.rank[chosen[names[chosen] == name]]
        assert len(shown) >= min(len(own), 80 // len(set(names[table.rejected])))
        assert set(shown) == set(np.sort(own)[: len(shown)])


def test_nothing_rejected_is_said_plainly_and_the_worst_are_shown(make_run):
    page = page_of(write_report(make_run(rows=300, rejected=0).folder))
    assert "Nothing was set aside: none of 300 pictures stands out clearly enough." in page.text
    assert "That is no proof" in page.text
    cards = page.having("article", "card")
    assert len(cards) == 60
    ranks = sorted(page.data["pictures"][int(card["data-i"])]["rank"] for card in cards)
    assert ranks[0] <= 3
    assert ranks[-1] < 150


def test_keys_cannot_break_out(make_run):
    keys = EVIL + [f"k{i}" for i in range(200 - len(EVIL))]
    folder = make_run(rows=200, rejected=200 - 40, keys=keys[::-1]).folder  # the evil ones come last: rejected
    run.write_keys(folder / "unreadable.txt", EVIL)
    page = page_of(write_report(folder))
    assert len(page.scripts) == 2
    assert "<" not in page.scripts[0]
    assert all(not name.startswith("on") for _, found in page.tags for name in found)
    assert {tag for tag, _ in page.tags} <= TAGS
    lines = {one["line"] for one in page.data["pictures"]}
    assert {key_line(key) for key in EVIL} <= lines
    assert all(one["key"].isprintable() for one in page.data["pictures"])
    assert "two\\nlines\\tand a tab" in page.text
    assert "\\u202egnp.exe" in page.text
    assert "{{ 7 * 7 }}" in page.text


def test_texts_of_the_summary_cannot_break_out(make_run):
    evil = "</script><script>alert(1)</script>"
    folder = make_run(
        rows=60, rejected=9, name=evil, detector=evil, hardware=evil, limits=[evil], next=evil, versions={evil: evil}
    ).folder
    text = write_report(folder).read_text()
    assert "<script>alert" not in text
    assert len(Page(text).scripts) == 2


def test_bytes_that_are_no_unicode_survive_as_marks(make_run, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = make_run(rows=60, rejected=9).folder
    table = pq.read_table(folder / "scores.parquet")
    keys = [f"{row}".encode() for row in range(59)] + [b"caf\xe9.png"]
    pq.write_table(table.set_column(1, "key", pa.array(keys, pa.binary())), folder / "scores.parquet")
    page = page_of(write_report(folder))
    assert '"caf\\udce9.png"' in {one["line"] for one in page.data["pictures"]}
    assert "caf\\udce9.png" in {one["key"] for one in page.data["pictures"]}


def test_loads_nothing_and_runs_only_its_own_script(make_run):
    import base64
    import hashlib

    page = page_of(write_report(make_run(rows=80, rejected=10).folder))
    for _, found in page.tags:
        assert found.get("src", "data:image/png;base64,").startswith("data:image/png;base64,")
        assert found.get("href", "#").startswith("#")
    policy = next(found["content"] for tag, found in page.tags if found.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")


def test_every_picture_has_words_and_every_control_a_name(make_run):
    page = page_of(write_report(make_run(rows=80, rejected=10).folder))
    assert all(found.get("alt") for tag, found in page.tags if tag == "img")
    assert all(found.get("aria-label") for tag, found in page.tags if tag == "svg")
    assert [found["lang"] for tag, found in page.tags if tag == "html"] == ["en"]


def test_pictures_are_the_thumbnails_pixel_by_pixel(make_run):
    import base64
    import io

    from PIL import Image

    made = make_run(rows=80, rejected=10, channels=1, size=28)
    page = page_of(write_report(made.folder))
    stored = dict(
        zip(np.load(made.folder / "thumbnails_rows.npy").tolist(), np.load(made.folder / "thumbnails.npy"), strict=True)
    )
    alts = {found["alt"]: found["src"] for tag, found in page.tags if tag == "img"}
    row = made.rejected[0]
    uri = next(src for alt, src in alts.items() if made.keys[row] in alt)
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))
    assert np.array_equal(image, stored[row][0])
    assert page.having("img", "small")


def test_trajectories_beside_the_probes_band(make_run):
    made = make_run(rows=200, rejected=20, epochs=9)
    page = page_of(write_report(made.folder))
    assert [watcher["name"] for watcher in page.data["watchers"]] == ["Watcher A", "Watcher B", "Witness"]
    margins = np.stack(
        [np.load(path) for path in sorted((made.folder / "witness/trajectories/margin").glob("*.npy"))], axis=1
    )
    probes = np.load(made.folder / "probes.npy")
    witness = page.data["watchers"][2]
    assert witness["epochs"] == list(range(1, 10))
    assert witness["middle"] == pytest.approx(np.median(margins[probes], axis=0), abs=0.006)
    assert witness["low"] == pytest.approx(np.quantile(margins[probes], 0.1, axis=0), abs=0.006)
    index = next(i for i, one in enumerate(page.data["pictures"]) if one["key"] == made.keys[199])
    assert witness["margins"][index] == pytest.approx(margins[199], abs=0.006)
    assert witness["says"][index] != page.data["pictures"][index]["label"]


def test_one_watcher_or_none_is_enough(make_run):
    page = page_of(write_report(make_run(rows=60, rejected=9, watchers=("watcher-a",)).folder))
    assert [watcher["name"] for watcher in page.data["watchers"]] == ["Watcher A"]


def test_works_without_pictures_trajectories_and_extras(make_run):
    folder = make_run(rows=60, rejected=9, watchers=(), thumbnails=0).folder
    for name in ("unreadable.txt", "settings.json", "probes.npy"):
        (folder / name).unlink()
    summary = run.read_json(folder / "summary.json")
    run.write_json(
        folder / "summary.json",
        {"name": summary["name"], "rows": 60, "per_class": summary["per_class"], "clean_model": None},
    )
    page = page_of(write_report(folder))
    assert "no picture kept" in page.text
    assert page.data["watchers"] == []
    assert len(page.having("article", "card")) >= 9


def test_epochs_that_saw_no_probe_have_no_band():
    margins = np.array([[1, np.nan, np.inf], [3, np.nan, 2]], dtype=np.float32)
    result = band(margins)
    assert result[1].tolist() == pytest.approx([2, np.nan, 2], nan_ok=True)


@pytest.mark.parametrize(
    ("options", "pictures"),
    [
        ({"rows": 6, "classes": 1, "rejected": 1, "size": 1, "epochs": 1}, 1),
        ({"rows": 3000, "classes": 1000, "rejected": 900}, 300),
        ({"rows": 90, "classes": 2, "rejected": 89}, 89),
        ({"rows": 500, "classes": 5, "rejected": 300, "size": 224, "thumbnails": 120}, 100),
    ],
)
def test_any_shape_of_run(make_run, options, pictures):
    path = write_report(make_run(**options).folder)
    assert len(page_of(path).having("article", "card")) >= pictures
    assert path.stat().st_size < 10_000_000


def test_a_long_list_is_cut_and_says_so(make_run):
    path = write_report(make_run(rows=60_000, rejected=50_000, watchers=("watcher-a",), epochs=2, size=8).folder)
    page = page_of(path)
    listed = len(page.data["rest"]["keys"])
    assert 5000 < listed < 49_700
    assert f"The last {49_700 - listed:,} are left out" in page.text
    assert path.stat().st_size < 10_000_000


def test_weak_evidence_is_called_so(make_run):
    folder = make_run(rows=300, rejected=30, rule={"text": "fraction:share=0.1", "threshold": -0.5, "note": ""}).folder
    text = page_of(write_report(folder)).text
    assert "Weak evidence." in text
    assert "most of these may be clean" in text


@pytest.mark.parametrize("threshold", [None, float("nan"), float("inf")])
def test_a_rule_without_a_threshold(make_run, threshold):
    text = page_of(
        write_report(
            make_run(rows=60, rejected=9, rule={"text": "mystery", "threshold": threshold, "note": None}).folder
        )
    ).text
    assert "no single threshold" in text


def test_marks_are_stored_under_the_data_not_the_rule(make_run, tmp_path):
    folder = make_run(rows=60, rejected=9).folder
    before = page_of(write_report(folder)).data["store"]
    summary = run.read_json(folder / "summary.json")
    run.write_json(folder / "summary.json", {**summary, "rule": {"text": "gap", "threshold": 1.0, "note": ""}})
    assert page_of(write_report(folder, tmp_path / "other.html")).data["store"] == before
    run.write_json(folder / "summary.json", {**summary, "name": "other"})
    assert page_of(write_report(folder)).data["store"] != before


def _without_summary(folder: Path) -> None:
    (folder / "summary.json").unlink()


def _without_scores(folder: Path) -> None:
    (folder / "scores.parquet").unlink()


def _damaged_scores(folder: Path) -> None:
    (folder / "scores.parquet").write_bytes(b"PAR1 nothing")


def _wrong_thumbnails(folder: Path) -> None:
    run.save_array(folder / "thumbnails.npy", np.zeros((3, 3, 4, 4), dtype=np.float32))


def _listed_summary(folder: Path) -> None:
    (folder / "summary.json").write_text("[]")


@pytest.mark.parametrize(
    "spoil", [_without_summary, _without_scores, _damaged_scores, _wrong_thumbnails, _listed_summary]
)
def test_a_spoilt_run_is_refused_and_the_old_report_stays(make_run, spoil: Callable[[Path], None]):
    folder = make_run(rows=60, rejected=9).folder
    spoil(folder)
    (folder / "report.html").write_text("old")
    with pytest.raises(RunError, match=re.escape(str(folder))):
        write_report(folder)
    assert (folder / "report.html").read_text() == "old"


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(RunError, match="is no folder"):
        write_report(tmp_path / "nowhere")


def test_a_negative_number_of_pictures(make_run):
    with pytest.raises(InputError, match="-1"):
        write_report(make_run(rows=60, rejected=9).folder, max_pictures=-1)


def test_the_same_run_gives_the_same_page(make_run):
    folder = make_run(rows=60, rejected=9).folder
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first


def test_imports_no_torch():
    code = "import sys, untaint.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
