"""Command lines of random flags and values, and a folder to run them in."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from unittest.mock import patch

from hypothesis import strategies as st

from anchorprune.commands import build_parser
from anchorprune.datasets import DataSpec
from anchorprune.errors import UserError
from anchorprune.evaluation.request import ModelSpec, Request
from support.material import command, picture

_WORDS = (
    *(
        "",
        "-",
        "--",
        "0",
        "1",
        "-1",
        "2.5",
        "nan",
        "inf",
        "1e999",
        "9" * 30,
        "é",
        "\x1b[31m",
        "a\nb",
        "x" * 300,
        "'",
        '"',
    ),
    *("{", "{dataset}", "{model", "{0}", "~nobody-of-that-name/x", ".", "photos", "gone", "no/such/folder", "a\0b"),
    *("r.json", "t.csv", "names.json", "photos/cat/0.png", "folder:photos", "folder:gone", "table:t.csv", "wds/x"),
    *(
        "hf-hub:",
        "local-dir:photos",
        "gone,gone",
        "coarse",
        "tome --r 2",
        "tome --r '",
        "anchor --alpha nan",
        "cascade",
    ),
    *("unpruned", "cpu", "cuda:99", "meta", "amp", "fp16", "table:r.json", "http://[::1", "/dev/null/x", "calibrated"),
)
_NUMBERS = ("0", "1", "2", "-1", "1.5", "nan", "inf", "-inf", "1e400", "9" * 30, "0x1", str(1 << 31), str(-(1 << 63)))
# These start machines, processes or compilers, import other libraries, or end in a list of what failed.
_LEFT_OUT = {"--engine", "--distributed", "--compile", "--shard_samples", "--help", "--model_type", "--keep_going"}
# Data that is there, so that no default is looked for; and last, so that nothing is computed, what is not there.
_FIRST = {"--dataset": "folder:photos", "--input": "photos"}
_LAST = {"--model": "gone", "--num_workers": "0"}


@cache
def _flags() -> dict[str, list[argparse.Action]]:
    """The flags of each command but the demo, which has no model that could be missing."""
    (commands,) = (each for each in build_parser()._actions if isinstance(each, argparse._SubParsersAction))
    return {
        name: [flag for flag in parser._actions if not _LEFT_OUT.intersection(flag.option_strings)]
        for name, parser in commands.choices.items()
        if name != "demo"
    }


def _value(flag: argparse.Action) -> st.SearchStrategy[str]:
    likely = st.sampled_from([str(each) for each in flag.choices]) if flag.choices else st.nothing()
    number = st.sampled_from(_NUMBERS) if flag.type not in (None, str) else st.nothing()
    return likely | number | st.sampled_from(_WORDS)


@st.composite
def command_lines(draw: st.DrawFn) -> bytes:
    """A command with some of its flags, as a list in JSON."""
    name = draw(st.sampled_from(list(_flags())))
    flags = _flags()[name]
    own = {option for flag in flags for option in flag.option_strings}
    words = [name] + [word for pair in _FIRST.items() if pair[0] in own for word in pair]
    for flag in draw(st.lists(st.sampled_from(flags), max_size=5)) if flags else ():
        words += flag.option_strings[:1]
        if flag.nargs == 0:
            continue
        least, most = {"+": (1, 3), "*": (0, 3), "?": (0, 1)}.get(str(flag.nargs), (1, 1))
        words += draw(st.lists(_value(flag), min_size=least, max_size=most))
    words += [word for pair in _LAST.items() if pair[0] in own for word in pair]
    return json.dumps(words).encode()


@contextmanager
def _some_files() -> Iterator[None]:
    """A folder with something of everything, the current one and the home."""
    before, folder = os.getcwd(), Path(tempfile.mkdtemp())
    (folder / "here" / "photos" / "cat").mkdir(parents=True)
    os.chdir(folder / "here")
    try:
        picture(0).save("photos/cat/0.png")
        Path("t.csv").write_text("image,label\nphotos/cat/0.png,cat\n")
        Path("names.json").write_text('{"photos": ["cat"]}')
        request = Request(model=ModelSpec(name="gone"), data=DataSpec(name="folder:photos")).as_dict()
        named = {"dataset": "folder:photos", "model": "gone", "pretrained": "", "task": "zeroshot_classification"}
        Path("r.json").write_text(
            json.dumps({**named, "metrics": {"acc1": 0.5}, "request": request, "config_hash": "0"})
        )
        with patch.dict(os.environ, {"HOME": str(folder)}):
            yield
    finally:
        os.chdir(before)
        shutil.rmtree(folder)


def run_line(path: Path) -> None:
    """Run the command line in a file, which ends with 0, with 1 where that is an answer, or with a line and 2.

    Raises:
        UserError: that line.
    """
    words = json.loads(path.read_text())
    with _some_files():
        outcome = command(*words)
    assert outcome.code in ((0, 1, 2) if words[0] in ("datasets", "rerun") else (0, 2)), outcome
    if outcome.code == 2:
        *before, line = outcome.err
        assert ": error: " in line, outcome
        assert not [said for said in before if not said.startswith("anchorprune: warning: ")], outcome
        raise UserError(line)
