"""What is done stays done: `--keep_going`, sweeps that are stopped and started again, what `tune` leaves."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path

import pytest
from support.material import World, checkpoint, command, evaluated, make_folder, read, slug, tree

from anchorprune.errors import UserError
from anchorprune.strategies import make_strategy
from anchorprune.studies.sweep import Sweep
from anchorprune.tasks.zeroshot_classification import ZeroShot

pytestmark = pytest.mark.usefixtures("here")

FLAGS = ["--no_amp", "--num_workers", 0, "--batch_size", 8]


@pytest.fixture
def sets(here: Path) -> list[str]:
    """Three data sets, of which the second has an image that cannot be read."""
    names = [make_folder(here / name, classes=2, per_class=2) for name in ("one", "two", "three")]
    next(names[1].rglob("*.png")).write_bytes(b"no image")
    return [f"folder:{name}" for name in names]


# --- failures


def test_one_bad_data_set_does_not_stop_the_others(world: World, sets: list[str]) -> None:
    flags = ["eval", *world.model, "--dataset", *sets, *FLAGS, "--output", "{dataset}.json"]
    outcome = command(*flags)
    assert outcome.code == 2
    assert [path.name for path in Path().glob("*.json")] == [f"{slug(sets[0])}.json"]
    going_on = command(*flags, "--keep_going")
    assert going_on.code == 2
    assert {path.name for path in Path().glob("*.json")} == {f"{slug(name)}.json" for name in (sets[0], sets[2])}
    at_once, total, listed = going_on.err
    assert at_once.startswith("anchorprune: failed, going on: zeroshot_classification of")
    assert total == "anchorprune: error: 1 of 3 failed:"
    assert sets[1] in listed
    assert "cannot read image" in listed


def test_one_bad_checkpoint_does_not_stop_the_others(world: World, here: Path) -> None:
    Path("broken.pt").write_bytes(b"no weights")
    other = checkpoint(here / "other.pt", seed=1)
    models = [f"{world.model[1]},{name}" for name in ("broken.pt", "nowhere.pt", world.weights, other)]
    flags = ["eval", "--pretrained_model", *models, *world.three, *FLAGS, "--output", "{pretrained}.json"]
    assert command(*flags).code == 2
    assert not list(Path().glob("*.json"))
    outcome = command(*flags, "--keep_going")
    assert outcome.code == 2
    assert {path.name for path in Path().glob("*.json")} == {"tiny.pt.json", "other.pt.json"}
    assert outcome.err[-3] == "anchorprune: error: 2 of 4 failed:"
    assert "nowhere.pt" in outcome.err[-2]
    assert "broken.pt" in outcome.err[-1]


def test_a_fault_of_ours_keeps_its_traceback_and_the_others_go_on(
    world: World, sets: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compute, calls = ZeroShot.compute, []

    def faulty(meter: ZeroShot) -> dict[str, float]:
        calls.append(1)
        return {"acc1": 1 / 0} if len(calls) == 1 else compute(meter)

    monkeypatch.setattr(ZeroShot, "compute", faulty)
    names = [sets[0], sets[2]]
    outcome = command("eval", *world.model, "--dataset", *names, *FLAGS, "--output", "{dataset}.json", "--keep_going")
    assert outcome.code == 2
    assert [path.name for path in Path().glob("*.json")] == [f"{slug(sets[2])}.json"]
    assert "Traceback (most recent call last):" in outcome.err
    assert outcome.err[-1].endswith("ZeroDivisionError: division by zero")


# --- sweeps


def passes(monkeypatch: pytest.MonkeyPatch) -> list[list[object]]:
    """The prunings of each pass over data from now on."""
    from anchorprune.evaluation import engine

    run, seen = engine._Pass.run, []

    def counted(self: object, requests: list[object]) -> object:
        seen.append([request.pruning for request in requests])
        return run(self, requests)

    monkeypatch.setattr(engine._Pass, "run", counted)
    return seen


SWEEP = ["--strategies", "tome --r 2", "thin --keep_patches 6", "random --keep_patches 5", "--out", "out"]


def test_a_sweep_that_was_stopped_does_what_is_left(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["sweep", *world.model, *world.things, *FLAGS, *SWEEP]
    assert command(*flags).code == 0
    whole = {name: Path("out", name).read_bytes() for name in tree(Path("out"))}
    seen = passes(monkeypatch)
    assert command(*flags, "--skip_existing").code == 0
    assert seen == []
    assert tree(Path("out")).keys() == whole.keys()
    assert Path("out/sweep.csv").read_bytes() == whole["sweep.csv"]
    Path("out/tome_r_2.json").unlink()
    Path("out/unpruned.outcomes.npz").write_bytes(b"half of it")
    outcome = command(*flags, "--skip_existing")
    assert outcome.code == 0, outcome.err
    assert [[pruning and pruning.name for pruning in of_pass] for of_pass in seen] == [[None, "tome"]]
    for name in ("unpruned", "tome_r_2"):
        again, before = read(f"out/{name}.json"), json.loads(whole[f"{name}.json"])
        assert (again["metrics"], again["config_hash"]) == (before["metrics"], before["config_hash"])
    assert "in 2 passes, at different times or places" in Path("out/report.html").read_text()


def test_what_a_pass_has_found_is_written_before_the_next_begins(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    update, images = ZeroShot.update, []

    def interrupted(meter: ZeroShot, out: object, batch: object) -> None:
        images.append(1)
        if len(images) > 2 * 3:  # of 24 images in threes of batches: the third pass
            raise KeyboardInterrupt
        update(meter, out, batch)

    flags = ["sweep", *world.model, *world.things, *FLAGS, *SWEEP, "--ways_per_pass", 1]
    with monkeypatch.context() as patch:
        patch.setattr(ZeroShot, "update", interrupted)
        assert command(*flags).code == 130
    assert {path.name for path in Path("out").glob("*.json")} == {"unpruned.json", "tome_r_2.json"}
    assert not Path("out/sweep.csv").exists()
    seen = passes(monkeypatch)
    again = command(*flags, "--skip_existing")
    assert again.code == 0
    running = [line.partition(": ")[2] for line in again.out if line.startswith("Running")]
    draws = ["", " --draw_seed 1", " --draw_seed 2"]
    assert running == ["thin --keep_patches 6", *(f"random --keep_patches 5{draw}" for draw in draws)]
    assert [[pruning.name for pruning in of_pass] for of_pass in seen] == [["thin"], ["random"], ["random"], ["random"]]
    with open("out/sweep.csv", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 4


def test_results_of_other_settings_are_not_taken(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    command("sweep", *world.model, *world.things, *FLAGS, *SWEEP)
    seen = passes(monkeypatch)
    command("sweep", *world.model, *world.things, *FLAGS, *SWEEP, "--skip_existing", "--limit", 9)
    assert [len(of_pass) for of_pass in seen] == [6]
    assert {read(path)["n_samples"] for path in Path("out").glob("*.json")} == {9}


def test_several_models_and_data_sets_have_a_folder_each_and_a_table_of_all(
    world: World, sets: list[str], here: Path
) -> None:
    other = checkpoint(here / "other.pt", seed=1)
    models = ["--model", world.model[1], "--pretrained", world.weights, other]
    names = [sets[0], sets[2]]
    outcome = command("sweep", *models, "--dataset", *names, *FLAGS, "--strategies", "tome --r 2", "--out", "out")
    assert outcome.code == 0, outcome.err
    folders = [f"{world.model[1]}_{w}_{slug(name)}_en" for w in ("tiny.pt", "other.pt") for name in names]
    assert sorted(path.name for path in Path("out").iterdir()) == sorted([*folders, "sweep.csv"])
    for folder in folders:
        written = {path.name for path in Path("out", folder).iterdir()}
        assert {"unpruned.json", "tome_r_2.json", "sweep.csv", "sweep.png", "report.html"} <= written
    with open("out/sweep.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    running = [line for line in outcome.out if line.startswith("Running")]
    assert len(running) == 4
    assert all(line.endswith(": unpruned, tome --r 2") for line in running)
    assert {(row["pretrained"], row["dataset"], row["strategy"]) for row in rows} == {
        (str(weights), name, strategy)
        for weights in (world.weights, other)
        for name in names
        for strategy in ("unpruned", "tome")
    }


def test_a_sweep_goes_on_where_one_data_set_is_broken(world: World, sets: list[str]) -> None:
    """And takes nothing that an earlier one has left there for its own."""
    flags = ["sweep", *world.model, *FLAGS, "--strategies", "tome --r 2", "--out", "out", "--keep_going", "--dataset"]
    broken = f"{world.model[1]}_tiny.pt_{slug(sets[1])}_en"
    command(*flags, *sets, "--skip_bad_images")
    table = Path("out", broken, "sweep.csv")
    before = table.stat().st_mtime_ns
    outcome = command(*flags, *sets)
    assert (outcome.code, outcome.err[-2]) == (2, "anchorprune: error: 1 of 3 failed:")
    assert table.stat().st_mtime_ns == before
    with open("out/sweep.csv", encoding="utf-8") as file:
        assert {row["dataset"] for row in csv.DictReader(file)} == {sets[0], sets[2]}


def test_two_combinations_of_one_name_are_refused(world: World, here: Path) -> None:
    for name in ("a", "b"):
        Path(name).mkdir()
        checkpoint(here / name / "same.pt")
    models = ["--model", world.model[1], "--pretrained", "a/same.pt", "b/same.pt"]
    outcome = command("sweep", *models, *world.things, *FLAGS, "--out", "out")
    assert outcome.code == 2
    assert "--out: 2 of these models and data sets would have the folder" in outcome.err[-1]
    assert not Path("out").exists()


def test_a_sweep_is_the_same_from_its_files(world: World) -> None:
    from anchorprune import DataSpec, ModelSpec, Request, sweep

    request = Request(
        model=ModelSpec(name=world.model[1], pretrained=world.model[3]), data=DataSpec(name=world.things[1])
    )
    found = sweep(request, ["tome"], progress=False)
    found.save(".")
    again = Sweep.load(".", request, found.ways)
    assert again.to_csv() == found.to_csv()
    assert again.to_html() == found.to_html()
    Path("unpruned.json").unlink()
    with pytest.raises(UserError, match=r"unpruned\.json: no such file"):
        Sweep.load(".", request, found.ways)


# --- tune


@pytest.mark.usefixtures("few_suffice")
def test_tune_leaves_what_it_searched_and_the_whole_command(world: World) -> None:
    goal = ["--max_drop", 100, "--strategies", "tome", "--out", "out"]
    outcome = command("tune", *world.model, *world.things, *FLAGS, *goal)
    assert outcome.code == 0, outcome.err
    assert {path.name for path in Path("out").iterdir()} == {"tune.json", "tune.csv", "report.html"}
    found = read("out/tune.json")
    assert found["command"] in outcome.out
    words = shlex.split(found["command"])
    assert words[:2] == ["anchorprune", "eval"]
    result = evaluated(*words[2:], "--output", "r.json")
    assert {**result["pruning"], "measured": None} == {**found["strategy"], "measured": None}
    with open("out/tune.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["speed_up"]) for row in rows] == sorted(one["speed_up"] for one in found["searched"])
    chosen = make_strategy("tome", r=found["strategy"]["r"]).flags()
    assert [row["flags"] for row in rows if row["chosen"] == "True"] == [chosen]
    page = Path("out/report.html").read_text()
    assert "tome" in page
    assert "--max_drop 100" in page.replace('<span class="flag">', "").replace("</span>", "")


@pytest.mark.usefixtures("few_suffice")
def test_tune_that_finds_nothing_says_so_in_its_files(world: World) -> None:
    goal = ["--target_speedup", 1000, "--strategies", "tome", "--out", "out"]
    assert command("tune", *world.model, *world.things, *FLAGS, *goal).code == 0
    assert read("out/tune.json")["command"] is None
    assert "Nothing that was tried meets the goal" in Path("out/report.html").read_text()
