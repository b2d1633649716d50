"""The page, its chart and its pictures: escaped, offline, in place; also in a real browser where there is one."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import browser
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pages import check_in_browser, check_offline, elements, embedded
from PIL import Image

from anchorprune.report import chart, page, pictures, stats, table
from anchorprune.report.chart import Point
from anchorprune.report.pictures import Picture, Prediction

NASTY = ["<script>alert(1)</script>", 'a"b&c', "it's </p><img src=x onerror=alert(1)>", "naïve ☃ 猫"]


# --- the table


def result(acc1: float, strategy: dict[str, Any] | None = None, gmacs: float = 1.0) -> dict[str, Any]:
    pruning = None if strategy is None else {"prune_layer": 2, "tokens_before": 197, "tokens_after": 61, **strategy}
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
    assert (drawn.low, drawn.high) == pytest.approx(stats.wilson(0.7, 100))
    assert drawn.draws == (0.6, 0.7, 0.8)
    assert drawn.speed_up is None


def test_the_text_table_is_aligned_and_whole() -> None:
    lines = table.as_text(rows()).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split("  ")[0] == "tokens kept by"
    assert "70.0 %" in lines[3]
    assert lines[3].rstrip().endswith("–")


# --- the chart


def points(count: int, draw: st.DrawFn) -> list[Point]:
    found = []
    for i in range(count):
        accuracy = draw(st.floats(0, 1))
        low, high = stats.wilson(accuracy, draw(st.integers(1, 1000)))
        found.append(Point(f"s{i % 5}", f"series {i}", draw(st.floats(0.01, 200)), accuracy, low, high))
    return found


@st.composite
def charts(draw: st.DrawFn) -> tuple[list[Point], int, int]:
    found = points(draw(st.integers(1, 9)), draw)
    if draw(st.booleans()):  # the same compute for all, as strategies at one budget have
        found = [Point(p.series, p.label, found[0].gmacs, p.accuracy, p.low, p.high) for p in found]
    return found, *draw(st.sampled_from([(720, 420), (343, 440)]))


@settings(max_examples=150, deadline=None)
@given(charts())
def test_everything_in_the_chart_is_inside_its_axes_and_in_order(case: tuple[list[Point], int, int]) -> None:
    given_points, width, height = case
    drawn = chart.layout(given_points, width, height)
    plot = drawn.plot
    assert [spot.point for spot in drawn.placed] == given_points
    for spot in drawn.placed:
        assert plot.left <= spot.x <= plot.right
        assert plot.top - 1e-6 <= spot.high_y <= spot.y + 1e-6
        assert spot.y - 1e-6 <= spot.low_y <= plot.bottom + 1e-6
        assert spot.label.inside(plot)
    for a in drawn.placed:
        for b in drawn.placed:
            if a.point.accuracy > b.point.accuracy:
                assert a.y <= b.y
            if a.point.gmacs > b.point.gmacs:
                assert a.x >= b.x
    for ticks, low, high in ((drawn.x_ticks, plot.left, plot.right), (drawn.y_ticks, plot.top, plot.bottom)):
        values, pixels = zip(*ticks, strict=True)
        assert list(values) == sorted(set(values))
        assert min(pixels) == pytest.approx(low)
        assert max(pixels) == pytest.approx(high)
    assert drawn.x_ticks[0][0] == 0
    assert drawn.x_ticks[-1][0] >= max(p.gmacs for p in given_points)
    assert drawn.y_ticks[0][0] <= 100 * min(p.low for p in given_points) + 1e-6
    assert drawn.y_ticks[-1][0] >= 100 * max(p.high for p in given_points) - 1e-6


def test_a_lone_point_stands_where_its_numbers_say() -> None:
    drawn = chart.layout([Point("a", "a", 1.0, 0.5, 0.4, 0.6)], 720, 420)
    (spot,) = drawn.placed
    (x0, left), *_, (x1, right) = drawn.x_ticks
    assert spot.x == pytest.approx(left + (1.0 - x0) / (x1 - x0) * (right - left))
    (y0, bottom), *_, (y1, top) = drawn.y_ticks
    for value, pixel in ((40, spot.low_y), (50, spot.y), (60, spot.high_y)):
        assert pixel == pytest.approx(bottom + (value - y0) / (y1 - y0) * (top - bottom))


def test_markers_at_the_same_compute_stand_beside_each_other_and_labels_are_free() -> None:
    same = [Point(f"s{i}", f"series {i}", 0.5, 0.5 + i / 100, 0.45, 0.55) for i in range(4)]
    drawn = chart.layout([*same, Point("s0", "all", 1.0, 0.7, 0.6, 0.8)], 720, 420)
    xs = sorted(spot.x for spot in drawn.placed)
    assert all(b - a >= 2 * chart.MARK for a, b in pairwise(xs))
    labels = [spot.label for spot in drawn.placed]
    assert all(a.overlap(b) == 0 for a in labels for b in labels if a is not b)


def test_round_ticks() -> None:
    assert chart.ticks(0, 1.1, 6) == [0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2]
    assert chart.ticks(42, 83, 5) == [40, 50, 60, 70, 80, 90]
    assert chart.ticks(5, 5, 4)[0] <= 5 < chart.ticks(5, 5, 4)[-1]


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


def test_six_series_have_six_marks_and_six_colours() -> None:
    points = [Point(f"series {i}", "", 1.0 + i, 0.5, 0.4, 0.6) for i in range(6)]
    keys = re.findall(r'class="key (s\d)".*?(<(?:path|circle|rect) class="mark".*?/>)', chart.legend(points))
    assert len({colour for colour, _ in keys}) == len({mark for _, mark in keys}) == 6


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


def test_the_page_asks_for_nothing() -> None:
    check_offline(page.render(a_page()))


def test_the_check_for_offline_pages_sees_what_it_should() -> None:
    for bad in (
        '<img src="https://example.org/x.png">',
        "<script>1</script>",
        '<link rel="stylesheet" href="x.css">',
        "<style>@import 'x'</style>",
        '<p style="background:url(x)">',
        '<p onclick="x()">',
    ):
        with pytest.raises(AssertionError):
            check_offline(bad)


def test_every_image_of_the_page_decodes_and_says_what_it_is() -> None:
    text = page.render(a_page())
    images = [attributes for tag, attributes in elements(text).found if tag == "img"]
    assert len(embedded(text)) == len(images) == 2 * 12 + 3
    assert all("alt" in attributes for attributes in images)
    assert all(attributes["alt"] for attributes in images if attributes["width"] == "84")


def test_ids_are_unique_and_labels_point_at_them() -> None:
    found = elements(page.render(a_page())).found
    ids = [attributes["id"] for _, attributes in found if "id" in attributes]
    assert len(ids) == len(set(ids)) == 4
    named = " ".join(attributes["aria-labelledby"] or "" for _, attributes in found if "aria-labelledby" in attributes)
    assert set(named.split()) == set(ids)


def contrast(a: str, b: str) -> float:
    """WCAG 2's contrast ratio of two colours, #rrggbb."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_stands_out_from_the_paper(scheme: int) -> None:
    blocks = re.findall(r":root \{(.*?)\}", Path(page.__file__).with_name("page.css").read_text(), re.DOTALL)
    colours = dict(re.findall(r"--([\w]+): (#[0-9a-f]{6})", blocks[scheme]))
    for name in ("ink", "soft", "link", "good", "bad", "s0", "s1", "s2", "s3", "k3", "k7"):
        needed = 4.5 if not name.startswith("s") or name == "soft" else 3.9  # chart labels repeat the table's names
        for behind in ("paper", "card"):
            assert contrast(colours[name], colours[behind]) >= needed, (name, behind)


@pytest.mark.skipif(browser.executable() is None, reason="no chromium, chromium-browser or google-chrome in PATH")
@pytest.mark.parametrize("width", [1280, 768, 375])
def test_the_page_in_a_real_browser(tmp_path: Path, width: int) -> None:
    report = tmp_path / "report.html"
    report.write_text(page.render(a_page()), encoding="utf-8")
    check_in_browser(browser.look(report, tmp_path, width), width)


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
