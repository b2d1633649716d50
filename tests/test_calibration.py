"""Calibration: what pruning does to features, measured on unlabelled images, is undone for others."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.libraries import LIBRARIES
from support.material import TINY, checkpoint, command, evaluated, make_folder, read, register
from support.models import IMAGE_SIZE, make_clip
from torch import Tensor, nn
from torch.nn import functional as F

import anchorprune
from anchorprune import Calibrated, UserError
from anchorprune.alignment import LEAST, RIDGES, Alignment, fit, same_tower, signature
from anchorprune.pruning.budget import gmacs
from anchorprune.strategies import make_strategy
from anchorprune.strategies.base import Strategy
from anchorprune.strategies.calibrated import Calibration
from anchorprune.towers import find_tower

IMAGES = torch.rand(5, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(1))
COARSE = make_strategy("coarse", keep_patches=6)


def features(rows: int, width: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def written(path: Path, model: nn.Module, *strategies: Strategy, width: int | None = None) -> str:
    """A calibration of `model` with random maps."""
    tower = find_tower(model)
    size = width or out_of(model, IMAGES).shape[1]
    maps = tuple(Alignment(features(size, size, 2 + i), features(1, size, 9 + i)[0]) for i in range(len(strategies)))
    found = signature(tower.module)
    assert found is not None
    Calibration(strategies, maps, found).save(path)
    return str(path)


@torch.no_grad()
def out_of(model: nn.Module, images: Tensor) -> Tensor:
    """The features that come out of the image tower."""
    tower, found = find_tower(model), []
    tower.with_features(tower.module(images), lambda f: found.append(f.clone()) or f)
    return found[0]


# --- the fit


def test_the_map_is_the_ridge_regression_towards_the_identity() -> None:
    x, y = features(120), features(120, seed=1) * 0.3 + features(120)
    found = fit(x, y)
    # An oracle of its own: least squares of the centred features with √λ·I below, solved by QR.
    a, b = (each.double() - each.double().mean(dim=0) for each in (x, y))
    weight = (found.ridge * (a.T @ a).trace() / 6) ** 0.5
    rows = torch.eye(6, dtype=torch.float64) * weight
    matrix = torch.linalg.lstsq(torch.cat([a, rows]), torch.cat([b, rows])).solution
    torch.testing.assert_close(found.alignment.matrix.double(), matrix, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.alignment(x.mean(dim=0)), y.mean(dim=0), atol=1e-5, rtol=1e-5)


def test_what_an_affine_map_does_to_all_features_is_undone_on_others() -> None:
    unpruned = features(400)
    pruned = unpruned @ (torch.eye(6) + 0.3 * features(6, seed=3)) + 2
    found = fit(pruned[:300], unpruned[:300])
    assert found.cosine < 0.8
    assert found.aligned > 0.999
    assert found.ridge == min(RIDGES)
    assert F.cosine_similarity(found.alignment(pruned[300:]), unpruned[300:]).min() > 0.99


def test_of_noise_nothing_is_learned() -> None:
    unpruned = features(60, 40)
    found = fit(unpruned + 0.5 * features(60, 40, seed=1), unpruned)
    assert found.ridge >= 1
    assert found.aligned > found.cosine - 0.01


def test_too_few_images_are_refused() -> None:
    with pytest.raises(UserError, match=f"{LEAST - 1} images are too few"):
        fit(features(LEAST - 1), features(LEAST - 1))


# --- the strategy


@pytest.mark.parametrize("make", [make_clip, *LIBRARIES.values()], ids=["open_clip", *LIBRARIES])
def test_the_features_of_each_tower_are_the_pruned_ones_aligned(make: Any, tmp_path: Path) -> None:
    model = make()
    before = out_of(model, IMAGES)
    inner = make_strategy("random", keep_patches=5, draw_seed=0)
    path = written(tmp_path / "c.safetensors", model, inner)
    with anchorprune.prune(model, inner):
        pruned = out_of(model, IMAGES)
    with anchorprune.prune(model, "calibrated", calibration=path) as pruning:
        aligned = out_of(model, IMAGES)
    (alignment,) = Calibration.load(path).alignments
    torch.testing.assert_close(aligned, alignment(pruned))
    assert pruning.tokens_after == pruning.tokens_before - find_tower(model).num_patches + 5
    assert torch.equal(out_of(model, IMAGES), before)


def test_a_budget_that_covers_everything_aligns_nothing(tmp_path: Path) -> None:
    model = make_clip()
    path = written(tmp_path / "c.safetensors", model, make_strategy("thin", keep_patches=16))
    before = out_of(model, IMAGES)
    with pytest.warns(UserWarning, match="nothing is dropped"), anchorprune.prune(model, Calibrated(calibration=path)):
        assert torch.equal(out_of(model, IMAGES), before)


def test_a_target_chooses_among_the_budgets_of_the_file(tmp_path: Path) -> None:
    model = make_clip()
    inner = [make_strategy("thin", keep_patches=n) for n in (12, 8, 4)]
    path = written(tmp_path / "c.safetensors", model, *inner)
    target = gmacs(model, inner[1]) * 1.001
    with anchorprune.prune(model, "calibrated", calibration=path, target_gmacs=target) as pruning:
        assert pruning.strategy == Calibrated(calibration=path, entry=1)


def test_the_alignment_is_counted(tmp_path: Path) -> None:
    model = make_clip()
    path = written(tmp_path / "c.safetensors", model, COARSE)
    extra = gmacs(model, Calibrated(calibration=path)) - gmacs(model, COARSE)
    assert extra * 1e9 == pytest.approx(16 * 16)


def test_copies_and_pickles_stay_aligned(tmp_path: Path) -> None:
    model = make_clip()
    path = Path(written(tmp_path / "c.safetensors", model, COARSE))
    with anchorprune.prune(model, Calibrated(calibration=str(path))):
        aligned, copies = out_of(model, IMAGES), [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    path.unlink()
    for made in copies:
        assert torch.equal(out_of(made, IMAGES), aligned)
        anchorprune.restore(made)
        assert torch.equal(out_of(made, IMAGES), out_of(model, IMAGES))


def test_other_weights_are_refused_and_rounded_ones_are_not(tmp_path: Path) -> None:
    model = make_clip()
    path = written(tmp_path / "c.safetensors", model, COARSE)
    other = make_clip()
    with torch.no_grad():
        for parameter in other.visual.parameters():
            parameter.mul_(1 + 0.2 * torch.rand_like(parameter))
    with pytest.raises(UserError, match="made for other weights than this model's: calibrate it anew"):
        anchorprune.prune(other, "calibrated", calibration=path)
    anchorprune.prune(make_clip().bfloat16(), "calibrated", calibration=path).restore()
    mine, rounded = signature(model.visual), signature(make_clip().half().visual)
    assert mine is not None
    assert rounded is not None
    assert same_tower(mine, rounded)


def test_features_of_another_width_are_refused(tmp_path: Path) -> None:
    model = make_clip()
    path = written(tmp_path / "c.safetensors", model, COARSE, width=7)
    with anchorprune.prune(model, "calibrated", calibration=path), pytest.raises(UserError, match="of width 7"):
        out_of(model, IMAGES)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 100, b"\x08\0\0\0\0\0\0\0{}      "], ids=repr)
def test_what_is_no_calibration_is_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"c\.safetensors.*is no file that `anchorprune calibrate` wrote"):
        anchorprune.prune(make_clip(), "calibrated", calibration=path)


def test_a_missing_file_and_a_missing_entry_are_one_line(tmp_path: Path) -> None:
    model = make_clip()
    with pytest.raises(UserError, match="name a file"):
        anchorprune.prune(model, "calibrated")
    with pytest.raises(UserError, match="No such file"):
        anchorprune.prune(model, "calibrated", calibration=tmp_path / "none")
    path = written(tmp_path / "c.safetensors", model, COARSE)
    with pytest.raises(UserError, match=r"entry=1: .* has 1, counted from 0"):
        anchorprune.prune(model, "calibrated", calibration=path, entry=1)


# --- the command


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], Path]:
    top = tmp_path_factory.mktemp("calibration")
    register(top)
    (top / "flat").mkdir()
    for i in range(60):
        tint = tuple(int(c) for c in torch.randint(0, 256, (3,), generator=torch.Generator().manual_seed(i)))
        Image.new("RGB", (40, 32), tint).save(top / "flat" / f"{i}.png")
    return ["--model", TINY, "--pretrained", checkpoint(top / "w.pt"), "--no_amp"], top


def test_a_flat_folder_calibrates_and_eval_and_encode_take_the_file(world: tuple[list[Any], Path]) -> None:
    model, top = world
    data = ["--dataset", f"folder:{top / 'flat'}"]
    out = top / "c.safetensors"
    idle = ["--task", "zeroshot_retrieval"]  # of an eval line that was typed anew
    made = command(
        "calibrate", *model, *data, *idle, "--num_workers", 0, "--strategies", "coarse --keep_patches 4", "--out", out
    )
    assert made.code == 0, made.err
    assert made.out[0] == "1 way of pruning to calibrate"
    assert "60 images" in made.out[-3]
    assert str(out) in made.out[-1]
    strategy = ["--strategy", "calibrated", "--calibration", out]
    for pruning, name in ((["--strategy", "coarse", "--keep_patches", 4], "raw.json"), (strategy, "aligned.json")):
        evaluated(*model, *data, "--task", "fidelity", "--enable_pruning", *pruning, "--output", top / name)
    raw, aligned = (read(top / name) for name in ("raw.json", "aligned.json"))
    assert aligned["metrics"]["cosine"] > raw["metrics"]["cosine"]
    assert aligned["pruning"]["calibration"] == str(out)
    encoded = command("encode", "--input", top / "flat", *model, *strategy, "--num_workers", 0, "--out", top / "e")
    assert encoded.code == 0, encoded.err


def test_another_content_of_the_file_is_another_request(world: tuple[list[Any], Path], tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    request = anchorprune.Request(
        model=anchorprune.ModelSpec(name=TINY),
        data=anchorprune.DataSpec(name=f"folder:{make_folder(tmp_path / 'data')}"),
        pruning=Calibrated(calibration=str(path)),
    )
    written(path, make_clip(), COARSE)
    first = request.hash()
    written(path, make_clip(), make_strategy("coarse", keep_patches=5))
    assert request.hash() != first


def test_a_calibration_is_not_calibrated_again(world: tuple[list[Any], Path]) -> None:
    model, top = world
    spec = f"calibrated --calibration {top / 'c.safetensors'}"
    again = command(
        "calibrate", *model, "--dataset", f"folder:{top / 'flat'}", "--strategies", spec, "--out", top / "d"
    )
    assert again.code == 2
    assert "calibrate the strategies that it is made of" in again.err[0]


@pytest.mark.parametrize("made", ["calibrated", "cascade"])
def test_a_calibration_of_what_is_made_of_others_is_refused_for_it_could_name_itself(made: str, tmp_path: Path) -> None:
    model = make_clip()
    path = written(tmp_path / "c.safetensors", model, COARSE)
    inner = {
        "calibrated": {"calibration": path},
        "cascade": {"stages": (f"calibrated --calibration {path}", "unpruned")},
    }
    written(tmp_path / "c.safetensors", model, make_strategy(made, **inner[made]))
    with pytest.raises(UserError, match=rf"holds the strategy '{made}', which is made of others"):
        anchorprune.prune(model, "calibrated", calibration=path)


def test_no_output_is_the_weights_or_the_calibration(world: tuple[list[Any], Path], tmp_path: Path) -> None:
    model, top = world
    data, weights = ["--dataset", f"folder:{top / 'flat'}"], model[model.index("--pretrained") + 1]
    before = weights.read_bytes()
    refused = command("calibrate", *model, *data, "--out", weights)
    assert refused.code == 2
    assert "--out" in refused.err[0]
    assert weights.read_bytes() == before
    path = tmp_path / "c.safetensors"
    made = command(
        "calibrate",
        *model,
        *data,
        "--num_workers",
        0,
        "--strategies",
        "coarse --keep_patches 4",
        "--out",
        path,
        "--quiet",
    )
    assert (made.code, made.out, made.err) == (0, [], [])
    content = path.read_bytes()
    pruning = ["--enable_pruning", "--strategy", "calibrated", "--calibration", path]
    refused = command("eval", *model, *data, "--task", "fidelity", *pruning, "--output", path)
    assert refused.code == 2
    assert "--output" in refused.err[0]
    assert path.read_bytes() == content
