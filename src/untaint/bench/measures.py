"""How well poison was told from the rest, and what the models do afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from untaint.attacks import Attack
from untaint.attacks._labels import OF_ONE_TARGET
from untaint.bench.case import Case
from untaint.errors import InputError
from untaint.examples import Examples
from untaint.findings import doubtful_probes
from untaint.poisoning import stronger, triggered
from untaint.scores import Scores, Verdict
from untaint.training.loop import predict
from untaint.trajectories import Trajectories

__all__ = [
    "CURVE",
    "FALSE_POSITIVES",
    "bands",
    "behaviour",
    "compared",
    "detection",
    "histogram",
    "removal",
    "vouching",
]

FALSE_POSITIVES = (0.001, 0.01, 0.05)
BINS = 60
CURVE = np.round(np.logspace(-4, 0, 41), 6)  # false positive rates at which the curves for plots are read off


def detection(case: Case, scores: Scores) -> dict[str, Any]:
    """Return AUROC, AUPRC and true positive rates per attack and over all: poison against clean rows only.

    Raises InputError if a measure is not finite, or if there is nothing to compare with.
    """
    values = np.nan_to_num(scores.values.astype(np.float64), nan=-np.inf)
    clean = np.sort(values[case.clean()])
    if not len(clean):
        raise InputError("no row is clean, so that nothing can be compared with poison.")
    found = {"all": compared(values[case.ledger.poisoned()], clean)}
    for number, name in enumerate(case.names):
        found[name] = compared(values[case.of(number)], clean)
    if case.noisy.any():
        found["label noise"] = compared(values[case.noisy], clean)
    return found


def compared(poison: NDArray[np.float64], clean: NDArray[np.float64]) -> dict[str, Any]:
    """Return the measures of some rows against the (ascending) scores of clean ones."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    if not len(poison):
        return {"rows": 0}
    truth = np.r_[np.zeros(len(clean)), np.ones(len(poison))]
    ranks = np.unique(np.r_[clean, poison], return_inverse=True)[1]  # finite, in the same order
    rates = {f"{rate:g}": _true_positives(poison, clean, rate) for rate in FALSE_POSITIVES}
    return {
        "rows": len(poison),
        "auroc": round(float(roc_auc_score(truth, ranks)), 5),
        "auprc": round(float(average_precision_score(truth, ranks)), 5),
        "tpr_at_fpr": rates,
        "curve": [_true_positives(poison, clean, float(rate)) for rate in CURVE],
    }


def _true_positives(poison: NDArray[np.float64], clean: NDArray[np.float64], rate: float) -> float:
    """Return the share of poison above the score that at most a share ``rate`` of clean rows exceed."""
    allowed = int(np.floor(rate * len(clean) + 1e-9))
    limit = -np.inf if allowed >= len(clean) else clean[len(clean) - 1 - allowed]
    return round(float((poison > limit).mean() if allowed < len(clean) else 1.0), 5)


def removal(case: Case, verdict: Verdict) -> dict[str, Any]:
    """Return who was set aside: of each attack, of the clean, the confused and the covers, and of each class."""
    rejected, ledger = verdict.rejected, case.ledger
    aside, poison = int(rejected.sum()), int(rejected[ledger.poisoned()].sum())
    clean = np.intersect1d(case.clean(), np.flatnonzero(rejected))
    counted = {
        "rows": case.examples.rows,
        "poisoned": ledger.poisoned(),
        "set aside": np.flatnonzero(rejected),
        "clean set aside": clean,
    }
    names, labels = case.examples.class_names, case.examples.labels
    by_class = {what: np.bincount(labels[rows], minlength=len(names)).tolist() for what, rows in counted.items()}
    return {
        "rule": verdict.rule,
        "rejected": aside,
        "share": round(aside / len(case.examples), 5),
        "poisoned": poison,
        "clean": len(clean),
        "label noise": int(rejected[case.noisy].sum()),
        "covers": int(rejected[ledger.covers()].sum()),
        "precision": round(poison / aside, 5) if aside else None,
        "recall": round(poison / len(ledger.poisoned()), 5) if len(ledger.poisoned()) else None,
        "per attack": {name: int(rejected[case.of(number)].sum()) for number, name in enumerate(case.names)},
        "classes": {name: {what: by_class[what][label] for what in counted} for label, name in enumerate(names)},
    }


def vouching(case: Case, scores: Scores, verdict: Verdict) -> dict[str, Any]:
    """Return how many probes are poisoned, of each attack too, and how many of these and of the clean ones are named as doubtful."""
    poisoned = np.isin(case.probes, case.ledger.poisoned())
    named = np.isin(case.probes, doubtful_probes(scores, verdict, case.probes))
    return {
        "poisoned": int(poisoned.sum()),
        "per attack": {
            name: int(np.isin(case.probes, case.ledger.poisoned(number)).sum())
            for number, name in enumerate(case.names)
        },
        "poisoned named": int((poisoned & named).sum()),
        "clean": int((~poisoned).sum()),
        "clean named": int((~poisoned & named).sum()),
    }


def _kinds(case: Case) -> dict[str, NDArray[np.int64]]:
    """Return the rows of each kind of which plots show a curve."""
    kinds = {"clean": case.clean(), "probes": case.probes}
    kinds |= {name: case.of(number) for number, name in enumerate(case.names)}
    if case.noisy.any():
        kinds["label noise"] = np.flatnonzero(case.noisy)
    return {name: rows for name, rows in kinds.items() if len(rows)}


def histogram(case: Case, scores: Scores) -> dict[str, Any]:
    """Return how many rows of each kind have which score: ``edges`` of the bins, and counts per kind.

    The bins reach from the lowest to the highest score but for a thousandth at either end, which the outer bins hold.
    """
    finite = scores.values[np.isfinite(scores.values)].astype(np.float64)
    low, high = np.quantile(finite, (0.001, 0.999)) if len(finite) else (0.0, 1.0)
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    found: dict[str, Any] = {"edges": [float(f"{edge:.5g}") for edge in edges]}
    for name, rows in _kinds(case).items():
        values = scores.values[rows]
        found[name] = np.histogram(values[np.isfinite(values)].clip(edges[0], edges[-1]), edges)[0].tolist()
    return found


def bands(case: Case, trajectories: Trajectories) -> dict[str, Any]:
    """Return the quartiles of the cross-entropy of each kind of rows, epoch by epoch: per kind (3, epochs)."""
    found = {}
    for name, rows in _kinds(case).items():
        quartiles = np.nanquantile(trajectories.block("ce", rows), (0.25, 0.5, 0.75), axis=0)
        found[name] = [[float(f"{value:.4g}") for value in line] for line in quartiles]
    return found


def behaviour(case: Case, model: nn.Module, where: torch.device) -> dict[str, Any]:
    """Return clean accuracy, and for each attack its success rate, also with the trigger twice as strong.

    The success rate (ASR) is over test pictures outside the target class; ``untriggered``: how many of these
    the model takes for the target without the trigger. Of a control there is ``stamped accuracy`` in its place: how many stamped pictures it takes for what they are.
    """
    plain = _answers(model, case.test, where)
    guessed = np.full(case.test.total, -1)
    guessed[case.test.rows] = plain
    found: dict[str, Any] = {"clean accuracy": _share(plain == case.test.labels[case.test.rows]), "attacks": {}}
    for name, attack in zip(case.names, case.attacks, strict=True):
        shown = triggered(case.test, attack)
        wanted = shown.labels[shown.rows]
        twice = stronger(case.test, shown)
        rate = _share(attack.succeeded(_answers(model, shown, where), wanted))
        if attack.harmless:
            found["attacks"][name] = {"stamped accuracy": rate}
            continue
        same = np.array_equal(twice.images, shown.images)  # a trigger that paints over
        found["attacks"][name] = {
            "target": _target(attack, case.test.class_names),
            "asr": rate,
            "asr stronger": rate if same else _share(attack.succeeded(_answers(model, twice, where), wanted)),
            "untriggered": _share(attack.succeeded(guessed[shown.rows], wanted)),
        }
    return found


def _target(attack: Attack, class_names: Sequence[str]) -> str:
    """Return the class that an attack wants, or its rule where it wants several."""
    return class_names[attack.target_in(class_names)] if attack.labels in OF_ONE_TARGET else attack.labels


def _answers(model: nn.Module, examples: Examples, where: torch.device) -> NDArray[np.int64]:
    logits = predict(model, examples, where)
    if not np.isfinite(logits).all():
        raise InputError("the model answers with what is no number, so that it cannot be judged.")
    answers: NDArray[np.int64] = logits.argmax(1)
    return answers


def _share(hits: NDArray[np.bool_]) -> float:
    return round(float(hits.mean()), 5)
