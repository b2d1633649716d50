"""Progress as a bar, as lines and as JSON."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from support.material import command

from anchorprune.errors import UserError
from anchorprune.progress import Progress, Reporting, reporting_of


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


@pytest.mark.parametrize("words", [["eval", "--output", "r.json"], ["sweep", "--strategies", "random"]])
def test_an_evaluation_without_a_terminal_says_how_far_it_is(world: Any, here: Path, words: list[str]) -> None:
    outcome = command(*words, *world.model, *world.three, "--num_workers", 0, "--log_format", "json", "--log_every", 99)
    assert outcome.code == 0, outcome.err
    told = [json.loads(line) for line in outcome.err if line.startswith("{")]
    assert [(line["event"], line["what"], line["done"]) for line in told] == [("finished", "wds/three", 7)]
    quiet = command(*words, *world.model, *world.three, "--num_workers", 0, "--log_every", 0)
    assert not [line for line in quiet.err if "images/s" in line]
