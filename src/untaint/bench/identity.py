"""What a result is of: settings, recipes and the versions raised by hand; and whether that is still so.

Written out in each result's file, so that a difference can be named, and so that a setting or a
recipe may gain an option without a result becoming another: what a file does not say was as it is by default.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from untaint import recipe, run, spec
from untaint.attacks import ATTACKS
from untaint.bench.grid import Defender, Setting
from untaint.defenses import DEFENSES
from untaint.recipe import Recipe

__all__ = ["differences", "digest", "file_name", "origin"]

USUAL = {
    "setting": dataclasses.asdict(Setting(data="", attacks="", attackers=())),
    **dict.fromkeys(("watch", "witness", "retrain"), Recipe().facts()),
}
NONE: Mapping[str, Any] = {}


def origin(setting: Setting, defender: Defender) -> dict[str, Any]:
    """Return all that a result depends on but the data's pictures, as plain JSON values."""
    recipes = dataclasses.asdict(setting.recipes())
    trained = {name: recipes.pop(name) for name in ("watch", "witness", "retrain")}
    attacks = [text.partition(":")[0] for text in setting.attackers]
    versions = {
        "defence": DEFENSES.kind(defender.defence.partition(":")[0]).version,
        "recipes": recipe.VERSION,
        **({"then": DEFENSES.kind(spec.parse(defender.then)[0]).version} if defender.then else {}),
        **{name: ATTACKS.kind(name).version for name in attacks},
    }
    facts = {
        "setting": dataclasses.asdict(setting),
        "defence": {"text": defender.text},
        **trained,
        "preset": recipes,
        "versions": versions,
        "files": {path: _content(Path(path)) for path in _files(setting)},
    }
    plain: dict[str, Any] = json.loads(json.dumps(facts))
    return plain


def _files(setting: Setting) -> list[str]:
    """Return the files and folders that attacks are made from, such as the picture of a blend."""
    options = [(name, key, value) for name, found in map(spec.parse, setting.attackers) for key, value in found.items()]
    return sorted({value for name, key, value in options if key in ATTACKS.kind(name).files and Path(value).exists()})


def _content(path: Path) -> str:
    """Return the hash of a file, or of all files below a folder and their names."""
    if path.is_file():
        return run.digest(path)
    below = sorted(file for file in path.rglob("*") if file.is_file())
    return digest([[str(file.relative_to(path)), run.digest(file)] for file in below])


def differences(found: Any, now: Mapping[str, Any]) -> list[str]:
    """Return what differs between the origin in a file and today's, one entry each: ``versions: patch is 1, now 2``."""
    if not isinstance(found, Mapping):
        return ["nothing is said of its settings"]
    said = []
    for part, facts in now.items():
        usual, before = USUAL.get(part, NONE), found.get(part, NONE)
        for name in sorted({*facts, *before}):
            old, new = (values.get(name, usual.get(name)) for values in (before, facts))
            if old != new:
                said.append(f"{part}: {name} is {old}, now {new}")
    return said


def file_name(setting: Setting, defender: Defender) -> str:
    """Return the name of a result's file: words, and a hash of what is not as by default."""
    words = re.sub(r"[^\w.=]+", "-", f"{setting.title()} {defender.text}".lower())[:90].strip("-")
    odd = {name: value for name, value in dataclasses.asdict(setting).items() if value != USUAL["setting"][name]}
    return f"{words}-seed{setting.seed}-{digest([odd, defender.text])[:8]}.json"


def digest(value: Any) -> str:
    """Return the hash of plain JSON values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
