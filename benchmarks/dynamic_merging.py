"""DToMe (DyMU) against ToMe at equal mean compute: are thresholds, so that each image merges what it can, worth it?

    python benchmarks/dynamic_merging.py --images FOLDER --model ViT-B-16-quickgelu --pretrained CHECKPOINT.pt

Wang et al., "DyMU: Dynamic Merging and Virtual Unmerging for Efficient VLMs", NeurIPS 2025, section 3.1. Block by block
a threshold is found by which, over `--calibrate` pictures together, as many tokens are merged as ToMe merges with its
r; then each image merges every token of set A that is more like its partner than that. Images go through one by one, so
that each has its own count; its multiply-adds are counted from its own tokens. Each picture of the folder and a
mirrored crop of it (those of `--task fidelity`): recall@1 with both sides pruned, mean cosine to the unpruned feature.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass
from typing import Any, ClassVar

import target
import torch
from adaptive import batches, said
from torch import Tensor
from torch.nn import functional as F

from anchorprune import Compute, ModelSpec, prune
from anchorprune.evaluation.runtime import Runtime
from anchorprune.models import load
from anchorprune.pruning.budget import solve
from anchorprune.strategies import make_strategy
from anchorprune.strategies.base import option
from anchorprune.strategies.tome import Tome, merge_plan
from anchorprune.tokens import TokenPlan, Tokens, key_directions, outside_autocast
from anchorprune.towers import find_tower


class Seen(Exception):
    """The similarities of a block that has no threshold yet; what comes after it is of no interest."""


@dataclass(frozen=True)
class Dynamic(Tome):
    """ToMe by a threshold for each block, for one image at a time."""

    name: ClassVar[str] = "dynamic"

    thresholds: tuple[float, ...] = option((), "cosine above which a pair is merged, for each block", kind=float)

    def schedule(self, num_patches: int, num_blocks: int) -> dict[int, int]:
        return dict.fromkeys(range(1, num_blocks + 1), 1)  # whatever is left is decided by `plan`

    def plan(self, tokens: Tokens, keep_patches: int) -> TokenPlan:
        directions = key_directions(tokens)
        with outside_autocast(directions):
            closest, partner = (directions[:, 1::2] @ directions[:, ::2].transpose(1, 2)).max(dim=2)
        if tokens.block > len(self.thresholds):
            raise Seen(closest.flatten())
        chosen = (closest[0] > self.thresholds[tokens.block - 1]).nonzero().T
        return merge_plan(tokens, 2 * chosen + 1, 2 * partner.gather(1, chosen))


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--pretrained", required=True)
    parser.add_argument("--target_gmacs", type=float, nargs="+", default=[8.8, 7.0])
    parser.add_argument("--calibrate", type=int, default=64, metavar="PICTURES")
    parser.add_argument("--precision", default="amp")
    parser.add_argument("--limit", type=int)
    args = parser.parse_args()

    runtime = Runtime.of(Compute(precision=args.precision))
    loaded = load(ModelSpec(name=args.model, pretrained=args.pretrained), runtime.device, runtime.weights)
    model: Any = loaded.model
    images = torch.cat(list(batches(args, loaded.transform)))  # each picture and then its other view

    def encode(image: Tensor) -> Tensor:
        with runtime.autocast():
            return F.normalize(model.encode_image(image[None].to(runtime.device, runtime.images)).float()).cpu()

    unpruned = torch.cat([encode(image) for image in images])
    print(f"{len(unpruned) // 2} pictures, unpruned: {said(unpruned, unpruned)}")
    for target_gmacs in args.target_gmacs:
        fixed = solve(model, make_strategy("tome"), target_gmacs)
        amounts = fixed.amounts(len(find_tower(model).blocks))
        dynamic = Dynamic(thresholds=thresholds(model, images[: 2 * args.calibrate : 2], encode, amounts))
        for strategy in (fixed, dynamic):
            costs, found, left = [], [], []
            with prune(model, strategy) as pruning:
                for image in images:
                    found.append(encode(image))
                    costs.append(gmacs(model, pruning.tokens_by_block))
                    left.append(pruning.tokens_after)
            cost, spread = f"{statistics.mean(costs):>6.2f} GMACs", f"{min(left)} to {max(left)} tokens left"
            print(f"{strategy.name:>8} {cost}, {said(torch.cat(found), unpruned)}, {spread}", flush=True)


def thresholds(model: Any, images: Tensor, encode: Any, amounts: Any) -> tuple[float, ...]:
    """Of each block in turn: above it lie `amount` similarities an image, of all images together."""
    found: list[float] = []
    for amount in amounts:
        seen = []
        with prune(model, Dynamic(thresholds=tuple(found))):
            for image in images:
                try:
                    encode(image)
                except Seen as similarities:
                    seen.append(similarities.args[0])
        ranked = torch.cat(seen).sort(descending=True).values
        found.append(float(ranked[min(amount * len(images), len(ranked)) - 1]) - 1e-7 if amount else 1.0)
    return tuple(found)


def gmacs(model: Any, tokens_by_block: list[int]) -> float:
    """Multiply-adds in billions: the linear layers and attention of each block by the tokens there, and the stem."""
    tower = find_tower(model)
    width = tower.blocks[0].ln_1.weight.shape[0]
    total, there = 3 * tower.image_size[0] * tower.image_size[1] * width, tower.num_tokens
    for left in tokens_by_block:
        total += 4 * there * width**2 + 2 * there**2 * width + 8 * left * width**2
        there = left
    return total / 1e9


if __name__ == "__main__":
    target.run(main)
