"""One function a command; its signature and docstring are the interface.

Nothing heavy is imported before a command runs, so that ``--help`` is quick.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import Positional, UseAppendAction, arg

from untaint import terminal

if TYPE_CHECKING:
    from untaint.recipe import Preset
    from untaint.scanning import Result

__all__ = ["run_command"]

SET_ASIDE = 3  # exit code with --check

Quiet = Annotated[bool, arg(help="No bars, no remarks.")]
Json = Annotated[bool, arg(name="json", help="Print the summary as JSON.")]
Size = Annotated[
    int | None, arg(help="Pixels per side that the models look at; default: the shorter side, at most 64.")
]
Split = Annotated[str, arg(help="Which part, where the data has parts.")]
Column = Annotated[str | None, arg(help="Guessed if not given.")]
Seed = Annotated[int, arg(help="Everything random depends on it and on the row alone.")]


def scan(
    data: Positional[str],
    /,
    *,
    probes: Annotated[
        str, arg(help="Pictures somebody has looked at: a file of keys, or a folder of trusted pictures.")
    ],
    out: Annotated[Path, arg(help="The run's folder. The same command with the same folder goes on where it was.")],
    preset: Annotated[
        str, arg(help="fast (cross-examination, small models) or paper (BaDLoss as published).")
    ] = "fast",
    detector: Annotated[
        str | None, arg(help="Another detector, NAME:KEY=VALUE,... See `untaint list defenses`.")
    ] = None,
    reject: Annotated[
        str | None, arg(help="The rule that decides, e.g. false-discovery:q=0.1, fraction:share=0.4, gap.")
    ] = None,
    keep_per_class: Annotated[float | None, arg(help="Keep at least this share of each class.")] = None,
    marks: Annotated[Path | None, arg(help="Pictures marked fine or poison in a report; obeyed.")] = None,
    model: Annotated[str | None, arg(help="proxy, proxy-wide, or a name of torchvision or timm.")] = None,
    epochs: Annotated[int | None, arg(help="How many epochs are watched.")] = None,
    augment: Annotated[
        Literal["none", "crop", "crop-flip", "resized-crop"] | None,
        arg(help="For witness and clean model; `crop` where left and right differ, as on signs."),
    ] = None,
    record: Annotated[
        Literal["eval", "train"] | None, arg(help="Record in a pass of its own, or in the training step.")
    ] = None,
    precision: Literal["auto", "float32", "bfloat16"] | None = None,
    compile: Annotated[bool, arg(help="Use torch.compile.")] = False,
    retrain: Annotated[bool, arg(help="Train a clean model at the end.")] = True,
    check: Annotated[bool, arg(help="Leave with exit code 3 when something was set aside.")] = False,
    size: Size = None,
    split: Split = "train",
    image_column: Column = None,
    label_column: Column = None,
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
    return _tell(result, data, as_json, check)


def score(
    run: Positional[Path],
    /,
    *,
    detector: Annotated[str | None, arg(help="The same detector with other options, NAME:KEY=VALUE,...")] = None,
    reject: Annotated[str | None, arg(help="Another rule.")] = None,
    keep_per_class: Annotated[float | None, arg(help="Keep at least this share of each class.")] = None,
    probes: Annotated[str | None, arg(help="For what a Recorder left: a file of keys or row numbers.")] = None,
    marks: Annotated[Path | None, arg(help="Pictures marked fine or poison in a report; obeyed.")] = None,
    check: Annotated[bool, arg(help="Leave with exit code 3 when something was set aside.")] = False,
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
    return _tell(result, None, as_json, check)


def _tell(result: Result, data: str | None, as_json: bool, check: bool) -> int:
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
        shown = data or "DATA"
        print(
            f"next           untaint train {shown} --without {result.run / 'rejected.txt'} --out runs/clean --model resnet18"
        )
    return SET_ASIDE if check and len(result.rejected) else 0


def train(
    data: Positional[str],
    /,
    *,
    out: Annotated[Path, arg(help="The model's folder.")],
    without: Annotated[Path | None, arg(help="A file of keys to leave out, such as rejected.txt.")] = None,
    marks: Annotated[
        Path | None, arg(help="Pictures marked in a report: poison is left out too, fine is put back.")
    ] = None,
    preset: Annotated[str, arg(help="fast or paper: the recipe for the last training.")] = "fast",
    model: Annotated[str | None, arg(help="proxy, proxy-wide, or a name of torchvision or timm.")] = None,
    epochs: Annotated[int | None, arg(help="How many epochs.")] = None,
    augment: Literal["none", "crop", "crop-flip", "resized-crop"] | None = None,
    size: Size = None,
    split: Split = "train",
    image_column: Column = None,
    label_column: Column = None,
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
    chosen: Preset = recipe.preset(preset).changed(model=model, augment=augment)
    if epochs is not None:
        chosen = dataclasses.replace(chosen, retrain=dataclasses.replace(chosen.retrain, epochs=epochs, horizon=None))
    run_train(kept, out=out, preset=chosen, seed=seed, progress=bars)
    facts = {"out": str(out), "trained_on": len(kept), "left_out": len(examples) - len(kept)}
    if as_json:
        print(json.dumps(facts))
    else:
        print(f"\nTrained on {len(kept):,} pictures, {len(examples) - len(kept):,} left out: {out}")
        print(f"next           untaint evaluate {out} TEST_DATA")
    return 0


def evaluate(
    model: Positional[Path],
    data: Positional[str],
    /,
    *,
    split: Split = "test",
    image_column: Column = None,
    label_column: Column = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """Tell how often MODEL is right on DATA, over all and per class.

    On triggered pictures, labelled with an attack's target, this is the attack success rate.

    Example: untaint evaluate runs/clean photos/test
    """
    from untaint.sources import load
    from untaint.training.checkpoint import load_model, read_card
    from untaint.training.evaluate import evaluate as run_evaluate
    from untaint.training.evaluate import relabelled

    network, card = load_model(model), read_card(model)
    bars = terminal.progress(quiet)
    given = load(
        data, split=split, size=card["size"][1], image_column=image_column, label_column=label_column, progress=bars
    )
    found = run_evaluate(network, relabelled(given, card["class_names"]))
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        lines = [(name, f"{share:.1%}") for name, share in found["per_class"].items() if share is not None]
        print(terminal.table(("class", "right"), lines[:50]))
        print(f"\n{found['accuracy']:.2%} of {found['pictures']:,} pictures are labelled right.")
    return 0


def poison(
    data: Positional[str],
    /,
    *,
    attack: Annotated[
        UseAppendAction[list[str]], arg(help="NAME:KEY=VALUE,... once per attack. See `untaint list attacks`.")
    ],
    out: Annotated[Path, arg(help="The new data set. The ledger goes beside it, OUT.ledger.parquet.")],
    spare: Annotated[str | None, arg(help="A file of keys that stay clean, such as your probes.")] = None,
    test: Annotated[
        str | None,
        arg(
            help="Test data: also written, once untouched and once triggered per attack. Default: the data's own test part."
        ),
    ] = None,
    split: Split = "train",
    image_column: Column = None,
    label_column: Column = None,
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

    columns = {"image_column": image_column, "label_column": label_column}
    source = open_source(data, split=split, **columns)
    aside = open_source(test, split="test", **columns) if test else None
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
        print(f"next           untaint probes {out} --suggest 250 --out probes.txt")
    return 0


def probes(
    data: Positional[str],
    /,
    *,
    suggest: Annotated[int | None, arg(help="Draw this many candidates.")] = None,
    out: Annotated[Path | None, arg(help="Where the keys go; a contact sheet to look at goes beside it.")] = None,
    balanced: Annotated[bool, arg(help="The same number of each class, instead of uniformly.")] = False,
    check: Annotated[Path | None, arg(help="Validate a file of keys against the data.")] = None,
    size: Size = None,
    split: Split = "train",
    image_column: Column = None,
    label_column: Column = None,
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
    print(f"next             untaint scan {data} --probes {out} --out runs/scan")
    return 0


def report(
    run: Positional[Path], /, *, out: Annotated[Path | None, arg(help="Default: report.html in the run.")] = None
) -> int:
    """Write the page that shows what a RUN found.

    Example: untaint report runs/photos
    """
    from untaint.report import write_report

    print(write_report(run, out))
    return 0


def list_(what: Positional[Literal["attacks", "defenses", "models", "presets", "rules"]], /) -> int:
    """Name what there is: attacks, defenses, models, presets, rules."""
    from untaint.listing import listing

    print(terminal.table(("name", "what it does"), listing(what), left=True))
    return 0


def demo(*, out: Annotated[Path, arg(help="The demo's folder.")] = Path("runs/demo"), quiet: Quiet = False) -> int:
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


def run_command(arguments: Sequence[str]) -> int:
    """Run the command that the arguments name and return its exit code."""
    description = (
        "Find the poisoned examples in an image training set, and train models that do without them.\n\n"
        "Start with `untaint demo`, or `untaint probes DATA --suggest 250 --out probes.txt`."
    )
    if list(arguments) == ["--version"]:
        from untaint import __version__

        print(__version__)
        return 0
    code: Any = tyro.extras.subcommand_cli_from_dict(
        COMMANDS, prog="untaint", description=description, args=list(arguments) or ["--help"], sort_subcommands=False
    )
    return int(code)


if __name__ == "__main__":
    sys.exit(run_command(sys.argv[1:]))
