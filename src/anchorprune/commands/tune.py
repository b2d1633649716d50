"""`anchorprune tune`: the pruning that an accuracy, a speed or a latency allows, found on part of the user's data."""

from __future__ import annotations

import argparse
import shlex
from contextlib import nullcontext
from functools import partial

from anchorprune.commands import _flags as flags
from anchorprune.commands._flags import parse_strategies, say
from anchorprune.commands._requests import list_files, single_request, warn_of_idle_task_flags
from anchorprune.files import output_folder
from anchorprune.outputs import check_names

FILES = ("tune.json", "tune.csv", "report.html")
HELP = "find the pruning that your accuracy, speed or latency allows, on part of your data"


def add_flags(parser: argparse.ArgumentParser) -> None:
    own = parser.add_argument_group("what to look for")
    goal = own.add_mutually_exclusive_group(required=True)
    goal.add_argument(
        "--max_drop", type=float, metavar="POINTS", help="the fastest that loses at most that much of the task's metric"
    )
    goal.add_argument(
        "--target_speedup", type=float, metavar="TIMES", help="the most accurate that is that much faster here"
    )
    goal.add_argument(
        "--max_latency_ms",
        type=float,
        metavar="MS",
        help="the most accurate whose image tower takes at most that long for a batch of --batch_size here (median)",
    )
    own.add_argument(
        "--strategies",
        nargs="+",
        metavar="SPEC",
        default=None,
        help="which to search, as in sweep (default: coarse, coarse --grid_share 0.25 and tome)",
    )
    own.add_argument(
        "--calibration",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="share of the images to search on, 0 … 1; the expectation is for the rest (default: %(default)s)",
    )
    own.add_argument(
        "--out", metavar="DIR", default=None, help="folder for what was searched: tune.json, tune.csv and report.html"
    )
    flags.add_source_flags(parser)
    flags.add_running_flags(parser, result="what was found, ")
    flags.add_progress_flags(parser)
    flags.add_task_flags(parser)


def run(args: argparse.Namespace) -> None:
    """Search, and print the flags to use with what to expect of them."""
    request = single_request(args)
    warn_of_idle_task_flags(args, [request])
    strategies = parse_strategies(args.strategies)

    from anchorprune.evaluation.inputs import reads_of, strategy_reads
    from anchorprune.studies.tune import tune

    if args.out:
        reads = [*list_files(args), *reads_of(request), *strategy_reads(strategies)]
        check_names("out", args.out, FILES, reads)
    with output_folder("out", args.out, *FILES) if args.out else nullcontext() as folder:
        found = tune(
            request,
            max_drop=args.max_drop,
            target_speedup=args.target_speedup,
            max_latency_ms=args.max_latency_ms,
            strategies=strategies,
            calibration=args.calibration,
            progress=flags.reporting(args),
            say=partial(say, args),
        )
        try:
            print(found.to_text(), flush=True)
            if folder and found.command:
                print(f"\n{found.command}", flush=True)
        finally:  # whether it can be printed or not
            if folder:
                found.save(folder, shlex.join(["anchorprune", "tune", *args.argv]))
        if folder:
            say(args, f"\ntune.json, tune.csv and report.html: {folder}")
