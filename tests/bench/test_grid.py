from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from untaint.bench import Defender, Source, read_grid
from untaint.errors import SpecError

GOOD = """
title = "A title"

[data.photos]
source = "sample"

[attacks]
two = ["patch:rate=0.02", "sinusoid:class-rate=0.2"]
[defences]
tenth = "random @ fraction:share=0.1"

[[grid]]
data = "photos"
attacks = "two"
rows = [100, 200]
defences = ["none", "random @ fraction:share=0.05", "tenth"]
seeds = [0, 1]
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return path


def test_lists_are_swept_over_and_one_setting_is_shared_by_its_defences(tmp_path):
    grid = read_grid(written(tmp_path, GOOD))
    assert (grid.title, grid.name, grid.sources) == ("A title", "mine", {"photos": Source(place="sample")})
    assert [(setting.rows, setting.seed) for setting, _ in grid.cells] == [(100, 0), (100, 1), (200, 0), (200, 1)]
    for setting, defenders in grid.cells:
        assert setting.attackers == ("patch:rate=0.02", "sinusoid:class-rate=0.2")
        rules = [("none", None), ("random", "fraction:share=0.05"), ("random", "fraction:share=0.1")]
        assert [(d.defence, d.rule) for d in defenders] == rules


def test_the_same_setting_in_two_tables_is_run_once_with_the_defences_of_both(tmp_path):
    more = '\n[[grid]]\ndata = "photos"\nattacks = "two"\nrows = 100\ndefences = ["none", "oracle"]\n'
    grid = read_grid(written(tmp_path, GOOD + more))
    assert len(grid.cells) == 4
    assert [d.called for d in grid.cells[0][1]] == ["none", "random @ fraction:share=0.05", "tenth", "oracle"]


def test_each_of_a_set_by_itself_some_of_it_another_rate_and_nobody(tmp_path):
    text = GOOD.replace('attacks = "two"\nrows = [100, 200]', 'attacks = ["each of two", "nobody"]')
    found = [(s.attacks, s.attackers) for s, _ in read_grid(written(tmp_path, text)).cells if s.seed == 0]
    single = [("patch:rate=0.02",) * 2, ("sinusoid:class-rate=0.2",) * 2]
    assert found == [*[(name, (text,)) for name, text in single], ("nobody", ())]
    text = GOOD.replace("rows = [100, 200]", "number = [1, 2]\nrate = 0.05")
    found = [(s.attacks, s.attackers) for s, _ in read_grid(written(tmp_path, text)).cells if s.seed == 0]
    assert found == [
        ("1 of two at 0.05", ("patch:rate=0.05",)),
        ("2 of two at 0.05", ("patch:rate=0.05", "sinusoid:rate=0.05")),
    ]


def test_recipes_are_changed_as_the_setting_says(tmp_path):
    text = GOOD.replace("rows = [100, 200]", 'epochs = 3\nmodel = "resnet18"\nwatch_model = "proxy"\nlabel_noise = 0')
    setting = read_grid(written(tmp_path, text)).cells[0][0]
    recipes = setting.recipes()
    assert (recipes.watch.epochs, recipes.retrain.epochs) == (3, 3)
    assert (recipes.watch.model, recipes.witness.model, recipes.retrain.model) == ("proxy", "proxy", "resnet18")
    assert setting.label_noise == 0.0
    assert isinstance(setting.label_noise, float)
    assert setting.title() == "photos, two, epochs 3, model resnet18, watch model proxy"
    assert replace(setting, epochs=None, detect_only=True).title() == (
        "photos, two, model resnet18, watch model proxy, detect only"
    )


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('"patch:rate=0.02"', '"pacth:rate=0.02"', "line 8: no attack 'pacth'. Did you mean 'patch'"),
        ('"patch:rate=0.02"', '"patch:rat=0.02"', "line 8: 'patch' has no option 'rat'"),
        ('data = "photos"', 'data = "photo"', "line 13: no data set 'photo'. Did you mean 'photos'"),
        ('attacks = "two"', 'attacks = "too"', "line 14: no attacks 'too'. Did you mean 'two'"),
        ("rows = [100, 200]", "row = [100, 200]", "line 15: no entry of a grid 'row'. Did you mean 'rows'"),
        ("rows = [100, 200]", 'rows = "many"', "line 15: rows is 'many'; give a whole number"),
        ("rows = [100, 200]", "rows = 1", "line 15: rows is 1; give at least 2"),
        ("rows = [100, 200]", "label_noise = 1.5", "line 15: label_noise is 1.5"),
        ("rows = [100, 200]", "number = 3", "line 15: number is 3; 'two' has 2 attacks"),
        ("rows = [100, 200]", 'preset = "fats"', "line 15: no preset 'fats'. Did you mean 'fast'"),
        ("rows = [100, 200]", 'model = "resnet19"', "line 15: no model 'resnet19'"),
        ("rows = [100, 200]", 'augment = "flop"', "line 15: no augment 'flop'"),
        ("rows = [100, 200]", "detect_only = 1", "line 15: detect_only is 1; give true or false"),
        ("rows = [100, 200]", "probes = true", "line 15: probes is True; give a whole number"),
        ("rows = [100, 200]", "detect_only = true", "line 16: 'none' detects nothing"),
        ('"none", ', '"noen", ', "line 16: no defence 'noen'. Did you mean 'none'"),
        ('"none", ', '"none then eigenguard", ', "line 16: 'none' keeps everything; leave out 'then eigenguard'"),
        ('"none", ', '"spectral then random", ', "line 16: 'random' would judge examples"),
        ('"none", ', '"spectral then nothing", ', "line 16: no defence 'nothing'"),
        ('"none", ', '"none @ gap", ', "line 16: 'none' decides nothing"),
        ('"none", ', '"tenths", ', "line 16: no defence 'tenths'. Did you mean 'tenth'"),
        ("share=0.1", "shear=0.1", "line 10: 'fraction' has no option 'shear'"),
        ("tenth =", "oracle =", "line 10: 'oracle' is a defence already"),
        ("tenth =", "tenth = 3 #", "line 10: 'tenth' is 3; give one defence, as a text in quotes"),
        ("fraction:share=0.05", "fractoin:share=0.05", "line 16: no rule 'fractoin'. Did you mean 'fraction'"),
        ("seeds = [0, 1]", "seeds = [0.5]", "line 17: seed is 0.5; give a whole number"),
        ("[data.photos]", "[dat.photos]", "line 4: no entry 'dat'. Did you mean 'data'"),
        ('source = "sample"', 'size = "big"', "line 5: size is 'big'; give a number of pixels"),
        ('source = "sample"', 'sources = "sample"', "line 5: no entry of a data set 'sources'"),
        ('title = "A title"', "title = ", "no TOML"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_line(tmp_path, before, after, message):
    assert before in GOOD
    path = written(tmp_path, GOOD.replace(before, after, 1))
    with pytest.raises(SpecError) as caught:
        read_grid(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_a_file_that_is_not_there_or_asks_for_nothing_is_refused(tmp_path):
    with pytest.raises(SpecError, match=r"mine\.toml does not exist"):
        read_grid(tmp_path / "mine.toml")
    with pytest.raises(SpecError, match=r"has no \[\[grid\]\]"):
        read_grid(written(tmp_path, GOOD.partition("[[grid]]")[0]))
    with pytest.raises(SpecError, match="has no defences"):
        read_grid(written(tmp_path, GOOD.replace("defences =", "# defences =")))
    with pytest.raises(SpecError, match="--data names 'photo'"):
        read_grid(written(tmp_path, GOOD), {"photo": "elsewhere"})


def test_a_source_can_be_elsewhere(tmp_path):
    assert read_grid(written(tmp_path, GOOD), {"photos": "/data/photos"}).sources == {
        "photos": Source(place="/data/photos")
    }


def test_the_recipes_of_the_paper_can_be_written_down(tmp_path):
    text = GOOD.replace("rows = [100, 200]", 'preset = "paper"\nhorizon = 250\nretrain_epochs = 250\nbatch = 256')
    recipes = read_grid(written(tmp_path, text)).cells[0][0].recipes()
    assert (recipes.watch.epochs, recipes.watch.horizon, recipes.watch.batch) == (30, 250, 256)
    assert (recipes.retrain.epochs, recipes.retrain.horizon, recipes.retrain.batch) == (250, 250, 256)
    with pytest.raises(SpecError, match="line 15: horizon is 3"):
        read_grid(written(tmp_path, GOOD.replace("rows = [100, 200]", "horizon = 3\nepochs = 5")))


def test_a_defender_without_a_rule_has_none():
    assert Defender(text="badloss:k=20").rule is None
    assert Defender(text="badloss:k=20@gap").rule == "gap"


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "experiments").glob("*.toml")), ids=lambda p: p.name
)
def test_the_grids_of_the_project_can_be_read(path):
    assert read_grid(path).cells


def test_a_defence_can_have_a_shorter_name_which_is_no_part_of_what_it_is(tmp_path):
    defenders = read_grid(written(tmp_path, GOOD)).cells[0][1]
    assert [defender.called for defender in defenders] == ["none", "random @ fraction:share=0.05", "tenth"]
    assert defenders[2].text == "random @ fraction:share=0.1"
    assert defenders[2] == Defender(text="random @ fraction:share=0.1")


def test_a_defence_that_hands_on_what_it_keeps():
    one = Defender(text="badloss:k=5 @ fraction:share=0.4 then eigenguard:k=50,at=layer3")
    assert (one.defence, one.rule, one.then) == ("badloss:k=5", "fraction:share=0.4", "eigenguard:k=50,at=layer3")
    assert Defender(text="badloss then repair").rule is None
    assert Defender(text="badloss").then is None
