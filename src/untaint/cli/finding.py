"""Commands that find poison: scan, score, probes, report."""

from __future__ import annotations

import json
import shlex
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from untaint import terminal
from untaint.arguments import flag, given, option
from untaint.cli.options import (
    Augmentation,
    Check,
    Data,
    Json,
    KeepPerClass,
    Marks,
    Model,
    Precision,
    Quiet,
    Reading,
    Reject,
    Run,
    Seed,
)

if TYPE_CHECKING:
    from untaint.concluding import Result

__all__ = ["probes", "report", "scan", "score"]

SET_ASIDE = 3  # exit code with --check
WIDTH = 100  # columns of running text
MOST_TRIGGERS = 10  # that are printed
MEANS = {"mislabelled": "probably mislabelled", "odd": "by themselves"}  # kinds of groups of no label


def scan(
    data: Data,
    /,
    *,
    out: Annotated[Path, given("The run's folder. The same command goes on where it was interrupted.", "FOLDER")],
    probes: Annotated[
        str | None,
        option(
            "Pictures somebody has looked at: a file of keys, or a folder of trusted pictures. Without, the result is less sure.",
            "FILE",
        ),
    ] = None,
    preset: Annotated[
        str, option("fast (cross-examination, small models) or paper (BaDLoss as published).", "NAME")
    ] = "fast",
    detector: Annotated[
        str | None,
        option("Another detector, NAME:KEY=VALUE,...; see `untaint list defenses`.", "DETECTOR", also="defense"),
    ] = None,
    reject: Reject = None,
    keep_per_class: KeepPerClass = None,
    marks: Marks = None,
    model: Model = None,
    epochs: Annotated[
        int | None, option("How many epochs are watched, at most; with fast, the other models take as many.", "N")
    ] = None,
    augment: Annotated[
        Augmentation | None, option("For witness and clean model; crop where left and right differ, as on signs.")
    ] = None,
    record: Annotated[
        Literal["eval", "train"] | None, option("Record in a pass of its own, or in the training step.")
    ] = None,
    precision: Precision = None,
    compile: Annotated[bool, flag("Use torch.compile.")] = False,
    retrain: Annotated[bool, flag("Do not train a clean model at the end.")] = True,
    budget: Annotated[
        float | None, option("Take the best way of scanning that fits into so many minutes on this machine.", "MINUTES")
    ] = None,
    check: Check = False,
    reading: Reading,
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
        budget=budget,
        seed=seed,
        progress=terminal.progress(quiet),
        **asdict(reading),
    )
    return _tell(result, as_json, check)


def score(
    run: Run,
    /,
    *,
    detector: Annotated[
        str | None, option("The same detector with other options, NAME:KEY=VALUE,...", "DETECTOR", also="defense")
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
    from untaint.rescoring import score as run_score

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


def _doubted(count: int, probes: int) -> str:
    which = f"{count} of {probes} probes score" if count > 1 else f"1 of {probes} probes scores"
    return f"{which} like what was set aside; if one is not clean, take it out of your list and scan again"


def _triggers(found: list[dict[str, Any]]) -> str:
    """Return a table of the recovered triggers: laid over clean pictures, how often they make models say their class."""
    lines = [
        (
            one["label"],
            f"{one['rows']:,}",
            f"{one['rejected']:,}",
            f"{max(0, one['seen']):.0%}",
            f"{max(0, one['unseen']):.0%}",
        )
        for one in found[:MOST_TRIGGERS]
    ]
    more = f"and {len(found) - MOST_TRIGGERS} more, in the report\n" if len(found) > MOST_TRIGGERS else ""
    head = ("trigger aimed at", "pictures", "set aside", "works", "on a model that never saw it")
    return (
        f"\n{terminal.table(head, lines)}\n{more}"
        "(works: on so many clean pictures of other classes; the report shows it)\n"
    )


def _others(groups: list[dict[str, Any]]) -> str:
    """Say what is set aside without a recovered trigger."""
    said = []
    for one in groups:
        if one["trigger"] is None and one["kind"] in ("trigger", "alike"):
            works = "that one trigger binds" if one["kind"] == "trigger" else "that are alike"
            said.append(f"{one['rows']:,} pictures labelled {one['label']} {works}")
    left = {one["kind"]: one["rows"] for one in groups if one["label"] is None}
    said = said[:MOST_TRIGGERS] + ([f"{len(said) - MOST_TRIGGERS} groups more"] if len(said) > MOST_TRIGGERS else [])
    said += [f"{many:,} {MEANS[kind]}" for kind, many in left.items()]
    return f"Without a recovered trigger: {'; '.join(said)}." if said else ""


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
        if summary["triggers"]:
            print(_triggers(summary["triggers"]))
        if others := _others(summary["groups"]):
            print(textwrap.fill(others, WIDTH), end="\n\n")
        if summary["unreadable"]:
            print(f"{summary['unreadable']} pictures could not be read: {result.run / 'unreadable.txt'}")
        print(textwrap.fill(summary["rule"]["note"], WIDTH), end="\n\n")
        print(f"look at them   {result.run / 'report.html'}")
        if counts["doubtful_probes"]:
            print(f"probes too     {result.run / 'doubtful_probes.txt'}")
            print(f"               ({_doubted(counts['doubtful_probes'], counts['probes'])})")
        print(f"their keys     {result.run / 'rejected.txt'}")
        if summary["clean_model"]:
            print(f"clean model    {result.run / 'model'}")
        print(f"next           {summary['next']}")
    return SET_ASIDE if check and len(result.rejected) else 0


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
    reading: Reading,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> int:
    """Draw pictures of DATA for somebody to look at, or check a list of probes.

    Example: untaint probes photos/train --suggest 250 --out probes.txt
    """
    from untaint import run
    from untaint.errors import ProbeError
    from untaint.probing import suggest_probes, with_probes
    from untaint.report import contact_sheet
    from untaint.sources import load
    from untaint.sources.words import words

    bars = terminal.progress(quiet)
    examples = load(data, **asdict(reading), progress=bars)
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
    again = words(data, **asdict(reading))
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
