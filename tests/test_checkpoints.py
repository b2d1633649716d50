"""Checkpoints as people have them: read like the plain file, or said what they are and what to type."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from support.libraries import hf_clip
from support.material import TINY, World, command, evaluated, register

from anchorprune.models.torchscript import state_of

pytestmark = pytest.mark.usefixtures("here")

FORMS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "compiled": lambda state: {f"_orig_mod.{name}": w for name, w in state.items()},
    "its image tower compiled": lambda state: {n.replace("visual.", "visual._orig_mod."): w for n, w in state.items()},
    "distributed": lambda state: {"epoch": 3, "state_dict": {f"module.{name}": w for name, w in state.items()}},
    "compiled, then distributed": lambda state: {"state_dict": {f"module._orig_mod.{n}": w for n, w in state.items()}},
    "nested": lambda state: {"model": state, "optimizer": {"lr": 0.1}},
    "in a larger module": lambda state: {f"model.clip.{name}": w for name, w in state.items()},
}


def metrics(world: World, weights: object) -> Any:
    words = ["--model", TINY, "--pretrained", weights, *world.things, "--no_amp", "--output", "r.json"]
    return evaluated(*words)["metrics"]


@pytest.mark.parametrize("form", FORMS)
def test_wrapped_weights_are_read_as_plain_ones(world: World, form: str) -> None:
    state = torch.load(world.weights, weights_only=True)
    torch.save(FORMS[form](state), "w.pt")
    assert metrics(world, "w.pt") == metrics(world, world.weights)


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore::torch.jit.TracerWarning")  # deprecated, and talkative
def test_a_torchscript_archive_is_read_as_plain_weights(world: World) -> None:
    model = open_clip.create_model(TINY).eval()
    model.load_state_dict(torch.load(world.weights, weights_only=True))
    inputs = torch.randn(2, 3, 32, 32), torch.randint(0, 99, (2, 77))
    torch.jit.trace(model, inputs, check_trace=False).save("jit.pt")
    assert metrics(world, "jit.pt") == metrics(world, world.weights)


@pytest.mark.parametrize("beside", [False, True])
def test_weights_of_transformers_say_what_to_type(world: World, here: Path, beside: bool) -> None:
    (here / "hf").mkdir()
    torch.save(hf_clip().state_dict(), "hf/pytorch_model.bin")
    if beside:
        (here / "hf" / "config.json").write_text("{}")
    outcome = command(
        "eval", "--model", TINY, "--pretrained", "hf/pytorch_model.bin", *world.things, "--num_workers", 0
    )
    assert outcome.code == 2
    [line] = outcome.err
    assert "--pretrained hf/pytorch_model.bin: holds weights of Hugging Face transformers" in line
    assert ("--model_type hf --model hf," if beside else "--model_type hf --model FOLDER, with its config.json") in line


def test_a_file_under_the_plain_name_is_told_of_its_quickgelu_twin(
    world: World, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # open_clip reads its list of files anew with each that is added: the next test's would bring the twin back.
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", [*open_clip.factory._MODEL_CONFIG_PATHS])
    register(here, f"{TINY}-quickgelu")
    words = ["eval", "--model", TINY, "--pretrained", world.weights, *world.things, "--num_workers", 0]
    try:
        [line] = command(*words, "--quiet", "--output", "r.json").err
        assert f"there is the model {TINY}-quickgelu" in line
    finally:
        open_clip.factory._MODEL_CONFIGS.pop(f"{TINY}-quickgelu")
    assert command(*words, "--quiet", "--output", "r.json").err == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a git-lfs pointer instead of weights"),
        (b"\n<!DOCTYPE html><html></html>", "is a web page instead of weights"),
    ],
)
def test_what_was_downloaded_instead_of_weights_is_named(content: bytes, said: str, world: World, here: Path) -> None:
    (here / "w.pt").write_bytes(content)
    done = command("eval", "--model", TINY, "--pretrained", "w.pt", *world.things, "--num_workers", 0)
    assert done.code == 2
    [line] = done.err
    assert f"--pretrained w.pt: {said}" in line


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore::DeprecationWarning")
def test_of_a_torchscript_archive_the_tensors_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    torch.jit.script(module).save("plain.pt")
    monkeypatch.setattr("torch.jit.load", None)  # which would run what is in it
    found, real = state_of("plain.pt"), module.state_dict()
    assert found.keys() == real.keys()
    assert all(torch.equal(found[name], real[name]) and found[name].dtype == real[name].dtype for name in real)


@pytest.mark.parametrize("named", ["os system", "builtins eval", "torch.hub load", "torch._utils _rebuild_parameter"])
def test_an_archive_that_names_anything_else_is_refused(here: Path, named: str) -> None:
    module, name = named.split()
    with zipfile.ZipFile("evil.pt", "w") as archive:
        archive.writestr("evil/data.pkl", f"\x80\x02c{module}\n{name}\nX\x01\0\0\0x\x85R.".encode("latin-1"))
        archive.writestr("evil/constants.pkl", b"")
    with pytest.raises(pickle.UnpicklingError, match=f"names {module}.{name}, which no weights need"):
        state_of("evil.pt")
