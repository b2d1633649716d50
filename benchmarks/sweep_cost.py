"""What one pass for many ways of pruning costs: the encoding time of a sweep over that of separate runs.

    python benchmarks/sweep_cost.py --batch_size 16 --batches 3

Twelve ways, 61 tokens of 197 from block 4, 7 or 10 on, with random weights and random images. The unpruned tower runs
in both. Target: at most 1.1 times what the FLOPs imply.
"""

from __future__ import annotations

import argparse
import statistics
import time

import open_clip
import target
import torch

from anchorprune.evaluation.encoding import Encoder, EncodersInTurns
from anchorprune.evaluation.runtime import Runtime
from anchorprune.pruning.copies import sharing_copy
from anchorprune.pruning.cost import image_tower_flops
from anchorprune.strategies import make_strategy
from anchorprune.towers import find_tower


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-16-quickgelu")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--batches", type=int, default=3)
    args = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = open_clip.create_model(args.model, device=device).eval()
    size = find_tower(model).image_size
    images = torch.randn(args.batch_size, 3, *size, device=device)
    dense = image_tower_flops(model)
    ways = [
        make_strategy("anchor", prune_layer=layer, alpha=alpha, score_norm=norm)
        for layer in (4, 7, 10)
        for alpha in (0.25, 0.75)
        for norm in ("none", "minmax")
    ]
    runtime = Runtime(device, "fp32")
    encoders = [
        Encoder(sharing_copy(model) if way else model, way, runtime, dense_flops=dense) for way in [None, *ways]
    ]
    together, alone = EncodersInTurns(encoders), [EncodersInTurns([encoder]) for encoder in encoders]

    def seconds(*passes: EncodersInTurns) -> float:
        start = time.perf_counter()
        for one in passes:
            for _, features in one(images):
                float(features.sum())  # waits for the device
        return time.perf_counter() - start

    # What a way need not run again: the blocks before the first that it prunes in.
    n, width = model.visual.positional_embedding.shape
    block = 2 * (12 * n * width**2 + 2 * n**2 * width)
    separate = [encoder.flops or 0 for encoder in encoders]
    shared = [(encoder.pruning.first_block - 1) * block for encoder in encoders if encoder.pruning]
    implied = (sum(separate) - sum(shared)) / sum(separate)
    with torch.no_grad():
        seconds(together, *alone)  # warms up
        pairs = [(seconds(together), seconds(*alone)) for _ in range(args.batches)]
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"{args.model}, {device}, {torch.get_num_threads()} threads, float32, batch {args.batch_size}")
    print(f"{len(ways)} ways and the unpruned tower, {args.batches} alternating repeats; by FLOPs {implied:.3f}")
    target.hold("one pass over separate runs", ratio, at_most=1.1 * implied)
    target.leave()


if __name__ == "__main__":
    target.run(main)
