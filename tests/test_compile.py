"""torch.compile and pruning, in both orders.

The eager backend makes no code: what is tested is what gets traced.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from support.models import make_visual
from support.strategies import KINDS, SMALL, across, every_kind, every_strategy, promised
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

import anchorprune
from anchorprune import UserError
from anchorprune.pruning.record import Record


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


@every_strategy
@torch.no_grad()
def test_a_pruned_model_compiles_into_one_graph(strategy: str, images: Tensor) -> None:
    visual = make_visual()
    with anchorprune.prune(visual, strategy, **SMALL[strategy]) as pruning:
        expected = visual(images)
        kept = pruning.kept
        compiled = torch.compile(visual, backend="eager", fullgraph=True)
        pruning.record = Record()
        torch.testing.assert_close(compiled(images), expected)
        assert torch.equal(pruning.kept, kept)
        first = pruning.kept
        compiled(images.flip(0))
        assert torch.equal(first, kept)  # still valid after a later forward
        assert torch.equal(pruning.kept, kept.flip(0))


@pytest.mark.parametrize(
    ("target", "strategy"), across(["the compiled model", "the model inside"], KINDS, kinds=("coarse", "tome"))
)
@torch.no_grad()
def test_a_model_compiled_before_is_pruned_all_the_same(strategy: str, target: str, images: Tensor) -> None:
    visual = make_visual()
    compiled = torch.compile(visual, backend="eager")
    dense = compiled(images)
    with anchorprune.prune(visual, strategy, **SMALL[strategy]):
        expected = visual(images)
    compiled(images)  # compiled code is there again

    with anchorprune.prune(
        compiled if target == "the compiled model" else visual, strategy, **SMALL[strategy]
    ) as pruning:
        torch.testing.assert_close(compiled(images), expected)
        assert pruning.tokens_after == promised(strategy)
    torch.testing.assert_close(compiled(images), dense)


@torch.no_grad()
def test_a_model_compiled_in_place_is_pruned_and_restored(images: Tensor) -> None:
    visual = make_visual()
    visual.compile(backend="eager")
    dense = visual(images)
    with anchorprune.prune(visual, "anchor", k_anchors=2, top_m=4) as pruning:
        assert not torch.allclose(visual(images), dense)
        assert pruning.tokens_after == 7
    torch.testing.assert_close(visual(images), dense)


@torch.no_grad()
def test_the_attention_of_a_compiled_model_is_that_of_the_model(images: Tensor) -> None:
    expected = anchorprune.get_vision_attention(make_visual(), images)
    visual = make_visual()
    visual.compile(backend="eager")
    dense = visual(images)
    torch.testing.assert_close(anchorprune.get_vision_attention(visual, images), expected)
    torch.testing.assert_close(visual(images), dense)


def test_data_parallel_is_refused() -> None:
    with pytest.raises(UserError, match=r"cannot prune nn.DataParallel"):
        anchorprune.prune(nn.DataParallel(make_visual()), "random", keep_patches=3)


@torch.no_grad()
def test_a_replica_of_a_pruned_model_refuses_to_run_unpruned(images: Tensor) -> None:
    visual = make_visual()
    with anchorprune.prune(visual, "random", keep_patches=3):
        block = visual.transformer.resblocks[1]
        replica = block._replicate_for_data_parallel()  # what nn.DataParallel makes on every device
        replica._modules = block._modules
        with pytest.raises(UserError, match=r"cannot run under nn.DataParallel"):
            replica(torch.randn(1, 17, 32))


def test_torchscript_is_refused(images: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated and says so; traced models are still met
        scripted = torch.jit.trace(make_visual(), images, check_trace=False)
    with pytest.raises(UserError, match=r"TorchScript.*jit=False"):
        anchorprune.prune(scripted, "random", keep_patches=3)


@pytest.mark.parametrize(
    ("order", "strategy"), across(["pruned first", "unpruned first"], KINDS, kinds=("coarse", "tome"))
)
@torch.no_grad()
def test_two_compiled_models_of_one_class_do_not_run_each_others_code(
    strategy: str, order: str, images: Tensor
) -> None:
    dense, pruned = make_visual(), make_visual()
    expected = dense(images)
    with anchorprune.prune(pruned, strategy, **SMALL[strategy]) as pruning:
        expected_pruned = pruned(images)
        calls = [(dense, expected), (pruned, expected_pruned)]
        for model, features in reversed(calls) if order == "pruned first" else calls:
            pruning.record = Record()
            compiled = torch.compile(model, backend="eager", fullgraph=True)
            torch.testing.assert_close(compiled(images), features)
        torch.testing.assert_close(torch.compile(dense, backend="eager")(images), expected)
        torch.testing.assert_close(torch.compile(pruned, backend="eager")(images), expected_pruned)
        assert pruning.tokens_after == promised(strategy)


@every_kind
@torch.no_grad()
def test_a_pruned_model_is_compiled_once(strategy: str, images: Tensor) -> None:
    counter = CompileCounter()
    visual = make_visual()
    with anchorprune.prune(visual, strategy, **SMALL[strategy]) as pruning:
        compiled = torch.compile(visual, backend=counter, fullgraph=True)
        for _ in range(3):
            compiled(images)
            assert pruning.tokens_after == promised(strategy)
    assert counter.frame_count == 1


@torch.no_grad()
def test_no_forward_pass_copies_from_the_host(monkeypatch: pytest.MonkeyPatch, images: Tensor) -> None:
    """What would wait for a GPU, and could not be captured in a CUDA graph."""
    visual = make_visual()
    with anchorprune.prune(visual, "coarse", keep_patches=6) as pruning:
        expected = visual(images)
        kept = pruning.kept
        monkeypatch.setattr(torch, "tensor", None)
        assert torch.equal(visual(images), expected)
        assert torch.equal(pruning.kept, kept)
