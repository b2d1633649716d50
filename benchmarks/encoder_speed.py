"""What pruning saves in time: the image tower unpruned and pruned, in alternating repeats in one process.

    python benchmarks/encoder_speed.py --model ViT-B-16-quickgelu --batch_size 16 --precision amp

Random weights and random images: the time depends on neither. Prints the median of the ratios of neighbouring
repeats beside the ratio that the FLOPs imply.
"""

from __future__ import annotations

import argparse
import statistics
from contextlib import nullcontext
from functools import partial

import open_clip
import torch

import anchorprune
from anchorprune.cost import image_tower_flops, time_in_turns

PRUNINGS: list[tuple[str, dict]] = [
    ("anchor", {}),
    ("anchor", {"prune_layer": 6}),
    ("random", {}),
    ("random", {"prune_layers": 6}),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-16-quickgelu")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--precision", choices=["fp32", "amp"], default="amp")
    args = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = open_clip.create_model(args.model, device=device).eval()
    size = model.visual.image_size
    images = torch.randn(args.batch_size, 3, *(size if isinstance(size, tuple) else (size, size)), device=device)
    autocast = torch.autocast(device.type) if args.precision == "amp" else nullcontext()

    where = f"{device}, {torch.get_num_threads()} threads, {args.precision}, batch {args.batch_size}"
    print(f"{args.model}, {where}, median of {args.repeats} alternating repeats, torch {torch.__version__}\n")
    print("| pruning | tokens | GMACs | images/s unpruned | images/s pruned | speed-up | by FLOPs |")
    print("|---|---|---|---|---|---|---|")
    # Not inference_mode: on a CPU, under autocast, it takes F.linear off its fast path (torch 2.14).
    with torch.no_grad(), autocast:
        dense_flops = image_tower_flops(model)
        for name, fields in PRUNINGS:
            with anchorprune.prune(model, name, **fields) as pruning:
                flops = image_tower_flops(model)
                model.encode_image(images)  # warms up, and says how many tokens are kept
            states = [nullcontext, partial(anchorprune.prune, model, name, **fields)]
            dense, pruned = time_in_turns(states, lambda: model.encode_image(images), device, args.repeats)
            ratio = statistics.median(d / p for d, p in zip(dense, pruned, strict=True))
            rates = [args.batch_size / statistics.median(times) for times in (dense, pruned)]
            label = " ".join([name, *(f"--{field} {value}" for field, value in fields.items())])
            print(
                f"| {label} | {pruning.tokens_after} | {flops / 2e9:.1f} | {rates[0]:.1f} | {rates[1]:.1f} | "
                f"{ratio:.2f} × | {dense_flops / flops:.2f} × |",
                flush=True,
            )


if __name__ == "__main__":
    main()
