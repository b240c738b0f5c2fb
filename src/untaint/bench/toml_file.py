"""A TOML file that somebody wrote by hand: what is wrong in it is said with its line."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from untaint.errors import SpecError, did_you_mean

__all__ = ["TomlFile"]


class TomlFile:
    """The entries of a file, ``facts``, and its text, for messages that name the line."""

    def __init__(self, path: Path) -> None:
        """Read the file; raises SpecError if it is not there or no TOML."""
        self.path = path
        try:
            self.text = path.read_text()
            self.facts = tomllib.loads(self.text)
        except FileNotFoundError:
            near = did_you_mean(path.name, [p.name for p in path.parent.glob("*.toml")]) if path.parent.is_dir() else ""
            raise SpecError(f"{path} does not exist.{near} Give a grid file, such as experiments/smoke.toml.") from None
        except (OSError, UnicodeDecodeError) as error:
            raise SpecError(f"{path} cannot be read ({error}). Give a grid file.") from error
        except tomllib.TOMLDecodeError as error:
            raise SpecError(f"{path} is no TOML: {error}.") from error

    def wrong(self, what: str, word: str, after: str = "") -> SpecError:
        """Return an error that names the first line with this word, below the line with ``after``."""
        lines = self.text.splitlines()
        begin = next((number for number, line in enumerate(lines) if after and after in line), 0)
        found = next((number for number, line in enumerate(lines[begin:], begin + 1) if word in line), None)
        return SpecError(f"{self.path}{'' if found is None else f', line {found}'}: {what}")

    def known(self, table: Any, names: Iterable[str], what: str, after: str) -> None:
        """Refuse what is no table, and a key that is none of ``names``."""
        if not isinstance(table, dict):
            raise self.wrong(f"{table!r} is no table of {what}s.", str(table), after)
        for key in table:
            if key not in names:
                raise self.wrong(f"no {what} '{key}'.{did_you_mean(key, names)}", key, after)
