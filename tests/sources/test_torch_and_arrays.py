from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from untaint import sources
from untaint.errors import SourceError

from .conftest import encoded, noise

PIXELS = np.stack([np.asarray(noise(i)) for i in range(6)])  # uint8 (6, 8, 8, 3)
LABELS = [0, 1, 2, 0, 1, 2]


class Pairs:
    """A map-style data set that converts what it gives."""

    def __init__(self, convert: Any, labels: Any = LABELS, length: int = 6) -> None:
        self.convert, self.labels_given, self.length = convert, labels, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return self.convert(PIXELS[index % 6]), self.labels_given[index % 6]


KINDS: dict[str, Any] = {
    "PIL": Image.fromarray,
    "NumPy": lambda a: a,
    "NumPy float": lambda a: (a / 255).astype(np.float32),
    "uint8 tensor": lambda a: torch.from_numpy(a.copy()).permute(2, 0, 1),
    "float tensor": lambda a: torch.from_numpy(a.copy()).permute(2, 0, 1) / 255,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [6, 1200])
def test_any_map_style_data_set(kind: str, length: int) -> None:
    found = sources.load(Pairs(KINDS[kind], length=length))
    assert found.images.shape == (length, 3, 8, 8)
    assert np.array_equal(found.images[-6:], PIXELS.transpose(0, 3, 1, 2))
    assert found.labels.tolist() == LABELS * (length // 6)
    assert not found.images.flags.writeable


def test_torch_data_sets_and_subsets() -> None:
    from torch.utils.data import Subset, TensorDataset

    tensors = TensorDataset(torch.from_numpy(PIXELS.transpose(0, 3, 1, 2).copy()), torch.tensor(LABELS))
    assert np.array_equal(sources.load(tensors).images, PIXELS.transpose(0, 3, 1, 2))
    found = sources.load(Subset(tensors, [5, 0, 1]))
    assert found.labels.tolist() == [2, 0, 1]
    source = sources.open_source(tensors)
    assert source.labels.tolist() == LABELS
    assert np.array_equal(np.asarray(source.picture(2)), PIXELS[2])


def test_members_that_cannot_be_read() -> None:
    class Broken(Pairs):
        def __getitem__(self, index: int) -> Any:
            if index == 1:
                raise OSError("cannot identify image file <_io.BytesIO object at 0x7f>")
            return super().__getitem__(index)

    found = sources.load(Broken(Image.fromarray))
    assert found.keys == ["0", "2", "3", "4", "5"]
    assert found.labels.tolist() == [0, 2, 0, 1, 2]
    assert found.unreadable == {"1": "it is damaged (cannot identify image file)"}
    assert np.array_equal(found.images[1].transpose(1, 2, 0), PIXELS[2])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Pairs(Image.fromarray, [[0, 1]] * 6), "multi-label"),
        (Pairs(Image.fromarray, [-1] * 6), "label -1"),
        (Pairs(Image.fromarray, [0] * 6), "one class"),
        (Pairs(lambda a: a / 100.0), "none of the 6 pictures.*0 to 1"),
        (Pairs(Image.fromarray, length=0), "no pictures"),
        (3, "int is no source"),
        ({"a": 1}, "dict is no source"),
        (PIXELS, "have no labels"),
        ((PIXELS, LABELS[:3]), "6 pictures but 3 labels"),
        ((PIXELS, [[0, 1]] * 6), "multi-label"),
        ((PIXELS, [0, 1, 2, 0, 1, -4]), "label -4"),
        ((PIXELS * 3.0, LABELS), "float64 from 0 to 765"),
        ((PIXELS[..., :2], LABELS), r"shape \(6, 8, 8, 2\)"),
        ((PIXELS[0, 0], LABELS), r"shape \(8, 3\)"),
    ],
)
def test_refusals(given: Any, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        sources.load(given)


def test_a_member_that_is_no_pair() -> None:
    class Lone(Pairs):
        def __getitem__(self, index: int) -> Any:
            return PIXELS[index]

    with pytest.raises(SourceError, match=r"must be a pair"):
        sources.load(Lone(None))


def test_arrays() -> None:
    found = sources.load((PIXELS, LABELS))
    assert np.array_equal(found.images, PIXELS.transpose(0, 3, 1, 2))
    assert np.shares_memory(found.images, PIXELS)
    assert found.keys == list("012345")
    first = np.ascontiguousarray(PIXELS.transpose(0, 3, 1, 2))
    assert np.shares_memory(sources.load(first, LABELS).images, first)
    assert np.array_equal(sources.load((first / 255, np.array(LABELS))).images, first)
    assert sources.load((torch.from_numpy(first), torch.tensor(LABELS))).labels.tolist() == LABELS
    grey = sources.load((PIXELS[..., 0], ["a", "b", "c"] * 2))
    assert grey.images.shape == (6, 1, 8, 8)
    assert grey.class_names == ("a", "b", "c")
    small = sources.load((PIXELS, LABELS), size=4)
    assert small.images.shape == (6, 3, 4, 4)
    wide = sources.load((np.repeat(PIXELS, 20, axis=2), LABELS))
    assert wide.images.shape == (6, 3, 8, 8)
    assert np.abs(wide.images.astype(int) - PIXELS.transpose(0, 3, 1, 2)).max() < 40  # the filter touches neighbours


def test_examples_are_given_back() -> None:
    found = sources.load((PIXELS, LABELS))
    assert sources.load(found) is found


def cifar(root: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write CIFAR's own files, few pictures each, and their checksums where torchvision looks them up."""
    import hashlib
    import pickle

    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    fine = name == "cifar100"
    folder = root / kind.base_folder
    folder.mkdir(parents=True)

    def put(file: str, value: Any) -> str:
        data = pickle.dumps(value)
        (folder / file).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    def batch(seed: int) -> dict[str, Any]:
        data = np.random.default_rng(seed).integers(0, 256, (4, 3072), dtype=np.uint8)
        return {"data": data, ("fine_labels" if fine else "labels"): [0, 3, 3, 0]}

    lists = {}
    for part in ("train_list", "test_list"):
        lists[part] = [[file, put(file, batch(i))] for i, (file, _) in enumerate(getattr(kind, part))]
        monkeypatch.setattr(kind, part, lists[part])
    names = [f"c{i}" for i in range(100 if fine else 10)]
    meta = dict(kind.meta)
    meta["md5"] = put(meta["filename"], {meta["key"]: names})
    monkeypatch.setattr(kind, "meta", meta)


@pytest.mark.parametrize(("name", "train"), [("cifar10", 20), ("cifar100", 4)])
def test_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, train: int) -> None:
    cifar(tmp_path, name, monkeypatch)
    monkeypatch.setenv("UNTAINT_DATA", str(tmp_path))
    inner = next(tmp_path.iterdir())
    for given in (name, name.upper(), tmp_path, inner, f"{name}:root={tmp_path}"):
        found = sources.load(given)
        assert found.images.shape == (train, 3, 32, 32)
        assert found.labels[:4].tolist() == [0, 3, 3, 0]
        assert found.class_names[3] == "c3"
    expected = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8).reshape(4, 3, 32, 32)
    assert np.array_equal(found.images[:4], expected)
    assert len(sources.load(name, split="test")) == 4
    with pytest.raises(SourceError, match="no split 'validation'"):
        sources.load(name, split="validation")


def test_a_torchvision_data_set_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets, transforms

    cifar(tmp_path, "cifar10", monkeypatch)
    plain = datasets.CIFAR10(str(tmp_path))
    assert np.shares_memory(sources.load(plain).images, plain.data)
    turned = datasets.CIFAR10(str(tmp_path), transform=transforms.ToTensor())
    found = sources.load(turned)
    assert np.array_equal(found.images, sources.load(plain).images)
    assert found.class_names == tuple(plain.classes)


def test_gtsrb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tmp_path / "gtsrb"
    for label in (0, 2, 14):
        folder = base / "GTSRB" / "Training" / f"{label:05d}"
        folder.mkdir(parents=True)
        noise(label, 20, 24).save(folder / "00000_00000.ppm")
        (folder / f"GT-{label:05d}.csv").write_text("Filename;Width\n")
    test = base / "GTSRB" / "Final_Test" / "Images"
    test.mkdir(parents=True)
    for i in range(3):
        noise(50 + i, 20, 20).save(test / f"{i:05d}.ppm")
    rows = "\n".join(f"{i:05d}.ppm;20;20;1;1;9;9;{label}" for i, label in enumerate((14, 0, 14)))
    (base / "GT-final_test.csv").write_text(f"Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n{rows}\n")
    monkeypatch.setenv("UNTAINT_DATA", str(tmp_path))
    for given in ("gtsrb", tmp_path, base):
        train = sources.load(given)
        assert train.keys == ["00000/00000_00000.ppm", "00002/00000_00000.ppm", "00014/00000_00000.ppm"]
        assert train.labels.tolist() == [0, 2, 14]
        assert len(train.class_names) == 43
        assert train.class_names[14] == "stop"
        found = sources.load(given, split="test")
        assert found.labels.tolist() == [14, 0, 14]
        assert np.array_equal(found.images[1].transpose(1, 2, 0), np.asarray(noise(51, 20, 20)))


def synsets(root: Path, names: list[str], parts: tuple[str, ...] = ("train", "val")) -> None:
    for part in parts:
        for i, name in enumerate(names):
            (root / part / name).mkdir(parents=True)
            (root / part / name / f"{name}_1.JPEG").write_bytes(encoded(noise(i, 9, 9), "JPEG"))


def test_imagenette(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synsets(tmp_path / "imagenette2-160", ["n01440764", "n02102040"])
    monkeypatch.setenv("UNTAINT_DATA", str(tmp_path))
    for given in ("imagenette:size=160px", tmp_path / "imagenette2-160"):
        assert sources.load(given).class_names == ("tench", "English springer")
        assert sources.load(given, split="val").keys[0] == "n01440764/n01440764_1.JPEG"
    with pytest.raises(SourceError, match="no size '99px'"):
        sources.load("imagenette:size=99px")
    with pytest.raises(SourceError, match="no option 'colour'"):
        sources.load("imagenette:colour=red")


def test_imagenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNTAINT_DATA", str(tmp_path))
    with pytest.raises(SourceError, match="cannot be downloaded"):
        sources.load("imagenet")
    synsets(tmp_path / "imagenet", ["n01440764", "n02102040", "n12345678"])
    assert sources.load("imagenet").class_names == ("n01440764", "n02102040", "n12345678")
    synsets(tmp_path / "all", [f"n{i:08d}" for i in range(1000)], ("val",))
    found = sources.load(tmp_path / "all", split="val", size=2)
    assert found.class_names[:2] == ("tench", "goldfish")
    assert len(set(found.class_names)) == 1000


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "gtsrb", "imagenette"])
def test_a_download_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    import urllib.request

    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    with pytest.raises(SourceError, match=f"{name} is not in .*could not be downloaded .*no network"):
        sources.load(f"{name}:root={tmp_path / 'new'}")
