from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from untaint import sources
from untaint.errors import SourceError

from .conftest import Listening, class_folders, encoded, noise


def same(examples, key: str, seed: int) -> bool:  # type: ignore[no-untyped-def]
    row = list(examples.keys).index(key)
    return np.array_equal(examples.images[row].transpose(1, 2, 0), np.asarray(noise(seed)))


def test_a_folder_per_class(photos: Path) -> None:
    found = sources.load(photos)
    assert found.keys == [f"{c}/{i:02d}.png" for c in ("cat", "dog") for i in range(3)]
    assert found.class_names == ("cat", "dog")
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.images.shape == (6, 3, 8, 8)
    assert all(same(found, f"{c}/{i:02d}.png", 100 * n + i) for n, c in enumerate(("cat", "dog")) for i in range(3))


def test_splits(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", ("cat", "dog", "eel"))
    class_folders(tmp_path / "val", ("cat", "eel"), each=1)
    train, val = sources.load(tmp_path), sources.load(tmp_path, split="validation")
    assert len(train) == 9
    assert val.keys == ["cat/00.png", "eel/00.png"]
    assert val.class_names == ("cat", "dog", "eel")  # numbered as in the other split
    assert val.labels.tolist() == [0, 2]
    with pytest.raises(SourceError, match=r"no split 'test'.* train, val"):
        sources.load(tmp_path, split="test")


def test_one_without_splits_is_all_of_it(photos: Path) -> None:
    with pytest.raises(SourceError, match="has no splits, so no 'test'"):
        sources.load(photos, split="test")


def test_a_class_called_train_is_a_class(tmp_path: Path) -> None:
    found = sources.load(class_folders(tmp_path, ("bus", "car", "train")))
    assert found.class_names == ("bus", "car", "train")


def test_odd_names(tmp_path: Path) -> None:
    names = ("a b", "quote'\"", "Größe", "<script>alert(1)</script>".replace("/", "_"), "new\nline", "日本")
    found = sources.load(class_folders(tmp_path, names, each=1))
    assert set(found.class_names) == set(names)
    assert found.keys == sorted(f"{name}/00.png" for name in names)
    assert all(same(found, f"{name}/00.png", 100 * i) for i, name in enumerate(names))
    again = sources.load(tmp_path)
    assert again.keys == found.keys


def test_bytes_that_are_no_utf8(tmp_path: Path) -> None:
    class_folders(tmp_path)
    try:
        (tmp_path / "cat" / os.fsdecode(b"caf\xe9.png")).write_bytes(encoded(noise(77)))
    except OSError:
        pytest.skip("this file system wants UTF-8")
    found = sources.load(tmp_path)
    assert same(found, os.fsdecode(b"cat/caf\xe9.png"), 77)
    assert found.fingerprint


def test_links(photos: Path) -> None:
    (photos / "loop").symlink_to(photos)
    (photos / "cat" / "up").symlink_to("..")
    (photos / "dog" / "gone.png").symlink_to("nowhere.png")
    elsewhere = class_folders(photos.parent / "elsewhere", ("x",)) / "x"
    (photos / "eel").symlink_to(elsewhere)
    found = sources.load(photos)
    assert found.class_names == ("cat", "dog", "eel")
    assert len(found) == 9
    assert found.unreadable == {"dog/gone.png": "it is a link to nothing"}


def test_a_pipe_does_not_hang(photos: Path) -> None:
    os.mkfifo(photos / "cat" / "pipe.png")
    assert sources.load(photos).unreadable == {"cat/pipe.png": "it is no regular file"}


def test_unreadable_pictures_are_no_rows(photos: Path, listening: Listening) -> None:
    (photos / "cat" / "00.png").write_bytes(b"")
    (photos / "cat" / "zz.png").write_bytes(encoded(noise(1, 40, 40))[:700])
    (photos / "dog" / "01.png").write_text("hello")
    found = sources.load(photos, size=8, progress=listening)
    assert list(found.unreadable) == ["cat/00.png", "cat/zz.png", "dog/01.png"]
    assert found.unreadable["cat/00.png"] == "the file is empty (0 bytes)"
    assert found.keys == ["cat/01.png", "cat/02.png", "dog/00.png", "dog/02.png"]
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert [same(found, k, s) for k, s in zip(found.keys, (1, 2, 100, 102), strict=True)] == [True] * 4
    assert any("3 pictures cannot be read" in remark for remark in listening.remarks)
    again = sources.load(photos, size=8)
    assert again.unreadable == found.unreadable
    assert again.fingerprint == found.fingerprint


def test_all_unreadable(photos: Path) -> None:
    for path in photos.rglob("*.png"):
        path.write_bytes(b"junk")
    with pytest.raises(SourceError, match="none of the 6 pictures"):
        sources.load(photos)


def test_refusals(tmp_path: Path, photos: Path, listening: Listening) -> None:
    with pytest.raises(SourceError, match=r"there is no folder or file .*Did you mean 'photos'"):
        sources.load(tmp_path / "photo")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="is empty"):
        sources.load(tmp_path / "empty")
    with pytest.raises(SourceError, match="of one class, 'x'"):
        sources.load(class_folders(tmp_path / "one", ("x",)))
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "a.png").write_bytes(encoded(noise(1)))
    with pytest.raises(SourceError, match="have no labels"):
        sources.load(tmp_path / "flat")
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "readme.txt").write_text("x")
    with pytest.raises(SourceError, match="no pictures"):
        sources.load(tmp_path / "words")
    with pytest.raises(SourceError, match="no table or archive"):
        sources.load(tmp_path / "words" / "readme.txt")
    (photos / "eel").mkdir()
    (photos / "eel" / "a.png").write_bytes(encoded(noise(9)))
    sources.load(photos, progress=listening)
    assert "class 'eel' has one picture" in listening.remarks


def table(
    folder: Path, name: str, rows: list[tuple[str, object]], header: tuple[str, str] = ("file_name", "label")
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, (file, _) in enumerate(rows):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(encoded(noise(i)))
    if name.endswith(".jsonl"):
        text = "\n".join(json.dumps(dict(zip(header, row, strict=True))) for row in rows)
    else:
        text = "\n".join(",".join(map(str, row)) for row in (header, *rows)) + "\n"
    (folder / name).write_text(text, encoding="utf-8")
    return folder


ROWS: list[tuple[str, object]] = [("z.png", 1), ("b c.png", 0), ("sub/m.png", 1)]


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "labels.csv"])
def test_a_table_beside_the_pictures(tmp_path: Path, name: str) -> None:
    rows = ROWS[:2] if name == "labels.csv" else ROWS  # a table of another name is one where no folder is a class
    folder = table(tmp_path / "flat", name, rows)
    for given in (folder, folder / name):
        found = sources.load(given)
        assert found.keys == [file for file, _ in rows]  # the order of the table
        assert found.labels.tolist() == [label for _, label in rows]
        assert found.class_names == ("0", "1")
        assert all(same(found, file, i) for i, (file, _) in enumerate(rows))


def test_columns_can_be_named_and_are_guessed(tmp_path: Path) -> None:
    folder = table(tmp_path / "flat", "metadata.csv", [("a.png", "cat"), ("b.png", "dog")], ("where", "kind"))
    with pytest.raises(SourceError, match=r"no column of file names.*where, kind.*image_column"):
        sources.load(folder)
    found = sources.load(folder, image_column="where", label_column="kind")
    assert found.class_names == ("cat", "dog")
    with pytest.raises(SourceError, match=r"no column 'wher'.*Did you mean 'where'"):
        sources.load(folder, image_column="wher")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["0", "-1", "1"], r"'1\.png' .* has the label -1"),
        (["0", "", "1"], r"'1\.png' .* has no label"),
        (["0", "1", "cat"], r"'2\.png' .* has the label 'cat'.*2 other labels are numbers"),
        (["0", "1.5", "1"], r"'1\.png' .* has the label 1\.5"),
        (["0", "nan", "1"], r"'1\.png' .* has the label 'nan'|has no label"),
        (["0", "123456789", "1"], r"'1\.png' .* has the label 123456789"),
    ],
)
def test_bad_labels(tmp_path: Path, values: list[str], message: str) -> None:
    folder = table(tmp_path / "flat", "metadata.csv", [(f"{i}.png", value) for i, value in enumerate(values)])
    with pytest.raises(SourceError, match=message):
        sources.load(folder)


@pytest.mark.parametrize(
    ("value", "message"), [([0, 1], "multi-label"), (None, "has no label"), ("cat", "label 'cat'")]
)
def test_bad_labels_in_json(tmp_path: Path, value: object, message: str) -> None:
    folder = table(tmp_path / "flat", "metadata.jsonl", [("0.png", 0), ("1.png", value), ("2.png", 1)])
    with pytest.raises(SourceError, match=message):
        sources.load(folder)


def test_a_file_named_twice_missing_or_outside(tmp_path: Path) -> None:
    folder = table(tmp_path / "flat", "metadata.csv", [("a.png", 0), ("b.png", 1), ("a.png", 1)])
    with pytest.raises(SourceError, match=r"'a\.png' occurs twice"):
        sources.load(folder)
    (tmp_path / "secret.png").write_bytes(encoded(noise(5)))
    (folder / "metadata.csv").write_text("file_name,label\na.png,0\nb.png,1\ngone.png,1\n../secret.png,1\n")
    found = sources.load(folder)
    assert found.keys == ["a.png", "b.png"]
    assert "missing" in found.unreadable["gone.png"]
    assert "out of the folder" in found.unreadable["../secret.png"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file_name,label\na.png,0,7\n", "row 2 .* 3 fields"),
        ("file_name,label\n", "1 lines"),
        ("file_name,colour,size\na.png,1,2\n", "no labels .*file_name, colour, size"),
    ],
)
def test_broken_tables(tmp_path: Path, text: str, message: str) -> None:
    folder = table(tmp_path / "flat", "metadata.csv", [("a.png", 0)])
    (folder / "metadata.csv").write_text(text)
    with pytest.raises(SourceError, match=message):
        sources.load(folder)
    (folder / "metadata.csv").write_bytes(b"file_name,label\n\xff\xfe")
    with pytest.raises(SourceError, match="not UTF-8"):
        sources.load(folder)


@pytest.mark.parametrize("wrapped", [False, True])
def test_zip(tmp_path: Path, photos: Path, wrapped: bool) -> None:
    archive = tmp_path / "photos.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
        for path in sorted(photos.rglob("*.png")):
            out.write(path, path.relative_to(photos.parent if wrapped else photos))
        out.writestr("__MACOSX/._00.png", b"junk")
    found, plain = sources.load(archive), sources.load(photos)
    assert found.keys == plain.keys
    assert np.array_equal(found.images, plain.images)
    assert np.array_equal(np.asarray(sources.open_source(archive).picture(4)), np.asarray(noise(101)))
    moved = archive.rename(tmp_path / "b.zip")
    assert np.array_equal(sources.load(moved).images, plain.images)


def test_broken_zip(tmp_path: Path, photos: Path) -> None:
    (tmp_path / "bad.zip").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(SourceError, match="cannot be read as a zip"):
        sources.load(tmp_path / "bad.zip")
    with zipfile.ZipFile(tmp_path / "half.zip", "w") as out:
        for i in range(4):
            out.writestr(f"{'ab'[i % 2]}/{i}.png", encoded(noise(i)))
    data = bytearray((tmp_path / "half.zip").read_bytes())
    data[60:70] = b"x" * 10  # the stored bytes of the first member
    (tmp_path / "half.zip").write_bytes(data)
    found = sources.load(tmp_path / "half.zip")
    assert len(found) == 3
    assert "archive" in found.unreadable["a/0.png"]


def test_full_size_pictures(tmp_path: Path) -> None:
    class_folders(tmp_path)
    (tmp_path / "cat" / "wide.jpg").write_bytes(encoded(noise(1, 90, 30), "JPEG"))
    source = sources.open_source(tmp_path)
    assert len(source) == 7
    picture = source.picture(list(source.keys).index("cat/wide.jpg"))
    assert picture.size == (90, 30)
    assert picture.mode == "RGB"
    (tmp_path / "cat" / "wide.jpg").write_bytes(b"")
    with pytest.raises(sources.Unreadable, match="empty"):
        source.picture(3)


def test_default_size_is_the_median_shorter_side_up_to_64(tmp_path: Path) -> None:
    for i, (width, height) in enumerate([(20, 30), (22, 90), (24, 24), (300, 200)]):
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        noise(i, width, height).save(tmp_path / "ab"[i % 2] / f"{i}.png")
    assert sources.load(tmp_path).images.shape == (4, 3, 23, 23)
    big = tmp_path / "big"
    for i in range(2):
        (big / "ab"[i]).mkdir(parents=True)
        noise(i, 100, 80).save(big / "ab"[i] / "x.png")
    assert sources.load(big).images.shape == (2, 3, 64, 64)
    assert sources.load(big, size=5).images.shape == (2, 3, 5, 5)
