"""What a sweep shows: its charts, the PNG and the offline page; also in a real browser where there is one."""

from __future__ import annotations

import dataclasses
import random
import re
from pathlib import Path

import browser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pages import check_in_browser, check_offline, elements
from PIL import Image
from test_frontier import COSTS, a_sweep, brute_force, measured, pruned
from test_report import NASTY, contrast

from anchorprune import results
from anchorprune.report import page, png, scatter, sweep_page
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


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.01, 200), st.floats(0, 1), st.floats(0.5, 5000)), min_size=1, max_size=40),
    st.sampled_from(COSTS),
    st.sampled_from([(880, 470), (343, 440)]),
)
def test_everything_in_the_chart_is_inside_its_axes_and_in_order(
    values: list[tuple[float, float, float]], cost: Cost, size: tuple[int, int]
) -> None:
    points = [measured(f"s{i % 9}", g, a, r) for i, (g, a, r) in enumerate(values)]
    axes, spots = scatter.layout(points, cost, numbered(points), *size)
    assert [spot.index for spot in spots] == list(range(len(points)))
    for spot in spots:
        assert axes.plot.left <= spot.x <= axes.plot.right
        assert axes.plot.top <= spot.high_y <= spot.y + 1e-6
        assert spot.y - 1e-6 <= spot.low_y <= axes.plot.bottom + 1e-6
        assert (spot.number is not None) == (spot.index in numbered(points))
        assert spot.number is None or spot.number.inside(axes.plot)
    for a in spots:
        for b in spots:
            if points[a.index].accuracy > points[b.index].accuracy:
                assert a.y <= b.y
            if getattr(points[a.index], cost) > getattr(points[b.index], cost):
                assert a.x >= b.x
    assert scatter.svg(points, cost, numbered(points), "x", "wide", *size).count("nan") == 0


def test_strategies_differ_by_shape_as_well_as_by_colour() -> None:
    names = [f"s{i}" for i in range(9)]
    shapes = {scatter.marker(names, name, 0, 0) for name in [*names, "unpruned"]}
    assert len(shapes) == 10
    assert len({marker for marker, _ in png.MARKERS}) == len(png.MARKERS) == 9


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_markers_stand_out_from_the_paper(scheme: int) -> None:
    """WCAG 2's 3:1 for graphics; the shapes and the table say the same without colour."""
    blocks = re.findall(r":root \{(.*?)\}", Path(page.__file__).with_name("page.css").read_text(), re.DOTALL)
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", blocks[scheme]))
    used = [colours[f"k{i}"] for i in range(scatter.COLOURS)]
    assert len(set(used)) == scatter.COLOURS
    assert all(contrast(colour, colours["card"]) >= 3 for colour in used)


# --- the PNG


def test_the_png_is_a_wide_picture_without_a_warning(tmp_path: Path) -> None:
    """Under pytest every warning is an error; `$` is no formula and a Chinese title no complaint."""
    for points in (a_sweep(), a_large_sweep(), a_sweep()[:1], a_sweep()[-1:]):
        png.write_png(points, tmp_path / "sweep.png", "costs $5 \\frac _x^ 猫 \udcff\n" + NASTY[2])
        with Image.open(tmp_path / "sweep.png") as image:
            image.load()
            assert image.size == (1800, 840)
            assert len(image.convert("RGB").getcolors(1 << 24)) > 50
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.png"]


def test_every_strategy_of_the_png_has_its_colour(tmp_path: Path) -> None:
    png.write_png(a_sweep(), tmp_path / "sweep.png", "t")
    with Image.open(tmp_path / "sweep.png") as image:
        found = {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}
    for colour in png.COLOURS[:3]:  # tome, evit, random
        assert tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5)) in found


def test_an_interrupted_png_leaves_the_old_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    (tmp_path / "sweep.png").write_bytes(b"old")
    monkeypatch.setattr(results.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        png.write_png(a_sweep(), tmp_path / "sweep.png", "t")
    assert (tmp_path / "sweep.png").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_no_points_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs points"):
        png.write_png([], tmp_path / "sweep.png", "t")
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
    ids = [attributes["id"] for _, attributes in found.found if "id" in attributes]
    assert len(ids) == len(set(ids)) == 8  # two charts, each wide and narrow, each with a title and a description


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
    assert text.count('<svg class="chart') == 2
    assert "Against measured speed" not in text


def test_a_number_in_a_chart_is_that_of_the_list() -> None:
    points = a_sweep()
    numbers = numbered(points)
    assert sorted(numbers.values()) == list(range(1, len(numbers) + 1))
    for cost in COSTS:
        drawn = scatter.svg(points, cost, numbers, "x", "wide", 880, 470)
        written = {int(number) for number in re.findall(r'class="number"[^>]*>(\d+)<', drawn)}
        assert written == {numbers[i] for i in frontier(points, cost)}


def test_the_steps_follow_the_frontier() -> None:
    """Between two of its points the accuracy to be had is that of the cheaper one."""
    spots = {i: scatter.Spot(i, x, y, y, y, None) for i, (x, y) in enumerate([(10, 90), (30, 50), (80, 20)])}
    assert scatter.steps(spots, [0, 1, 2]) == "M10.0 90.0H30.0V50.0H80.0V20.0"


@pytest.mark.skipif(browser.executable() is None, reason="no chromium, chromium-browser or google-chrome in PATH")
@pytest.mark.parametrize("width", [1280, 768, 375])
def test_the_page_in_a_real_browser(tmp_path: Path, width: int) -> None:
    report = tmp_path / "sweep.html"
    report.write_text(a_page(), encoding="utf-8")
    check_in_browser(browser.look(report, tmp_path, width), width, images=False, charts=2)
