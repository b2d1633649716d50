"""`anchorprune sweep`: many ways of pruning in one pass over the data, and which of them are worth their compute."""

from __future__ import annotations

import argparse
import shlex

from anchorprune.commands import _flags as flags
from anchorprune.commands._flags import parse_strategies, say
from anchorprune.commands._requests import single_request
from anchorprune.files import output_folder

HELP = "evaluate many ways of pruning in one pass; accuracy against compute"


def add_flags(parser: argparse.ArgumentParser) -> None:
    own = parser.add_argument_group("what to try")
    own.add_argument(
        "--strategies",
        nargs="+",
        metavar="SPEC",
        default=None,
        help="names, or names with flags in quotes such as 'anchor --prune_layer 6' (default: every strategy)",
    )
    flags.add_targets(own)
    own.add_argument("--out", metavar="DIR", default="anchorprune-sweep", help="folder for the results (%(default)s)")
    flags.add_source_flags(parser)
    flags.add_running_flags(parser)
    flags.add_progress_flags(parser)
    flags.add_task_flags(parser)


def run(args: argparse.Namespace) -> None:
    """Evaluate all ways that the command line asks for, and write the results to `--out`."""
    request = single_request(args)
    strategies, reporting = parse_strategies(args.strategies), flags.reporting(args)

    from anchorprune.studies.sweep import Sweep, plan
    from anchorprune.studies.ways import evaluate_ways

    ways = plan(request, strategies, args.targets)
    with output_folder("out", args.out) as folder:
        for way in ways:
            say(args, f"{way.name} {way.flags}".rstrip())
        found = Sweep(request, ways, evaluate_ways(request, ways, progress=reporting))
        files = found.save(folder, shlex.join(["anchorprune", "sweep", *args.argv]))
        say(args, f"\n{found.to_text()}\n\n{len(files)} results, sweep.csv, sweep.png and report.html: {folder}")
