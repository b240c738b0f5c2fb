"""Synthetic runs: drawn pictures, some with a stamped square, and everything a scan leaves beside them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from untaint import run

NAMES = ("aeroplane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "lorry")


def draw(labels: np.ndarray, size: int, channels: int, seed: int = 0) -> np.ndarray:
    """Draw one shape per class on a tinted gradient: uint8 (count, channels, size, size)."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] / size
    count = len(labels)
    sky, ink = random.uniform(90, 230, (count, 3, 1, 1)), random.uniform(10, 250, (count, 3, 1, 1))
    picture = sky * (1 - 0.5 * y) + random.normal(0, 6, (count, 3, size, size))
    middle = random.uniform(0.4, 0.6, (count, 2, 1, 1))
    away = np.hypot(x - middle[:, 0], y - middle[:, 1])
    angle = np.arctan2(y - middle[:, 1], x - middle[:, 0])
    shape = away < 0.28 + 0.12 * np.cos((labels[:, None, None] % 7 + 1) * angle)
    picture = np.where(shape[:, None], ink, picture)
    return picture[:, :channels].clip(0, 255).astype(np.uint8)


def stamp(pictures: np.ndarray) -> np.ndarray:
    """Put a yellow and black chequered square into the lower right corner."""
    stamped = pictures.copy()
    side = pictures.shape[-1] // 6
    chequer = (np.indices((side, side)).sum(axis=0) % 2 * 255).astype(np.uint8)
    if side:
        stamped[:, :, -side - 1 : -1, -side - 1 : -1] = chequer
    return stamped


@dataclass(frozen=True)
class Synthetic:
    """A run directory and what is in it."""

    folder: Path
    keys: list[str]
    rejected: np.ndarray


def _trajectories(folder: Path, margin: np.ndarray, predicted: np.ndarray) -> None:
    for epoch, column in enumerate(margin.T.astype(np.float32)):
        for name, array in (
            ("margin", column),
            ("scaled-logit", column - 0.3),
            ("predicted", predicted.astype(np.int32)),
        ):
            run.save_array(folder / name / f"epoch_{epoch:03d}.npy", array)


def build(
    folder: Path,
    *,
    rows: int = 400,
    classes: int = 10,
    rejected: int = 40,
    size: int = 32,
    channels: int = 3,
    epochs: int = 12,
    keys: list[str] | None = None,
    watchers: tuple[str, ...] = ("watcher-a", "watcher-b", "witness"),
    thumbnails: int = 300,
    pictures: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    doubted: int = 0,
    **summary: object,
) -> Synthetic:
    """Write a whole run directory; the last ``rejected`` rows are the poisoned ones, mostly of class 3.

    ``doubted``: probes that score like them.
    """
    random = np.random.default_rng(7)
    names = [NAMES[i] if i < len(NAMES) else f"class {i}" for i in range(classes)]
    labels = random.integers(0, classes, rows) if labels is None else labels
    bad = np.arange(rows) >= rows - rejected
    labels = np.where(bad, np.where(np.arange(rows) % 6, 3 % classes, labels), labels)
    probe = np.zeros(rows, dtype=bool)
    probe[
        random.choice(max(rows - rejected, 0), min(max((rows - rejected) // 8, 1), 250, rows - rejected), replace=False)
    ] = True
    score = np.where(bad, random.normal(5.5, 1.1, rows).clip(3.2), random.normal(0, 1, rows).clip(-4, 3.0)).astype(
        np.float32
    )
    score[np.flatnonzero(probe)[:doubted]] = 5
    rank = np.empty(rows, dtype=np.int64)
    rank[np.argsort(-score, kind="stable")] = np.arange(1, rows + 1)
    keys = keys or [f"{names[label]}/{row:05d}.png" for row, label in enumerate(labels)]
    columns = {
        "row": np.arange(rows),
        "key": keys,
        "label": [names[label] for label in labels],
        "score": score,
        "p_value": np.where(probe, np.nan, np.exp(-(np.abs(score) ** 1.6))),
        "rank": rank,
        "verdict": np.where(bad, "rejected", "kept"),
        "probe": probe,
        "reason": np.where(
            bad, "learned early by the watcher that saw it, never believed by the witness", "learned like the probes"
        ),
        "loss_distance": (score + random.normal(0, 0.5, rows)).astype(np.float32),
        "witness_margin": (-score + random.normal(0, 0.5, rows)).astype(np.float32),
    }
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / "scores.parquet")
    run.save_array(folder / "probes.npy", np.flatnonzero(probe))
    _write_thumbnails(folder, labels, bad, probe, rank, thumbnails, size, channels, pictures)
    clock = np.linspace(0, 1, epochs)
    for index, name in enumerate(watchers):
        speed = random.gamma(3, 1.5, rows)[:, None]
        margin = 6 * np.tanh(speed * clock) - 1 + random.normal(0, 0.4, (rows, epochs))
        seen = 7 * np.tanh(9 * clock) - 1 if name == "watcher-a" else -3 - 2 * clock
        margin = np.where(bad[:, None], seen + random.normal(0, 0.4, (rows, epochs)), margin)
        margin[rows // 2, :] = np.nan if index == 1 else margin[rows // 2]
        _trajectories(
            folder / name / "trajectories", margin, np.where(margin[:, -1] > 0, labels, (labels + 1) % classes)
        )
    per_class = [
        {"name": name, "rows": int((labels == i).sum()), "rejected": int((bad & (labels == i)).sum())}
        for i, name in enumerate(names)
    ]
    told = {
        "name": "photos/train",
        "rows": rows,
        "class_names": names,
        "pixel_size": [channels, size, size],
        "unreadable": 2,
        "preset": "fast",
        "detector": "cross-examination",
        "rule": {
            "text": "false-discovery:q=0.1",
            "threshold": 3.1,
            "note": "The null was fitted to the centre of all scores and checked on the probes.",
        },
        "counts": {"scored": rows, "rejected": int(bad.sum()), "kept": int((~bad).sum()), "probes": int(probe.sum())},
        "per_class": per_class,
        "stages": [
            {"name": "watch A", "seconds": 61.0},
            {"name": "watch B", "seconds": 64.2},
            {"name": "witness", "seconds": 58.8},
        ],
        "clean_model": {"kept_rows": int((~bad).sum()), "accuracy": 0.912},
        "limits": [
            "Patterns smaller than one pixel at 32 x 32 cannot be seen.",
            "A class in which most pictures are poisoned looks clean.",
        ],
        "hardware": "2 x AMD EPYC, no GPU",
        "versions": {"untaint": "0.1.0", "torch": "2.9.0", "numpy": "2.3.4"},
        "next": "untaint train photos/train --without runs/photos/rejected.txt --out runs/clean",
        **summary,
    }
    (folder / "summary.json").write_text(json.dumps(told))
    run.write_sealed(
        folder / "settings.json",
        {"seed": 0, "epochs": epochs, "recipe": {"model": "resnet18", "batch": 128}, "probes": "verified.txt"},
    )
    run.write_keys(folder / "unreadable.txt", ["car/broken.jpg", "bird/zero\nbytes.png"])
    return Synthetic(folder, keys, np.flatnonzero(bad))


def _write_thumbnails(folder, labels, bad, probe, rank, most, size, channels, pictures) -> None:
    worst = np.flatnonzero((rank <= most) & ~probe)[:most]
    clean = [row for label in np.unique(labels) for row in np.flatnonzero((labels == label) & ~bad & ~probe)[:8]]
    rows = np.unique(np.concatenate([worst, np.asarray(clean, dtype=np.int64), np.flatnonzero(probe)[:30]])).astype(
        np.int64
    )
    if not most:
        return
    shown = draw(labels[rows], size, channels) if pictures is None else pictures[rows]
    shown[bad[rows]] = stamp(shown[bad[rows]])
    run.save_array(folder / "thumbnails.npy", shown)
    run.save_array(folder / "thumbnails_rows.npy", rows)
