"""One function a command; its signature and docstring are the interface.

Nothing heavy is imported before a command runs, so that ``--help`` is quick.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, UseAppendAction

from untaint import terminal
from untaint.arguments import flag, given, option, overview, parse

if TYPE_CHECKING:
    from untaint.recipe import Preset
    from untaint.scanning import Result

__all__ = ["run_command"]

SET_ASIDE = 3  # exit code with --check

Data = Positional[
    Annotated[str, given("A folder, table or archive of pictures, a hub id, or a name such as cifar10.", "DATA")]
]
Run = Positional[Annotated[Path, given("The folder of a scan.", "RUN")]]
Quiet = Annotated[bool, flag("No bars, no remarks.")]
Json = Annotated[bool, flag("Print one JSON object instead of text.", name="json")]
Check = Annotated[bool, flag("Leave with exit code 3 when something was set aside.")]
Size = Annotated[
    int | None,
    option("Pixels per side that the models look at; if not given, the pictures' shorter side, at most 64.", "PIXELS"),
]
Split = Annotated[str, option("Which part, where the data has parts.", "PART")]
ImageColumn = Annotated[str | None, option("Where a table holds the pictures; guessed if not given.", "COLUMN")]
LabelColumn = Annotated[str | None, option("Where a table holds the labels; guessed if not given.", "COLUMN")]
Seed = Annotated[int, option("Everything random depends on it and on the row alone.", "N")]
Reject = Annotated[
    str | None,
    option("The rule that decides, such as fraction:share=0.4 or gap; see `untaint list rules`.", "RULE"),
]
KeepPerClass = Annotated[float | None, option("Keep at least this share of each class, such as 0.2.", "SHARE")]
Marks = Annotated[Path | None, option("Pictures marked fine or poison in a report; obeyed.", "FILE")]
Model = Annotated[str | None, option("proxy, proxy-wide, or a name of torchvision or timm.", "NAME")]
Augment = Annotated[
    Literal["none", "crop", "crop-flip", "resized-crop"] | None,
    option("For witness and clean model; crop where left and right differ, as on signs."),
]
Precision = Annotated[
    Literal["auto", "float32", "bfloat16"] | None, option("Of the arithmetic; auto takes the faster one.")
]


def scan(
    data: Data,
    /,
    *,
    probes: Annotated[
        str, given("Pictures somebody has looked at: a file of keys, or a folder of trusted pictures.", "FILE")
    ],
    out: Annotated[Path, given("The run's folder. The same command goes on where it was interrupted.", "FOLDER")],
    preset: Annotated[
        str, option("fast (cross-examination, small models) or paper (BaDLoss as published).", "NAME")
    ] = "fast",
    detector: Annotated[
        str | None, option("Another detector, NAME:KEY=VALUE,...; see `untaint list defenses`.", "DETECTOR")
    ] = None,
    reject: Reject = None,
    keep_per_class: KeepPerClass = None,
    marks: Marks = None,
    model: Model = None,
    epochs: Annotated[
        int | None, option("How many epochs are watched; with fast, all models take as many.", "N")
    ] = None,
    augment: Augment = None,
    record: Annotated[
        Literal["eval", "train"] | None, option("Record in a pass of its own, or in the training step.")
    ] = None,
    precision: Precision = None,
    compile: Annotated[bool, flag("Use torch.compile.")] = False,
    retrain: Annotated[bool, flag("Do not train a clean model at the end.")] = True,
    check: Check = False,
    size: Size = None,
    split: Split = "train",
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """Find the poisoned pictures in DATA and train a model without them.

    DATA is a folder with a folder per class, a folder with metadata.csv, a Parquet, Arrow, tar or zip
    file, a hub id, or cifar10, cifar100, gtsrb, imagenette, imagenet.

    Example: untaint scan photos/train --probes verified.txt --out runs/photos
    """
    from untaint.recipe import preset as named
    from untaint.scanning import scan as run_scan

    chosen = named(preset).changed(
        model=model, epochs=epochs, augment=augment, precision=precision, record=record, compile=compile
    )
    result = run_scan(
        data,
        probes=probes,
        out=out,
        preset=chosen,
        detector=detector,
        reject=reject,
        keep_per_class=keep_per_class,
        retrain=retrain,
        marks=marks,
        seed=seed,
        progress=terminal.progress(quiet),
        split=split,
        size=size,
        image_column=image_column,
        label_column=label_column,
    )
    return _tell(result, as_json, check)


def score(
    run: Run,
    /,
    *,
    detector: Annotated[
        str | None, option("The same detector with other options, NAME:KEY=VALUE,...", "DETECTOR")
    ] = None,
    reject: Reject = None,
    keep_per_class: KeepPerClass = None,
    probes: Annotated[
        str | None, option("Only for what a Recorder left: a file of keys or row numbers.", "FILE")
    ] = None,
    marks: Marks = None,
    check: Check = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """Decide again in a finished RUN, with other options: seconds, nothing is trained.

    Example: untaint score runs/photos --reject false-discovery:q=0.05
    """
    from untaint.scanning import score as run_score

    result = run_score(
        run,
        probes=probes,
        detector=detector,
        reject=reject,
        keep_per_class=keep_per_class,
        marks=marks,
        progress=terminal.progress(quiet),
    )
    return _tell(result, as_json, check)


def _tell(result: Result, as_json: bool, check: bool) -> int:
    """Print what was found and what to do next."""
    summary = result.summary
    if as_json:
        print(json.dumps({**summary, "report": str(result.run / "report.html")}, ensure_ascii=False))
    else:
        counts = summary["counts"]
        print(f"\n{counts['rejected']:,} of {summary['rows']:,} pictures were set aside.")
        worst = sorted((c for c in summary["per_class"] if c["rejected"]), key=lambda c: -c["rejected"])
        if worst:
            lines = [
                (c["name"], f"{c['rows']:,}", f"{c['rejected']:,}", f"{c['rejected'] / c['rows']:.1%}")
                for c in worst[:10]
            ]
            print(terminal.table(("class", "pictures", "set aside", "share"), lines))
        if summary["unreadable"]:
            print(f"{summary['unreadable']} pictures could not be read: {result.run / 'unreadable.txt'}")
        print(f"{summary['rule']['note']}\n")
        print(f"look at them   {result.run / 'report.html'}")
        print(f"their keys     {result.run / 'rejected.txt'}")
        if summary["clean_model"]:
            print(f"clean model    {result.run / 'model'}")
        print(f"next           {summary['next']}")
    return SET_ASIDE if check and len(result.rejected) else 0


def train(
    data: Data,
    /,
    *,
    out: Annotated[Path, given("The model's folder. The same command goes on where it was interrupted.", "FOLDER")],
    without: Annotated[
        Path | None, option("A file of keys to leave out, such as a scan's rejected.txt.", "FILE")
    ] = None,
    marks: Annotated[
        Path | None, option("Pictures marked in a report: poison is left out too, fine is put back.", "FILE")
    ] = None,
    preset: Annotated[str, option("fast or paper: how the model is trained.", "NAME")] = "fast",
    model: Model = None,
    epochs: Annotated[int | None, option("How many epochs.", "N")] = None,
    augment: Annotated[
        Literal["none", "crop", "crop-flip", "resized-crop"] | None,
        option("How pictures are varied; crop where left and right differ, as on signs."),
    ] = None,
    precision: Precision = None,
    size: Size = None,
    split: Split = "train",
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """Train a model from scratch on DATA without some pictures; resumes if interrupted.

    Example: untaint train photos/train --without runs/photos/rejected.txt --out runs/clean
    """
    import dataclasses

    from untaint import recipe
    from untaint.findings import left_out
    from untaint.scanning import train as run_train
    from untaint.sources import load

    bars = terminal.progress(quiet)
    examples = load(data, split=split, size=size, image_column=image_column, label_column=label_column, progress=bars)
    kept = examples.without(left_out(examples, without, marks))
    chosen: Preset = recipe.preset(preset).changed(model=model, augment=augment, precision=precision)
    if epochs is not None:
        chosen = dataclasses.replace(chosen, retrain=dataclasses.replace(chosen.retrain, epochs=epochs, horizon=None))
    run_train(kept, out=out, preset=chosen, seed=seed, progress=bars)
    facts = {"out": str(out), "trained_on": len(kept), "left_out": len(examples) - len(kept)}
    if as_json:
        print(json.dumps(facts))
    else:
        print(f"\nTrained on {len(kept):,} pictures, {len(examples) - len(kept):,} left out: {out}")
        print(f"next           untaint evaluate {shlex.quote(str(out))} TEST_DATA")
    return 0


def evaluate(
    model: Positional[Annotated[Path, given("A folder written by `untaint train` or `untaint scan`.", "MODEL")]],
    data: Data,
    /,
    *,
    split: Annotated[
        str | None, option("Which part; if not given, test where the data has parts, else all.", "PART")
    ] = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """Tell how often MODEL is right on DATA, over all and per class.

    On triggered pictures, labelled with an attack's target, this is the attack success rate.

    Example: untaint evaluate runs/clean photos/test
    """
    from untaint.sources import load, open_source
    from untaint.sources.opening import open_test
    from untaint.training.checkpoint import load_model, read_card
    from untaint.training.evaluate import evaluate as run_evaluate
    from untaint.training.evaluate import relabelled

    network, card = load_model(model), read_card(model)
    bars = terminal.progress(quiet)
    if split is None:
        part = open_test(data, image_column=image_column, label_column=label_column)
    else:
        part = open_source(data, split=split, image_column=image_column, label_column=label_column)
    examples = load(part, size=card["size"][1], fewest_classes=1, progress=bars)
    found = run_evaluate(network, relabelled(examples, card["class_names"]))
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        lines = [(name, f"{share:.1%}") for name, share in found["per_class"].items() if share is not None]
        print(terminal.table(("class", "right"), lines[:50]))
        print(f"\n{found['accuracy']:.2%} of {found['pictures']:,} pictures are labelled right.")
    return 0


def poison(
    data: Data,
    /,
    *,
    attack: Annotated[
        UseAppendAction[list[str]],
        given("NAME:KEY=VALUE,...; may be given several times; see `untaint list attacks`.", "ATTACK"),
    ],
    out: Annotated[Path, given("The new data set. The ledger goes beside it, OUT.ledger.parquet.", "FOLDER")],
    spare: Annotated[str | None, option("A file of keys that stay clean, such as your probes.", "FILE")] = None,
    test: Annotated[
        str | None,
        option("Test data, written untouched and triggered; if not given, the data's own test part.", "DATA"),
    ] = None,
    split: Split = "train",
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """Write DATA again with poison in it, to try defences on; several attacks share no picture.

    Example: untaint poison photos/train --attack patch:target=0,rate=0.01 --attack sinusoid:target=4 --out data/two
    """
    from untaint.attacks import ATTACKS
    from untaint.poisoned_files import write_poisoned
    from untaint.sources import open_source
    from untaint.sources.opening import open_test

    columns = {"image_column": image_column, "label_column": label_column}
    source = open_source(data, split=split, **columns)
    aside = open_test(
        data if test is None else test, own=test is None, image_column=image_column, label_column=label_column
    )
    ledger = write_poisoned(
        source,
        [ATTACKS.build(text) for text in attack],
        out,
        seed=seed,
        spare=spare,
        test_source=aside,
        progress=terminal.progress(quiet),
    )
    counts = {text: len(ledger.poisoned(number)) for number, text in enumerate(ledger.attacks)}
    if as_json:
        print(json.dumps({"out": str(out), "ledger": f"{out}.ledger.parquet", "attacks": counts}))
    else:
        print(terminal.table(("attack", "poisoned"), [(text, f"{count:,}") for text, count in counts.items()]))
        print(f"\nwritten        {out}")
        print(f"ledger         {out}.ledger.parquet (who was poisoned; keep it away from defences)")
        if aside is not None:
            print(f"triggered      {out}.triggered (test pictures with each trigger, for untaint evaluate)")
        print(f"next           untaint probes {shlex.quote(str(out))} --suggest 250 --out probes.txt")
    return 0


def probes(
    data: Data,
    /,
    *,
    suggest: Annotated[int | None, option("Draw this many candidates, such as 250.", "N")] = None,
    out: Annotated[
        Path | None, option("Where the keys go; a page of pictures to look at goes beside it.", "FILE")
    ] = None,
    balanced: Annotated[bool, flag("The same number of each class, instead of uniformly.")] = False,
    check: Annotated[Path | None, option("Compare a file of keys with the data.", "FILE")] = None,
    size: Size = None,
    split: Split = "train",
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> int:
    """Draw pictures of DATA for somebody to look at, or check a list of probes.

    Example: untaint probes photos/train --suggest 250 --out probes.txt
    """
    from untaint import run
    from untaint.errors import ProbeError
    from untaint.report import contact_sheet
    from untaint.scanning import suggest_probes, with_probes
    from untaint.sources import load
    from untaint.sources.words import words

    bars = terminal.progress(quiet)
    examples = load(data, split=split, size=size, image_column=image_column, label_column=label_column, progress=bars)
    if check is not None:
        _, rows, _ = with_probes(examples, check, bars)
        counts = [int((examples.labels[rows] == label).sum()) for label in range(len(examples.class_names))]
        print(terminal.table(("class", "probes"), [*zip(examples.class_names, map(str, counts), strict=True)][:50]))
        print(f"\n{len(rows)} probes, all in the data.")
        return 0
    if suggest is None or out is None:
        raise ProbeError("nothing to do: give --suggest 250 --out probes.txt, or --check probes.txt.")
    rows = suggest_probes(examples, suggest, balanced=balanced, seed=seed)
    run.write_keys(out, (examples.keys[row] for row in rows))
    sheet = contact_sheet(examples, rows, out.with_suffix(".html"), f"Probes for {data}")
    print(f"{len(rows)} candidates   {out}\nlook at them     {sheet} (untick bad ones, save the rest)")
    again = words(data, split=split, size=size, image_column=image_column, label_column=label_column)
    print(f"next             untaint scan {again} --probes {shlex.quote(str(out))} --out runs/scan")
    return 0


def report(
    run: Run, /, *, out: Annotated[Path | None, option("If not given, report.html in the run.", "FILE")] = None
) -> int:
    """Write the page that shows what a RUN found.

    Example: untaint report runs/photos
    """
    from untaint.report import write_report

    print(write_report(run, out))
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
    """Name what there is: attacks, defenses, models, presets, rules."""
    from untaint.listing import listing

    print(terminal.table(("name", "what it does"), listing(what), left=True))
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


COMMANDS: dict[str, Callable[..., int]] = {
    "scan": scan,
    "score": score,
    "train": train,
    "evaluate": evaluate,
    "poison": poison,
    "probes": probes,
    "report": report,
    "list": list_,
    "demo": demo,
}


DESCRIPTION = "Finds the poisoned pictures in an image training set, and trains models that do without them."
BEGIN = """To begin:
  untaint demo                                             see it work, in minutes
  untaint probes photos --suggest 250 --out probes.txt     then look at them
  untaint scan photos --probes probes.txt --out runs/photos"""


def run_command(arguments: Sequence[str]) -> int:
    """Run the command that the arguments name and return its exit code."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview(COMMANDS, DESCRIPTION, BEGIN))
        return 0
    if arguments[0] == "--version":
        from untaint import __version__

        print(__version__)
        return 0
    return parse(COMMANDS, arguments)()


if __name__ == "__main__":
    sys.exit(run_command(sys.argv[1:]))
