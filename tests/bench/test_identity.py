from __future__ import annotations

import dataclasses
import json

import pytest
from PIL import Image

from untaint import recipe
from untaint.bench.grid import Defender, Setting
from untaint.bench.identity import differences, file_name, origin

SETTING = Setting(data="photos", attacks="two", attackers=("patch:rate=0.05", "blend:alpha=0.4"), rows=100)
DEFENDER = Defender(text="spectral")


def test_the_same_is_the_same_and_plain_json():
    made = origin(SETTING, DEFENDER)
    assert json.loads(json.dumps(made)) == made
    assert differences(made, origin(SETTING, DEFENDER)) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"probes": 41}, "setting: probes is 250, now 41"),
        ({"attackers": ("patch:rate=0.05",)}, "setting: attackers is ['patch:rate=0.05', 'blend:alpha=0.4']"),
        ({"epochs": 3}, "watch: epochs is 8, now 3"),
        ({"augment": "none"}, "retrain: augment is crop-flip, now none"),
        ({"seed": 1}, "setting: seed is 0, now 1"),
    ],
)
def test_a_changed_setting_is_named(changes, said):
    now = origin(dataclasses.replace(SETTING, **changes), DEFENDER)
    assert any(one.startswith(said) for one in differences(origin(SETTING, DEFENDER), now))


@pytest.mark.parametrize(
    ("where", "name"),
    [
        ("untaint.attacks.patch.Patch.version", "patch"),
        ("untaint.defenses.spectral.Spectral.version", "defence"),
        ("untaint.recipe.VERSION", "recipes"),
    ],
)
def test_a_version_that_was_raised_is_named(where, name, monkeypatch):
    before = origin(SETTING, DEFENDER)
    monkeypatch.setattr(where, 2)
    assert differences(before, origin(SETTING, DEFENDER)) == [f"versions: {name} is 1, now 2"]


def test_a_file_that_an_attack_is_made_from_is_a_part_of_it(tmp_path):
    path = tmp_path / "sign.png"
    Image.new("RGB", (4, 4), "red").save(path)
    setting = dataclasses.replace(SETTING, attackers=(f"blend:pattern={path}", "blend:pattern=noise"))
    before = origin(setting, DEFENDER)
    assert differences(before, origin(setting, DEFENDER)) == []
    Image.new("RGB", (4, 4), "blue").save(path)
    assert [one.partition(" is ")[0] for one in differences(before, origin(setting, DEFENDER))] == [f"files: {path}"]


def test_a_folder_whose_pictures_change_makes_another_result(tmp_path):
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "one.png").write_bytes(b"one")
    setting = Setting(data="sample", attacks="reflection", attackers=(f"reflection:folder={tmp_path / 'some'}",))
    before = origin(setting, DEFENDER)
    assert not differences(before, origin(setting, DEFENDER))
    (tmp_path / "some" / "one.png").rename(tmp_path / "some" / "two.png")
    assert len(differences(before, origin(setting, DEFENDER))) == 1


def test_another_defence_or_no_origin_is_another_result():
    before = origin(SETTING, DEFENDER)
    assert differences(before, origin(SETTING, Defender(text="spectral @ gap"))) == [
        "defence: text is spectral, now spectral @ gap"
    ]
    assert differences(None, before) == ["nothing is said of its settings"]
    assert differences([], before) == ["nothing is said of its settings"]
    assert differences({}, before)


def test_an_option_that_is_added_later_makes_no_result_another():
    now = origin(SETTING, DEFENDER)
    before = json.loads(json.dumps(now))
    del before["setting"]["long_tail"], before["watch"]["clamp"], before["retrain"]["compile"]
    assert differences(before, now) == []
    changed = origin(dataclasses.replace(SETTING, long_tail=10.0), DEFENDER)
    assert differences(before, changed) == ["setting: long_tail is 1.0, now 10.0"]


def test_a_default_that_is_changed_later_makes_a_result_another(monkeypatch):
    before = origin(SETTING, DEFENDER)
    fast = recipe.PRESETS["fast"]
    monkeypatch.setitem(
        recipe.PRESETS, "fast", dataclasses.replace(fast, watch=dataclasses.replace(fast.watch, batch=100))
    )
    assert differences(before, origin(SETTING, DEFENDER)) == ["watch: batch is 125, now 100"]


def test_files_are_named_by_what_is_not_as_usual():
    name = file_name(SETTING, DEFENDER)
    assert name.startswith("photos-100-two-spectral-seed0-")
    assert name == file_name(dataclasses.replace(SETTING, probes=250), DEFENDER)
    others = [dataclasses.replace(SETTING, probes=41), dataclasses.replace(SETTING, seed=1)]
    assert len({name, *(file_name(other, DEFENDER) for other in others)}) == 3


def test_the_version_of_a_defence_behind_another_counts_too(monkeypatch):
    both = Defender(text="spectral then repair")
    before = origin(SETTING, both)
    monkeypatch.setattr("untaint.defenses.repair.Repair.version", 99)
    assert [one.partition(" is ")[0] for one in differences(before, origin(SETTING, both))] == ["versions: then"]
    assert origin(SETTING, DEFENDER)["versions"].keys() == {"defence", "recipes", "patch", "blend"}
