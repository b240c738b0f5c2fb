"""The command that mends a trained model: repair."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from untaint import terminal
from untaint.arguments import given, option
from untaint.cli.options import Columns, Data, FolderOfModel, Json, Quiet, Seed

if TYPE_CHECKING:
    from torch import nn

    from untaint.defenses import Mender
    from untaint.defenses.repair import Repair
    from untaint.examples import Examples
    from untaint.run import RunDirectory
    from untaint.training.repair import Component
    from untaint.training.tuning import Clean

__all__ = ["repair"]

SHOWN = 30  # pictures of each group in the picture


def repair(
    model: FolderOfModel,
    data: Data,
    /,
    *,
    out: Annotated[Path, given("The folder of the repaired model.", "FOLDER")],
    defense: Annotated[
        str,
        option("How, NAME:KEY=VALUE,...; all but repair take clean pictures, see `untaint list defenses`.", "DEFENSE"),
    ] = "repair",
    probes: Annotated[
        str | None,
        option("Pictures of DATA that somebody has looked at: a file of keys, or a folder.", "FILE", also="clean"),
    ] = None,
    split: Annotated[str, option("Which part, where the data has parts.", "PART")] = "train",
    columns: Columns,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """Make MODEL overlook the triggers that it learned, without training it anew.

    DATA is what it was trained on. By repair, which needs no clean pictures, what some pictures of a class show and the others do not, independently of all else in them, is taken out of these alone;
    they are listed, and some are shown. The others that mend (fine-tuning, anp, neural-cleanse ...) change the model with the help of --probes; `untaint list defenses` has them all.

    Example: untaint repair runs/photos/model photos/train --out runs/repaired

    With clean pictures: untaint repair runs/photos/model photos/train --defense neural-cleanse --probes clean.txt --out runs/repaired
    """
    from untaint import run
    from untaint.defenses import DEFENSES, Mender
    from untaint.defenses.repair import Repair
    from untaint.errors import SpecError
    from untaint.probing import with_probes
    from untaint.sources import load
    from untaint.training.checkpoint import load_model, read_card
    from untaint.training.evaluate import relabelled
    from untaint.training.tuning import Clean

    judge, network, card = DEFENSES.build(defense), load_model(model), read_card(model)
    if not isinstance(judge, Repair | Mender):
        able = ", ".join(name for name in DEFENSES.names() if issubclass(DEFENSES.kind(name), Repair | Mender))
        raise SpecError(f"'{defense}' does not mend a model that is trained. Give one of these: {able}.")
    bars = terminal.progress(quiet)
    read = load(data, split=split, size=card["size"][1], fewest_classes=1, progress=bars, **asdict(columns))
    examples = relabelled(read, card["class_names"])
    settings = {"kind": "repair", "model": card["sha256"], "data": examples.fingerprint, "defense": defense}
    if isinstance(judge, Repair):
        folder = run.RunDirectory(out, {**settings, "seed": seed})
        facts = _overlook(judge, network, examples, model, folder, as_json=as_json, progress=bars)
    else:
        looked_at = examples.take([])
        if probes is not None:
            whole, rows, _ = with_probes(examples, probes, bars)
            looked_at = whole.take(rows)
        clean = Clean(examples=looked_at, augment=card["recipe"]["augment"], seed=seed, progress=bars)
        folder = run.RunDirectory(out, {**settings, "probes": looked_at.fingerprint, "seed": seed})
        facts = _mend(judge, network, clean, model, folder, as_json=as_json)
    if as_json:
        print(json.dumps({"out": str(out), **facts}, ensure_ascii=False))
        return 0
    print(f"next           untaint evaluate {shlex.quote(str(out))} TEST_DATA")
    return 0


def _mend(
    judge: Mender, network: nn.Module, clean: Clean, source: Path, folder: RunDirectory, *, as_json: bool
) -> dict[str, Any]:
    """Mend the model with clean pictures, write it and tell how right it was and is on them; returns the same."""
    from untaint.training.checkpoint import save_changed

    folder.check()
    before = clean.accuracy(network) if len(clean.examples) else 0.0
    made = judge.mended(network, clean)
    with folder:
        save_changed(folder.path, made, source)
    after, count = clean.accuracy(made), len(clean.examples)
    if not as_json:
        print(f"\nRight about {after:.1%} of the {count:,} clean pictures; {before:.1%} before.")
        print(f"written        {folder.path}, a model like any other")
    return {"clean": count, "accuracy": after, "accuracy_before": before}


def _overlook(
    judge: Repair,
    network: nn.Module,
    examples: Examples,
    source: Path,
    folder: RunDirectory,
    *,
    as_json: bool,
    progress: Any,
) -> dict[str, Any]:
    """Put a gate into the model, write it and what it takes out, and tell of that; returns the same."""
    from untaint import run
    from untaint.report.contact_sheet import contact_sheet
    from untaint.training.repair import save_repaired

    folder.check()
    out = folder.path
    made = judge.repaired(
        network, examples, seed=folder.settings["seed"], progress=progress
    )  # a wrong option leaves no folder
    notes = {examples.keys[row]: f"{one.apart:.1f}" for one in reversed(made.components) for row in one.rows.tolist()}
    with folder:
        save_repaired(made, source, out)
        run.write_keys(out / "overlooked.txt", notes, notes)
        if made.components:
            few = sorted({row for one in made.components for row in one.rows[:SHOWN].tolist()})
            contact_sheet(examples, few, out / "overlooked.png", "What the repaired model overlooks is in these")
    groups = _groups(made.components, examples)
    if not as_json:
        _tell(groups)
        print(f"written        {out}, a model like any other; {out / 'overlooked.txt'} names {len(notes):,} pictures")
        if groups:
            print(f"look           {out / 'overlooked.png'}")
    return {"layer": made.layer, "looked_at": made.looked_at, "groups": groups}


def _tell(groups: Sequence[dict[str, object]]) -> None:
    if not groups:
        print("\nNo class is in two groups in any way: nothing was changed.")
        return
    lines = [tuple(str(entry) for entry in one.values()) for one in groups]
    ways = "in one way" if len(groups) == 1 else f"in {len(groups)} ways"
    print(terminal.table(tuple(groups[0]), lines, left=True))
    print(
        f"\nSome pictures of a class are apart from the rest of it {ways} that the model now overlooks: a trigger, or a kind of picture that is rare in its class. Look."
    )


def _groups(components: Sequence[Component], examples: Examples) -> list[dict[str, object]]:
    """Return what is told of each component that a repaired model overlooks."""
    counts = examples.counts()
    return [
        {
            "class": examples.class_names[one.label],
            "pictures": len(one.rows),
            "of": int(counts[one.label]),
            "of other classes": one.others,
            "apart": round(one.apart, 1),
        }
        for one in components
    ]
