"""From the words of a command line to a call of one command, or one sentence on what is wrong with them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import io
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from untaint.errors import SpecError, did_you_mean

__all__ = ["flag", "given", "group", "named", "option", "overview", "parse"]

_RULE = re.compile(r"^\W*─{5,}", re.MULTILINE)  # what the parser draws below the message itself
_FRAME = re.compile(r"[─-╿]+")


def option(help: str, metavar: str | None = None, name: str | None = None, also: str | None = None) -> Any:
    """Describe an option that has a default; the default is shown unless it is None. ``also``: another name for it."""
    import tyro

    aliases = [f"--{also}"] if also else None
    return tyro.conf.arg(name=name, help=help, metavar=metavar, help_behavior_hint=_default, aliases=aliases)


def given(help: str, metavar: str) -> Any:
    """Describe an argument that must be given."""
    import tyro

    return tyro.conf.arg(help=help, metavar=metavar)


def flag(help: str, name: str | None = None) -> Any:
    """Describe an option without a value."""
    import tyro

    return tyro.conf.arg(name=name, help=help, help_behavior_hint="")


def group(title: str) -> Any:
    """Describe a dataclass whose fields are options, shown together as ``TITLE options``."""
    import tyro

    return tyro.conf.arg(name=title, help="")


def _default(value: str) -> str:
    return "" if value == "None" else f"(default: {value})"


def named(parameter: inspect.Parameter) -> str:
    """Return the name of a parameter's option, ``--like-this``."""
    for part in getattr(parameter.annotation, "__metadata__", ()):
        if getattr(part, "name", None):
            return f"--{part.name}"
    return "--" + parameter.name.strip("_").replace("_", "-")


def _also(parameter: inspect.Parameter) -> list[str]:
    """Return the other names of a parameter's option."""
    parts = getattr(parameter.annotation, "__metadata__", ())
    return [name for part in parts for name in getattr(part, "aliases", None) or ()]


def overview(commands: Mapping[str, Callable[..., int]], description: str, begin: str) -> str:
    """Return what ``untaint --help`` shows: each command with the first sentence of its docstring."""
    width = max(map(len, commands))
    lines = [
        f"  {name:<{width}}  {(inspect.getdoc(command) or '').splitlines()[0]}" for name, command in commands.items()
    ]
    return "\n".join(
        [
            "usage: untaint COMMAND ...",
            "",
            description,
            "",
            *lines,
            "",
            begin,
            "",
            "About one command: untaint COMMAND --help",
        ]
    )


def parse(commands: Mapping[str, Callable[..., int]], words: Sequence[str]) -> Callable[[], int]:
    """Return the call that the words stand for; ``--help`` prints and leaves.

    Raises SpecError in one sentence for an unknown command or option, a missing or a wrong value.
    """
    import tyro

    first, rest = words[0], list(words[1:])
    if first not in commands:
        kind = "option" if first.startswith("-") else "command"
        raise SpecError(f"no {kind} '{first}'.{did_you_mean(first, [*commands, '--help', '--version'])}")
    command = commands[first]
    asked = {"-h", "--help"} & set(rest)
    if not asked:
        _refuse_unknown(first, command, rest)
    told = _text()
    try:
        # the parser draws frames when standard output can show them: so that they can be told from words
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(sys.stdout if asked else _text()):
            call: Callable[[], int] = tyro.cli(
                _held(command),
                prog=f"untaint {first}",
                description=inspect.getdoc(command),
                args=rest,
                config=(tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone, tyro.conf.OmitArgPrefixes),
            )
    except SystemExit as left:
        if not left.code:
            raise
        told.seek(0)
        raise SpecError(f"{_plain(first, told.read())} See: untaint {first} --help") from None
    return call


def _text() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)


def _held(command: Callable[..., int]) -> Callable[..., Callable[[], int]]:
    """Return a function of the same signature that only remembers its arguments."""

    @functools.wraps(command)
    def hold(*values: Any, **options: Any) -> Callable[[], int]:
        return functools.partial(command, *values, **options)

    return hold


def _options(command: Callable[..., int]) -> list[inspect.Parameter]:
    """Return what a command takes by name; in place of a dataclass its fields."""
    options: list[inspect.Parameter] = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        kind = getattr(parameter.annotation, "__origin__", parameter.annotation)
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            options += inspect.signature(kind, eval_str=True).parameters.values()
        elif parameter.kind is parameter.KEYWORD_ONLY:
            options.append(parameter)
    return options


def _refuse_unknown(name: str, command: Callable[..., int], words: Sequence[str]) -> None:
    options = _options(command)
    known = {named(p) if p.default is not True else f"--no-{named(p)[2:]}" for p in options}
    known |= {name for p in options for name in _also(p)}
    for word in words:
        spelled = word.partition("=")[0].replace("_", "-")
        if word.startswith("--") and len(word) > 2 and spelled not in known:
            raise SpecError(f"'untaint {name}' has no option '{spelled}'.{did_you_mean(spelled, known)}")
    spoken = {word.partition("=")[0].replace("_", "-") for word in words}
    missing = [named(p) for p in options if p.default is p.empty and named(p) not in spoken]
    if missing:
        raise SpecError(f"'untaint {name}' needs {' and '.join(missing)}. See: untaint {name} --help")


def _plain(name: str, boxed: str) -> str:
    """Return the parser's message as one sentence without its frame."""
    body = "\n".join(line for line in boxed.splitlines() if not line.startswith(("╭", "╰")))
    message = " ".join(_FRAME.sub(" ", _RULE.split(body)[0]).split())
    if found := re.match(r"Error parsing (\S+): no type matching (\S+) .*? from \['(.*?)'\]", message):
        wanted = {"INT": "a whole number", "FLOAT": "a number"}.get(found[2], "another value")
        return f"{found[1]} is '{found[3]}'; give {wanted}."
    if found := re.match(r"Missing value for argument '(.*?)'", message):
        return f"{found[1]} has no value after it."
    if found := re.match(r"Missing from [^:]*: (\S+)", message):
        return f"'untaint {name}' needs {found[1]}."
    if found := re.match(r"Unrecognized options: (.*)", message):
        return f"'{found[1]}' is more than 'untaint {name}' takes; a name with spaces needs quotes."
    if found := re.match(r"invalid choice '(.*?)' for argument '(.*?)'.*?\((.*)\)", message):
        known = [word.strip("' ") for word in found[3].split(",")]
        return f"{found[2]} is '{found[1]}', which is not known.{did_you_mean(found[1], [w for w in known if w != 'None'])}"
    return message
