"""docs/attacks.md, from what the attacks say of themselves."""

from __future__ import annotations

import inspect
import re
from typing import Any

from _markdown import table
from _takes import takes

from untaint.attacks import ATTACKS, _labels
from untaint.listing import listing

HEAD = """# Attacks

Made by `python scripts/render_results.py` from the attacks' own files; the pictures by `python scripts/draw_attacks.py`. {count} attacks and {controls} controls, each a file in
`src/untaint/attacks/` ([how to add one](adding-an-attack.md)). `untaint poison DATA --attack NAME:KEY=VALUE,... --attack ... --out FOLDER` puts any of them into pictures of yours, several
at once on different pictures (or on the same ones: `--overlap`), with a ledger of who was poisoned, a preview, and the test pictures with each trigger.
A trigger that is computed from the pictures is written beside them, as `OUT.triggers/NAME.safetensors`; `NAME:...,trigger-file=FILE` puts the same into others.

An attack is a stamp, a label rule and a choice of pictures, and any goes with any: `patch:labels=all-to-all`, `blend:labels=clean-label,class-rate=0.3`, `warp:selection=clean-like`.
"""


def page() -> str:
    """The whole page."""
    kinds = {name: ATTACKS.kind(name) for name in ATTACKS.names()}
    controls = [name for name, kind in kinds.items() if kind.control]
    head = HEAD.format(count=len(kinds) - len(controls), controls=len(controls))
    cards = [
        [
            f"[{name}](#{name})",
            kind.card.visible,
            f"{kind.card.psnr:g}",
            f"{kind.card.ssim:g}",
            *map(yes, (kind.card.per_picture, kind.card.optimised)),
            kind.card.needs,
        ]
        for name, kind in kinds.items()
    ]
    options = {name: said for name, _, said in listing("attacks")}
    parts = [
        head.strip(),
        "## Label rules\n\n" + rules(),
        "What all attacks have, with what it usually is: `"
        + options["(every attack)"]
        + "`. With `selection=clean-like` or `near-target` a model of the attacker's chooses whom to poison.",
        "## All of them\n\n"
        + table(
            ["", "visible", "PSNR, at least", "SSIM, at least", "another for each picture", "optimised", "needs"], cards
        ),
        takes(),
        *(section(name, kind, options[name]) for name, kind in kinds.items()),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def rules() -> str:
    """The table of the module that has the rules, ``code`` made `code`."""
    lines = [line for line in (_labels.__doc__ or "").splitlines() if line.startswith("|")]
    return "\n".join(lines).replace("``", "`")


def section(name: str, kind: Any, options: str) -> str:
    """What one attack is, what it is called with, and its picture."""
    said = re.sub(r"\s+", " ", inspect.getdoc(kind) or "").replace("``", "`")
    own = f"Options: `{options}`." if options else "No options of its own."
    picture = (
        f"![{name}: clean pictures, stamped ones, and the difference eight times as strong](plots/attacks/{name}.png)"
    )
    return "\n\n".join([f"## {name}", said, f"{own} {kind.card.paper}.", picture])


def yes(value: bool) -> str:
    return "yes" if value else ""
