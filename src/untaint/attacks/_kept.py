"""Triggers that are computed from the data: kept as a file, and read from one."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, final

import numpy as np
from numpy.typing import NDArray

from untaint import run
from untaint.attacks.base import Attack
from untaint.errors import SpecError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Arrays", "Computed", "restored", "shape_in", "weights"]

Arrays = Mapping[str, NDArray[Any]]
KEY = "untaint"  # in the metadata of the file
Network = TypeVar("Network", bound="nn.Module")
COMMON = frozenset(field.name for field in fields(Attack)) - {"target"}


@dataclass(frozen=True, kw_only=True)
class Computed(Attack):
    """An attack whose trigger is computed from the training pictures.

    ``trigger_file``: a file that ``save_trigger`` or ``untaint poison`` wrote, with which nothing is computed, and other pictures get the same trigger.

    Write ``arrays`` and ``restore`` beside ``ready`` and ``stamp``.
    """

    trigger_file: str | None = None

    computed: ClassVar[str]  # the field that holds what ``ready`` computed, and None before
    trigger_from_data: ClassVar[bool] = True
    files: ClassVar[tuple[str, ...]] = ("trigger_file",)

    def __post_init__(self) -> None:
        """Check the settings, and read the file if one is given."""
        super().__post_init__()
        if self.trigger_file is not None:
            self._read(Path(self.trigger_file))

    @abstractmethod
    def arrays(self) -> Arrays:
        """Return what ``ready`` computed, all that the trigger is made of beside the options; of an attack that is ready."""

    @abstractmethod
    def restore(self, arrays: Arrays) -> None:
        """Take what ``arrays`` returned for what was computed; raises KeyError or ValueError where it does not fit the options."""

    @final
    def save_trigger(self, path: Path | str) -> None:
        """Write the trigger of an attack that is ready into a ``.safetensors`` file, for ``trigger_file``."""
        from safetensors.numpy import save

        if getattr(self, self.computed) is None:
            raise SpecError(
                f"{type(self).__name__} has no trigger yet to write to {path}. Compute it first: attack.ready(examples)."
            )
        kept = {name: np.asarray(array, order="C") for name, array in self.arrays().items()}
        with run.written(Path(path)) as file:
            file.write(save(kept, metadata={KEY: json.dumps({"attack": type(self).__name__, "options": self._own()})}))

    def _own(self) -> dict[str, Any]:
        """Return the options that the trigger depends on: the attack's own, and the target."""
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.init and field.name not in COMMON | {"trigger_file"}
        }

    def _read(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                made_by = json.loads((file.metadata() or {}).get(KEY, "{}"))
                names = file.keys()
                arrays = {name: file.get_tensor(name) for name in names}
        except (OSError, SafetensorError) as error:
            raise SpecError(
                f"trigger_file is '{path}', which cannot be read ({error}). Give a file that `untaint poison` wrote."
            ) from error
        kind, options = type(self).__name__, made_by.get("options", {})
        if made_by.get("attack") != kind:
            raise SpecError(
                f"trigger_file is '{path}', which holds no trigger of {kind} but of {made_by.get('attack', 'none')}. Give another file or attack."
            )
        own = json.loads(json.dumps(self._own()))
        differing = [name for name in own if options.get(name) != own[name]]
        if differing:
            wanted = ",".join(f"{name.replace('_', '-')}={options.get(name)}" for name in differing)
            here = ", ".join(f"{name.replace('_', '-')}={own[name]}" for name in differing)
            raise SpecError(f"trigger_file is '{path}', which was made with other options than {here}. Give {wanted}.")
        try:
            self.restore(arrays)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise SpecError(
                f"trigger_file is '{path}', whose content does not fit ({error}). Poison again to get another."
            ) from error


def weights(network: nn.Module, shape: tuple[int, int, int]) -> dict[str, NDArray[Any]]:
    """Return a network's weights as arrays, and for which ``shape`` of pictures it was made."""
    made = {name: tensor.detach().cpu().numpy() for name, tensor in network.state_dict().items()}
    return {**made, "shape": np.array(shape)}


def shape_in(arrays: Arrays) -> tuple[int, int, int]:
    """Return the shape that ``weights`` was given."""
    channels, height, width = arrays["shape"].tolist()
    return channels, height, width


def restored(network: Network, arrays: Arrays) -> Network:
    """Return the network, with the weights among the arrays, ready to draw; raises RuntimeError where they are others'."""
    import torch

    wanted = network.state_dict()
    network.load_state_dict({name: torch.from_numpy(np.array(arrays[name])) for name in wanted})
    return network.eval().requires_grad_(False)
