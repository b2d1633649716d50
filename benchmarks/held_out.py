"""Strategies at equal GMACs on one half of a data set: the half that settings were searched on, or the other.

    python benchmarks/held_out.py --part held_out --images 400 --out results/ --strategies thin tome max_min \\
      --target_gmacs 10.4 8.8 7.1 6.4 --model ViT-B-16-quickgelu --pretrained CHECKPOINT.pt --dataset wds/cifar8 \\
      --dataset_root 'DATA/wds_{dataset_cleaned}' --load_clfs cifar8.pt

Images are dealt to the halves by a hash of their key, whatever their order; `--skip 400` leaves out those that an
earlier look at 400 took. Takes every flag of `anchorprune sweep`.
Prints the table of `sweep` and the paired differences of the first strategy to each other one at the same budget.
"""

from __future__ import annotations

import hashlib
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from anchorprune import results
from anchorprune.cli import build_parser
from anchorprune.datasets import open_dataset
from anchorprune.datasets.sampling import choose
from anchorprune.report.frontier import as_text
from anchorprune.report.stats import bootstrap_difference
from anchorprune.runs import check, check_tower, source_of
from anchorprune.sweep import UNPRUNED, evaluate_ways, measured, share_right, single_run, ways_of, write


def main() -> None:
    parser = build_parser()
    sweep = subcommand(parser, "sweep")
    sweep.add_argument("--part", choices=["search", "held_out"], default="held_out")
    sweep.add_argument("--images", type=int, default=400)
    sweep.add_argument("--skip", type=int, default=0, help="leave out those that --images SKIP takes: seen before")
    args = parser.parse_args(["sweep", *sys.argv[1:]])
    args.argv = sys.argv[1:]
    run = single_run(args)
    check(args, [run], None)
    ways = [UNPRUNED, *ways_of(args.strategies, args.targets, partial(check_tower, args.model_type, run.model))]

    keys = open_dataset(run.dataset, transform=lambda image: image, **source_of(args, run)).keys
    half = half_of(keys, args.part)
    names = [keys[i] for i in half]
    if not 0 <= args.skip < len(names):
        sweep.error(f"--skip {args.skip}: must be 0 or more and leave some of this half's {len(names)} images")
    seen = set(choose(names, args.skip, args.seed)) if args.skip else set()
    indices = [half[i] for i in choose(names, args.skip + args.images, args.seed) if i not in seen]
    found = evaluate_ways(args, run, ways, indices)

    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    points = [measured(args, run, way, of_way, found[0][0]) for way, of_way in zip(ways, found, strict=True)]
    for of_way in found:
        for one in of_way:
            write(args, run, one, out)
    table = as_text(points).split("\nOn a frontier")[0]
    lines = [f"{run.dataset}, {args.part}, {len(indices)} images", "", table, "", "Paired differences, points:"]
    right = [share_right(of_way) for of_way in found]
    first = [i for i, way in enumerate(ways) if way.name == ways[1].name]
    for i in first:
        for j in range(1, len(ways)):
            if j not in first and abs(points[j].gmacs - points[i].gmacs) < 0.5:
                pair = f"{points[i].title} ({points[i].gmacs:.2f}) minus {points[j].title} ({points[j].gmacs:.2f})"
                lines.append(f"  {pair}: {difference(right[i], right[j])}")
    print("\n".join(lines))
    results.write_text("\n".join(lines) + "\n", out / "table.txt")


def difference(one: list[float], other: list[float]) -> str:
    """Of the shares that were right, in points, with the paired bootstrap 95 % interval."""
    by = bootstrap_difference(one, other)
    return f"{100 * by.value:+.1f} ({100 * by.low:+.1f} to {100 * by.high:+.1f})"


def subcommand(parser: ArgumentParser, name: str) -> ArgumentParser:
    """The parser of `anchorprune NAME`, for a benchmark's own flags beside its."""
    return parser._subparsers._group_actions[0].choices[name]  # type: ignore[union-attr, index, call-overload, no-any-return]


def half_of(keys: Sequence[str], part: str) -> list[int]:
    """Indices of the images of one half, "search" or "held_out"."""
    return [i for i, key in enumerate(keys) if even(key) == (part == "search")]


def even(key: str) -> bool:
    return hashlib.sha256(key.replace("/", "").encode("utf-8", "surrogateescape")).digest()[-1] % 2 == 0


if __name__ == "__main__":
    main()
