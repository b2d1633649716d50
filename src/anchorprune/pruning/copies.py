"""Copies of a model that share its weights, so that several prunings of one model are in force side by side."""

from __future__ import annotations

import copy
from contextlib import suppress
from typing import TypeVar

from torch import nn

from anchorprune.errors import UserError
from anchorprune.pruning.injection import restore

Model = TypeVar("Model", bound=nn.Module)


def sharing_copy(model: Model) -> Model:
    """A copy of the model's modules with the very parameters and buffers of the original; it is not pruned.

    What is trained, loaded or changed in place in one is so in the other. What replaces a tensor in one, such as
    `.to(dtype)` or `.to(device)`, may leave the other as it is.
    """
    memo = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    copied = copy.deepcopy(model, memo)  # the memo knows things by their id
    with suppress(UserError):  # nothing that could be pruned
        restore(copied)
    return copied
