"""Zero-shot retrieval: recall is clip-benchmark's, whose own function is the oracle, and ranks are a stable sort's."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import open_clip
import pytest
import torch
from clip_benchmark.metrics import zeroshot_retrieval as upstream
from hypothesis import given, settings
from hypothesis import strategies as st
from support.material import CAPTIONS, PRUNED, World, command, evaluated, picture, read
from support.models import make_clip
from torch import Tensor

import anchorprune
from anchorprune import Compute, DataSpec, ModelSpec, OwnDataset, Request, UserError, evaluate, merge
from anchorprune.evaluation.outcomes import path_for
from anchorprune.evaluation.outcomes import read as read_outcomes
from anchorprune.models.base import LoadedModel
from anchorprune.strategies import make_strategy
from anchorprune.studies import tune
from anchorprune.tasks.zeroshot_retrieval import ZeroShotRetrieval, retrieval_ranks

pytestmark = pytest.mark.usefixtures("here")

FLAGS = ["--no_amp", "--batch_size", 3, "--recall_k", 1, 2, 3]
TEXTS = sum(map(len, CAPTIONS))


# --- ranks


def sorted_ranks(images: Tensor, texts: Tensor, owner: Tensor) -> tuple[list[int], list[int]]:
    """By a stable sort of all similarities."""
    similar = texts @ images.T
    of_texts = similar.sort(dim=1, descending=True, stable=True).indices.tolist()
    of_images = similar.sort(dim=0, descending=True, stable=True).indices.T.tolist()
    owners = owner.tolist()
    first = [
        min([order.index(t) for t, own in enumerate(owners) if own == i], default=len(texts))
        for i, order in enumerate(of_images)
    ]
    return [order.index(own) for order, own in zip(of_texts, owners, strict=True)], first


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_ranks_are_those_of_a_stable_sort_ties_and_all_whatever_the_tile(data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    images, texts = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 25))
    owner = torch.randint(images, (texts,), generator=generator).sort().values  # some images have no text
    # Whole numbers, few of them: products are exact, and many are equal.
    features = [torch.randint(-1, 2, (n, 3), generator=generator).float() for n in (images, texts)]
    found = retrieval_ranks(*features, owner, tile=data.draw(st.integers(1, 30)))
    assert tuple(ranks.tolist() for ranks in found) == sorted_ranks(*features, owner)


def test_collapsed_features_find_no_more_than_chance_would() -> None:
    same = torch.ones(1, 4)
    of_texts, of_images = retrieval_ranks(same.expand(10, 4), same.expand(20, 4), torch.arange(10).repeat_interleave(2))
    assert (of_texts < 1).sum() == 2
    assert (of_images < 1).sum() == 1


# --- against clip-benchmark


def upstreams(world: World, *k: int, pruned: bool = False) -> dict[str, float]:
    model, _, transform = open_clip.create_model_and_transforms(world.model[1], pretrained=world.model[3])
    if pruned:
        anchorprune.prune(model, make_strategy("anchor", k_anchors=3, top_m=4))
    images = torch.stack([transform(picture(i)) for i in range(len(CAPTIONS))])
    batches = [(images[i : i + 3], CAPTIONS[i : i + 3]) for i in (0, 3, 6)]
    tokenizer = open_clip.get_tokenizer(world.model[1])
    return upstream.evaluate(model.eval(), batches, tokenizer, "cpu", amp=False, recall_k_list=list(k))


@pytest.mark.parametrize("pruning", [[], PRUNED], ids=["unpruned", "pruned"])
def test_recall_is_clip_benchmarks(world: World, pruning: list[str]) -> None:
    result = evaluated(*world.model, *world.captioned, *FLAGS, *pruning, "--output", "r.json")
    assert result["task"] == "zeroshot_retrieval"  # the data set's files say so, its name does not
    theirs = upstreams(world, 1, 2, 3, pruned=bool(pruning))
    assert list(result["metrics"]) == list(theirs)
    assert result["metrics"] == pytest.approx(theirs, abs=1e-6)
    assert 0 < theirs["image_retrieval_recall@2"] < 1


def test_all_are_found_among_more_than_there_are(world: World) -> None:
    result = evaluated(*world.model, *world.captioned, "--no_amp", "--recall_k", 100, "--output", "r.json")
    assert result["metrics"] == {"image_retrieval_recall@100": 1.0, "text_retrieval_recall@100": 1.0}


# --- as a task


def request(world: World, **fields: Any) -> Request:
    return Request(
        model=ModelSpec(name=world.model[1], pretrained=world.model[3]),
        data=DataSpec(name="wds/captioned", root=str(world.folder / "wds-captioned")),
        task=ZeroShotRetrieval(recall_k=(2, 1)),
        compute=Compute(device="cpu", precision="fp32", batch_size=2, num_workers=0),
        **fields,
    )


def test_shards_merge_into_the_result_of_one_process(world: World) -> None:
    whole = evaluate(request(world), keep_scores=True)
    parts = [evaluate(request(world), shard=(rank, 3), keep_scores=True) for rank in range(3)]
    merged = merge([parts[2], parts[0], parts[1]])
    assert merged.metrics == whole.metrics
    assert merged.outcomes is not None
    assert whole.outcomes is not None
    assert merged.outcomes.keys == whole.outcomes.keys
    assert merged.outcomes.scores.tolist() == whole.outcomes.scores.tolist()


def test_captions_are_encoded_once_for_all_ways_of_pruning(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = []
    real = open_clip.CLIP.encode_text
    monkeypatch.setattr(open_clip.CLIP, "encode_text", lambda self, text: encoded.append(len(text)) or real(self, text))
    dense = request(world)
    both = evaluate([dense, request(world, pruning=make_strategy("tome", r=2))])
    assert sum(encoded) == TEXTS
    assert both[0].metrics == evaluate(dense).metrics


def test_each_captions_outcome_is_kept_and_compared(world: World) -> None:
    dense = evaluated(*world.model, *world.captioned, *FLAGS, "--save_outcomes", "--output", "dense.json")
    evaluated(*world.model, *world.captioned, *FLAGS, *PRUNED, "--save_outcomes", "--output", "pruned.json")
    outcomes, _ = read_outcomes(path_for("dense.json"))
    assert outcomes.keys[:3] == ("0.tar/s0#0", "0.tar/s1#0", "0.tar/s1#1")
    assert len(outcomes.keys) == TEXTS
    assert outcomes.details["samples"].tolist() == [i for i, own in enumerate(CAPTIONS) for _ in own]
    assert outcomes.scores.mean() == pytest.approx(dense["metrics"]["image_retrieval_recall@1"])
    said = " ".join(" ".join(command("compare", "dense.json", "pruned.json").out).split())
    # Three captions a way are found or none, so that the two may well agree.
    assert f"query by query (n = {TEXTS})" in said or f"right on the same queries (n = {TEXTS})" in said
    assert "Not" not in said
    assert "Paired where" not in said  # all of both are


@pytest.mark.usefixtures("few_suffice")
def test_it_is_swept_and_tuned_by_its_own_metric(world: World) -> None:
    flags = [*world.model, *world.captioned, *FLAGS, "--num_workers", 0]
    swept = command("sweep", *flags, "--strategies", "tome --r 2", "--out", "out")
    assert swept.code == 0, swept.err
    assert "image_retrieval_recall@1 %" in "\n".join(swept.out)
    assert "acc1" not in "\n".join(swept.out) + Path("out/report.html").read_text()
    assert "image_retrieval_recall@1_low" in Path("out/sweep.csv").read_text().splitlines()[0]
    assert "--task zeroshot_retrieval --recall_k 1 2 3" in Path("out/sweep.csv").read_text()
    assert read("out/tome_r_2.json")["n_samples"] == len(CAPTIONS)
    tuned = command("tune", *flags, "--max_drop", 100, "--strategies", "tome", "--quiet", "--calibration", 1)
    assert tuned.code == 0, tuned.err
    assert any("points of image_retrieval_recall@1" in line for line in tuned.out)


@pytest.mark.usefixtures("few_suffice")
@pytest.mark.filterwarnings("ignore:tome is left out")
def test_tuning_judges_by_the_captions_of_images_that_it_did_not_search_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a number for each image: what its captions lose is no independent trial of each."""
    seen: list[tuple[Any, ...]] = []
    real = tune._tried
    monkeypatch.setattr(tune, "_tried", lambda *given: seen.append(given) or real(*given))
    found = tune.tune(request(world), max_drop=100, strategies=["tome"], calibration=1, progress=False)
    assert found.best is not None
    _, dense, own, images = next(given for given in seen if given[0].way == found.best.way)
    assert images == [i for i, captions in enumerate(CAPTIONS) for _ in captions]
    assert len(found.best.unseen) == len(CAPTIONS[1::2])
    lost = [100 * (a - b) for a, b, image in zip(dense, own, images, strict=True) if image % 2]
    assert fmean(found.best.unseen) == pytest.approx(fmean(lost))


def test_it_is_run_again_from_its_result(world: World) -> None:
    evaluated(*world.model, *world.captioned, *FLAGS, "--output", "r.json")
    again = command("rerun", "r.json")
    assert (again.code, again.out[-1]) == (0, "The metrics are the same.")


def own_model() -> LoadedModel:
    return LoadedModel(make_clip(), lambda image: image, open_clip.get_tokenizer("ViT-B-32"))


def own(captions: list[list[str]]) -> OwnDataset:
    images = torch.randn(len(captions), 3, 32, 32, generator=torch.Generator().manual_seed(3))
    return OwnDataset(list(zip(images, captions, strict=True)), kind="captions")


def asked(**fields: Any) -> Request:
    compute = Compute(device="cpu", precision="fp32", num_workers=0)
    return Request(model=ModelSpec(name="mine"), data=DataSpec(name="mine"), compute=compute, **fields)


def test_data_and_a_model_of_ones_own_are_taken_from_python() -> None:
    result = evaluate(asked(task=ZeroShotRetrieval(recall_k=4)), model=own_model(), dataset=own(CAPTIONS))
    assert result.metrics.keys() == {"image_retrieval_recall@4", "text_retrieval_recall@4"}
    assert json.loads(json.dumps(result.to_dict()))["request"]["task"]["recall_k"] == [4]


def test_an_image_without_a_caption_is_refused() -> None:
    with pytest.raises(UserError, match="sample 1 has no text"):
        evaluate(asked(task=ZeroShotRetrieval()), model=own_model(), dataset=own([["a"], [], ["b"]]))


def test_a_model_without_a_text_tower_is_refused() -> None:
    with pytest.raises(UserError, match="has no text tower"):
        evaluate(
            asked(task=ZeroShotRetrieval()),
            model=LoadedModel(make_clip(), lambda image: image),
            dataset=own(CAPTIONS),
        )


def test_class_data_is_refused_in_one_line(world: World) -> None:
    refused = command("eval", *world.model, *world.three, "--task", "zeroshot_retrieval", "--output", "r.json")
    assert (refused.code, len(refused.err)) == (2, 1)
    assert "--dataset wds/three: has classes; zeroshot_retrieval needs captions" in refused.err[0]


@pytest.mark.parametrize("k", [(), (0,), (1, -5)])
def test_a_k_below_one_is_refused(k: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"recall_k=.*from 1 up"):
        ZeroShotRetrieval(recall_k=k)
