"""One text for settings everywhere: ``name:key=value,...``.

The same text is used in the shell, in TOML and in messages. The settings object is a frozen
dataclass; its fields are the options, their annotations the types.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, TypeVar

from untaint.errors import SpecError, did_you_mean

__all__ = ["build", "parse", "text"]

T = TypeVar("T")


def parse(spec: str) -> tuple[str, dict[str, str]]:
    """Split ``"patch:target=0,rate=0.01"`` into ``("patch", {"target": "0", "rate": "0.01"})``."""
    name, _, rest = spec.strip().partition(":")
    options: dict[str, str] = {}
    for part in filter(None, (piece.strip() for piece in rest.split(","))):
        key, equals, value = part.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key:
            raise SpecError(f"'{part}' in '{spec}' is not 'key=value'. Write {name}:key=value,key=value.")
        if key in options:
            raise SpecError(f"'{key}' is given twice in '{spec}'. Give it once.")
        options[key] = value.strip()
    if not name:
        raise SpecError(f"'{spec}' has no name before the colon. Write name:key=value,...")
    return name.strip(), options


def build(kind: type[T], name: str, options: dict[str, str]) -> T:
    """Make a settings object from texts, checking names and types of the options."""
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, value in options.items():
        if key not in fields:
            raise SpecError(f"'{name}' has no option '{key}'.{did_you_mean(key, fields)}")
        values[key] = _convert(value, hints[key], f"option '{key}' of '{name}'")
    required = [
        key
        for key, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    missing = [key for key in required if key not in values]
    if missing:
        raise SpecError(f"'{name}' needs {missing[0]}. Write {name}:{missing[0]}=VALUE.")
    return kind(**values)


def text(name: str, settings: Any) -> str:
    """Write a settings object back as ``name:key=value,...``; options at their default are left out."""
    parts = []
    for f in dataclasses.fields(settings):
        value = getattr(settings, f.name)
        if f.init and value != f.default:
            parts.append(f"{f.name.replace('_', '-')}={value}")
    return f"{name}:{','.join(parts)}" if parts else name


def _convert(value: str, hint: Any, what: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        inner = [kind for kind in typing.get_args(hint) if kind is not type(None)]
        if value.lower() == "none" and len(inner) < len(typing.get_args(hint)):
            return None
        return _convert(value, inner[0], what)
    if origin is typing.Literal:
        if value not in typing.get_args(hint):
            known = typing.get_args(hint)
            raise SpecError(f"{what} is '{value}', which is not known.{did_you_mean(value, known)}")
        return value
    if hint is bool:
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if value.lower() not in words:
            raise SpecError(f"{what} is '{value}'; give yes or no.")
        return words[value.lower()]
    try:
        return hint(value)
    except ValueError:
        wanted = {int: "a whole number", float: "a number"}.get(hint, f"a {hint.__name__}")
        raise SpecError(f"{what} is '{value}'; give {wanted}.") from None
