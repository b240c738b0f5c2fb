from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from untaint import run
from untaint.errors import RunError
from untaint.report import read_marks
from untaint.report.marks import key_line, write_marks

MARKS = st.sampled_from(["fine", "poison"])
KEYS = st.one_of(
    st.text(), st.sampled_from(["", " ", "#a", '"', '"a"', "a\tb", "a\nb", "\ufeff", "caf\udce9", " a", "fine\tx"])
)


@given(st.dictionaries(KEYS, MARKS, max_size=8))
def test_what_is_written_is_read(marks):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "marks.txt"
        write_marks(path, marks)
        assert read_marks(path) == marks
        assert list(read_marks(path)) == list(marks)


@given(st.lists(KEYS, max_size=8))
def test_keys_are_written_as_lists_of_keys_are(keys):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "keys.txt"
        run.write_keys(path, keys)
        written = "".join(key_line(key) + "\n" for key in keys)
        assert path.read_bytes() == written.encode("utf-8", "surrogateescape")


def test_comments_blank_lines_and_other_line_ends(tmp_path):
    path = tmp_path / "marks.txt"
    path.write_bytes(b'\xef\xbb\xbf# mine\r\n\r\nfine\ta b.png\r\npoison\t"two\\nlines"\r\nfine\ta b.png\r\n')
    assert read_marks(path) == {"a b.png": "fine", "two\nlines": "poison"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fine a.png\n", "line 1 of .* is 'fine a.png'. Write 'fine' or 'poison', a tab, and a key"),
        ("fine\t\n", "line 1 of"),
        ("fine\ta\npoisson\tb\n", "line 2 of .* 'poisson'.* Did you mean 'poison'"),
        ('fine\t"a\n', "line 1 of .* not JSON"),
        ("fine\ta\npoison\ta\n", "line 2 of .* marks 'a' as poison, an earlier line as fine"),
    ],
)
def test_errors_name_the_line(tmp_path, text, message):
    path = tmp_path / "marks.txt"
    path.write_text(text)
    with pytest.raises(RunError, match=message):
        read_marks(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(RunError, match="no such file"):
        read_marks(tmp_path / "none.txt")
