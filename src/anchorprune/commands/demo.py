"""`anchorprune demo`: the bundled model on the bundled photographs, and a page about it."""

from __future__ import annotations

import argparse

HELP = "prune the bundled model on the bundled photos; leaves a page to look at"


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", metavar="DIR", default="anchorprune-demo", help="folder for report.html and the results (%(default)s)"
    )
    parser.add_argument("--limit", type=int, default=None, metavar="N", help="only N photos, as in eval")
    parser.add_argument("--quiet", dest="verbose", action="store_false", help="print nothing but warnings and errors")


def run(args: argparse.Namespace) -> None:
    from anchorprune.studies.demo import run_demo

    run_demo(args.out, args.limit, args.verbose)
