"""`anchorprune eval` end to end: metrics, images, classifiers, names and prompts."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from support.material import (
    PRUNED,
    TINY,
    World,
    checkpoint,
    command,
    evaluated,
    make_folder,
    read,
    register,
    slug,
)
from support.opened import opened
from torch import nn
from torchvision.datasets import ImageFolder

from anchorprune.datasets.prompts import GENERAL_TEMPLATES
from anchorprune.models import open_clip as loading

builder = pytest.importorskip("clip_benchmark.datasets.builder")


pytestmark = pytest.mark.usefixtures("here")


# --- the metrics are clip-benchmark's


class Listed(list):
    """A data set as clip-benchmark's metrics see it: items, and the names of its classes."""

    classes: list[str]


def upstream_metrics(world: World, dataset: Any, classes: list[str], templates: list[str]) -> dict[str, float]:
    """What clip-benchmark's own function finds on the same model and data, in float32."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's, of classes that do not occur
        from clip_benchmark.metrics.zeroshot_classification import evaluate

        model = open_clip.create_model(TINY, pretrained=str(world.weights)).eval()
        loader = torch.utils.data.DataLoader(dataset, batch_size=4)
        return evaluate(model, loader, open_clip.get_tokenizer(TINY), classes, templates, "cpu", amp=False)


def transform() -> Any:
    return open_clip.create_model_and_transforms(TINY)[2]


def test_metrics_of_a_zoo_data_set_are_clip_benchmarks(world: World) -> None:
    result = evaluated(*world.model, *world.cifar10, "--no_amp", "--output", "r.json")
    dataset = builder.build_dataset("cifar10", root=world.cifar10[-1], transform=transform(), split="test")
    theirs = upstream_metrics(world, dataset, dataset.classes, dataset.templates)
    assert result["metrics"] == pytest.approx(theirs, abs=1e-6)
    assert result["metrics"].keys() == theirs.keys()
    assert result["metrics"]["acc1"] == theirs["acc1"]
    assert 0 < result["metrics"]["acc1"] < result["metrics"]["acc5"] < 1


def test_below_five_classes_there_is_no_acc5(world: World) -> None:
    folder = make_folder(Path("few"), classes=3)
    result = evaluated(*world.model, "--dataset", f"folder:{folder}", "--no_amp", "--output", "r.json")
    dataset = ImageFolder(str(folder), transform())
    theirs = upstream_metrics(world, dataset, ["thing 0", "thing 1", "thing 2"], GENERAL_TEMPLATES)
    assert result["metrics"].pop("acc5") is None
    assert result["metrics"] == pytest.approx({key: theirs[key] for key in ("acc1", "mean_per_class_recall")})


def test_mean_average_precision_of_multilabel_data_is_clip_benchmarks(world: World) -> None:
    result = evaluated(*world.model, *world.labels, "--no_amp", "--output", "r.json")
    ours = opened("wds/labels", root=world.labels[-1].format(dataset="labels"), transform=transform())
    dataset = Listed(ours.items[i] for i in range(len(ours)))
    dataset.classes = ours.classes
    theirs = upstream_metrics(world, dataset, ours.classes, ours.templates)
    assert result["metrics"] == pytest.approx(theirs, abs=1e-6)
    assert list(result["metrics"]) == ["mean_average_precision"]


def test_multilabel_data_can_be_evaluated_pruned(world: World) -> None:
    result = evaluated(*world.model, *world.labels, *PRUNED, "--output", "r.json")
    assert 0 < result["metrics"]["mean_average_precision"] < 1
    assert result["pruning"]["measured"]["tokens_after"] == 8


@pytest.mark.parametrize("precision", ["amp", "amp_bf16", "bf16", "fp32"])
def test_every_precision_works_and_the_result_says_which(world: World, precision: str) -> None:
    result = evaluated(*world.model, *world.three, *PRUNED, "--precision", precision, "--output", "r.json")
    told = {"amp": "bfloat16 (autocast)", "amp_bf16": "bfloat16 (autocast)", "bf16": "bfloat16", "fp32": "float32"}
    assert result["environment"]["dtype"] == told[precision]
    assert result["pruning"]["measured"]["tokens_after"] == 8


# --- pruning


def test_both_data_sets_of_one_command_are_pruned_by_the_model_that_is_loaded_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads, load = [], loading.load
    monkeypatch.setattr(loading, "load", lambda *args, **options: loads.append(args) or load(*args, **options))
    datasets = [world.things[1], str(make_folder(Path("other"), classes=5))]
    datasets[1] = f"folder:{datasets[1]}"
    outcome = command("eval", *world.model, "--dataset", *datasets, *PRUNED, "--no_amp", "--output", "{dataset}.json")
    assert outcome.code == 0, outcome.err
    assert loads == [(TINY, str(world.weights))]
    for name in datasets:
        together = read(slug(name) + ".json")
        assert (together["pruning"]["measured"]["tokens_before"], together["pruning"]["measured"]["tokens_after"]) == (
            17,
            8,
        )
        alone = evaluated(*world.model, "--dataset", name, *PRUNED, "--no_amp", "--output", "alone.json")
        assert alone["metrics"] == together["metrics"]


def test_pruning_changes_the_result_and_the_next_unpruned_run_is_as_before(world: World) -> None:
    flags = [*world.model, *world.things, "--no_amp", "--output", "r.json"]
    before = evaluated(*flags)
    pruned = evaluated(*flags, "--enable_pruning", "--k_anchors", 1, "--top_m", 0)
    assert pruned["metrics"] != before["metrics"]
    assert evaluated(*flags)["metrics"] == before["metrics"]


def test_every_field_of_the_strategy_is_in_the_result(world: World) -> None:
    fields = {"keep_patches": [3], "draw_seed": 5, "prune_layers": [4]}
    given = [
        word
        for name, value in fields.items()
        for word in (f"--{name}", *(value if isinstance(value, list) else [value]))
    ]
    flags = ["--enable_pruning", "--strategy", "random", *given]
    result = evaluated(*world.model, *world.three, *flags, "--output", "r.json")
    measured = {"effective": True, "tokens_before": 17, "tokens_after": 4, "tokens_by_block": [17, 17, 17, 4]}
    assert result["pruning"] == {"strategy": "random", "keep_ratio": [], **fields, "measured": measured}


def test_pruning_flags_without_enable_pruning_have_no_effect_and_one_line_says_so(world: World) -> None:
    flags = ["--strategy", "anchor", "--k_anchors", 3, "--alpha", 1]
    outcome = command("eval", *world.model, *world.three, *flags, "--num_workers", 0, "--output", "r.json")
    assert outcome.err == [
        "anchorprune: warning: without --enable_pruning, --strategy, --k_anchors, --alpha have no effect"
    ]
    assert (outcome.code, read("r.json")["pruning"]) == (0, None)


def test_class_names_of_what_has_none_are_said_to_be_missing_from_the_result(world: World) -> None:
    flags = ["--task", "zeroshot_retrieval", "--dump_classnames", "--num_workers", 0, "--output", "r.json"]
    outcome = command("eval", *world.model, *world.captioned, *flags)
    [line] = outcome.err
    assert line.endswith("zeroshot_retrieval on wds/captioned has none, and --dump_classnames no effect")
    assert "classnames" not in read("r.json")


def test_a_folder_of_open_clips_comes_with_its_weights_and_the_default_tag_is_not_its(world: World) -> None:
    folder = Path("local")
    folder.mkdir()
    shutil.copy(world.weights, folder / "open_clip_pytorch_model.bin")
    config = {"model_cfg": open_clip.get_model_config(TINY), "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    outcome = command("eval", "--model", "local-dir:local", *world.three, "--num_workers", 0, "--output", "r.json")
    assert (outcome.code, outcome.err) == (0, [])
    assert read("r.json")["pretrained"] == ""


def test_attention_output_without_extract_attention_has_no_effect_and_one_line_says_so(world: World) -> None:
    flags = ["--attention_output", "a.pt", "--num_workers", 0, "--output", "r.json"]
    outcome = command("eval", *world.model, *world.three, *flags)
    assert outcome.err == ["anchorprune: warning: without --extract_attention, --attention_output has no effect"]
    assert (outcome.code, Path("a.pt").exists()) == (0, False)
    told = command("eval", *world.model, *world.three, *flags, "--attention_images", 2).err
    idle = "--attention_output, --attention_images have no effect"
    assert told == [f"anchorprune: warning: without --extract_attention, {idle}"]


def test_a_tower_that_cannot_be_pruned_can_be_evaluated(world: World) -> None:
    register(Path(), "cli-resnet", layers=[1, 1, 1, 1], width=8, patch_size=None)
    weights = checkpoint(Path("resnet.pt"), "cli-resnet")
    flags = ["--model", "cli-resnet", "--pretrained", weights, *world.three]
    result = evaluated(*flags, "--output", "r.json")
    assert (result["n_samples"], result["pruning"]) == (7, None)


def test_images_are_encoded_outside_inference_mode(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside it, and under autocast, torch 2.14 encodes 13 times slower on a CPU."""
    modes, encode = [], open_clip.CLIP.encode_image

    def watched(model: Any, images: Any) -> Any:
        modes.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled()))
        return encode(model, images)

    monkeypatch.setattr(open_clip.CLIP, "encode_image", watched)
    evaluated(*world.model, *world.three, "--output", "r.json")
    assert modes == [(False, False)]


# --- which images


def test_limit_says_what_it_took(world: World) -> None:
    result = evaluated(*world.model, *world.things, "--limit", 9, "--seed", 4, "--output", "r.json")
    assert (result["n_samples"], result["n_total"], result["limit"], result["seed"]) == (9, 24, 9, 4)


def test_the_images_of_limit_do_not_depend_on_workers_but_on_the_seed(world: World) -> None:
    flags = [*world.model, *world.things, "--no_amp", "--limit", 12, "--batch_size", 5, "--output", "r.json"]
    alone, helped = evaluated(*flags), evaluated(*flags, "--num_workers", 2)
    assert helped["metrics"] == alone["metrics"]
    seeds = [evaluated(*flags, "--seed", seed)["metrics"] for seed in (1, 2)]
    assert any(metrics != alone["metrics"] for metrics in seeds)


def test_limit_on_a_class_sorted_folder_takes_several_classes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from anchorprune.tasks import zeroshot_classification

    seen: list[int] = []
    update = zeroshot_classification.ZeroShot.update

    def watched(self: Any, out: Any, batch: Any) -> None:
        seen.extend(batch.targets.tolist())
        update(self, out, batch)

    monkeypatch.setattr(zeroshot_classification.ZeroShot, "update", watched)
    evaluated(*world.model, *world.things, "--limit", 8, "--output", "r.json")
    assert len(seen) == 8
    assert len(set(seen)) >= 3


def test_bad_images_are_counted_and_skipped_when_asked(world: World) -> None:
    folder = make_folder(Path("spoiled"))
    (folder / "thing_1" / "1.png").write_bytes(b"no image")
    whole = (folder / "thing_2" / "2.png").read_bytes()
    (folder / "thing_2" / "2.png").write_bytes(whole[: len(whole) // 2])
    flags = ["eval", *world.model, "--dataset", f"folder:{folder}", "--num_workers", 0, "--output", "r.json"]
    skipped = command(*flags, "--skip_bad_images", "--extract_attention", "--attention_output", "a.pt")
    assert (skipped.code, skipped.err) == (0, [])
    assert any("22 of 24 images (2 unreadable)" in line for line in skipped.out)
    result = read("r.json")
    assert (result["n_bad_images"], result["n_samples"], result["n_total"]) == (2, 22, 24)
    assert torch.load("a.pt", weights_only=True)["kept_indices"].shape == (8, 17)


# --- classifiers, names and prompts


def test_a_saved_classifier_gives_the_same_metrics(world: World) -> None:
    flags = [*world.model, *world.three, "--no_amp", "--output", "r.json"]
    saved = evaluated(*flags, "--save_clf", "clf.pt")
    assert torch.load("clf.pt", weights_only=True).shape == (16, 3)
    assert evaluated(*flags, "--load_clfs", "clf.pt")["metrics"] == saved["metrics"]


def test_several_classifiers_are_averaged_as_clip_benchmark_does(world: World) -> None:
    parts = [torch.randn(16, 3, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    for i, part in enumerate(parts):
        torch.save(part, f"{i}.pt")
    torch.save(parts[0] / 2 + parts[1] / 2, "mean.pt")
    flags = [*world.model, *world.three, "--no_amp", "--output", "r.json", "--load_clfs"]
    both, mean, one = (evaluated(*flags, *files)["metrics"] for files in (["0.pt", "1.pt"], ["mean.pt"], ["0.pt"]))
    assert both == mean
    assert both != one


def test_own_class_names_and_prompts_are_used_and_dumped(world: World) -> None:
    names, prompts = [f"name {i}" for i in range(10)], ["{c}!", "a drawing of {c}"]
    Path("names.json").write_text(json.dumps({"cifar10": names}))
    Path("prompts.json").write_text(json.dumps({"cifar10": prompts}))
    flags = [*world.model, *world.cifar10, "--no_amp", "--output", "r.json", "--dump_classnames", "--dump_templates"]
    plain = evaluated(*flags, "--save_clf", "plain.pt")
    assert (plain["classnames"][3], len(plain["classnames"]), len(plain["templates"])) == ("cat", 10, 18)
    own = ["--custom_classname_file", "names.json", "--custom_template_file", "prompts.json"]
    result = evaluated(*flags, *own, "--save_clf", "own.pt")
    assert (result["classnames"], result["templates"]) == (names, prompts)
    plain_clf, own_clf = (torch.load(f"{name}.pt", weights_only=True) for name in ("plain", "own"))
    assert not torch.allclose(plain_clf, own_clf)
    assert result["config_hash"] != plain["config_hash"]


def test_without_the_dump_flags_the_result_has_no_lists(world: World) -> None:
    assert not {"classnames", "templates"} & evaluated(*world.model, *world.three, "--output", "r.json").keys()


# --- QuickGELU


def test_weights_that_were_trained_with_quickgelu_get_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, TINY, {"openai": {"hf_hub": "x/y/", "quick_gelu": True}})
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *_, **__: str(world.weights))
    built, load = [], loading.load
    monkeypatch.setattr(loading, "load", lambda *args, **options: built.append(load(*args, **options)) or built[-1])
    flags = ["--model", TINY, "--pretrained", "openai", "--num_workers", 0, "--output", "{dataset}.json"]
    outcome = command("eval", *flags, *world.three)
    assert outcome.err == [
        f"anchorprune: warning: the weights 'openai' were trained with QuickGELU and the config '{TINY}' has GELU: "
        "building it with QuickGELU"
    ]
    assert read("three.json")["model_options"] == {"force_quick_gelu": True}
    kinds = {type(module).__name__ for module in built[0].model.modules()}
    assert "QuickGELU" in kinds
    assert not any(isinstance(module, nn.GELU) for module in built[0].model.modules())


def test_weights_without_quickgelu_are_built_as_configured(world: World) -> None:
    assert evaluated(*world.model, *world.three, "--output", "r.json")["model_options"] == {}


def test_a_language_that_the_prompts_are_not_in_is_refused_and_one_of_the_datas_own_files_said(world: World) -> None:
    flags = [*world.model, "--num_workers", 0, "--output", "r.json", "--language", "de"]
    refused = command("eval", *flags, *world.things)  # a folder without prompts of its own
    assert refused.code == 2
    assert f"--language de: the prompts of {world.things[1]} are English; give en, or prompts" in refused.err[-1]
    assert refused.err[-1].endswith("by --custom_template_file.")
    told = command("eval", *flags, *world.three)
    assert told.code == 0
    assert any("are those of its own files, whatever the language" in line for line in told.err)
