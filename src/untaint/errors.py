"""What can go wrong, as a tree.

    UntaintError                 the base: everything this library raises on purpose
    ├── InputError               what was given cannot be used (also a ValueError)
    │   ├── SourceError          pictures or labels that cannot be read
    │   ├── ProbeError           probes that do not fit the data
    │   ├── SpecError            an unknown name or option
    │   └── RunError             a run directory of other inputs, in use, altered, or a full disk
    └── TrainingError            training itself failed (the loss is not finite)

Every message says what was wrong, what was there instead, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "InputError",
    "ProbeError",
    "RunError",
    "SourceError",
    "SpecError",
    "TrainingError",
    "UntaintError",
    "did_you_mean",
]


class UntaintError(Exception):
    """Base of every error that untaint raises on purpose."""


class InputError(UntaintError, ValueError):
    """Something given cannot be used as it is."""


class SourceError(InputError):
    """Pictures or labels cannot be read."""


class ProbeError(InputError):
    """Probes do not fit the data."""


class SpecError(InputError):
    """A name or an option is unknown or has a value of the wrong kind."""


class RunError(InputError):
    """A run directory cannot be used: other inputs, in use, altered, not writable or full."""


class TrainingError(UntaintError):
    """Training failed."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Give ``" Did you mean 'patch'?"`` for the nearest known word, or the list of known words."""
    words = sorted(known)
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    if near:
        return f" Did you mean '{near[0]}'?"
    return f" There are: {', '.join(words)}." if words else ""
