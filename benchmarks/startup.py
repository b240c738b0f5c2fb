"""Seconds until ``import untaint`` and ``untaint --help`` are done, in fresh processes.

Run: python benchmarks/startup.py
Prints the median and the least of some runs of each, beside an interpreter that does nothing.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

RUNS = 15
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import untaint": ["-c", "import untaint"],
    "untaint --help": ["-m", "untaint", "--help"],
    "untaint scan --help": ["-m", "untaint", "scan", "--help"],
    "untaint --version": ["-m", "untaint", "--version"],
}


def seconds(words: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def main() -> None:
    for words in COMMANDS.values():
        seconds(words)  # fills the file cache and writes bytecode
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(RUNS):  # in turn, so that a busy moment meets all alike
        for name, words in COMMANDS.items():
            taken[name].append(seconds(words))
    print(f"{'':<22}{'median':>9}{'least':>9}   ({RUNS} runs, Python {sys.version.split()[0]})")
    for name, times in taken.items():
        print(f"{name:<22}{statistics.median(times):>7.3f} s{min(times):>7.3f} s")
    code = "import sys, untaint; sys.exit('torch' in sys.modules)"
    brings = subprocess.run([sys.executable, "-c", code], check=False).returncode
    print(f"import untaint brings torch: {'yes' if brings else 'no'}")


if __name__ == "__main__":
    main()
