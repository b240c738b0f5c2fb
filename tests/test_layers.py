"""What importing brings, and what is public."""

from __future__ import annotations

import subprocess
import sys

import pytest

import untaint as ut


def run_python(text: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", "-c", text], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_untaint_brings_neither_torch_nor_its_other_heavy_parts():
    heavy = (
        "('torch', 'torchvision', 'numpy', 'pandas', 'scipy', 'sklearn', 'datasets', 'pyarrow', 'matplotlib', 'PIL')"
    )
    assert run_python(f"import sys, untaint; print([name for name in {heavy} if name in sys.modules])") == "[]"


@pytest.mark.parametrize(
    "module",
    ["examples", "trajectories", "scores", "spec", "registry", "run", "rng", "recipe", "report", "attacks", "errors"],
)
def test_what_needs_no_torch_does_not_import_it(module):
    assert run_python(f"import sys, untaint.{module}; print('torch' in sys.modules)") == "False"


def test_every_public_name_is_there_and_listed():
    assert ut.__all__ == sorted(set(ut.__all__))
    for name in ut.__all__:
        assert getattr(ut, name) is not None
    assert dir(ut) == ut.__all__
    promised = {"load", "scan", "score", "train", "Recorder", "Examples", "Recipe", "evaluate", "load_model", "poison"}
    assert promised <= set(ut.__all__)


def test_public_names_are_no_modules_even_after_everything_was_imported():
    """A module `untaint.score` would take the place of the function `untaint.score` once imported."""
    text = """
import importlib, pkgutil, types, untaint
for module in pkgutil.walk_packages(untaint.__path__, "untaint."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print([name for name in untaint.__all__ if isinstance(getattr(untaint, name), types.ModuleType)])
"""
    assert run_python(text) == "[]"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'scna'"):
        ut.scna  # noqa: B018


def test_every_module_names_what_it_gives():
    """``__all__`` of each module holds names that exist."""
    text = """
import importlib, pkgutil, untaint
for module in pkgutil.walk_packages(untaint.__path__, "untaint."):
    if module.name.endswith("__main__"):
        continue
    found = importlib.import_module(module.name)
    missing = [name for name in getattr(found, "__all__", []) if not hasattr(found, name)]
    if missing:
        print(module.name, missing)
"""
    assert run_python(text) == ""


def test_errors_are_one_tree():
    from untaint import errors

    kinds = [getattr(errors, name) for name in errors.__all__ if name != "did_you_mean"]
    assert all(issubclass(kind, ut.UntaintError) for kind in kinds)
    assert issubclass(ut.InputError, ValueError)
    assert not issubclass(ut.TrainingError, ValueError)
