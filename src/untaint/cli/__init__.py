"""One function a command; its signature and docstring are the interface.

Nothing heavy is imported before a command runs, so that ``--help`` is quick.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from untaint.arguments import overview, parse
from untaint.cli.bench import bench
from untaint.cli.finding import probes, report, scan, score
from untaint.cli.mending import repair
from untaint.cli.models import evaluate, spectrum, train
from untaint.cli.trying import demo, list_, poison

__all__ = ["BEGIN", "COMMANDS", "DESCRIPTION", "run_command"]

COMMANDS: dict[str, Callable[..., int]] = {
    "scan": scan,
    "score": score,
    "train": train,
    "evaluate": evaluate,
    "poison": poison,
    "bench": bench,
    "probes": probes,
    "report": report,
    "repair": repair,
    "spectrum": spectrum,
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
