"""Many ways of pruning in one pass: what they share is computed once, and nothing else changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import open_clip
import pytest
import torch
from support.models import TOKENS
from support.strategies import SMALL
from torch import Tensor

from anchorprune.evaluation.encoding import Encoder, EncodersInTurns
from anchorprune.evaluation.runtime import Runtime
from anchorprune.pruning.copies import sharing_copy
from anchorprune.strategies import make_strategy, standalone
from anchorprune.strategies.base import Strategy

RUNTIME = Runtime(torch.device("cpu"), "fp32")
WAYS: list[Strategy | None] = [
    make_strategy("anchor", prune_layer=3, k_anchors=2, top_m=3),
    None,
    make_strategy("anchor", prune_layer=4, k_anchors=2, top_m=3),
    make_strategy("tome", r=2),
    make_strategy("random", prune_layers=(4,), keep_patches=(5,)),
]


def encoders(model: Any, ways: Sequence[Strategy | None]) -> list[Encoder]:
    return [Encoder(sharing_copy(model) if way else model, way, RUNTIME) for way in ways]


@torch.no_grad()
def features_of(model: Any, ways: Sequence[Strategy | None], images: Tensor) -> list[Tensor]:
    """In two batches; with one image the FLOPs are counted."""
    in_turns = EncodersInTurns(encoders(model, ways))
    batches = [dict(in_turns(batch)) for batch in (images[:2], images[2:])]
    return [torch.cat([batch[i] for batch in batches]) for i in range(len(ways))]


def test_together_they_give_what_each_gives_alone(clip: open_clip.CLIP, images: Tensor) -> None:
    together = features_of(clip, WAYS, images)
    for way, features in zip(WAYS, together, strict=True):
        assert torch.equal(features, features_of(clip, [way], images)[0])
    assert torch.equal(together[1], features_of(clip, [None], images)[0])  # and the model is left unpruned


@pytest.mark.parametrize("name", sorted(standalone()))
def test_every_strategy_can_go_on_from_the_unpruned_blocks(clip: open_clip.CLIP, images: Tensor, name: str) -> None:
    way = make_strategy(name, **SMALL[name])
    assert torch.equal(features_of(clip, [way, None], images)[0], features_of(clip, [way], images)[0])


def test_each_unpruned_block_runs_once_a_batch(
    clip: open_clip.CLIP, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: Counter[tuple[int, int]] = Counter()
    blocks = list(clip.visual.transformer.resblocks)
    for number, block in enumerate(blocks, 1):
        block.number = number  # which its copies have too
    own = type(blocks[0]).forward

    def counted(block: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if x.shape[1] == TOKENS and len(x) > 1:
            runs[block.number, len(x)] += 1
        return own(block, x, *args, **kwargs)

    monkeypatch.setattr(type(blocks[0]), "forward", counted)
    inputs = [way for way in WAYS if way is None or way.acts == "input"]
    features_of(clip, inputs, images)
    assert runs == Counter({(block, batch): 1 for block in range(1, 5) for batch in (2, 4)})


def test_a_way_counts_with_the_time_of_the_blocks_that_it_shares(
    clip: open_clip.CLIP, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that ticks once for each block that runs."""
    time = 0.0

    def tick(*_: Any) -> None:
        nonlocal time
        time += 1

    for block in clip.visual.transformer.resblocks:
        block.register_forward_pre_hook(tick)
    monkeypatch.setattr("anchorprune.evaluation.encoding.clock", lambda device: time)
    every = encoders(clip, WAYS)
    time = 0.0
    for _ in range(3):
        dict(EncodersInTurns(every)(images))
    assert all(encoder.images_per_second == pytest.approx(len(images) / 4) for encoder in every)
