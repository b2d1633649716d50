"""The command line: `anchorprune eval | build | compare | sweep | tune | speed | strategies | demo`.

Importing it, and `--help`, import no torch. The flags that several commands share are in `options.py`.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from typing import Any, NoReturn

import anchorprune
from anchorprune import options
from anchorprune.errors import FieldError, UserError, did_you_mean
from anchorprune.options import given_fields


class Parser(argparse.ArgumentParser):
    """argparse with one line for a mistake instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 2 after one line on stderr for bad input."""
    try:
        parser = build_parser()
    except UserError as error:  # a strategy of another package
        return _complain(str(error))
    args, unknown = parser.parse_known_args(argv)
    if "which" not in args and not unknown:
        parser.print_help()
        return 0
    args.argv = (sys.argv[1:] if argv is None else list(argv))[1:]  # what came after the command's name
    try:
        if unknown:
            actions = getattr(args, "parser", parser)._actions
            known = [option for action in actions for option in action.option_strings]
            hint = did_you_mean(unknown[0].split("=")[0], known)
            raise UserError(f"unrecognized arguments: {' '.join(unknown)}.{hint}")
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            warnings.filterwarnings("always", category=UserWarning, module="anchorprune")
            # Torch's advice on --num_workers, whose default is clip-benchmark's: two lines in every run on a small
            # machine.
            warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
            COMMANDS[args.which](args)
    except FieldError as error:
        return _complain(error.as_flag())
    except UserError as error:
        return _complain(str(error))
    except KeyboardInterrupt:
        print("anchorprune: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


def _complain(sentence: str) -> int:
    print(f"anchorprune: error: {' '.join(sentence.split())}", file=sys.stderr)
    return 2


def _show_warning(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
    print(f"anchorprune: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _eval(args: argparse.Namespace) -> None:
    from anchorprune.runs import run_eval

    run_eval(args, given_fields(args))


def _build(args: argparse.Namespace) -> None:
    from anchorprune import results

    rows = results.build(args.files, args.output)
    print(f"{rows} results: {args.output}")


def _compare(args: argparse.Namespace) -> None:
    from anchorprune import outcomes, results
    from anchorprune.compare import compare

    a, b = (outcomes.path_for(path) for path in (args.a, args.b))
    pair = (outcomes.read(a), outcomes.read(b)) if a.exists() and b.exists() else None
    print(compare(results.read(args.a), results.read(args.b), (args.a, args.b), pair))


def _sweep(args: argparse.Namespace) -> None:
    from anchorprune.sweep import run_sweep

    run_sweep(args)


def _tune(args: argparse.Namespace) -> None:
    from anchorprune.tune import run_tune

    run_tune(args)


def _speed(args: argparse.Namespace) -> None:
    from anchorprune.speed import run_speed

    run_speed(args)


def _strategies(args: argparse.Namespace) -> None:
    from anchorprune.listing import listing

    print(listing())


def _demo(args: argparse.Namespace) -> None:
    from anchorprune.demo.run import run_demo

    run_demo(args.out, args.limit, args.verbose)


COMMANDS = {
    "eval": _eval,
    "build": _build,
    "compare": _compare,
    "sweep": _sweep,
    "tune": _tune,
    "speed": _speed,
    "strategies": _strategies,
    "demo": _demo,
}


def build_parser() -> Parser:
    """The parser of the whole command line."""
    parser = Parser(prog="anchorprune", description="Token pruning for CLIP image encoders, measured.")
    parser.add_argument("--version", action="version", version=f"anchorprune {anchorprune.__version__}")
    commands = parser.add_subparsers(title="commands")

    evaluate = commands.add_parser("eval", help="evaluate models on data sets, pruned or not")
    options.add_source_flags(evaluate)
    options.add_eval_flags(evaluate)
    options.add_running_flags(evaluate)
    options.add_pruning_flags(evaluate.add_argument_group("pruning"))
    evaluate.set_defaults(which="eval", parser=evaluate)

    build = commands.add_parser("build", help="build a CSV from result files")
    build.add_argument("files", type=str, nargs="+", help="path(s) of JSON result files, or folders of them")
    build.add_argument("--output", type=str, default="benchmark.csv", help="CSV output file")
    build.set_defaults(which="build", parser=build)

    compare = commands.add_parser("compare", help="print the differences of two results")
    compare.add_argument("a", metavar="A.json", help="the result to compare with, usually the unpruned one")
    compare.add_argument("b", metavar="B.json", help="the other result")
    compare.set_defaults(which="compare", parser=compare)

    sweep = commands.add_parser("sweep", help="evaluate many ways of pruning in one pass; accuracy against compute")
    options.add_sweep_flags(sweep)
    sweep.set_defaults(which="sweep", parser=sweep, **options.NOT_ASKED)

    tune = commands.add_parser("tune", help="find the pruning that your accuracy or speed allows, on part of your data")
    options.add_tune_flags(tune)
    tune.set_defaults(which="tune", parser=tune, **options.NOT_ASKED)

    speed = commands.add_parser("speed", help="time the image tower, dense and pruned in turns, beside its FLOPs")
    options.add_speed_flags(speed)
    speed.set_defaults(which="speed", parser=speed)

    strategies = commands.add_parser("strategies", help="list the strategies with their fields")
    strategies.set_defaults(which="strategies", parser=strategies)

    demo = commands.add_parser("demo", help="prune the bundled model on the bundled photos; leaves a page to look at")
    demo.add_argument(
        "--out", metavar="DIR", default="anchorprune-demo", help="folder for report.html and the results (%(default)s)"
    )
    demo.add_argument("--limit", type=int, default=None, metavar="N", help="only N photos, as in eval")
    demo.add_argument("--quiet", dest="verbose", action="store_false", help="print nothing but warnings and errors")
    demo.set_defaults(which="demo", parser=demo)
    return parser
