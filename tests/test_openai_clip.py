"""OpenAI's own `clip` package; that every strategy runs in its towers stands in test_libraries.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.libraries import clip, openai_clip
from support.strategies import SMALL
from torch import Tensor, nn

import anchorprune
from anchorprune import UserError
from anchorprune.strategies import standalone


class Wrapped(nn.Module):
    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual


@pytest.fixture
def archive(tmp_path: Path, images: Tensor) -> Path:
    """A JIT archive as OpenAI publishes its weights."""
    path = tmp_path / "ViT.pt"
    texts = torch.randint(0, 99, (2, 8))
    torch.jit.trace(openai_clip(), (images[:2], texts)).save(path)
    return path


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore::torch.jit.TracerWarning")  # deprecated, and talkative
def test_a_jit_model_is_refused_and_prunes_once_loaded_without_jit(archive: Path, images: Tensor) -> None:
    jit = torch.jit.load(archive)  # what clip.load gives with jit=True
    for model in (jit, jit.visual, Wrapped(jit.visual)):
        with pytest.raises(UserError, match=r"cannot prune a TorchScript model: .*; load it with jit=False"):
            anchorprune.prune(model, "random", keep_patches=3)
    model, _ = clip.load(str(archive), device="cpu", jit=False)
    with anchorprune.prune(model, "random", keep_patches=3) as pruning:
        model.encode_image(images)
    assert (pruning.tokens_before, pruning.tokens_after) == (17, 4)


def test_a_resnet_of_it_is_refused_with_the_reason() -> None:
    with pytest.raises(UserError, match="cannot prune ModifiedResNet: it is a ResNet, and convolutions need the whole"):
        anchorprune.prune(openai_clip((1, 1, 1, 1)), "random", keep_patches=3)


@pytest.mark.parametrize("strategy", sorted(standalone()))
@torch.no_grad()
def test_half_precision_weights_keep_the_same_tokens(strategy: str, images: Tensor) -> None:
    """Its `load` gives float16 on a GPU, with norms and embeddings in float32."""
    full, half = openai_clip(), openai_clip()
    clip.model.convert_weights(half)
    try:
        half.encode_image(images)
    except RuntimeError as error:
        pytest.skip(f"this torch has no float16 on a CPU for all that the model does: {error}")
    with (
        anchorprune.prune(full, strategy, **SMALL[strategy]) as expected,
        anchorprune.prune(half, strategy, **SMALL[strategy]) as pruning,
    ):
        features = half.encode_image(images)
        assert features.dtype == torch.float16
        torch.testing.assert_close(features.float(), full.encode_image(images), rtol=0.02, atol=0.05)
    assert torch.equal(pruning.kept, expected.kept)
