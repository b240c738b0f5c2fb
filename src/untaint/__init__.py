"""untaint finds the poisoned examples in an image training set and trains models that do without them.

import untaint as ut

photos = ut.load("photos/train")
probes = photos.find("verified.txt")
result = ut.scan(photos, probes=probes, out="runs/photos")
model = ut.train(result.kept)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from untaint.attacks import ATTACKS as ATTACKS
    from untaint.concluding import Result as Result
    from untaint.defenses import DEFENSES as DEFENSES
    from untaint.errors import InputError as InputError
    from untaint.errors import TrainingError as TrainingError
    from untaint.errors import UntaintError as UntaintError
    from untaint.examples import Examples as Examples
    from untaint.models.eigenguard import EigenGuard as EigenGuard
    from untaint.models.inserting import insert_eigenguard as insert_eigenguard
    from untaint.models.inserting import remove_eigenguard as remove_eigenguard
    from untaint.poisoning import Ledger as Ledger
    from untaint.poisoning import poison as poison
    from untaint.poisoning import triggered as triggered
    from untaint.recipe import Preset as Preset
    from untaint.recipe import Recipe as Recipe
    from untaint.recorder import Recorder as Recorder
    from untaint.rescoring import score as score
    from untaint.scanning import scan as scan
    from untaint.scanning import train as train
    from untaint.sources import load as load
    from untaint.training.checkpoint import load_model as load_model
    from untaint.training.evaluate import accuracy as accuracy
    from untaint.training.evaluate import evaluate as evaluate
    from untaint.training.repair import repair as repair
    from untaint.trajectories import Trajectories as Trajectories

__version__ = "0.1.0"

# public name -> where it is defined; imported when first used, so that `import untaint` is quick
_HOME = {
    "ATTACKS": "attacks",
    "DEFENSES": "defenses",
    "EigenGuard": "models.eigenguard",
    "Examples": "examples",
    "InputError": "errors",
    "Ledger": "poisoning",
    "Preset": "recipe",
    "Recipe": "recipe",
    "Recorder": "recorder",
    "Result": "concluding",
    "TrainingError": "errors",
    "Trajectories": "trajectories",
    "UntaintError": "errors",
    "accuracy": "training.evaluate",
    "evaluate": "training.evaluate",
    "insert_eigenguard": "models.inserting",
    "load": "sources",
    "load_model": "training.checkpoint",
    "poison": "poisoning",
    "scan": "scanning",
    "remove_eigenguard": "models.inserting",
    "repair": "training.repair",
    "score": "rescoring",
    "train": "scanning",
    "triggered": "poisoning",
}

__all__ = sorted(["__version__", *_HOME])


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'untaint' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"untaint.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
