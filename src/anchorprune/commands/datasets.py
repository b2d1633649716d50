"""`anchorprune datasets`: all data sets, and whether every sample of one can be read."""

from __future__ import annotations

import argparse
import dataclasses
import json

from anchorprune.commands._data import add_data_flags, data_spec, task_name
from anchorprune.commands._flags import reporting
from anchorprune.errors import FieldError, UserError
from anchorprune.progress import telling
from anchorprune.terminal import line_width

HELP = "list the data sets, or check every sample of some"


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        nargs="?",
        choices=["list", "check"],
        default="list",
        help="list: names, tasks, sizes where they are stated, origins (the default); check: read every sample of the "
        "data sets that follow and report bad ones, class balance and image sizes; the exit code is 1 where any is bad",
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="for check: data sets, as --dataset of eval takes them"
    )
    parser.add_argument("--format", choices=["text", "json"], default="text", help="of what is printed")
    add_data_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Returns the exit code: 1 where a sample is bad."""
    if args.action == "list":
        if args.names:
            raise UserError(f"datasets list: takes no names; did you mean datasets check {' '.join(args.names)}?")
        if idle := [f"--{name}" for name in _of_samples(args)]:
            raise UserError(f"datasets list: opens no data and takes no {', '.join(idle)}; datasets check does")
        return _list(args)
    return _check(args)


def _of_samples(args: argparse.Namespace) -> list[str]:
    """The flags that were given of how samples are read."""
    flags = (
        action for action in args.parser._actions if action.option_strings and action.dest not in ("help", "format")
    )
    return [flag.dest for flag in flags if flag.dest != "verbose" and getattr(args, flag.dest) != flag.default]


def _list(args: argparse.Namespace) -> int:
    from anchorprune.datasets import catalog

    listed = catalog.entries()
    if args.format == "json":
        print(json.dumps([dataclasses.asdict(entry) for entry in listed], indent=2))
    else:
        print(catalog.to_text(listed, line_width()))
    return 0


def _check(args: argparse.Namespace) -> int:
    from anchorprune.datasets import check_dataset, expand_names, open_dataset
    from anchorprune.datasets.check import check_samples, size_of

    if not args.names:
        raise UserError("datasets check: name the data sets to check, such as folder:my_photos")
    if args.num_workers < 0:
        raise FieldError("num_workers", args.num_workers, "must be 0 (no worker processes) or more")
    specs = [data_spec(args, name, args.language) for name in expand_names(args.names)]
    if len(specs) > 1:
        for spec in specs:  # nothing may fail after hours of another one
            check_dataset(spec, task_name(args, spec))
    reports = []
    for spec in specs:
        with telling(how := reporting(args)):
            dataset = open_dataset(spec, size_of, task_name(args, spec))
        reports.append(check_samples(dataset, spec, num_workers=args.num_workers, progress=how))
        if args.format == "text":
            print(reports[-1].to_text(), flush=True)
    if args.format == "json":
        print(json.dumps([report.as_dict() for report in reports], indent=2))
    return 1 if any(report.bad for report in reports) else 0
