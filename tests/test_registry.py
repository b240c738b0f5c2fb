from __future__ import annotations

import importlib.metadata
import sys
import textwrap

import pytest

from untaint.errors import SpecError
from untaint.registry import Registry

FILES = {
    "base.py": "class Attack: pass",
    "_helper.py": "raise RuntimeError('never imported')",
    "square.py": """
        from dataclasses import dataclass
        from zoo.base import Attack
        @dataclass(frozen=True)
        class Square(Attack):
            target: int
            size: int = 3
        """,
    "red_wine.py": """
        class Other: pass
        class RedWine: pass
        """,
    "empty.py": "class Full: pass",
    "broken.py": "raise RuntimeError('imported')",
}


@pytest.fixture
def zoo(tmp_path, monkeypatch) -> Registry:
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / "__init__.py").touch()
    for name, text in FILES.items():
        (tmp_path / "zoo" / name).write_text(textwrap.dedent(text))
    (tmp_path / "elsewhere.py").write_text("class Foreign: pass\nclass Square: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    points = [
        importlib.metadata.EntryPoint("foreign", "elsewhere:Foreign", "zoo"),
        importlib.metadata.EntryPoint("square", "elsewhere:Square", "zoo"),
    ]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points if group == "zoo" else [])
    yield Registry("zoo", "attack")
    for name in [name for name in sys.modules if name.split(".")[0] in ("zoo", "elsewhere")]:
        del sys.modules[name]


def test_names_are_those_of_files_and_plugins_and_nothing_is_imported(zoo):
    assert zoo.names() == ["broken", "empty", "foreign", "red-wine", "square"]
    assert "zoo.broken" not in sys.modules


def test_the_file_name_is_the_name(zoo):
    assert zoo.kind("red-wine").__name__ == "RedWine"
    assert zoo.kind("square").__module__ == "zoo.square"  # a plugin cannot take a built-in name
    assert zoo.kind("foreign").__module__ == "elsewhere"


def test_things_are_built_from_text_and_know_their_name(zoo):
    square = zoo.build("square:target=4")
    assert (square.target, square.size) == (4, 3)
    assert zoo.name_of(square) == "square"
    assert zoo.name_of(zoo.kind("foreign")()) == "foreign"
    assert zoo.name_of(object()) == "object"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sqare:target=4", "no attack 'sqare'. Did you mean 'square'?"),
        ("base", "no attack 'base'."),
        ("red_wine", "no attack 'red_wine'. Did you mean 'red-wine'?"),
        ("square:target=4,sise=3", "'square' has no option 'sise'. Did you mean 'size'?"),
        ("empty", "zoo.empty does not define the attack it is named after."),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(zoo, text, message):
    with pytest.raises(SpecError) as caught:
        zoo.build(text)
    assert message in str(caught.value)
