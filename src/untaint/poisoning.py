"""Attacks x Examples -> poisoned Examples and the ledger of who was poisoned."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from untaint import rng, run, spec
from untaint.attacks import ATTACKS, Attack, Computed
from untaint.attacks._labels import OF_ONE_TARGET
from untaint.attacks._selection import preferred
from untaint.errors import InputError, RunError, SpecError
from untaint.examples import Examples
from untaint.progress import Progress, Silent

__all__ = [
    "Ledger",
    "applied",
    "attack_names",
    "fixed",
    "overlapping",
    "plan",
    "poison",
    "selected",
    "shown_to",
    "stamped",
    "stronger",
    "triggered",
]

BLOCK_BYTES = 2**24  # pictures are stamped in blocks of about this size, which stay in the processor's cache

Change = Callable[[NDArray[np.uint8], NDArray[np.int64]], NDArray[np.uint8]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Ledger:
    """Who was poisoned: one entry per row, also of rows left alone.

    ``attacks``: the attacks as ``name:key=value,...``. ``attack``: int16, which of them touched the
    row, -1 for none. ``cover``: bool, whether it is a cover (stamped, but its label was kept), or of a control: it
    is neither poison nor clean. ``target``: int64, the class that the attack wants the row taken for, -1 for none.
    ``original``: int64, the label before. ``keys``: the pictures' keys.
    """

    attacks: tuple[str, ...]
    attack: NDArray[np.int16]
    cover: NDArray[np.bool_]
    target: NDArray[np.int64]
    original: NDArray[np.int64]
    keys: Sequence[str]

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.attack)

    def __repr__(self) -> str:
        """Say how many rows each attack poisoned."""
        parts = [f"{len(self.poisoned(number)):,} by {text}" for number, text in enumerate(self.attacks)]
        covers = f", {len(self.covers()):,} covers" if self.cover.any() else ""
        return f"<ledger of {len(self):,} rows: {', '.join(parts) or 'none poisoned'}{covers}>"

    def poisoned(self, attack: int | None = None) -> NDArray[np.int64]:
        """Return the rows poisoned by one attack, or by any; covers are not among them."""
        touched = self.attack >= 0 if attack is None else self.attack == attack
        return np.flatnonzero(touched & ~self.cover)

    def covers(self, attack: int | None = None) -> NDArray[np.int64]:
        """Return the rows that one attack, or any, uses as covers."""
        return np.flatnonzero(self.cover & (True if attack is None else self.attack == attack))

    def clean(self) -> NDArray[np.int64]:
        """Return the rows that nobody touched."""
        return np.flatnonzero(self.attack < 0)

    def matched(self, keys: Sequence[str]) -> Ledger:
        """Return the ledger of these keys, in their order, as when a poisoned data set is read back."""
        row_of = {key: row for row, key in enumerate(self.keys)}
        missing = [key for key in keys if key not in row_of]
        if missing:
            raise InputError(
                f"{len(missing)} of {len(keys)} pictures are not in the ledger, first '{missing[0]}'. "
                "Give the ledger that was written beside this data set."
            )
        order = np.fromiter((row_of[key] for key in keys), dtype=np.int64, count=len(keys))
        taken = {name: getattr(self, name)[order] for name in ("attack", "cover", "target", "original")}
        return Ledger(attacks=self.attacks, keys=list(keys), **taken)

    def save(self, path: Path | str) -> None:
        """Write it as Parquet: ``key``, ``attack`` (null: none), ``cover``, ``target``, ``original``."""
        names = pa.array([*self.attacks], pa.string())
        which = pa.array(self.attack, pa.int16(), mask=self.attack < 0)
        columns = {
            "key": run.key_column(self.keys),
            "attack": pa.DictionaryArray.from_arrays(which, names),
            "cover": pa.array(self.cover),
            "target": pa.array(self.target, pa.int64(), mask=self.target < 0),
            "original": pa.array(self.original),
        }
        table = pa.table(columns).replace_schema_metadata({"untaint.attacks": json.dumps(self.attacks)})
        with run.written(Path(path)) as file:
            pq.write_table(table, file, compression="zstd")

    @classmethod
    def load(cls, path: Path | str) -> Ledger:
        """Read what ``save`` wrote."""
        try:
            table = pq.read_table(path)
            attacks = tuple(json.loads(table.schema.metadata[b"untaint.attacks"]))
            names = table["attack"].to_pylist()
            target = table["target"].fill_null(-1).to_numpy().astype(np.int64)
            original = table["original"].to_numpy().astype(np.int64)
            keys = [
                k.decode("utf-8", "surrogateescape") if isinstance(k, bytes) else k for k in table["key"].to_pylist()
            ]
            cover = table["cover"].to_numpy().astype(bool)
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise RunError(
                f"{path} cannot be read as a ledger ({error}). Give the file that untaint poison wrote."
            ) from error
        number = {None: -1, **{text: i for i, text in enumerate(attacks)}}
        attack = np.array([number[name] for name in names], dtype=np.int16)
        return cls(attacks=attacks, attack=attack, cover=cover, target=target, original=original, keys=keys)


def poison(
    examples: Examples,
    attacks: Sequence[Attack],
    *,
    seed: int = 0,
    spare: NDArray[np.integer] | None = None,
    overlap: float = 0.0,
    progress: Progress | None = None,
) -> tuple[Examples, Ledger]:
    """Return the examples with every attack's poison in them, and the ledger of who was poisoned.

    The attacks share no picture; but of each attack's a share ``overlap`` gets the trigger of the next attack too, on top,
    and keeps its label and its place in the ledger. ``spare``: rows that are left alone, such as the probes. Nothing
    given is changed; attacks that compute their trigger from the data, or choose whom to poison by a model, do so first.
    """
    progress = progress or Silent()
    ready = [attack.ready(examples, seed=seed, progress=progress) for attack in attacks]
    chosen = selected(examples, ready, seed=seed, spare=spare, progress=progress)
    ledger = plan(examples, ready, seed=seed, spare=spare, preferred=chosen)
    images, labels = np.array(examples.images), examples.labels.copy()
    for number, attack in enumerate(ready):
        rows = ledger.covers(number) if attack.harmless else ledger.poisoned(number)
        images[rows] = stamped(examples.images, rows, attack.stamp, ledger.attacks[number], not attack.changes_pixels)
        labels[rows] = attack.relabel(labels[rows], rows, examples.class_names)
        covers = np.setdiff1d(ledger.covers(number), rows)
        if len(covers):
            images[covers] = stamped(examples.images, covers, attack.cover, ledger.attacks[number])
    second = overlapping(ledger, overlap, seed)
    for number, attack in enumerate(ready):
        both = np.flatnonzero(second == number)
        images[both] = stamped(images, both, attack.stamp, ledger.attacks[number], hidden=True)
    return replace(examples, images=images, labels=labels), ledger  # not even ``source`` tells a defence what was done


def overlapping(ledger: Ledger, share: float, seed: int) -> NDArray[np.int64]:
    """Return for each row which attack's trigger it gets on top of its own, -1 for none: of each attack's poison a share gets that of the next.

    Raises SpecError for what is no share.
    """
    if not 0 <= share <= 1:
        raise SpecError(f"overlap is {share}; give a share from 0 to 1.")
    second, many = np.full(len(ledger), -1), len(ledger.attacks)
    for number in range(many if share and many > 1 else 0):
        own = ledger.poisoned(number)
        second[rng.choose(seed, "poisoning/overlap", own, round(share * len(own)))] = (number + 1) % many
    return second


def selected(
    examples: Examples,
    attacks: Sequence[Attack],
    *,
    seed: int = 0,
    spare: NDArray[np.integer] | None = None,
    progress: Progress | None = None,
) -> list[NDArray[np.int64] | None]:
    """Return for each attack whom it would like to poison most, the best first, as a model of the attacker's says; None: it draws by lot."""
    spared = np.empty(0, np.int64) if spare is None else np.asarray(spare)
    told = progress or Silent()
    return [
        preferred(attack, examples, name=ATTACKS.name_of(attack), seed=seed, spare=spared, progress=told)
        for attack in attacks
    ]


def plan(
    examples: Examples,
    attacks: Sequence[Attack],
    *,
    seed: int = 0,
    spare: NDArray[np.integer] | None = None,
    preferred: Sequence[NDArray[np.int64] | None] | None = None,
) -> Ledger:
    """Return the ledger of an attack to come: who will be poisoned. Looks at labels only.

    ``preferred``: what ``selected`` returned; without it all draw by lot, as many as they otherwise would.
    """
    texts = tuple(spec.text(ATTACKS.name_of(attack), attack) for attack in attacks)
    for text in texts:
        if texts.count(text) > 1:
            raise SpecError(f"the attack '{text}' is given twice. Give it once with a higher rate, or another target.")
    ledger = Ledger(
        attacks=texts,
        attack=np.full(examples.total, -1, dtype=np.int16),
        cover=np.zeros(examples.total, dtype=bool),
        target=np.full(examples.total, -1, dtype=np.int64),
        original=examples.labels.copy(),
        keys=list(examples.keys),
    )
    free = np.setdiff1d(examples.rows, np.empty(0, np.int64) if spare is None else np.asarray(spare))
    for cover in (False, True):  # poison of all attacks first: covers do not change who is poisoned
        for number, attack in enumerate(attacks):
            if cover:
                rows = attack.choose_covers(examples, free, seed=seed)
            else:
                wanted = None if preferred is None else preferred[number]
                rows = attack.choose(examples, free, seed=seed, preferred=wanted)
            ledger.attack[rows], ledger.cover[rows] = number, cover or attack.harmless
            ledger.target[rows] = _wanted_of(attack, examples, rows, cover)
            free = np.setdiff1d(free, rows, assume_unique=True)
    return ledger


def _wanted_of(attack: Attack, examples: Examples, rows: NDArray[np.int64], cover: bool) -> NDArray[np.int64]:
    """Return the class that these rows are to be taken for, -1 where it is only another than their own, or none."""
    if attack.harmless or (attack.labels == "random" and not cover):
        return np.full(len(rows), -1)
    if cover and attack.labels in OF_ONE_TARGET:
        return np.full(len(rows), attack.target_in(examples.class_names))
    return attack.relabel(examples.labels[rows], rows, examples.class_names)


def shown_to(
    attack: Attack, rows: NDArray[np.int64], labels: NDArray[np.int64], class_names: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return which of these test rows a trigger is tried on, and what they are labelled as; ``labels``: their own.

    That is what the attacker wants them taken for; their own label where he wants only that it is not that, or wants nothing. Tried
    are those that are not of that class anyhow, and of the source alone where only it is poisoned. Raises InputError if there is none.
    """
    if attack.harmless or attack.labels == "random":
        return rows, labels.copy()
    target = attack.target_in(class_names)
    wanted = np.full_like(labels, target) if attack.clean_label else attack.relabel(labels, rows, class_names)
    source = attack.source_in(class_names) if attack.labels == "one-to-one" else None
    tried = wanted != labels if source is None else labels == source
    if not tried.any():
        what = (
            f"no test picture is of the source class '{class_names[source]}'"
            if source is not None
            else (f"all {len(labels)} test pictures are of the target class '{class_names[target]}'")
        )
        raise InputError(f"{what}. Give others too.")
    return rows[tried], wanted[tried]


def triggered(examples: Examples, attack: Attack) -> Examples:
    """Return the pictures outside the target class, with the trigger and labelled as the target.

    The share of these that a model answers with their label is the attack's success rate (ASR). With other rules than ``all-to-one``: labelled as what they are to be
    taken for; by ``random`` and ``unchanged`` as what they are, and ``attack.succeeded`` tells which answers the attacker wants.
    The attack must be ready. The other pictures keep their rows but are no members.
    """
    name = ATTACKS.name_of(attack)
    rows, wanted = shown_to(attack, examples.rows, examples.labels[examples.rows], examples.class_names)
    images, labels = np.array(examples.images), examples.labels.copy()
    images[rows] = stamped(examples.images, rows, attack.trigger, name, not attack.changes_pixels)
    labels[rows] = wanted
    source = f"{examples.source}, triggered by {spec.text(name, attack)}"
    return replace(examples, images=images, labels=labels, rows=rows, source=source)


def fixed(attack: Attack) -> Attack:
    """Return an attack whose trigger is known without any training set; raises InputError for one that is computed from pictures."""
    if attack.trigger_from_data and not (isinstance(attack, Computed) and attack.trigger_file):
        raise InputError(
            f"the trigger of {ATTACKS.name_of(attack)} is computed from the training pictures, which are not here. Give another attack, or the file that `untaint poison` wrote: trigger-file=FILE."
        )
    return attack


def stronger(clean: Examples, shown: Examples, times: float = 2.0) -> Examples:
    """Return triggered pictures in which the trigger has changed every pixel ``times`` as much, cut to 0..255.

    ``clean``: the same rows without a trigger. A trigger that paints over, such as a white patch, stays as it is.
    """
    images = np.array(shown.images)
    at_once = max(1, BLOCK_BYTES // max(1, 4 * images[:1].nbytes))
    for start in range(0, len(shown.rows), at_once):
        rows = shown.rows[start : start + at_once]
        before = clean.images[rows].astype(np.float32)
        images[rows] = np.clip(before + times * (images[rows] - before), 0, 255).astype(np.uint8)
    return replace(shown, images=images, source=f"{shown.source}, {times:g} times as strong")


def stamped(
    images: NDArray[np.uint8], rows: NDArray[np.int64], change: Change, name: str, hidden: bool = False
) -> NDArray[np.uint8]:
    """Return the pictures of these rows after ``change``; refuses one that changes nothing at all, unless it may be ``hidden`` by what is there."""
    result = np.empty((len(rows), *images.shape[1:]), dtype=np.uint8)
    at_once = max(1, BLOCK_BYTES // max(1, result[:1].nbytes))
    differs = False
    for start in range(0, len(rows), at_once):
        some = rows[start : start + at_once]
        before = images[some]
        after = applied(change, before, some, name)
        result[start : start + at_once] = after
        differs = differs or not np.array_equal(after, before)
    if len(rows) and not differs and not hidden:
        raise InputError(f"the attack '{name}' changed no pixel of {len(rows)} pictures. Raise its strength.")
    return result


def applied(change: Change, images: NDArray[np.uint8], rows: NDArray[np.int64], name: str) -> NDArray[np.uint8]:
    """Return what ``change`` makes of the pictures; refuses what is no picture of the same size."""
    after: Any = change(np.array(images), rows)  # a copy of its own: an attack cannot reach the originals
    if not isinstance(after, np.ndarray) or after.dtype != np.uint8 or after.shape != images.shape:
        what = f"{after.dtype} {after.shape}" if isinstance(after, np.ndarray) else type(after).__name__
        raise InputError(
            f"the attack '{name}' gave {what} for pictures of uint8 {images.shape}. It must give the like."
        )
    return after


def attack_names(attacks: Iterable[Attack]) -> list[str]:
    """Return a short name per attack, for folders and table headings: ``patch``, ``patch-2``, ``sinusoid``."""
    names: list[str] = []
    for attack in attacks:
        name = base = ATTACKS.name_of(attack)
        count = 1
        while name in names:
            count += 1
            name = f"{base}-{count}"
        names.append(name)
    return names
