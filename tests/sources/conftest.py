from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNTAINT_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("UNTAINT_DATA", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def noise(seed: int, width: int = 8, height: int = 8) -> Image.Image:
    """A picture of its own."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def class_folders(root: Path, classes: tuple[str, ...] = ("cat", "dog"), each: int = 3, suffix: str = ".png") -> Path:
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            noise(100 * number + i).save(root / name / f"{i:02d}{suffix}")
    return root


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return class_folders(tmp_path / "photos")


class Listening:
    """A Progress that remembers."""

    def __init__(self) -> None:
        self.remarks: list[str] = []
        self.steps: list[tuple[str, int]] = []
        self.done = 0

    def step(self, what: str, total: int, done: int = 0, unit: str = "images"):  # type: ignore[no-untyped-def]
        from contextlib import nullcontext

        self.steps.append((what, total))
        return nullcontext(self)

    def advance(self, count: int, note: str = "") -> None:
        self.done += count

    def say(self, remark: str) -> None:
        self.remarks.append(remark)


@pytest.fixture
def listening() -> Listening:
    return Listening()
