from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from synthetic_run import Synthetic, build


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Synthetic]:
    """Return a function that writes a synthetic run directory."""
    return lambda **options: build(tmp_path / "run", **options)
