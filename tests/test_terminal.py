"""Standard output that is full, closed or of another encoding; signals; names that terminals, sheets or pages obey."""

from __future__ import annotations

import csv
import io
import json
import signal as signals
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.material import World, command, make_folder
from support.pages import check_offline, elements

from anchorprune import files, progress
from anchorprune.errors import UserError
from anchorprune.report import page, sweep_page, tune_page
from anchorprune.report.csv import build, csv_text
from anchorprune.report.frontier import Measured
from anchorprune.report.pictures import Picture, Prediction
from anchorprune.report.table import aligned
from anchorprune.terminal import Printable, printable

pytestmark = pytest.mark.usefixtures("here")

HOSTILE = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202egpj.\r\x08"
RESULT = {"dataset": "d", "model": "m", "pretrained": "p", "task": "t", "metrics": {"acc1": 0.5}}


def process(*words: str, stdout: Any = subprocess.PIPE, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    return subprocess.run(
        [sys.executable, *words],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=os.environ | environment,
        timeout=240,
        # A shell's background jobs ignore it, and what they start does so too.
        preexec_fn=lambda: signals.signal(signals.SIGINT, signals.SIG_DFL),
    )


# --- standard output


@pytest.mark.parametrize("words", [["strategies"], ["--help"], ["datasets"]], ids=str)
def test_a_full_standard_output_is_one_line(words: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = process("-m", "anchorprune", *words, stdout=full)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("anchorprune: error: standard output cannot be written (No space left on device)")


@pytest.mark.parametrize("words", ["strategies", "eval --help"])
def test_a_reader_that_goes_away_ends_it_in_silence(words: str) -> None:
    code = "import io, os, sys; from anchorprune.commands import main\n"
    code += "read, write = os.pipe(); os.close(read); os.dup2(write, 1); sys.exit(main(sys.argv[1:]))"
    done = process("-c", code, *words.split())
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize("words", ["strategies", "sweep --help", "compare a.json a.json"])
def test_a_terminal_of_another_encoding_is_given_what_it_can_show(encoding: str, words: str) -> None:
    Path("a.json").write_text(json.dumps({**RESULT, "dataset": "照片\udcff"}))
    done = process("-m", "anchorprune", *words.split(), PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) > 5


# --- signals


AT_IMPORT = """
import os, signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name == "anchorprune.commands":
            os.kill(os.getpid(), signal.{signal})
sys.meta_path.insert(0, Finder())
from anchorprune.__main__ import run
sys.exit(run())
"""
AT_WORK = """
import os, signal, sys
import anchorprune.commands.strategies as strategies
strategies.listing = lambda: os.kill(os.getpid(), signal.{signal}) or __import__("time").sleep(60)
from anchorprune.__main__ import run
sys.exit(run())
"""


@pytest.mark.parametrize("signal", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("said", ["", "anchorprune: interrupted\n"], ids=["importing", "working"])
def test_a_signal_ends_it_without_a_traceback(signal: str, said: str) -> None:
    done = process("-c", (AT_WORK if said else AT_IMPORT).format(signal=signal), "strategies")
    assert (done.returncode, done.stderr) == (130, said)


# --- places that the system refuses


def test_a_folder_that_may_not_be_searched_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    Path("a.json").write_text(json.dumps(RESULT))
    monkeypatch.setattr(Path, "is_dir", refuse)
    outcome = command("build", "locked/a.json", "--output", "all.csv")
    assert outcome.code == 2
    [line] = outcome.err
    assert "Permission denied" in line


def test_a_home_that_is_not_there_is_one_line_and_no_reason_to_stop(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = command("eval", *world.model, "--dataset", "folder:~no_such_user/x", "--output", "r.json")
    assert outcome.code == 2
    assert outcome.err == [
        "anchorprune: error: a path begins with ~, and there is no such home folder; write it out"
    ] or outcome.err[0].startswith("anchorprune: error: --dataset folder:~no_such_user/x: ")

    def no_home(*_: object) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "expanduser", lambda path: no_home() if str(path).startswith("~") else path)
    with pytest.raises(UserError, match="set XDG_CACHE_HOME"):
        files.user_cache()
    assert command("eval", *world.model, *world.three, "--num_workers", 0, "--output", "r.json").code == 0


# --- names


def test_what_is_printable_is_left_alone_and_nothing_else_is_printed() -> None:
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    shown = printable(every)
    assert printable(shown) == shown
    assert {character for character in shown[:1000] if character < " "} == set("\t\n")
    assert not {"\x7f", "\x9b", "\u202e"} & set(shown)
    shown.encode()
    whole = "".join(filter(str.isprintable, every))
    assert printable(whole) == whole


def test_what_is_printed_is_printable_and_the_stream_is_still_one() -> None:
    stream = io.StringIO()
    print(HOSTILE, "\tnext\n", file=Printable(stream), end="", flush=True)
    assert stream.getvalue().startswith(r"\x1b[2J\x1b]0;owned\x07\x9b31m\u202egpj.\r\x08")
    assert stream.getvalue().endswith("\tnext\n")
    assert not Printable(stream).isatty()


def obeyed(lines: list[str]) -> list[str]:
    return [line for line in lines if printable(line) != line]


def test_a_table_that_is_wider_than_the_terminal_says_the_same_in_lines_that_fit() -> None:
    lines = [["strategy", "acc1 %", "points to unpruned"], ["coarse --keep_patches 73", "93.30", "-0.60"]]
    assert aligned(lines, 60).count("\n") == 1
    narrow = aligned(lines, 40)
    assert max(map(len, narrow.splitlines())) <= 40
    assert {"coarse --keep_patches 73", "acc1 % 93.30", "points to unpruned -0.60"} <= {
        part.strip() for line in narrow.splitlines() for part in line.split(",")
    }


def test_names_never_make_a_terminal_do_anything(world: World) -> None:
    name = HOSTILE.replace("\x08", "")
    folder = make_folder(Path(name), classes=2, per_class=1)
    Path(folder, "thing_0", f"{name}.png").write_bytes(b"no image")
    flags = [*world.model, "--num_workers", 0, "--dataset", f"folder:{folder}"]
    Path("a.json").write_text(json.dumps({**RESULT, "dataset": name, "metrics": {f"acc{name}": 0.5}}))
    Path("b.json").write_text(json.dumps({**RESULT, "model": name}))
    outcomes = [
        command("eval", *flags, "--output", "r.json"),
        command("eval", *flags, "--skip_bad_images", "--output", "{dataset}.json"),
        command("eval", *flags, "--model", name),
        command("eval", *flags, "--keep_going", "--output", "r.json"),
        command("eval", name),
        command(name),
        command("compare", "a.json", "b.json"),
        command("compare", name, "b.json"),
        command("build", "a.json", "--output", f"{name}.csv"),
        command("datasets", "check", f"folder:{folder}", "--num_workers", 0),
    ]
    assert [outcome.code for outcome in outcomes] == [2, 0, 2, 2, 2, 2, 0, 2, 0, 1]
    for outcome in outcomes:
        assert obeyed(outcome.out) == []
        assert obeyed(outcome.err) == []


def test_bars_and_lines_of_progress_do_neither(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.Reporting(log_every=1e-9).of(f"encode {HOSTILE}", 2) as told:
        told.update(2)
    assert "encode" in (said := capsys.readouterr().err)
    assert obeyed(said.splitlines()) == []


@pytest.mark.parametrize("name", ["\udcff", "\udfff x"])
def test_halves_of_surrogate_pairs_are_written_as_utf8(name: str) -> None:
    files.write_text(name, "a.txt")
    files.write_text(json.dumps(name, ensure_ascii=False), "a.json")
    assert Path("a.txt").read_text(encoding="utf-8").startswith("\\ud")
    assert json.loads(Path("a.json").read_bytes()) == name
    with pytest.raises(UserError, match="cannot write in"):
        files.check_output("\ud800.json")


def test_of_results_bytes_that_are_no_utf8_are_read_and_halves_of_pairs_are_not() -> None:
    for name, code in (("\udcff", 0), ("\udfff x", 2)):
        Path("r.json").write_text(json.dumps({**RESULT, "dataset": name, "classnames": [name]}))
        assert command("build", "r.json", "--output", "all.csv").code == code
        assert command("compare", "r.json", "r.json").code == code


def test_a_class_whose_name_is_no_text_is_one_line(world: World) -> None:
    folder = make_folder(Path("photos"), classes=2, per_class=1)
    (folder / "thing_0").rename(folder / "thing_\udcff")
    outcome = command("eval", *world.model, "--num_workers", 0, "--dataset", f"folder:{folder}", "--output", "r.json")
    assert outcome.code == 2
    [line] = outcome.err
    assert "\\udcff" in line


# --- spreadsheets

FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-2+3+cmd|' /C calc'!A0", "@SUM(A1)", "\t=1", "\r=1", "\n=1"]
FORMULAS += ["--x|'/c'!A0", "--f(1)"]
PLAIN = ["-1", "-0.5", "+1e5", "-inf", "nan", "--r 2", "--keep_patches 66 --alpha -0.5", "a=b", "", "–"]


@pytest.mark.parametrize("cell", FORMULAS)
def test_a_spreadsheet_is_given_text_where_a_cell_would_run(cell: str) -> None:
    Path("r.json").write_text(json.dumps({**RESULT, "dataset": cell, "pruning": {cell: cell}, "metrics": {cell: 1}}))
    build(["r.json"], "all.csv")
    with open("all.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert f"'{cell}" in rows[0]
    assert f"'{cell}" in rows[1]
    assert not any(each.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) for row in rows for each in row)


def test_numbers_and_flags_stay_what_they_are() -> None:
    [_, row] = csv.reader(io.StringIO(csv_text([{str(i): cell for i, cell in enumerate(PLAIN)}]), newline=""))
    assert row == PLAIN
    assert csv_text([{"difference": -0.5, "n": -3}]).splitlines()[1] == "-0.5,-3"


# --- pages

TAGS = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'><svg onload=alert(1)>&{{7*7}}" + HOSTILE


def pages() -> dict[str, str]:
    from PIL import Image

    facts = {TAGS: TAGS}
    ways = [
        Measured("unpruned", "", 1.0, 10.0, 0.5, 0.4, 0.6, command=TAGS),
        Measured(TAGS, TAGS, 0.5, 20.0, 0.5, 0.4, 0.6, 0.0, -0.1, 0.1, 0.5, command=TAGS, metric="acc1"),
    ]
    searched = {
        "strategy": TAGS,
        "flags": TAGS,
        "drop": 1.0,
        "speed_up": 2.0,
        "gmacs": 1.0,
        "images_per_second": None,
        "milliseconds": None,
    }
    image = Image.new("RGB", (8, 8))
    picture = Picture(image, image, TAGS, [Prediction(TAGS, TAGS, True)], TAGS, TAGS)
    return {
        "sweep": sweep_page.render(ways, title=TAGS, facts=facts, command=TAGS),
        "tune": tune_page.render(
            [{**searched, "chosen": True}], title=TAGS, headline=TAGS, text=TAGS, found=TAGS, facts=facts, command=TAGS
        ),
        "demo": page.render(
            page.Page(
                title=TAGS, kicker=TAGS, findings=[TAGS], rows=[], rows_notes=[TAGS], pictures=[picture],
                pictures_notes=[TAGS], facts=facts, command=TAGS, credits=[(TAGS, [(TAGS, "https://example.org")])],
            )
        ),
    }  # fmt: skip


def test_every_page_escapes_every_name() -> None:
    found = pages()
    folder = Path(page.__file__).parent / "templates"
    assert {path.stem for path in folder.glob("*.html")} - {"base", "parts", "page"} == found.keys() - {"demo"}
    for name, text in found.items():
        assert "<script" not in text, name
        assert "<img src=x" not in text, name
        assert "<svg onload" not in text, name
        assert "{{7*7}}" in text, name
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text, name
        check_offline(text)
        assert elements(text)
