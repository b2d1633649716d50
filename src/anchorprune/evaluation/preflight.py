"""What can be found wrong, or worked out, before a model is loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import nn

from anchorprune.datasets import check_dataset
from anchorprune.errors import FieldError, UserError
from anchorprune.evaluation.request import Request
from anchorprune.evaluation.runtime import Runtime
from anchorprune.models import check as check_model
from anchorprune.models import has_text_tower, skeleton
from anchorprune.models.base import ModelSpec
from anchorprune.models.languages import nllb_code
from anchorprune.pruning.budget import solve
from anchorprune.pruning.cost import image_tower_flops
from anchorprune.pruning.gate import check_bank, read_classifier
from anchorprune.pruning.injection import check_layers
from anchorprune.strategies.base import Strategy
from anchorprune.strategies.cascade import Cascade
from anchorprune.tasks.base import split_of
from anchorprune.towers import find_tower


def check(requests: Sequence[Request], *, attention: bool = False, here: bool = True, alone: bool = True) -> None:
    """Raise UserError for what of these requests can be found wrong before the first model is loaded.

    Args:
        attention: whether the attention of each model's tower is to be read.
        here: whether it is this machine that computes, and has to have the device.
        alone: whether it is this process alone that opens the data.
    """
    for request in requests:
        request.task.check()
        nllb_code(request.model.name, request.data.language)
    for compute in dict.fromkeys(request.compute for request in requests if here):
        Runtime.of(compute)
    requests = [request for request in requests if not request.compute.skip_load]  # of these nothing else is opened
    # A single one is opened soon enough; but nothing may fail after hours of other runs, nor on each of many processes.
    if len(requests) > 1 or not alone:
        for data, task in dict.fromkeys((request.data, request.task) for request in requests):
            check_dataset(data, task.name)
            for field, split in task.splits.items():
                with split_of(field, split):
                    check_dataset(dataclasses.replace(data, split=split), task.name)
    for model in dict.fromkeys(request.model for request in requests):
        check_model(model)
        for request in requests:
            if request.model == model and request.task.needs_text_tower and not has_text_tower(model):
                said = f"has no text tower, which {request.task.name} needs;"
                raise FieldError(
                    "model",
                    model.name,
                    f"{said} the task linear_probe works with it",
                    typed=f"{said} --task linear_probe works with it",
                )
        strategies = dict.fromkeys(request.pruning for request in requests if request.model == model)
        for strategy in strategies:
            if strategy or attention:
                check_tower(model, strategy)


def check_shards(requests: Sequence[Request]) -> None:
    """Raise UserError where shards of a request would not make the result of one process."""
    for pruning in (request.pruning for request in requests):
        if pruning is not None and pruning.couples_batch:
            raise UserError(
                f"{pruning.name} {pruning.flags()}: {_coupling(pruning)}, and shards have other batches than one "
                "process; evaluate it unsharded"
            )


def _coupling(pruning: Strategy) -> str:
    """How the images of a batch depend on each other."""
    if pruning.acts == "stages":
        return "the images of a batch share out who goes on (a margin would not)"
    return "one image chooses for its whole batch"


def check_tower(model: ModelSpec, strategy: Strategy | None) -> None:
    """Raise UserError where the model's tower cannot be pruned so, or with None, its attention not be read."""
    if isinstance(strategy, Cascade) and strategy.gate_texts is not None:
        check_bank(read_classifier(strategy.gate_texts, "gate_texts"))
    if (built := skeleton(model.library, model.name)) is None:
        return  # then loading it will tell
    try:
        tower = find_tower(built)
    except UserError as error:
        what = str(error) if strategy else str(error).replace("cannot prune", "cannot read the attention of", 1)
        raise FieldError("model", model.name, what) from error
    if strategy:
        check_layers(tower, strategy)


def solved(model: ModelSpec, strategy: Strategy, target_gmacs: float | None) -> Strategy:
    """The strategy with the largest budget that costs at most so much in this model; for None as it is.

    Raises:
        UserError: as in `check_tower`; FieldError as in `budget.solve`.
    """
    check_tower(model, strategy)
    return strategy if target_gmacs is None else solve(_built(model), strategy, target_gmacs)


def dense_gmacs(model: ModelSpec) -> float:
    """Multiply-adds in billions of the unpruned image tower for one image.

    Raises:
        UserError: a model whose cost cannot be counted before it is loaded, or that cannot be pruned.
    """
    return image_tower_flops(_built(model)) / 2e9


def _built(model: ModelSpec) -> nn.Module:
    if (built := skeleton(model.library, model.name)) is None:
        raise FieldError("model", model.name, "its cost cannot be counted before loading it")
    return built


def check_no_budget(strategy: Strategy, given: Sequence[str], *, searched: bool = False) -> None:
    """Raise FieldError where a budget of the strategy is among the given fields, which a target solves.

    Args:
        searched: it is searched for, and nobody has given a target.
    """
    fix = "is the budget, which is searched for; leave it out" if searched else "is what {} solves; give one of them"
    for name in given:
        if name in strategy.budget_fields:
            value = {field.name: getattr(strategy, field.name) for field in dataclasses.fields(strategy)}[name]
            raise FieldError(name, value, fix.format("target_gmacs"), typed=fix.format("--target_gmacs"))
