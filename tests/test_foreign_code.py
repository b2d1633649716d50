"""Python code that lies beside a model's weights runs for those who ask for it, and nobody else."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support.libraries import hf_clip
from support.material import command, evaluated, read
from tokenizers import Tokenizer, models, pre_tokenizers

from anchorprune.errors import FieldError, UserError
from anchorprune.evaluation.request import DataSpec, ModelSpec, Request
from anchorprune.models import check, load

CPU = torch.device("cpu")
MARK = "anchorprune_foreign_code_ran"  # what the code sets, in `sys`
CODE = f"""
import sys
sys.{MARK} = True
from transformers import PreTrainedTokenizerFast
class Own(PreTrainedTokenizerFast):
    pass
"""
FLAGS = ["--no_amp", "--num_workers", 0, "--batch_size", 8, "--limit", 4]


@pytest.fixture(autouse=True)
def _clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # of a terminal, where transformers would ask
    yield
    if hasattr(sys, MARK):
        delattr(sys, MARK)
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]


def ran() -> bool:
    return hasattr(sys, MARK)


def tokenizer(folder: Path) -> None:
    """One of words, whose class is in a file of the folder."""
    words = {"<pad>": 0, "<unk>": 1, "</s>": 2, "a": 3, "photo": 4}
    own = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=own, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    fast.save_pretrained(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(CODE)


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    """A folder of transformers whose tokenizer is code of its own."""
    folder = tmp_path / "hf"
    hf_clip().save_pretrained(folder)
    size = {"height": 32, "width": 32}
    transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)
    tokenizer(folder)
    return folder


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """A folder of open_clip whose configuration trusts the tokenizer beside it."""
    import open_clip

    folder = tmp_path / "local"
    folder.mkdir()
    config = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {
            "context_length": 8,
            "vocab_size": 16,
            "width": 16,
            "heads": 2,
            "layers": 1,
            "hf_tokenizer_name": "any",
            "tokenizer_kwargs": {"trust_remote_code": True},
        },
    }
    plain = {**config, "text_cfg": {k: v for k, v in config["text_cfg"].items() if "tokenizer" not in k}}  # type: ignore[attr-defined]
    torch.manual_seed(0)
    model = open_clip.CLIP(**plain)
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    tokenizer(folder)
    return folder


def test_a_configuration_that_trusts_code_is_refused_before_anything_is_loaded(local: Path) -> None:
    spec = ModelSpec(name=f"local-dir:{local}")
    with pytest.raises(FieldError, match=r"brings Python code of its own.* give trust_remote_code=True"):
        check(spec)
    with pytest.raises(FieldError, match="brings Python code of its own"):
        load(spec, CPU, "fp32")
    assert not ran()


def test_at_a_hub_too(local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo, file, **_: str(local / file))
    with pytest.raises(FieldError, match="brings Python code of its own"):
        check(ModelSpec(name="hf-hub:somebody/model@main"))


def test_a_tokenizer_of_its_own_is_not_run_though_no_configuration_asks(local: Path) -> None:
    config = json.loads((local / "open_clip_config.json").read_text())
    del config["model_cfg"]["text_cfg"]["tokenizer_kwargs"]
    (local / "open_clip_config.json").write_text(json.dumps(config))
    with suppress(UserError):  # or the library's own class does as well
        load(ModelSpec(name=f"local-dir:{local}"), CPU, "fp32")
    assert not ran()


def test_who_trusts_it_has_it_run(local: Path) -> None:
    spec = ModelSpec(name=f"local-dir:{local}", trust_remote_code=True)
    check(spec)
    loaded = load(spec, CPU, "fp32")
    assert ran()
    assert loaded.tokenizer is not None


def test_transformers_folders_run_nothing_either(hf: Path) -> None:
    with suppress(UserError):
        load(ModelSpec(name=str(hf), library="hf"), CPU, "fp32")
    assert not ran()
    assert load(ModelSpec(name=str(hf), library="hf", trust_remote_code=True), CPU, "fp32").tokenizer
    assert ran()


def test_a_model_that_transformers_has_not_is_refused_with_the_flag(hf: Path) -> None:
    config = json.loads((hf / "config.json").read_text())
    config |= {"model_type": "foreign", "auto_map": {"AutoConfig": "own.Own"}}
    (hf / "config.json").write_text(json.dumps(config))
    spec = ModelSpec(name=str(hf), library="hf")
    with pytest.raises(FieldError) as caught:
        check(spec)
    assert "give --trust_remote_code if you trust it" in caught.value.as_flag()
    assert not ran()


@pytest.mark.parametrize("line", ["eval", "sweep", "speed", "encode", "export"])
@pytest.mark.usefixtures("here")
def test_every_command_refuses_it_in_one_line(world: Any, local: Path, line: str) -> None:
    rest: dict[str, list[object]] = {
        "eval": [*world.things, *FLAGS],
        "sweep": [*world.things, *FLAGS, "--strategies", "random"],
        "speed": [],
        "encode": ["--input", world.folder / "things", "--out", "out"],
        "export": ["--output", "m.onnx"],
    }
    outcome = command(line, "--model", f"local-dir:{local}", *rest[line])
    assert outcome.code == 2
    assert len(outcome.err) == 1
    assert "brings Python code of its own, which is not run" in outcome.err[0]
    assert "--trust_remote_code" in outcome.err[0]
    assert not ran()


@pytest.mark.usefixtures("here")
def test_the_flag_is_part_of_the_request_and_a_result_cannot_give_it(world: Any, local: Path) -> None:
    words = ["--model", f"local-dir:{local}", "--pretrained", "", *world.things, *FLAGS, "--trust_remote_code"]
    result = evaluated(*words, "--output", "r.json")
    assert ran()
    assert result["request"]["model"]["trust_remote_code"] is True
    assert "--trust_remote_code" in Request.from_dict(result["request"]).flags()
    outcome = command("rerun", "r.json")
    assert (outcome.code, len(outcome.err)) == (2, 1)
    assert "give --trust_remote_code" in outcome.err[0]
    assert command("rerun", "r.json", "--trust_remote_code").code == 0
    assert read("r.json")["config_hash"] == result["config_hash"]


def test_without_it_requests_are_what_they_were() -> None:
    plain = Request(model=ModelSpec(name="m"), data=DataSpec(name="bundled"))
    assert "trust_remote_code" not in plain.as_dict()["model"]
    assert "--trust_remote_code" not in plain.flags()
    assert Request.from_dict(plain.as_dict()) == plain
    trusting = Request(model=ModelSpec(name="m", trust_remote_code=True), data=DataSpec(name="bundled"))
    assert Request.from_dict(trusting.as_dict()) == trusting
    assert trusting.hash() != plain.hash()
