"""Checkpoints and finished models: safetensors and JSON, never a pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from untaint import run
from untaint.errors import InputError, RunError
from untaint.models.build import build

__all__ = ["drop_state", "load_model", "restore_state", "save_changed", "save_gated", "save_model", "save_state"]


def _save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with run.written(path) as file:
        file.write(safetensors.torch.save(plain))


def _load_tensors(path: Path, expected: str) -> dict[str, Tensor]:
    if not path.exists():
        raise RunError(f"{path} is missing. Remove {path.parent} and give the same command again.")
    if run.digest(path) != expected:
        raise RunError(
            f"{path} was altered since it was written. Remove {path.parent} and give the same command again."
        )
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise RunError(
            f"{path} holds no safetensors ({error}), and nothing else is ever loaded. Train again."
        ) from error


def save_state(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, epoch: int, facts: dict[str, Any]
) -> None:
    """Write where training stands after ``epoch`` epochs; the state before stays until this one is whole."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if value is not None:
                tensors[f"optimizer.{number}.{name}"] = torch.as_tensor(value)
    path = folder / f"checkpoint_{epoch:03d}.safetensors"
    _save_tensors(path, tensors)
    run.write_sealed(
        folder / "state.json", {"epoch": epoch, "checkpoint": path.name, "sha256": run.digest(path), **facts}
    )
    for old in folder.glob("checkpoint_*.safetensors"):
        if old != path:
            old.unlink()


def restore_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
    """Put model and optimizer back where ``save_state`` left them; returns its facts, or None if there are none."""
    if not (folder / "state.json").exists():
        return None
    facts = run.read_sealed(folder / "state.json")
    tensors = _load_tensors(folder / Path(facts["checkpoint"]).name, facts["sha256"])
    try:
        model.load_state_dict({name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")})
    except RuntimeError as error:
        raise RunError(
            f"the checkpoint in {folder} does not fit the model ({str(error).splitlines()[0]}). "
            "Continue with the architecture that the run was begun with, or give another --out."
        ) from error
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, number, key = name.split(".", 2)
            state.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return facts


def drop_state(folder: Path) -> None:
    """Remove what ``save_state`` left, in an order in which no moment looks altered."""
    (folder / "state.json").unlink(missing_ok=True)
    for path in folder.glob("checkpoint_*"):
        path.unlink(missing_ok=True)


def save_model(folder: Path, model: nn.Module, card: dict[str, Any]) -> None:
    """Write ``model.safetensors`` and its card ``model.json``; the card names architecture and classes."""
    path = folder / "model.safetensors"
    _save_tensors(path, model.state_dict())
    run.write_json(folder / "model.json", {**card, "sha256": run.digest(path)})


def save_gated(folder: Path, model: nn.Module, layer: str, source: Path) -> None:
    """Write a finished folder with the model of ``source``, behind whose ``layer`` a TriggerGate was put."""
    card = read_card(source)
    gate = f"+gate:at={layer}"
    name = card["model"] if gate in card["model"] else card["model"] + gate
    save_model(folder, model, {**card, "model": name})
    run.finish(folder, files=[folder / "model.safetensors", folder / "model.json"])


def save_changed(folder: Path, model: nn.Module, source: Path) -> None:
    """Write a finished folder with the model of ``source`` whose weights were changed."""
    save_model(folder, model, read_card(source))
    run.finish(folder, files=[folder / "model.safetensors", folder / "model.json"])


def load_model(path: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Return the trained model in ``path`` as a plain ``nn.Module``, in eval mode.

    It takes float pictures (batch, channel, height, width) in [0, 1] of the size named in
    ``model.json``. ``model``: the architecture, if it was one of your own. Pickles are never read.
    """
    folder = Path(path)
    if folder.suffix.lower() in (".pt", ".pth", ".pkl", ".bin", ".ckpt"):
        raise InputError(
            f"{path} is a pickle, which can run code when it is opened; untaint never loads one. Give a folder with model.safetensors."
        )
    if folder.name == "model.safetensors":
        folder = folder.parent
    card = read_card(folder)
    tensors = _load_tensors(folder / "model.safetensors", card["sha256"])
    if model is None:
        if card["model"] == "custom":
            raise InputError(
                f"{folder} holds weights of an architecture of your own. Give it: load_model(path, model=YourModule())."
            )
        kernel = tensors.get("0.kernel")
        model = build(card["model"], len(card["class_names"]), tuple(card["size"]), kernel=kernel)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(
            f"the weights in {folder} do not fit the model ({str(error).splitlines()[0]}). Give the architecture they were trained with."
        ) from error
    return model.to(memory_format=torch.channels_last).eval()  # as it was trained


def read_card(folder: Path) -> dict[str, Any]:
    """Return what ``model.json`` says: model, class_names, size, rows, recipe."""
    if not (folder / "model.json").exists():
        found = sorted(p.name for p in folder.iterdir())[:3] if folder.is_dir() else "nothing"
        raise InputError(
            f"{folder} is no model of untaint: there is no model.json (found: {found}). Give a folder written by `untaint train` or `untaint scan`."
        )
    try:
        card: dict[str, Any] = json.loads((folder / "model.json").read_text())
        if not isinstance(card, dict) or not {"model", "class_names", "size", "sha256"} <= card.keys():
            raise ValueError("entries are missing")
    except ValueError as error:
        raise RunError(f"{folder / 'model.json'} was altered ({error}). Train again.") from error
    return card
