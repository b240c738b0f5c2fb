"""Turns templates into one self-contained HTML file that may run no script but its own."""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from untaint.report import words

__all__ = ["as_json", "render"]


def as_json(value: Any) -> Markup:
    """Return JSON that may stand inside a script element whatever it holds: ASCII, without ``<``, ``>`` and ``&``."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


def _file(name: str) -> str:
    return resources.files(__package__).joinpath("templates", name).read_text("utf-8")


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_file),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "shown": words.shown,
        "count": words.count,
        "share": words.share,
        "number": words.number,
        "p": words.p_text,
        "clock": words.clock,
        "as_json": as_json,
    }
    return environment


def render(page: str, **values: Any) -> bytes:
    """Render ``templates/PAGE.html`` with the common style sheet and ``PAGE.js`` inside.

    The page's policy names the hash of its own script, so that a browser runs no other, and loads
    nothing from anywhere.
    """
    script = _file(f"{page}.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    template = _environment().get_template(f"{page}.html")
    text = template.render(policy=policy, style=Markup(_file("style.css")), script=Markup(script), **values)
    return text.encode("utf-8", "backslashreplace")
