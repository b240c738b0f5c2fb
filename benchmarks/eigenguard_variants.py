"""What was tried to make EigenGuard cost less, or defend more: schedules of k, soft damping, two layers, an ordinary model made from a guarded one.

    python benchmarks/eigenguard_variants.py PATH [--seed 0 ...] [--only NAME ...]

PATH: CIFAR-10. The first setting of experiments/eigenguard.toml (10,000 pictures, six attackers at once, the small network, k=50 before its pooling), so that lines
compare with those of that grid. Nothing was chosen by it before it was run. Writes clean accuracy and attack success to results/eigenguard-variants.json; what is there is
not measured again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import untaint as ut
from untaint import terminal
from untaint.bench.case import Case, prepare, read
from untaint.bench.grid import Source, read_grid
from untaint.bench.measures import behaviour
from untaint.concluding import versions
from untaint.examples import Examples
from untaint.models._spectrum import spectrum, tolerance
from untaint.models.build import build
from untaint.models.inserting import put_behind
from untaint.progress import Progress
from untaint.training.device import device, hardware, trial
from untaint.training.loop import fit, predict
from untaint.training.pixels import first_layer

K, BATCH = 50, 125
GRID = Path(__file__).parent.parent / "experiments" / "eigenguard.toml"


class Timed(ut.EigenGuard):
    """An EigenGuard whose ``k`` is another while training goes on; where it is 0, features pass as they are.

    ``when``: is given how much of training is done, 0 to 1, and returns k; ``steps``: of the whole training.
    """

    step: Tensor

    def __init__(self, when: Callable[[float], int], steps: int) -> None:
        super().__init__(max(when(part / 100) for part in range(101)))
        self.when, self.steps = when, steps
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def now(self) -> int:
        """Return k at this step."""
        return self.when(min(1.0, int(self.step) / self.steps))

    def forward(self, features: Tensor) -> Tensor:
        guarded = super().forward(features) if self.now() else features
        if self.training:
            self.step += 1
        return guarded

    def _most(self, rows: int, columns: int) -> int:
        return min(self.now(), rows, columns)

    def _fixed(self, table: Tensor) -> Tensor:
        whole = self.lengths
        self.lengths = torch.where(torch.arange(self.k, device=whole.device) < self.now(), whole, 0)
        guarded = super()._fixed(table)
        self.lengths = whole
        return guarded


class Soft(nn.Module):
    """The ``k`` largest singular values become the k-th, and each of the others is multiplied by a power of its share of it: no hard edge.

    In eval mode a fixed map, as EigenGuard's, of as many directions as a batch has.
    """

    basis: Tensor
    lengths: Tensor

    def __init__(self, power: float) -> None:
        super().__init__()
        self.power = power
        self.memory = ut.EigenGuard(BATCH - 1)

    def gains(self, lengths: Tensor) -> Tensor:
        """Return by what singular values, the largest first, are multiplied."""
        value = lengths[min(K, len(lengths)) - 1]
        share = value / lengths.clamp(min=torch.finfo(lengths.dtype).tiny)
        return torch.where(share < 1, share, share.reciprocal() ** self.power)

    def forward(self, features: Tensor) -> Tensor:
        table = features.float().flatten(1)
        if self.training:
            with torch.no_grad():
                values, vectors = spectrum(table @ table.T)
                there = values > tolerance(values, table.shape[1])
                lengths = torch.where(there, values, 0).sqrt()
                gain = torch.where(there, self.gains(lengths), 0)
                kept = min(self.memory.k, len(table))
                self.memory._remember(vectors.T[:kept] @ table / len(table) ** 0.5)
            guarded = vectors @ (gain[:, None] * (vectors.T @ table))
        else:
            basis, lengths = self.memory.basis, self.memory.lengths
            gain = torch.where(lengths > 0, self.gains(lengths), 0)
            guarded = (table @ basis.T * gain) @ basis
        return guarded.reshape(features.shape)


class Grouped(nn.Module):
    """The channels in groups, each with an EigenGuard of its own."""

    def __init__(self, k: int, groups: int = 4) -> None:
        super().__init__()
        self.guards = nn.ModuleList(ut.EigenGuard(k) for _ in range(groups))

    def forward(self, features: Tensor) -> Tensor:
        parts = features.chunk(len(self.guards), dim=1)
        return torch.cat([guard(part) for guard, part in zip(self.guards, parts, strict=True)], dim=1)


def layers(steps: int) -> dict[str, list[tuple[str, nn.Module]]]:
    """Return what is put where, by the name of the line."""
    pool, fourth = "before-pool", "1.body.3"
    return {
        "first half of training only": [(pool, ut.EigenGuard(K, steps=steps // 2))],
        "second half of training only": [(pool, Timed(lambda done: K if done >= 0.5 else 0, steps))],
        "k from 10 up to 100": [(pool, Timed(lambda done: round(10 * 10**done), steps))],
        "k from 100 down to 25": [(pool, Timed(lambda done: round(100 * 0.25**done), steps))],
        "soft: others times their share": [(pool, Soft(1))],
        "soft: times its square": [(pool, Soft(2))],
        "two layers": [(fourth, ut.EigenGuard(100)), (pool, ut.EigenGuard(K))],
        "four groups of channels, k = 50 in each": [(pool, Grouped(K))],
        "four groups of channels, k = 12 in each": [(pool, Grouped(12))],
        "remainder 0.03": [(pool, ut.EigenGuard(K, remainder=0.03))],
        "remainder 0.3": [(pool, ut.EigenGuard(K, remainder=0.3))],
        "k = 25, remainder 0.1": [(pool, ut.EigenGuard(25, remainder=0.1))],
        "k = 25, remainder 0.3": [(pool, ut.EigenGuard(25, remainder=0.3))],
        "first quarter of training only": [(pool, ut.EigenGuard(K, steps=steps // 4))],
        "first three quarters of training only": [(pool, ut.EigenGuard(K, steps=3 * steps // 4))],
        "first half, remainder 0.1": [(pool, ut.EigenGuard(K, steps=steps // 2, remainder=0.1))],
        "first eighth of training only": [(pool, ut.EigenGuard(K, steps=steps // 8))],
        "first quarter, k = 25": [(pool, ut.EigenGuard(25, steps=steps // 4))],
        "first quarter, k = 10": [(pool, ut.EigenGuard(10, steps=steps // 4))],
        "first half, k = 10": [(pool, ut.EigenGuard(10, steps=steps // 2))],
        "first half, k = 25": [(pool, ut.EigenGuard(25, steps=steps // 2))],
        "first half, k = 25, remainder 0.1": [(pool, ut.EigenGuard(25, steps=steps // 2, remainder=0.1))],
    }


class Trial:
    """One draw of the setting, and the models that are trained on it."""

    def __init__(self, case: Case, out: Path, progress: Progress) -> None:
        self.case, self.out, self.progress, self.where = case, out, progress, device()
        recipe = case.setting.recipes().retrain
        plain = build(recipe.model, len(case.examples.class_names), tuple(case.examples.images.shape[1:]))
        self.recipe = replace(
            recipe,
            precision=trial(plain, recipe, tuple(case.examples.images.shape[1:]), self.where).precision,
        )
        self.steps = recipe.epochs * -(-len(case.examples) // recipe.batch)

    def train(self, name: str, examples: Examples, put: list[tuple[str, nn.Module]]) -> nn.Module:
        """Return a network with these layers in it, trained on these pictures."""

        def made() -> nn.Module:
            size = tuple(examples.images.shape[1:])
            first = first_layer(examples, whitened=self.recipe.pixels == "whitened")
            model = build(self.recipe.model, len(examples.class_names), size, seed=self.case.setting.seed, **first)
            for at, layer in put:
                put_behind(model, at, layer)
            return model

        folder = self.out / f"{name}, seed {self.case.setting.seed}"
        return fit(
            examples, self.recipe, folder, seed=self.case.setting.seed, model=made, progress=self.progress, what=name
        )

    def measure(self, model: nn.Module) -> dict[str, Any]:
        """Return clean accuracy, and the success of each attacker."""
        found = behaviour(self.case, model, self.where)
        return {
            "clean accuracy": found["clean accuracy"],
            "attack success": {name: facts["asr"] for name, facts in found["attacks"].items()},
        }

    def lines(self, names: list[str]) -> dict[str, Callable[[], nn.Module]]:
        """Return how each line's model is made."""
        every: dict[str, Callable[[], nn.Module]] = {
            name: lambda name=name, put=put: self.train(name, self.case.examples, put)  # type: ignore[misc]
            for name, put in layers(self.steps).items()
        }
        for name, guard in (("k = 50", {}), ("first quarter of training only", {"steps": self.steps // 4})):
            every[f"{name}, then repair"] = lambda name=name, guard=guard: self.repaired(
                name, ut.EigenGuard(K, **guard)
            )  # type: ignore[misc]
        every["an ordinary model, taught what a guarded one answers"] = self.taught
        every["an ordinary model, of pictures whose label a guarded one gives"] = self.agreed
        return {name: make for name, make in every.items() if not names or name in names}

    def repaired(self, name: str, guard: ut.EigenGuard) -> nn.Module:
        """A guarded model, from which what it learned of triggers all the same is taken out."""
        guarded = self.train(name, self.case.examples, [("before-pool", guard)])
        return ut.repair(guarded, self.case.examples, seed=self.case.setting.seed, progress=self.progress).model

    def guarded_answers(self) -> NDArray[np.int64]:
        """Return what a guarded model takes each training picture for."""
        guarded = self.train("k = 50", self.case.examples, [("before-pool", ut.EigenGuard(K))])
        answers: NDArray[np.int64] = predict(guarded, self.case.examples, self.where).argmax(1)
        return answers

    def taught(self) -> nn.Module:
        """Distillation: the guarded model's answers are the labels."""
        examples = self.case.examples
        labels = examples.labels.copy()
        labels[examples.rows] = self.guarded_answers()
        return self.train("taught", replace(examples, labels=labels), [])

    def agreed(self) -> nn.Module:
        """The guarded model as a filter: what it does not learn is left out."""
        examples = self.case.examples
        kept = examples.rows[self.guarded_answers() == examples.labels[examples.rows]]
        poisoned = self.case.ledger.poisoned()
        self.progress.say(
            f"kept: {len(kept):,} of {len(examples):,}; poisoned {np.isin(poisoned, kept).sum():,} of {len(poisoned):,}"
        )
        return self.train("agreed", examples.take(kept), [])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", default=[], help="names of lines")
    parser.add_argument("--out", type=Path, default=Path("runs/eigenguard-variants"))
    parser.add_argument("--result", type=Path, default=Path("results/eigenguard-variants.json"))
    given = parser.parse_args()
    bars = terminal.progress(False)
    setting, _ = read_grid(GRID, {"cifar10": given.data}).cells[0]
    pictures = read(Source(place=given.data), bars)
    found: dict[str, Any] = json.loads(given.result.read_text()) if given.result.exists() else {"lines": {}}
    found |= {"setting": setting.title(), "hardware": hardware(device()), "versions": versions()}
    for seed in given.seed:
        own = Trial(prepare(replace(setting, seed=seed), *pictures, bars), given.out, bars)
        for name, make in own.lines(given.only).items():
            of_name = found["lines"].setdefault(name, {})
            if str(seed) in of_name:
                continue
            of_name[str(seed)] = own.measure(make())
            print(f"{name}, seed {seed}: {of_name[str(seed)]}", flush=True)
            given.result.parent.mkdir(parents=True, exist_ok=True)
            given.result.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
