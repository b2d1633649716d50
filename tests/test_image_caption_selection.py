"""Choosing between captions: the metrics are clip-benchmark's, and where two are equal nobody was right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import open_clip
import pytest
import torch
from clip_benchmark.metrics import image_caption_selection as upstream
from support.models import make_clip
from torch import Tensor

import anchorprune
from anchorprune import Compute, DataSpec, ModelSpec, OwnDataset, Request, Result, UserError, evaluate, merge
from anchorprune.models.base import LoadedModel
from anchorprune.strategies import make_strategy
from anchorprune.tasks.image_caption_selection import ImageCaptionSelection, all_right

TOME = make_strategy("tome", r=3)
WORDS = ["a cat on a dog", "a dog on a cat", "red and blue", "blue and red", "one", "two", "six cats", "a ship"]


def model() -> LoadedModel:
    return LoadedModel(make_clip(), lambda image: image, open_clip.get_tokenizer("ViT-B-32"))


def pixels(*shape: int) -> Tensor:
    return torch.randn(*shape, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def request(pruning: Any = None) -> Request:
    return Request(
        model=ModelSpec(name="mine"),
        data=DataSpec(name="mine"),
        task=ImageCaptionSelection(),
        pruning=pruning,
        compute=Compute(device="cpu", precision="fp32", batch_size=4, num_workers=0),
    )


def own(images: Tensor, texts: Sequence[Sequence[str]]) -> OwnDataset:
    return OwnDataset(list(zip(images, texts, strict=True)), kind="choices")


def asked(images: Tensor, texts: Sequence[Sequence[str]], pruning: Any = None, **options: Any) -> Result:
    return evaluate(request(pruning), model=model(), dataset=own(images, texts), **options)


def pairs(count: int) -> list[list[str]]:
    return [[WORDS[(2 * i) % 8], WORDS[(2 * i + 1 + i // 4) % 8]] for i in range(count)]


def upstreams(images: Tensor, texts: list[list[str]], pruning: Any) -> dict[str, float]:
    loaded = model()
    if pruning:
        anchorprune.prune(loaded.model, pruning)
    batches = [(images[i : i + 4], texts[i : i + 4]) for i in range(0, len(images), 4)]
    return upstream.evaluate(loaded.model, batches, loaded.tokenizer, "cpu", amp=False)


@pytest.mark.parametrize("pruning", [None, TOME], ids=["unpruned", "pruned"])
@pytest.mark.parametrize("shape", [(15, 2), (15,), (15, 3), (15, 1)], ids=["two images", "one", "three", "one of many"])
def test_the_metrics_are_clip_benchmarks(shape: tuple[int, ...], pruning: Any) -> None:
    images, texts = pixels(*shape), pairs(15)
    theirs = upstreams(images, texts, pruning)
    assert asked(images, texts, pruning).metrics == pytest.approx(theirs, abs=1e-6)
    assert any(0 < share < 1 for share in theirs.values())


def test_two_captions_that_are_equal_are_not_right() -> None:
    """clip-benchmark counts them all as right: its argmax takes the first."""
    images, texts = pixels(15), [[word, word] for word in (WORDS * 2)[:15]]
    assert upstreams(images, texts, None)["text_acc"] == 1
    assert asked(images, texts).metrics == {"image_acc": 1.0, "text_acc": 0.0, "acc": 0.0}


def test_samples_may_have_unequal_numbers_of_captions() -> None:
    images, texts = pixels(8), [WORDS[i:] for i in range(7)] + [WORDS[:2]]
    each = [asked(images[i : i + 1], texts[i : i + 1]).metrics["text_acc"] for i in range(8)]
    assert asked(images, texts).metrics["text_acc"] == pytest.approx(sum(each) / 8)
    assert 0 < sum(each) < 8


@pytest.mark.parametrize(
    ("similar", "right"),
    [
        ([[2.0, 1.0], [1.0, 2.0]], True),
        ([[2.0, 3.0], [1.0, 4.0]], False),
        ([[2.0, 2.0], [1.0, 2.0]], False),  # a tie
        ([[2.0, 1.0]], True),
        ([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]], False),  # a caption that is nobody's is nearer
        ([[2.0], [3.0]], True),  # the second image has no caption of its own
    ],
)
def test_right_means_nearer_than_every_other(similar: list[list[float]], right: bool) -> None:
    assert all_right(torch.tensor(similar)) is right


def test_shards_merge_and_scores_are_of_samples() -> None:
    images, texts = pixels(7, 2), pairs(7)
    whole = asked(images, texts, keep_scores=True)
    merged = merge([asked(images, texts, keep_scores=True, shard=(rank, 3)) for rank in (1, 2, 0)])
    assert merged.metrics == whole.metrics
    assert merged.outcomes is not None
    assert whole.outcomes is not None
    assert merged.outcomes.keys == whole.outcomes.keys == tuple(map(str, range(7)))
    assert merged.outcomes.scores.tolist() == whole.outcomes.scores.tolist()
    assert whole.outcomes.scores.mean() == pytest.approx(whole.metrics["acc"])
    assert whole.n_samples == 7


def test_it_is_swept_by_the_share_of_samples_that_are_right_both_ways() -> None:
    swept = anchorprune.sweep(request(), [TOME], model=model(), dataset=own(pixels(7, 2), pairs(7)), progress=False)
    assert "acc %" in swept.to_text()
    assert [point.metric for point in swept.points] == ["acc", "acc"]


def test_attention_is_read_of_every_image_of_a_sample() -> None:
    result = asked(pixels(4, 2), pairs(4), attention_images=3)
    assert result.artifacts["attention"].weights[0].shape[0] == 3


def test_a_sample_without_a_choice_is_refused() -> None:
    with pytest.raises(UserError, match="sample 1 has one text and one image, so no choice"):
        asked(pixels(2), [["a", "b"], ["a"]])


def test_collections_of_it_are_its_own_by_default() -> None:
    from anchorprune.datasets import default_task
    from anchorprune.datasets.names import CHOICES

    assert {default_task(DataSpec(name=name)) for name in CHOICES} == {"image_caption_selection"}
