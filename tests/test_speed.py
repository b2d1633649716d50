"""`anchorprune speed`: what it measures, writes and refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from support.material import TINY_TOKENS, World, command, tree
from support.models import TOKENS, make_visual

from anchorprune.evaluation.runtime import Runtime
from anchorprune.strategies import make_strategy
from anchorprune.studies.speed import Speed, measure

QUICK = ["--batch_size", 2, "--repeats", 2, "--no_amp"]


pytestmark = pytest.mark.usefixtures("here")


def speeds(world: World, *flags: object) -> tuple[list[str], list[dict]]:
    outcome = command("speed", *world.model, *QUICK, "--out", "out", *flags)
    assert outcome.code == 0, outcome.err
    return outcome.out, json.loads(Path("out/speed.json").read_text())["speeds"]


def test_a_table_a_json_and_a_chart(world: World) -> None:
    out, found = speeds(world, "--strategies", "tome --r 2", "thin --keep_patches 6", "--batch_size", 1, 3)
    assert [(one["batch_size"], (one["pruning"] or {}).get("strategy")) for one in found] == [
        (batch, name) for batch in (1, 3) for name in (None, "tome", "thin")
    ]
    assert [one["tokens_after"] for one in found[:3]] == [TINY_TOKENS, TINY_TOKENS - 8, 7]
    for one in found:
        assert one["speed_up_by_flops"] == pytest.approx(found[0]["gmacs"] / one["gmacs"])
        dense = found[0 if one["batch_size"] == 1 else 3]
        ratios = sorted(a / b for a, b in zip(dense["repeats_ms"], one["repeats_ms"], strict=True))
        assert one["speed_up"] == pytest.approx(sum(ratios) / 2)  # the median of two repeats
        assert one["images_per_second"] == pytest.approx(2000 * one["batch_size"] / sum(one["repeats_ms"]))
        assert one["achieved"] == pytest.approx(one["speed_up"] / (dense["gmacs"] / one["gmacs"]))
        assert 50 < one["peak_memory_mb"] < 100_000  # MiB of this very process, which holds torch
    assert [found[i]["speed_up"] for i in (0, 3)] == [1, 1]
    assert len([line for line in out if line.startswith("|")]) == 2 + 6
    for fact in ("2 alternating repeats", "float32", "threads", "torch", "open_clip", "random images"):
        assert any(fact in line for line in out)
    assert Path("out/speed.png").read_bytes().startswith(b"\x89PNG")


def test_weights_need_not_be_given_and_nothing_warns_of_it(world: World) -> None:
    outcome = command("speed", *world.model[:2], *QUICK, "--strategies", "tome --r 2")
    assert outcome.code == 0
    assert not [line for line in outcome.err if "weights" in line]
    assert any("random weights" in line for line in outcome.out)


def test_targets_are_solved(world: World) -> None:
    dense = speeds(world, "--strategies", "thin")[1][0]["gmacs"]
    _, found = speeds(world, "--strategies", "thin", "tome", "--target_gmacs", 0.85 * dense)
    assert all(0.6 * dense < one["gmacs"] <= 0.85 * dense for one in found[1:])


@pytest.mark.parametrize("precision", ["amp", "bf16"])
def test_every_precision(world: World, precision: str) -> None:
    outcome = command("speed", *world.model, "--batch_size", 2, "--repeats", 2, "--precision", precision)
    assert outcome.code == 0, outcome.err
    assert any("bfloat16" in line for line in outcome.out)


def test_compiled_towers_do_not_run_each_others_code(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module, **_: compiled(module, backend="eager", fullgraph=True))
    budgets = [make_strategy("anchor", k_anchors=2, top_m=m) for m in range(9)] + [make_strategy("tome", r=2)]
    runtime = Runtime(torch.device("cpu"), "fp32")
    found = measure(make_visual(), [None, *budgets], runtime, 2, 2, "default")
    assert [speed.tokens for speed in found] == [TOKENS, *(3 + m for m in range(9)), TOKENS - 8]


def test_the_command_says_that_it_compiled(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = torch.compile  # without inductor, which needs a C++ compiler
    monkeypatch.setattr(torch, "compile", lambda module, **_: compiled(module, backend="eager", fullgraph=True))
    outcome = command("speed", *world.model, *QUICK, "--strategies", "anchor --k_anchors 2 --top_m 3", "--compile")
    assert outcome.code == 0, outcome.err
    assert any("torch.compile (default)" in line for line in outcome.out)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--batch_size", 0], "--batch_size 0: must be 1 or more"),
        (["--repeats", 1], "--repeats 1: must be 2 or more"),
        (["--strategies", "tom"], "tom"),
        (["--strategies", "tome --r -1"], "--r -1"),
        (["--target_gmacs", 1000], "--target_gmacs"),
        (["--model", "ViT-B-33"], "--model ViT-B-33"),
        (["--model", "RN50"], "ResNet"),
        (["--device", "cuda:77"], "--device cuda:77"),
        (["--precision", "fp16", "--no_amp"], "contradicts"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(here: Path, world: World, flags: list, says: str) -> None:
    model = [] if "--model" in flags else world.model
    outcome = command("speed", *model, *flags)
    assert outcome.code == 2
    assert says in outcome.err[-1]
    assert not tree(here)


def test_percentiles() -> None:
    times = tuple(float(i) for i in range(1, 21))
    one = Speed(make_strategy("tome"), 4, 5, 9, 1.0, times, 2.0, 2.5, 100.0)
    assert one.p50 == 10.5
    assert one.p95 == 19.0
    assert one.images_per_second == pytest.approx(4000 / 10.5)
    assert math.isclose(one.achieved, 0.8)
