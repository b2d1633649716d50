"""The page, its chart and its pictures: escaped, offline, in place; also in a real browser where there is one."""

from __future__ import annotations

import dataclasses
import re
from itertools import combinations, pairwise, permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox
from PIL import Image
from support import browser
from support.pages import check_in_browser, check_offline, contrast, elements, embedded

from anchorprune.evaluation.statistics import wilson
from anchorprune.report import chart, figures, page, pictures, speed_chart, table
from anchorprune.report.chart import Point
from anchorprune.report.pictures import Picture, Prediction

NASTY = ["<script>alert(1)</script>", 'a"b&c', "it's </p><img src=x onerror=alert(1)>", "naïve ☃ 猫"]


# --- the table


def result(acc1: float, strategy: dict[str, Any] | None = None, gmacs: float = 1.0) -> dict[str, Any]:
    pruning = (
        None
        if strategy is None
        else {
            "strategy": "anchor",
            "prune_layer": 2,
            "measured": {"tokens_before": 197, "tokens_after": 61},
            **strategy,
        }
    )
    return {"metrics": {"acc1": acc1}, "n_samples": 100, "pruning": pruning, "cost": {"gmacs": gmacs}}


def rows() -> list[table.Row]:
    timing = table.Timing(16, [0.5, 0.4, 9.0], [1.0, 1.2, 1.0])
    drawn = [result(acc1, {"strategy": "random"}, 0.4) for acc1 in (0.6, 0.7, 0.8)]
    return [
        table.row("everything", "unpruned", [result(0.8)], 197, table.Timing(16, [1.0] * 3, [1.0] * 3)),
        table.row(NASTY[0], NASTY[1], [result(0.5, {}, 0.45)], 197, timing),
        table.row("random", "mean of 3 draws", drawn, 197),
    ]


def test_a_row_is_what_the_results_say() -> None:
    unpruned, pruned, drawn = rows()
    assert (unpruned.block, unpruned.tokens, unpruned.accuracy, unpruned.speed_up) == (None, 197, 0.8, 1.0)
    assert (pruned.block, pruned.tokens, pruned.all_tokens, pruned.gmacs) == (2, 61, 197, 0.45)
    assert pruned.speed_up == pytest.approx(2.0)  # the median of 2, 3 and 1/9
    assert pruned.images_per_second == pytest.approx(32)
    assert drawn.accuracy == pytest.approx(0.7)
    assert (drawn.low, drawn.high) == pytest.approx(wilson(0.7, 100))
    assert drawn.draws == (0.6, 0.7, 0.8)
    assert drawn.speed_up is None


def test_the_text_table_is_aligned_and_whole() -> None:
    lines = table.as_text(rows()).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split("  ")[0] == "tokens kept by"
    assert "70.0 %" in lines[3]
    assert lines[3].rstrip().endswith("–")


# --- the chart


@st.composite
def results(draw: st.DrawFn) -> list[Point]:
    found = []
    for i in range(draw(st.integers(1, 9))):
        accuracy = draw(st.floats(0, 1))
        low, high = wilson(accuracy, draw(st.integers(1, 1000)))
        found.append(Point(f"s{i % 5}", f"series {i}", draw(st.floats(0.01, 200)), accuracy, low, high))
    if draw(st.booleans()):  # the same compute for all, as strategies at one budget have
        found = [dataclasses.replace(point, gmacs=found[0].gmacs) for point in found]
    return found


def marks(axes: Axes) -> list[Line2D]:
    """The markers of an accuracy chart, in the order drawn."""
    return [line for line in axes.lines if line.get_marker() not in ("None", "_", "|", 2, 3)]


def place(axes: Axes, mark: Line2D) -> tuple[float, float]:
    """The pixel that a marker stands at."""
    (spot,) = axes.transData.transform(mark.get_xydata())
    return float(spot[0]), float(spot[1])


def texts(axes: Axes) -> dict[str, Bbox]:
    """What is written within the axes, and the pixels it covers."""
    return {text.get_text(): text.get_window_extent() for text in axes.texts if text.get_text()}


def inside(box: Bbox, room: Bbox) -> bool:
    return box.x0 >= room.x0 and box.x1 <= room.x1 and box.y0 >= room.y0 and box.y1 <= room.y1


@settings(max_examples=25, deadline=None)
@given(results(), st.sampled_from([(720, 410), (343, 440)]))
def test_everything_in_the_chart_is_inside_its_axes_and_in_order(points: list[Point], size: tuple[int, int]) -> None:
    with figures.look():
        (axes,) = chart.figure(points, *size).axes
        spots = [place(axes, mark) for mark in marks(axes)]
        room = axes.bbox.padded(0.01)
        assert len(spots) == len(points)
        assert all(room.contains(*spot) for spot in spots)
        assert set(texts(axes)) == {point.label for point in points}
        assert all(inside(box, room) for box in texts(axes).values())
    for (a, (x_a, y_a)), (b, (x_b, y_b)) in permutations(zip(points, spots, strict=True), 2):
        if a.accuracy > b.accuracy:
            assert y_a >= y_b
        if a.gmacs > b.gmacs:
            assert x_a >= x_b - 1e-6
    low, high = axes.get_ylim()
    assert low <= 100 * min(p.low for p in points)
    assert high >= 100 * max(p.high for p in points)
    assert axes.get_xlim()[0] == 0


def test_a_lone_point_stands_where_its_numbers_say() -> None:
    with figures.look():
        (axes,) = chart.figure([Point("a", "a", 1.0, 0.5, 0.4, 0.6)], 720, 410).axes
    (mark,) = marks(axes)
    assert mark.get_xydata().tolist() == [[pytest.approx(1.0), pytest.approx(50)]]
    (bars,) = axes.collections
    assert bars.get_segments()[0] == pytest.approx(np.array([[1, 40], [1, 60]]))


@pytest.mark.parametrize("size", [(720, 410), (343, 440)])
def test_markers_at_the_same_compute_stand_beside_each_other_and_labels_are_free(size: tuple[int, int]) -> None:
    same = [Point(f"s{i}", f"series {i}", 0.5, 0.5 + i / 100, 0.45, 0.55) for i in range(4)]
    with figures.look():
        (axes,) = chart.figure([*same, Point("s0", "all", 1.0, 0.7, 0.6, 0.8)], *size).axes
        covered = [*texts(axes).values(), *(mark.get_window_extent() for mark in marks(axes))]
    xs = sorted(place(axes, mark)[0] for mark in marks(axes))
    assert all(b - a >= 2 * figures.MARK for a, b in pairwise(xs))
    assert len(covered) == 10
    assert not [1 for a, b in combinations(covered, 2) if a.overlaps(b)]


def test_series_differ_in_shape_and_in_colour() -> None:
    points = [Point(f"series {i}", "", 1.0 + i, 0.5, 0.4, 0.6) for i in range(6)]
    with figures.look():
        drawn = chart.figure(points, 720, 410)
    keys = drawn.legends[0].get_lines()
    assert len({key.get_marker() for key in keys}) == len({key.get_color() for key in keys}) == 6
    shown = [(mark.get_marker(), mark.get_color()) for mark in marks(drawn.axes[0])]
    assert shown == [(key.get_marker(), key.get_color()) for key in keys]


def test_the_text_of_a_chart_is_text_and_always_the_same() -> None:
    points = [Point(f"series {text}", text, 1.0 + i, 0.5, 0.4, 0.6) for i, text in enumerate(NASTY)]
    drawn = chart.svg(points, "x")
    found = elements(drawn)
    for text in NASTY:
        assert text in found.text
    assert {"script", "img", "style", "metadata"}.isdisjoint(tag for tag, _ in found.found)
    check_offline(drawn)
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 30, "svg.fonttype": "path"}):  # a user's own
        assert chart.svg(points, "x") == drawn


def test_a_chart_keeps_to_the_colours_of_the_page() -> None:
    """So that it follows the page into dark mode."""
    drawn = chart.svg([Point("a", "a", 1.0, 0.5, 0.4, 0.6), Point("b", "b", 1.0, 0.5, 0.4, 0.6)], "x")
    assert set(re.findall(r"#[0-9a-f]{6}", drawn)) == set()
    assert set(re.findall(r"var\(--(\w+)\)", drawn)) <= figures.PALETTE.keys()


def test_the_speed_chart_says_how_fast_each_way_is(tmp_path: Path) -> None:
    def speed(name: str, *milliseconds: float) -> SimpleNamespace:
        return SimpleNamespace(
            name=name, strategy=None if name == "unpruned" else name, batch_size=8, milliseconds=milliseconds,
            speed_up=1.5, speed_up_by_flops=2.0,
        )  # fmt: skip

    ways = [speed("unpruned", 3.0, 3.0), *(speed(text, 2.0, 1.5) for text in NASTY)]
    speed_chart.write_png(ways, tmp_path / "speed.png", NASTY[3])
    first = (tmp_path / "speed.png").read_bytes()
    speed_chart.write_png(ways, tmp_path / "speed.png", NASTY[3])
    assert (tmp_path / "speed.png").read_bytes() == first
    with Image.open(tmp_path / "speed.png") as image:
        assert len(image.convert("RGB").getcolors(1 << 24)) > 50


# --- pictures


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_the_marks_are_on_exactly_the_kept_patches_and_anchors(data: st.DataObject) -> None:
    rows, columns, size = 4, 5, 24
    cells = st.sets(st.integers(0, rows * columns - 1))
    kept, anchors = data.draw(cells), data.draw(cells)
    image = Image.new("RGB", (columns * size, rows * size), (200, 120, 40))
    marked = pictures.kept_tokens(image, (rows, columns), kept, anchors)
    assert marked.size == image.size
    for cell in range(rows * columns):
        left, top = cell % columns * size, cell // columns * size
        corner, inner = marked.getpixel((left, top)), marked.getpixel((left + 5, top + size // 2))
        middle = marked.getpixel((left + size // 2, top + size // 2))
        if cell in anchors:
            assert (corner, inner, middle) == (pictures.ANCHOR, (200, 120, 40), pictures.ANCHOR)
        elif cell in kept:
            assert (corner, inner, middle) == (pictures.SELECTED, (200, 120, 40), (200, 120, 40))
        else:
            assert corner == inner == middle
            assert max(middle) < 60
            assert len(set(middle)) == 1  # grey


def test_prefix_tokens_have_no_place_in_the_picture() -> None:
    assert pictures.patch_cells([0, 1, 4, 196], 1) == {0, 3, 195}
    assert pictures.patch_cells([0, 1, 4], 0) == {0, 1, 4}


def test_uneven_patches_are_refused() -> None:
    with pytest.raises(ValueError, match="no even grid"):
        pictures.kept_tokens(Image.new("RGB", (30, 31)), (3, 3), {0})


def test_the_picture_is_what_the_model_saw() -> None:
    from torchvision.transforms import Compose, Normalize, ToTensor

    image = Image.frombytes("RGB", (16, 12), torch.randint(256, (16 * 12 * 3,), dtype=torch.uint8).numpy().tobytes())
    mean, std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    transform = Compose([ToTensor(), Normalize(mean, std)])
    assert pictures.normalisation(transform) == (list(mean), list(std))
    assert pictures.unnormalised(transform(image), mean, std).tobytes() == image.tobytes()
    assert pictures.normalisation(ToTensor()) == ((0, 0, 0), (1, 1, 1))


def test_the_legend_shows_three_different_marks() -> None:
    samples = pictures.legend_pictures()
    assert len({image.tobytes() for image, _ in samples}) == len(samples) == 3


# --- the page


def a_page() -> page.Page:
    image = Image.effect_noise((84, 84), 60).convert("RGB")
    kept = pictures.kept_tokens(image, (7, 7), range(20), {3, 4})
    shown = [
        Picture(image, kept, truth, [Prediction("pruned", guess, guess == truth)], NASTY[2], f"kept: {NASTY[1]}")
        for truth in NASTY
        for guess in NASTY[:3]
    ]
    return page.Page(
        title=f"Result of {NASTY[0]}",
        kicker=NASTY[1],
        findings=NASTY,
        rows=rows(),
        rows_notes=NASTY,
        points=[Point(r.name, f"{r.name}, {r.block}", r.gmacs, r.accuracy, r.low, r.high) for r in rows()],
        chart_notes=NASTY,
        pictures=shown,
        pictures_notes=NASTY,
        facts=dict.fromkeys(NASTY, "a-value-without-any-place-to-break-it-" * 5),
        command=f"anchorprune demo --out '{NASTY[0]}' " + "and-a-very-long-line " * 12,
        credits=[(NASTY[0], [(NASTY[1], f"https://example.org/?q={NASTY[1]}")])],
    )  # fmt: skip


def test_the_page_escapes_whatever_comes_from_data() -> None:
    text = page.render(a_page())
    for nasty in NASTY[:3]:
        assert nasty not in text
    found = elements(text)
    assert "script" not in {tag for tag, _ in found.found}
    for nasty in NASTY:  # and yet it says them, as they are
        assert nasty in found.text
    assert f"kept: {NASTY[1]}" in [attributes.get("alt") for tag, attributes in found.found if tag == "img"]


def test_the_page_asks_for_nothing_and_is_always_the_same() -> None:
    """The same numbers give the same file: no date, no chance."""
    text = page.render(dataclasses.replace(a_page(), pictures=()))
    check_offline(text)
    assert page.render(dataclasses.replace(a_page(), pictures=())) == text


def test_the_check_for_offline_pages_sees_what_it_should() -> None:
    for bad in (
        '<img src="https://example.org/x.png">',
        "<script>1</script>",
        '<link rel="stylesheet" href="x.css">',
        "<style>@import 'x'</style>",
        '<p style="background:url(x)">',
        '<p onclick="x()">',
        '<svg><use xlink:href="other.svg#x"/></svg>',
        '<svg><g clip-path="url(https://example.org/#x)"></g></svg>',
    ):
        with pytest.raises(AssertionError):
            check_offline(bad)


def test_every_image_of_the_page_decodes_and_says_what_it_is() -> None:
    text = page.render(a_page())
    images = [attributes for tag, attributes in elements(text).found if tag == "img"]
    assert len(embedded(text)) == len(images) == 2 * 12 + 3
    assert all("alt" in attributes for attributes in images)
    assert all(attributes["alt"] for attributes in images if attributes["width"] == "84")


def test_ids_are_unique_and_references_point_at_them() -> None:
    text = page.render(a_page())
    found = elements(text).found
    ids = [attributes["id"] for _, attributes in found if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = " ".join(attributes["aria-labelledby"] or "" for _, attributes in found if "aria-labelledby" in attributes)
    assert sorted(named.split()) == ["narrow-desc", "narrow-title", "wide-desc", "wide-title"]
    referred = {(attributes["href"] or "")[1:] for tag, attributes in found if tag == "use"}
    assert {*named.split(), *referred, *re.findall(r"url\(#([\w-]+)\)", text)} <= set(ids)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_stands_out_from_the_paper(scheme: int) -> None:
    colours = {name: tuple(bytes.fromhex(pair[scheme][1:])) for name, pair in figures.PALETTE.items()}
    for name in ("ink", "soft", "link", "good", "bad", *(f"series{i}" for i in range(5))):
        for behind in ("paper", "card"):
            assert contrast(colours[name], colours[behind]) >= 4.5, (name, behind)
    marks = [colours[f"series{i}"] for i in range(8)]
    assert len({*marks, colours["ink"]}) == 9
    assert all(contrast(mark, colours["card"]) >= 3 for mark in marks)  # WCAG 2's for graphics


@pytest.mark.skipif(browser.executable() is None, reason="no chromium, chromium-browser or google-chrome in PATH")
@pytest.mark.parametrize(("width", "flags"), [(1280, ()), (768, (browser.DARK,)), (375, ()), (375, (browser.DARK,))])
def test_the_page_in_a_real_browser(tmp_path: Path, width: int, flags: tuple[str, ...]) -> None:
    report = tmp_path / "report.html"
    report.write_text(page.render(a_page()), encoding="utf-8")
    found = browser.look(report, tmp_path, width, *flags)
    assert found["dark"] == bool(flags)
    check_in_browser(found, width)


@pytest.mark.skipif(browser.executable() is None, reason="no chromium, chromium-browser or google-chrome in PATH")
def test_the_browser_check_sees_what_is_wrong(tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    report.write_text(
        '<!doctype html><h1>x</h1><img src="http://example.org/x.png"><p style="width:900px">wide</p>'
        '<style>@font-face{font-family:q;src:url("https://example.org/f")} p{font-family:q}</style>'
        "<script>console.error('heard'); nothing()</script>"
    )
    found = browser.look(report, tmp_path, 375)
    assert found["requests"] == ["http://example.org/x.png", "https://example.org/f"] == sorted(found["resources"])
    assert found["scrollWidth"] > 375
    assert len(found["sticking_out"]) == 1
    assert found["images"] == [[0, 0]]
    assert ["heard" in line or "nothing" in line for line in found["console"]] == [True, True]
