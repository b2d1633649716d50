"""The description's example commands as it writes them, on ViT-B-32, and on ViT-B-16, where they prune.

A file of random weights stands for the tag "openai", and CIFAR-10 has four images and one prompt a class.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.material import checkpoint, command, make_cifar10, read

from anchorprune.models import open_clip

builder = pytest.importorskip("clip_benchmark.datasets.builder")

UPSTREAM_KEYS = {"dataset", "model", "pretrained", "task", "metrics", "language"}
PRUNING = ["--enable_pruning", "--k_anchors", "10", "--top_m", "50", "--alpha", "0.5"]

MEASURED = {"effective": True, "tokens_before": 197, "tokens_after": 61, "tokens_by_block": []}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder: `root/` holds the data, ViT-B-32.pt and ViT-B-16.pt weights. Each is read once."""
    folder = tmp_path_factory.mktemp("description")
    weights = {name: checkpoint(folder / f"{name}.pt", name, dtype=torch.float16) for name in ("ViT-B-32", "ViT-B-16")}
    build = builder.build_dataset

    def build_dataset(**options: Any) -> Any:
        dataset = build(**options)
        dataset.data, dataset.targets, dataset.templates = dataset.data[:4], dataset.targets[:4], ["a photo of a {c}."]
        return dataset

    with pytest.MonkeyPatch.context() as patch:
        make_cifar10(folder / "root", patch, per_class=1)
        patch.setattr(builder, "build_dataset", build_dataset)
        patch.setattr(open_clip, "load", functools.cache(open_clip.load))
        patch.chdir(folder)
        yield folder
    for path in weights.values():
        path.unlink()


def described(model: str, *flags: str) -> list[str]:
    """Flags of the description's `eval` command."""
    given = {"--model_type": "open_clip", "--model": model, "--pretrained": f"{model}.pt", "--dataset": "cifar10"}
    return [*(word for pair in given.items() for word in pair), "--task", "zeroshot_classification", *flags]


class Examples:
    """The three examples for one model: their results, warnings and attention."""

    def __init__(self, model: str) -> None:
        attention = ["--extract_attention", "--attention_output", "attention_weights.pt"]
        self.baseline, warned = self.run(model)
        [twin] = warned  # a file cannot tell of itself that it is of the model's twin, so that is said, once
        assert f"there is the model {model}-quickgelu" in twin
        self.pruned, self.warnings = self.run(model, *PRUNING)
        self.with_attention, _ = self.run(model, *attention, *PRUNING)
        self.attention = torch.load("attention_weights.pt", weights_only=True)

    def run(self, model: str, *flags: str) -> tuple[dict[str, Any], list[str]]:
        outcome = command("eval", *described(model, *flags, "--output", "results.json"))
        assert outcome.code == 0, outcome.err
        return read("results.json"), outcome.err


@pytest.fixture(scope="module")
def b32(folder: Path) -> Examples:
    return Examples("ViT-B-32")


@pytest.fixture(scope="module")
def b16(folder: Path) -> Examples:
    return Examples("ViT-B-16")


@pytest.fixture(params=["b32", "b16"])
def examples(request: pytest.FixtureRequest) -> Examples:
    return request.getfixturevalue(request.param)


def test_a_result_has_clip_benchmarks_keys_and_metrics(examples: Examples) -> None:
    for result in (examples.baseline, examples.pruned, examples.with_attention):
        assert result.keys() >= UPSTREAM_KEYS
        assert result["metrics"].keys() == {"acc1", "acc5", "mean_per_class_recall"}
        assert all(0 <= value <= 1 for value in result["metrics"].values())
        assert (result["dataset"], result["task"], result["language"]) == ("cifar10", "zeroshot_classification", "en")
        assert result["n_samples"] == result["n_total"] == 4


def test_the_unpruned_run_says_that_it_is(examples: Examples) -> None:
    assert examples.baseline["pruning"] is None
    assert examples.baseline["cost"]["gmacs"] == examples.baseline["cost"]["gmacs_dense"]


def test_vit_b_32_has_50_tokens_so_the_budget_of_61_drops_none(b32: Examples) -> None:
    pruning = b32.pruned["pruning"]
    assert (pruning["strategy"], pruning["k_anchors"], pruning["top_m"], pruning["alpha"]) == ("anchor", 10, 50, 0.5)
    assert pruning["measured"] | {"tokens_by_block": []} == MEASURED | {
        "effective": False,
        "tokens_before": 50,
        "tokens_after": 50,
    }
    assert b32.pruned["metrics"] == b32.baseline["metrics"]
    assert b32.pruned["cost"]["gmacs"] == b32.baseline["cost"]["gmacs"] == pytest.approx(4.408811520, abs=1e-9)


def test_vit_b_32_gets_one_warning_with_the_numbers_and_a_budget_that_prunes(b32: Examples) -> None:
    [warning] = b32.warnings
    assert warning == (
        "anchorprune: warning: anchor keeps all 50 tokens of this tower (1 prefix + 49 patches): nothing is dropped; "
        "--k_anchors 2 --top_m 13 would prune"
    )


def test_vit_b_16_keeps_61_of_197_tokens(b16: Examples) -> None:
    pruning = b16.pruned["pruning"]
    assert pruning["measured"] | {"tokens_by_block": []} == MEASURED
    assert b16.warnings == []
    assert b16.pruned["cost"]["gmacs"] < b16.pruned["cost"]["gmacs_dense"] / 2
    assert b16.pruned["cost"]["gmacs_dense"] == b16.baseline["cost"]["gmacs"]


def test_extracting_attention_disturbs_no_metric(examples: Examples) -> None:
    assert examples.with_attention["metrics"] == examples.pruned["metrics"]
    assert examples.with_attention["pruning"] == examples.pruned["pruning"]


def test_the_attention_file_has_what_the_description_says(examples: Examples) -> None:
    saved, result = examples.attention, examples.with_attention
    before, after = (result["pruning"]["measured"][key] for key in ("tokens_before", "tokens_after"))
    assert (saved["model"], saved["pretrained"], saved["dataset"]) == (result["model"], result["pretrained"], "cifar10")
    assert saved["num_layers"] == len(saved["attention_weights"]) == 12
    layers = [[4, 12, n, n] for n in (before, *[after] * 11)]
    assert [list(weights.shape) for weights in saved["attention_weights"]] == layers
    assert saved["shape_info"] == {
        "images": 4, "heads": 12, "tokens_before": before, "tokens_after": after, "layers": layers,
        "last_layer_shape": layers[-1], "description": "[images, heads, tokens that look, tokens that are looked at]",
    }  # fmt: skip
    for weights in saved["attention_weights"]:
        assert weights.dtype == torch.float16
        assert torch.allclose(weights.float().sum(dim=-1), torch.ones(()), atol=0.01)


def test_the_attention_file_says_which_tokens_were_kept(examples: Examples) -> None:
    kept, pruning = examples.attention["kept_indices"], examples.with_attention["pruning"]
    assert kept.shape == (4, pruning["measured"]["tokens_after"])
    assert (kept[:, 0] == 0).all()
    assert (kept.diff(dim=1) > 0).all()
    assert kept.max() < pruning["measured"]["tokens_before"]


def test_images_keep_tokens_of_their_own(b16: Examples) -> None:
    kept = b16.attention["kept_indices"]
    assert len({tuple(row.tolist()) for row in kept}) > 1


def test_compare_reads_the_two_results(b16: Examples, folder: Path, tmp_path: Path) -> None:
    for name, result in (("baseline", b16.baseline), ("pruned", b16.pruned)):
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    outcome = command("compare", tmp_path / "baseline.json", tmp_path / "pruned.json")
    assert (outcome.code, outcome.err) == (0, [])
    rows = {line.split("  ")[0]: line for line in outcome.out}
    assert rows["tokens"].endswith("197  61 of 197")
    assert rows["GMACs an image"].split()[-2:] == ["0.38", "x"]
