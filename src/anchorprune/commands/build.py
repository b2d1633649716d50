"""`anchorprune build`: result files as one CSV."""

from __future__ import annotations

import argparse

HELP = "build a CSV from result files"


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", type=str, nargs="+", help="path(s) of JSON result files, or folders of them")
    parser.add_argument("--output", type=str, default="benchmark.csv", help="CSV output file")


def run(args: argparse.Namespace) -> None:
    from anchorprune.report.csv import build

    rows = build(args.files, args.output)
    print(f"{rows} results: {args.output}")
