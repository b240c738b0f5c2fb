"""torchvision's data sets by name, in the folders where torchvision keeps them."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path
from typing import Any

from untaint import spec
from untaint.errors import SourceError
from untaint.sources import folder, tree
from untaint.sources.arrays import ArraySource
from untaint.sources.base import Source

__all__ = ["NAMES", "from_layout", "from_name", "is_name"]

NAMES = ("cifar10", "cifar100", "gtsrb", "imagenet", "imagenette")
_CIFAR = {"cifar10": ("CIFAR10", "cifar-10-batches-py"), "cifar100": ("CIFAR100", "cifar-100-python")}
_IMAGENETTE = {"full": "imagenette2", "320px": "imagenette2-320", "160px": "imagenette2-160"}
_IMAGENETTE_CLASSES = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}
_GTSRB_CLASSES = (
    *("speed limit 20", "speed limit 30", "speed limit 50", "speed limit 60", "speed limit 70", "speed limit 80"),
    *(
        "end of speed limit 80",
        "speed limit 100",
        "speed limit 120",
        "no passing",
        "no passing for vehicles over 3.5 t",
    ),
    *("right-of-way at the next intersection", "priority road", "yield", "stop", "no vehicles"),
    *("vehicles over 3.5 t prohibited", "no entry", "general caution", "dangerous curve to the left"),
    *("dangerous curve to the right", "double curve", "bumpy road", "slippery road", "road narrows on the right"),
    *("road work", "traffic signals", "pedestrians", "children crossing", "bicycles crossing", "beware of ice or snow"),
    *(
        "wild animals crossing",
        "end of all speed and passing limits",
        "turn right ahead",
        "turn left ahead",
        "ahead only",
    ),
    *("go straight or right", "go straight or left", "keep right", "keep left", "roundabout mandatory"),
    *("end of no passing", "end of no passing by vehicles over 3.5 t"),
)


def is_name(text: str) -> bool:
    """Return whether a text is a data set's name, with or without options (``cifar10:root=/data``)."""
    return text.partition(":")[0].lower() in NAMES


def from_name(text: str, split: str, cache: Path) -> Source:
    """Return a data set by name: from ``root=``, from UNTAINT_DATA or the cache folder, else downloaded there."""
    name, options = spec.parse(text)
    name = name.lower()
    known = {"root", "size"} if name == "imagenette" else {"root"}
    for option in options:
        if option not in known:
            raise SourceError(f"'{name}' has no option '{option}'. There are: {', '.join(sorted(known))}.")
    size = options.get("size", "full")
    if size not in _IMAGENETTE:
        raise SourceError(f"imagenette has no size '{size}'. There are: {', '.join(_IMAGENETTE)}.")
    root = Path(options.get("root") or os.environ.get("UNTAINT_DATA") or cache / "data").expanduser()
    for place in (root / _IMAGENETTE[size],) if name == "imagenette" else (root, root / name):
        found = from_layout(place, split, only=name) if place.is_dir() else None
        if found is not None:
            return found
    if name == "imagenet":
        raise SourceError(
            f"ImageNet is not in {root / name} and cannot be downloaded. "
            "Put its folders train and val there, or give their path."
        )
    return _downloaded(name, root, split, size)


def from_layout(place: Path, split: str, only: str | None = None) -> Source | None:
    """Return the data set whose folders torchvision would recognise at this place, or None."""
    for name, (_, inner) in _CIFAR.items():
        if only in (None, name):
            for root in (place, place.parent):
                if (root / inner).is_dir() and (root == place or place.name == inner):
                    return _cifar(name, root, split)
    if only in (None, "gtsrb"):
        for base in (place / "gtsrb", place):
            if (base / "GTSRB" / "Training").is_dir() or (base / "GTSRB" / "Final_Test").is_dir():
                return _gtsrb(base, split)
    return _synsets(place, split) if only in (None, "imagenet", "imagenette") else None


def _cifar(name: str, root: Path, split: str, *, download: bool = False) -> ArraySource:
    from torchvision import datasets

    chosen = tree.choose_split(("train", "test"), split, name)
    data = getattr(datasets, _CIFAR[name][0])(root=str(root), train=chosen == "train", download=download)
    return ArraySource(data.data, data.targets, class_names=data.classes, name=f"{name} ({chosen})")


def _gtsrb(base: Path, split: str) -> Source:
    present = [
        s for s, part in (("train", "Training"), ("test", "Final_Test/Images")) if (base / "GTSRB" / part).is_dir()
    ]
    if tree.choose_split(present, split, f"gtsrb in {base}") == "train":
        part = tree.folder(base / "GTSRB" / "Training")
        source = folder.by_folder(part, {f"{number:05d}" for number in range(len(_GTSRB_CLASSES))}, {})
    else:
        table = base / "GT-final_test.csv"
        if not table.is_file():
            raise SourceError(
                f"{table} is missing, which holds the labels of the test pictures. Fetch GTSRB_Final_Test_GT.zip."
            )
        part = tree.folder(base / "GTSRB" / "Final_Test" / "Images")
        entry = tree.Entry(table.name, str(table))
        source = folder.from_table(part, entry, "Filename", "ClassId")
    source.name = f"gtsrb ({tree.canonical(split)})"
    if len(source.class_names) <= len(_GTSRB_CLASSES):
        source.class_names = _GTSRB_CLASSES
    return source


def _synsets(place: Path, split: str) -> Source | None:
    """Return an Imagenette or ImageNet folder (train and val with a folder per WordNet id), or None."""
    inner = next((p for p in (place / "train", place / "val") if p.is_dir()), None)
    if inner is None:
        return None
    names = sorted(entry.name for entry in os.scandir(inner) if entry.is_dir())
    if not names or not all(name[0] == "n" and name[1:].isdigit() and len(name) == 9 for name in names):
        return None
    words: dict[str, str] = {}
    if set(names) <= set(_IMAGENETTE_CLASSES):
        words = _IMAGENETTE_CLASSES
    elif len(names) == 1000:
        words = dict(zip(names, _imagenet_categories(), strict=True))
    return folder.from_tree(tree.folder(place), split, None, None, words)


def _imagenet_categories() -> list[str]:
    """Return the 1,000 names in the order of their WordNet ids."""
    from torchvision.models import ResNet18_Weights

    categories: list[str] = ResNet18_Weights.DEFAULT.meta["categories"]
    return categories


def _downloaded(name: str, root: Path, split: str, size: str) -> Source:
    from torchvision import datasets

    chosen = tree.choose_split(("train", "val" if name == "imagenette" else "test"), split, name)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            if name in _CIFAR:
                return _cifar(name, root, split, download=True)
            kind: Any = datasets.GTSRB if name == "gtsrb" else datasets.Imagenette
            kind(root=str(root), split=chosen, download=True, **({"size": size} if name == "imagenette" else {}))
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise SourceError(
            f"{name} is not in {root} and could not be downloaded ({reason}). Put its files there, or give their path."
        ) from None
    found = from_layout(root / _IMAGENETTE[size] if name == "imagenette" else root, split, only=name)
    if found is None:
        raise SourceError(f"{name} was downloaded to {root} but is not there. Remove that folder and try again.")
    return found
