"""A grid file: what to run, as data. Every value that is a list is swept over.

    title = "Several attacks at once"

    [data.cifar10]                       # a name for the tables
    source = "cifar10"                   # sample, a path, or a name of torchvision; --data cifar10=PATH replaces it
    size = 32                            # pixels per side; left out: the shorter side, at most 64

    [attacks]                            # sets of attacks that come together
    five = ["patch:rate=0.01", "sinusoid:class-rate=0.1", ...]

    [defences]                           # short names for tables and plots, where a defence has many options
    "badloss on margins" = "badloss:observable=margin,centre=class @ fraction:share=0.4"

    [[grid]]
    data = "cifar10"
    rows = 20000                         # drawn by the seed; left out: all
    attacks = ["five", "each of five"]   # all at once, and one at a time
    defences = ["none", "oracle", "badloss on margins", "cross-examination"]
    seeds = [0, 1, 2]

A seed redraws the subset, the poison, the targets (of attacks that name none), the probes and the
models' weights. A defence is ``name:key=value,... @ rule``, and perhaps `` then name:key=value,...``: another that is given
what the first kept.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from untaint import spec
from untaint.attacks import ATTACKS
from untaint.bench.toml_file import TomlFile
from untaint.defenses import DEFENSES, Detector
from untaint.defenses.oracle import Oracle
from untaint.errors import SpecError, did_you_mean
from untaint.models.build import require
from untaint.recipe import Preset, Recipe, preset
from untaint.scores import parse_rule

__all__ = ["Defender", "Grid", "Setting", "Source", "read_grid"]

EACH = "each of "
THEN = " then "  # between a detector and the defence that is given what it keeps
NOBODY = "nobody"  # a set of attacks that is always there: no poison at all


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Everything about an experiment but the defence.

    ``data``: its name in the file. ``rows``: how many of its pictures, all if None. ``attacks``: the
    set's name; ``attackers``: their texts. ``probes``: how many, of which a share ``bad_probes`` is
    poisoned. ``label_noise``: share of the clean rows that are given another label. ``long_tail``: how many
    times larger the largest class is made than the smallest. ``overlap``: share of each attacker's pictures that have the trigger
    of the next one too. The rest changes the preset: ``epochs``
    those watched, ``horizon`` the schedule that they begin, ``retrain_epochs`` the epochs of the
    undefended and the clean model, ``batch``, ``model`` and ``augment`` all of its recipes;
    ``watch_model`` all models but those two. ``detect_only``: no model is trained on what is kept.
    """

    data: str
    attacks: str
    attackers: tuple[str, ...]
    rows: int | None = None
    probes: int = 250
    bad_probes: float = 0.0
    label_noise: float = 0.0
    long_tail: float = 1.0
    overlap: float = 0.0
    preset: str = "fast"
    epochs: int | None = None
    horizon: int | None = None
    retrain_epochs: int | None = None
    batch: int | None = None
    model: str | None = None
    watch_model: str | None = None
    detect_only: bool = False
    augment: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (
            ("rows", 2),
            ("probes", 0),
            ("long_tail", 1),
            ("epochs", 1),
            ("retrain_epochs", 1),
            ("batch", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise SpecError(f"{name} is {value}; give at least {least}.")
        for name in ("bad_probes", "label_noise"):
            if not 0 <= getattr(self, name) < 1:
                raise SpecError(f"{name} is {getattr(self, name)}; give a share from 0 to less than 1.")
        if not 0 <= self.overlap <= 1:
            raise SpecError(f"overlap is {self.overlap}; give a share from 0 to 1.")
        self.recipes()

    def recipes(self) -> Preset:
        """Return the preset with this setting's changes."""
        chosen = preset(self.preset).changed(model=self.model, epochs=self.epochs, augment=self.augment)  # type: ignore[arg-type]
        schedule = self.retrain_epochs if chosen.retrain.horizon is not None else None
        return dataclasses.replace(
            chosen,
            watch=_changed(chosen.watch, horizon=self.horizon, batch=self.batch, model=self.watch_model),
            witness=_changed(chosen.witness, batch=self.batch, model=self.watch_model),
            retrain=_changed(chosen.retrain, epochs=self.retrain_epochs, horizon=schedule, batch=self.batch),
        )

    def title(self) -> str:
        """Return what tables call it: data, size, attacks, and what is not as usual."""
        usual = Setting(data="", attacks="", attackers=())
        named = ("data", "rows", "attacks", "attackers", "seed")
        shown = [field.name for field in dataclasses.fields(self) if field.name not in named]
        odd = [name for name in shown if getattr(self, name) != getattr(usual, name)]
        values = {name: getattr(self, name) for name in odd}
        words = [name.replace("_", " ") + ("" if value is True else f" {value}") for name, value in values.items()]
        return ", ".join([f"{self.data}{'' if self.rows is None else f' {self.rows:,}'}", self.attacks, *words])


def _changed(recipe: Recipe, **changes: Any) -> Recipe:
    return dataclasses.replace(recipe, **{name: value for name, value in changes.items() if value is not None})


@dataclass(frozen=True, kw_only=True)
class Defender:
    """A defence as the file asks for it, ``name:key=value,... @ rule``; without a rule it has its own, or the preset's.

    With `` then name:key=value,...`` behind it, what it keeps is given to another, which trains the model.
    ``called``: what tables call it, its text if the file gives no shorter name; no part of what it is.
    """

    text: str
    called: str = dataclasses.field(default="", compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "called", self.called or self.text)

    @property
    def defence(self) -> str:
        """The defence's own text."""
        return self.text.partition(THEN)[0].partition("@")[0].strip()

    @property
    def rule(self) -> str | None:
        """The rule's text, if one is given."""
        return self.text.partition(THEN)[0].partition("@")[2].strip() or None

    @property
    def then(self) -> str | None:
        """The text of the defence that is given what this one keeps, if there is one."""
        return self.text.partition(THEN)[2].strip() or None

    def check(self, setting: Setting) -> None:
        """Raise SpecError unless both can be built and used in this setting."""
        judge = DEFENSES.build(self.defence)
        if self.rule is not None:
            parse_rule(self.rule)
            if not isinstance(judge, Detector):
                raise SpecError(f"'{self.defence}' decides nothing; leave out '@ {self.rule}'.")
        if isinstance(judge, Detector) and not isinstance(judge, Oracle):
            judge.require(setting.recipes())
        if self.then is not None:
            if not isinstance(judge, Detector):
                raise SpecError(f"'{self.defence}' keeps everything; leave out 'then {self.then}', or name that alone.")
            if isinstance(DEFENSES.build(self.then), Detector):
                raise SpecError(
                    f"'{self.then}' would judge examples, too. Behind 'then' name one that trains, such as eigenguard."
                )
            if setting.detect_only:
                raise SpecError(f"'then {self.then}' trains a model; leave it out where detect_only is true.")
        if setting.detect_only and not isinstance(judge, Detector):
            raise SpecError(f"'{self.defence}' detects nothing; leave it out where detect_only is true.")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a data set is, and at how many pixels per side it is read."""

    place: str
    size: int | None = None


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What one file asks for: ``cells`` in the order in which they are run; ``sources``: where each data set is."""

    title: str
    name: str
    sources: dict[str, Source]
    cells: tuple[tuple[Setting, tuple[Defender, ...]], ...]


def read_grid(path: str | Path, places: dict[str, str] | None = None) -> Grid:
    """Return what a grid file asks for, checked as far as that goes without the pictures.

    ``places``: sources by the name of a data set, instead of the file's. Raises SpecError with file
    and line.
    """
    file = TomlFile(Path(path))
    file.known(file.facts, ("title", "data", "attacks", "defences", "grid"), "entry", "")
    sources = _sources(file, places or {})
    sets, named = _attack_sets(file), _named_defences(file)
    tables = file.facts.get("grid", [])
    if not isinstance(tables, list) or not tables:
        raise SpecError(f"{file.path} has no [[grid]]. Say what to run: data, attacks, defences, seeds.")
    cells: dict[Setting, dict[Defender, None]] = {}  # in order, none twice
    for table in tables:
        for setting, defenders in _crossed(file, table, sources, sets, named):
            cells.setdefault(setting, {}).update(dict.fromkeys(defenders))
    listed = tuple((setting, tuple(defenders)) for setting, defenders in cells.items())
    title = str(file.facts.get("title", file.path.stem))
    return Grid(title=title, name=file.path.stem, sources=sources, cells=listed)


def _sources(file: TomlFile, places: dict[str, str]) -> dict[str, Source]:
    tables = file.facts.get("data", {})
    file.known(tables, tables, "data set", "")
    found: dict[str, Source] = {}
    for name, table in tables.items():
        file.known(table, ("source", "size"), "entry of a data set", f"[data.{name}]")
        size = table.get("size")
        if size is not None and (not isinstance(size, int) or size < 1):
            raise file.wrong(f"size is {size!r}; give a number of pixels.", "size", f"[data.{name}]")
        found[name] = Source(place=str(table.get("source", name)), size=size)
    for name in places:
        if name not in found:
            raise SpecError(f"--data names '{name}', which {file.path} does not use.{did_you_mean(name, found)}")
    return {name: dataclasses.replace(one, place=places.get(name, one.place)) for name, one in found.items()}


def _attack_sets(file: TomlFile) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {NOBODY: ()}
    for name, texts in file.facts.get("attacks", {}).items():
        listed = _listed(texts)
        for text in listed:
            try:
                ATTACKS.build(text)
            except SpecError as error:
                raise file.wrong(str(error), text) from error
        found[name] = tuple(listed)
    return found


def _named_defences(file: TomlFile) -> dict[str, str]:
    """Return the texts of defences by the names that the file gives them; checked where they are used."""
    found: dict[str, str] = {}
    table = file.facts.get("defences", {})
    file.known(table, table, "named defence", "")
    for name, text in table.items():
        if name in DEFENSES.names():
            raise file.wrong(f"'{name}' is a defence already. Give it another name.", name, "[defences]")
        if not isinstance(text, str):
            raise file.wrong(f"'{name}' is {text!r}; give one defence, as a text in quotes.", name, "[defences]")
        found[name] = text
    return found


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _crossed(
    file: TomlFile, table: Any, sources: dict[str, Source], sets: dict[str, tuple[str, ...]], named: dict[str, str]
) -> Iterable[tuple[Setting, list[Defender]]]:
    hints = get_type_hints(Setting)
    swept = [name for name in hints if name not in ("attackers", "seed")]
    known = [*swept, "seeds", "defences", "number", "rate"]
    file.known(table, known, "entry of a grid", "[[grid]]")
    for needed in ("data", "attacks", "defences"):
        if needed not in table:
            raise file.wrong(f"a [[grid]] has no {needed}. Give one, or a list.", "[[grid]]")
    for name in _listed(table["data"]):
        if name not in sources:
            raise file.wrong(f"no data set '{name}'.{did_you_mean(str(name), sources)}", str(name), "[[grid]]")
    defenders = [_defender(file, str(text), named) for text in _listed(table["defences"])]
    axes = {key: _listed(table[key]) for key in known if key in table and key not in ("attacks", "defences")}
    axes.setdefault("seeds", [0])
    axes["attacks"] = [one for text in _listed(table["attacks"]) for one in _sets(file, str(text), sets)]
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        name, texts = chosen.pop("attacks")
        texts, name = _altered(file, texts, name, chosen.pop("number", None), chosen.pop("rate", None))
        chosen["seed"] = chosen.pop("seeds")
        chosen = {key: _typed(file, key, value, hints[key]) for key, value in chosen.items()}
        try:
            setting = Setting(attacks=name, attackers=texts, **chosen)
            for model in {setting.model, setting.watch_model} - {None}:
                require(str(model))
        except SpecError as error:
            word = min((key for key in chosen if key in str(error)), key=str(error).index, default="[[grid]]")
            raise file.wrong(str(error), word, "[[grid]]") from error
        for defender in defenders:
            try:
                defender.check(setting)
            except SpecError as error:
                raise file.wrong(
                    str(error), defender.text, "[defences]" if defender.called in named else "[[grid]]"
                ) from error
        yield setting, defenders


def _defender(file: TomlFile, text: str, named: dict[str, str]) -> Defender:
    made = Defender(text=named.get(text, text), called=text)
    known = DEFENSES.names()
    for part in filter(None, (made.defence, made.then)):
        name = part.partition(":")[0].strip()
        if name not in known:
            raise file.wrong(
                f"no defence '{name}'.{did_you_mean(name, [*named, *known])}",
                text,
                "[defences]" if text in named else "[[grid]]",
            )
    return made


def _sets(file: TomlFile, text: str, sets: dict[str, tuple[str, ...]]) -> list[tuple[str, tuple[str, ...]]]:
    """Return (name, attacks) of a set, or of each attack of it by itself."""
    single = text.startswith(EACH)
    name = text.removeprefix(EACH).strip()
    if name not in sets:
        raise file.wrong(f"no attacks '{name}'.{did_you_mean(name, sets)}", text, "[[grid]]")
    return [(one, (one,)) for one in sets[name]] if single else [(name, sets[name])]


def _altered(
    file: TomlFile, texts: Sequence[str], name: str, number: int | None, rate: float | None
) -> tuple[tuple[str, ...], str]:
    """Return the first ``number`` attacks of a set, each at this rate, and what tables call that."""
    if number is not None:
        if not isinstance(number, int) or not 1 <= number <= len(texts):
            raise file.wrong(f"number is {number}; '{name}' has {len(texts)} attacks.", "number", "[[grid]]")
        texts, name = texts[:number], f"{number} of {name}"
    if rate is not None:
        changed = []
        for text in texts:
            kind, options = spec.parse(text)
            kept = {key: value for key, value in options.items() if key not in ("rate", "class_rate")}
            changed.append(f"{kind}:" + ",".join(f"{key}={value}" for key, value in {**kept, "rate": rate}.items()))
        texts, name = changed, f"{name} at {rate:g}"
    return tuple(texts), name


def _typed(file: TomlFile, key: str, value: Any, hint: Any) -> Any:
    """Return the value if it is of the field's type; a whole number serves as a number."""
    wanted = next(kind for kind in getattr(hint, "__args__", (hint,)) if kind is not type(None))
    fits = isinstance(value, wanted) or (wanted is float and isinstance(value, int))
    if not fits or isinstance(value, bool) is not (wanted is bool):
        word = {int: "a whole number", float: "a number", str: "a text in quotes", bool: "true or false"}[wanted]
        raise file.wrong(f"{key} is {value!r}; give {word}.", "seeds" if key == "seed" else key, "[[grid]]")
    return wanted(value)
