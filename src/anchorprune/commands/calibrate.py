"""`anchorprune calibrate`: what brings pruned features nearer to the unpruned ones, from unlabelled images."""

from __future__ import annotations

import argparse
from functools import partial

from anchorprune.commands import _flags as flags
from anchorprune.commands._flags import parse_strategies, say
from anchorprune.commands._requests import list_files, single_request
from anchorprune.commands._results import kept
from anchorprune.outputs import check_outputs

HELP = "measure on unlabelled images what pruning does to features, for --strategy calibrated to undo it"


# Of classifiers and trained tasks; only features are compared.
IDLE = ("task", "load_clfs", "clf_cache", "feature_root")


def add_flags(parser: argparse.ArgumentParser) -> None:
    own = parser.add_argument_group("what to calibrate")
    own.add_argument(
        "--strategies",
        nargs="+",
        metavar="SPEC",
        default=["coarse"],
        help="names, or names with flags in quotes such as 'coarse --keep_patches 43' (default: coarse)",
    )
    flags.add_targets(own)
    own.add_argument(
        "--out", metavar="FILE", default="calibration.safetensors", help="the file to write (default: %(default)s)"
    )
    flags.add_source_flags(parser)
    flags.add_running_flags(parser)
    flags.add_progress_flags(parser)
    for action in parser._actions:  # taken, so that an `eval` line can be typed anew, but nothing comes of them here
        if action.dest in IDLE:
            action.help = argparse.SUPPRESS


def run(args: argparse.Namespace) -> None:
    """Calibrate what the command line asks for, and write the file."""
    request = single_request(args)
    strategies = parse_strategies(args.strategies)

    from anchorprune.evaluation.inputs import reads_of, strategy_reads
    from anchorprune.studies.calibrate import calibrate

    check_outputs([("out", args.out)], [*list_files(args), *reads_of(request), *strategy_reads(strategies)])
    found = calibrate(
        request,
        strategies=strategies or (),
        targets=args.targets,
        progress=flags.reporting(args),
        say=partial(say, args),
    )
    kept(args, found.to_text(), partial(found.save, args.out))
    say(args, f"\n{args.out}: use it by --strategy calibrated --calibration {args.out}")
