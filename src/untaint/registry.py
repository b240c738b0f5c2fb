"""Named things, one file each: the file name is the name.

``attacks/sinusoid.py`` defines ``Sinusoid`` and is called ``sinusoid``; ``_`` in a file name is
``-`` in its name. Third parties add theirs through entry points of the same group.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
from typing import Generic, TypeVar, cast

from untaint import spec
from untaint.errors import SpecError, did_you_mean

__all__ = ["Registry"]

T = TypeVar("T")


class Registry(Generic[T]):
    """The attacks, or the defences: ``names()``, ``kind(name)``, ``build("name:key=value")``."""

    def __init__(self, package: str, what: str) -> None:
        """``package``: where the files lie and the entry point group; ``what``: the word for messages."""
        self.package = package
        self.what = what

    def _files(self) -> dict[str, str]:
        folder = importlib.import_module(self.package)
        return {
            module.name.replace("_", "-"): module.name
            for module in pkgutil.iter_modules(folder.__path__)
            if module.name != "base" and not module.name.startswith("_")
        }

    def _plugins(self) -> dict[str, importlib.metadata.EntryPoint]:
        return {point.name: point for point in importlib.metadata.entry_points(group=self.package)}

    def names(self) -> list[str]:
        """Return all names in order, without importing what they name."""
        return sorted({*self._files(), *self._plugins()})

    def kind(self, name: str) -> type[T]:
        """Return the class of that name."""
        files = self._files()
        if name in files:
            module = importlib.import_module(f"{self.package}.{files[name]}")
            wanted = files[name].replace("_", "")
            for attribute, value in vars(module).items():
                if isinstance(value, type) and attribute.lower().rstrip("_") == wanted:  # None_ where the word is taken
                    return cast(type[T], value)
            raise SpecError(f"{module.__name__} does not define the {self.what} it is named after.")
        plugins = self._plugins()
        if name in plugins:
            return cast(type[T], plugins[name].load())
        raise SpecError(f"no {self.what} '{name}'.{did_you_mean(name, self.names())}")

    def build(self, text: str) -> T:
        """Make one from ``name:key=value,...``."""
        name, options = spec.parse(text)
        return spec.build(self.kind(name), name, options)

    def name_of(self, thing: T) -> str:
        """Return the name under which a thing's class is registered."""
        for name, module in self._files().items():
            if type(thing).__module__ == f"{self.package}.{module}":
                return name
        for name, point in self._plugins().items():
            if point.value == f"{type(thing).__module__}:{type(thing).__qualname__}":
                return name
        return type(thing).__name__
