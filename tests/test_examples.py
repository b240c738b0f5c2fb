from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from untaint import run
from untaint.errors import InputError, ProbeError
from untaint.examples import Examples

KEYS = ["cat/a.png", "cat/b.png", "dog/1.png", "dog/2.png", "dog/3.png", "3"]


@pytest.fixture
def six() -> Examples:
    images = np.arange(6 * 3 * 4 * 4, dtype=np.uint8).reshape(6, 3, 4, 4)
    return Examples.of(images, [0, 0, 1, 1, 1, 2], class_names=["cat", "dog", "owl"], keys=KEYS, source="here")


def test_it_says_what_it_holds(six):
    assert repr(six) == "<6 pictures (3x4x4) of 3 classes from here>"
    assert repr(six.take([1])) == "<1 of 6 pictures (3x4x4) of 3 classes from here>"


def test_names_and_keys_are_made_up_where_none_are_given():
    examples = Examples.of(np.zeros((12, 1, 2, 2), np.uint8), [0, 2] * 6)
    assert examples.class_names == ("0", "1", "2")
    assert list(examples.keys[:2]) == ["00", "01"]
    empty = Examples.of(np.zeros((0, 3, 2, 2), np.uint8), [])
    assert (len(empty), empty.total, empty.class_names) == (0, 0, ())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((6, 4, 4, 3), np.uint8)}, r"images are uint8 \(6, 4, 4, 3\)"),
        ({"images": np.zeros((6, 3, 4, 4), np.float32)}, "images are float32"),
        ({"images": np.zeros((6, 4, 4), np.uint8)}, "give uint8 of"),
        ({"labels": [0, 1]}, "6 images but 2 labels"),
        ({"labels": [0, 0, 0, 0, 0, 3]}, "labels run from 0 to 3, but there are 3 classes"),
        ({"labels": [-1, 0, 0, 0, 0, 0]}, "labels run from -1"),
        ({"keys": ["a"]}, "6 images but 1 keys"),
        ({"keys": ["a", "b", "c", "a", "e", "f"]}, "'a' occurs twice"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    given_ = {
        "images": np.zeros((6, 3, 4, 4), np.uint8),
        "labels": [0] * 6,
        "class_names": "abc",
        "keys": KEYS,
        **change,
    }
    with pytest.raises(InputError, match=message):
        Examples.of(given_.pop("images"), given_.pop("labels"), **given_)


def test_members_are_pictures_with_labels(six):
    part = six.take([4, 2])
    picture, label = part[0]
    assert np.array_equal(picture, six.images[2])
    assert label == 1
    picture[:] = 0
    assert six.images[2].any()
    assert [label for _, label in (part[i] for i in range(len(part)))] == [1, 1]
    with pytest.raises(IndexError):
        part[2]


@given(st.sets(st.integers(0, 5)), st.sets(st.integers(0, 5)))
def test_subsets_carry_rows_and_renumber_nothing(first, second):
    labels = np.array([0, 0, 1, 1, 1, 2])
    everything = Examples.of(np.zeros((6, 1, 2, 2), np.uint8), labels)
    part = everything.take(sorted(first, reverse=True))
    assert part.rows.tolist() == sorted(first)
    assert part.total == 6
    mask = np.isin(np.arange(6), list(first))
    assert everything.take(mask).rows.tolist() == sorted(first)
    rest = part.without(np.array(sorted(second), dtype=np.int64))
    assert rest.rows.tolist() == sorted(first - second)
    assert rest.counts().tolist() == [int((labels[rest.rows] == label).sum()) for label in range(3)]


@pytest.mark.parametrize("rows", [[6], [-1], [0, 99]])
def test_rows_that_do_not_exist_are_refused(six, rows):
    with pytest.raises(InputError, match=r"not among the 6 rows"):
        six.take(rows)


def test_a_mask_of_another_length_is_refused(six):
    with pytest.raises(InputError, match="2 entries for 6 rows"):
        six.take([True, False])


def test_examples_are_found_by_key_row_mask_and_file(six, tmp_path):
    assert six.find(["dog/2.png", "cat/a.png", "dog/2.png"]).tolist() == [0, 3]
    assert six.find([4, 1]).tolist() == [1, 4]
    assert six.find(np.array([True, False, False, False, False, True])).tolist() == [0, 5]
    assert six.find(["4"]).tolist() == [4]
    assert six.find(["3"]).tolist() == [5]  # a key goes before a row number
    assert six.find([]).tolist() == []
    run.write_keys(tmp_path / "verified.txt", ["cat/b.png", "dog/3.png"])
    assert six.find(tmp_path / "verified.txt").tolist() == [1, 4]
    assert six.find(str(tmp_path / "verified.txt")).tolist() == [1, 4]


def test_what_is_not_found_is_named_with_the_nearest(six, tmp_path):
    with pytest.raises(
        ProbeError, match=r"1 of 2 keys in the list given are not in the data, first 'dog/4.png'. Nearest: dog/"
    ):
        six.find(["cat/a.png", "dog/4.png"])
    with pytest.raises(ProbeError, match=r"Keys look like 'cat/a.png'"):
        six.find(["~"])
    with pytest.raises(ProbeError, match="row 6 is not among the 6 rows"):
        six.find([0, 6])
    with pytest.raises(ProbeError, match="row -2 is not"):
        six.find([0, -2])
    with pytest.raises(ProbeError, match="does not exist"):
        six.find(tmp_path / "nobody.txt")


def test_the_fingerprint_covers_everything_that_matters(six):
    def of(**change):
        given_ = {"images": six.images, "labels": six.labels, "class_names": six.class_names, "keys": KEYS, **change}
        return Examples.of(given_.pop("images"), given_.pop("labels"), **given_).fingerprint

    other = six.images.copy()
    other[5, 2, 3, 3] ^= 1
    changed = {
        of(),
        of(images=other),
        of(images=six.images.reshape(6, 3, 2, 8)),
        of(labels=[0, 0, 1, 1, 1, 1]),
        of(class_names=["cat", "dog", "owls"]),
        of(keys=[*KEYS[:5], "4"]),
        six.take([0, 1]).fingerprint,
    }
    assert len(changed) == 7
    assert of() == six.fingerprint
    assert six.take(range(6)).fingerprint == six.fingerprint


def test_keys_that_are_no_text_still_have_a_fingerprint():
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    assert len(Examples.of(np.zeros((1, 1, 2, 2), np.uint8), [0], keys=[name]).fingerprint) == 64
