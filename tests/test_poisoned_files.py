"""A poisoned data set as files: nothing but pixels and labels tells who was poisoned."""

from __future__ import annotations

import io
import itertools
import os

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from small import pictures
from untaint import run, samples
from untaint.attacks import ATTACKS
from untaint.errors import InputError, RunError, SourceError
from untaint.poisoned_files import write_poisoned
from untaint.poisoning import Ledger, poison, triggered
from untaint.report.trigger_sheet import GAP, LEFT, SIDE
from untaint.sources import load, open_source

ATTACKED = [ATTACKS.build("patch:target=cat,rate=0.2"), ATTACKS.build("sinusoid:target=dog,class-rate=0.25")]


class Remarks:
    def __init__(self):
        self.remarks = []

    def step(self, what, total, done=0, unit="images"):
        from untaint.progress import Silent

        return Silent().step(what, total)

    def say(self, remark):
        self.remarks.append(remark)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNTAINT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def photos(tmp_path):
    """Sixty JPEG and PNG pictures of several sizes, alike names in every class, and a test part."""
    random = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 4)):
        for name, number in itertools.product(("cat", "dog", "owl"), range(count)):
            pixels = random.integers(0, 200, (30 + number % 7, 32 + number % 5, 3), dtype=np.uint8)
            path = tmp_path / "photos" / split / name / f"{number:03d}.{'png' if number % 2 else 'jpg'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return tmp_path / "photos"


def full_size(source):
    return [np.asarray(source.picture(i)).transpose(2, 0, 1) for i in range(len(source))]


@pytest.mark.parametrize("form", ["folder", "parquet"])
def test_every_picture_is_at_full_size_and_stamped_if_the_ledger_says_so(photos, tmp_path, form):
    source = open_source(photos / "train")
    before = full_size(source)
    out = tmp_path / "data" / "two"
    ledger = write_poisoned(photos / "train", ATTACKED, out, seed=5, form=form)
    written = open_source(out)
    assert written.class_names == source.class_names
    assert len(ledger.poisoned(0)) == 12
    assert len(ledger.poisoned(1)) == 5
    for path in (out, tmp_path / "data" / "two.ledger.parquet"):
        assert path.exists()
    after, place = full_size(written), {key: i for i, key in enumerate(written.keys)}
    assert len(place) == len(ledger) == 60
    for row, key in enumerate(ledger.keys):
        number, picture = ledger.attack[row], before[row]
        if number >= 0:
            picture = ATTACKED[number].stamp(picture[None], np.array([row]))[0]
        label = written.labels[place[key]]
        assert np.array_equal(after[place[key]], picture)
        assert label == (ledger.target[row] if number >= 0 else source.labels[row])
        assert key.startswith(source.class_names[label] + "/")
        assert key.endswith(".png")
        if number < 0:
            assert os.path.splitext(key)[0] == os.path.splitext(source.keys[row])[0]


def test_the_same_rows_as_in_memory(photos, tmp_path):
    ledger = write_poisoned(photos / "train", ATTACKED, tmp_path / "out", seed=5)
    assert np.array_equal(poison(load(photos / "train"), ATTACKED, seed=5)[1].attack, ledger.attack)


def test_who_is_chosen_by_a_model_is_the_same_as_in_memory(photos, tmp_path):
    attack = ATTACKS.build("patch:target=cat,rate=0.1,selection=near-target")
    ledger = write_poisoned(photos / "train", [attack], tmp_path / "out", seed=5, spare=np.arange(10))
    examples = load(photos / "train")
    in_memory, by_lot = (poison(examples, [one], seed=5, spare=np.arange(10))[1] for one in (attack, ATTACKED[0]))
    assert np.array_equal(in_memory.attack, ledger.attack)
    assert not np.isin(ledger.poisoned(), by_lot.poisoned()).all()


def test_files_do_not_tell_who_was_poisoned(photos, tmp_path):
    ledger = write_poisoned(photos / "train", ATTACKED, tmp_path / "out")
    headers, times = set(), set()
    for key in ledger.keys:
        path = tmp_path / "out" / key
        data = path.read_bytes()
        chunks, at = [], 8
        while at < len(data):
            length = int.from_bytes(data[at : at + 4])
            chunks.append(data[at + 4 : at + 8])
            at += 12 + length
        with Image.open(path) as picture:
            headers.add(
                (
                    picture.mode,
                    picture.format,
                    tuple(picture.info),
                    data[24:29],
                    tuple(dict.fromkeys(chunks)),
                    data[41:43],
                )
            )
        times.add(path.stat().st_mtime_ns)
    assert len(headers) == 1
    assert len(times) == 1
    assert headers.pop()[4] == (b"IHDR", b"IDAT", b"IEND")


def test_nothing_in_the_data_folder_but_pictures(photos, tmp_path):
    out = tmp_path / "data" / "two"
    write_poisoned(photos / "train", ATTACKED, out, test_source=photos / "test", spare=["cat/001.png", "owl/002.jpg"])
    assert {path.suffix for path in out.rglob("*") if path.is_file()} == {".png"}
    assert sorted(path.name for path in out.parent.iterdir()) == [
        "two",
        "two.ledger.parquet",
        "two.preview.png",
        "two.spare.txt",
        "two.triggered",
    ]
    assert run.read_keys(out.parent / "two.spare.txt") == ["cat/001.png", "owl/002.png"]
    ledger = Ledger.load(out.parent / "two.ledger.parquet").matched(open_source(out).keys)
    spared = load(out).find(out.parent / "two.spare.txt")
    assert (ledger.attack[spared] == -1).all()


@pytest.mark.parametrize("form", ["folder", "parquet"])
def test_the_test_part_is_copied_and_triggered_per_attack(photos, tmp_path, form):
    out, test = tmp_path / "out", photos / "test"
    write_poisoned(photos / "train", ATTACKED, out, test_source=test, form=form)
    original, copied = open_source(test), open_source(out, split="test")
    assert np.array_equal(copied.labels, original.labels)
    assert all(np.array_equal(a, b) for a, b in zip(full_size(copied), full_size(original), strict=True))
    for name, attack in (("patch", ATTACKED[0]), ("sinusoid", ATTACKED[1])):
        shown = open_source(tmp_path / "out.triggered" / name, split="test")
        assert shown.class_names == original.class_names
        assert (shown.labels == attack.target_in(original.class_names)).all()
        others = np.flatnonzero(original.labels != shown.labels[0])
        expected = [attack.trigger(full_size(original)[row][None], np.array([row]))[0] for row in others]
        assert len(shown) == len(expected) == 8
        assert all(np.array_equal(a, b) for a, b in zip(full_size(shown), expected, strict=True))


def test_a_table_stays_a_table_with_its_keys_and_class_names(tmp_path):
    rows = pq.read_table(samples.path() / "test-00000-of-00001.parquet").slice(0, 200)
    pq.write_table(rows, tmp_path / "some.parquet")
    attacks = [ATTACKS.build("blend:target=frog,rate=0.05"), ATTACKS.build("pixel:target=1,rate=0.05,cover-rate=0.1")]
    before = load(tmp_path / "some.parquet")
    write_poisoned(tmp_path / "some.parquet", attacks, tmp_path / "out", seed=2)
    after, ledger = load(tmp_path / "out"), Ledger.load(tmp_path / "out.ledger.parquet")
    expected, in_memory = poison(before, attacks, seed=2)
    assert after.class_names == before.class_names
    assert [key.replace(".png", ".webp") for key in after.keys] == list(before.keys)
    assert np.array_equal(after.images, expected.images)
    assert np.array_equal(after.labels, expected.labels)
    for field in ("attack", "cover", "target", "original"):
        assert np.array_equal(getattr(ledger, field), getattr(in_memory, field))
    images = pq.read_table(tmp_path / "out" / "train-00000-of-00001.parquet")["image"].to_pylist()
    assert {Image.open(io.BytesIO(image["bytes"])).format for image in images} == {"PNG"}


def test_several_triggers_on_a_picture_are_written_as_in_memory(tmp_path):
    examples = pictures(80, classes=4, side=16)
    attacks = [ATTACKS.build("patch:target=1,rate=0.2"), ATTACKS.build("blend:target=2,rate=0.2,alpha=0.4")]
    write_poisoned(examples, attacks, tmp_path / "out", seed=2, overlap=0.5)
    expected, ledger = poison(examples, attacks, seed=2, overlap=0.5)
    alone, _ = poison(examples, attacks, seed=2)
    differs = (expected.images != alone.images).any(axis=(1, 2, 3))
    assert np.count_nonzero(differs[ledger.poisoned()]) == 16
    assert np.array_equal(load(tmp_path / "out", size=16).images, expected.images)


def test_the_preview_shows_what_was_done(tmp_path):
    examples = pictures(80, classes=4, side=16)
    write_poisoned(examples, [ATTACKS.build("patch:rate=0.2")], tmp_path / "out")
    dirty, ledger = poison(examples, [ATTACKS.build("patch:rate=0.2")])
    sheet = np.asarray(Image.open(tmp_path / "out.preview.png"))
    first = ledger.poisoned()[0]
    for line, picture in enumerate((examples.images[first], dirty.images[first])):
        top = 30 + line * (SIDE + GAP)
        seen = sheet[top : top + SIDE, LEFT : LEFT + SIDE][SIDE // 32 :: SIDE // 16, SIDE // 32 :: SIDE // 16]
        assert np.array_equal(seen.transpose(2, 0, 1), picture)


def test_pictures_that_cannot_be_read_are_left_out_and_replaced(photos, tmp_path):
    whole = write_poisoned(photos / "train", ATTACKED, tmp_path / "whole")
    source = open_source(photos / "train")
    damaged = {source.keys[whole.poisoned(0)[0]], source.keys[whole.clean()[0]]}
    for key in damaged:
        (photos / "train" / key).write_bytes(b"\x89PNG nothing")
    progress = Remarks()
    ledger = write_poisoned(photos / "train", ATTACKED, tmp_path / "out", progress=progress)
    assert len(ledger) == len(open_source(tmp_path / "out")) == 58
    assert [len(ledger.poisoned(0)), len(ledger.poisoned(1))] == [12, 5]
    assert len(progress.remarks) == 1
    assert "2 pictures cannot be read" in progress.remarks[0]
    assert any(key in progress.remarks[0] for key in damaged)


def test_a_trigger_that_was_computed_is_kept_for_other_pictures(tmp_path):
    examples, other = pictures(80, classes=4, side=16), pictures(12, classes=4, side=16, seed=3)
    words = "reflection:target=1,rate=0.2,count=2"
    write_poisoned(examples, [ATTACKS.build(words), ATTACKS.build("patch")], tmp_path / "out", seed=2)
    assert [path.name for path in (tmp_path / "out.triggers").iterdir()] == ["reflection.safetensors"]
    again = ATTACKS.build(f"{words},trigger-file={tmp_path}/out.triggers/reflection.safetensors")
    at_once = ATTACKS.build(words).ready(examples, seed=2)
    assert np.array_equal(again.trigger(other.images, other.rows), at_once.trigger(other.images, other.rows))
    write_poisoned(other, [again], tmp_path / "more")
    assert not (tmp_path / "more.triggers").exists()  # it is a file already


def test_nothing_is_overwritten(photos, tmp_path):
    for name in ("out", "out.triggered", "out.triggers", "out.ledger.parquet", "out.spare.txt", "out.preview.png"):
        (tmp_path / name).mkdir()
        with pytest.raises(RunError, match=f"{name} exists already"):
            write_poisoned(photos / "train", ATTACKED, tmp_path / "out")
        (tmp_path / name).rmdir()


def test_all_or_nothing(photos, tmp_path, monkeypatch):
    (tmp_path / "data" / "out.part" / "cat").mkdir(parents=True)  # left by a run that was killed
    (tmp_path / "data" / "out.part" / "cat" / "old.png").write_text("old")

    def full(self, path):
        raise OSError(28, "no space")

    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "save", full)
        with pytest.raises(OSError, match="no space"):
            write_poisoned(photos / "train", ATTACKED, tmp_path / "data" / "out", test_source=photos / "test")
    assert list((tmp_path / "data").iterdir()) == []
    write_poisoned(photos / "train", ATTACKED, tmp_path / "data" / "out")
    assert not list((tmp_path / "data").rglob("old.png"))


def test_a_trigger_that_changes_nothing_and_parts_of_other_classes_are_refused(photos, tmp_path):
    with pytest.raises(InputError, match="changed no pixel"):
        write_poisoned(photos / "train", [ATTACKS.build("blend:alpha=0.0001,rate=0.1")], tmp_path / "out")
    assert not (tmp_path / "out.part").exists()
    with pytest.raises(SourceError, match=r"3 classes \(cat.* 10 classes \(airplane"):
        write_poisoned(photos / "train", ATTACKED, tmp_path / "out", test_source=samples.path())


def test_a_key_cannot_lead_out_of_the_folder(tmp_path):
    rows = pq.read_table(samples.path() / "test-00000-of-00001.parquet").slice(0, 40)
    records = rows.to_pylist()
    for number, record in enumerate(records):
        record["image"]["path"] = f"../../evil/{number}.webp" if number % 2 else f"/etc/{number}"
    table = pq.ParquetFile(samples.path() / "test-00000-of-00001.parquet").schema_arrow
    import pyarrow as pa

    pq.write_table(pa.Table.from_pylist(records, schema=table), tmp_path / "some.parquet")
    ledger = write_poisoned(
        tmp_path / "some.parquet", [ATTACKS.build("pixel:rate=0.1")], tmp_path / "in" / "out", form="folder"
    )
    assert len(list((tmp_path / "in" / "out").rglob("*.png"))) == len(ledger) == 40
    assert not list(tmp_path.rglob("evil")) or all(
        (tmp_path / "in" / "out") in p.parents for p in tmp_path.rglob("evil")
    )


def test_the_triggered_table_is_what_triggered_gives(tmp_path):
    rows = pq.read_table(samples.path() / "test-00000-of-00001.parquet").slice(0, 100)
    pq.write_table(rows, tmp_path / "test.parquet")
    attack = ATTACKS.build("patch:target=ship,rate=0.1")
    write_poisoned(tmp_path / "test.parquet", [attack], tmp_path / "out", test_source=tmp_path / "test.parquet")
    expected = triggered(load(tmp_path / "test.parquet"), attack)
    shown = open_source(tmp_path / "out.triggered" / "patch", split="test")
    assert np.array_equal(np.stack(full_size(shown)), expected.images[expected.rows])


def test_the_sample_is_balanced_and_the_parts_share_no_picture():
    hashes = []
    for split, count in (("train", 500), ("test", 100)):
        source = open_source(samples.path(), split=split)
        assert source.class_names[:2] == ("airplane", "automobile")
        assert (np.bincount(source.labels) == count).all()
        hashes.append({source.picture(i).tobytes() for i in range(0, len(source), 5)})
    assert not hashes[0] & hashes[1]
    assert sum(path.stat().st_size for path in samples.path().glob("*.parquet")) <= 12_000_000
    assert "Krizhevsky" in (samples.path() / "README.md").read_text()


def test_the_test_part_is_never_the_training_part_by_mistake(photos, tmp_path):
    (photos / "test").rename(photos / "validation")
    with pytest.raises(SourceError, match="has no split 'test'"):
        write_poisoned(photos, ATTACKED, tmp_path / "out", test_source=photos)
    (photos / "validation").rename(photos / "test")
    write_poisoned(photos, ATTACKED, tmp_path / "out", test_source=photos)
    assert len(open_source(tmp_path / "out", split="test")) == 12
