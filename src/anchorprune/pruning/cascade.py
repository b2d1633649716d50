"""A cascade in force: every image through the first stage, and what that leaves unsure through the next."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from anchorprune.errors import UserError
from anchorprune.pruning.copies import sharing_copy
from anchorprune.pruning.cost import image_tower_flops
from anchorprune.pruning.features import features_of, method_of, with_features
from anchorprune.pruning.gate import check_bank, margins, read_classifier, unsure
from anchorprune.pruning.injection import Pruning, check_layers, prune
from anchorprune.strategies.base import Strategy
from anchorprune.strategies.cascade import Cascade
from anchorprune.towers import find_tower


class Cascading(Pruning):
    """The handle of a model that a cascade is in force on.

    The method that gives features of images (`encode_image`, `get_image_features`, a tower's own `forward`) is shadowed
    on the instance; each stage is a copy of the model that shares its weights. Move and cast the model before, since
    copies do not follow. What went in is counted, of all threads together: `tokens_after`, `shares` and the cost are
    means over all images so far. There is no one choice of tokens: `kept` and `assignment` stay None.
    """

    def __init__(self, model: nn.Module, strategy: Cascade) -> None:
        tower = find_tower(model)
        check_layers(tower, strategy)
        super().__init__(None, strategy)
        self._tower, self.where = tower, tower.where
        self._hooks = self._stages = Stages(model, strategy)
        self._install()

    @property
    def bank(self) -> Tensor | None:
        """`[D, texts]`: who goes on is told by the margin between an image's two nearest; columns have length 1."""
        return self._stages.bank

    @bank.setter
    def bank(self, bank: Tensor) -> None:
        check_bank(bank)
        self._stages.bank = bank

    @property
    def shares(self) -> list[float] | None:
        return self._stages.shares

    @property
    def flops(self) -> int | None:
        """What an image has cost on average; before there was one, what it will cost by the share.

        Raises:
            UserError: by a margin, before there was one.
        """
        return self._stages.flops

    @property
    def tokens_before(self) -> int | None:
        return self._tower.num_tokens if self.shares else None

    @property
    def tokens_after(self) -> int | None:
        return self._stages.tokens

    @property
    def tokens_by_block(self) -> list[int] | None:
        return None

    @contextmanager
    def off_the_record(self) -> Iterator[None]:
        earlier = list(self._stages.encoded)
        try:
            yield
        finally:
            self._stages.encoded = earlier


class Stages:
    """The stages of a cascade, and the method that runs them; what a handle asks of its `Hooks`."""

    first = 0  # nothing that unpruned blocks give can stand in for a stage's
    small_images = False

    def __init__(self, model: Any, strategy: Cascade) -> None:
        self.model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper
        self.method = method_of(self.model)
        if self.method == "forward" and find_tower(self.model).where:
            raise UserError(
                f"a cascade needs the method that gives features of images, and {type(self.model).__name__} has no "
                "encode_image or get_image_features; prune the model in it"
            )
        self.share, self.min_margin = strategy.share, strategy.min_margin
        self.bank = None if strategy.gate_texts is None else read_classifier(strategy.gate_texts, "gate_texts")
        if self.bank is not None:
            check_bank(self.bank)
        self.stages = [_Stage(self.model, each) for each in strategy.strategies]
        self.encoded = [0] * len(self.stages)  # images, by stage
        self.image_size: tuple[int, int] = find_tower(self.model).image_size
        self.installed = False
        self._shadowed: list[Any] = []  # what the instance had by that name itself

    def install(self) -> None:
        own = self.model.__dict__
        self._shadowed = [own[self.method]] if self.method in own else []
        own[self.method] = self.encode
        self.installed = True

    def remove(self) -> None:
        self.installed = False
        del self.model.__dict__[self.method]
        if self._shadowed:
            self.model.__dict__[self.method] = self._shadowed.pop()

    def encode(self, *args: Any, **call: Any) -> Any:
        """What the model's own method gives; of each image by the last stage that it came to.

        Raises:
            UserError: there are no texts to tell by, or they are for features of another width.
        """
        if self.bank is None:
            raise UserError("a cascade tells by texts who goes on: give gate_texts, or set the handle's bank")
        again = _call_again(args, call)
        found = self._run(0, again(None))
        features = last = features_of(found)
        check_bank(self.bank, features.shape[-1])
        self.bank = self.bank.to(features.device, torch.float32)
        places = torch.arange(len(features), device=features.device)  # of those that the last stage encoded
        encoded = [len(places)]
        for number in range(1, len(self.stages)):
            places = places[unsure(margins(last, self.bank), self.share, self.min_margin)]
            if not len(places):
                break
            last = features_of(self._run(number, again(places)))
            features = features.index_copy(0, places, last)
            encoded.append(len(places))
        with _LOCK:
            self.encoded = [a + b for a, b in zip(self.encoded, encoded + [0] * len(self.stages), strict=False)]
        return found if len(encoded) == 1 else with_features(found, features)

    def _run(self, number: int, call: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
        stage = self.stages[number]
        if stage.model.training != self.model.training:
            stage.model.train(self.model.training)
        return stage.run(self.method, *call)

    @property
    def shares(self) -> list[float] | None:
        """Share of the images that each stage encoded; None before there was one."""
        return [count / self.encoded[0] for count in self.encoded] if self.encoded[0] else None

    @property
    def flops(self) -> int:
        shares = self.shares
        if shares is None and self.min_margin is not None:
            raise UserError("what a cascade costs by a margin depends on the images")
        return round(_mean(self._flops, shares or _promised(self.share, len(self.stages))))

    @functools.cached_property
    def _flops(self) -> list[int]:
        return [image_tower_flops(stage.model) for stage in self.stages]

    @property
    def tokens(self) -> int | None:
        """That reach the end of the stage that gave an image's features: mean over the images."""
        if (shares := self.shares) is None:
            return None
        ended = [share - after for share, after in zip(shares, [*shares[1:], 0.0], strict=True)]
        return round(_mean([stage.tokens for stage in self.stages], ended))

    def dropped(self) -> bool:
        """Whether any stage drops tokens."""
        return any(stage.pruning.effective for stage in self.stages if stage.pruning)

    @property
    def drops(self) -> bool:
        return self.dropped()

    def size_bias(self, block: int) -> Tensor | None:
        return None


_LOCK = threading.Lock()  # of the counts; one for all, since handles are copied and pickled


class _Stage:
    """A copy of the model that shares its weights, pruned for good."""

    def __init__(self, model: Any, strategy: Strategy | None) -> None:
        self.model: Any = sharing_copy(model)
        self.pruning = prune(self.model, strategy) if strategy else None
        self.tokens = find_tower(self.model).num_tokens

    def run(self, method: str, args: tuple[Any, ...], call: dict[str, Any]) -> Any:
        found = (self.model if method == "forward" else getattr(self.model, method))(*args, **call)
        if self.pruning is not None:
            self.tokens = self.pruning.tokens_after or self.tokens
        return found


Call = Callable[[Tensor | None], tuple[tuple[Any, ...], dict[str, Any]]]


def _call_again(args: tuple[Any, ...], call: dict[str, Any]) -> Call:
    """The arguments of a call, for some of its images alone; for None all."""
    if args:
        return lambda places: (args if places is None else (args[0][places], *args[1:]), call)
    name = next((name for name, value in call.items() if isinstance(value, Tensor) and value.dim() == 4), None)
    if name is None:
        raise UserError("a cascade needs images [B, 3, height, width]")
    return lambda places: ((), call if places is None else {**call, name: call[name][places]})


def cost_by_share(model: nn.Module, strategy: Cascade) -> Callable[[Strategy], float]:
    """What gives the GMACs of an image by the share of a cascade of these stages; each is counted once."""
    flops = []
    for each in strategy.strategies:
        if each is None:
            flops.append(image_tower_flops(model))
            continue
        with prune(model, each):
            flops.append(image_tower_flops(model))

    def gmacs(budget: Strategy) -> float:
        assert isinstance(budget, Cascade)
        return _mean(flops, _promised(budget.share, len(flops))) / 2e9

    return gmacs


def _promised(share: float, stages: int) -> list[float]:
    """Share of the images that comes to each stage."""
    return [share**number for number in range(stages)]


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return sum(value * weight for value, weight in zip(values, weights, strict=True))
