"""What a sweep shows: its charts, the PNG and the offline page; also in a real browser where there is one."""

from __future__ import annotations

import dataclasses
import random
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from PIL import Image
from support import browser
from support.pages import check_in_browser, check_offline, elements
from test_frontier import COSTS, a_sweep, brute_force, measured, pruned
from test_report import NASTY, inside, marks, place, texts

from anchorprune import files
from anchorprune.report import figures, sweep_chart, sweep_page
from anchorprune.report.frontier import Cost, Measured, frontier, numbered


def a_large_sweep() -> list[Measured]:
    """Eight strategies at four budgets, with hostile names among them."""
    draw = random.Random(0)
    names = [*NASTY, "tome", "pitome", "evit", "a_strategy_with_a_rather_long_name"]
    found = [measured("unpruned", 17.6, 0.7, 400.0)]
    for name in names:
        for share in (0.85, 0.7, 0.5, 0.35):
            accuracy = 0.7 - draw.uniform(0.1, 0.6) * (1 - share) ** 2
            rate = 400 / share * draw.uniform(0.8, 1.0)
            found.append(
                pruned(name, 17.6 * share - draw.random() / 10, accuracy, rate, flags=NASTY[draw.randrange(4)])
            )
    return found


# --- the charts


def a_chart(points: list[Measured], cost: Cost, size: tuple[int, int] = (880, 460)) -> Axes:
    with figures.look():
        (axes,) = sweep_chart.figure(points, [cost], numbered(points), *size).axes
    return axes


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.01, 200), st.floats(0, 1), st.floats(0.5, 5000)), min_size=1, max_size=30),
    st.sampled_from(COSTS),
    st.sampled_from([(880, 460), (343, 420)]),
)
def test_everything_in_the_chart_is_inside_its_axes_and_in_order(
    values: list[tuple[float, float, float]], cost: Cost, size: tuple[int, int]
) -> None:
    points = [measured(f"s{i % 9}", g, a, r) for i, (g, a, r) in enumerate(values)]
    axes = a_chart(points, cost, size)
    spots = [place(axes, mark) for mark in marks(axes)]
    room = axes.bbox.padded(0.01)
    assert len(spots) == len(points)
    assert all(room.contains(*spot) for spot in spots)
    assert all(inside(box, room) for box in texts(axes).values())
    # Both axes keep the order: the costs from left to right, the accuracies from below to above.
    assert sorted(y for _, y in spots) == pytest.approx(
        [axes.transData.transform((0, 100 * a))[1] for a in sorted(a for _, a, _ in values)]
    )
    by_series = [p for name in dict.fromkeys(p.name for p in points) for p in points if p.name == name]
    drawn = sorted(zip([x for x, _ in spots], [y for _, y in spots], strict=True))
    wanted = sorted(by_series, key=lambda p: getattr(p, cost))
    if len({getattr(p, cost) for p in points}) == len(points):
        heights = [axes.transData.transform((0, 100 * p.accuracy))[1] for p in wanted]
        assert [y for _, y in drawn] == pytest.approx(heights)


def test_hollow_is_what_another_beats() -> None:
    points = a_sweep()
    for cost in COSTS:
        by_accuracy = {round(100 * point.accuracy, 6): i for i, point in enumerate(points)}
        for mark in marks(a_chart(points, cost)):
            i = by_accuracy[round(float(mark.get_ydata()[0]), 6)]
            hollow = mark.get_markerfacecolor() != mark.get_color()
            assert hollow == (i not in frontier(points, cost) and points[i].name != "unpruned")


def test_strategies_differ_by_shape_as_well_as_by_colour() -> None:
    points = [measured(name, 1.0 + i, 0.5) for i, name in enumerate(["unpruned", *(f"s{i}" for i in range(9))])]
    with figures.look():
        drawn = sweep_chart.figure(points, ["gmacs"], {}, 880, 460)
    assert len({mark.get_marker() for mark in marks(drawn.axes[0])}) == 10
    assert len({mark.get_color() for mark in marks(drawn.axes[0])}) == 9  # one colour comes twice
    named = [text.get_text() for text in drawn.legends[0].get_texts()]
    assert named == [*(p.name for p in points), "hollow: another beats it", "accuracy unpruned", "frontier"]


def test_intervals_of_the_same_cost_can_be_told_apart() -> None:
    axes = a_chart([measured(f"s{i}", 10.0, 0.5 + i / 50) for i in range(8)] + [measured("t", 5.0, 0.3)], "gmacs")
    xs = sorted(place(axes, mark)[0] for mark in marks(axes))
    assert all(b - a >= 3.9 for a, b in pairwise(xs))


def test_a_number_in_a_chart_is_that_of_the_list() -> None:
    points = a_sweep()
    numbers = numbered(points)
    assert sorted(numbers.values()) == list(range(1, len(numbers) + 1))
    for cost in COSTS:
        assert set(texts(a_chart(points, cost))) == {str(numbers[i]) for i in frontier(points, cost)}


def test_the_steps_follow_the_frontier_and_a_line_shows_the_unpruned_accuracy() -> None:
    """Between two points of the frontier the accuracy to be had is that of the cheaper one."""
    points = a_sweep()
    for cost in COSTS:
        axes = a_chart(points, cost)
        (steps,) = [line for line in axes.lines if line.get_drawstyle() == "steps-post"]
        best = [points[i] for i in frontier(points, cost)]
        assert steps.get_ydata() == pytest.approx([100 * p.accuracy for p in best])
        assert steps.get_xdata() == pytest.approx([getattr(p, cost) for p in best], rel=0.02)
        assert [70.0, 70.0] in [pytest.approx(list(line.get_ydata())) for line in axes.lines if line.is_dashed()]


# --- the PNG


def test_the_png_is_a_wide_picture_without_a_warning(tmp_path: Path) -> None:
    """Under pytest every warning is an error; `$` is no formula and a Chinese title no complaint."""
    for points in (a_sweep(), a_large_sweep(), a_sweep()[:1], a_sweep()[-1:]):
        sweep_chart.write_png(points, tmp_path / "sweep.png", "costs $5 \\frac _x^ 猫 \udcff\n" + NASTY[2])
        with Image.open(tmp_path / "sweep.png") as image:
            image.load()
            assert image.width == 2200
            assert image.height > 1000
            assert len(image.convert("RGB").getcolors(1 << 24)) > 50
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.png"]


def test_the_png_has_every_colour_and_is_always_the_same(tmp_path: Path) -> None:
    sweep_chart.write_png(a_sweep(), tmp_path / "sweep.png", "t")
    first = (tmp_path / "sweep.png").read_bytes()
    with Image.open(tmp_path / "sweep.png") as image:
        found = {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}
    for series in range(3):  # tome, evit, random
        assert tuple(bytes.fromhex(figures.series_colour(series)[1:])) in found
    sweep_chart.write_png(a_sweep(), tmp_path / "sweep.png", "t")
    assert (tmp_path / "sweep.png").read_bytes() == first


def test_an_interrupted_png_leaves_the_old_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    (tmp_path / "sweep.png").write_bytes(b"old")
    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        sweep_chart.write_png(a_sweep(), tmp_path / "sweep.png", "t")
    assert (tmp_path / "sweep.png").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_no_points_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs points"):
        sweep_chart.write_png([], tmp_path / "sweep.png", "t")
    with pytest.raises(ValueError, match="needs points"):
        sweep_page.render([], title="t", facts={}, command="")


# --- the page


def a_page(points: list[Measured] | None = None) -> str:
    facts = dict.fromkeys(NASTY, "a-value-without-any-place-to-break-it-" * 5)
    command = f"anchorprune sweep --out '{NASTY[0]}' " + "and-a-very-long-line " * 12
    points = [dataclasses.replace(p, command=f"{p.command} {NASTY[2]}") for p in points or a_large_sweep()]
    return sweep_page.render(points, title=NASTY[1], facts=facts, command=command)


def test_the_page_escapes_whatever_comes_from_data() -> None:
    text = a_page()
    for nasty in NASTY[:3]:
        assert nasty not in text
    found = elements(text)
    assert not {"script", "img"} & {tag for tag, _ in found.found}
    for nasty in NASTY:  # and yet it says them, as they are
        assert nasty in found.text
    check_offline(text)
    assert a_page() == text
    ids = [attributes["id"] for _, attributes in found.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    described = [attributes["aria-labelledby"] for tag, attributes in found.found if tag == "svg"]
    assert len(described) == 4  # two charts, each wide and narrow
    assert {name for names in described for name in (names or "").split()} <= set(ids)


def test_the_page_lists_the_command_of_every_configuration_that_nothing_beats() -> None:
    points = a_sweep()
    text = elements(a_page(points)).text
    best = {*brute_force([(p.gmacs, p.accuracy) for p in points])}
    best |= brute_force([(-(p.images_per_second or 0), p.accuracy) for p in points])
    assert text.count("anchorprune eval --strategy") == len(best)
    assert all(p.flags in text for p in points)


def test_what_was_not_timed_gets_no_chart_of_speed() -> None:
    points = [dataclasses.replace(point, images_per_second=None) for point in a_sweep()]
    text = a_page(points)
    assert [tag for tag, _ in elements(text).found].count("svg") == 2
    assert "Against measured speed" not in text


@pytest.mark.skipif(browser.executable() is None, reason="no chromium, chromium-browser or google-chrome in PATH")
@pytest.mark.parametrize(("width", "flags"), [(1280, (browser.DARK,)), (768, ()), (375, ()), (375, (browser.DARK,))])
def test_the_page_in_a_real_browser(tmp_path: Path, width: int, flags: tuple[str, ...]) -> None:
    report = tmp_path / "sweep.html"
    report.write_text(a_page(), encoding="utf-8")
    found = browser.look(report, tmp_path, width, *flags)
    assert found["dark"] == bool(flags)
    check_in_browser(found, width, images=False, charts=2)
