"""The command line: `anchorprune COMMAND`. Each file of this folder is a command; those that begin with `_` serve them.

A command has `HELP`, `add_flags(parser)` and `run(args)`, which may return an exit code. Importing them, and `--help`,
import no torch.
"""

from __future__ import annotations

import errno
import importlib
import os
import pkgutil
import sys
import warnings
from contextlib import nullcontext, suppress
from types import ModuleType
from typing import Any, TextIO

import anchorprune
from anchorprune.commands._flags import Parser
from anchorprune.commands._quiet import no_bars
from anchorprune.errors import FieldError, FieldWarning, UserError, did_you_mean, of_the_machine
from anchorprune.terminal import Printable, Unsaid, printable, speak_its_encoding

# What the system says where it refuses a file, which no check can foresee everywhere.
_REFUSED = {
    getattr(errno, name)
    for name in (
        "EACCES", "EPERM", "EROFS", "ENOSPC", "EDQUOT", "EFBIG", "EIO", "ENAMETOOLONG", "ELOOP", "EMFILE", "ENFILE",
        "ESTALE", "EISDIR", "ENOTDIR",
    )
    if hasattr(errno, name)
}  # fmt: skip
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
    out = sys.stdout
    speak_its_encoding(out)
    speak_its_encoding(sys.stderr)
    if out is not None:  # closed, as by `>&-`
        sys.stdout = Printable(out)
    try:
        try:
            return _run(argv)
        finally:  # here, where it can be said that it fails; after `--help`, too
            if out is not None:
                sys.stdout.flush()
    except FieldError as error:
        return _complain(error.as_flag())
    except Unsaid as error:
        _silence(out)
        return _complain(str(error))
    except UserError as error:
        return _complain(str(error))
    except KeyboardInterrupt as error:
        print(f"anchorprune: {printable(str(error)) or 'interrupted'}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away, as in `| head`
        _silence(out)
        return 141
    except Exception as error:
        if (lacking := of_the_machine(error) or _refused(error)) is None:
            raise
        return _complain(str(lacking))
    finally:
        sys.stdout = out


def _refused(error: Exception) -> str | None:
    """The line for what the system refuses; None for a fault of ours."""
    if isinstance(error, OSError) and error.errno in _REFUSED:
        return f"{error.filename or 'the system'}: {error.strerror}"
    # Of a file's name, or JSON's; no tokenizer and no file system takes it.
    if isinstance(error, UnicodeEncodeError) and any("\ud800" <= each <= "\udfff" for each in error.object):
        return f"{error.object[:80]!a}: holds half of a character or bytes that are no UTF-8; rename it"
    if isinstance(error, RuntimeError) and "home directory" in str(error):  # pathlib's, of a path that begins with `~`
        return "a path begins with ~, and there is no such home folder; write it out"
    return None


def _can_be_typed(word: str) -> bool:
    try:
        return b"\0" not in os.fsencode(word)
    except UnicodeEncodeError:
        return False


def _run(argv: list[str] | None) -> int:
    parser = build_parser()
    if odd := next((word for word in argv or () if not _can_be_typed(word)), None):
        raise UserError(f"{odd!a}: holds a NUL byte or half a character, which no name has")
    args, unknown = parser.parse_known_args(argv)
    if "which" not in args and not unknown:
        parser.print_help()
        return 0
    args.argv = (sys.argv[1:] if argv is None else list(argv))[1:]  # what came after the command's name
    if unknown:
        actions = getattr(args, "parser", parser)._actions
        known = [option for action in actions for option in action.option_strings]
        hint = did_you_mean(unknown[0].split("=")[0], known)
        raise UserError(f"unrecognized arguments: {' '.join(unknown)}.{hint}")
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        warnings.filterwarnings("always", category=UserWarning, module="anchorprune")
        # Torch's advice on --num_workers, whose default is clip-benchmark's: two lines in every run on a small machine.
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        with nullcontext() if getattr(args, "verbose", True) else no_bars():
            return commands()[args.which].run(args) or 0


def _silence(out: TextIO) -> None:
    """What is still to be written goes nowhere, without a complaint when Python ends."""
    with suppress(OSError, ValueError):  # no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())


def _complain(sentence: str) -> int:
    print(f"anchorprune: error: {printable(' '.join(sentence.split()))}", file=sys.stderr)
    return 2


def _show_warning(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
    text = message.typed if isinstance(message, FieldWarning) else str(message)
    print(f"anchorprune: warning: {printable(' '.join(text.split()))}", file=sys.stderr)


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
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, command in commands().items():
        sub = subparsers.add_parser(name, help=command.HELP)
        command.add_flags(sub)
        sub.set_defaults(which=name, parser=sub)
    return parser
