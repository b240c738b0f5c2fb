from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import untaint as ut
from untaint import samples

from .terminal import Outcome, epochs, told

CLASSES = ("airplane", "bird", "ship")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNTAINT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("UNTAINT_DATA", raising=False)
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
        yield


def write_pictures(folder: Path, examples: ut.Examples, each: int) -> Path:
    """A folder per class with the first pictures of three classes."""
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        rows = np.flatnonzero(examples.labels == examples.class_names.index(name))[:each]
        for number, row in enumerate(rows):
            Image.fromarray(examples.images[row].transpose(1, 2, 0)).save(folder / name / f"{number:03d}.png")
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real pictures: train (3 x 70) and test (3 x 20), a folder per class."""
    root = tmp_path_factory.mktemp("real") / "photos"
    write_pictures(root / "train", ut.load(samples.path()), 70)
    write_pictures(root / "test", ut.load(samples.path(), split="test"), 20)
    return root


@pytest.fixture
def few(photos: Path, tmp_path: Path) -> Path:
    """A copy of 3 x 12 of them, to be damaged."""
    target = tmp_path / "few"
    for name in CLASSES:
        (target / name).mkdir(parents=True)
        for path in sorted((photos / "train" / name).iterdir())[:12]:
            (target / name / path.name).write_bytes(path.read_bytes())
    return target


def keys_of(folder: Path, count: int) -> list[str]:
    """Keys of a folder of pictures, the same number of each class."""
    each = -(-count // len(CLASSES))
    return [f"{name}/{path.name}" for name in CLASSES for path in sorted((folder / name).iterdir())[:each]]


@pytest.fixture
def few_probes(few: Path, tmp_path: Path) -> Path:
    path = tmp_path / "few-probes.txt"
    path.write_text("\n".join(keys_of(few, 12)) + "\n")
    return path


@pytest.fixture(scope="session")
def dirty(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """The pictures with poison in them, and what the command said."""
    out = tmp_path_factory.mktemp("poison") / "dirty"
    return out, told("poison", photos, "--attack", "patch:target=ship,rate=0.1", "--out", out)


@pytest.fixture(scope="session")
def probes(dirty: tuple[Path, Outcome], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """Candidates drawn from the poisoned pictures, and what the command said."""
    path = tmp_path_factory.mktemp("probes") / "probes.txt"
    return path, told("probes", dirty[0], "--suggest", 60, "--balanced", "--out", path)


@pytest.fixture(scope="session")
def scanned(
    dirty: tuple[Path, Outcome], probes: tuple[Path, Outcome], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Outcome]:
    """A finished run on the poisoned pictures, and what the command said."""
    out = tmp_path_factory.mktemp("runs") / "photos"
    words = ("--probes", probes[0], "--out", out, *epochs(2), "--reject", "fraction:share=0.1", "--check")
    return out, told("scan", dirty[0], *words)
