"""The classifier and the metrics are clip-benchmark's: its own functions are the oracle."""

from __future__ import annotations

import math
from pathlib import Path

import open_clip
import pytest
import torch
from clip_benchmark.metrics import zeroshot_classification as upstream
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score

from anchorprune import UserError
from anchorprune.datasets.sampling import Batch
from anchorprune.tasks import zeroshot_classification as ours


@st.composite
def predictions(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Logits `[n, classes]` without ties, targets and a batch size."""
    n, classes = draw(st.integers(1, 40)), draw(st.integers(2, 12))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    logits = torch.randn(n, classes, generator=generator, dtype=torch.float64).float()
    return logits, torch.randint(classes, (n,), generator=generator), draw(st.integers(1, 40))


def batch_of(targets: torch.Tensor, indices: torch.Tensor) -> Batch:
    return Batch(None, targets, indices, [str(i) for i in indices.tolist()], [])


def stream(logits: torch.Tensor, target: torch.Tensor, batch: int) -> list[tuple[torch.Tensor, Batch]]:
    parts = (whole.split(batch) for whole in (logits, target, torch.arange(len(logits))))
    return [(out, batch_of(targets, indices)) for out, targets, indices in zip(*parts, strict=True)]


def measured(batches: list, classifier: torch.Tensor, *, multilabel: bool) -> dict[str, float]:
    zeroshot = ours.ZeroShot(classifier, multilabel)
    for out, batch in batches:
        zeroshot.update(out, batch)
    return zeroshot.compute()


@pytest.mark.filterwarnings("ignore::UserWarning")  # scikit-learn, of classes that do not occur
@pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")  # upstream's accuracy()
@settings(max_examples=150, deadline=None)
@given(predictions())
def test_accuracy_and_recall_equal_upstreams_for_any_batching(case: tuple) -> None:
    logits, target, batch = case
    metrics = measured(stream(logits, target, batch), torch.eye(logits.shape[1]) / 100, multilabel=False)
    assert metrics["acc1"] == pytest.approx(upstream.accuracy(logits, target, topk=(1,))[0])
    if logits.shape[1] >= 5:
        assert metrics["acc5"] == pytest.approx(upstream.accuracy(logits, target, topk=(5,))[0])
    else:
        assert math.isnan(metrics["acc5"])
    assert metrics["mean_per_class_recall"] == pytest.approx(balanced_accuracy_score(target, logits.argmax(1)))


@settings(max_examples=100, deadline=None)
@given(predictions(), st.integers(0, 2**31))
def test_mean_average_precision_equals_upstreams(case: tuple, seed: int) -> None:
    logits, _, batch = case
    target = torch.rand(logits.shape, generator=torch.Generator().manual_seed(seed)).lt(0.3).float()
    metrics = measured(stream(logits, target, batch), torch.eye(logits.shape[1]) / 100, multilabel=True)
    expected = upstream.average_precision_per_class(logits, target).mean().item()
    assert metrics["mean_average_precision"] == pytest.approx(expected, abs=1e-6)


CLASSES = ["cat", "dog", "a very long class name indeed", "no"]
TEMPLATES = ["a photo of a {c}.", "{c}", "an etching of one or several {c}s."]


@pytest.mark.parametrize(
    "templates",
    [TEMPLATES, {name: [f"{name} {i}" for i in range(1 + j)] for j, name in enumerate(CLASSES)}],
    ids=["for all classes", "for each class"],
)
def test_the_classifier_equals_upstreams(clip: open_clip.CLIP, templates: object) -> None:
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    expected = upstream.zero_shot_classifier(clip, tokenizer, CLASSES, templates, "cpu", amp=False)
    for batch_size in (2, 256):
        built = ours.build_classifier(clip, tokenizer, CLASSES, templates, torch.device("cpu"), batch_size)
        torch.testing.assert_close(built, expected, atol=1e-5, rtol=0)


def test_a_class_without_prompts_is_named(clip: open_clip.CLIP) -> None:
    with pytest.raises(UserError, match="no prompts for class 'dog'"):
        ours.build_classifier(
            clip, open_clip.get_tokenizer("ViT-B-32"), ["cat", "dog"], {"cat": ["a cat"]}, torch.device("cpu")
        )


def test_loaded_classifiers_are_averaged(tmp_path: Path) -> None:
    parts = torch.randn(2, 6, 4)
    paths = [str(tmp_path / f"{i}.pt") for i in range(2)]
    for part, path in zip(parts, paths, strict=True):
        torch.save(part.half(), path)
    torch.testing.assert_close(ours.load_classifiers(paths, 4), parts.half().float().mean(0))


def test_a_classifier_that_does_not_fit_is_named(tmp_path: Path) -> None:
    path = str(tmp_path / "clf.pt")
    torch.save(torch.randn(6, 3), path)
    with pytest.raises(UserError, match=r"clf.pt': holds 3 classes .* the data set has 4"):
        ours.load_classifiers([path], 4)
    with pytest.raises(UserError, match="features of width 6, the model's have 8"):
        ours.ZeroShot(ours.load_classifiers([path], 3), False).update(
            torch.randn(2, 8), batch_of(torch.zeros(2).long(), torch.arange(2))
        )
    torch.save({"a": torch.ones(1)}, path)
    with pytest.raises(UserError, match="must hold one tensor"):
        ours.load_classifiers([path], 4)
    Path(path).write_bytes(b"PK\3\4 not a checkpoint")
    with pytest.raises(UserError, match=r"clf.pt': is no saved tensor"):
        ours.load_classifiers([path], 4)
    with pytest.raises(UserError, match="no such file"):
        ours.load_classifiers([str(tmp_path / "gone.pt")], 4)
