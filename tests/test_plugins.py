"""Attacks and defences of other people's packages: a whole small one, found by its entry points."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

SHADE = '''
"""Shade: pictures a little darker."""
from dataclasses import dataclass
import numpy as np
from untaint.attacks.base import Attack

@dataclass(frozen=True, kw_only=True)
class Shade(Attack):
    """Every pixel darker by ``levels``."""
    levels: int = 9

    def stamp(self, images, rows):
        return np.maximum(images, self.levels) - np.uint8(self.levels)
'''
DARKEST = '''
"""Darkest: the darkest pictures are suspicious."""
from dataclasses import dataclass
import numpy as np
from untaint.defenses import Detector
from untaint.scores import Scores

@dataclass(frozen=True, kw_only=True)
class Darkest(Detector):
    """Minus the mean of a picture's pixels."""
    usual_rule = "fraction:share=0.05"

    def score(self, task):
        return Scores(values=-task.examples.images.mean(axis=(1, 2, 3)).astype(np.float32), name="darkest")

    def work(self, task):
        return []
'''
POINTS = "[untaint.attacks]\nshade = theirs.shade:Shade\n[untaint.defenses]\ndarkest = theirs.darkest:Darkest\n"
GRID = """
[data.sample]
source = "sample"
[attacks]
one = ["shade:levels=200,rate=0.05,target=cat"]
[[grid]]
data = "sample"
rows = 300
attacks = "one"
epochs = 1
probes = 30
defences = "darkest"
"""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder as pip leaves one: the package and what its metadata says of it."""
    about = tmp_path / "theirs-1.0.dist-info"
    (tmp_path / "theirs").mkdir()
    about.mkdir()
    files = {"theirs/__init__.py": "", "theirs/shade.py": SHADE, "theirs/darkest.py": DARKEST}
    files |= {f"{about.name}/METADATA": "Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n"}
    files |= {f"{about.name}/entry_points.txt": POINTS, "mine.toml": GRID}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def untaint(folder: Path, *words: str) -> str:
    paths = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "UNTAINT_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "untaint", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_they_are_listed_poison_detect_and_take_part_in_a_grid(installed):
    assert "Every pixel darker" in untaint(installed, "list", "attacks")
    assert "Minus the mean" in untaint(installed, "list", "defenses")
    table = untaint(installed, "bench", "mine.toml", "--quiet", "--format", "csv")
    (found,) = csv.DictReader(io.StringIO(table))
    assert found["defence"] == "darkest"
    assert float(found["AUROC"]) > 0.95, "what is so dark is found"
    assert float(found["rejected"]) == 0.05
