"""What tests of attacks share: a cache of their own, in which what was trained is found again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from untaint.training import loop
from untaint.training.device import Trial


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One for the tests of a file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNTAINT_CACHE", str(folder := tmp_path_factory.mktemp("cache")))
        patch.setattr(
            loop, "trial", lambda *_: Trial("float32", 1.0, 1.0)
        )  # which might choose otherwise the next time
        yield folder


@pytest.fixture
def cold_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One in which nothing is, for each test."""
    monkeypatch.setenv("UNTAINT_CACHE", str(folder := tmp_path_factory.mktemp("cold")))
    return folder
