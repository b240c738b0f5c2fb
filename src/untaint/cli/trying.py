"""Commands to try untaint out: poison, demo, list."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, UseAppendAction

from untaint import terminal
from untaint.arguments import given, option
from untaint.cli.options import Columns, Data, Json, Quiet, Seed, Split

__all__ = ["demo", "list_", "poison"]


def poison(
    data: Data,
    /,
    *,
    attack: Annotated[
        UseAppendAction[list[str]],
        given("NAME:KEY=VALUE,...; may be given several times; see `untaint list attacks`.", "ATTACK"),
    ],
    out: Annotated[Path, given("The new data set. The ledger goes beside it, OUT.ledger.parquet.", "FOLDER")],
    spare: Annotated[
        str | None,
        option("A file of keys that stay clean, such as your probes; as OUT.spare.txt they fit the new data.", "FILE"),
    ] = None,
    test: Annotated[
        str | None,
        option("Test data, written untouched and triggered; if not given, the data's own test part.", "DATA"),
    ] = None,
    overlap: Annotated[
        float, option("Of each attack's pictures so large a share gets the next attack's trigger, too.", "SHARE")
    ] = 0.0,
    split: Split = "train",
    columns: Columns,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """Write DATA again with poison in it, to try defences on; several attacks share no picture.

    Example: untaint poison photos/train --attack patch:target=0,rate=0.01 --attack sinusoid:target=4 --out data/two
    """
    from untaint.attacks import ATTACKS
    from untaint.poisoned_files import write_poisoned
    from untaint.poisoning import attack_names
    from untaint.sources import open_source
    from untaint.sources.opening import open_test

    source = open_source(data, split=split, **asdict(columns))
    aside = open_test(data if test is None else test, own=test is None, **asdict(columns))
    attacks = [ATTACKS.build(text) for text in attack]
    ledger = write_poisoned(
        source,
        attacks,
        out,
        seed=seed,
        spare=spare,
        test_source=aside,
        overlap=overlap,
        progress=terminal.progress(quiet),
    )
    counts = {text: len(ledger.poisoned(number)) for number, text in enumerate(ledger.attacks)}
    stamped = {text: len(ledger.covers(number)) for number, text in enumerate(ledger.attacks)}
    kept = {
        text: f"{out}.triggers/{name}.safetensors"
        for text, name in zip(ledger.attacks, attack_names(attacks), strict=True)
    }
    kept = {text: path for text, path in kept.items() if Path(path).exists()}
    if as_json:
        about = {"attacks": counts, "covers": stamped, "triggers": kept}
        print(json.dumps({"out": str(out), "ledger": f"{out}.ledger.parquet", **about}))
        return 0
    lines = [(text, f"{count:,}", f"{stamped[text]:,}") for text, count in counts.items()]
    print(terminal.table(("attack", "poisoned", "label kept, no poison"), lines))
    print(f"\nwritten        {out}")
    print(f"preview        {out}.preview.png (some pictures of each attack, before and after)")
    print(f"ledger         {out}.ledger.parquet (who was poisoned; keep it away from defences)")
    if aside is not None:
        print(f"triggered      {out}.triggered (test pictures with each trigger, for untaint evaluate)")
    for text, path in kept.items():
        again = shlex.quote(f"{text}{',' if ':' in text else ':'}trigger-file={path}")
        print(f"trigger        {path}, as it was computed; the same for other pictures: --attack {again}")
    if spare is None:
        print(f"next           untaint probes {shlex.quote(str(out))} --suggest 250 --out probes.txt")
    else:
        print(f"spared         {out}.spare.txt (the keys that these pictures have in what was written)")
        probes = shlex.quote(f"{out}.spare.txt")
        print(f"next           untaint scan {shlex.quote(str(out))} --probes {probes} --out runs/scan")
    return 0


def demo(
    *,
    out: Annotated[Path, option("The demo's folder.", "FOLDER")] = Path("runs/demo"),
    quiet: Quiet = False,
) -> int:
    """Poison the packaged sample with several attacks, find them, and train a clean model: minutes."""
    from untaint.demo import run_demo

    run_demo(out, terminal.progress(quiet))
    return 0


def list_(
    what: Positional[
        Annotated[
            Literal["attacks", "defenses", "models", "presets", "rules"],
            given("attacks, defenses, models, presets or rules.", "WHAT"),
        ]
    ],
    /,
) -> int:
    """Name what there is, with options and what these are by default: attacks, defenses, models, presets, rules."""
    from untaint.listing import listing

    print(terminal.glossary(listing(what)))
    return 0
