from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import small
from untaint import spectra
from untaint.defenses import DEFENSES
from untaint.errors import SpecError
from untaint.training.checkpoint import load_model
from untaint.training.features import layer_features
from untaint.training.loop import predict

from .test_every_defence import task


def test_the_strongest_directions_of_the_training_pictures_are_taken_out_of_every_picture(tmp_path):
    here = task(tmp_path)
    made = load_model(DEFENSES.build("remove-top:k=3").defend(here).model)
    undefended, seen = here.load("undefended"), small.pictures(30, seed=5)
    along = spectra.top_directions(layer_features(undefended, here.examples, "1.body"), 3)
    assert (
        np.abs(layer_features(made, seen, "1.body") @ along.T).max()
        < 1e-3 * np.abs(layer_features(undefended, seen, "1.body")).max()
    )
    with spectra.removing(undefended, along):
        assert predict(made, seen) == pytest.approx(predict(undefended, seen), abs=1e-3)


def test_more_directions_than_there_are_and_fewer_than_one(tmp_path):
    here = dataclasses.replace(task(tmp_path), examples=small.pictures(20))
    made = load_model(DEFENSES.build("remove-top:k=5000").defend(here).model)
    bias = made[1].head.bias
    assert torch.allclose(made(torch.from_numpy(here.examples.images[:4]).float() / 255), bias.expand(4, -1), atol=1e-3)
    with pytest.raises(SpecError, match="k is 0"):
        DEFENSES.build("remove-top:k=0")
