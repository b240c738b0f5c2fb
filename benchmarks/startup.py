"""Seconds until ``import untaint`` and ``untaint --help`` are done, in fresh processes.

Run: python benchmarks/startup.py
Writes the median of some runs of each, beside an interpreter that does nothing.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from keeping import keep

RUNS = 15
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import untaint": ["-c", "import untaint"],
    "untaint --help": ["-m", "untaint", "--help"],
    "untaint scan --help": ["-m", "untaint", "scan", "--help"],
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
    code = "import sys, untaint; sys.exit('torch' in sys.modules)"
    torch = "brings" if subprocess.run([sys.executable, "-c", code], check=False).returncode else "without"
    figures = []
    bare = statistics.median(taken["python -c pass"])
    for name, limit in (("import untaint", "0.2 s"), ("untaint --help", "0.5 s"), ("untaint scan --help", "")):
        middle = statistics.median(taken[name])
        said = f", {torch} torch" if name == "import untaint" else ""
        figures.append((f"`{name}`{said}", f"{middle:.2f} s (Python alone {bare:.2f} s; {RUNS} runs)", limit))
    keep("startup", figures)


if __name__ == "__main__":
    main()
