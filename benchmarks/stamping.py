"""Seconds to plant seven attacks in 50,000 pictures of 32 x 32: choosing, stamping, relabelling and the ledger; and to stamp all of them with each fixed trigger.

    python benchmarks/stamping.py

Beside a loop over the same pictures with Pillow, one at a time, which does what `patch` and `blend` do, and beside the Adversarial Robustness Toolbox's (ART), which has both (tests hold them pixel for pixel): its checker for all pictures at once,
as floating-point numbers that are made before the clock starts, and its blend with a picture file, picture by picture. Made-up pictures; the optimisation of narcissus' noise is apart (done before the clock starts, on fewer steps: what is
added takes as long whatever it is). Median and 95 % interval of some rounds. Writes results/speed/stamping.json.
"""

from __future__ import annotations

import argparse
import itertools
import random
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from keeping import interval, keep
from numpy.typing import NDArray
from PIL import Image

from untaint.attacks import ATTACKS
from untaint.examples import Examples
from untaint.poisoning import Change, poison, stamped

SEVEN = (
    "patch:target=0,rate=0.01",
    "pixel:target=1,rate=0.01",
    "blend:target=2,pattern=noise,rate=0.01",
    "blend:target=3,pattern=lattice,rate=0.01",
    "sinusoid:target=4,class-rate=0.1",
    "narcissus:target=5,class-rate=0.005",
    "frequency:target=6,rate=0.01",
)
TRIGGERS = (
    "badnets",
    "patch",
    "pixel",
    "blend",
    "sinusoid",
    "frequency",
    "ctrl",
    "trojan-watermark",
    "quantise",
    "adaptive-blend",
    "adaptive-patch",
    "warp",
)
SLOWER = ("frequency", "warp")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--pictures", type=int, default=50_000)
    asked = parser.parse_args()
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (asked.pictures, 3, 32, 32), dtype=np.uint8)
    examples = Examples.of(images, generator.integers(0, 10, asked.pictures))
    attacks = [ATTACKS.build(text) for text in SEVEN]
    noise = generator.uniform(-16, 16, (3, 32, 32))
    object.__setattr__(attacks[5], "levels", noise)
    taken = []
    for _ in range(asked.rounds):
        begin = time.perf_counter()
        _, ledger = poison(examples, attacks, seed=0)
        taken.append(time.perf_counter() - begin)
    middle, low, high = interval(taken)
    what = f"planting 7 attacks in {asked.pictures:,} pictures of 32 x 32 ({len(ledger.poisoned()):,} poisoned)"
    figures = [(what, f"{middle:.2f} s ({low:.2f} to {high:.2f}; {asked.rounds} rounds)", "5 s")]
    keep("stamping", [*figures, *all_of(images, max(3, asked.rounds // 4))])


def all_of(images: NDArray[np.uint8], rounds: int) -> list[tuple[str, str, str]]:
    """Return how long each fixed trigger takes on all pictures, and how many times as long a loop with Pillow: in one run, by turns."""
    rows = np.arange(len(images))
    ways: dict[str, Callable[[], object]] = {
        name: partial(in_blocks, ATTACKS.build(name).stamp, images, rows) for name in TRIGGERS
    }
    last = images.transpose(0, 2, 3, 1).astype(np.float32) / 255
    others = {"patch by Pillow": (patched, images), "blend by Pillow": (blended, images)}
    others |= {"patch by ART": (patched_by_art, last), "blend by ART": (blended_by_art, last)}
    ways |= {name: partial(loop, given) for name, (loop, given) in others.items()}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        order = list(ways)
        random.Random(number).shuffle(order)
        for name in order:
            begin = time.perf_counter()
            ways[name]()
            taken[name].append(time.perf_counter() - begin)
    found = []
    for name in TRIGGERS:
        middle, low, high = interval(taken[name])
        limit = "5 s" if name in SLOWER else "2 s"
        found.append(
            (
                f"stamping {len(images):,} pictures of 32 x 32: {name}",
                f"{middle:.2f} s ({low:.2f} to {high:.2f}; {rounds} rounds)",
                limit,
            )
        )
    for name, whose in itertools.product(("patch", "blend"), ("Pillow", "ART")):
        times = [theirs / own for theirs, own in zip(taken[f"{name} by {whose}"], taken[name], strict=True)]
        middle, low, high = interval(times)
        how = "all pictures at once" if (name, whose) == ("patch", "ART") else "a loop over pictures"
        found.append(
            (
                f"{name}: {how} with {whose} takes",
                f"{middle:.1f} times as long ({low:.1f} to {high:.1f})",
                "",
            )
        )
    return found


def in_blocks(stamp: Change, images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Stamp as poisoning does: some pictures at a time."""
    return stamped(images, rows, stamp, "benchmark")


def patched(images: NDArray[np.uint8]) -> list[Image.Image]:
    """The checker, picture by picture."""
    done = []
    for picture in images:
        image = Image.fromarray(picture.transpose(1, 2, 0))
        for place in ((30, 30), (30, 28), (28, 30), (29, 29)):
            image.putpixel(place, (255, 255, 255))
        done.append(image)
    return done


def blended(images: NDArray[np.uint8]) -> list[Image.Image]:
    """The blend with noise, picture by picture."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    return [Image.blend(Image.fromarray(picture.transpose(1, 2, 0)), noise, 0.075) for picture in images]


def patched_by_art(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """The checker, by ART."""
    found: NDArray[np.float32] = perturbations().add_pattern_bd(images, distance=2, pixel_value=1.0)
    return found


def blended_by_art(images: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """The blend with the picture of a file, by ART."""
    insert = perturbations().insert_image
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/noise.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
        options = {"backdoor_path": path, "channels_first": False, "random": False, "x_shift": 0, "y_shift": 0}
        return [insert(picture, mode="RGB", blend=0.075, **options) for picture in images]


def perturbations() -> Any:
    """ART's triggers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from art.attacks.poisoning import perturbations

    return perturbations


if __name__ == "__main__":
    main()
