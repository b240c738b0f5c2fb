"""What a model that saw no poison answers to each attack's trigger: the control for the success rates of experiments/attacks.toml, and of single attacks in experiments/defences.toml.

    python benchmarks/triggers_on_clean.py PATH [--only WORD ...]

PATH: CIFAR-10. One model, trained as those of the grid but on its pictures as they are without poison; then every setting's test pictures with their triggers.
A trigger that is optimised against some model may work on any. Writes results/triggers-on-clean.json, setting by setting; what is there is not measured again.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from untaint import terminal
from untaint.bench.case import prepare, read
from untaint.bench.grid import Setting, Source, read_grid
from untaint.bench.measures import behaviour
from untaint.concluding import versions
from untaint.training.device import device, hardware
from untaint.training.loop import fit

GRIDS = [Path(__file__).parent.parent / "experiments" / name for name in ("attacks.toml", "defences.toml")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--only", nargs="+", default=[], help="words of which one is in the setting's title")
    parser.add_argument("--out", type=Path, default=Path("runs/triggers-on-clean"))
    parser.add_argument("--result", type=Path, default=Path("results/triggers-on-clean.json"))
    given = parser.parse_args()
    bars = terminal.progress(False)
    all_settings = [setting for grid in GRIDS for setting, _ in read_grid(grid, {"cifar10": given.data}).cells]
    settings: list[Setting] = [setting for setting in all_settings if setting.rows == all_settings[0].rows]
    pictures = read(Source(place=given.data), bars)
    nobody = prepare(replace(settings[0], attacks="nobody", attackers=()), *pictures, bars)
    recipe = settings[0].recipes().retrain
    model = fit(
        nobody.examples, recipe, given.out, seed=nobody.setting.seed, progress=bars, what="train without poison"
    )
    found: dict[str, Any] = json.loads(given.result.read_text()) if given.result.exists() else {"settings": {}}
    found["versions"] = versions()
    for setting in settings:
        title = setting.title()
        if title in found["settings"] or (given.only and not any(word in title for word in given.only)):
            continue
        told = behaviour(prepare(setting, *pictures, bars), model, device())
        found.setdefault("models", {})[hardware(device())] = {"clean accuracy": told["clean accuracy"]}
        found["settings"][title] = {name: of["asr"] for name, of in told["attacks"].items() if "asr" in of}
        print(f"{title}: {found['settings'][title]}", flush=True)
        given.result.parent.mkdir(parents=True, exist_ok=True)
        given.result.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
