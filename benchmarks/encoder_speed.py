"""Whether pruning saves the time that the FLOPs promise: unpruned and pruned towers in alternating repeats.

    python benchmarks/encoder_speed.py --model ViT-B-16-quickgelu --batch_size 8 32 --precision fp32 amp

Random weights and random images: the time depends on neither. Target: at least 0.95 of the promised speed-up. The row
"original design" has no target: it is the described method as the original code had it, which scores the tokens again
in every block after it has pruned them.
"""

from __future__ import annotations

import argparse

import open_clip
import target
import torch

from anchorprune.evaluation.runtime import Runtime
from anchorprune.strategies import RECOMMENDED, make_strategy
from anchorprune.strategies.anchor import Anchor
from anchorprune.studies.speed import as_text, measure
from anchorprune.tokens import TokenPlan, Tokens


class OriginalDesign(Anchor):
    """The described method, scored anew in every block after the pruned one, to keep all that is left."""

    name = "original design"

    def schedule(self, num_patches: int, num_blocks: int) -> dict[int, int]:
        keep = self.k_anchors + self.top_m
        return {layer: keep - (layer > self.prune_layer) for layer in range(self.prune_layer, num_blocks + 1)}

    def plan(self, tokens: Tokens, keep_patches: int) -> TokenPlan:
        keep = self.k_anchors + self.top_m
        return super().plan(tokens, min(keep, tokens.x.shape[1] - tokens.num_prefix_tokens))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-16-quickgelu")
    parser.add_argument("--batch_size", type=int, nargs="+", default=[16])
    parser.add_argument("--precision", nargs="+", default=["fp32", "amp"], choices=["fp32", "amp"])
    parser.add_argument("--tokens", type=float, default=0.31, help="share of the tokens that is kept")
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = open_clip.create_model(args.model, device=device).eval()
    patches = model.visual.positional_embedding.shape[0] - 1
    keep = round(args.tokens * (patches + 1)) - 1
    strategies = [
        None,
        make_strategy("anchor", top_m=keep - 10),
        OriginalDesign(top_m=keep - 10),
        make_strategy(RECOMMENDED, keep_patches=(keep,)),
        make_strategy("tome", r=max(1, round((patches - keep) / len(model.visual.transformer.resblocks)))),
        make_strategy("random", keep_patches=(keep,)),
    ]
    for precision in args.precision:
        for batch_size in args.batch_size:
            runtime = Runtime(device, precision)
            found = measure(model, strategies, runtime, batch_size, args.repeats)
            print(f"\n{args.model}, {device}, {torch.get_num_threads()} threads, {runtime.dtype}, batch {batch_size}")
            print(f"median of {args.repeats} alternating repeats, torch {torch.__version__}\n\n{as_text(found)}\n")
            for speed in found[1:]:
                if isinstance(speed.strategy, OriginalDesign):
                    continue
                target.hold(
                    f"{speed.name}, {precision}, batch {batch_size}: of the promised speed-up",
                    speed.achieved,
                    at_least=0.95,
                )
    target.leave()


if __name__ == "__main__":
    target.run(main)
