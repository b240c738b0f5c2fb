"""Training without labels: what CTRL does to SimCLR, and what EigenGuard does about it.

    python benchmarks/self_supervised.py PATH [--rows 10000] [--epochs 100] [--model proxy]

Poisons a part of one class (attack ctrl), trains an encoder by SimCLR (Chen, Kornblith, Norouzi and Hinton, 2020) on the pictures without labels, with
EigenGuard before the pooling and without, and for comparison on the same pictures without poison. A linear probe then learns the labels of clean training pictures from the encoder's
features. Writes clean accuracy and attack success to results/self-supervised.json; one seed. Models that are there are not trained again (--out).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

import untaint as ut
from untaint import rng, terminal
from untaint.concluding import versions
from untaint.examples import Examples
from untaint.models.build import build, features_of, head_of
from untaint.progress import Progress
from untaint.training.checkpoint import save_model
from untaint.training.device import device, hardware
from untaint.training.pixels import PixelStore, augmented, draws

BATCH, TEMPERATURE, WIDTH = 250, 0.5, 128
RATE, DECAY = 0.3, 1e-4
LUMA = (0.299, 0.587, 0.114)
NETWORKS = {"plain": "", "EigenGuard": "+eigenguard:k=50"}


def coloured(images: Tensor, generator: torch.Generator) -> Tensor:
    """Four in five pictures with another brightness, contrast, saturation and hue, and one in five grey."""
    count = len(images)

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator).to(images.device)

    weights = torch.tensor(LUMA, device=images.device).view(1, 3, 1, 1)
    changed = (images * draw(0.6, 1.4)).clamp(0, 1)
    middle = (changed * weights).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    changed = (middle + (changed - middle) * draw(0.6, 1.4)).clamp(0, 1)
    grey = (changed * weights).sum(1, keepdim=True)
    colour = changed - grey
    angle = draw(-0.1, 0.1) * 2 * torch.pi
    along = torch.ones(1, 3, 1, 1, device=images.device) / 3**0.5  # hue turns colours around the axis of greys
    crossed = torch.linalg.cross(along.expand_as(colour), colour, dim=1)
    turned = colour * angle.cos() + crossed * angle.sin()
    changed = (grey + turned * draw(0.6, 1.4)).clamp(0, 1)
    jittered = torch.where(draw(0, 1) < 0.8, changed, images)
    return torch.where(draw(0, 1) < 0.2, (jittered * weights).sum(1, keepdim=True).expand_as(images), jittered)


def contrast(one: Tensor, two: Tensor) -> Tensor:
    """NT-Xent: of all other views in the batch, how surely each view knows the one that is of its own picture."""
    both = nn.functional.normalize(torch.cat([one, two]), dim=1)
    alike = both @ both.T / TEMPERATURE
    alike.fill_diagonal_(-torch.inf)
    partner = torch.arange(len(both), device=both.device).roll(len(one))
    return nn.functional.cross_entropy(alike, partner)


def simclr(examples: Examples, name: str, epochs: int, progress: Progress, what: str) -> nn.Module:
    """Return an encoder trained without labels; its last layer is a projection that nobody needs afterwards."""
    where, size = device(), tuple(examples.images.shape[1:])
    model = build(name, WIDTH, size, seed=0)  # type: ignore[arg-type]
    head = head_of(model)
    assert head is not None
    project = nn.Sequential(nn.ReLU(), nn.Linear(WIDTH, WIDTH))
    model, project = model.to(where, memory_format=torch.channels_last).train(), project.to(where)
    store, generator = PixelStore(examples, where), torch.Generator().manual_seed(0)
    parameters = [*model.parameters(), *project.parameters()]
    optimizer = torch.optim.SGD(parameters, RATE, momentum=0.9, weight_decay=DECAY)
    steps = epochs * (len(examples) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    with progress.step(what, epochs * len(examples), unit="images") as step:
        for epoch in range(epochs):
            views = [draws("resized-crop", seed, epoch, examples.total) for seed in (0, 1)]
            order = rng.order(0, "simclr/order", epoch, examples.rows)
            for start in range(0, len(order) - BATCH + 1, BATCH):
                rows = order[start : start + BATCH]
                images, _ = store.gather(rows)
                seen = [
                    coloured(augmented(images, "resized-crop", own[rows]), generator)
                    for own in views
                    if own is not None
                ]
                loss = contrast(*project(model(torch.cat(seen))).chunk(2))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                step.advance(len(rows))
    return model.eval()


def encoded(model: nn.Module, examples: Examples) -> np.ndarray:
    """Return the features before the projection: (rows, width)."""
    found, store = [], PixelStore(examples, next(model.parameters()).device)
    with torch.inference_mode(), features_of(model) as latest:
        for rows in (examples.rows[start : start + BATCH] for start in range(0, len(examples), BATCH)):
            model(store.gather(rows)[0])
            found.append(latest[0].float().cpu().numpy())
    return np.concatenate(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--model", default="proxy")
    parser.add_argument("--class-rate", type=float, default=0.1)
    parser.add_argument("--out", type=Path, default=Path("runs/self-supervised"))
    given = parser.parse_args()
    bars = terminal.progress(False)
    whole, test = ut.load(given.data, progress=bars), ut.load(given.data, split="test", progress=bars)
    clean = whole.take(rng.choose(0, "bench/rows", whole.rows, given.rows))
    attack = ut.ATTACKS.build(f"ctrl:target=0,class-rate={given.class_rate}")
    dirty, ledger = ut.poison(clean, [attack], seed=0)
    shown = ut.triggered(test, attack)
    given.out.mkdir(parents=True, exist_ok=True)
    found = {}
    for poisoned, examples in (("poisoned", dirty), ("clean", clean)):
        for called, added in NETWORKS.items():
            folder, name = given.out / f"{poisoned}-{called}", f"{given.model}{added}"
            begun = time.monotonic()
            if not (folder / "model.json").exists():
                folder.mkdir(exist_ok=True)
                outputs = [str(number) for number in range(WIDTH)]
                card = {"model": name, "class_names": outputs, "size": list(clean.images.shape[1:])}
                save_model(folder, simclr(examples, name, given.epochs, bars, f"{called}, {poisoned}"), card)
            model = ut.load_model(folder)
            probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
            probe.fit(encoded(model, clean), clean.labels[clean.rows])
            found[f"{called}, {poisoned}"] = {
                "clean accuracy": round(float(probe.score(encoded(model, test), test.labels[test.rows])), 4),
                "attack success": round(
                    float((probe.predict(encoded(model, shown)) == shown.labels[shown.rows]).mean()), 4
                ),
                "seconds": round(time.monotonic() - begun),
            }
            print(f"{called}, {poisoned}: {found[f'{called}, {poisoned}']}", flush=True)
    facts = {
        "rows": len(clean),
        "poisoned": len(ledger.poisoned()),
        "attack": ledger.attacks[0],
        "epochs": given.epochs,
        "model": given.model,
        "found": found,
        "hardware": hardware(device()),
        "versions": versions(),
    }
    path = Path("results") / "self-supervised.json"
    path.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
