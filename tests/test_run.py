from __future__ import annotations

import errno
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from untaint import run
from untaint.errors import RunError

# --- files


def write_half(file, error):
    file.write(b"half")
    file.flush()
    assert file.name.endswith(".part")
    raise error


def test_a_file_is_complete_or_absent(tmp_path):
    path = tmp_path / "deep" / "file.bin"
    with pytest.raises(ZeroDivisionError), run.written(path) as file:
        write_half(file, ZeroDivisionError)
    assert list(path.parent.iterdir()) == []
    with run.written(path) as file:
        file.write(b"whole")
    assert path.read_bytes() == b"whole"
    with pytest.raises(KeyboardInterrupt), run.written(path) as file:
        write_half(file, KeyboardInterrupt)
    assert path.read_bytes() == b"whole"
    assert [p.name for p in path.parent.iterdir()] == ["file.bin"]


def test_a_full_disk_is_said_so_and_leaves_nothing(tmp_path):
    with (
        pytest.raises(RunError, match=r"the disk is full: .*array.npy could not be written"),
        run.written(tmp_path / "array.npy") as file,
    ):
        write_half(file, OSError(errno.ENOSPC, "No space left on device"))
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="could not be written: file exists"), run.written(tmp_path / "file" / "x"):
        pass


def test_arrays_come_back_read_only(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    run.save_array(tmp_path / "a.npy", array)
    for mapped in (True, False):
        assert np.array_equal(run.load_array(tmp_path / "a.npy", mapped=mapped), array)
    with pytest.raises(ValueError, match="read-only"):
        run.load_array(tmp_path / "a.npy")[0, 0] = 1


def test_pickles_are_neither_written_nor_read(tmp_path):
    with pytest.raises(ValueError, match="pickle"):
        run.save_array(tmp_path / "a.npy", np.array([{}]))
    assert list(tmp_path.iterdir()) == []
    np.save(tmp_path / "a.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(RunError, match="cannot be read as the array"):
        run.load_array(tmp_path / "a.npy")


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"no array"])
@pytest.mark.parametrize("mapped", [True, False])
def test_files_that_are_no_arrays_are_refused(tmp_path, content, mapped):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(RunError, match="Remove it and run again"):
        run.load_array(tmp_path / "a.npy", mapped=mapped)


def test_json_comes_back_and_what_is_altered_is_refused(tmp_path):
    path = tmp_path / "a.json"
    run.write_json(path, {"name": "Käse", "list": [1, 2.5, None]})
    assert run.read_json(path) == {"name": "Käse", "list": [1, 2.5, None]}
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(RunError, match="cannot be read as what untaint wrote"):
        run.read_json(path)


@given(st.lists(st.text(st.characters(codec=None, exclude_categories=())), max_size=8))
@settings(max_examples=200)
def test_any_keys_come_back(tmp_path_factory, keys):
    path = tmp_path_factory.mktemp("keys") / "keys.txt"
    run.write_keys(path, keys)
    assert run.read_keys(path) == keys


def test_a_note_stands_after_its_key_on_the_same_line(tmp_path):
    notes = {"a.png": "cut short\nat byte 7", "tab\t.png": "not a picture"}
    run.write_keys(tmp_path / "keys.txt", [*notes, "b.png"], notes)
    assert run.read_keys(tmp_path / "keys.txt") == [*notes, "b.png"]
    found = run.read_labelled_keys(tmp_path / "keys.txt")
    assert [note for _, note in found] == ["cut short at byte 7", "not a picture", None]


def test_keys_that_are_no_text_come_back(tmp_path):
    keys = [os.fsdecode(b"caf\xe9.png"), "plain.png"]
    run.write_keys(tmp_path / "keys.txt", keys)
    assert run.read_keys(tmp_path / "keys.txt") == keys
    assert b"plain.png" in (tmp_path / "keys.txt").read_bytes().splitlines()


def test_key_files_may_come_from_other_systems(tmp_path):
    path = tmp_path / "keys.txt"
    path.write_bytes(b'\xef\xbb\xbf# looked at on Monday\r\na b.png\r\n\r\n"c\\nd.png"\r\ne.png')
    assert run.read_keys(path) == ["a b.png", "c\nd.png", "e.png"]
    path.write_text('fine\n"not closed\n')
    with pytest.raises(RunError, match="line 2 of"):
        run.read_keys(path)
    with pytest.raises(RunError, match="cannot be read"):
        run.read_keys(tmp_path)


# --- stages


@pytest.fixture
def stage(tmp_path):
    run.save_array(tmp_path / "stage" / "part" / "a.npy", np.arange(3))
    run.write_json(tmp_path / "stage" / "b.json", 1)
    (tmp_path / "stage" / "c.npy.part").write_bytes(b"half")
    return tmp_path / "stage"


def test_a_stage_is_done_when_it_says_so(stage):
    assert run.finished(stage) is None
    run.finish(stage, accuracy=0.5)
    facts = run.finished(stage)
    assert facts is not None
    assert facts["accuracy"] == 0.5
    assert sorted(facts["files"]) == ["b.json", "part/a.npy"]
    assert facts["files"]["b.json"] == run.digest(stage / "b.json")


def test_a_stage_may_list_its_files_itself(stage):
    run.finish(stage, files=[stage / "b.json"])
    (stage / "part" / "a.npy").unlink()
    assert list(run.finished(stage)["files"]) == ["b.json"]


def test_an_altered_stage_is_refused(stage):
    run.finish(stage)
    (stage / "b.json").write_text("2")
    with pytest.raises(RunError, match=r"b.json was altered since"):
        run.finished(stage)
    (stage / "b.json").unlink()
    with pytest.raises(RunError, match=r"b.json is missing since"):
        run.finished(stage)


# --- run directories


def test_a_run_continues_with_the_same_settings_only(tmp_path):
    with run.RunDirectory(tmp_path / "run", {"seed": 1, "rule": ("gap",)}):
        pass
    with run.RunDirectory(tmp_path / "run", {"seed": 1, "rule": ["gap"]}):
        pass
    with (
        pytest.raises(RunError, match="begun with seed = 1, now it is 2"),
        run.RunDirectory(tmp_path / "run", {"seed": 2, "rule": ["gap"]}),
    ):
        pass
    with pytest.raises(RunError, match="begun with rule"), run.RunDirectory(tmp_path / "run", {"seed": 1}):
        pass
    with (
        pytest.raises(RunError, match="begun with new = None, now it is 3"),
        run.RunDirectory(tmp_path / "run", {"seed": 1, "rule": ["gap"], "new": 3}),
    ):
        pass
    with run.RunDirectory(tmp_path / "run", {"seed": 1, "rule": ["gap"]}):
        pass  # a refusal does not leave the folder locked


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RunError, match=r"is no run of untaint \(it holds thesis.tex\)"), run.RunDirectory(tmp_path, {}):
        pass
    assert not (tmp_path / "settings.json").exists()


def test_one_owner_at_a_time(tmp_path):
    with (
        run.RunDirectory(tmp_path / "run", {}),
        pytest.raises(RunError, match="another process is working in"),
        run.RunDirectory(tmp_path / "run", {}),
    ):
        pass
    with run.RunDirectory(tmp_path / "run", {}):
        pass


def test_the_lock_of_a_killed_process_is_gone(tmp_path):
    program = f"""
import os
from untaint.run import RunDirectory
with RunDirectory({str(tmp_path / "run")!r}, {{}}):
    os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 9
    with run.RunDirectory(tmp_path / "run", {}):
        pass


def test_altered_settings_are_refused(tmp_path):
    with run.RunDirectory(tmp_path, {"seed": 1}):
        pass
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(RunError, match="cannot be read"), run.RunDirectory(tmp_path, {"seed": 1}):
        pass


def test_a_run_inside_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="could not be written"), run.RunDirectory(tmp_path / "file" / "run", {}):
        pass


def test_a_folder_can_be_checked_before_anything_is_begun(tmp_path):
    place = tmp_path / "run"
    run.RunDirectory(place, {"a": 1}).check()
    assert not place.exists()
    with run.RunDirectory(place, {"a": 1}):
        pass
    before = sorted(path.name for path in place.iterdir())
    run.RunDirectory(place, {"a": 1}).check()
    with pytest.raises(RunError, match="begun with a = 1, now it is 2"):
        run.RunDirectory(place, {"a": 2}).check()
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"it holds notes\.txt"):
        run.RunDirectory(tmp_path / "own", {"a": 1}).check()
    with pytest.raises(RunError, match=r"notes\.txt"):
        run.RunDirectory(tmp_path / "own" / "notes.txt", {"a": 1}).check()
    assert sorted(path.name for path in place.iterdir()) == before
