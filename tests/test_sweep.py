"""`anchorprune sweep`, `tune`, `--target_gmacs` and `--save_outcomes`, as a person runs them."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from support.material import World, command, evaluated, read

from anchorprune.evaluation import outcomes

FLAGS = ["--no_amp", "--num_workers", 0, "--batch_size", 8]


pytestmark = pytest.mark.usefixtures("here")


def swept(world: World, *flags: object) -> list[str]:
    outcome = command("sweep", *world.model, *world.things, *FLAGS, "--out", "out", *flags)
    assert outcome.code == 0, outcome.err
    return outcome.out


def test_a_sweep_leaves_a_result_for_each_way_a_table_a_picture_and_a_page(world: World) -> None:
    out = swept(world, "--strategies", "tome --r 2", "thin --keep_patches 6", "random --keep_patches 5")
    names = {path.name for path in Path("out").iterdir() if path.suffix == ".json"}
    drawn = {"random_keep_patches_5.json", *(f"random_keep_patches_5_draw_seed_{i}.json" for i in (1, 2))}
    assert names == {"unpruned.json", "tome_r_2.json", "thin_keep_patches_6.json", *drawn}
    assert all(outcomes.path_for(Path("out") / name).exists() for name in names)
    with open("out/sweep.csv", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 4  # the draws are one
    assert Path("out/sweep.png").read_bytes().startswith(b"\x89PNG")
    assert "tome" in Path("out/report.html").read_text()
    assert any("mean of 3 draws" in line for line in out)


def test_each_result_of_a_sweep_is_that_of_its_own_eval(world: World) -> None:
    swept(world, "--strategies", "tome --r 2", "max_min --prune_layers 2 3 --keep_patches 5")
    flags = [*world.model, *world.things, *FLAGS, "--output", "r.json"]
    gradual = ["--enable_pruning", "--strategy", "max_min", "--prune_layers", 2, 3, "--keep_patches", 5]
    for name, pruning in {
        "unpruned": [],
        "tome_r_2": ["--enable_pruning", "--strategy", "tome", "--r", 2],
        "max_min_prune_layers_2_3_keep_patches_5": gradual,
    }.items():
        own, of_sweep = evaluated(*flags, *pruning), read(f"out/{name}.json")
        for key in ("metrics", "pruning", "config_hash", "n_samples"):
            assert of_sweep[key] == own[key]
        assert of_sweep["cost"]["gmacs"] == own["cost"]["gmacs"]


def test_a_target_solves_the_budget_of_every_strategy(world: World) -> None:
    flags = [*world.model, *world.things, *FLAGS, "--output", "r.json"]
    dense = evaluated(*flags)["cost"]["gmacs"]
    for strategy in ("random", "max_min", "tome", "pitome", "thin", "anchor --k_anchors 2"):
        pruning = ["--enable_pruning", "--strategy", *strategy.split(), "--target_gmacs", 0.8 * dense]
        result = evaluated(*flags, *pruning)
        assert 0.5 * dense < result["cost"]["gmacs"] <= 0.8 * dense


def test_outcomes_make_a_comparison_a_paired_one(world: World) -> None:
    flags = [*world.model, *world.things, *FLAGS, "--save_outcomes"]
    evaluated(*flags, "--output", "a.json")
    evaluated(*flags, "--enable_pruning", "--k_anchors", 1, "--top_m", 1, "--output", "b.json")
    text = "\n".join(command("compare", "a.json", "b.json").out)
    assert "image by image (n = 24)" in text or "right on the same images (n = 24)" in text


@pytest.mark.usefixtures("few_suffice")
def test_outcomes_of_multilabel_data_are_refused_in_one_line(world: World) -> None:
    """Before an image is encoded."""
    for argv in (
        ["eval", "--save_outcomes", "--output", "r.json"],
        ["sweep", "--strategies", "tome"],
        ["tune", "--max_drop", 1, "--strategies", "tome"],
    ):
        outcome = command(argv[0], *world.model, *world.labels, *FLAGS, *argv[1:])
        assert outcome.code == 2
        [line] = [line for line in outcome.err if "error" in line]
        assert "--dataset wds/labels: has labels, of which zeroshot_classification gives no score of each image" in line
        assert not list(Path().iterdir())


@pytest.mark.usefixtures("few_suffice")
def test_tune_prints_flags_that_eval_takes_and_what_to_expect(world: World) -> None:
    """That what is picked keeps within the limit stands in test_tune.py."""
    goal = ["--max_drop", 100, "--strategies", "tome"]
    outcome = command("tune", *world.model, *world.things, *FLAGS, *goal, "--quiet")
    assert outcome.code == 0, outcome.err
    flags = outcome.out[0].split()
    assert flags[:3] == ["--enable_pruning", "--strategy", "tome"]
    assert any(line.startswith("Expect to lose") and "95 % interval" in line for line in outcome.out)
    assert evaluated(*world.model, *world.things, *flags, "--output", "r.json")["pruning"]["measured"]["effective"]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["sweep", "--strategies", "tomee"], "unknown strategy 'tomee'"),
        (["sweep", "--strategies", "tome --rr 3"], "unknown --rr 3"),
        (["sweep", "--strategies", "tome --r 3", "--target_gmacs", "0.001"], "--r 3: is what --target_gmacs solves"),
        (["sweep", "--strategies", "tome", "--target_gmacs", "1000"], "no strategy can meet any of these"),
        (["sweep", "--ways_per_pass", "0"], "--ways_per_pass 0: must be 1 or more"),
        (["sweep", "--ray_cpus", "2"], "--ray_cpus 2.0: is of --engine ray alone"),
        (["sweep", "--engine", "ray", "--ray_gpus", "-1"], "--ray_gpus -1.0: must be 0 or more"),
        (["sweep", "--engine", "ray", "--ray_cpus", "1.5"], "--ray_cpus 1.5: must be a whole number above 1"),
        (["tune", "--max_drop", "1", "--language", "en", "de"], "these are 2 combinations"),
        (["tune"], "one of the arguments --max_drop --target_speedup --max_latency_ms is required"),
        (["tune", "--max_drop", "-1"], "--max_drop -1.0: must be 0 or more"),
        (["tune", "--target_speedup", "1"], "--target_speedup 1.0: must be above 1"),
        (["tune", "--max_latency_ms", "0"], "--max_latency_ms 0.0: must be above 0 (milliseconds)"),
        (["tune", "--max_drop", "1", "--calibration", "2"], "--calibration 2.0: must be above 0 and at most 1"),
        (["eval", "--enable_pruning", "--target_gmacs", "1000"], "--target_gmacs 1000: must be above 0 and below"),
        (["eval", "--enable_pruning", "--target_gmacs", "0.001", "--top_m", "3"], "--top_m 3: is what --target_gmacs"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(world: World, argv: list[str], says: str) -> None:
    before = set(Path().iterdir())
    outcome = command(argv[0], *world.model, *world.things, *FLAGS, *argv[1:])
    assert outcome.code == 2
    assert says in outcome.err[-1]
    assert set(Path().iterdir()) == before
