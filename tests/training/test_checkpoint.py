from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch

import untaint as ut
from small import RECIPE, WithDropout, pictures
from untaint.errors import InputError, RunError
from untaint.training.checkpoint import read_card
from untaint.training.evaluate import relabelled
from untaint.training.loop import fit, predict


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return folder, fit(pictures(), RECIPE, folder, seed=0)


def test_a_model_comes_back_as_a_plain_module(trained):
    folder, model = trained
    for path in (folder, str(folder), folder / "model.safetensors"):
        again = ut.load_model(path)
        assert isinstance(again, torch.nn.Module)
        assert not again.training
        assert np.array_equal(predict(again, pictures(seed=1)), predict(model, pictures(seed=1)))


def test_the_card_says_what_the_model_is(trained):
    card = read_card(trained[0])
    assert card["model"] == "proxy"
    assert card["class_names"] == ["0", "1", "2"]
    assert card["size"] == [3, 8, 8]
    assert card["rows"] == 60
    assert card["recipe"]["epochs"] == 3


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pkl", ".bin", ".ckpt", ".PT"])
def test_a_pickle_is_never_opened(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"

    class Bomb:
        def __reduce__(self):
            return exec, (f"open({str(tmp_path / 'exploded')!r}, 'w')",)

    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputError, match="is a pickle, which can run code"):
        ut.load_model(path)
    assert not (tmp_path / "exploded").exists()


def test_a_pickle_under_a_finished_models_name_is_refused_unopened(tmp_path):
    fit(pictures(), RECIPE, tmp_path, seed=0)
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps({"weights": 1}))
    with pytest.raises(RunError, match=r"model.safetensors was altered"):
        ut.load_model(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "null", '{"model": "proxy"}', "\xff"])
def test_an_altered_card_is_refused(tmp_path, text):
    fit(pictures(), RECIPE, tmp_path, seed=0)
    (tmp_path / "model.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(RunError, match=r"model.json was altered"):
        ut.load_model(tmp_path)


def test_a_folder_that_is_no_model_says_what_is_there(tmp_path):
    (tmp_path / "cat.png").touch()
    with pytest.raises(InputError, match=r"there is no model.json \(found: \['cat.png'\]\)"):
        ut.load_model(tmp_path)
    with pytest.raises(InputError, match="found: nothing"):
        ut.load_model(tmp_path / "nowhere")


def test_an_architecture_of_ones_own_must_be_given_again(tmp_path):
    model = fit(pictures(), RECIPE, tmp_path, seed=0, model=WithDropout)
    assert json.loads((tmp_path / "model.json").read_text())["model"] == "custom"
    with pytest.raises(InputError, match="architecture of your own"):
        ut.load_model(tmp_path)
    with pytest.raises(InputError, match="do not fit the model"):
        ut.load_model(tmp_path, model=torch.nn.Linear(2, 2))
    again = ut.load_model(tmp_path, model=WithDropout())
    assert np.array_equal(predict(again, pictures()), predict(model, pictures()))


def test_labels_are_numbered_as_the_model_numbers_its_classes():
    examples = ut.Examples.of(pictures().images, pictures().labels, class_names=["cat", "dog", "eel"])
    renamed = relabelled(examples, ["eel", "ant", "cat", "dog"])
    assert renamed.labels[:3].tolist() == [2, 3, 0]
    assert relabelled(examples, ["cat", "dog", "eel"]) is examples
    with pytest.raises(InputError, match="the data has a class 'eel' that the model does not know"):
        relabelled(examples, ["cat", "dog"])
