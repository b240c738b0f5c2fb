"""Detectors written out as loops over classes, rows and pictures, as their papers say them: what benchmarks/detectors.py holds ours against."""

from __future__ import annotations

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from torch import nn

from untaint import rng
from untaint.defenses import Task, spectre
from untaint.defenses.cognitive_distillation import BETAS, SIDE, CognitiveDistillation
from untaint.defenses.strip import Strip, _drawn


def spectre_scores(
    features: NDArray[np.float32], labels: NDArray[np.int64], left_out: float, alpha: float
) -> NDArray[np.float64]:
    """SPECTRE as it is written: class by class, direction count by direction count, row by row."""
    values = np.zeros(len(labels))
    for label in np.unique(labels).tolist():
        points = features[labels == label].astype(float)
        points -= points.mean(axis=0)
        directions = np.linalg.svd(points, full_matrices=False)[2]
        most = 0.0
        for count in spectre.DIRECTIONS:
            if len(points) < spectre.ROWS * count:
                break
            found = _robust(points @ directions[:count].T, left_out, alpha)
            usual = np.random.default_rng(0).normal(size=(len(points), count))
            larger = found.mean() / _robust(usual, left_out, alpha).mean()
            if larger > most:
                most, values[labels == label] = larger, found
    return values


def _robust(points: NDArray[np.float64], left_out: float, alpha: float) -> NDArray[np.float64]:
    """Leave out those furthest out, a part at a time, and score all by the rest."""
    kept = list(range(len(points)))
    for each in range(1, spectre.ROUNDS + 1):
        scores = _que(points[kept], points[kept], alpha)
        order = np.argsort(scores, kind="stable")
        kept = [kept[place] for place in order[: len(points) - round(left_out * len(points) * each / spectre.ROUNDS)]]
    return _que(points, points[kept], alpha)


def _que(points: NDArray[np.float64], by: NDArray[np.float64], alpha: float) -> NDArray[np.float64]:
    """Return x' Q x / tr Q of each whitened row, Q = exp(alpha (C - I) / (|C| - 1))."""
    root = np.linalg.inv(scipy.linalg.sqrtm(np.cov(by.T, bias=True)).real)
    white = np.array([root @ (row - by.mean(axis=0)) for row in points])
    moments = white.T @ white / len(white)
    beyond = np.linalg.norm(moments, 2) - 1
    weights = (
        scipy.linalg.expm(alpha * (moments - np.eye(len(moments))) / beyond) if beyond > 1e-9 else np.eye(len(moments))
    )
    total = np.trace(weights)
    return np.array([row @ weights @ row / total for row in white])


def contamination_ratios(features: NDArray[np.float32], labels: NDArray[np.int64]) -> list[float]:
    """SCAn as it is written: rows about the mean of their group whitened, then each class parted by a loop over its rows; the ratios of likelihoods."""
    groups = labels.copy()
    for turn in range(2):
        about = features.astype(float)
        for group in np.unique(groups):
            about[groups == group] -= about[groups == group].mean(axis=0)
        strengths, directions = np.linalg.eigh(np.cov(about.T, bias=True))
        root = directions / np.sqrt(np.maximum(strengths, 1e-9 * strengths[-1]))
        points = np.array([row @ root for row in features.astype(float)])
        ratios = []
        for label in np.unique(labels).tolist():
            own = points[labels == label]
            side = _two_groups(own, turn)
            groups[labels == label] = 2 * label + side
            likely = [
                sum(((row - part.mean(axis=0)) ** 2).sum() for row in part) for part in (own, own[side], own[~side])
            ]
            ratios.append(likely[0] - likely[1] - likely[2])
    return ratios


def _two_groups(points: NDArray[np.float64], seed: int) -> NDArray[np.bool_]:
    """Return who is in the second of two groups, each row in that with the nearer mean."""
    middles = points[np.random.default_rng(seed).choice(len(points), 2, replace=False)]
    before, side = np.zeros(len(points), bool), np.ones(len(points), bool)
    while not np.array_equal(before, side):
        before = side
        side = np.array([((row - middles[1]) ** 2).sum() < ((row - middles[0]) ** 2).sum() for row in points])
        middles = np.stack([points[~side].mean(axis=0), points[side].mean(axis=0)])
    return side


def strip_entropies(here: Task, model: nn.Module, pixels: torch.Tensor, options: Strip) -> list[float]:
    """One picture with one other over it at a time."""
    found = []
    with torch.inference_mode():
        for row, over in zip(here.examples.rows, _drawn(here, here.examples.rows, options.overlays), strict=True):
            total = 0.0
            for probe in over:
                likely = model((pixels[row] + options.alpha * pixels[probe])[None].float()).softmax(1)
                total += float(torch.special.entr(likely).sum())
            found.append(total / len(over))
    return found


def distilled(here: Task, model: nn.Module, pixels: torch.Tensor, options: CognitiveDistillation) -> list[float]:
    """One picture's mask at a time."""
    found = []
    for row in here.examples.rows:
        picture = pixels[row][None].float()
        channels = picture.shape[1]
        lots = rng.uniform(here.seed, "defenses/cognitive-distillation", 0, np.array([row]), options.steps * channels)
        colours = torch.from_numpy(lots.astype(np.float32).reshape(options.steps, 1, channels, 1, 1))
        logits = model(picture)
        weights = torch.ones_like(picture[:, :1]).requires_grad_()
        optimizer = torch.optim.Adam([weights], lr=options.learning_rate, betas=BETAS)
        for colour in colours:
            optimizer.zero_grad()
            mask = (weights.tanh() + 1) / 2
            rough = (mask.diff(dim=2) ** 2).sum() + (mask.diff(dim=3) ** 2).sum()
            loss = (model(picture * mask + (1 - mask) * colour) - logits).abs().mean()
            loss = loss + options.gamma * SIDE**2 * mask.mean() + options.beta * rough / mask.numel()
            loss.backward()
            optimizer.step()
        found.append(float(((weights.detach().tanh() + 1) / 2).mean()))
    return found
