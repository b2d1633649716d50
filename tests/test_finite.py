"""Features and classifiers that are not finite are refused with counts: any metric would rank them in silence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.material import PRUNED, TINY, World, command
from torch import Tensor

from anchorprune.evaluation.encoding import Encoder
from anchorprune.evaluation.runtime import Runtime
from anchorprune.models.texts import cached

pytestmark = pytest.mark.usefixtures("here")


def refused(world: World, *flags: object) -> str:
    """The line that an evaluation by the weights in w.pt ends with."""
    model = ["--model", TINY, "--pretrained", "w.pt"]
    outcome = command("eval", *model, *world.things, "--num_workers", 0, "--output", "r.json", *flags)
    assert outcome.code == 2, outcome
    assert not Path("r.json").exists()
    [line] = outcome.err
    return line


def changed(world: World, name: str, change: Callable[[Tensor], Any]) -> None:
    """Puts the world's weights into w.pt, with another tensor of that name."""
    state = torch.load(world.weights, weights_only=True)
    change(state[name])
    torch.save(state, "w.pt")


@pytest.mark.parametrize("way", [[], PRUNED])
@pytest.mark.parametrize("name", ["visual.ln_post.weight", "ln_final.weight", "logit_scale"])
def test_one_nan_in_either_tower_is_found_before_the_work(world: World, way: list[str], name: str) -> None:
    changed(world, name, lambda w: w.view(-1)[0].fill_(torch.nan))
    line = refused(world, "--no_amp", *way)
    assert f"--pretrained w.pt: numbers that are not finite: its weights hold 1 such numbers ({name})" in line


def test_one_nan_in_a_model_of_ones_own_ends_the_evaluation_and_is_found() -> None:
    model = torch.nn.Linear(12, 4)
    model.encode_image = lambda images: model(images.flatten(1))
    with torch.no_grad():
        model.weight[0, 0] = torch.nan
    with torch.no_grad(), pytest.raises(ValueError, match=r"3 of 3 images .* weights hold 1 such numbers \(weight\)"):
        Encoder(model, None, Runtime(torch.device("cpu"), "fp32")).encode(torch.ones(3, 3, 2, 2))


def test_an_overflow_names_the_precision(world: World) -> None:
    changed(world, "visual.ln_post.weight", lambda w: w.fill_(6e4))
    line = refused(world, "--precision", "fp16")
    assert "--precision fp16: 24 of 24 images" in line
    assert "give bf16 or fp32" in line


def test_weights_that_overflow_when_they_are_cast_name_the_precision_too(world: World) -> None:
    changed(world, "visual.proj", lambda w: w.fill_(1e6))
    assert "hold 512 such numbers (visual.proj); give weights that are whole, or fp32" in refused(
        world, "--precision", "fp16"
    )


def test_features_whose_length_overflows_are_refused_too(world: World) -> None:
    changed(world, "visual.proj", lambda w: w.mul_(1e30))  # each number is finite, the sum of their squares is not
    assert "--precision fp32: 24 of 24 images" in refused(world, "--no_amp")


def test_an_overflow_in_the_text_tower_ends_the_evaluation(world: World) -> None:
    changed(world, "ln_final.weight", lambda w: w.fill_(3e38))
    assert "6 of 6 texts have embeddings that are not finite" in refused(world, "--no_amp")


def test_a_saved_classifier_that_is_not_finite_is_refused(world: World) -> None:
    changed(world, "ln_final.weight", lambda w: w)
    classifier = torch.ones(16, 6)
    classifier[3, 1] = torch.inf
    torch.save(classifier, "clf.pt")
    assert "--load_clfs clf.pt: 1 of its 6 classes" in refused(world, "--load_clfs", "clf.pt")


def test_a_kept_classifier_that_is_not_finite_is_built_again(tmp_path: Path) -> None:
    torch.save(torch.full((2, 2), torch.nan), tmp_path / "key.pt")
    assert torch.equal(cached(str(tmp_path), "key", lambda: torch.eye(2)), torch.eye(2))


def test_another_splits_features_are_looked_at_as_well() -> None:
    class Model(torch.nn.Module):
        def encode_image(self, images: Tensor) -> Tensor:
            return images.flatten(1)

    encoder = Encoder(Model(), None, Runtime(torch.device("cpu"), "fp32"))
    images = torch.ones(3, 3, 2, 2)
    encoder.encode(images)
    images[1, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"1 of 3 images .* the pixels of 1 of them are not finite already"):
        encoder.encode(images)
