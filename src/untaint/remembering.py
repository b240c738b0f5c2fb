"""What a run's folder keeps of its data, so that the run can be scored again without the pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from untaint import run
from untaint.errors import InputError, SourceError
from untaint.examples import Examples
from untaint.progress import Progress
from untaint.sources import load
from untaint.sources.words import words

__all__ = ["data_words", "recall", "recalled_probes", "remember"]


_ANEW = "Give its untaint scan command again: it is written anew."


def remember(
    path: Path,
    examples: Examples,
    probes: NDArray[np.int64],
    outside: NDArray[np.int64],
    data: Any,
    reading: dict[str, Any],
) -> None:
    """Write down what the data was, so that the run can be scored again without its pictures."""
    source = str(data) if isinstance(data, (str, Path)) else None
    facts = {
        "source": source,
        "reading": reading,
        "name": examples.source,
        "class_names": list(examples.class_names),
        "size": list(examples.images.shape[1:]),
        "outside": outside.tolist(),
        "keys": list(examples.keys),
    }
    arrays = {"labels.npy": examples.labels, "rows.npy": examples.rows, "probes.npy": probes}
    for name, array in arrays.items():
        run.save_array(path / name, array)
    run.write_sealed(path / "data.json", {**facts, "files": {name: run.digest(path / name) for name in arrays}})


def _remembered(path: Path) -> dict[str, Any]:
    """Return what ``remember`` wrote down; raises RunError if it or its arrays were altered."""
    facts = run.read_sealed(path / "data.json", _ANEW)
    run.check(path, facts["files"], _ANEW)
    return facts


def recall(path: Path, told: Progress) -> Examples:
    """Return a run's examples: read again where the source is still there and the same, else without pictures."""
    facts = _remembered(path)
    labels, rows = np.asarray(run.load_array(path / "labels.npy")), np.asarray(run.load_array(path / "rows.npy"))
    blank = np.broadcast_to(np.uint8(127), (len(labels), *facts["size"]))
    known = replace(
        Examples.of(blank, labels, class_names=facts["class_names"], keys=facts["keys"], source=facts["name"]),
        rows=rows,
    )
    if facts["source"] is None:
        return known
    try:
        found = load(facts["source"], progress=told, **facts["reading"])
    except (SourceError, InputError) as error:
        told.say(f"the pictures are not there any more ({error}); the report goes without new ones.")
        return known
    if list(found.keys) == facts["keys"]:
        return replace(known, images=found.images, unreadable=found.unreadable)
    return known


def recalled_probes(path: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of a run's probes, and those that were appended from a folder of trusted pictures."""
    outside = _remembered(path)["outside"]
    return np.asarray(run.load_array(path / "probes.npy")), np.asarray(outside, dtype=np.int64)


def data_words(path: Path) -> str:
    """Return the words that name a run's data in a shell; DATA if it was handed over in Python."""
    facts = run.read_sealed(path / "data.json", _ANEW) if (path / "data.json").exists() else {}
    return words(facts["source"], **facts["reading"]) if facts.get("source") else "DATA"
