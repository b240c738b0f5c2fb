"""``Recorder``: trajectories out of any training loop, in three lines.

    recorder = Recorder(labels, "runs/mine")
    recorder.record(rows, logits)      # per batch
    recorder.end_epoch()               # per epoch

Nothing here waits for the device inside a step: the figures are summed where the logits are, and
fetched once an epoch.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from untaint import rng, run
from untaint.errors import InputError, RunError, TrainingError
from untaint.trajectories import epoch_files, epoch_of

__all__ = ["Recorder", "observe"]

WIDEST = 256  # features wider than this are projected at random, which keeps distances


def observe(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (scaled logit, margin, predicted class) of a batch of logits.

    logits: (batch, classes), any float type; labels: int64 (batch,). The scaled logit is the logit
    of the label minus the logsumexp of the others (Carlini et al., 2022), the margin the same
    minus the largest other; both float32.
    """
    logits = logits.detach().float()
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], float("-inf"))
    scaled = own[:, 0] - others.logsumexp(1)
    margin = own[:, 0] - others.amax(1)
    return scaled, margin, logits.argmax(1)


class Recorder:
    """Writes one file per epoch and observable under ``out/trajectories``.

    ``labels``: one per row of the whole data set, also for rows that are never recorded. A row
    seen twice in an epoch is averaged; one not seen holds nan. ``epoch``: how many epochs ``out``
    already holds that are to be kept (a resumed run); later ones are written anew.
    """

    def __init__(self, labels: Iterable[int] | NDArray[np.int64], out: str | Path, *, epoch: int | None = None) -> None:
        """Begin, or go on at ``epoch``; refuses a folder that holds epochs when none is given."""
        self.labels = np.asarray(labels if isinstance(labels, np.ndarray) else list(labels), dtype=np.int64)
        self.out = Path(out)
        present = len(epoch_files(self.out / "trajectories" / "scaled-logit"))
        if epoch is None and present:
            raise RunError(f"{out} already holds {present} epochs. Give epoch={present} to go on, or another folder.")
        if epoch is not None and epoch > present:
            raise RunError(
                f"{out} holds {present} epochs, fewer than the {epoch} to go on from. Record from the start."
            )
        self.epoch = epoch or 0
        self._check_labels()
        self._highest = int(self.labels.max())
        self._drop(self.epoch)
        if not (self.out / "labels.npy").exists():
            run.save_array(self.out / "labels.npy", self.labels)
        self._sums: Tensor | None = None
        self._predicted: Tensor | None = None
        self._on_device: Tensor | None = None
        self._features: NDArray[np.float16] | None = None
        self._waiting: list[tuple[Any, Tensor]] = []

    def _drop(self, first: int) -> None:
        for folder in ("trajectories/scaled-logit", "trajectories/margin", "trajectories/predicted", "features"):
            for path in epoch_files(self.out / folder):
                if epoch_of(path) >= first:
                    path.unlink()

    def _check_labels(self) -> None:
        if self.labels.ndim != 1 or not len(self.labels) or self.labels.min() < 0:
            raise InputError(
                f"the labels are {self.labels.shape}, the lowest {self.labels.min(initial=0)}. Give one number from 0 per row."
            )
        path = self.out / "labels.npy"
        if path.exists() and not np.array_equal(run.load_array(path), self.labels):
            raise RunError(
                f"{path} holds other labels. Give the labels that the recording was begun with, or another folder."
            )

    def record(self, rows: Tensor | NDArray[np.int64], logits: Tensor, features: Tensor | None = None) -> None:
        """Take one batch: its rows, its logits (batch, classes), and features (batch, any) if wanted."""
        self._check_batch(torch.as_tensor(rows), logits)
        if self._sums is None:
            with torch.inference_mode(False):  # else they could not be added to outside of it
                self._sums = torch.zeros(3, len(self.labels), device=logits.device)
                self._predicted = torch.full((len(self.labels),), -1, dtype=torch.int32, device=logits.device)
                self._on_device = torch.from_numpy(self.labels.copy()).to(logits.device)
        assert self._predicted is not None
        assert self._on_device is not None
        index = torch.as_tensor(rows, dtype=torch.int64).to(logits.device, non_blocking=True)
        scaled, margin, predicted = observe(logits, self._on_device[index])
        self._sums.index_add_(1, index, torch.stack([scaled, margin, torch.ones_like(scaled)]))
        self._predicted[index] = predicted.to(torch.int32)
        if features is not None:
            self._keep(rows, features)

    def _check_batch(self, rows: Tensor, logits: Tensor) -> None:
        if len(rows) != len(logits):
            raise InputError(
                f"{len(rows)} rows were given with {len(logits)} logits. Give one row per example of the batch."
            )
        if logits.ndim != 2 or logits.shape[1] <= self._highest or logits.shape[1] < 2:
            raise InputError(
                f"the logits are {tuple(logits.shape)}, the labels go up to {self._highest}. Give logits of (batch, classes)."
            )
        if rows.device.type == "cpu" and len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(self.labels):
            raise InputError(
                f"rows from {int(rows.min())} to {int(rows.max())} were given, but there are {len(self.labels)} labels. Count rows from 0."
            )

    def _keep(self, rows: Tensor | NDArray[np.int64], features: Tensor) -> None:
        flat = features.detach().flatten(1).float()
        if flat.shape[1] > WIDEST:
            generator = torch.Generator().manual_seed(rng.derive(0, "features", flat.shape[1]))
            projection = torch.randn(flat.shape[1], WIDEST, generator=generator) / WIDEST**0.5
            flat = flat @ projection.to(flat.device)
        if self._features is None:
            self._features = np.full((len(self.labels), flat.shape[1]), np.nan, dtype=np.float16)
        host = (
            flat.to(torch.float16).cpu()
            if flat.device.type == "cpu"
            else flat.to(torch.float16).to("cpu", non_blocking=True)
        )
        self._waiting.append((rows, host))
        if flat.device.type == "cpu":
            self._settle()

    def _settle(self) -> None:
        for rows, host in self._waiting:
            assert self._features is not None
            self._features[torch.as_tensor(rows).cpu().numpy()] = host.numpy()
        self._waiting.clear()

    def end_epoch(self) -> list[Path]:
        """Write the epoch and return its files; raises TrainingError if a figure is not finite."""
        if self._sums is None or self._predicted is None:
            raise InputError(
                f"epoch {self.epoch} ends with nothing recorded. Call record(rows, logits) for each batch first."
            )
        if self._waiting and torch.cuda.is_available():
            torch.cuda.synchronize()
        self._settle()
        sums = self._sums.cpu().numpy()
        seen = sums[2] > 0
        with np.errstate(invalid="ignore", divide="ignore"):
            scaled, margin = sums[0] / sums[2], sums[1] / sums[2]
        if not np.isfinite(scaled[seen]).all():
            raise TrainingError(
                f"the logits at epoch {self.epoch} are not finite for {int((~np.isfinite(scaled[seen])).sum())} of "
                f"{int(seen.sum())} rows. Lower the learning rate, or use precision float32."
            )
        name = f"epoch_{self.epoch:03d}.npy"
        folder = self.out / "trajectories"
        # the scaled logit last: an epoch counts by its file
        tables: dict[Path, NDArray[Any]] = (
            {} if self._features is None else {self.out / "features" / name: self._features}
        )
        tables |= {
            folder / "margin" / name: margin.astype(np.float32),
            folder / "predicted" / name: self._predicted.cpu().numpy(),
            folder / "scaled-logit" / name: scaled.astype(np.float32),
        }
        for path, table in tables.items():
            run.save_array(path, table)
        self.epoch += 1
        self._sums = self._predicted = self._features = None
        return list(tables)
