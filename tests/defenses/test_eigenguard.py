from __future__ import annotations

import pytest

from untaint import EigenGuard
from untaint.defenses import DEFENSES
from untaint.errors import SpecError
from untaint.training.checkpoint import load_model

from .test_every_defence import task


def guard_in(model):
    (guard,) = [module for module in load_model(model).modules() if isinstance(module, EigenGuard)]
    return guard


@pytest.mark.parametrize("until", [0.5, 0.3, 1])
def test_until_is_a_share_of_the_training_that_it_does(until, tmp_path):
    here = task(tmp_path, epochs=3)  # 120 pictures in batches of 16: 8 steps an epoch
    guard = guard_in(DEFENSES.build(f"eigenguard:k=4,until={until}").defend(here).model)
    assert int(guard.batches) == 24
    assert guard.steps == (None if until == 1 else round(24 * until))
    assert float(guard.remainder) == 1e-3


def test_what_cannot_be():
    for until in (0, 1.5):
        with pytest.raises(SpecError, match=f"until is {until}"):
            DEFENSES.build(f"eigenguard:until={until}")
    with pytest.raises(SpecError, match=r"until is 0.5, and steps 7: both say how long"):
        DEFENSES.build("eigenguard:until=0.5,steps=7")
