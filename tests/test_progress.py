"""Progress as a bar, as lines and as JSON."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.material import command, make_folder

import anchorprune
from anchorprune.errors import UserError
from anchorprune.progress import Progress, Reporting, reporting_of
from anchorprune.tasks.linear_probe import train_probe


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def told(how: Reporting, *, done: int = 0, stream: io.StringIO | None = None, fail: bool = False) -> str:
    """What is printed of 1,000 images, of which 100 are done each 10 seconds."""
    clock, stream = Clock(), stream or io.StringIO()
    try:
        with Progress(how, "encode", 1000, done, "image", stream, clock) as progress:
            for _ in range(3):
                clock.now += 10
                progress.update(100)
            if fail:
                raise KeyError
    except KeyError:
        pass
    return stream.getvalue()


def test_without_a_terminal_a_line_comes_every_so_often() -> None:
    assert told(Reporting(log_every=20)).splitlines() == [
        "encode: 200 of 1,000 images, 10.0 images/s, 80 s left",
        "encode: 300 of 1,000 images, 10.0 images/s",
    ]


def test_what_was_done_before_does_not_count_as_speed() -> None:
    first = told(Reporting(log_every=20), done=500).splitlines()[0]
    assert first == "encode: 700 of 1,000 images, 10.0 images/s, 30 s left"


@pytest.mark.parametrize(("total", "said"), [(6_000_000, "4.5 of 6.0 MB"), (None, "4.5 MB")])
def test_bytes_are_told_in_megabytes_and_what_has_no_known_end_without_one(total: int | None, said: str) -> None:
    clock, stream = Clock(), io.StringIO()
    with Progress(Reporting(log_every=1), "a.tar", total, 0, "byte", stream, clock) as progress:
        clock.now += 3
        progress.update(4_500_000)
    left = ", 1 s left" if total else ""
    assert stream.getvalue().splitlines() == [f"a.tar: {said}, 1.5 MB/s{left}", f"a.tar: {said}, 1.5 MB/s"]


def test_each_line_of_json_is_an_object_on_a_terminal_too() -> None:
    lines = told(Reporting(log_every=20, log_format="json"), stream=Terminal()).splitlines()
    first, last = map(json.loads, lines)
    assert first == {
        "event": "progress",
        "what": "encode",
        "unit": "image",
        "done": 200,
        "total": 1000,
        "per_second": 10.0,
        "seconds": 20.0,
        "seconds_left": 80.0,
    }
    assert last["event"] == "finished"


def test_work_that_takes_no_longer_than_that_needs_no_line_but_has_an_object() -> None:
    assert told(Reporting(log_every=31)) == ""
    assert json.loads(told(Reporting(log_every=31, log_format="json")))["event"] == "finished"


def test_what_stops_early_says_so() -> None:
    assert told(Reporting(log_every=20), fail=True).splitlines()[-1].endswith("images/s, stopped")


def test_a_terminal_gets_a_bar_with_speed_and_time_left() -> None:
    text = told(Reporting(log_every=1), stream=Terminal())
    assert "encode:  30%" in text
    assert "image/s" in text
    assert " of 1,000" not in text


@pytest.mark.parametrize("how", [Reporting(quiet=True), Reporting(log_every=0)])
def test_nothing_is_said_where_nothing_is_wanted(how: Reporting) -> None:
    assert told(how) == ""


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"log_every": -1}, "log_every=-1"),
        ({"log_every": float("nan")}, "log_every"),
        ({"log_format": "xml"}, "text, json"),
    ],
)
def test_impossible_settings_are_refused(fields: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Reporting(**fields)


def test_a_call_may_say_yes_or_no_instead() -> None:
    assert told(reporting_of(True)) == told(reporting_of(False)) == ""
    assert "encode:  30%" in told(reporting_of(True), stream=Terminal())
    assert told(reporting_of(False), stream=Terminal()) == ""


def test_every_command_and_task_tells_by_the_same_means() -> None:
    files = Path(anchorprune.__file__).parent.rglob("*.py")
    assert {path.name for path in files if "import tqdm" in path.read_text(encoding="utf-8")} == {"progress.py"}


@pytest.mark.parametrize(
    ("words", "what"),
    [(["datasets", "check"], "folder:photos"), (["export-wds", "--output", "tars", "--dataset"], "folder:photos")],
)
def test_reading_and_exporting_a_data_set_says_how_far_it_is(here: Path, words: list[str], what: str) -> None:
    make_folder(here / "photos", classes=2, per_class=2)
    outcome = command(*words, what, "--num_workers", 0, "--log_format", "json")
    assert outcome.code == 0, outcome.err
    (told,) = [json.loads(line) for line in outcome.err if line.startswith("{")]
    assert (told["event"], told["what"], told["done"], told["total"]) == ("finished", what, 4, 4)
    again = command(*words, what, "--num_workers", 0, "--log_format", "json", "--quiet")
    assert (again.code, again.err) == (0, [])


def test_a_probe_says_how_far_its_training_is(capsys: pytest.CaptureFixture[str]) -> None:
    x, y = torch.ones(8, 3), torch.zeros(8, dtype=torch.long)
    how = Reporting(log_format="json")
    train_probe(x, y, 2, weight_decay=0.01, lr=0.1, epochs=3, batch_size=4, seed=0, reporting=how)
    told = json.loads(capsys.readouterr().err)
    assert (told["what"], told["unit"], told["done"], told["total"]) == ("probe, weight decay 1.0e-02", "step", 6, 6)


@pytest.mark.parametrize("words", [["eval", "--output", "r.json"], ["sweep", "--strategies", "random"]])
def test_an_evaluation_without_a_terminal_says_how_far_it_is(world: Any, here: Path, words: list[str]) -> None:
    outcome = command(*words, *world.model, *world.three, "--num_workers", 0, "--log_format", "json", "--log_every", 99)
    assert outcome.code == 0, outcome.err
    told = [json.loads(line) for line in outcome.err if line.startswith("{")]
    assert [(line["event"], line["what"], line["done"]) for line in told] == [("finished", "wds/three", 7)]
    quiet = command(*words, *world.model, *world.three, "--num_workers", 0, "--log_every", 0)
    assert not [line for line in quiet.err if "images/s" in line]
