"""`anchorprune compare`: two results beside each other."""

from __future__ import annotations

import argparse

HELP = "print the differences of two results"


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A.json", help="the result to compare with, usually the unpruned one")
    parser.add_argument("b", metavar="B.json", help="the other result")


def run(args: argparse.Namespace) -> None:
    from anchorprune.studies.compare import compare

    print(compare(args.a, args.b).to_text())
