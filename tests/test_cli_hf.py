"""`--model_type hf`: a folder of transformers is evaluated, pruned, swept and timed like any other model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from support.libraries import hf_clip, hf_siglip
from support.material import World, command, evaluated, read, tree
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import anchorprune
from anchorprune.evaluation.engine import evaluate
from anchorprune.evaluation.request import Compute, DataSpec, ModelSpec, Request
from anchorprune.models import huggingface
from anchorprune.strategies import make_strategy

FLAGS = ["--no_amp", "--num_workers", 0, "--batch_size", 8]
CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture(scope="module", params=["clip", "siglip"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as `save_pretrained` leaves it, with a tokenizer of words."""
    path = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    (hf_clip() if request.param == "clip" else hf_siglip()).save_pretrained(path)
    words = ["<s>", "<pad>", "</s>", "<unk>", "a", "photo", "of", "the", "."]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")
    fast.save_pretrained(path)
    size = {"height": 32, "width": 32}
    transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size).save_pretrained(path)
    return path


def test_a_folder_is_evaluated_unpruned_and_pruned(world: World, folder: Path) -> None:
    flags = ["--model_type", "hf", "--model", folder, *world.things, *FLAGS, "--output", "r.json"]
    dense = evaluated(*flags)
    assert dense["pretrained"] == ""
    assert dense["cost"]["gmacs"] == dense["cost"]["gmacs_dense"] > 0
    pruned = evaluated(*flags, "--enable_pruning", "--strategy", "thin", "--keep_patches", 5)
    prefix = 1 if folder.name.startswith("clip") else 0
    assert (pruned["pruning"]["measured"]["tokens_before"], pruned["pruning"]["measured"]["tokens_after"]) == (
        16 + prefix,
        5 + prefix,
    )
    assert pruned["cost"]["gmacs"] < dense["cost"]["gmacs"]
    assert pruned["config_hash"] != dense["config_hash"]


@pytest.mark.parametrize("imported", [False, True])
def test_quiet_is_quiet_of_transformers_too(world: World, folder: Path, imported: bool) -> None:
    words = ["eval", "--model_type", "hf", "--model", folder, *world.things, *FLAGS, "--output", "r.json"]
    code = "import sys, transformers" if imported else "import sys"
    code += "; from anchorprune.commands import main; sys.exit(main(sys.argv[1:]))"

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-c", code, *map(str, words), *more]
        return subprocess.run(argv, capture_output=True, text=True, timeout=240, check=True)

    done = run("--quiet")
    assert done.stdout == ""
    assert all("This may result in" in line for line in done.stderr.splitlines())  # of its tokens
    if transformers.__version__ >= "5":  # earlier ones have no bar for a small model
        assert "Loading weights" in run().stderr


@pytest.mark.parametrize("words", ["eval", "speed", "encode --input photos --out out"])
def test_weights_for_a_model_that_has_its_own_are_refused(world: World, folder: Path, words: str) -> None:
    more = [*world.things, *FLAGS] if words == "eval" else ["--no_amp"]
    outcome = command(*words.split(), "--model_type", "hf", "--model", folder, "--pretrained", "openai", *more)
    said = "--pretrained openai: models of transformers come with their weights; leave it out"
    assert (outcome.code, outcome.err) == (2, [f"anchorprune: error: {said}"])


def test_features_are_those_that_transformers_gives(folder: Path) -> None:
    model = transformers.AutoModel.from_pretrained(folder).eval()
    loaded = huggingface.load(str(folder), "", cache_dir=None, device=CPU, precision="fp32")
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tokens = loaded.tokenizer(["a photo of the", "a"])
    assert tokens.shape == (2, model.config.text_config.max_position_embeddings)
    with torch.no_grad():
        out = model(input_ids=tokens, pixel_values=images)
        ours = [loaded.model.encode_image(images), loaded.model.encode_text(tokens)]
    for own, theirs in zip(ours, (out.image_embeds, out.text_embeds), strict=True):
        torch.testing.assert_close(torch.nn.functional.normalize(own, dim=-1), theirs)


def test_it_can_be_swept_and_timed(world: World, folder: Path) -> None:
    model = ["--model_type", "hf", "--model", folder]
    swept = command("sweep", *model, *world.things, *FLAGS, "--strategies", "tome --r 2", "--out", "out")
    assert swept.code == 0, swept.err
    assert read("out/tome_r_2.json")["pruning"]["strategy"] == "tome"
    timed = command(
        "speed", *model, "--batch_size", 2, "--repeats", 2, "--strategies", "thin --keep_patches 5", "--no_amp"
    )
    assert timed.code == 0, timed.err


def test_other_weights_in_the_same_folder_are_another_configuration(world: World, folder: Path) -> None:
    flags = ["--model_type", "hf", "--model", folder, *world.things, *FLAGS, "--output", "r.json"]
    before = evaluated(*flags)["config_hash"]
    weights = folder / "model.safetensors"
    original = weights.read_bytes()
    try:
        weights.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
        assert evaluated(*flags)["config_hash"] != before
    finally:
        weights.write_bytes(original)
    assert evaluated(*flags)["config_hash"] == before


def test_what_cannot_be_evaluated_is_one_line(
    world: World, here: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("bert")
    transformers.BertConfig().save_pretrained(other)
    empty = tmp_path_factory.mktemp("bare")  # transformers 4 guesses by the name, and there is an "mpt" in "empty"
    for model, says in {
        str(
            other
        ): "is a bert model; CLIP, Chinese CLIP, SigLIP and image towers (ViT, DINOv2 …) of transformers can be",
        str(empty): "cannot be loaded by transformers",
        "no/such-model": "cannot be loaded by transformers",
    }.items():
        outcome = command("eval", "--model_type", "hf", "--model", model, *world.things, *FLAGS)
        assert outcome.code == 2
        assert len([line for line in outcome.err if line.startswith("anchorprune: error")]) == 1
        assert says in outcome.err[-1]
    assert not tree(here)


def test_the_library_evaluates_it_too(folder: Path) -> None:
    request = Request(
        model=ModelSpec(name=str(folder), library="hf"),
        data=DataSpec(name="bundled", limit=6),
        pruning=make_strategy("tome", r=2),
        compute=Compute(precision="fp32", num_workers=0),
    )
    assert evaluate(request, progress=False).n_samples == 6


def test_both_towers_are_exported(folder: Path) -> None:
    import onnxruntime

    loaded = huggingface.load(str(folder), "", cache_dir=None, device=CPU, precision="fp32")
    found = anchorprune.export(loaded, "thin", "tower.onnx", keep_patches=9, text_path="text.onnx", check_images=2)
    assert found.check.least_cosine > 0.9999
    assert found.text_check.least_cosine > 0.9999
    assert loaded.tokenizer is not None
    tokens = loaded.tokenizer(["a photo of the.", "a", "photo"])
    session = onnxruntime.InferenceSession("text.onnx", providers=["CPUExecutionProvider"])
    (features,) = session.run(None, {session.get_inputs()[0].name: tokens.numpy()})
    with torch.no_grad():
        expected = loaded.model.encode_text(tokens)
    torch.testing.assert_close(torch.from_numpy(features), expected, atol=1e-5, rtol=1e-4)
