"""The visual-word tokenizer's intra-image way: the patches whose pixels vary most, before the first block."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from anchorprune.errors import FieldError
from anchorprune.strategies.base import Strategy, option, shown
from anchorprune.tokens import TokenPlan, Tokens, keep_with_prefix, top_indices


@dataclass(frozen=True)
class VwtIntra(Strategy):
    """The patches whose pixels vary most; the others are dropped before the first block (VWT, intra-image).

    Gee et al., "Visual-Word Tokenizer: Beyond Fixed Sets of Tokens in Vision Transformers", TMLR 2025: no block runs on
    more than these patches. Pixels are those that the tower is given, all colours of a patch together; patches keep
    their places in the image. The paper's other way, words learned from many images, is not here.
    """

    name: ClassVar[str] = "vwt_intra"
    budget_fields: ClassVar = ("keep_patches", "keep_ratio")
    scores: ClassVar = False
    reads_pixels: ClassVar = True

    keep_patches: tuple[int, ...] = option(
        (), "patch tokens that enter the first block (60 when keep_ratio is not given either)", kind=int
    )
    keep_ratio: tuple[float, ...] = option((), "the same as shares of the image's patch tokens, 0 … 1", kind=float)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.budget_fields:
            if len(given := getattr(self, name)) > 1:
                raise FieldError(name, given, "give one number: it acts once")
        if self.keep_patches and self.keep_ratio:
            raise FieldError("keep_ratio", shown(self.keep_ratio), "give it or keep_patches, not both")
        if min(self.keep_patches, default=1) < 1:
            raise FieldError("keep_patches", shown(self.keep_patches), "must be 1 or more")
        if self.keep_ratio and not 0 < self.keep_ratio[0] <= 1:  # false for NaN too
            raise FieldError("keep_ratio", shown(self.keep_ratio), "must be above 0 and at most 1")

    def schedule(self, num_patches: int, num_blocks: int) -> dict[int, int]:
        count = max(1, round(self.keep_ratio[0] * num_patches)) if self.keep_ratio else (*self.keep_patches, 60)[0]
        return {1: min(num_patches, count)}

    def budgets(self, num_patches: int, num_blocks: int) -> Sequence[Strategy]:
        return [dataclasses.replace(self, keep_patches=(count,), keep_ratio=()) for count in range(num_patches, 0, -1)]

    def plan(self, tokens: Tokens, keep_patches: int) -> TokenPlan:
        assert tokens.pixel_variance is not None  # of a strategy that reads pixels
        return TokenPlan(keep_with_prefix(top_indices(tokens.pixel_variance, keep_patches), tokens))
