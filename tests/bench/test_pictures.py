"""Plots of made-up results: which there are, and that they say the same each time."""

from __future__ import annotations

import numpy as np

from untaint.bench.measures import CURVE
from untaint.bench.pictures import draw

from .test_table import result, whole


def full(seeds=(0, 1)):
    """Results with everything that plots are drawn from."""
    made = whole(seeds)
    for one in made:
        one["rows"] = 1000
        one["stages"] = {"model": {"core_seconds": 60.0}, "watcher-a": {"core_seconds": 30.0}}
        for found in one.get("detection", {}).values():
            found["curve"] = (CURVE ** (1 - found["auroc"] + 0.01)).tolist()
        if "detection" in one:
            one["histogram"] = {
                "edges": [0.0, 1.0, 2.0],
                "clean": [90, 1],
                "probes": [9, 0],
                "patch": [1, 8],
                "pixel": [2, 7],
            }
        if one["defence"] == "badloss":
            one["bands"] = {kind: np.full((3, 5), 0.5).tolist() for kind in ("clean", "probes", "patch", "pixel")}
    return made


def test_there_is_a_plot_of_each_kind_for_each_setting_and_it_is_the_same_each_time(tmp_path):
    paths = draw([*full(), *({**one, "title": "another: 50 %"} for one in full())], tmp_path / "one")
    assert sorted(path.name for path in paths) == sorted(
        f"{title}-{kind}.svg"
        for title in ("photos-two", "another-50")
        for kind in ("roc", "rejection", "cost", "scores", "trajectories")
    )
    again = draw(full(), tmp_path / "two")
    assert len(again) == 5
    for path in again:
        assert path.read_bytes() == (tmp_path / "one" / path.name).read_bytes()
        text = path.read_text()
        assert "<svg" in text
        assert "http" not in text.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
            "http://creativecommons.org", ""
        ).replace("https://matplotlib.org", "")


def test_what_is_not_there_is_not_drawn(tmp_path):
    failed = {**{key: full()[0][key] for key in ("title", "origin")}, "defence": "gap", "error": "no number"}
    assert draw([failed], tmp_path) == []
    alone = result("none")
    alone["stages"] = {"model": {"core_seconds": 60.0}}
    alone["model"]["attacks"], alone["poisoned"] = {}, {}
    assert draw([alone, failed], tmp_path) == []
    assert list(tmp_path.iterdir()) == []
