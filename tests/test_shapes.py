"""Shapes in signatures are checked while the tests run."""

from __future__ import annotations

import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from conftest import CHECKED
from jaxtyping import TypeCheckError
from support.models import make_visual

from anchorprune.towers import find_tower
from anchorprune.towers.pooling import weigh

WRONG = (TypeCheckError, BeartypeCallHintViolation)


def test_the_functions_that_promise_shapes_are_many() -> None:
    assert CHECKED > 30


def test_a_tensor_of_another_shape_is_told() -> None:
    weigh(torch.randn(2, 5, 3), torch.ones(2, 5))
    with pytest.raises(WRONG):
        weigh(torch.randn(2, 5, 3), torch.ones(2, 4))
    tower = find_tower(make_visual())
    with pytest.raises(WRONG):
        tower.query_key(tower.blocks[0], torch.randn(17, 32))
