"""The command line: `anchorprune COMMAND`. Each file of this folder is a command; those that begin with `_` serve them.

A command has `HELP`, `add_flags(parser)` and `run(args)`, which may return an exit code. Importing them, and `--help`,
import no torch.
"""

from __future__ import annotations

import importlib
import io
import os
import pkgutil
import sys
import warnings
from contextlib import nullcontext
from types import ModuleType
from typing import Any

import anchorprune
from anchorprune.commands._flags import Parser
from anchorprune.commands._quiet import no_bars
from anchorprune.errors import FieldError, FieldWarning, UserError, did_you_mean, of_the_machine

# The order in which help lists them; others come after these.
ORDER = (
    "eval",
    "build",
    "compare",
    "rerun",
    "sweep",
    "tune",
    "calibrate",
    "encode",
    "speed",
    "export",
    "datasets",
    "export-wds",
    "strategies",
    "demo",
)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 2 after one line on stderr for bad input."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in ("strict", "surrogateescape"):
        # What a terminal of another encoding cannot show must not end in a traceback after the work.
        sys.stdout.reconfigure(errors="replace")
    try:
        parser = build_parser()
    except UserError as error:  # a strategy of another package
        return _complain(str(error))
    if odd := next((word for word in argv or () if not _can_be_typed(word)), None):
        return _complain(f"{odd!a}: holds a NUL byte or half a character, which no name has")
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
            with nullcontext() if getattr(args, "verbose", True) else no_bars():
                return commands()[args.which].run(args) or 0
    except FieldError as error:
        return _complain(error.as_flag())
    except UserError as error:
        return _complain(str(error))
    except BrokenPipeError:  # the reader of our output went away, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if (lacking := of_the_machine(error)) is None:
            raise
        return _complain(str(lacking))
    except KeyboardInterrupt as error:
        print(f"anchorprune: {str(error) or 'interrupted'}", file=sys.stderr)
        return 130


def _can_be_typed(word: str) -> bool:
    try:
        return b"\0" not in os.fsencode(word)
    except UnicodeEncodeError:
        return False


def _complain(sentence: str) -> int:
    print(f"anchorprune: error: {' '.join(sentence.split())}", file=sys.stderr)
    return 2


def _show_warning(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
    text = message.typed if isinstance(message, FieldWarning) else str(message)
    print(f"anchorprune: warning: {' '.join(text.split())}", file=sys.stderr)


def commands() -> dict[str, ModuleType]:
    """Each command's module by its name, in the order of help."""
    files = [module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")]
    names = {file.replace("_", "-"): file for file in files}
    ordered = [name for name in ORDER if name in names] + sorted(names.keys() - set(ORDER))
    return {name: importlib.import_module(f"{__name__}.{names[name]}") for name in ordered}


def build_parser() -> Parser:
    """The parser of the whole command line."""
    parser = Parser(prog="anchorprune", description="Token pruning for CLIP image encoders, measured.")
    parser.add_argument("--version", action="version", version=f"anchorprune {anchorprune.__version__}")
    subparsers = parser.add_subparsers(title="commands")
    for name, command in commands().items():
        sub = subparsers.add_parser(name, help=command.HELP)
        command.add_flags(sub)
        sub.set_defaults(which=name, parser=sub)
    return parser
