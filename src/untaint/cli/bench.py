"""The command that compares: bench."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, UseAppendAction

from untaint import terminal
from untaint.arguments import flag, given, option
from untaint.cli.options import Quiet
from untaint.errors import SpecError

__all__ = ["bench"]


def bench(
    file: Positional[Annotated[Path, given("A grid file, such as experiments/smoke.toml.", "FILE")]],
    /,
    *,
    results: Annotated[
        Path | None, option("Where a file for each finished cell is kept; if not given, results/NAME.", "FOLDER")
    ] = None,
    out: Annotated[
        Path | None, option("Where models lie while they are needed; if not given, runs/bench-NAME.", "FOLDER")
    ] = None,
    data: Annotated[
        UseAppendAction[tuple[str, ...]],
        option("NAME=SOURCE: read a data set of the file from elsewhere.", "NAME=SOURCE"),
    ] = (),
    table: Annotated[bool, flag("Run nothing; show the table of what is finished.")] = False,
    form: Annotated[
        Literal["terminal", "markdown", "latex", "csv"], option("How the table is written.", name="format")
    ] = "terminal",
    per_attack: Annotated[bool, flag("A column for each attack instead of the means.")] = False,
    pictures: Annotated[Path | None, option("Also write plots there, as SVG.", "FOLDER")] = None,
    keep: Annotated[bool, flag("Keep the models and recordings of finished settings.")] = False,
    retry: Annotated[bool, flag("Run the cells again that failed.")] = False,
    quiet: Quiet = False,
) -> int:
    """Run every cell of a grid of attacks and defences that has no result yet, and show the table.

    Killed anywhere, the same command goes on; several may run at once on the same folders, each at settings of its own.
    """
    from untaint.bench.grid import read_grid
    from untaint.bench.pictures import draw
    from untaint.bench.runner import Runner, results_of
    from untaint.bench.table import render

    told = terminal.progress(quiet)
    grid = read_grid(file, _places(data))
    kept = results or Path("results") / grid.name
    if not table:
        work = out or Path("runs") / f"bench-{grid.name}"
        runner = Runner(grid, results=kept, work=work, progress=told, keep=keep, retry=retry)
        busy = runner.run()
        if busy:
            told.say(f"{busy} cells are being run by other processes. The same command shows them when they are done.")
        again = ["untaint", "bench", str(file), *(["--results", str(results)] if results else [])]
        told.say(f"Again, or in another form:  {shlex.join(again)} --table --per-attack --format markdown")
    found = results_of(grid, kept, told)
    print(render(found, form, per_attack=per_attack), end="")
    if pictures is not None:
        paths = draw(found, pictures)
        told.say(f"{len(paths)} plots written to {pictures}.")
    return 0


def _places(given: tuple[str, ...]) -> dict[str, str]:
    places = {}
    for text in given:
        name, equals, source = text.partition("=")
        if not (name and equals and source):
            raise SpecError(f"--data is '{text}'; give NAME=SOURCE, such as cifar10=/data/cifar10.")
        places[name] = source
    return places
