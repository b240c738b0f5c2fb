"""Where arithmetic is done and in which precision, found out once and written down."""

from __future__ import annotations

import copy
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from untaint import rng
from untaint.models.eigenguard import EigenGuard
from untaint.recipe import Precision, Recipe

__all__ = ["Trial", "autocast", "device", "hardware", "keyed", "trial"]

TRIAL_BATCH = 64
GLANCE = 8  # pictures
HOPELESS = 4.0  # a precision that is so many times slower at a glance is not looked at again
SMALL = 2_000_000  # weights; a larger model is tried on fewer pictures
WARM = 2  # calls that set kernels up
TURNS = 3  # a precision is taken for the faster one if it is so as often
SECONDS = 1.0  # for so long each is timed: a busy machine is now fast, now slow


def device(name: str | None = None) -> torch.device:
    """Return the device to use: the one named, else CUDA, else MPS, else the CPU."""
    if name is not None:
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def hardware(where: torch.device) -> str:
    """Say in one line what the arithmetic is done on."""
    if where.type == "cuda":
        return torch.cuda.get_device_name(where)
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            name = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), name)
    except OSError:
        pass
    return f"{torch.get_num_threads()} threads of {name}"


def autocast(where: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Return the context in which forward passes run."""
    if precision == "bfloat16":
        return torch.autocast(where.type, dtype=torch.bfloat16)
    return nullcontext()


@contextmanager
def keyed(where: torch.device, seed: int, *words: str | int) -> Iterator[None]:
    """Let layers that draw at random (dropout, fresh weights) draw by a key; the caller's generator stays as it is."""
    devices = [where] if where.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(rng.derive(seed, *words))
        yield


@dataclass(frozen=True)
class Trial:
    """What a trial of seconds found: the faster precision, and seconds per picture in training and in a plain pass."""

    precision: Precision
    train: float
    evaluate: float


def trial(model: nn.Module, recipe: Recipe, size: tuple[int, int, int], where: torch.device) -> Trial:
    """Time a copy of the model on a small batch, in the precision asked for or in each that might be faster.

    bfloat16 is slow on CPUs without units for it; on a GPU that has it, it is taken without asking.
    """
    candidates: list[Precision] = [recipe.precision]
    if recipe.precision == "auto":
        candidates = ["float32", "bfloat16"] if where.type == "cpu" else ["float32"]
        if where.type == "cuda" and torch.cuda.is_bf16_supported():
            candidates = ["bfloat16"]
    with keyed(where, 0, "trial"):
        best = candidates[0] if len(candidates) < 2 else _faster(model, candidates, size, where)
        return _timed(model, best, size, where, TRIAL_BATCH if _small(model) else GLANCE, SECONDS)


def _faster(
    model: nn.Module, candidates: list[Precision], size: tuple[int, int, int], where: torch.device
) -> Precision:
    """Return the second precision if it stays the faster by a tenth each time it is asked, else the first.

    A glance on few pictures comes first, as the slower one may be ten times as slow; on few pictures alone the
    two can look alike where the second is twice as fast in training. The best time of each counts, because a
    busy machine holds up any one turn.
    """

    def turn(count: int) -> list[float]:
        return [_timed(model, precision, size, where, count).train for precision in candidates]

    first, second = turn(GLANCE)
    if second >= HOPELESS * first:
        return candidates[0]
    turns: list[list[float]] = []
    while len(turns) < TURNS:
        turns.append(turn(TRIAL_BATCH if _small(model) else TRIAL_BATCH // 2))
        first, second = map(min, zip(*turns, strict=True))
        if second >= 0.9 * first:
            return candidates[0]
    return candidates[1]


def _small(model: nn.Module) -> bool:
    return sum(weights.numel() for weights in model.parameters()) < SMALL


def _timed(
    model: nn.Module,
    precision: Precision,
    size: tuple[int, int, int],
    where: torch.device,
    count: int,
    seconds: float = 0.0,
) -> Trial:
    """Time training steps and plain passes on ``count`` pictures, each for at least so many seconds."""
    copied = copy.deepcopy(model).to(where).train()
    for module in copied.modules():
        if isinstance(module, EigenGuard):
            module.tried()
    images = torch.rand(count, *size, device=where).contiguous(memory_format=torch.channels_last)

    def train() -> None:
        with autocast(where, precision):
            loss = copied(images).float().square().mean()
        loss.backward()
        loss.item()  # waits for the device

    def evaluate() -> None:
        with torch.inference_mode(), autocast(where, precision):
            copied(images).sum().item()

    training = _repeated(train, seconds)
    copied.eval()
    return Trial(precision, training / count, _repeated(evaluate, seconds) / count)


def _repeated(call: Callable[[], None], seconds: float) -> float:
    """Return the median duration of a call; the first two set kernels up and do not count."""
    taken: list[float] = []
    while len(taken) < WARM + 2 or sum(taken[WARM:]) < seconds:
        begin = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken[WARM:])
