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
from pathlib import Path
from typing import Any

import target

from anchorprune.commands import build_parser
from anchorprune.commands._flags import parse_strategies
from anchorprune.commands._requests import single_request
from anchorprune.datasets import open_dataset
from anchorprune.datasets.sampling import choose
from anchorprune.evaluation import statistics
from anchorprune.files import write_text
from anchorprune.studies.sweep import Sweep, plan
from anchorprune.studies.ways import Way, evaluate_ways, mean_scores


def main() -> None:
    parser = build_parser()
    sweep = subcommand(parser, "sweep")
    sweep.add_argument("--part", choices=["search", "held_out"], default="held_out")
    sweep.add_argument("--images", type=int, default=400)
    sweep.add_argument("--skip", type=int, default=0, help="leave out those that --images SKIP takes: seen before")
    args = parser.parse_args(["sweep", *sys.argv[1:]])
    request = single_request(args)
    ways = plan(request, parse_strategies(args.strategies), args.targets)

    keys = open_dataset(request.data, lambda image: image).keys
    half = half_of(keys, args.part)
    names = [keys[i] for i in half]
    if not 0 <= args.skip < len(names):
        sweep.error(f"--skip {args.skip}: must be 0 or more and leave some of this half's {len(names)} images")
    seen = set(choose(names, args.skip, args.seed)) if args.skip else set()
    indices = [half[i] for i in choose(names, args.skip + args.images, args.seed) if i not in seen]
    found = Sweep(request, ways, evaluate_ways(request, ways, indices=indices, progress=args.verbose))

    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    found.save(out)
    points = found.points
    table = found.to_text().split("\nOn a frontier")[0]
    lines = [f"{request.data.name}, {args.part}, {len(indices)} images", "", table, "", "Paired differences, points:"]
    right = [mean_scores(of_way) for of_way in found.results]
    first = [i for i, way in enumerate(ways) if i and but_budget(way) == but_budget(ways[1])]
    for i in first:
        for j in range(1, len(ways)):
            if j not in first and abs(points[j].gmacs - points[i].gmacs) < 0.5:
                pair = f"{points[i].title} ({points[i].gmacs:.2f}) minus {points[j].title} ({points[j].gmacs:.2f})"
                lines.append(f"  {pair}: {difference(right[i], right[j])}")
    print("\n".join(lines))
    write_text("\n".join(lines) + "\n", out / "table.txt")


def but_budget(way: Way) -> dict[str, Any]:
    """The fields of a way that has any, without its budget."""
    strategy = way.strategies[0]
    return {field: value for field, value in strategy.as_dict().items() if field not in strategy.budget_fields}


def difference(one: list[float], other: list[float]) -> str:
    """Of the shares that were right, in points, with the paired 95 % interval."""
    by = statistics.difference(one, other)
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
    target.run(main)
