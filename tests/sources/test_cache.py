from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from untaint import sources
from untaint.errors import SourceError
from untaint.sources import cache, loading, pool
from untaint.sources.base import Item

from .conftest import Listening, class_folders, encoded, noise


def decoded(listening: Listening) -> bool:
    """Whether anything was decoded since the last question."""
    steps, listening.steps = listening.steps, []
    return bool(steps)


def test_reused_while_unchanged(photos: Path, listening: Listening) -> None:
    first = sources.load(photos, progress=listening)
    assert decoded(listening)
    assert listening.done == 6
    assert isinstance(first.images, np.memmap)
    second = sources.load(photos, progress=listening)
    assert not decoded(listening)
    assert second.fingerprint == first.fingerprint


@pytest.mark.parametrize("change", ["content", "touched", "added", "removed", "renamed", "size"])
def test_made_again_when_anything_changed(photos: Path, listening: Listening, change: str) -> None:
    sources.load(photos, progress=listening)
    assert decoded(listening)
    path = photos / "cat" / "01.png"
    size = None
    if change == "content":
        path.write_bytes(encoded(noise(9)))
    elif change == "touched":
        os.utime(path, ns=(1, 1))
    elif change == "added":
        (photos / "cat" / "03.png").write_bytes(encoded(noise(9)))
    elif change == "removed":
        path.unlink()
    elif change == "renamed":
        path.rename(photos / "cat" / "0x.png")
    else:
        size = 4
    found = sources.load(photos, size=size, progress=listening)
    assert decoded(listening)
    if change == "content":
        assert np.array_equal(found.images[1].transpose(1, 2, 0), np.asarray(noise(9)))
    kept = list(Path(os.environ["UNTAINT_CACHE"]).rglob("pixels.npy"))
    assert len(kept) == (2 if change == "size" else 1)  # a changed source leaves nothing stale behind


@pytest.mark.parametrize("damage", ["cut", "note", "gone"])
def test_a_damaged_cache_is_made_again(photos: Path, listening: Listening, damage: str) -> None:
    first = sources.load(photos).fingerprint
    pixels = next(Path(os.environ["UNTAINT_CACHE"]).rglob("pixels.npy"))
    if damage == "cut":
        pixels.write_bytes(pixels.read_bytes()[:-50])
    elif damage == "note":
        (pixels.parent / "decoded.json").write_text('{"identity": 3')
    else:
        pixels.unlink()
    assert sources.load(photos, progress=listening).fingerprint == first
    assert decoded(listening)


def test_interrupted_decoding_leaves_nothing_that_is_used(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> dict[int, str]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loading.pool, "decode_into", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sources.load(photos)
    assert not list(Path(os.environ["UNTAINT_CACHE"]).rglob("*.npy*"))
    assert len(sources.load(photos)) == 6


def test_where_the_cache_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photos: Path) -> None:
    assert cache.cache_folder() == Path(os.environ["UNTAINT_CACHE"])
    monkeypatch.delenv("UNTAINT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_folder() == tmp_path / "xdg" / "untaint"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_folder() == Path.home() / ".cache" / "untaint"
    sources.load(photos, cache=tmp_path / "mine")
    assert list((tmp_path / "mine").rglob("pixels.npy"))


def test_a_cache_that_cannot_be_written(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SourceError, match="UNTAINT_CACHE"):
        sources.load(photos, cache=tmp_path / "file" / "inside")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(SourceError, match=r"pixel cache needs 0\.0 GiB"):
        sources.load(photos)


@pytest.mark.parametrize("gaps", [[], [0], [9], [0, 1, 2], [3, 4, 8], [0, 9], list(range(9))])
def test_closing_gaps(tmp_path: Path, gaps: list[int]) -> None:
    path = tmp_path / "pixels"
    data = np.arange(10 * 12, dtype=np.uint8).reshape(10, 12)
    with open(path, "wb") as file:
        file.write(b"h" * cache.HEADER + data.tobytes())
        file.flush()
        assert cache._close_gaps(file, 10, 12, gaps) == 10 - len(gaps)
    assert path.read_bytes()[cache.HEADER :] == np.delete(data, gaps, axis=0).tobytes()


def many(count: int) -> list[Item]:
    return [encoded(noise(i, 6, 6)) for i in range(count)]


def run_pool(tmp_path: Path, items: list[Item], processes: int | None) -> tuple[bytes, dict[int, str], int]:
    path = tmp_path / f"out{processes}"
    path.write_bytes(b"\0" * (len(items) * 108))
    done: list[int] = []
    batches = iter([items[start : start + 20] for start in range(0, len(items), 20)])
    reasons = pool.decode_into(str(path), 0, batches, len(items), 6, done.append, processes)
    return path.read_bytes(), reasons, sum(done)


def test_many_processes_give_what_one_gives(tmp_path: Path) -> None:
    items = many(300)
    items[5], items[299] = b"junk", b""
    alone, together = run_pool(tmp_path, items, 0), run_pool(tmp_path, items, 3)
    assert alone == together
    assert list(together[1]) == [5, 299]
    assert together[2] == 300


def test_a_picture_that_kills_the_decoder_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killer = "import os; from untaint.sources import decode; plain = decode.pixels\n"
    killer += "def pixels(data, size):\n    return os._exit(9) if data == b'kill' else plain(data, size)\n"
    killer += "decode.pixels = pixels\n"
    start = "import sys; sys.path[:] = {path!r}\n" + killer + "from untaint.sources.worker import serve; serve()"
    monkeypatch.setattr(pool, "_START", start)
    items = many(260)
    items[33] = b"kill"
    data, reasons, done = run_pool(tmp_path, items, 2)
    assert reasons == {33: "the decoder crashed on it"}
    items[33] = b"junk"
    assert data == run_pool(tmp_path, items, 0)[0]
    assert done == 260


def test_without_other_processes_it_goes_on_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_START", "# {path}")
    assert run_pool(tmp_path, many(260), 2)[1] == {}


def test_an_error_in_the_source_comes_through(tmp_path: Path) -> None:
    def batches():  # type: ignore[no-untyped-def]
        yield many(20)
        raise SourceError("the table broke")

    (tmp_path / "out").write_bytes(b"")
    with pytest.raises(SourceError, match="the table broke"):
        pool.decode_into(str(tmp_path / "out"), 0, batches(), 300, 6, lambda count: None, 2)
    with pytest.raises(OSError, match="No such file"):
        pool.decode_into(str(tmp_path / "no" / "out"), 0, iter([many(300)]), 300, 6, lambda count: None, 2)


def test_a_script_without_a_main_guard(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "photos", each=1)
    for i in range(260):
        (folder / "cat" / f"x{i}.png").write_bytes(encoded(noise(i)))
    script = tmp_path / "mine.py"
    script.write_text(f"import untaint.sources as s\nprint('once', len(s.load({str(folder)!r})))\n")
    done = subprocess.run([sys.executable, "-W", "error", str(script)], capture_output=True, text=True, check=True)
    assert done.stdout == "once 262\n"
    assert done.stderr == ""


def test_importing_is_light() -> None:
    code = "import sys, untaint.sources; print([m for m in ('torch', 'datasets', 'pandas') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
