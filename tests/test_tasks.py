"""A task is one file: flags, JSON, hash, result, sweep, tuning and comparison follow from it."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.material import PRUNED, World, command, evaluated, read
from torch.nn import functional as F

from anchorprune import tasks
from anchorprune.datasets import DataSpec
from anchorprune.evaluation.outcomes import path_for
from anchorprune.evaluation.outcomes import read as read_outcomes

pytestmark = pytest.mark.usefixtures("here")

# Nearest class mean: the train split, here the test split itself, goes through the same pruning.
TOY = '''
"""A toy: each image goes to the class whose mean feature of another split is nearest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from anchorprune.tasks.base import Bench, EncodeSplit, Outcomes, Task, option


@dataclass(frozen=True)
class Nearest(Task):
    """The class whose mean feature is nearest."""

    name: ClassVar[str] = "nearest"
    primary: ClassVar[str] = "margin"

    means_of: str = option("test", "the split that the means are of")
    sharpness: float = option(2.0, "how fast a score falls with distance")
    ranks: tuple[int, ...] = option((1,), "which ranks to count", kind=int)

    def prepare(self, bench: Bench) -> Any:
        return bench.open_split(self.means_of), self.sharpness

    def meter(self, prepared: Any, encode_split: EncodeSplit) -> Meter:
        import torch

        split, sharpness = prepared
        sums: dict[int, Any] = {}
        for features, batch in encode_split(split):
            for feature, target in zip(features, batch.targets.tolist(), strict=True):
                sums[target] = sums.get(target, 0) + feature
        return Meter(torch.nn.functional.normalize(torch.stack([sums[c] for c in sorted(sums)]), dim=-1), sharpness)


class Meter:
    def __init__(self, means: Any, sharpness: float) -> None:
        self.means, self.sharpness = means, sharpness
        self.seen: dict[int, tuple[str, float]] = {}

    def update(self, out: Any, batch: Any) -> None:
        near = (out * self.means[batch.targets]).sum(dim=-1).clamp(0, 1) ** self.sharpness
        self.seen |= {i: (k, s) for i, k, s in zip(batch.indices.tolist(), batch.keys, near.tolist(), strict=True)}

    def merge(self, other: Meter) -> None:
        self.seen |= other.seen

    def compute(self) -> dict[str, float]:
        return {"margin": sum(score for _, score in self.seen.values()) / len(self.seen)}

    def scores(self) -> Outcomes:
        keys, scores = zip(*(self.seen[i] for i in sorted(self.seen)), strict=True)
        return Outcomes(keys, scores)
'''


@pytest.fixture(autouse=True)
def toy(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The file is in the folder; nothing else is touched."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "nearest.py").write_text(TOY)
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(folder)])
    tasks.registry.cache_clear()
    yield
    tasks.registry.cache_clear()
    sys.modules.pop("anchorprune.tasks.nearest", None)
    importlib.invalidate_caches()


FLAGS = ["--task", "nearest", "--no_amp", "--num_workers", 0, "--batch_size", 5]


def by_hand(world: World, sharpness: float) -> float:
    """The same in plain torch, on the whole data set at once."""
    import open_clip

    from anchorprune.datasets import open_dataset

    model, _, transform = open_clip.create_model_and_transforms(world.model[1], pretrained=world.model[3])
    dataset = open_dataset(DataSpec(name=world.things[1]), transform)
    images, targets = zip(*(dataset.items[i] for i in range(len(dataset))), strict=True)
    with torch.no_grad():
        features = F.normalize(model.eval().encode_image(torch.stack(images)), dim=-1)
    truth = torch.tensor(targets)
    means = F.normalize(torch.stack([features[truth == c].sum(dim=0) for c in range(6)]), dim=-1)
    return float(((features * means[truth]).sum(dim=-1).clamp(0, 1) ** sharpness).mean())


def test_its_fields_are_flags_with_help_and_default(world: World) -> None:
    text = " ".join("\n".join(command("eval", "--help").out).split())
    assert "task nearest: " in text
    for said in (
        "--means_of STR the split that the means are of (default: test)",
        "--sharpness FLOAT how fast a score falls with distance (default: 2.0)",
        "--ranks INT [INT ...] which ranks to count (default: 1)",
    ):
        assert said in text


def test_it_is_evaluated_and_its_fields_stand_in_the_result_and_decide_the_hash(world: World) -> None:
    flags = [*world.model, *world.things, *FLAGS, "--output", "r.json"]
    plain = evaluated(*flags)
    assert plain["metrics"] == {"margin": pytest.approx(by_hand(world, 2.0), abs=1e-5)}
    assert plain["task"] == "nearest"
    assert plain["request"]["task"] == {"task": "nearest", "means_of": "test", "sharpness": 2.0, "ranks": [1]}
    sharper = evaluated(*flags, "--sharpness", 8, "--ranks", 1, 2)
    assert sharper["metrics"]["margin"] == pytest.approx(by_hand(world, 8.0), abs=1e-5)
    assert sharper["request"]["task"]["ranks"] == [1, 2]
    assert sharper["config_hash"] != plain["config_hash"]


def test_the_other_split_goes_through_the_same_pruning(world: World) -> None:
    """One patch is left: means of unpruned features would lie far away."""
    flags = [*world.model, *world.things, *FLAGS, "--output", "r.json"]
    few = evaluated(*flags, "--enable_pruning", "--strategy", "random", "--keep_patches", 1, "--prune_layers", 2)
    assert few["metrics"]["margin"] > 0.5 * by_hand(world, 2.0)
    assert few["n_samples"] == 24
    assert few["pruning"]["measured"]["tokens_after"] == 2


def test_its_scores_are_kept_and_compared(world: World) -> None:
    flags = [*world.model, *world.things, *FLAGS, "--save_outcomes"]
    dense = evaluated(*flags, "--output", "dense.json")
    evaluated(*flags, *PRUNED, "--output", "pruned.json")
    outcomes, config_hash = read_outcomes(path_for("dense.json"))
    assert config_hash == dense["config_hash"]
    assert outcomes.scores.mean() == pytest.approx(dense["metrics"]["margin"])
    said = "\n".join(command("compare", "dense.json", "pruned.json").out)
    assert "margin of B minus A, image by image (n = 24): " in said
    assert "McNemar" not in said  # these are no right and wrong


@pytest.mark.usefixtures("few_suffice")
def test_it_is_swept_and_tuned(world: World) -> None:
    flags = [*world.model, *world.things, *FLAGS, "--sharpness", 3]
    swept = command("sweep", *flags, "--strategies", "tome --r 2", "--out", "out")
    assert swept.code == 0, swept.err
    assert "margin" in Path("out/sweep.csv").read_text().splitlines()[0]
    assert "--task nearest --sharpness 3.0" in Path("out/sweep.csv").read_text()
    assert "margin" in Path("out/report.html").read_text()
    assert read("out/tome_r_2.json")["request"]["task"]["sharpness"] == 3.0
    tuned = command("tune", *flags, "--max_drop", 90, "--strategies", "tome", "--quiet")
    assert tuned.code == 0, tuned.err
    assert any("points of margin" in line for line in tuned.out)


def test_it_is_run_again_from_its_result(world: World) -> None:
    evaluated(*world.model, *world.things, *FLAGS, "--sharpness", 3, "--output", "r.json")
    again = command("rerun", "r.json", "--output", "again.json")
    assert (again.code, again.out[-1]) == (0, "The metrics are the same.")
    assert "--sharpness 3.0" in again.out[0]
    first, second = read("r.json"), read("again.json")
    assert {key: first[key] for key in ("metrics", "request", "config_hash")} == {
        key: second[key] for key in ("metrics", "request", "config_hash")
    }


def test_data_of_a_kind_that_it_does_not_take_is_one_line(world: World) -> None:
    outcome = command("eval", *world.model, *world.labels, *FLAGS, "--output", "r.json")
    assert (outcome.code, len(outcome.err)) == (2, 1)
    assert "--dataset wds/labels: has labels; nearest needs classes" in outcome.err[0]


# --- rerun


def test_other_metrics_are_said_and_end_with_1(world: World) -> None:
    result = evaluated(*world.model, *world.three, "--no_amp", "--output", "r.json")
    Path("r.json").write_text(json.dumps({**result, "metrics": {**result["metrics"], "acc1": 0.123}}))
    again = command("rerun", "r.json")
    assert again.code == 1
    assert f"acc1: 0.123 before, {result['metrics']['acc1']} now" in again.out
    assert again.out[-1] == "The metrics differ."


def test_files_that_have_changed_are_said(world: World) -> None:
    from support.material import checkpoint

    checkpoint(Path("w.pt"), seed=0)
    evaluated(*world.model[:2], "--pretrained", "w.pt", *world.three, "--no_amp", "--output", "r.json")
    checkpoint(Path("w.pt"), seed=1)
    again = command("rerun", "r.json", "--quiet")
    assert again.out[0].startswith("The files that the request names are not what they were")


def test_a_strategy_that_has_got_more_fields_since_is_said(world: World) -> None:
    flags = ["--no_amp", "--enable_pruning", "--k_anchors", "2", "--top_m", "3", "--output", "r.json"]
    result = evaluated(*world.model, *world.three, *flags)
    del result["request"]["pruning"]["score_input"]
    Path("r.json").write_text(json.dumps({**result, "config_hash": "0" * 16}))
    again = command("rerun", "r.json", "--quiet")
    assert again.out[0].startswith("The strategy has other fields than it had when this was measured (hash 0000")
    assert again.code == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda result: result.pop("request"), "does not hold its request"),
        (lambda result: result.update(config_hash=None), "its model or data were objects"),
        (lambda result: result["request"].update(version=7), "a request of version 7"),
        (lambda result: result["request"]["model"].update(name="ViT-B-33"), "open_clip has no such model"),
    ],
)
def test_a_result_that_cannot_be_repeated_is_one_line(world: World, change: object, says: str) -> None:
    result = evaluated(*world.model, *world.three, "--no_amp", "--output", "r.json")
    change(result)
    Path("r.json").write_text(json.dumps(result))
    again = command("rerun", "r.json")
    assert (again.code, len(again.err)) == (2, 1)
    assert says in again.err[0]
