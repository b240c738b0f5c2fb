"""Contact sheets: pictures of some rows, grouped by class, on which bad ones are unticked."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from untaint import run
from untaint.errors import InputError
from untaint.examples import Examples
from untaint.report.marks import key_line
from untaint.report.pictures import as_image, data_uris
from untaint.report.rendering import render
from untaint.report.words import count, shown

__all__ = ["contact_sheet", "enlarged", "font"]

PICTURE_BYTES = 7_000_000
SIDE, GAP, COLUMNS = 96, 12, 10  # of the PNG: pixels, pixels, pictures in a row
LONGEST = 60_000  # pixels that a PNG may be high before viewers give up


def contact_sheet(examples: Examples, rows: Any, out: Path | str, title: str) -> Path:
    """Write a sheet of these rows' pictures with their keys, grouped by class, and return its path.

    ``rows``: row numbers, a mask, or keys. A name that ends in ``.png`` gives a picture; any other
    an HTML page on which each picture can be unticked, and the remaining keys saved as ``probes.txt``.
    """
    target = Path(out)
    by_class = _grouped(examples, examples.find(rows))
    page = _png(examples, by_class, title) if target.suffix.lower() == ".png" else _html(examples, by_class, title)
    with run.written(target) as file:
        file.write(page)
    return target


def _grouped(examples: Examples, rows: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    labels = examples.labels[rows]
    return {examples.class_names[label]: rows[labels == label] for label in np.unique(labels).tolist()}


def _html(examples: Examples, by_class: dict[str, NDArray[np.int64]], title: str) -> bytes:
    rows = np.concatenate([np.zeros(0, dtype=np.int64), *by_class.values()])
    keys = [examples.keys[row] for row in rows.tolist()]
    uris, side = data_uris([examples.images[row] for row in rows.tolist()], PICTURE_BYTES)
    pictures = iter([{"key": shown(key), "uri": uri} for key, uri in zip(keys, uris, strict=True)])
    groups = [
        {"name": shown(name), "pictures": [next(pictures) for _ in members]} for name, members in by_class.items()
    ]
    written = [key_line(key) for key in keys]
    digest = hashlib.sha256("\n".join([title, *written]).encode("utf-8", "surrogateescape")).hexdigest()
    longest = max(examples.images.shape[2:])
    return render(
        "contact_sheet",
        title=title,
        groups=groups,
        many=len(keys),
        small=min(side, longest) <= 64,
        shrunk=side if longest > side else 0,
        data={"store": f"untaint-sheet-{digest[:16]}", "lines": written},
    )


def font(size: int) -> ImageFont.FreeTypeFont:
    """Return the font of sheets in a size of pixels."""
    import matplotlib  # here, because only the PNG needs its font, which knows more scripts than Pillow's

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def _png(examples: Examples, by_class: dict[str, NDArray[np.int64]], title: str) -> bytes:
    cell, line, head = SIDE + GAP, SIDE + GAP + 18, 40
    lines = sum(-(-len(members) // COLUMNS) for members in by_class.values())
    height = 2 * GAP + head * (1 + len(by_class)) + line * lines
    if height > LONGEST:
        raise InputError(
            f"a PNG of {count(sum(map(len, by_class.values())), 'picture')} would be {height:,} pixels high. "
            "Name the sheet .html instead."
        )
    sheet = Image.new("RGB", (COLUMNS * cell + GAP, height), "white")
    draw = ImageDraw.Draw(sheet)
    large, small = font(18), font(10)
    draw.text((GAP, GAP), shown(title), fill="black", font=large)
    top = GAP + head
    for name, members in by_class.items():
        draw.text((GAP, top + 8), f"{shown(name)} ({len(members)})", fill="#0a5fb4", font=font(15))
        top += head
        for index, row in enumerate(members.tolist()):
            left, down = GAP + index % COLUMNS * cell, top + index // COLUMNS * line
            sheet.paste(enlarged(examples.images[row], SIDE), (left, down))
            draw.text((left, down + SIDE + 2), _fitting(shown(examples.keys[row]), small), fill="#545d68", font=small)
        top += line * -(-len(members) // COLUMNS)
    buffer = io.BytesIO()
    sheet.save(buffer, "png")
    return buffer.getvalue()


def enlarged(picture: NDArray[np.uint8], side: int) -> Image.Image:
    """Return a picture whose longer side is ``side`` pixels: small ones keep hard edges."""
    image = as_image(picture, side).convert("RGB")
    times = side / max(image.size)
    return image.resize(
        (max(1, round(image.width * times)), max(1, round(image.height * times))), Image.Resampling.NEAREST
    )


def _fitting(text: str, font: ImageFont.FreeTypeFont) -> str:
    """Return the end of a text that fits under one picture: keys differ at their end."""
    if font.getlength(text) <= SIDE:
        return text
    while text and font.getlength("\N{HORIZONTAL ELLIPSIS}" + text) > SIDE:
        text = text[max(1, len(text) // 8) :] if len(text) > 64 else text[1:]
    return "\N{HORIZONTAL ELLIPSIS}" + text
