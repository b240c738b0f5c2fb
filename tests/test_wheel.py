"""The built wheel: complete, and at work in an environment of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import untaint as ut

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    isolation = ["--no-isolation"] if importlib.util.find_spec("hatchling") else []
    command = [sys.executable, "-m", "build", "--wheel", *isolation, "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = out.glob("*.whl")
    return found


def test_everything_is_inside(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
        about = archive.read(metadata).decode()
    package = ROOT / "src"
    expected = {
        path.relative_to(package).as_posix()
        for path in (package / "untaint").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert expected <= names
    for suffix in ("train-00000-of-00001.parquet", "report.html", "py.typed"):
        assert any(name.endswith(suffix) for name in expected), suffix
    assert {name.partition("/")[0] for name in names} == {"untaint", metadata.partition("/")[0]}
    assert f"Version: {ut.__version__}" in about
    assert wheel.stat().st_size < 16e6


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the wheel and sees the libraries installed here."""
    home = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    place = next(home.glob("lib*/python*/site-packages"))
    here = sysconfig.get_paths()["purelib"]
    # a plain path: .pth files inside it, such as that of an editable install, are not followed
    (place / "libraries.pth").write_text(f"{here}\n")
    command = [sys.executable, "-m", "pip", "--python", str(home / "bin" / "python"), "install", "--quiet"]
    offline = ["--no-deps", "--no-index", "--disable-pip-version-check"]
    done = subprocess.run([*command, *offline, str(wheel)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return home / "bin" / "python"


def test_the_wheel_scans(python: Path, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environment.update(UNTAINT_CACHE=str(tmp_path / "cache"), OMP_NUM_THREADS="1")

    def run(*command: object) -> str:
        done = subprocess.run(
            [*map(str, command)], capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    places = run(python, "-c", "import untaint, untaint.samples; print(untaint.__file__, untaint.samples.path())")
    home = python.parent.parent
    assert all(Path(place).is_relative_to(home) for place in places.split())

    untaint = python.parent / "untaint"
    assert run(untaint, "--version").strip() == ut.__version__
    sample = Path(places.split()[1])
    run(untaint, "probes", sample, "--split", "test", "--suggest", 100, "--out", "probes.txt", "--quiet")
    words = ("--split", "test", "--epochs", 1, "--precision", "float32", "--no-retrain", "--quiet", "--json")
    told = run(untaint, "scan", sample, "--probes", "probes.txt", "--out", "run", *words)
    assert json.loads(told)["rows"] == 1000
    assert (tmp_path / "run" / "report.html").exists()
