"""What a sweep finds: the configurations that nothing beats, as text, as rows and in words."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import re
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from anchorprune.evaluation.statistics import wilson
from anchorprune.report import sweep_page
from anchorprune.report.frontier import Cost, Measured, as_text, frontier, rows

COSTS: list[Cost] = ["gmacs", "images_per_second"]


def measured(name: str, gmacs: float, accuracy: float, rate: float | None = 100.0, **more: object) -> Measured:
    low, high = wilson(accuracy, 10_000)
    command = f"anchorprune eval --strategy {name}"
    known = {"flags": "", "difference": None, "command": command, **more}
    return Measured(name=name, gmacs=gmacs, images_per_second=rate, accuracy=accuracy, low=low, high=high, **known)


def pruned(name: str, gmacs: float, accuracy: float, rate: float | None = 100.0, **more: object) -> Measured:
    """Against an unpruned accuracy of 70 %, with an interval of a point either way."""
    lost = accuracy - 0.7
    interval = {"difference": lost, "difference_low": lost - 0.01, "difference_high": lost + 0.01, "p_value": 0.04}
    return measured(name, gmacs, accuracy, rate, **{**interval, **more})


def a_sweep() -> list[Measured]:
    return [
        measured("unpruned", 20.0, 0.7, 400.0),
        pruned("tome", 15.0, 0.69, 380.0, flags="--r 8", p_value=0.0004),
        pruned("evit", 16.0, 0.695, 520.0, flags="--keep_rate 0.8"),
        pruned("tome", 10.0, 0.62, 600.0, flags="--r 13"),
        pruned("random", 10.0, 0.60, 800.0, flags="--k 60", draws=3),
        pruned("evit", 10.0, 0.61, 700.0, flags="--keep_rate 0.5"),
        pruned("random", 12.0, 0.50, None, flags="--k 90", draws=3),
    ]


# --- the frontier

few = st.integers(1, 6)  # few values, so that ties are common
clouds = st.lists(st.tuples(few, few, few), max_size=14).map(
    lambda values: [measured("x", float(g), a / 10, 10.0 * r) for g, a, r in values]
)


def brute_force(values: list[tuple[float, float]]) -> set[int]:
    """The textbook's frontier of (cost, accuracy): no other is as good in both and differs in one."""
    return {
        i
        for i, (cost, accuracy) in enumerate(values)
        if not any(c <= cost and a >= accuracy and (c, a) != (cost, accuracy) for c, a in values)
    }


@settings(max_examples=300, deadline=None)
@given(clouds)
def test_without_tolerance_the_frontier_is_the_textbooks(points: list[Measured]) -> None:
    assert set(frontier(points, "gmacs", same=0)) == brute_force([(p.gmacs, p.accuracy) for p in points])
    by_speed = brute_force([(-(p.images_per_second or 0), p.accuracy) for p in points])
    assert set(frontier(points, "images_per_second", same=0)) == by_speed


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.floats(1, 1.2), st.integers(1, 5)), min_size=1, max_size=14), st.sampled_from(COSTS))
def test_along_the_frontier_accuracy_never_falls_and_the_best_is_on_it(
    values: list[tuple[float, int]], cost: Cost
) -> None:
    points = [measured("x", value, accuracy / 10, 100 * value) for value, accuracy in values]
    found = [points[i] for i in frontier(points, cost)]
    assert max(point.accuracy for point in found) == max(point.accuracy for point in points)
    for a, b in pairwise(found):
        assert a.accuracy <= b.accuracy
        assert a.gmacs <= b.gmacs if cost == "gmacs" else a.gmacs >= b.gmacs


def test_costs_within_a_hundredth_are_a_tie() -> None:
    """Else 0.1 % less compute for ten points of accuracy would count as unbeaten."""
    points = [measured("a", 10.0, 0.7), measured("b", 9.99, 0.6), measured("c", 9.8, 0.6), measured("d", 9.99, 0.7)]
    assert frontier(points, "gmacs") == [2, 3, 0]  # equally accurate at the same cost: both stay
    assert frontier(points, "gmacs", same=0) == [2, 3]


def test_what_was_not_timed_is_on_no_frontier_of_speed() -> None:
    points = [measured("a", 10.0, 0.9, None), measured("b", 10.0, 0.5, 3.0)]
    assert frontier(points, "images_per_second") == [1]
    assert frontier([], "gmacs") == []


# --- text and rows


def test_the_table_is_aligned_sorted_by_compute_and_marks_both_frontiers() -> None:
    table, _, listed = as_text(a_sweep()).partition("\n\n")
    head, *lines = table.splitlines()
    assert len({len(line) for line in (head, *lines)}) == 1
    assert [re.split(r"\s{2,}", line.strip()) for line in lines[:3]] == [
        ["unpruned", "70.00", "69.09 to 70.89", "–", "–", "20.00", "400", "1.00×", "both"],
        ["evit --keep_rate 0.8", "69.50", "68.59 to 70.39", "-0.50 (-1.50 to +0.50)", "0.040", "16.00", "520", "1.30×",
         "both"],
        ["tome --r 8", "69.00", "68.09 to 69.90", "-1.00 (-2.00 to +0.00)", "<0.001", "15.00", "380", "0.95×", "GMACs"],
    ]  # fmt: skip
    gmacs = [float(line[: head.index("GMACs") + 5].split()[-1]) for line in lines]
    assert gmacs == sorted(gmacs, reverse=True)
    assert "random --k 60, mean of 3 draws" in table
    assert len(lines) == len(a_sweep())
    for point, on in zip(a_sweep(), (1, 1, 1, 1, 1, 1, 0), strict=True):
        assert (f". {point.title} (" in listed) == bool(on)
    assert listed.count("anchorprune eval") == 6


def test_a_sweep_without_the_unpruned_model_has_no_speed_ups() -> None:
    text = as_text(a_sweep()[1:])
    assert "×" not in text
    assert all(row["speed_up"] is None for row in rows(a_sweep()[1:]))
    assert as_text([]).startswith("strategy  acc1 %  95 % interval")


def test_another_metric_is_named_where_accuracy_was() -> None:
    points = [dataclasses.replace(point, metric="mean_ap") for point in a_sweep()]
    assert as_text(points).replace("mean_ap %", "acc1 %").split() == as_text(a_sweep()).split()
    renamed = [{name.replace("mean_ap", "acc1"): value for name, value in row.items()} for row in rows(points)]
    assert renamed == rows(a_sweep())
    assert {"mean_ap", "mean_ap_low", "mean_ap_high"} <= rows(points)[0].keys()
    text = sweep_page.render(points, title="t", facts={}, command="")
    assert "mean_ap, %" in text  # at the axis
    assert not re.search("acc1|top-1", text, re.IGNORECASE)


def test_rows_are_ready_for_csv_and_lose_nothing() -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows(a_sweep())[0]))
    writer.writeheader()
    writer.writerows(rows(a_sweep()))
    read = list(csv.DictReader(io.StringIO(text.getvalue())))
    by_title = {f"{row['strategy']} {row['flags']}".rstrip(): row for row in read}
    assert len(by_title) == len(a_sweep())
    for point in a_sweep():
        row = by_title[point.title]
        assert float(row["acc1"]) == point.accuracy
        assert row["command"] == point.command
        assert row["images_per_second"] == ("" if point.images_per_second is None else str(point.images_per_second))
        assert row["difference"] == ("" if point.difference is None else str(point.difference))
    assert float(by_title["random --k 60"]["speed_up"]) == 2.0


def test_p_values_and_rates_keep_their_meaning_when_rounded() -> None:
    points = [measured("unpruned", 1.0, 0.5, 2.345), pruned("a", 0.5, 0.5, 99.97, p_value=0.00099)]
    text = as_text(points)
    assert "2.35" in text or "2.34" in text
    assert " 100 " in text
    assert "<0.001" in text
    assert math.isclose(rows(points)[1]["p_value"], 0.00099)


# --- words


def test_the_headline_is_the_largest_saving_within_a_point() -> None:
    """0.69 − 0.7 is a hair below −0.01 in floating point, and yet one point."""
    assert 0.69 - 0.7 < -0.01
    says = "tome may save 25 % of the compute within 1 point of unpruned: not certain on these images"
    assert sweep_page.headline(a_sweep()) == says
    compute, time, half = sweep_page.findings(a_sweep())
    assert compute.startswith("tome --r 8 takes 15.00 GMACs an image instead of 20.00 and runs at 0.95× the speed")
    assert "that it loses at most 1 point is not certain" in compute  # its interval reaches to two points
    assert time.startswith("By the clock evit --keep_rate 0.8 gains most within 1 point: 1.30×")
    assert half.startswith("With at most half of the compute, tome --r 13 is the most accurate: 62.0 %")
    assert half.endswith("of the other strategies evit --keep_rate 0.5 comes next with 61.0 %.")


def test_the_headline_is_of_a_saving_that_is_certain_where_there_is_one() -> None:
    """Its interval ends a hair's breadth outside one point in floating point, and yet at one."""
    sure = pruned("coarse", 18.0, 0.7, 450.0, difference_low=0.69 - 0.7, difference_high=0.01)
    points = [*a_sweep(), sure]
    assert sweep_page.headline(points) == "coarse saves 10 % of the compute within 1 point of unpruned"
    compute, time, _ = sweep_page.findings(points)
    first, second = compute.split(". As measured ")
    assert first.startswith("coarse takes 18.00 GMACs an image instead of 20.00 and runs at 1.12× the speed")
    assert "not certain" not in first
    assert second.startswith(
        "tome --r 8 stays within 1 point too, with 15.00 GMACs (-1.0 points, 95 % interval -2.0 to"
    )
    assert second.endswith("that it loses at most 1 point is not certain).")
    assert time.startswith("By the clock evit --keep_rate 0.8")
    surer = [dataclasses.replace(p, difference_low=p.difference) for p in a_sweep()]
    assert sweep_page.headline(surer) == "tome saves 25 % of the compute within 1 point of unpruned"
    assert "certain" not in " ".join(sweep_page.findings(surer))


def test_where_nothing_is_gained_the_page_says_so() -> None:
    dense = measured("unpruned", 20.0, 0.7, 400.0)
    poor, slow = pruned("a", 15.0, 0.6, 500.0), pruned("b", 19.0, 0.7, 300.0)
    assert sweep_page.headline([dense, poor]).startswith("No pruning measured here saves compute")
    assert sweep_page.findings([dense, poor]) == ["Nothing measured here gets by with half of the compute."]
    assert "Nothing that stays within 1 point of unpruned is faster than it here." in sweep_page.findings([dense, slow])
    costly = pruned("c", 21.0, 0.7, 300.0)
    assert sweep_page.headline([dense, costly]).startswith("No pruning measured here saves compute")
    assert sweep_page.headline([poor]) == "Configurations measured: 1, none of them unpruned"
    assert sweep_page.findings([poor]) == []


def test_half_the_compute_includes_budgets_a_little_above() -> None:
    """Targets are typed as rounded numbers: 8.8 of 17.58 GMACs is meant as half."""
    dense = measured("unpruned", 17.58, 0.7)
    assert "50 % of the GMACs" in sweep_page.findings([dense, pruned("a", 8.8, 0.6)])[-1]
    assert "Nothing measured here" in sweep_page.findings([dense, pruned("a", 8.9, 0.6)])[-1]
