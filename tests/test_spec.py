from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from untaint import spec
from untaint.errors import SpecError


@dataclass(frozen=True)
class Patch:
    target: int
    rate: float = 0.01
    corner: Literal["upper", "lower"] = "upper"
    clean_label: bool = False
    file: str = "none.png"
    limit: int | None = None
    made: int = dataclasses.field(default=3, init=False)


def test_a_text_is_split_into_name_and_options():
    assert spec.parse("patch") == ("patch", {})
    assert spec.parse(" patch:target=0, rate=0.01 ") == ("patch", {"target": "0", "rate": "0.01"})
    assert spec.parse("patch:clean-label=yes,") == ("patch", {"clean_label": "yes"})
    assert spec.parse("patch:file=a:b=c") == ("patch", {"file": "a:b=c"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("patch:target", "'target' in 'patch:target' is not 'key=value'"),
        ("patch:=3", "is not 'key=value'"),
        ("patch:target=1,target=2", "given twice"),
        (":target=1", "no name"),
        ("", "no name"),
    ],
)
def test_texts_of_another_form_are_refused(text, message):
    with pytest.raises(SpecError, match=message):
        spec.parse(text)


def test_options_become_what_the_fields_say():
    options = {"target": "4", "rate": "2e-3", "corner": "lower", "clean_label": "Yes", "file": "x", "limit": "7"}
    assert spec.build(Patch, "patch", options) == Patch(4, 0.002, "lower", True, "x", 7)
    assert spec.build(Patch, "patch", {"target": "4", "limit": "none"}).limit is None


@pytest.mark.parametrize("word", ["true", "yes", "1"])
def test_words_for_yes_and_no(word):
    opposite = {"true": "false", "yes": "no", "1": "0"}[word]
    assert spec.build(Patch, "patch", {"target": "0", "clean_label": word}).clean_label is True
    assert spec.build(Patch, "patch", {"target": "0", "clean_label": opposite}).clean_label is False


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "'patch' needs target. Write patch:target=VALUE."),
        ({"target": "0", "corners": "upper"}, "'patch' has no option 'corners'. Did you mean 'corner'?"),
        ({"target": "0", "made": "1"}, "has no option 'made'"),
        ({"target": "many"}, "option 'target' of 'patch' is 'many'; give a whole number."),
        ({"target": "0", "rate": "few"}, "give a number"),
        ({"target": "0", "corner": "uper"}, "Did you mean 'upper'?"),
        ({"target": "0", "clean_label": "perhaps"}, "give yes or no"),
        ({"target": "0", "limit": "low"}, "give a whole number"),
    ],
)
def test_wrong_options_are_refused_in_one_sentence(options, message):
    with pytest.raises(SpecError) as caught:
        spec.build(Patch, "patch", options)
    assert message in str(caught.value)


def test_defaults_are_left_out_of_the_text():
    assert spec.text("patch", Patch(0)) == "patch:target=0"
    assert spec.text("patch", Patch(0, clean_label=True)) == "patch:target=0,clean-label=True"


@given(
    st.builds(
        Patch,
        target=st.integers(),
        rate=st.floats(allow_nan=False),
        corner=st.sampled_from(["upper", "lower"]),
        clean_label=st.booleans(),
        file=st.text("abc./_-:=", min_size=1).filter(lambda text: text == text.strip()),
        limit=st.none() | st.integers(),
    )
)
def test_texts_and_settings_are_one(settings):
    assert spec.build(Patch, *spec.parse(spec.text("patch", settings))) == settings
