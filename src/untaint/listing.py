"""What there is, by name, with the first sentence of its docstring."""

from __future__ import annotations

import dataclasses
from typing import Any

__all__ = ["listing"]


def listing(what: str) -> list[tuple[str, str, str]]:
    """Return (name, what it does, its options with what they are by default) for attacks, defenses, models, presets or rules."""
    if what == "attacks":
        from untaint.attacks import ATTACKS, Attack

        kinds = [(name, ATTACKS.kind(name)) for name in ATTACKS.names()]
        common = ("(every attack)", "what all of these have", _options(Attack, frozenset()))
        return [*(_described(name, kind, frozenset(_usuals(Attack))) for name, kind in kinds), common]
    if what == "defenses":
        from untaint.defenses import DEFENSES

        return [_described(name, DEFENSES.kind(name)) for name in DEFENSES.names()]
    if what == "models":
        from untaint.models.build import INSERTED, names

        networks = [(name, "small and quick on a CPU" if "proxy" in name else "torchvision", "") for name in names()]
        return [*networks, *(_described(f"NAME+{name}", kind) for name, kind in INSERTED.items())]
    if what == "rules":
        from untaint.scores import RULES

        return [_described(name, kind) for name, kind in RULES.items()]
    from untaint.recipe import PRESETS

    return [
        (name, f"{p.detector}, {p.watch.model}, {p.watch.epochs} epochs, {p.reject}", "") for name, p in PRESETS.items()
    ]


def _described(name: str, kind: Any, known: frozenset[tuple[str, Any]] = frozenset()) -> tuple[str, str, str]:
    return name, (kind.__doc__ or "").strip().splitlines()[0], _options(kind, known)


def _options(kind: Any, known: frozenset[tuple[str, Any]]) -> str:
    """Return the options with their usual values, but for those that are ``known``."""
    return ", ".join(
        name.replace("_", "-") + _usual(value) for name, value in _usuals(kind) if (name, value) not in known
    )


def _usuals(kind: Any) -> list[tuple[str, Any]]:
    return [(f.name, f.default) for f in dataclasses.fields(kind) if f.init and f.default is not dataclasses.MISSING]


def _usual(value: Any) -> str:
    if value is None or value == "":
        return ""
    return f"={('no', 'yes')[value] if isinstance(value, bool) else value}"
