"""The pages tell the truth: snippets run, commands are understood, links lead somewhere, module names are real."""

from __future__ import annotations

import functools
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import untaint as ut
from attacks import test_every_attack as contract
from untaint import attacks, cli, recipe, samples
from untaint.__main__ import main

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NOT_RUN = ("demo", "bench", "--model", "--preset")  # what takes long is only parsed
IN_A_RUN = ("airplane/", "watcher-a/", "watcher-b/", "whitened-a/", "whitened-b/", "witness/", "patterns/", "model/")
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the line in the page that it begins at."""

    language: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    assert text.count("\n```") % 2 == 0, "a block is not closed"
    return [Block(m[1], m[2], text.count("\n", 0, m.start(2)) + 1) for m in BLOCK.finditer(text)]


def commands(page: Path) -> list[list[str]]:
    """Return the words of each command line (``$ ...``) of a page."""
    shown = "".join(block.text for block in blocks(page) if block.language == "console").replace("\\\n", " ")
    return [shlex.split(line[2:], comments=True) for line in shown.splitlines() if line.startswith("$ ")]


def give(words: list[str]) -> int | str | None:
    with pytest.raises(SystemExit) as left:
        main(words)
    return left.value.code


def runnable(page: Path) -> bool:
    has_python = any(block.language == "python" for block in blocks(page))
    return has_python or any(words[0] == "untaint" and not set(NOT_RUN) & set(words) for words in commands(page))


def attack_file(block: Block) -> str | None:
    """Return the file name of a block that is a whole attack: its first line is its path."""
    found = re.match(r"# src/untaint/attacks/(\w+\.py)\n", block.text)
    return found[1] if block.language == "python" and found else None


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], list[str]]:
    """Put the attacks that a page defines where the registry looks; returns their names."""

    def install(page: Path) -> list[str]:
        folder = tmp_path / "attacks"
        folder.mkdir()
        monkeypatch.setattr(attacks, "__path__", [*attacks.__path__, str(folder)])
        files = [(name, block) for block in blocks(page) if (name := attack_file(block))]
        for name, block in files:
            (folder / name).write_text(block.text)
        return [name.removesuffix(".py").replace("_", "-") for name, _ in files]

    return install


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What the pages suppose: photos (300 of ours), probes, a finished scan and a clean model; training is made short."""
    folder = tmp_path_factory.mktemp("docs")
    fast = recipe.PRESETS["fast"]
    short = {
        name: replace(getattr(fast, name), epochs=2, precision="float32") for name in ("watch", "witness", "retrain")
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNTAINT_CACHE", str(folder / "cache"))
        patch.setitem(recipe.PRESETS, "fast", replace(fast, **short))
        patch.chdir(folder)
        for split, each in (("train", 30), ("test", 5)):
            examples = ut.load(samples.path(), split=split)
            for label, name in enumerate(examples.class_names):
                (folder / "photos" / split / name).mkdir(parents=True)
                for number, row in enumerate(np.flatnonzero(examples.labels == label)[:each]):
                    picture = Image.fromarray(examples.images[row].transpose(1, 2, 0))
                    picture.save(folder / "photos" / split / name / f"{number:04d}.png")
        for words in commands(ROOT / "README.md"):
            if words[:2] in (["untaint", "probes"], ["untaint", "scan"], ["untaint", "train"]):
                assert give([*words[1:], "--quiet"]) == 0
        yield folder


@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)], ids=lambda page: page.name)
def test_every_snippet_and_command_of_a_page_runs_in_the_order_of_the_page(
    page: Path,
    workspace: Path,
    installed: Callable[[Path], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(workspace, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    installed(page)
    names: dict[str, object] = {"__name__": "snippet"}
    for block in blocks(page):
        if block.language == "python" and not attack_file(block):
            # blank lines above, so that an error names the line of the page
            exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), names)
        elif block.language == "console":
            for line in block.text.replace("\\\n", " ").splitlines():
                words = shlex.split(line.removeprefix("$ "), comments=True)
                if words[:1] == ["untaint"] and not set(NOT_RUN) & set(words):
                    assert give(words[1:]) == 0, line


@EVERY_PAGE
def test_every_command_is_one_that_there_is(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []

    def stub(command: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(command)  # so that the parser sees the real signature
        def note(*_: object, **options: object) -> int:
            given.append(command.__name__)
            return 0

        return note

    monkeypatch.setattr(cli, "COMMANDS", {name: stub(command) for name, command in cli.COMMANDS.items()})
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for words in commands(page):
        if words[0] == "untaint":
            before = len(given)
            assert cli.run_command(words[1:]) == 0
            assert len(given) == before + 1, words
        elif words[0] == "make":
            assert words[1] in targets, words
        elif words[0] == "python":
            assert (ROOT / words[1]).is_file(), words
        else:
            pytest.fail(f"nobody checks the command {words}")


@EVERY_PAGE
def test_what_is_named_in_the_text_is_there(page: Path) -> None:
    text = BLOCK.sub("", page.read_text())
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert link.startswith("https://") or (page.parent / link).exists(), link
    for line in re.findall(r"`untaint ([^`]*)`", text):
        assert line.split()[0] in {*cli.COMMANDS, "--help", "--version"}, line
    for target in re.findall(r"`make ([^`]*)`", text):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
    for name in re.findall(r"`((?:tests/|src/untaint/|attacks/|defenses/|training/)?\w+\.py)`", text):
        assert any((ROOT / at / name).is_file() for at in ("", "src/untaint", "src/untaint/defenses")), name
    for name in re.findall(r"`(\w[\w-]*/)(?:[\w.]+)?`", text):
        places = [ROOT / name, ROOT / "src/untaint" / name]
        assert any(place.is_dir() for place in places) or name in IN_A_RUN, name
    for attribute in re.findall(r"`ut\.(\w+)", text):
        assert attribute in ut.__all__, attribute


@EVERY_PAGE
def test_every_spec_in_a_table_or_text_can_be_made(page: Path) -> None:
    from untaint.defenses import DEFENSES
    from untaint.scores import RULES, parse_rule

    for spec in re.findall(r"`((?!name:)[a-z-]+:[a-z_-]+=[^`\s]+)`", page.read_text()):
        name = spec.partition(":")[0]
        if name in RULES:
            parse_rule(spec)
        elif name in DEFENSES.names():
            DEFENSES.build(spec)
        else:
            attacks.ATTACKS.build(spec)


def test_the_attack_of_the_page_keeps_the_promises_of_all_attacks(installed: Callable[[Path], list[str]]) -> None:
    (name,) = installed(ROOT / "docs" / "adding-an-attack.md")
    assert name in attacks.ATTACKS.names()
    for shape in contract.SIZES:
        for method in ("stamp", "trigger", "cover"):
            contract.test_changes_each_picture_within_its_bound_and_nothing_given(name, shape, method)
    with pytest.raises(ut.InputError, match="width is 0"):
        attacks.ATTACKS.build(f"{name}:width=0")


def test_the_architecture_page_names_every_module_and_its_layer_order() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = settings["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    rank = {module: place for place, layer in enumerate(reversed(layers)) for module in re.findall(r"\w+", layer)}
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = [line.split("|")[2] for line in page.partition("\n## ")[0].splitlines() if line.startswith("|")]
    named = [re.sub(r"\.py$|/$", "", name) for row in rows for name in re.findall(r"`([^`]+(?:\.py|/))`", row)]
    named.remove("src/untaint")
    there = {path.stem for path in (ROOT / "src" / "untaint").iterdir()} - {"__init__", "__pycache__", "py"}
    assert sorted(named) == sorted(there)
    assert not set(named) - set(rank), "these are in no layer of pyproject.toml"
    ranks = [rank[name] for name in named]
    assert ranks == sorted(ranks)


def test_no_module_shares_its_name_with_a_public_function() -> None:
    modules = {path.stem for path in (ROOT / "src" / "untaint").iterdir()}
    assert not modules & set(ut.__all__)


def test_the_options_tables_give_the_defaults() -> None:
    page = (ROOT / "docs" / "methods.md").read_text()
    from untaint.defenses.badloss import BaDLoss
    from untaint.defenses.cross_examination import CrossExamination

    for field in ("observable", "centre", "standardise", "epochs"):
        assert f"| `{field}` | `{getattr(BaDLoss(), field)}`" in page
    assert f"| `k` | {BaDLoss().k};" in page
    own = CrossExamination()
    assert f"| `trusted`, `floor` | {own.trusted}, {own.floor} |" in page
    assert f"| `neighbours`, `views` | {own.neighbours}, {own.views} |" in page
    assert f"| `steps` | {own.steps} |" in page
    assert f"| `own` | {own.own} |" in page
    assert f"| `learned` | {own.learned} |" in page
    for rule in ("fraction", "gap", "false-discovery"):
        from untaint.scores import RULES, parse_rule

        (shown,) = re.findall(rf"^\| `({rule}:[^`]*)` \|", page, re.MULTILINE)
        assert parse_rule(shown) == RULES[rule]()


def test_the_pages_name_every_model_that_a_default_scan_trains() -> None:
    from untaint.defenses.cross_examination import CrossExamination

    page = (ROOT / "docs" / "life-of-an-example.md").read_text()
    for stage in [*CrossExamination.stages, "model"]:
        assert f"`{stage}/`" in page


def test_every_figure_among_the_results_is_of_a_file() -> None:
    """The page, and the table of README, are what the script makes of ``results/``: nothing in them was typed."""
    # by itself: recipes are shortened in this process, and results of other recipes do not count
    asked = [sys.executable, str(ROOT / "scripts" / "render_results.py"), "--check"]
    found = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


@EVERY_PAGE
def test_every_grid_file_of_a_page_can_be_read(page: Path, tmp_path: Path) -> None:
    from untaint.bench import read_grid

    for block in blocks(page):
        if block.language == "toml" and "[[grid]]" in block.text:
            (tmp_path / "grid.toml").write_text(block.text)
            assert read_grid(tmp_path / "grid.toml").cells
