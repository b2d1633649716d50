"""Each image what it needs: cheaply first, and what that leaves unsure once more, finer."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from anchorprune.errors import FieldError, UserError
from anchorprune.strategies.base import Strategy, option

if TYPE_CHECKING:
    from anchorprune.tokens import TokenPlan, Tokens

UNPRUNED = "unpruned"
STEPS = 1000  # shares that a budget is chosen from


@dataclass(frozen=True)
class Cascade(Strategy):
    """Encodes every image cheaply, and those whose answer is unsure once more, by a finer strategy.

    How sure an answer is says the margin between the two texts of a bank that are nearest to the image: in zero-shot
    classification the classifier's, elsewhere those of `gate_texts`. `pruning/cascade.py` runs it.
    """

    name: ClassVar[str] = "cascade"
    acts: ClassVar = "stages"
    budget_fields: ClassVar = ("share", "min_margin")

    stages: tuple[str, ...] = option(
        ("coarse --keep_ratio 0.22", UNPRUNED),
        "two or more strategies, each with its flags in quotes, or unpruned; the cheapest first",
        kind=str,
    )
    share: float = option(
        0.2, "share of a batch that goes on to the next stage, 0 … 1, rounded down: those of the least margin"
    )
    min_margin: float | None = option(
        None, "instead of a share: images go on whose two nearest texts' cosines differ by less", kind=float
    )
    gate_texts: str | None = option(
        None, "texts to tell the margin by: a file as save_clf writes it; not needed to classify", kind=str, file=True
    )

    def __post_init__(self) -> None:
        stages = self.stages if isinstance(self.stages, (tuple, list)) else (self.stages,)
        object.__setattr__(self, "stages", tuple(map(_spelled, stages)))
        super().__post_init__()
        if len(self.stages) < 2:
            raise FieldError("stages", self.stages, "give two or more, such as coarse and unpruned")
        if UNPRUNED in self.stages[:-1]:
            raise FieldError("stages", self.stages, "nothing is finer than unpruned; only the last can be it")
        if not 0 <= self.share <= 1:  # true for NaN too
            raise FieldError("share", self.share, "must lie between 0 and 1")
        if self.min_margin is None:
            return
        if not self.min_margin >= 0:
            raise FieldError("min_margin", self.min_margin, "must be 0 or more: a difference of cosines")
        if self.share != type(self).share:
            raise FieldError("min_margin", self.min_margin, "give it or a share, not both")

    @property
    def strategies(self) -> tuple[Strategy | None, ...]:
        """That of each stage; None for unpruned."""
        return tuple(map(_parsed, self.stages))

    @property
    def parts(self) -> tuple[Strategy, ...]:
        return tuple(strategy for strategy in self.strategies if strategy is not None)

    @property
    def couples_batch(self) -> bool:
        return self.min_margin is None or any(strategy.couples_batch for strategy in self.parts)

    def schedule(self, num_patches: int, num_blocks: int) -> dict[int, int]:
        """That of the first stage, which every image goes through."""
        return self.parts[0].schedule(num_patches, num_blocks)

    def plan(self, tokens: Tokens, keep_patches: int) -> TokenPlan:
        raise UserError("a cascade chooses no tokens, its stages do; prune(model, cascade) runs them")

    def budgets(self, num_patches: int, num_blocks: int) -> Sequence[Strategy]:
        """By share, of the same stages. UserError where a margin says who goes on: its cost is not known before."""
        if self.min_margin is not None:
            raise FieldError("min_margin", self.min_margin, "what it costs depends on the images; give a share instead")
        return [dataclasses.replace(self, share=step / STEPS) for step in range(STEPS, -1, -1)]

    def by_content(self, content: Callable[[str], Any]) -> dict[str, Any]:
        stages = [{"strategy": each.name, **each.by_content(content)} if each else None for each in self.strategies]
        return {**super().by_content(content), "stages": stages}


def _spelled(stage: str | Strategy | None) -> str:
    """A stage as it is typed, the same for equal ones."""
    if isinstance(stage, str):
        stage = _parsed(stage)
    elif stage is not None and not isinstance(stage, Strategy):  # of JSON
        raise FieldError("stages", stage, "must be strategies, each a text with its flags, or unpruned")
    if stage is not None and stage.acts == "stages":
        raise FieldError("stages", stage.name, "a cascade is no stage of another; name all stages in one")
    return UNPRUNED if stage is None else f"{stage.name} {stage.flags()}".rstrip()


@functools.lru_cache(maxsize=64)
def _parsed(stage: str) -> Strategy | None:
    from anchorprune.strategies import parse  # which imports this file

    try:
        return None if stage == UNPRUNED else parse(stage).strategy
    except UserError as error:
        raise FieldError("stages", stage, f"is no stage: {error}") from error
