"""A poisoned data set as files, at the pictures' own full size, and the ledger beside it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from untaint import run
from untaint.attacks import Attack, Computed
from untaint.errors import InputError, RunError, SourceError
from untaint.examples import Examples
from untaint.poisoning import Change, Ledger, applied, attack_names, overlapping, plan, selected, shown_to
from untaint.progress import Progress, Silent
from untaint.report.trigger_sheet import Stamped, trigger_sheet
from untaint.sources import Source, Unreadable, load, open_source
from untaint.writers import FolderWriter, PictureWriter, TableWriter, as_png

__all__ = ["Format", "write_poisoned"]

Format = Literal["folder", "parquet"]
PREVIEWED = 8  # pictures of each attack
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif", ".jp2"}
)


def write_poisoned(
    source: Any,
    attacks: Sequence[Attack],
    out: Path | str,
    *,
    seed: int = 0,
    spare: Any = None,
    test_source: Any = None,
    overlap: float = 0.0,
    form: Format | None = None,
    progress: Progress | None = None,
) -> Ledger:
    """Write the pictures of a source with every attack's poison in them; return the ledger of what was written.

    ``out``: a folder per class of PNG files, or a Parquet table with class names; ``form`` says
    which, else what the source is. With ``test_source`` it has the parts ``train`` and ``test``.
    ``out.ledger.parquet``: the ledger, outside of the data; its keys are those of what was written.
    ``out.triggered/ATTACK/test-00000-of-00001.parquet``: with ``test_source``, for each attack the
    test pictures outside its target class, triggered and labelled as the target (as ``untaint.triggered`` does): always a table,
    as one folder alone would not tell the number of its class.
    ``out.triggers/ATTACK.safetensors``: the trigger of each attack that computes one from the pictures, for its option ``trigger_file``.
    ``out.preview.png``: some pictures of each attack before and after, and what changed.
    ``out.spare.txt``: the new keys of the rows in ``spare`` (keys, rows, or a file of keys), which
    are left alone.

    ``overlap``: as of ``untaint.poison``.

    Every picture is decoded and written as a PNG by the same path. Keys stay, but for the suffix and
    the class's folder; where two would be alike a number is added. Pictures that cannot be read are
    left out. Everything is there when ``out`` is there; nothing is overwritten.
    """
    progress = progress or Silent()
    paths = _Paths(Path(out))
    opened = open_source(source)
    test = None if test_source is None else _open_test(test_source)
    if test is not None and tuple(test.class_names) != tuple(opened.class_names):
        few = [f"{len(part.class_names)} classes ({', '.join(part.class_names[:5])}, ...)" for part in (opened, test)]
        raise SourceError(f"the training set has {few[0]}, but the test set {few[1]}. Give parts of one data set.")
    form = form or ("folder" if type(opened).__name__ == "FolderSource" else "parquet")
    examples = _without_pictures(opened)
    spared = examples.rows[:0] if spare is None else examples.find(spare)
    chosen = None
    if any(type(attack).ready is not Attack.ready or attack.selection != "lot" for attack in attacks):
        small = load(opened, progress=progress)
        attacks = [attack.ready(small, seed=seed, progress=progress) for attack in attacks]
        chosen = selected(small, attacks, seed=seed, spare=spared, progress=progress)
    ledger = _plan(opened, examples, attacks, seed, spared, chosen)
    with paths.unfinished():
        for name, attack in zip(attack_names(attacks), attacks, strict=True):
            if isinstance(attack, Computed) and attack.trigger_file is None:
                attack.save_trigger(paths.triggers_part / f"{name}.safetensors")
        train = _Part(opened, form, paths.data(form, "train", test is not None))
        poisoned = _Poisoned(opened, attacks, ledger, overlapping(ledger, overlap, seed))
        keys = train.write(poisoned.pictures(), progress, "poison")
        if test is not None:
            clean = ((row, int(test.labels[row]), _as_it_is) for row in range(len(test)))
            _Part(test, form, paths.data(form, "test", True)).write(clean, progress, "copy test")
            for name, attack in zip(attack_names(attacks), attacks, strict=True):
                table = paths.triggered_part / name / "test-00000-of-00001.parquet"
                _Part(test, "parquet", table).write(_triggered(test, attack, name), progress, f"trigger {name}")
        written = np.fromiter(keys, dtype=np.int64, count=len(keys))
        final = _taken(ledger, written, list(keys.values()))
        final.save(paths.ledger)
        trigger_sheet(poisoned.some, paths.preview)
        if spare is not None:
            run.write_keys(paths.spare, [keys[row] for row in spared.tolist() if row in keys])
    return final


class _Paths:
    """Where everything goes; refuses what is there already."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.part = out.with_name(out.name + ".part")
        self.ledger = out.with_name(out.name + ".ledger.parquet")
        self.spare = out.with_name(out.name + ".spare.txt")
        self.preview = out.with_name(out.name + ".preview.png")
        self.triggered = out.with_name(out.name + ".triggered")
        self.triggered_part = out.with_name(out.name + ".triggered.part")
        self.triggers = out.with_name(out.name + ".triggers")
        self.triggers_part = out.with_name(out.name + ".triggers.part")
        for path in (out, self.ledger, self.triggered, self.triggers, self.spare, self.preview):
            if os.path.lexists(path):
                raise RunError(f"{path} exists already. Remove it, or give another --out.")

    def data(self, form: Format, split: str, parts: bool) -> Path:
        if form == "parquet":
            return self.part / f"{split}-00000-of-00001.parquet"
        return self.part / split if parts else self.part

    def unfinished(self) -> _Unfinished:
        return _Unfinished(self)


class _Unfinished:
    """Everything is renamed into place at the end, the data last; or nothing is left."""

    def __init__(self, paths: _Paths) -> None:
        self.paths = paths

    def _clear(self) -> None:
        for path in (self.paths.part, self.paths.triggered_part, self.paths.triggers_part):
            shutil.rmtree(path, ignore_errors=True)

    def __enter__(self) -> None:
        self._clear()  # of a run that was killed
        try:
            self.paths.part.mkdir(parents=True)
        except OSError as error:
            raise run.explain(error, self.paths.part) from error

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            os.sync()  # one for all files: a sync each would take longer than writing them
            for part, whole in (
                (self.paths.triggered_part, self.paths.triggered),
                (self.paths.triggers_part, self.paths.triggers),
            ):
                if part.exists():
                    os.replace(part, whole)
            os.replace(self.paths.part, self.paths.out)
        else:
            self._clear()
            for path in (self.paths.ledger, self.paths.spare, self.paths.preview):
                path.unlink(missing_ok=True)


Planned = tuple[int, int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]]  # row, label, what is done to the picture


class _Part:
    """One part of a data set on its way into files."""

    def __init__(self, source: Source, form: Format, path: Path) -> None:
        self.source, self.path, self.folders = source, path, form == "folder"
        self.form = form
        self.class_folders = _class_folders(source)
        self.taken: set[str] = set()

    def write(self, planned: Iterable[Planned], progress: Progress, what: str) -> dict[int, str]:
        """Write the pictures that can be read; return row -> new key, in the order written."""
        keys: dict[int, str] = {}
        unreadable: list[str] = []
        writer = self._writer()
        with progress.step(what, len(self.source)) as step:
            for row, label, change in planned:
                step.advance(1)
                try:
                    picture = _pixels(self.source, row)
                except Unreadable as error:
                    unreadable.append(f"'{self.source.keys[row]}': {error}")
                    continue
                keys[row] = self._key(self.source.keys[row], label)
                writer.add(keys[row], label, as_png(change(picture)))
        writer.close()
        if not keys:
            raise SourceError(
                f"none of the {len(self.source):,} pictures in {self.source.name} can be read. Give other files."
            )
        if unreadable:
            progress.say(f"{len(unreadable):,} pictures cannot be read and are left out, first {unreadable[0]}")
        return keys

    def _writer(self) -> PictureWriter:
        if self.folders:
            return FolderWriter(self.path, self.class_folders or self.source.class_names, time.time())
        return TableWriter(self.path, self.source.class_names)

    def _key(self, key: str, label: int) -> str:
        """Return the key with the suffix ``.png`` in the folder of its label, not taken by another picture."""
        parts = [part for part in PurePosixPath(key).parts if part not in ("/", "..", ".")]
        if self.class_folders:
            parts[0] = self.class_folders[label]
        elif self.folders:
            parts.insert(0, self.source.class_names[label])
        path = PurePosixPath(*parts)
        stem, suffix = (str(path.with_suffix("")), ".png") if path.suffix.lower() in SUFFIXES else (str(path), "")
        suffix = ".png" if self.folders else suffix
        name, count = stem + suffix, 1
        while name in self.taken:
            count += 1
            name = f"{stem}-{count}{suffix}"
        self.taken.add(name)
        return name


class _Poisoned:
    """The training pictures with what is done to each."""

    def __init__(self, source: Source, attacks: Sequence[Attack], ledger: Ledger, second: NDArray[np.int64]) -> None:
        self.source, self.attacks, self.ledger, self.second = source, attacks, ledger, second
        self.changed = np.zeros(len(attacks), dtype=np.int64)
        self.some = [Stamped(name=text, before=[], after=[]) for text in ledger.attacks]

    def pictures(self) -> Iterator[Planned]:
        for row in range(len(self.source)):
            number, label = int(self.ledger.attack[row]), int(self.source.labels[row])
            if number < 0:
                yield row, label, _as_it_is
                continue
            attack, cover = self.attacks[number], bool(self.ledger.cover[row])
            poison = attack.harmless or not cover  # of a control, what would be poison
            change = attack.stamp if poison else attack.cover
            if poison:
                label = int(attack.relabel(np.array([label]), np.array([row]), self.source.class_names)[0])
            yield row, label, self._counted(change, row, number)
        for number, text in enumerate(self.ledger.attacks):
            if not self.changed[number] and self.attacks[number].changes_pixels:
                raise InputError(
                    f"the attack '{text}' changed no pixel of {np.count_nonzero(self.ledger.attack == number)} pictures. "
                    "Raise its strength."
                )

    def _counted(self, change: Change, row: int, number: int) -> Callable[[NDArray[np.uint8]], NDArray[np.uint8]]:
        def changed(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
            after: NDArray[np.uint8] = applied(change, picture[None], np.array([row]), self.ledger.attacks[number])[0]
            if (other := int(self.second[row])) >= 0:
                after = applied(self.attacks[other].stamp, after[None], np.array([row]), self.ledger.attacks[other])[0]
            self.changed[number] += not np.array_equal(after, picture)
            if len(self.some[number].before) < PREVIEWED and (
                self.attacks[number].harmless or not self.ledger.cover[row]
            ):
                self.some[number].before.append(picture.copy())
                self.some[number].after.append(after)
            return after

        return changed


def _open_test(source: Any) -> Source:
    """Open the part ``test`` of a source, or a source that has no parts."""
    try:
        return open_source(source, split="test")
    except SourceError as error:
        if "has no splits" not in str(error):  # one that has parts, but no test: its training part must not be taken
            raise
        return open_source(source)


def _triggered(test: Source, attack: Attack, name: str) -> Iterator[Planned]:
    labels = np.asarray(test.labels, dtype=np.int64)
    rows, wanted = shown_to(attack, np.arange(len(labels)), labels, test.class_names)
    for row, label in zip(rows.tolist(), wanted.tolist(), strict=True):
        yield row, label, partial(_with_trigger, attack, row, name)


def _with_trigger(attack: Attack, row: int, name: str, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    shown: NDArray[np.uint8] = applied(attack.trigger, picture[None], np.array([row]), name)[0]
    return shown


def _as_it_is(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return picture


def _pixels(source: Source, row: int) -> NDArray[np.uint8]:
    """Return one picture at its own size: uint8 (3, height, width); raises Unreadable."""
    return np.asarray(source.picture(row)).transpose(2, 0, 1)


def _without_pictures(source: Source) -> Examples:
    """Return examples with labels and keys only: a single pixel stands for every picture."""
    nothing = np.broadcast_to(np.zeros((1, 3, 1, 1), dtype=np.uint8), (len(source), 3, 1, 1))
    return Examples.of(nothing, source.labels, class_names=source.class_names, keys=source.keys, source=source.name)


def _plan(
    source: Source,
    examples: Examples,
    attacks: Sequence[Attack],
    seed: int,
    spared: NDArray[np.int64],
    chosen: Sequence[NDArray[np.int64] | None] | None,
) -> Ledger:
    """Choose who is poisoned among the pictures that can be read; only chosen ones are tried."""
    tried: set[int] = set()
    unreadable: list[int] = []
    while True:
        spare = np.union1d(spared, np.array(unreadable, dtype=np.int64))
        ledger = plan(examples, attacks, seed=seed, spare=spare, preferred=chosen)
        new = [row for row in np.flatnonzero(ledger.attack >= 0).tolist() if row not in tried]
        before = len(unreadable)
        for row in new:
            tried.add(row)
            try:
                source.picture(row)
            except Unreadable:
                unreadable.append(row)
        if len(unreadable) == before:
            return ledger


def _taken(ledger: Ledger, rows: NDArray[np.int64], keys: Sequence[str]) -> Ledger:
    columns = {name: getattr(ledger, name)[rows] for name in ("attack", "cover", "target", "original")}
    return replace(ledger, keys=keys, **columns)


def _class_folders(source: Source) -> list[str]:
    """Return the folder that each class's keys begin with; none where keys do not begin with a folder per class."""
    tops: dict[int, set[str]] = {}
    for key, label in zip(source.keys, np.asarray(source.labels).tolist(), strict=True):
        top, slash, _ = key.partition("/")
        tops.setdefault(label, set()).add(top if slash and top not in ("", "..", ".") else "")
    if any(len(found) > 1 or "" in found for found in tops.values()):
        return []
    folders = [next(iter(tops.get(label, {name}))) for label, name in enumerate(source.class_names)]
    return folders if len(set(folders)) == len(folders) else []
