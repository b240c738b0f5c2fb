"""A setting made real: pictures drawn, probes vouched for, labels confused, poison in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from untaint import rng, samples, spec
from untaint.attacks import ATTACKS, Attack
from untaint.bench.grid import Setting, Source
from untaint.errors import InputError
from untaint.examples import Examples
from untaint.poisoning import Ledger, attack_names, plan, poison
from untaint.progress import Progress
from untaint.sources import load

__all__ = ["Case", "outline", "prepare", "read"]

SAMPLE = "sample"  # the name of the packaged pictures


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """What a defence is tried on, and the truth about it.

    ``examples``: the training set with poison. ``noisy``: bool mask of rows whose label was confused;
    they are neither poison nor clean. ``names``: a short name per attack.
    """

    setting: Setting
    examples: Examples
    test: Examples
    probes: NDArray[np.int64]
    noisy: NDArray[np.bool_]
    attacks: tuple[Attack, ...]
    ledger: Ledger

    @property
    def names(self) -> list[str]:
        """A short name per attack: ``patch``, ``blend``, ``blend-2``."""
        return attack_names(self.attacks)

    def of(self, number: int) -> NDArray[np.int64]:
        """Return the rows that an attack poisoned; of a control, which poisons none, those that it stamped."""
        return self.ledger.covers(number) if self.attacks[number].harmless else self.ledger.poisoned(number)

    def clean(self) -> NDArray[np.int64]:
        """Return the rows that count as clean: no poison, no covers, no confused labels, no probes."""
        rows = self.ledger.clean()
        return np.setdiff1d(rows[~self.noisy[rows]], self.probes)


def read(source: Source, progress: Progress) -> tuple[Examples, Examples]:
    """Return the training and the test pictures of a source."""
    place: Any = samples.path() if source.place == SAMPLE else source.place
    train = load(place, size=source.size, progress=progress)
    return train, load(place, split="test", size=train.images.shape[-1], progress=progress)


def outline(setting: Setting, train: Examples) -> tuple[Examples, NDArray[np.int64], NDArray[np.bool_], list[Attack]]:
    """Return the rows drawn as examples without pictures, the probes, who is confused, and the attacks with targets.

    Raises InputError for what cannot be: more rows than there are, a target that is no class, more
    poison than pictures.
    """
    rows = _drawn(setting, train)
    blank = np.broadcast_to(np.uint8(0), (len(rows), *train.images.shape[1:]))
    keys = [train.keys[row] for row in rows]
    drawn = Examples.of(blank, train.labels[rows], class_names=train.class_names, keys=keys, source=train.source)
    if setting.probes > len(drawn):
        raise InputError(f"probes is {setting.probes}, but there are only {len(drawn)} pictures. Give fewer.")
    probes = rng.choose(setting.seed, "bench/probes", drawn.rows, setting.probes)
    others = np.setdiff1d(drawn.rows, probes)
    noisy = np.zeros(drawn.total, dtype=bool)
    noisy[rng.choose(setting.seed, "bench/noise", others, round(setting.label_noise * len(others)))] = True
    attacks = aimed(setting.attackers, drawn, setting.seed)
    poisoned = len(plan(drawn, attacks, seed=setting.seed, spare=_spared(probes, noisy)).poisoned())
    if _bad(setting) > poisoned:
        raise InputError(
            f"bad_probes={setting.bad_probes} asks for {_bad(setting)} poisoned probes, but only {poisoned} pictures are poisoned. Lower it."
        )
    return drawn, probes, noisy, attacks


def _bad(setting: Setting) -> int:
    """Return how many probes are to be poisoned."""
    return round(setting.bad_probes * setting.probes)


def prepare(setting: Setting, train: Examples, test: Examples, progress: Progress) -> Case:
    """Return the case: pictures stamped, labels confused, and of the probes as many poisoned as the setting says."""
    blank, probes, noisy, attacks = outline(setting, train)
    rows = _drawn(setting, train)
    drawn = replace(blank, images=train.images if len(rows) == train.total else np.array(train.images[rows]))
    ready = [attack.ready(drawn, seed=setting.seed, progress=progress) for attack in attacks]
    dirty, ledger = poison(
        drawn, ready, seed=setting.seed, spare=_spared(probes, noisy), overlap=setting.overlap, progress=progress
    )
    labels = dirty.labels.copy()
    rows, classes = np.flatnonzero(noisy), len(drawn.class_names)
    steps = 1 + (rng.uniform(setting.seed, "bench/confused", 0, rows)[:, 0] * (classes - 1)).astype(np.int64)
    labels[rows] = (labels[rows] + steps) % classes
    if bad := _bad(setting):
        poisoned = rng.choose(setting.seed, "bench/bad-probes", ledger.poisoned(), bad)
        probes = np.sort(np.concatenate([rng.choose(setting.seed, "bench/good", probes, len(probes) - bad), poisoned]))
    return Case(
        setting=setting,
        examples=replace(dirty, labels=labels),
        test=test,
        probes=probes,
        noisy=noisy,
        attacks=tuple(ready),
        ledger=ledger,
    )


def _spared(probes: NDArray[np.int64], noisy: NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.union1d(probes, np.flatnonzero(noisy))


def _drawn(setting: Setting, train: Examples) -> NDArray[np.int64]:
    """Return as many rows as the setting says, drawn by its seed, ascending."""
    rows = train.rows
    if setting.long_tail > 1:
        rows = _tailed(setting, train)
    if setting.rows is not None:
        if setting.rows > len(rows):
            raise InputError(f"rows is {setting.rows:,}, but '{setting.data}' has {len(rows):,} pictures. Give fewer.")
        rows = rng.choose(setting.seed, "bench/rows", rows, setting.rows)
    return rows


def _tailed(setting: Setting, train: Examples) -> NDArray[np.int64]:
    """Return rows of which the classes have exponentially falling shares, in an order drawn by the seed."""
    classes = np.arange(len(train.class_names))
    order = rng.order(setting.seed, "bench/tail", 0, classes)
    shares = np.empty(len(classes))
    shares[order] = setting.long_tail ** -(classes / max(1, len(classes) - 1))
    kept = [np.empty(0, dtype=np.int64)]
    for label, share in enumerate(shares):
        members = train.rows[train.labels[train.rows] == label]
        kept.append(rng.choose(setting.seed, f"bench/tail/{label}", members, max(1, round(share * len(members)))))
    return np.sort(np.concatenate(kept))


def aimed(texts: Sequence[str], examples: Examples, seed: int) -> list[Attack]:
    """Return the attacks; one that names no target is given one drawn by the seed, each another while there are enough.

    Clean-label attacks, which can only use pictures of their target, get one of the larger half of the classes.
    """
    counts = examples.counts()
    order = rng.order(seed, "bench/targets", 0, np.arange(len(counts))).tolist()
    large = counts >= np.median(counts)
    taken = {options["target"] for _, options in map(spec.parse, texts) if "target" in options}
    free = [label for label in order if str(label) not in taken and examples.class_names[label] not in taken] or order
    attacks = []
    for text in texts:
        attack = ATTACKS.build(text)
        if "target" not in spec.parse(text)[1]:
            fitting = [label for label in free if large[label]] if attack.clean_label else free
            target = (fitting or [label for label in order if large[label]])[0]
            attack = replace(attack, target=examples.class_names[target])
            free = [label for label in free if label != target] or order
        attacks.append(attack)
    return attacks
