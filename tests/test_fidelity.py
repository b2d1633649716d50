"""Fidelity: pruned features beside unpruned ones, on pictures of any folder, held against loops in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from support.material import World, command, evaluated, picture, read
from torch import Tensor

import anchorprune
from anchorprune import Compute, DataSpec, ModelSpec, Request, evaluate, merge
from anchorprune.strategies import make_strategy
from anchorprune.tasks.fidelity import Fidelity, mirrored_crop, nearer, shared_neighbours

pytestmark = pytest.mark.usefixtures("here")

FLAGS = ["--task", "fidelity", "--no_amp", "--batch_size", 5]
THIN = ["--enable_pruning", "--strategy", "thin", "--keep_patches", 6]
METRICS = ["cosine", "cosine_p5", "recall@1", "recall@5", "recall@1_pruned", "neighbours@10"]


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures as people have them: some at the top, some in folders that mean nothing."""
    top = tmp_path_factory.mktemp("album")
    for i in range(15):
        folder = top / ("", "2024", "2024/summer")[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        # Of large squares of colour, so that a crop looks like its picture.
        small = np.random.default_rng(i).integers(0, 256, (3, 4, 3), dtype=np.uint8)
        Image.fromarray(small).resize((80, 60), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return top


# --- the numbers


def by_hand(pruned: Tensor, views: Tensor, unpruned: Tensor) -> dict[str, float]:
    """The metrics in loops, in float64."""
    p, v, u = (np.asarray(each, dtype=np.float64) for each in (pruned, views, unpruned))
    n = len(p)
    cosines = [float(p[i] @ u[i]) for i in range(n)]

    def among(query: Any, gallery: Any, i: int, k: int) -> bool:
        return sum(gallery[j] @ query >= gallery[i] @ query for j in range(n) if j != i) < k

    def neighbours(features: Any, i: int) -> set[int]:
        return set(sorted((j for j in range(n) if j != i), key=lambda j: -(features[j] @ features[i]))[:10])

    return {
        "cosine": np.mean(cosines),
        "cosine_p5": float(np.percentile(cosines, 5)),
        "recall@1": np.mean([among(v[i], u, i, 1) for i in range(n)]),
        "recall@5": np.mean([among(v[i], u, i, 5) for i in range(n)]),
        "recall@1_pruned": np.mean([among(v[i], p, i, 1) for i in range(n)]),
        "neighbours@10": np.mean([len(neighbours(p, i) & neighbours(u, i)) / 10 for i in range(n)]),
    }


@pytest.mark.parametrize("pruning", [[], THIN], ids=["unpruned", "pruned"])
def test_metrics_are_those_of_features_computed_one_by_one(world: World, album: Path, pruning: list[Any]) -> None:
    found = evaluated(*world.model, "--dataset", f"folder:{album}", *FLAGS, *pruning, "--output", "r.json")
    model, _, transform = open_clip.create_model_and_transforms(world.model[1], pretrained=world.model[3])
    model.eval()
    photos = [Image.open(path).convert("RGB") for path in sorted(album.rglob("*.png"))]
    views = [mirrored_crop(photo, 0) for photo in photos]

    @torch.no_grad()
    def features(images: list[Image.Image]) -> Tensor:
        return torch.cat([model.encode_image(transform(image)[None], normalize=True) for image in images])

    unpruned = features(photos)
    if pruning:
        anchorprune.prune(model, make_strategy("thin", keep_patches=(6,)))
    expected = by_hand(features(photos), features(views), unpruned)
    assert list(found["metrics"]) == METRICS
    assert found["metrics"] == pytest.approx(expected, abs=1e-5)
    assert found["n_samples"] == 15
    if pruning:
        assert expected["cosine"] < 0.9999
    else:
        assert found["metrics"]["cosine"] == pytest.approx(1, abs=1e-6)
        assert found["metrics"]["neighbours@10"] == 1
        assert found["metrics"]["recall@1"] == found["metrics"]["recall@1_pruned"] > 0.3


def test_features_that_are_all_the_same_find_nothing() -> None:
    same = torch.ones(30, 4) / 2
    assert (nearer(same, same) == 29).all()


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.nn.functional.normalize(torch.randn(40, 8, generator=generator), dim=1) for _ in range(2))
    whole = nearer(a, b), shared_neighbours(a, b)
    monkeypatch.setattr("anchorprune.tasks.fidelity.ROWS", 7)
    assert torch.equal(nearer(a, b), whole[0])
    assert shared_neighbours(a, b) == whole[1]


def test_neighbours_of_few_pictures_are_not_a_number() -> None:
    assert np.isnan(shared_neighbours(torch.eye(10), torch.eye(10)))


# --- the other view


def test_a_view_is_a_mirrored_part_of_35_to_80_percent_of_the_picture() -> None:
    # Red tells the column, green the row: where in the picture each pixel of the view came from.
    ramp = np.zeros((90, 120, 3), dtype=np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(120), np.arange(90)[:, None]
    shares, crops = [], set()
    for seed in range(200):
        view = np.asarray(mirrored_crop(Image.fromarray(ramp), seed)).astype(int)
        assert (np.diff(view[:, :, 0], axis=1) == -1).all()  # columns run backwards, none is left out
        assert (np.diff(view[:, :, 1], axis=0) == 1).all()
        shares.append(view.shape[0] * view.shape[1] / (90 * 120))
        crops.add((view.shape, *view[0, 0]))
    assert 0.34 < min(shares) < 0.4
    assert 0.75 < max(shares) < 0.81
    assert len(crops) > 190


def test_a_view_is_the_same_for_the_same_picture_wherever_it_stands() -> None:
    first, again = (np.asarray(mirrored_crop(picture(1, 64), 3)) for _ in range(2))
    assert np.array_equal(first, again)
    assert first.shape != np.asarray(mirrored_crop(picture(1, 64), 4)).shape


# --- as any other task


@pytest.mark.parametrize("world_size", [2, 3, 20])
def test_shards_give_what_one_process_gives(world: World, album: Path, world_size: int) -> None:
    request = Request(
        model=ModelSpec(name=world.model[1], pretrained=world.model[3]),
        data=DataSpec(name=f"folder:{album}"),
        task=Fidelity(),
        pruning=make_strategy("thin", keep_patches=(6,)),
        compute=Compute(precision="fp32", batch_size=1, num_workers=0),
    )
    whole = evaluate(request, keep_scores=True)
    merged = merge([evaluate(request, shard=(rank, world_size), keep_scores=True) for rank in range(world_size)])
    assert merged.metrics == whole.metrics
    assert merged.outcomes is not None
    assert whole.outcomes is not None
    assert merged.outcomes.keys == whole.outcomes.keys
    assert (merged.outcomes.scores == whole.outcomes.scores).all()
    assert whole.outcomes.scores.mean() == whole.metrics["recall@1_pruned"]


def test_it_is_swept_and_compared_image_by_image(world: World, album: Path) -> None:
    flags = [*world.model, "--dataset", f"folder:{album}", *FLAGS, "--num_workers", 0]
    done = command("sweep", *flags, "--strategies", "thin --keep_patches 6", "random --keep_patches 6", "--out", "out")
    assert done.code == 0, done.err
    assert "recall@1_pruned" in "\n".join(done.out)
    for name, pruning in (("a", []), ("b", THIN)):
        evaluated(*world.model, "--dataset", f"folder:{album}", *FLAGS, *pruning, "--save_outcomes",
                  "--output", f"{name}.json")  # fmt: skip
    compared = command("compare", "a.json", "b.json")
    assert compared.code == 0, compared.err
    assert "n = 15" in "\n".join(compared.out)


def test_data_with_classes_can_be_looked_at_too(world: World) -> None:
    found = evaluated(*world.model, *world.things, *FLAGS, *THIN, "--output", "r.json")
    assert list(found["metrics"]) == METRICS


def test_a_folder_without_classes_cannot_be_classified(world: World, album: Path) -> None:
    flat = album / "2024" / "summer"
    done = command("eval", *world.model, "--dataset", f"folder:{flat}", "--output", "r.json")
    assert done.code == 2
    assert "subfolder" in done.err[-1]
    assert "--task fidelity" in done.err[-1]


def test_the_view_is_a_field_of_the_request(world: World, album: Path) -> None:
    flags = [*world.model, "--dataset", f"folder:{album}", *FLAGS, *THIN, "--output"]
    first, other = evaluated(*flags, "a.json"), evaluated(*flags, "b.json", "--view_seed", 1)
    assert first["metrics"]["cosine"] == other["metrics"]["cosine"]
    assert first["config_hash"] != other["config_hash"]
    assert read("b.json")["request"]["task"] == {"task": "fidelity", "view_seed": 1}
