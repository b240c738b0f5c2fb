"""Draws the pictures of docs/attacks.md: each attack on six pictures of the packaged sample, before and after.

    python scripts/draw_attacks.py [NAME ...]

Without names: those that have no picture yet. Triggers that are optimised are computed first, on the sample's 5,000 pictures: minutes each.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import untaint as ut
from untaint import samples, terminal
from untaint.report.trigger_sheet import Stamped, trigger_sheet

FOLDER = Path(__file__).parent.parent / "docs" / "plots" / "attacks"
SHOWN = 6


def main() -> None:
    asked = sys.argv[1:] or [name for name in ut.ATTACKS.names() if not (FOLDER / f"{name}.png").exists()]
    examples = ut.load(samples.path())
    for name in asked:
        attack = ut.ATTACKS.build(name).ready(examples, progress=terminal.progress(False))
        dirty, ledger = ut.poison(examples, [attack])
        rows = (ledger.covers(0) if attack.harmless else ledger.poisoned(0))[:SHOWN]
        before, after = list(examples.images[rows]), list(dirty.images[rows])
        shown = list(attack.trigger(examples.images[rows], rows))
        parts = [Stamped(name=name, before=before, after=after)]
        if not np.array_equal(np.stack(shown), np.stack(after)):
            parts.append(Stamped(name=f"{name}, as shown to the trained model", before=before, after=shown))
        print(trigger_sheet(parts, FOLDER / f"{name}.png"))


if __name__ == "__main__":
    main()
