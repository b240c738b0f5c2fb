from __future__ import annotations

import json
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from untaint import sources
from untaint.errors import SourceError

from .conftest import Listening, encoded, noise

PICTURES = [encoded(noise(i)) for i in range(7)]
LABELS = [0, 1, 1, 0, 2, 1, 0]
NAMES = ["cat", "dog", "eel"]


def table(
    paths: list[str | None] | None = None, labels: Any = LABELS, names: list[str] | None = NAMES, **more: Any
) -> pa.Table:
    paths = paths if paths is not None else [f"p{9 - i}.png" for i in range(7)]
    images = pa.array([{"bytes": b, "path": p} for b, p in zip(PICTURES, paths, strict=True)])
    made = pa.table({"image": images, "label": labels, **more})
    if names is None:
        return made
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    return made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def check(found: Any) -> None:
    assert found.labels.tolist() == LABELS
    assert found.class_names == tuple(NAMES)
    for row in range(7):
        assert np.array_equal(found.images[row].transpose(1, 2, 0), np.asarray(noise(row)))


def test_parquet_file(tmp_path: Path) -> None:
    pq.write_table(table(), tmp_path / "x.parquet", row_group_size=3)
    found = sources.load(tmp_path / "x.parquet")
    check(found)
    assert found.keys == [f"p{9 - i}.png" for i in range(7)]  # the order of the file


def test_parquet_folder_with_splits(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    whole = table()
    pq.write_table(whole.slice(0, 4), tmp_path / "data/train-00000-of-00002.parquet", row_group_size=2)
    pq.write_table(whole.slice(4), tmp_path / "data/train-00001-of-00002.parquet")
    pq.write_table(whole.slice(1, 2).slice(0, 1), tmp_path / "data/test-00000-of-00001.parquet")
    check(sources.load(tmp_path))
    with pytest.raises(SourceError, match="one class"):
        sources.load(tmp_path, split="test")
    with pytest.raises(SourceError, match="no split 'validation'"):
        sources.load(tmp_path, split="validation")
    check(sources.load(str(tmp_path / "data/train*.parquet")))
    check(sources.load(tmp_path))  # the other split did not take its place in the cache


@pytest.mark.parametrize("order", [[6, 0, 3, 3, 4, 5, 1], list(range(7))])
def test_pictures_in_any_order(tmp_path: Path, order: list[int]) -> None:
    pq.write_table(table(), tmp_path / "x.parquet", row_group_size=2)
    source = sources.open_source(tmp_path / "x.parquet")
    for row in order:
        assert np.array_equal(np.asarray(source.picture(row)), np.asarray(noise(row)))


def test_plain_parquet_is_guessed(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"id": list(range(7)), "img": PICTURES, "category": [NAMES[i] for i in LABELS]}),
        tmp_path / "x.parquet",
    )
    found = sources.load(tmp_path / "x.parquet")
    check(found)
    assert found.keys == [str(i) for i in range(7)]
    with pytest.raises(SourceError, match="no column 'imag'"):
        sources.load(tmp_path / "x.parquet", image_column="imag")
    with pytest.raises(SourceError, match="no pictures in column 'category'"):
        sources.load(tmp_path / "x.parquet", image_column="category")
    pq.write_table(pa.table({"img": PICTURES, "size": LABELS}), tmp_path / "x.parquet")
    with pytest.raises(SourceError, match=r"no labels .*img, size"):
        sources.load(tmp_path / "x.parquet")
    assert sources.load(tmp_path / "x.parquet", label_column="size").labels.tolist() == LABELS
    pq.write_table(pa.table({"size": LABELS}), tmp_path / "x.parquet")
    with pytest.raises(SourceError, match="no column of pictures"):
        sources.load(tmp_path / "x.parquet")


def test_keys(tmp_path: Path, listening: Listening) -> None:
    pq.write_table(table(["same.png"] * 7), tmp_path / "x.parquet")
    assert sources.load(tmp_path / "x.parquet", progress=listening).keys == [str(i) for i in range(7)]
    assert any("rows are named by number" in remark for remark in listening.remarks)
    pq.write_table(table(file_name=["a", "b", "c", "d", "e", "f", "a"]), tmp_path / "x.parquet")
    with pytest.raises(SourceError, match="key 'a' occurs 2 times"):
        sources.load(tmp_path / "x.parquet")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, -1, 0, 1, 1, 1], r"'p7\.png' .* label -1"),
        ([0, 1, None, 0, 1, 1, 1], r"'p7\.png' .* no label"),
        ([0, 1, 3, 0, 1, 1, 1], r"'p7\.png' .* label 3.*3 classes"),
        ([[0], [1, 2], [0], [0], [1], [1], [1]], "multi-label"),
    ],
)
def test_bad_labels(tmp_path: Path, labels: list[Any], message: str) -> None:
    pq.write_table(table(labels=labels), tmp_path / "x.parquet")
    with pytest.raises(SourceError, match=message):
        sources.load(tmp_path / "x.parquet")


def test_bad_pictures(tmp_path: Path) -> None:
    images: list[Any] = [{"bytes": b, "path": f"{i}.png"} for i, b in enumerate(PICTURES)]
    images[1]["bytes"] = None
    images[2]["bytes"] = b""
    images[3] = {"bytes": None, "path": "../../out.png"}
    images[4] = None
    pq.write_table(pa.table({"image": images, "label": LABELS}), tmp_path / "x.parquet")
    found = sources.load(tmp_path / "x.parquet")
    assert len(found) == 3
    assert found.labels.tolist() == [0, 1, 0]
    assert sorted(found.unreadable.values()) == [
        "its path leads out of the folder of the table",
        "the file is empty (0 bytes)",
        "the file is missing",
        "the table has no picture there",
    ]


def test_damaged_parquet(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(SourceError, match="cannot be read as Parquet"):
        sources.load(tmp_path / "x.parquet")
    pq.write_table(table(), tmp_path / "a.parquet")
    pq.write_table(table(names=["x", "y", "z"]), tmp_path / "b.parquet")
    with pytest.raises(SourceError, match="other class names"):
        sources.load(str(tmp_path / "[ab].parquet"))
    pq.write_table(table(more=list(range(7))), tmp_path / "b.parquet")
    with pytest.raises(SourceError, match="other columns"):
        sources.load(str(tmp_path / "[ab].parquet"))


def test_hugging_face_objects_and_saved_folders(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    made = datasets.Dataset.from_dict(
        {"image": [{"bytes": b, "path": None} for b in PICTURES], "label": LABELS}, features=features
    )
    check(sources.load(made))
    made.save_to_disk(tmp_path / "saved")
    check(sources.load(tmp_path / "saved"))
    check(sources.load(next((tmp_path / "saved").glob("*.arrow"))))
    both = datasets.DatasetDict({"train": made, "test": made.select([0, 1, 2])})
    both.save_to_disk(tmp_path / "both")
    check(sources.load(tmp_path / "both"))
    assert len(sources.load(tmp_path / "both", split="test")) == 3
    assert len(sources.load(both, split="test")) == 3
    turned = datasets.load_from_disk(str(tmp_path / "saved")).select([6, 5, 4])
    for found in (sources.load(turned), sources.load(turned)):
        assert found.labels.tolist() == [0, 1, 2]
        assert np.array_equal(found.images[0].transpose(1, 2, 0), np.asarray(noise(6)))
    assert np.array_equal(np.asarray(sources.open_source(turned).picture(2)), np.asarray(noise(4)))
    with pytest.raises(SourceError, match="without streaming"):
        sources.load(made.to_iterable_dataset())
    (tmp_path / "bad.arrow").write_bytes(b"junk")
    with pytest.raises(SourceError, match="cannot be read as Arrow"):
        sources.load(tmp_path / "bad.arrow")


@pytest.mark.parametrize("kind", ["cls", "json", "folders"])
def test_webdataset(tmp_path: Path, kind: str) -> None:
    with tarfile.open(tmp_path / "train-000.tar", "w") as out:
        for i, (picture, label) in enumerate(zip(PICTURES, LABELS, strict=True)):
            name = f"{NAMES[label]}/{i:03d}" if kind == "folders" else f"{i:03d}"
            members = {"png": picture}
            if kind == "cls":
                members["cls"] = str(label).encode()
            if kind == "json":
                members["json"] = json.dumps({"label": NAMES[label]}).encode()
            for suffix, data in members.items():
                info = tarfile.TarInfo(f"{name}.{suffix}")
                info.size = len(data)
                out.addfile(info, BytesIO(data))
    for given in (tmp_path, tmp_path / "train-000.tar"):
        found = sources.load(given)
        assert found.labels.tolist() == LABELS
        assert found.class_names == (("0", "1", "2") if kind == "cls" else tuple(NAMES))
        assert np.array_equal(found.images[3].transpose(1, 2, 0), np.asarray(noise(3)))
    assert found.keys[0] == ("cat/000" if kind == "folders" else "000")
    (tmp_path / "bad.tar").write_bytes(b"junk")
    with pytest.raises(SourceError, match="cannot be read as webdataset"):
        sources.load(tmp_path / "bad.tar")


def test_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load_dataset(name: str, config: str | None, **options: Any) -> Any:
        asked.append((name, config, options))
        if name == "who/what":
            raise ConnectionError("no network")
        return datasets.DatasetDict({"train": datasets.Dataset(table())})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    check(sources.load("owner/pets"))
    check(sources.load("owner/pets:small"))
    assert asked == [("owner/pets", None, {}), ("owner/pets", "small", {})]
    with pytest.raises(SourceError, match=r"who/what.*could be fetched.*no network"):
        sources.load("who/what")
    for path in ("./who/what", "who", "/who/what", "a/b/c"):
        with pytest.raises(SourceError, match="there is no folder or file"):
            sources.load(path)
    assert len(asked) == 3
