"""What selection itself costs: a strategy's time over that of a free choice of as many tokens in the same blocks.

    python benchmarks/selection_cost.py --batch_size 1 8 32 --precision fp32 amp

The free choice keeps the first tokens, scores nothing, merges nothing and weighs nothing; its blocks are the model's
own. Random weights and random images: the time depends on neither. Targets: at most 1.05 at batch 1, 1.02 above.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import open_clip
import target
import torch

from anchorprune.evaluation.runtime import Runtime
from anchorprune.pruning import prune
from anchorprune.pruning.copies import sharing_copy
from anchorprune.pruning.cost import time_in_turns
from anchorprune.strategies import RECOMMENDED, make_strategy
from anchorprune.strategies.base import Strategy
from anchorprune.tokens import TokenPlan, Tokens, keep_with_prefix
from anchorprune.towers import find_tower


@dataclass(frozen=True)
class Free(Strategy):
    """The first tokens, by the schedule of another strategy."""

    name: ClassVar[str] = "free"

    like: Any = None

    @property
    def acts(self) -> str:  # type: ignore[override]
        return self.like.acts

    @property
    def spares_last_mlp(self) -> bool:  # type: ignore[override]
        return self.like.spares_last_mlp

    def schedule(self, num_patches: int, num_blocks: int) -> dict[int, int]:
        return self.like.schedule(num_patches, num_blocks)

    def plan(self, tokens: Tokens, keep_patches: int) -> TokenPlan:
        first = torch.arange(keep_patches, device=tokens.x.device).expand(len(tokens.x), -1)
        return TokenPlan(keep_with_prefix(first, tokens))

    def budgets(self, num_patches: int, num_blocks: int) -> list[Strategy]:
        return [self]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-16-quickgelu")
    parser.add_argument("--batch_size", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--precision", nargs="+", default=["fp32", "amp"], choices=["fp32", "amp"])
    parser.add_argument("--strategies", nargs="+", default=["anchor", RECOMMENDED])
    parser.add_argument("--repeats", type=int, default=11)
    args = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = open_clip.create_model(args.model, device=device).eval()
    size = find_tower(model).image_size
    print(
        f"{args.model}, {device}, {torch.get_num_threads()} threads, torch {torch.__version__}, {args.repeats} repeats"
    )
    for precision in args.precision:
        runtime = Runtime(device, precision)
        for batch_size in args.batch_size:
            images = torch.randn(batch_size, 3, *size, device=device)
            repeats = args.repeats * (5 if batch_size == 1 else 1)
            for name in args.strategies:
                strategy = make_strategy(name)
                copies = [sharing_copy(model), sharing_copy(model)]
                for copy, each in zip(copies, (strategy, Free(like=strategy)), strict=True):
                    prune(copy, each)
                works = [partial(copy.encode_image, images) for copy in copies]
                with torch.no_grad(), runtime.autocast():
                    time_in_turns(works, device, 2)
                    ours, free = time_in_turns(works, device, repeats)
                ratio = statistics.median(a / b for a, b in zip(ours, free, strict=True))
                what = f"{name}, {precision}, batch {batch_size}: time over a free choice's"
                target.hold(what, ratio, at_most=1.05 if batch_size == 1 else 1.02)
    target.leave()


if __name__ == "__main__":
    target.run(main)
