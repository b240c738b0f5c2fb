"""What all tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from untaint import scanning


@pytest.fixture(scope="session", autouse=True)
def small_data_may_be_scanned() -> Iterator[None]:
    """Most scans of these tests are of some dozens of pictures, which a user's are not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scanning, "FEWEST", 0)
        yield
