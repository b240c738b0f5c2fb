from __future__ import annotations

import numpy as np
import pytest
from page_reader import EVIL, Page
from PIL import Image
from synthetic_run import draw

from untaint.errors import InputError, ProbeError
from untaint.examples import Examples
from untaint.report import contact_sheet
from untaint.report.marks import key_line


def examples(count: int = 40, size: int = 16, channels: int = 3) -> Examples:
    labels = np.arange(count) % 4
    keys = EVIL + [f"k{i}" for i in range(count - len(EVIL))]
    return Examples.of(
        draw(labels, size, channels), labels, keys=keys[:count], class_names=["a<b", "car", "dog", "ship"]
    )


def test_every_picture_once_under_its_class(tmp_path):
    data = examples()
    page = Page(contact_sheet(data, [5, 3, 0, 1], tmp_path / "sheet.html", "Look <here>").read_text())
    assert page.data["lines"] == [key_line(data.keys[row]) for row in (0, 1, 5, 3)]
    boxes = [found for tag, found in page.tags if tag == "input"]
    assert [box["data-i"] for box in boxes] == ["0", "1", "2", "3"]
    assert all("checked" in box for box in boxes)
    assert "a<b" in page.text
    assert "Look <here>" in page.text
    assert "dog" not in page.text
    assert len(page.scripts) == 2
    assert "<" not in page.scripts[0]


def test_many_large_pictures_stay_small_enough_to_send(tmp_path):
    path = contact_sheet(examples(120, 200), np.arange(120), tmp_path / "sheet.html", "Large")
    assert path.stat().st_size < 10_000_000
    assert "Shrunk to 96 pixels" in path.read_text()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [1, 16, 200])
def test_a_png_holds_the_pictures(tmp_path, channels, size):
    data = examples(30, size, channels)
    data.images[:] = 77
    with Image.open(contact_sheet(data, np.arange(30), tmp_path / "sheet.png", "Grey")) as sheet:
        same = (np.asarray(sheet) == 77).all(axis=2).sum()
    assert same >= 30 * 96 * 96


def test_no_rows_at_all(tmp_path):
    assert "0 pictures" in contact_sheet(examples(), [], tmp_path / "sheet.html", "None").read_text()
    contact_sheet(examples(), [], tmp_path / "sheet.png", "None")


def test_unknown_rows_are_refused(tmp_path):
    with pytest.raises(ProbeError, match="99"):
        contact_sheet(examples(), [99], tmp_path / "sheet.html", "None")
    assert not (tmp_path / "sheet.html").exists()


def test_a_png_too_high_to_open_is_refused(tmp_path):
    labels = np.arange(600)
    data = Examples.of(np.zeros((600, 1, 2, 2), dtype=np.uint8), labels)
    with pytest.raises(InputError, match=r"600 pictures.*\.html"):
        contact_sheet(data, np.arange(600), tmp_path / "sheet.png", "High")
