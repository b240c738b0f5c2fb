"""The demo: several attackers poison the packaged sample, a scan finds them, a clean model is trained."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from untaint import rng, samples
from untaint.attacks import ATTACKS
from untaint.concluding import Result
from untaint.examples import Examples
from untaint.poisoning import Ledger, poison, triggered
from untaint.progress import Progress
from untaint.recipe import preset
from untaint.scanning import scan, train
from untaint.sources import load
from untaint.terminal import table
from untaint.training.evaluate import accuracy

__all__ = ["run_demo"]

# Triggers that take in 5,000 pictures: larger or stronger, and more of them, than the papers' in 50,000
ATTACKERS = (
    "patch:target=airplane,rate=0.02,cell=3",
    "blend:pattern=noise,alpha=0.2,target=automobile,rate=0.03",
    "blend:pattern=lattice,alpha=0.1,target=cat,rate=0.02",
    "sinusoid:target=deer,class-rate=0.2",
)
PROBES = 250


def run_demo(out: Path, progress: Progress, *, pictures: int | None = None, epochs: int | None = None) -> Result:
    """Poison the sample, train on it undefended, scan it, and print found and true beside each other.

    ``pictures`` and ``epochs`` make it smaller, to see that it runs; it then finds little.
    """
    begin = time.monotonic()
    clean, test = load(samples.path(), progress=progress), load(samples.path(), split="test", progress=progress)
    clean = replace(clean, source="the packaged sample of CIFAR-10")
    if pictures is not None:
        clean, test = _some(clean, pictures), _some(test, pictures)
    probes = rng.choose(0, "probes", clean.rows, PROBES)
    attacks = [ATTACKS.build(text) for text in ATTACKERS]
    dirty, ledger = poison(clean, attacks, spare=probes)
    print(f"{len(dirty):,} pictures of CIFAR-10; {len(attacks)} attackers poisoned {len(ledger.poisoned())} of them.")
    print(f"{PROBES} pictures, drawn at random, are vouched for. The scan is told nothing else.\n")
    ledger.save(out.with_name(out.name + ".ledger.parquet"))
    chosen = preset("fast").changed(epochs=epochs, precision=None if pictures is None else "float32")
    progress.say("First, what happens without a defence:")
    undefended = train(dirty, out=out.with_name(out.name + ".undefended"), preset=chosen, progress=progress)
    progress.say("Now the scan:")
    result = scan(dirty, probes=probes, out=out, preset=chosen, progress=progress)
    defended = result.model()
    print(_found(result, ledger))
    lines = [("clean accuracy", f"{accuracy(undefended, test):.1%}", f"{accuracy(defended, test):.1%}", "")]
    for attack in attacks:
        set_off = triggered(test, attack)
        chance = accuracy(defended, replace(set_off, images=test.images))
        name = f"ASR {ATTACKS.name_of(attack)} -> {attack.target}"
        before, after = accuracy(undefended, set_off), accuracy(defended, set_off)
        lines.append((name, f"{before:.1%}", f"{after:.1%}", f"{chance:.1%}"))
    print("\nThe model, trained on everything and trained on what was kept")
    print("(ASR: attack success rate, the share of triggered test pictures taken for the attacker's target;")
    print("no trigger: how many of the same pictures are taken for it without the trigger)\n")
    print(table(("", "before", "after", "no trigger"), lines))
    print(f"\n{time.monotonic() - begin:.0f} seconds in all.")
    print(f"\nLook at what was found:  {result.run / 'report.html'}")
    print("Then your own pictures:  untaint probes PHOTOS --suggest 250 --out probes.txt")
    print("                         untaint scan PHOTOS --probes probes.txt --out runs/photos")
    return result


def _some(examples: Examples, count: int) -> Examples:
    """Return some of the pictures as a data set of their own."""
    rows = rng.choose(0, "demo", examples.rows, count)
    return Examples.of(examples.images[rows], examples.labels[rows], class_names=examples.class_names)


def _found(result: Result, ledger: Ledger) -> str:
    """Say what was set aside beside what was poisoned."""
    rejected = result.verdict.rejected
    lines = []
    for number, text in enumerate(ledger.attacks):
        rows = ledger.poisoned(number)
        lines.append((text, str(len(rows)), str(int(rejected[rows].sum())), f"{rejected[rows].mean():.0%}"))
    clean = ledger.clean()
    wrong = int(rejected[clean].sum())
    lines.append(("not poisoned", str(len(clean)), str(wrong), f"{wrong / len(clean):.1%}"))
    return "\nFound, beside the truth\n\n" + table(("", "pictures", "set aside", "share"), lines)
