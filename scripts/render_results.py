"""Writes docs/results.md, docs/attacks.md, docs/defences.md and the figures of README.md and docs/eigenguard.md from results/ and the files of attacks and defences: every table there is made here, none is typed.

With --check nothing is written, and it is an error if a page is not what would be.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from _attacks import page as attacks
from _defences import page as defences
from _defences import picture
from _front import readme
from _grids import ROOT, benchmark, plots
from _guards import guards
from _markdown import table
from _scans import section
from _tuned import tuned

GRIDS = [
    path for path in sorted((ROOT / "experiments").glob("*.toml")) if path.stem not in ("smoke", "attacks", "defences")
]  # the latter two: docs/attacks.md, docs/defences.md


def speed() -> str:
    """One table of what the benchmarks of speed and memory measured."""
    found = [json.loads(path.read_text()) for path in sorted((ROOT / "results/speed").glob("*.json"))]
    made_on = sorted({f"{facts['hardware']}, torch {facts['torch']}" for facts in found})
    rows = [
        [
            own["what"],
            own["figure"],
            own["limit"],
            str(1 + made_on.index(f"{facts['hardware']}, torch {facts['torch']}")),
        ]
        for facts in found
        for own in facts["figures"]
    ]
    whole = json.loads((ROOT / "results/cifar10-files.json").read_text())
    times = whole["scan"]["seconds"] / next(stage["seconds"] for stage in whole["seconds"] if stage["name"] == "model")
    said = (
        "Ratios are of runs that took turns on the same machine; these are shared, so that absolute figures vary by a fifth and more. The whole scan of CIFAR-10 was timed in float32; with units for "
        "bfloat16, where training is faster and all else weighs more, older code took more than the three times asked for, and this was not measured again. It set more clean pictures aside than the scan "
        "above, within the tenth that the rule allows: the rule reads off the middle of the scores how far clean ones reach, and with another number of threads, where sums are of another order and models come "
        "out a little different, it sets other numbers aside. The one "
        f"above, by the command line and on one thread, took {times:.1f} times as long as the training of its clean model."
    )
    machines = "; ".join(f"({number}) {name}" for number, name in enumerate(made_on, 1))
    return "\n\n".join(["## Speed and memory", f"{machines}. {said}", table(["what", "measured", "asked", "on"], rows)])


def page() -> str:
    found = [json.loads(path.read_text()) for path in sorted((ROOT / "results").glob("*-files.json"))]
    whole = [
        "# Results",
        "Made by `python scripts/render_results.py` from `results/`, which `untaint bench` and the files of `benchmarks/` write. AUROC of an attack: its rows "
        "against clean rows only. TPR at an FPR: over clean rows. ASR (attack success rate): over test pictures outside the target class. "
        "With one seed, differences of a point mean nothing.",
        tuned(),
        *filter(None, map(benchmark, GRIDS)),
        "## Whole data sets, by the command line",
        "One seed each, five attacks, probes among the clean rows. BaDLoss is measured on one watcher of the same small network, 20 epochs of SGD on "
        "everything. The clothing pictures are 64x64 pixels here, with 372 to test on, so that two points of clean accuracy are one standard error.",
        *map(section, found),
        speed(),
    ]
    return "\n\n".join(whole) + "\n"


def pages() -> dict[Path, str]:
    """Each page, and what it should be."""
    front, layer = ROOT / "README.md", ROOT / "docs" / "eigenguard.md"
    return {
        ROOT / "docs" / "results.md": page(),
        ROOT / "docs" / "attacks.md": attacks(),
        ROOT / "docs" / "defences.md": defences(),
        front: readme(front.read_text()),
        layer: guards(layer.read_text()),
    }


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        stale = [str(path.relative_to(ROOT)) for path, text in pages().items() if path.read_text() != text]
        sys.exit(f"not as results/ has it: {', '.join(stale)}. Run scripts/render_results.py." if stale else 0)
    for path in GRIDS:
        plots(path)
    picture()
    for path, text in pages().items():
        path.write_text(text)
