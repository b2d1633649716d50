"""The linear probe: held against plain torch and clip-benchmark's own training; what it keeps, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
import transformers
from PIL import Image
from support.libraries import VISION, hf_dinov2, hf_vit, lively
from support.material import TINY, World, command, evaluated, make_wds, read
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import anchorprune
from anchorprune import Compute, DataSpec, ModelSpec, OwnDataset, Request
from anchorprune.datasets import encoded as source_items
from anchorprune.datasets import open_dataset
from anchorprune.evaluation.engine import evaluate
from anchorprune.evaluation.merging import merge
from anchorprune.evaluation.outcomes import path_for
from anchorprune.evaluation.outcomes import read as read_outcomes
from anchorprune.models import load
from anchorprune.models.huggingface import HuggingFaceImages
from anchorprune.tasks.linear_probe import LinearProbe, best_decay, train_probe

pytestmark = pytest.mark.usefixtures("here")

CPU = torch.device("cpu")
PROBE = ["--task", "linear_probe", "--no_amp", "--num_workers", 0, "--batch_size", 8]
PRUNED = ["--enable_pruning", "--strategy", "random", "--keep_patches", 3, "--prune_layers", 2]


def colours(path: Path, per_class: int, seed: int, classes: int = 6) -> None:
    """Noise around a colour for each class: a probe learns some of it, not all."""
    random = np.random.default_rng(seed)
    for label in range(classes):
        (path / f"colour_{label}").mkdir(parents=True)
        mean = np.random.default_rng(label).uniform(90, 160, 3)
        for i in range(per_class):
            pixels = (random.normal(mean, 60, (32, 32, 3)) + random.normal(0, 12, 3)).clip(0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(path / f"colour_{label}" / f"{i}.png")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as torchvision and timm have it, one folder a split."""
    path = tmp_path_factory.mktemp("photos")
    for seed, (split, per_class) in enumerate({"train": 7, "val": 3, "test": 5}.items()):
        colours(path / split, per_class, seed)
    return path


@pytest.fixture
def flags(world: World, photos: Path) -> list[Any]:
    return [*world.model, "--dataset", f"folder:{photos}", *PROBE, "--output", "r.json"]


def request_of(world: World, photos: Path, **fields: Any) -> Request:
    return Request(
        model=ModelSpec(name=world.model[1], pretrained=world.model[3]),
        data=DataSpec(name=f"folder:{photos}"),
        task=LinearProbe(**fields),
        compute=Compute(precision="fp32", num_workers=0, batch_size=8),
    )


def encoded(model: Any, transform: Any, photos: Path, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    dataset = open_dataset(DataSpec(name=f"folder:{photos}", split=split), transform)
    images, targets = zip(*(dataset.items[i] for i in range(len(dataset))), strict=True)
    with torch.no_grad():
        return F.normalize(model.encode_image(torch.stack(images)), dim=-1), torch.tensor(targets)


def by_hand(x: torch.Tensor, y: torch.Tensor, decay: float = 0.0, seed: int = 0) -> torch.nn.Linear:
    """A probe in plain torch, with the loader and the global generator that clip-benchmark uses."""
    torch.manual_seed(seed)
    model = torch.nn.Linear(x.shape[1], int(y.max()) + 1)
    loader = DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=decay)
    step, steps = 0, 10 * len(loader)
    for _ in range(10):
        for features, targets in loader:
            optimizer.param_groups[0]["lr"] = 0.05 * (1 + np.cos(np.pi * step / steps))
            optimizer.zero_grad()
            torch.nn.CrossEntropyLoss()(model(features), targets).backward()
            optimizer.step()
            step += 1
    return model


# --- what it computes


@pytest.mark.parametrize("pruned", [False, True])
def test_it_equals_a_probe_in_plain_torch_through_the_same_pruning(
    world: World, photos: Path, flags: list[Any], pruned: bool
) -> None:
    found = evaluated(*flags, *(PRUNED if pruned else []))
    model, _, transform = open_clip.create_model_and_transforms(world.model[1], pretrained=world.model[3])
    if pruned:
        anchorprune.prune(model.eval(), "random", keep_patches=3, prune_layers=2)
    x, y = encoded(model.eval(), transform, photos, "train")
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    probe = by_hand(x[order], y[order])
    x, y = encoded(model, transform, photos, "test")
    right = probe(x).argmax(dim=1) == y
    metrics = found["metrics"]
    assert metrics["lp_acc1"] == pytest.approx(float(right.float().mean()), abs=1e-6)
    recalls = [float(right[y == label].float().mean()) for label in range(6)]
    assert metrics["lp_mean_per_class_recall"] == pytest.approx(np.mean(recalls), abs=1e-6)
    best = probe(x).topk(5).indices
    assert metrics["lp_acc5"] == pytest.approx(float((best == y[:, None]).any(dim=1).float().mean()), abs=1e-6)
    assert 1 / 6 < metrics["lp_acc1"] < 1  # it has learned something, and not all
    said = {name: metrics[name] for name in list(metrics)[3:]}
    assert said == {"weight_decay": 0, "epochs": 10, "seed": 0, "fewshot_k": -1, "normalized": True}
    assert metrics["normalized"] is True
    assert found["n_samples"] == 30


def test_a_training_is_clip_benchmarks_own(monkeypatch: pytest.MonkeyPatch) -> None:
    upstream = pytest.importorskip("clip_benchmark.metrics.linear_probe")
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor)  # which it calls everywhere
    monkeypatch.setattr(torch.nn.Module, "cuda", lambda module: module)
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(50, 12, generator=generator), torch.randint(0, 7, (50,), generator=generator)
    loader = DataLoader(upstream.FeatureDataset(x, y), batch_size=16, shuffle=True)
    theirs = upstream.train(loader, 12, 7, 0.01, 0.1, 4, False, "cpu", 5)
    weight, bias = train_probe(x, y, 7, weight_decay=0.01, lr=0.1, epochs=4, batch_size=16, seed=5)
    for own, their in zip((weight, bias), theirs.parameters(), strict=True):
        torch.testing.assert_close(own, their.detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("peak", [0, 5, 37, 48, 90, 96])
def test_the_search_finds_a_single_peak_in_at_most_15_trainings_and_takes_the_lower_of_equals(peak: int) -> None:
    decays, asked = np.logspace(-6, 2, 97), []

    def right(decay: float) -> int:
        asked.append(int(np.argmin(abs(decays - decay))))
        return 1000 - abs(asked[-1] - peak)

    assert best_decay(right) == pytest.approx(decays[peak])
    assert len(asked) == len(set(asked)) <= 15
    assert asked[:7] == list(range(0, 97, 16))
    assert best_decay(lambda decay: 7) == pytest.approx(decays[0])
    assert best_decay(lambda decay: 0) == pytest.approx(decays[0])


def test_with_a_validation_split_the_probe_is_the_one_of_the_best_decay_trained_on_both(
    world: World, photos: Path, flags: list[Any]
) -> None:
    found = evaluated(*flags, "--val_split", "val")["metrics"]
    model, _, transform = open_clip.create_model_and_transforms(world.model[1], pretrained=world.model[3])
    train, val, test = (encoded(model.eval(), transform, photos, split) for split in ("train", "val", "test"))
    order = torch.randperm(len(train[1]), generator=torch.Generator().manual_seed(0))
    x, y = train[0][order], train[1][order]
    decay = best_decay(lambda each: int((by_hand(x, y, each)(val[0]).argmax(dim=1) == val[1]).sum()))
    probe = by_hand(torch.cat([x, val[0]]), torch.cat([y, val[1]]), decay)
    assert found["weight_decay"] == pytest.approx(decay)
    right = probe(test[0]).argmax(dim=1) == test[1]
    assert found["lp_acc1"] == pytest.approx(float(right.float().mean()), abs=1e-6)


def test_a_share_is_held_out_by_the_seed_alone(world: World, photos: Path) -> None:
    """As torch.utils.data.random_split with a generator of that seed, whatever the model has drawn."""
    task = LinearProbe(val_proportion=0.3)
    for n in (42, 47, 10):
        train, val = prepared(task, n).parts(range(n))
        split = torch.utils.data.random_split(range(n), [0.7, 0.3], generator=torch.Generator().manual_seed(4))
        assert [train.tolist(), val.tolist()] == [list(part.indices) for part in split]


def prepared(task: LinearProbe, n: int) -> Any:
    from anchorprune.datasets.base import EvalDataset
    from anchorprune.tasks.linear_probe import Prepared

    train = EvalDataset("d", None, [str(i) for i in range(n)], None, None)
    bench = type("Bench", (), {"seed": 4, "dataset": train})
    return Prepared(task, bench, train, None)


def test_of_each_class_the_first_k_of_a_permutation_are_taken() -> None:
    targets = torch.tensor([0, 1, 1, 0, 2, 2, 2, 0, 1, 0])
    order = torch.randperm(10, generator=torch.Generator().manual_seed(4)).tolist()
    rows = prepared(LinearProbe(fewshot_k=2), 10).chosen(targets).tolist()
    assert rows == [r for i, r in enumerate(order) if [int(targets[o]) for o in order[:i]].count(int(targets[r])) < 2]
    assert sorted(targets[rows].tolist()) == [0, 0, 1, 1, 2, 2]


def test_few_shots_with_validation_train_on_the_shots_alone(flags: list[Any]) -> None:
    found = evaluated(*flags, "--fewshot_k", 2, "--val_split", "val", "--fewshot_epochs", 3, "--fewshot_lr", 0.01)
    assert {key: found["metrics"][key] for key in ("fewshot_k", "epochs")} == {"fewshot_k": 2, "epochs": 3}
    assert found["metrics"]["weight_decay"] >= 1e-6


def test_too_few_shots_are_one_line_that_names_the_class_before_anything_is_encoded(flags: list[Any]) -> None:
    outcome = command("eval", *flags, "--fewshot_k", 8)
    assert (outcome.code, len(outcome.err)) == (2, 1)
    assert (
        "--fewshot_k 8: class 'colour 0' has 7 images to train on (and 5 more classes have too few)" in outcome.err[0]
    )
    assert not list(Path().iterdir())


def test_a_training_that_diverges_is_one_line(flags: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    diverged = torch.full((6, 16), torch.nan), torch.zeros(6)
    monkeypatch.setattr("anchorprune.tasks.linear_probe.train_probe", lambda *_, **__: diverged)
    for validation in ([], ["--val_split", "val"]):
        outcome = command("eval", *flags, "--fewshot_lr", 5, *validation)
        assert outcome.code == 2
        assert outcome.err == ["anchorprune: error: --fewshot_lr 5.0: the training diverges; lower it"]


def test_normalize_false_means_false(flags: list[Any]) -> None:
    true, false = (evaluated(*flags, "--normalize", word)["metrics"] for word in ("True", "False"))
    assert (true["normalized"], false["normalized"]) == (True, False)
    assert true["lp_acc1"] != false["lp_acc1"] or true["lp_mean_per_class_recall"] != false["lp_mean_per_class_recall"]
    outcome = command("eval", *flags, "--normalize", "maybe")
    assert outcome.code == 2
    assert "'maybe' is neither True nor False" in outcome.err[-1]


# --- features that are kept


def test_a_result_from_kept_features_is_the_fresh_one_and_opens_no_train_image(
    flags: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    share = ["--val_proportion", 0.3]
    fresh = {name: evaluated(*flags, *more)["metrics"] for name, more in {"plain": [], "val": share}.items()}
    raw = evaluated(*flags, "--normalize", "False", "--feature_root", "elsewhere")["metrics"]
    opened: list[str] = []
    decode = source_items.decode
    monkeypatch.setattr(source_items, "decode", lambda data, name: opened.append(name) or decode(data, name))
    assert evaluated(*flags)["metrics"] == fresh["plain"]
    assert evaluated(*flags, *share)["metrics"] == fresh["val"]
    assert evaluated(*flags, "--normalize", "False")["metrics"] == raw
    assert len(opened) == 90
    assert all("/test/" in name for name in opened)
    evaluated(*flags, "--val_split", "val")  # added later, and encoded now
    assert sum("/val/" in name for name in opened) == 18


def test_a_pruned_run_never_uses_dense_features(flags: list[Any]) -> None:
    dense, pruned = evaluated(*flags), evaluated(*flags, *PRUNED)
    again = evaluated(*flags, *PRUNED, "--feature_root", "")
    assert pruned["metrics"] == again["metrics"] != dense["metrics"]
    other = [*PRUNED, "--draw_seed", 1]  # nor does another pruning by the same strategy
    assert evaluated(*flags, *other)["metrics"] == evaluated(*flags, *other, "--feature_root", "")["metrics"]
    assert len(list(Path("features").iterdir())) == 6


def test_other_weights_or_data_under_the_same_name_are_encoded_anew(world: World, photos: Path) -> None:
    mine = Path("mine")
    shutil.copytree(photos, mine)
    loaded = load(request_of(world, mine).model, CPU, "fp32")
    first = evaluate(request_of(world, mine), model=loaded, progress=False).metrics
    with torch.no_grad():
        loaded.model.visual.proj.mul_(torch.linspace(-1, 1, 16))
    other = evaluate(request_of(world, mine), model=loaded, progress=False).metrics
    nowhere = dataclasses.replace(request_of(world, mine).compute, feature_root="")
    fresh = dataclasses.replace(request_of(world, mine), compute=nowhere)
    assert other == evaluate(fresh, model=loaded, progress=False).metrics != first
    for file in sorted((mine / "train").glob("*/0.png")):
        file.unlink()
    fewer = evaluate(request_of(world, mine), model=loaded, progress=False).metrics
    assert fewer == evaluate(fresh, model=loaded, progress=False).metrics


def test_an_interrupted_run_never_looks_finished(flags: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = evaluated(*flags, "--feature_root", "elsewhere")["metrics"]

    def interrupted(content: Any, file: Any) -> None:
        file.write(b"half of it")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("anchorprune.evaluation.artifacts.torch.save", interrupted)
        assert command("eval", *flags).code == 130
    assert not list(Path("features").iterdir())
    assert evaluated(*flags)["metrics"] == fresh
    for file in Path("features").iterdir():  # nor does a damaged file
        file.write_bytes(file.read_bytes()[:200])
    assert evaluated(*flags)["metrics"] == fresh


def test_skip_load_reads_kept_features_alone(flags: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    ways = {"dense": [], "pruned": PRUNED}
    fresh = {name: evaluated(*flags, *more, "--save_outcomes") for name, more in ways.items()}
    scores = read_outcomes(path_for("r.json"))[0].scores

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("something was loaded")

    monkeypatch.setattr("anchorprune.evaluation.engine.load", refuse)
    monkeypatch.setattr("anchorprune.models.load", refuse)
    monkeypatch.setattr("anchorprune.evaluation.engine.open_dataset", refuse)
    for name, more in ways.items():
        kept = evaluated(*flags, *more, "--skip_load", "--save_outcomes")
        for key in ("metrics", "pruning", "cost", "n_samples", "n_total", "n_bad_images", "config_hash"):
            assert kept[key] == fresh[name][key]
    assert (read_outcomes(path_for("r.json"))[0].scores == scores).all()
    assert evaluated(*flags, "--skip_load", "--fewshot_k", 2)["metrics"]["fewshot_k"] == 2


def test_skip_load_without_features_is_one_line(world: World, flags: list[Any]) -> None:
    outcome = command("eval", *flags, "--skip_load")
    assert (outcome.code, len(outcome.err)) == (2, 1)
    assert "--feature_root features: holds no features of folder:" in outcome.err[0]
    outcome = command("eval", *world.model, *world.things, "--skip_load")
    assert outcome.code == 2
    assert "zeroshot_classification keeps no features" in outcome.err[-1]
    assert not list(Path().iterdir())


def test_a_folder_that_cannot_be_written_is_said_and_the_result_is_there(flags: list[Any]) -> None:
    Path("file").write_text("")
    outcome = command("eval", *flags, "--feature_root", "file")
    assert outcome.code == 0
    assert sum("features are not kept in file" in line for line in outcome.err) >= 1
    assert read("r.json")["metrics"]


# --- which data


def test_shards_train_the_same_probe_and_count_as_one(world: World, photos: Path) -> None:
    request = dataclasses.replace(request_of(world, photos), data=DataSpec(name=f"folder:{photos}", limit=17))
    whole = evaluate(request, keep_scores=True, progress=False)
    parts = [evaluate(request, shard=(rank, 3), keep_scores=True, progress=False) for rank in range(3)]
    merged = merge([parts[2], parts[0], parts[1]])
    assert merged.metrics == whole.metrics
    assert merged.n_samples == whole.n_samples == 17  # of the test images; the probe is the same with and without limit
    assert (merged.outcomes.scores == whole.outcomes.scores).all()
    assert set(merged.outcomes.details) == {"targets", "predictions"}


def test_several_data_sets_have_a_train_split_each(world: World, photos: Path) -> None:
    other = Path("other")
    colours(other / "learn", 4, seed=5)
    colours(other / "test", 2, seed=6)
    names = [*world.model, "--dataset", f"folder:{photos}", "folder:other", *PROBE, "--output", "{dataset}.json"]
    outcome = command("eval", *names, "--train_split", "train", "learn", "--val_proportion", 0.2)
    assert outcome.code == 0, outcome.err
    assert read("folder_other.json")["request"]["task"]["train_split"] == "learn"
    assert read("folder_other.json")["request"]["task"]["val_proportion"] == 0.2
    outcome = command("eval", *names, "--train_split", "a", "b", "c")
    assert outcome.code == 2
    assert "--train_split a b c: give one for all data sets, or one for each of the 2" in outcome.err[-1]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--train_split", "train", "learn"], "--train_split learn: "),
        (["--train_split", "train", "test", "--val_split", "val", "held"], "--val_split held: "),
    ],
)
def test_a_split_that_one_of_several_data_sets_lacks_is_found_before_the_first_is_evaluated(
    world: World, photos: Path, flags: list[str], says: str
) -> None:
    colours(Path("other") / "test", 1, seed=6)
    names = [*world.model, "--dataset", f"folder:{photos}", "folder:other", *PROBE, "--output", "{dataset}.json"]
    outcome = command("eval", *names, *flags)
    assert (outcome.code, len(outcome.err)) == (2, 1), outcome.err
    assert says in outcome.err[0]
    assert not list(Path().glob("*.json"))


def test_a_flat_folder_has_no_train_split(world: World) -> None:
    outcome = command("eval", *world.model, *world.things, *PROBE)
    assert (outcome.code, len(outcome.err)) == (2, 1)
    assert "--train_split train: " in outcome.err[0]
    assert "has no folder train" in outcome.err[0]


def test_training_on_the_evaluated_split_is_said(flags: list[Any]) -> None:
    outcome = command("eval", *flags, "--train_split", "test")
    assert outcome.code == 0
    assert any("--train_split test is the split that is evaluated" in line for line in outcome.err)


def test_classes_are_matched_by_name_where_a_split_lacks_some(world: World, photos: Path) -> None:
    """Without colour_2, colour_3 would be called 2 by its place; it must be told by its name."""
    fewer = Path("fewer")
    shutil.copytree(photos, fewer)
    shutil.rmtree(fewer / "test" / "colour_2")
    result = evaluate(request_of(world, fewer), keep_scores=True, progress=False)
    all_classes = evaluate(request_of(world, photos), keep_scores=True, progress=False)
    whole = dict(zip(all_classes.outcomes.keys, all_classes.outcomes.scores, strict=True))
    assert len(result.outcomes.keys) == 25
    # The numbers of the classes decide where a probe starts: nearly, not exactly, the same images are right.
    same = [whole[key] == score for key, score in zip(result.outcomes.keys, result.outcomes.scores, strict=True)]
    assert np.mean(same) > 0.8


def test_data_of_several_labels_is_refused(world: World) -> None:
    outcome = command("eval", *world.model, *world.labels, *PROBE, "--train_split", "test")
    assert (outcome.code, len(outcome.err)) == (2, 1)
    assert "has labels; linear_probe needs classes" in outcome.err[0]


def test_data_needs_neither_class_names_nor_prompts(world: World) -> None:
    make_wds(Path("plain"), [0, 1, 2, 0, 1, 2, 0])
    for name in ("classnames.txt", "zeroshot_classification_templates.txt"):
        Path("plain", name).unlink()
    shutil.copytree("plain/test", "plain/train")
    found = evaluated(*world.model, "--dataset", "wds/plain", "--dataset_root", "plain", *PROBE, "--output", "r.json")
    assert found["metrics"]["lp_acc1"] > 0.5  # the train split is the test split under another name
    assert found["metrics"]["lp_acc5"] is None  # of 3 classes


def test_bad_images_of_the_train_split_are_counted_out(world: World, photos: Path) -> None:
    mine = Path("mine")
    shutil.copytree(photos, mine)
    (mine / "train" / "colour_1" / "3.png").write_bytes(b"no image")
    flags = [*world.model, "--dataset", "folder:mine", *PROBE, "--output", "r.json"]
    outcome = command("eval", *flags)
    assert outcome.code == 2
    assert "--skip_bad_images goes on" in outcome.err[-1]
    skipped = evaluated(*flags, "--skip_bad_images")["metrics"]
    assert evaluated(*flags, "--skip_bad_images")["metrics"] == skipped  # from kept features
    assert command("eval", *flags).code == 2  # which do not hide it
    (mine / "train" / "colour_1" / "3.png").unlink()
    assert evaluated(*flags)["metrics"] == skipped


# --- which models


def test_a_timm_tower_is_probed_pruned_and_swept_and_zero_shot_with_it_is_refused(photos: Path) -> None:
    torch.manual_seed(0)
    torch.save(timm.create_model("test_vit").state_dict(), "w.pth")
    flags = ["--model_type", "timm", "--model", "test_vit", "--pretrained", "w.pth", "--dataset", f"folder:{photos}"]
    dense = evaluated(*flags, *PROBE, "--output", "r.json")
    assert dense["cost"]["gmacs"] > 0
    swept = command("sweep", *flags, *PROBE, "--strategies", "tome --r 4", "--out", "out", "--val_proportion", 0.2)
    assert swept.code == 0, swept.err
    assert read("out/tome_r_4.json")["pruning"]["measured"]["tokens_after"] < 101
    assert "lp_acc1" in Path("out/sweep.csv").read_text()
    assert "--task linear_probe --val_proportion 0.2" in Path("out/sweep.csv").read_text()
    outcome = command("eval", *flags)
    assert (outcome.code, len(outcome.err)) == (2, 1)
    assert (
        "--model test_vit: has no text tower, which zeroshot_classification needs; --task linear_probe"
        in outcome.err[0]
    )


def test_features_of_timm_are_those_before_its_classifier() -> None:
    torch.manual_seed(0)
    theirs = timm.create_model("test_vit").eval()
    torch.save(theirs.state_dict(), "w.pth")
    loaded = load(ModelSpec(name="test_vit", pretrained="w.pth", library="timm"), CPU, "fp32")
    images = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs.forward_head(theirs.forward_features(images), pre_logits=True)
        torch.testing.assert_close(loaded.model.encode_image(images), expected)
    torch.save(timm.create_model("test_vit2").state_dict(), "other.pth")
    with pytest.raises(anchorprune.UserError, match=r"other\.pth.*cannot be loaded by timm as test_vit"):
        load(ModelSpec(name="test_vit", pretrained="other.pth", library="timm"), CPU, "fp32")


def beit() -> Any:
    return lively(transformers.BeitModel(transformers.BeitConfig(**VISION)))


@pytest.mark.parametrize("make", [hf_dinov2, hf_vit, beit], ids=["DINOv2", "ViT", "BEiT"])
def test_a_tower_of_transformers_without_texts_is_probed(make: Any, photos: Path) -> None:
    model = make()
    model.save_pretrained("tower")
    size = {"height": 32, "width": 32}
    transformers.ViTImageProcessor(size=size).save_pretrained("tower")
    flags = ["--model_type", "hf", "--model", "tower", "--dataset", f"folder:{photos}", "--output", "r.json"]
    dense = evaluated(*flags, *PROBE)
    pruned = command("eval", *flags, *PROBE, "--enable_pruning", "--strategy", "tome", "--r", 2)
    if make is beit:
        assert pruned.code == 2
        assert "cannot prune BeitModel" in pruned.err[-1]
    else:
        assert pruned.code == 0, pruned.err
        assert read("r.json")["metrics"] != dense["metrics"]
    refused = command("eval", *flags)
    assert refused.code == 2
    assert "--model tower: has no text tower" in refused.err[-1]


def test_the_random_pooler_of_a_vit_has_no_say() -> None:
    model = hf_vit()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(pixel_values=images).last_hidden_state[:, 0]
        torch.testing.assert_close(HuggingFaceImages(model).encode_image(images), expected)


# --- from Python, and as a request


class Squares:
    """Images of a colour each, made on the spot."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed).uniform(0, 40, (12, 3))

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        colour = np.array([0, 100, 200])[i % 3] + self.random[i]
        return Image.fromarray(np.full((32, 32, 3), colour, np.uint8)), i % 3


def test_data_and_models_of_ones_own_are_probed_from_python(world: World) -> None:
    request = Request(
        model=ModelSpec(name=TINY, pretrained=str(world.weights)),
        data=DataSpec(name="squares"),
        task=anchorprune.LinearProbe(train_split="mine"),
        compute=Compute(precision="fp32", num_workers=0),
    )
    own = OwnDataset(Squares(0), splits={"mine": OwnDataset(Squares(1)), "test": OwnDataset(Squares(2))})
    result = anchorprune.evaluate(request, dataset=own, progress=False)
    assert (result.primary, result.config_hash) == (result.metrics["lp_acc1"], None)
    assert result.primary > 0.6
    assert not list(Path().iterdir())  # what no name finds again is not kept
    with pytest.raises(anchorprune.UserError, match="train_split='mine': this data has one split alone"):
        anchorprune.evaluate(request, dataset=Squares(0), progress=False)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"val_split": "val", "val_proportion": 0.1}, "val_proportion=0.1: excludes val_split"),
        ({"val_proportion": 1.0}, "val_proportion=1.0: must be between 0 and 1"),
        ({"fewshot_k": 0}, "fewshot_k=0: must be 1 or more, or -1"),
        ({"fewshot_epochs": 0}, "fewshot_epochs=0: must be 1 or more"),
        ({"fewshot_lr": float("nan")}, "fewshot_lr=nan: must be a number above 0"),
        ({"fewshot_lr": 1e38}, "fewshot_lr=1e.38: must be a number above 0 and below 1e37"),
        ({"normalize": "False"}, "normalize='False': must be True or False"),
    ],
)
def test_a_field_that_cannot_be_is_one_line(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(anchorprune.UserError, match=says):
        LinearProbe(**fields)


def test_what_decides_a_probe_is_in_its_hash(world: World, photos: Path) -> None:
    request = request_of(world, photos)
    compute, data = request.compute, request.data
    for change in (
        {"task": LinearProbe(normalize=False)},
        {"task": LinearProbe(train_split="val")},
        {"compute": dataclasses.replace(compute, batch_size=9)},  # that of the training, too
        {"data": dataclasses.replace(data, seed=1)},
    ):
        assert dataclasses.replace(request, **change).hash() != request.hash()
    for change in ({"feature_root": "f"}, {"skip_load": True}, {"num_workers": 3}):
        changed = dataclasses.replace(request, compute=dataclasses.replace(compute, **change))
        assert changed.hash() == request.hash()
        assert Request.from_dict(json.loads(json.dumps(changed.as_dict()))) == changed


def test_it_is_run_again_and_compared_pair_by_pair(flags: list[Any]) -> None:
    evaluated(*flags, "--normalize", "False", "--save_outcomes")
    again = command("rerun", "r.json")
    assert (again.code, again.out[-1]) == (0, "The metrics are the same.")
    assert "--normalize False" in again.out[0]
    evaluated(*flags[:-1], "p.json", *PRUNED, "--normalize", "False", "--save_outcomes")
    said = "\n".join(command("compare", "r.json", "p.json").out)
    assert "lp_acc1 of B minus A, image by image (n = 30): " in said


def test_a_classifier_to_save_is_refused_before_the_work(flags: list[Any]) -> None:
    outcome = command("eval", *flags, "--save_clf", "c.pt")
    assert outcome.code == 2
    assert "--save_clf c.pt: linear_probe makes no classifier of texts" in outcome.err[-1]
    assert not list(Path().iterdir())
