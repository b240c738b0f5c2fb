"""The scripts under examples/ do what their pages say; minutes, so that `make test-all` runs them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples"


def said(name: str, *words: object) -> str:
    asked = [sys.executable, "-W", "error::UserWarning", str(FOLDER / name), *map(str, words)]
    found = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    return found.stdout


@pytest.mark.slow
def test_eigenguard_is_compared_with_none(tmp_path: Path) -> None:
    text = said("eigenguard.py")
    shares = [float(share) for share in re.findall(r"([\d.]+)%", text)]
    assert len(shares) == 6
    accuracy, success = shares[:2]
    assert accuracy > 50
    assert success > 50, "the trigger is learned without it"


@pytest.mark.slow
def test_spectra_of_two_triggers_are_drawn_with_and_without_eigenguard(tmp_path: Path) -> None:
    text = said("spectrum.py", tmp_path)
    assert re.findall(r"^(\w+): effective rank", text, re.MULTILINE) == ["plain", "guarded"]
    for name in ("plain", "guarded"):
        assert (tmp_path / f"{name}.svg").read_text().count('id="axes_') == 10


@pytest.mark.slow
def test_triggers_are_overlooked_by_a_repaired_network() -> None:
    text = said("repair.py")
    trained, repaired = ([float(share) for share in re.findall(r"([\d.]+)%", line)] for line in text.splitlines()[:2])
    assert min(trained[1:]) > 60, "both triggers are learned"
    assert max(repaired[1:]) < 20
    assert abs(repaired[0] - trained[0]) < 2
    for many, of_them in re.findall(r"in (\d+) pictures of class (?:airplane|cat), (\d+) of them", text):
        assert int(of_them) > 0.8 * int(many)
