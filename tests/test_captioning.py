"""Captioning: clip-benchmark's scores of what the model writes, and one line where something is missing."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip import coca_model
from support.material import CAPTIONS, World, command
from support.models import make_clip
from torch import Tensor, nn

import anchorprune
from anchorprune import Compute, DataSpec, ModelSpec, OwnDataset, Request, Result, UserError, evaluate, merge
from anchorprune.models.base import LoadedModel
from anchorprune.strategies import make_strategy
from anchorprune.tasks import captioning
from anchorprune.tasks.captioning import Captioning, tokenized

SCORERS = importlib.util.find_spec("pycocoevalcap") is not None and shutil.which("java") is not None
needs_scorers = pytest.mark.skipif(not SCORERS, reason="needs pycocoevalcap and Java")
needs_beams = pytest.mark.skipif(not coca_model._has_transformers, reason="open_clip's CoCa needs transformers below 5")
TOKENIZER = open_clip.get_tokenizer("ViT-B-32")
TOME = make_strategy("tome", r=3)


class Writer(nn.Module):
    """Stands in for a CoCa: it writes a caption of the data, chosen by the image's feature."""

    def __init__(self) -> None:
        super().__init__()
        clip = make_clip()
        self.visual, self.encode_image = clip.visual, clip.encode_image

    def generate(self, images: Tensor) -> Tensor:
        texts = [text for own in CAPTIONS for text in own]
        picked = [texts[int(n)] for n in self.encode_image(images)[:, 0].mul(1e4).abs().long() % len(texts)]
        return TOKENIZER(picked)


def loaded(model: nn.Module) -> LoadedModel:
    return LoadedModel(model.eval(), lambda image: image, TOKENIZER)


def own(captions: list[list[str]] = CAPTIONS) -> OwnDataset:
    images = torch.randn(len(captions), 3, 32, 32, generator=torch.Generator().manual_seed(3))
    return OwnDataset(list(zip(images, captions, strict=True)), kind="captions")


def request(pruning: Any = None) -> Request:
    return Request(
        model=ModelSpec(name="mine"),
        data=DataSpec(name="mine"),
        task=Captioning(spice="no"),
        pruning=pruning,
        compute=Compute(device="cpu", precision="fp32", batch_size=4, num_workers=0),
    )


def asked(model: nn.Module, pruning: Any = None, **options: Any) -> Result:
    return evaluate(request(pruning), model=loaded(model), dataset=own(), **options)


class NoSpice:
    """In the place of upstream's, whose models are a download."""

    def compute_score(self, *_: object) -> tuple[float, list[float]]:
        return 0.0, []

    def method(self) -> str:
        return "SPICE"


def upstreams(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    from clip_benchmark.metrics import captioning as upstream

    monkeypatch.setattr(upstream, "Spice", NoSpice)
    images = torch.stack([image for image, _ in own().samples])
    batches = [(images[i : i + 4], CAPTIONS[i : i + 4]) for i in (0, 4)]
    metrics = upstream.evaluate(model.eval(), batches, 4, "cpu", None, amp=False)
    return {name: value for name, value in metrics.items() if name != "SPICE"}


LEFT_OPEN = pytest.mark.filterwarnings(  # upstream leaves METEOR's process to the garbage collector
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@needs_scorers
@LEFT_OPEN
def test_the_metrics_are_clip_benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Writer()
    anchorprune.prune(model, TOME)
    theirs = upstreams(model, monkeypatch)
    metrics = asked(Writer(), TOME).metrics
    assert list(metrics) == list(theirs)
    assert metrics == pytest.approx(theirs, abs=1e-6)
    assert 0 < theirs["ROUGE_L"] < 1


@needs_scorers
def test_shards_merge_and_scores_are_each_images_rouge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captioning, "_meteor", lambda *_: 0.0)  # which takes seconds to start
    whole = asked(Writer(), keep_scores=True)
    merged = merge([asked(Writer(), keep_scores=True, shard=(rank, 3)) for rank in (1, 2, 0)])
    assert merged.metrics == whole.metrics
    assert merged.outcomes is not None
    assert whole.outcomes is not None
    assert merged.outcomes.keys == whole.outcomes.keys
    assert whole.outcomes.scores.mean() == pytest.approx(whole.primary)


@needs_scorers
def test_no_text_shifts_the_lines_of_those_after_it() -> None:
    texts = [["a cat\u2028on\x0ba\r\nmat."], [""], ["Two Dogs' tails!", "it's"], [""]]
    assert tokenized(texts) == {0: ["a cat on a mat"], 1: [""], 2: ["two dogs tails", "it 's"], 3: [""]}


@needs_scorers
def test_it_is_swept_by_rouge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captioning, "_meteor", lambda *_: 0.0)
    swept = anchorprune.sweep(request(), [TOME], model=loaded(Writer()), dataset=own(), progress=False)
    assert "ROUGE_L %" in swept.to_text()


# --- open_clip's CoCa


def coca() -> nn.Module:
    torch.manual_seed(0)
    text = {"context_length": 40, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    vision = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 4, "head_width": 8}
    pool = {"attentional_pool": True, "attn_pooler_heads": 4, "attn_pooler_queries": 8, "output_tokens": True}
    model = coca_model.CoCa(
        embed_dim=32,
        multimodal_cfg={**text, "attn_pooler_heads": 4},
        text_cfg={**text, "embed_cls": True, "output_tokens": True},
        vision_cfg=vision | pool,
    )
    for parameter in model.visual.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


@needs_scorers
@needs_beams
@LEFT_OPEN
@pytest.mark.parametrize("pruning", [None, TOME], ids=["unpruned", "pruned"])
def test_what_a_coca_writes_scores_as_in_clip_benchmark(pruning: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = coca()
    if pruning:
        assert anchorprune.prune(model, pruning) is not None
    assert asked(coca(), pruning).metrics == pytest.approx(upstreams(model, monkeypatch), abs=1e-6)


@needs_beams
@pytest.mark.filterwarnings("ignore::anchorprune.errors.FieldWarning")  # that nothing is dropped
def test_a_budget_that_covers_all_tokens_gives_a_cocas_own_captions() -> None:
    images = torch.stack([image for image, _ in own().samples])
    model = coca()
    dense = model.generate(images)
    with anchorprune.prune(model, make_strategy("random", keep_patches=16)):
        assert torch.equal(model.generate(images), dense)
    with anchorprune.prune(model, make_strategy("random", keep_patches=2)) as pruning:
        model.generate(images)
        assert pruning.tokens_after == 3
    assert torch.equal(model.generate(images), dense)


@pytest.mark.skipif(coca_model._has_transformers, reason="of transformers 5")
@needs_scorers
def test_a_transformers_that_cannot_search_beams_is_one_line() -> None:
    with pytest.raises(UserError, match=r"finds up to version 4\.55; pip install 'transformers<4\.56'"):
        asked(coca())


# --- what is missing


@pytest.fixture
def scorers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """As if pycocoevalcap and Java were there; the folder of the package's tokenizer."""
    (tmp_path / "tokenizer").mkdir()
    fake = type("Module", (), {"__file__": str(tmp_path / "tokenizer" / "ptbtokenizer.py")})
    monkeypatch.setattr(captioning, "_scorers", lambda _: fake)
    monkeypatch.setattr(captioning.shutil, "which", lambda _: "/usr/bin/java")
    return tmp_path / "tokenizer"


def test_a_missing_package_and_a_missing_java_are_each_one_line(
    scorers: Path, monkeypatch: pytest.MonkeyPatch, world: World, here: Path
) -> None:
    flags = ["eval", *world.model, *world.captioned, "--task", "captioning", "--output", "r.json"]
    monkeypatch.setattr(captioning.shutil, "which", lambda _: None)
    refused = command(*flags)
    assert (refused.code, len(refused.err)) == (2, 1)
    assert "there is no java on the PATH; install" in refused.err[0]
    monkeypatch.setattr(captioning, "_scorers", lambda name: importlib.import_module(f"no_such_package.{name}"))
    refused = command(*flags)
    assert (refused.code, len(refused.err)) == (2, 1)
    assert "captioning needs the package pycocoevalcap (" in refused.err[0]
    assert refused.err[0].endswith("pip install 'anchorprune[captioning]'")


def test_spice_that_cannot_be_fetched_is_refused_before_the_work_and_left_out_on_request(scorers: Path) -> None:
    captioning._scorers("").get_stanford_models = staticmethod((scorers / "nothing").read_text)
    with pytest.raises(UserError, match=r"Stanford CoreNLP .* could not be had .*; spice='no' goes without it"):
        Captioning().check()
    Captioning(spice="no").check()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_package_folder_that_may_not_be_written_to_is_refused(scorers: Path) -> None:
    scorers.chmod(0o500)
    with pytest.raises(UserError, match="which may not be written to"):
        Captioning(spice="no").check()


def test_a_model_that_writes_nothing_is_refused(scorers: Path) -> None:
    with pytest.raises(UserError, match=r"writes no captions .*give a CoCa"):
        asked(make_clip())
