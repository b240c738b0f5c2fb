"""What a piece of work cost: seconds, processor seconds and peak memory."""

from __future__ import annotations

import contextlib
import re
import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakSet

from untaint import run

__all__ = ["Cost", "Meter", "cost_of"]

NAME = "cost.json"  # in the folder of a model: what its training has cost so far, over all calls


@dataclass(frozen=True, kw_only=True)
class Cost:
    """``seconds`` on the clock; ``core_seconds`` of all this process's threads; ``peak_mib``: the most memory resident at once."""

    seconds: float = 0.0
    core_seconds: float = 0.0
    peak_mib: int = 0

    def and_then(self, later: Cost) -> Cost:
        """Return what both cost, one after the other."""
        return Cost(
            seconds=self.seconds + later.seconds,
            core_seconds=self.core_seconds + later.core_seconds,
            peak_mib=max(self.peak_mib, later.peak_mib),
        )

    def facts(self) -> dict[str, Any]:
        """Return it as plain JSON values, to a tenth of a second."""
        return {name: round(value, 1) for name, value in asdict(self).items()}

    def save(self, folder: Path) -> None:
        """Leave it in a model's folder."""
        run.write_json(folder / NAME, asdict(self))


def cost_of(folder: Path) -> Cost:
    """Return what the training that left ``folder`` cost, over all the calls that it took; nothing if none did."""
    return Cost(**run.read_json(folder / NAME)) if (folder / NAME).exists() else Cost()


class Meter:
    """Measures from when it is made; meters may overlap.

    Where the system cannot forget a peak (it can on Linux), ``peak_mib`` is that of the process.
    """

    _running: ClassVar[WeakSet[Meter]] = WeakSet()

    def __init__(self) -> None:
        self._peak = 0
        for other in Meter._running:
            other._peak = max(other._peak, _peak_mib())
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        self._begin, self._cores = time.monotonic(), time.process_time()
        Meter._running.add(self)

    def cost(self) -> Cost:
        """Return what it cost up to now."""
        return Cost(
            seconds=time.monotonic() - self._begin,
            core_seconds=time.process_time() - self._cores,
            peak_mib=max(self._peak, _peak_mib()),
        )


def _peak_mib() -> int:
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(found[1]) // 1024
    unit = 2**20 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit
