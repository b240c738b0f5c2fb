"""Trigger sheets: pictures as they were, with a trigger, and what it changed eight times as strong."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from untaint import run
from untaint.report.contact_sheet import enlarged, font
from untaint.report.words import shown

__all__ = ["TIMES", "Stamped", "trigger_sheet"]

TIMES = 8
SIDE, GAP, LEFT = 96, 8, 112  # pixels: of a picture, between them, and of the words beside them
MOST = 10  # pictures in a row


@dataclass(frozen=True, kw_only=True, eq=False)
class Stamped:
    """Some pictures before and after a trigger, uint8 (channel, height, width) each, and what the trigger is called."""

    name: str
    before: list[NDArray[np.uint8]]
    after: list[NDArray[np.uint8]]


def trigger_sheet(parts: Sequence[Stamped], out: Path, title: str = "") -> Path:
    """Write a PNG with three rows for each trigger: clean pictures, stamped ones, and the difference; return its path.

    Of each at most ten pictures are shown. In differences grey is no change, and what changed by 16 of 255 levels is white or black.
    """
    most = max([1, *(min(MOST, len(part.before)) for part in parts)])
    head, block = (34 if title else 0), 30 + 3 * (SIDE + GAP) + GAP
    sheet = Image.new("RGB", (LEFT + most * (SIDE + GAP) + GAP, head + block * len(parts)), "white")
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((GAP, GAP), shown(title), fill="black", font=font(18))
    for number, part in enumerate(parts):
        top = head + number * block
        draw.text((GAP, top + 6), shown(part.name), fill="#0a5fb4", font=font(15))
        rows = {
            "clean": part.before,
            "stamped": part.after,
            f"difference x{TIMES}": [difference(*both) for both in zip(part.before, part.after, strict=True)],
        }
        for line, (words, pictures) in enumerate(rows.items()):
            down = top + 30 + line * (SIDE + GAP)
            draw.text((GAP, down + SIDE // 2 - 6), words, fill="#545d68", font=font(12))
            for index, picture in enumerate(pictures[:most]):
                sheet.paste(enlarged(picture, SIDE), (LEFT + index * (SIDE + GAP), down))
    buffer = io.BytesIO()
    sheet.save(buffer, "png", optimize=True)
    with run.written(out) as file:
        file.write(buffer.getvalue())
    return out


def difference(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return what changed, eight times as strong, on grey: uint8 of the same shape."""
    changed = 128 + TIMES * (after.astype(np.int32) - before)
    seen: NDArray[np.uint8] = np.clip(changed, 0, 255).astype(np.uint8)
    return seen
