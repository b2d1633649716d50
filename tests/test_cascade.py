"""A cascade: every image by the first stage, and those whose two nearest texts are close by the next."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from support.encoded import embeddings, make_photos, tiny_model
from support.encoded import request as to_encode
from support.libraries import hf_clip, hf_projection
from support.material import World, command, evaluated, read
from support.models import EMBED, make_visual
from torch import Tensor, nn
from torch.nn import functional as F

import anchorprune
from anchorprune import Cascade, Coarse, Compute, DataSpec, ModelSpec, Request, Thin, Tome, UserError
from anchorprune.evaluation.engine import evaluate
from anchorprune.evaluation.merging import merge
from anchorprune.pruning.budget import gmacs, solve
from anchorprune.pruning.cost import image_tower_flops
from anchorprune.strategies import parse
from anchorprune.strategies.base import Strategy
from anchorprune.tasks.captioning import Captioning

pytestmark = pytest.mark.usefixtures("here")

CHEAP, FINER = "coarse --keep_patches 4", "tome --r 2"
TWO = (CHEAP, "unpruned")
THREE = (CHEAP, FINER, "unpruned")
BUNDLED = ["--model", "anchorprune-demo", "--pretrained", "bundled", "--dataset", "bundled", "--no_amp"]
ON = ["--enable_pruning", "--strategy", "cascade"]


@pytest.fixture
def bank() -> Tensor:
    """`[D, 5]`"""
    return F.normalize(torch.randn(EMBED, 5, generator=torch.Generator().manual_seed(2)), dim=0)


@pytest.fixture
def texts(bank: Tensor) -> str:
    torch.save(bank, "texts.pt")
    return "texts.pt"


@torch.no_grad()
def alone(model: Any, stage: str, images: Tensor) -> Tensor:
    """What the model gives by one stage for all images."""
    if stage == "unpruned":
        return model.encode_image(images)
    with anchorprune.prune(model, parse(stage).strategy):
        return model.encode_image(images)


def margin(feature: Tensor, bank: Tensor) -> float:
    first, second = sorted((F.normalize(feature.double(), dim=0) @ bank.double()).tolist(), reverse=True)[:2]
    return first - second


GoOn = Callable[[Sequence[tuple[float, int]]], Sequence[tuple[float, int]]]


def by_hand(model: Any, stages: Sequence[str], images: Tensor, bank: Tensor, go_on: GoOn) -> tuple[Tensor, list[int]]:
    """Of each image the feature of the last stage that it came to, and how many images each stage had."""
    features = [alone(model, stage, images) for stage in stages]
    out, waiting, counts = features[0].clone(), list(range(len(images))), [len(images)]
    for before, after in pairwise(features):
        waiting = [i for _, i in go_on(sorted((margin(before[i], bank), i) for i in waiting))]
        out[waiting] = after[waiting]
        counts.append(len(waiting))
    return out, counts


@pytest.mark.parametrize("stages", [TWO, THREE])
@pytest.mark.parametrize("share", [0.5, 0.7, None])
@torch.no_grad()
def test_unsure_images_have_the_features_of_later_stages(
    clip: open_clip.CLIP, images: Tensor, texts: str, bank: Tensor, stages: Any, share: float | None
) -> None:
    """Those of least margin; without a share all below a margin, here between the third image's and the fourth's."""
    ranked = sorted(margin(feature, bank) for feature in alone(clip, CHEAP, images))
    least = (ranked[2] + ranked[3]) / 2

    def go_on(ranked: Sequence[tuple[float, int]]) -> Sequence[tuple[float, int]]:
        if share is None:
            return [each for each in ranked if each[0] < least]
        return ranked[: int(10 * share) * len(ranked) // 10]

    expected, counts = by_hand(clip, stages, images, bank, go_on)
    how = {"min_margin": least} if share is None else {"share": share}
    with anchorprune.prune(clip, Cascade(stages=stages, gate_texts=texts, **how)) as pruning:
        torch.testing.assert_close(clip.encode_image(images), expected)
    assert 0 < counts[1] < 6
    assert pruning.shares == [count / 6 for count in counts]


@torch.no_grad()
def test_a_share_of_0_is_the_first_stage_and_of_1_the_last_bit_for_bit(
    clip: open_clip.CLIP, images: Tensor, texts: str
) -> None:
    for share, stage in ((0.0, CHEAP), (1.0, "unpruned")):
        with anchorprune.prune(clip, Cascade(stages=THREE, share=share, gate_texts=texts)):
            assert torch.equal(clip.encode_image(images), alone_of(clip, stage, images))


def alone_of(pruned: Any, stage: str, images: Tensor) -> Tensor:
    """`alone`, of a copy of a model that is pruned at the moment."""
    model = copy.deepcopy(pruned)
    anchorprune.restore(model)
    return alone(model, stage, images)


@torch.no_grad()
def test_sure_images_are_as_the_first_stage_gave_them_and_the_order_of_a_batch_does_not_matter(
    clip: open_clip.CLIP, images: Tensor, bank: Tensor, texts: str
) -> None:
    first = alone(clip, CHEAP, images)
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    sure = sorted(range(6), key=lambda i: margin(first[i], bank))[2:]
    with anchorprune.prune(clip, Cascade(stages=TWO, share=0.34, gate_texts=texts)):
        found = clip.encode_image(images)
        assert torch.equal(found[sure], first[sure])
        torch.testing.assert_close(clip.encode_image(images[order]), found[order])


@torch.no_grad()
def test_one_calls_the_model_as_always(clip: open_clip.CLIP, images: Tensor, texts: str) -> None:
    with anchorprune.prune(clip, Cascade(stages=TWO, share=0.5, gate_texts=texts)):
        features = clip.encode_image(images)
        unit = F.normalize(features, dim=-1)
        assert torch.equal(clip.encode_image(image=images, normalize=True), unit)
        assert torch.equal(clip(images, torch.ones(1, 77, dtype=torch.long))[0], unit)


@torch.no_grad()
def test_restored_the_model_is_what_it_was_to_the_last_bit(clip: open_clip.CLIP, images: Tensor, texts: str) -> None:
    before, state, attributes = clip.encode_image(images), copy.deepcopy(clip.state_dict()), dict(vars(clip))
    pruning = anchorprune.prune(clip, Cascade(stages=TWO, gate_texts=texts))
    assert list(clip.state_dict()) == list(state)
    with pytest.raises(UserError, match=r"already pruned \(Cascade"):
        anchorprune.prune(clip, "tome")
    pruning.restore()
    pruning.restore()
    assert vars(clip) == attributes
    assert torch.equal(clip.encode_image(images), before)
    assert all(torch.equal(clip.state_dict()[name], tensor) for name, tensor in state.items())
    with pruning:
        assert not torch.equal(clip.encode_image(images), before)
    anchorprune.prune(clip, Cascade(stages=TWO, gate_texts=texts))
    anchorprune.restore(clip)
    assert torch.equal(clip.encode_image(images), before)


@torch.no_grad()
def test_copies_and_pickles_are_cascades_of_their_own(clip: open_clip.CLIP, images: Tensor, texts: str) -> None:
    before = clip.encode_image(images)
    with anchorprune.prune(clip, Cascade(stages=TWO, share=0.5, gate_texts=texts)):
        found = clip.encode_image(images)
        others = [copy.deepcopy(clip), pickle.loads(pickle.dumps(clip))]
    for other in others:
        assert torch.equal(other.encode_image(images), found)
        anchorprune.restore(other)
        assert torch.equal(other.encode_image(images), before)


@torch.no_grad()
def test_weights_that_are_loaded_or_trained_count_in_every_stage(
    clip: open_clip.CLIP, images: Tensor, texts: str
) -> None:
    with anchorprune.prune(clip, Cascade(stages=TWO, share=0.5, gate_texts=texts)):
        clip.visual.proj.mul_(-1)
        found = clip.encode_image(images)
        clip.visual.proj.mul_(-1)
        # Of the opposite features other images are unsure, so a bank of opposite texts makes them the same again.
        anchorprune.restore(clip)
    with anchorprune.prune(clip, Cascade(stages=TWO, share=0.5)) as pruning:
        pruning.bank = -torch.load(texts)
        torch.testing.assert_close(clip.encode_image(images), -found)


def test_gradients_reach_the_images_through_both_stages(clip: open_clip.CLIP, images: Tensor, texts: str) -> None:
    images = images.requires_grad_()
    with anchorprune.prune(clip, Cascade(stages=TWO, share=0.5, gate_texts=texts)):
        clip.encode_image(images).sum().backward()
    assert images.grad is not None
    assert bool((images.grad.flatten(1).abs().sum(dim=1) > 0).all())


@torch.no_grad()
def test_transformers_models_and_bare_towers_run_one_too(images: Tensor, texts: str) -> None:
    def of(found: Any) -> Tensor:
        return next(
            value
            for value in (found, getattr(found, "image_embeds", None), getattr(found, "pooler_output", None))
            if isinstance(value, Tensor)
        )

    model = hf_clip()
    last = of(model.get_image_features(pixel_values=images))
    with anchorprune.prune(model, Cascade(stages=TWO, share=1, gate_texts=texts)):
        assert torch.equal(of(model.get_image_features(pixel_values=images)), last)
    for tower in (make_visual(), hf_projection()):
        last = of(tower(images))
        with anchorprune.prune(tower, Cascade(stages=TWO, share=1, gate_texts=texts)):
            assert torch.equal(of(tower(images)), last)
    with pytest.raises(UserError, match="Sequential has no encode_image"):
        anchorprune.prune(nn.Sequential(make_visual()), Cascade(gate_texts=texts))


# --- what it costs


@torch.no_grad()
def test_it_costs_the_mean_of_what_ran(clip: open_clip.CLIP, images: Tensor, texts: str) -> None:
    dense = image_tower_flops(clip)
    flops = [2e9 * gmacs(clip, parse(stage).strategy) for stage in (CHEAP, FINER)] + [dense]
    with anchorprune.prune(clip, Cascade(stages=THREE, share=0.5, gate_texts=texts)) as pruning:
        assert image_tower_flops(clip) == round(flops[0] + flops[1] / 2 + flops[2] / 4)  # as promised
        clip.encode_image(images[:5])
        assert pruning.shares == [1, 2 / 5, 1 / 5]
        assert image_tower_flops(clip) == round(flops[0] + flops[1] * 2 / 5 + flops[2] / 5)
        # 3 images end with 4 patches and CLS, 1 with 17 − 4 · 2 tokens, 1 with all.
        assert (pruning.tokens_before, pruning.tokens_after) == (17, round((3 * 5 + 9 + 17) / 5))
        assert pruning.kept is None
        clip.encode_image(images[:5])
        assert pruning.shares == [1, 2 / 5, 1 / 5]


def test_a_target_solves_the_share(clip: open_clip.CLIP) -> None:
    first, dense = gmacs(clip, parse(CHEAP).strategy), image_tower_flops(clip) / 2e9
    target = first + 0.3 * dense
    found = solve(clip, Cascade(stages=TWO), 1.0001 * target)
    assert found == Cascade(stages=TWO, share=0.3)
    assert gmacs(clip, found) == pytest.approx(target, rel=1e-6)
    with pytest.raises(UserError, match=r"cascade gets down to .* here \(share=0\.0\)|cascade gets down to"):
        solve(clip, Cascade(stages=TWO), 0.9 * first)


# --- what it says of itself


def test_stages_are_written_as_one_types_them_and_equal_ones_are_equal() -> None:
    objects: Any = (Coarse(keep_patches=(43,)), None)
    assert Cascade(stages=objects) == Cascade(stages=("coarse   --keep_patches 43 --grid_share 0.5", "unpruned"))
    assert Cascade().strategies == (Coarse(keep_ratio=(0.22,)), None)
    assert Cascade(stages=("tome --r 16 8", "thin")).parts == (Tome(r=(16, 8)), Thin())
    assert Strategy.from_dict(Cascade(stages=THREE).as_dict()) == Cascade(stages=THREE)
    assert parse(f"cascade {Cascade(stages=THREE, share=0.5).flags()}").strategy == Cascade(stages=THREE, share=0.5)


def test_by_a_share_a_batch_shares_out_who_goes_on_and_by_a_margin_each_image_is_its_own() -> None:
    assert Cascade().couples_batch
    assert not Cascade(min_margin=0.01).couples_batch
    assert Cascade(stages=("anchor --selection first_image", "unpruned"), min_margin=0.01).couples_batch


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"stages": ("coarse",)}, "give two or more"),
        ({"stages": ("unpruned", "coarse")}, "only the last can be it"),
        ({"stages": ("coarsely", "unpruned")}, "unknown strategy 'coarsely'"),
        ({"stages": ("coarse --r 3", "unpruned")}, "no such field"),
        ({"stages": ("tome --rr 3", "unpruned")}, "unknown --rr 3"),
        ({"stages": ("tome --r x", "unpruned")}, "invalid int value"),
        ({"stages": ("tome 'x", "unpruned")}, "close the quotes"),
        ({"stages": ("cascade", "unpruned")}, "a cascade is no stage of another"),
        ({"share": 1.1}, "share=1.1: must lie between 0 and 1"),
        ({"share": float("nan")}, "must lie between 0 and 1"),
        ({"min_margin": -1}, "must be 0 or more"),
        ({"min_margin": 0.1, "share": 0.5}, "give it or a share, not both"),
    ],
)
def test_what_cannot_be_is_one_line(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as raised:
        Cascade(**fields)
    assert "\n" not in str(raised.value)


@torch.no_grad()
def test_a_bank_that_no_margin_can_be_had_of_is_one_line(clip: open_clip.CLIP, images: Tensor, texts: str) -> None:
    with anchorprune.prune(clip, Cascade()) as pruning:
        with pytest.raises(UserError, match="give gate_texts, or set the handle's bank"):
            clip.encode_image(images)
        with pytest.raises(UserError, match="two texts or more"):
            pruning.bank = torch.ones(EMBED, 1)
        pruning.bank = torch.ones(EMBED + 1, 3)
        with pytest.raises(UserError, match="features of width 17, the model's have 16"):
            clip.encode_image(images)
    with pytest.raises(UserError, match=r"gate_texts='gone\.pt': no such file"):
        anchorprune.prune(clip, Cascade(gate_texts="gone.pt"))
    with pytest.raises(UserError, match="this tower has blocks 1 … 4"):
        anchorprune.prune(clip, Cascade(stages=("thin --prune_layers 9 --keep_patches 4", "unpruned")))
    with pytest.raises(UserError, match=r"min_margin=0\.1: what it costs depends on the images"):
        solve(clip, Cascade(stages=TWO, min_margin=0.1), 0.9 * image_tower_flops(clip) / 2e9)
    assert "encode_image" not in vars(clip)


def test_requests_that_a_cascade_cannot_serve_are_refused_as_they_are_made(texts: str) -> None:
    asked = {"model": ModelSpec(name="m"), "data": DataSpec(name="d")}
    with pytest.raises(UserError, match="linear_probe has no classifier that says which images are unsure"):
        Request(**asked, task=anchorprune.LinearProbe(), pruning=Cascade())
    Request(**asked, task=anchorprune.LinearProbe(), pruning=Cascade(gate_texts=texts))
    with pytest.raises(UserError, match="gives features, and captioning reads tokens"):
        Request(**asked, task=Captioning(), pruning=Cascade(gate_texts=texts))
    with pytest.raises(UserError, match="the images of a batch share out who goes on"):
        evaluate(Request(**asked, pruning=Cascade()), shard=(0, 2))
    with pytest.raises(UserError, match="no one attention"):
        evaluate(Request(**asked, pruning=Cascade()), attention_images=2)
    with pytest.raises(UserError, match="has no texts to tell by which images are unsure"):
        to_encode("photos", pruning=Cascade())


def test_no_file_can_hold_one(clip: open_clip.CLIP) -> None:
    with pytest.raises(UserError, match="cannot export cascade: a file holds one tower"):
        anchorprune.export(clip, Cascade(), "c.pt2", format="torch")


def test_its_texts_count_by_their_content(texts: str, bank: Tensor) -> None:
    def of(pruning: Strategy) -> str:
        return Request(model=ModelSpec(name="m"), data=DataSpec(name="d"), pruning=pruning).hash()

    before = of(Cascade(gate_texts=texts))
    torch.save(bank, "same.pt")
    torch.save(bank + 1, "other.pt")
    Path("same.pt").write_bytes(Path(texts).read_bytes())
    assert of(Cascade(gate_texts="same.pt")) == before
    assert of(Cascade(gate_texts="other.pt")) != before
    identities = [
        to_encode("x", pruning=Cascade(gate_texts=file)).identity() for file in (texts, "same.pt", "other.pt")
    ]
    assert identities[0] == identities[1] != identities[2]


# --- in the commands


def test_eval_goes_by_the_task_s_own_classifier_and_says_what_ran() -> None:
    flags = [*BUNDLED, "--limit", 40, "--batch_size", 20]
    stages = ["--stages", "coarse --keep_patches 20", "unpruned", "--share", 0.25]
    found = evaluated(*flags, *ON, *stages, "--output", "r.json", "--save_clf", "clf.pt")
    assert found["pruning"]["stages"] == ["coarse --keep_patches 20", "unpruned"]
    assert found["pruning"]["measured"]["shares"] == [1, 0.25]
    cheap = evaluated(*flags, *ON[:2], "coarse", "--keep_patches", 20, "--output", "cheap.json")
    dense = cheap["cost"]["gmacs_dense"]
    assert found["cost"]["gmacs"] == pytest.approx(cheap["cost"]["gmacs"] + 0.25 * dense, rel=1e-6)
    given = evaluated(*flags, *ON, *stages, "--gate_texts", "clf.pt", "--output", "given.json")
    assert given["metrics"] == found["metrics"]
    repeated = command("rerun", "r.json", "--num_workers", 0)
    assert repeated.code == 0, repeated.err


def test_a_sweep_solves_its_share_beside_others() -> None:
    flags = [*BUNDLED, "--limit", 24, "--num_workers", 0, "--batch_size", 24]
    swept = command(
        *("sweep", *flags, "--out", "out", "--target_gmacs", 0.5),
        *("--strategies", "coarse", "cascade --stages 'coarse --keep_patches 12' unpruned"),
    )
    assert swept.code == 0, swept.err
    [file] = Path("out").glob("cascade*.json")
    found = read(file)
    assert 0 < found["pruning"]["share"] < 1
    assert found["cost"]["gmacs"] <= 0.5
    alone_ = evaluated(*flags, *ON, *parse_flags(found), "--output", "alone.json")
    assert alone_["metrics"] == found["metrics"]
    assert alone_["config_hash"] == found["config_hash"]


def parse_flags(result: dict[str, Any]) -> list[str]:
    pruning = result["pruning"]
    return ["--stages", *pruning["stages"], "--share", str(pruning["share"])]


def test_shards_by_a_margin_are_merged_to_the_mean(world: World) -> None:
    request = Request(
        model=ModelSpec(name=world.model[1], pretrained=world.model[3]),
        data=DataSpec(name=world.things[1]),
        pruning=Cascade(stages=TWO, min_margin=0.02),
        compute=Compute(device="cpu", precision="fp32", batch_size=5, num_workers=0),
    )
    whole = evaluate(request, progress=False)
    merged = merge([evaluate(request, shard=(rank, 3), progress=False) for rank in range(3)])
    assert merged.metrics == whole.metrics
    assert 0 < whole.pruning["measured"]["shares"][1] < 1
    assert merged.pruning["measured"]["shares"] == pytest.approx(whole.pruning["measured"]["shares"])
    assert merged.cost["gmacs"] == pytest.approx(whole.cost["gmacs"])


def test_the_linear_probe_goes_by_the_texts_that_one_gives_and_training_images_do_not_count(
    world: World, texts: str
) -> None:
    probe = ["--task", "linear_probe", "--train_split", "test", "--fewshot_epochs", 1, "--no_amp", "--batch_size", 8]
    flags = [*world.model, *world.things, *probe, "--feature_root", "", *ON, "--stages", *TWO, "--output", "r.json"]
    outcome = command("eval", *flags)
    assert outcome.code == 2
    assert "--strategy cascade: linear_probe has no classifier" in outcome.err[-1]
    assert "give --gate_texts" in outcome.err[-1]
    found = evaluated(*flags, "--gate_texts", texts, "--share", 0.25)
    assert found["pruning"]["measured"]["shares"] == [1, 0.25]


def test_encode_goes_by_texts(texts: str, tmp_path: Path) -> None:
    model, said = tiny_model(), []
    photos = make_photos(tmp_path / "photos")
    asked = to_encode(photos, dtype="fp32", pruning=Cascade(stages=TWO, share=0.5, gate_texts=texts))
    found = anchorprune.encode(asked, tmp_path / "out", model=model, say=said.append)
    assert said[-1] == "of the images the stages encoded 100.0 %, 50.0 %"
    dense = image_tower_flops(model.model) / 2e9
    assert found["gmacs"] == pytest.approx(gmacs(model.model, parse(CHEAP).strategy) + dense / 2)
    anchorprune.encode(to_encode(photos, dtype="fp32", pruning=parse(CHEAP).strategy), tmp_path / "cheap", model=model)
    anchorprune.encode(to_encode(photos, dtype="fp32"), tmp_path / "dense", model=model)
    ours, cheap, unpruned = (embeddings(tmp_path / name) for name in ("out", "cheap", "dense"))
    is_cheap = (ours - cheap).abs().amax(dim=1) < 1e-5
    is_unpruned = (ours - unpruned).abs().amax(dim=1) < 1e-5
    assert (is_cheap.sum(), is_unpruned.sum()) == (5, 5)
    assert bool((is_cheap ^ is_unpruned).all())


def test_speed_times_both_stages_by_the_share(world: World) -> None:
    flags = ["speed", *world.model, "--batch_size", 4, "--repeats", 2, "--no_amp", "--out", "out"]
    spec = f"cascade --stages '{CHEAP}' unpruned"
    assert command(*flags, "--strategies", f"{spec} --share 0.5", CHEAP).code == 0
    dense, cascade, cheap = json.loads(Path("out/speed.json").read_text())["speeds"]
    assert cascade["gmacs"] == pytest.approx(cheap["gmacs"] + dense["gmacs"] / 2)
    assert cascade["tokens_after"] == 11  # of 5 and 17
    for more, says in (
        (["--strategies", f"{spec} --min_margin 0.1"], "--min_margin 0.1: random images have no telling margins"),
        (["--strategies", spec, "--compile"], "--compile default: a cascade is no one graph"),
    ):
        outcome = command(*flags, *more)
        assert (outcome.code, len(outcome.err)) == (2, 1)
        assert says in outcome.err[0]
