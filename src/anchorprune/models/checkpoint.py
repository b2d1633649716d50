"""What a checkpoint file is that open_clip cannot read as it is, and its weights in the form that it can."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from anchorprune.errors import FieldError

# Where training code keeps the weights in a larger checkpoint.
_NESTED = ("state_dict", "model", "module")
_COMPILED = "_orig_mod."  # what torch.compile puts into names


def weights_of(path: str) -> dict[str, Any] | None:
    """The weights in a file under their plain names: of a TorchScript archive, a compiled or a wrapped model too.

    None where they have their plain names already, or the file cannot be read.

    Raises:
        FieldError: weights of Hugging Face transformers, which are read from their folder; what was downloaded
            instead of weights.
    """
    _refuse_others(path)
    state, changed = _read(path)
    if state is None:
        return None
    plain = {name.replace(_COMPILED, ""): tensor for name, tensor in state.items()}
    while len(firsts := {name.partition(".")[0] for name in plain}) == 1 and all("." in name for name in plain):
        plain = {name.removeprefix(f"{next(iter(firsts))}."): tensor for name, tensor in plain.items()}
    if any(name.startswith("vision_model.") for name in plain):
        folder = Path(path).parent
        where = f"--model {folder}" if (folder / "config.json").is_file() else "--model FOLDER, with its config.json"
        raise FieldError(
            "pretrained",
            path,
            f"holds weights of Hugging Face transformers: give library='hf' and their folder as the model ({folder})",
            typed=f"holds weights of Hugging Face transformers: give --model_type hf {where}, without --pretrained",
        )
    return plain if changed or plain.keys() != state.keys() else None


def _refuse_others(path: str) -> None:
    try:
        with open(path, "rb") as file:
            head = file.read(64).lstrip()
    except OSError:
        return
    if head.startswith(b"version https://git-lfs"):
        raise FieldError("pretrained", path, "is a git-lfs pointer instead of weights; git lfs pull fetches them")
    if head.startswith(b"<"):
        raise FieldError("pretrained", path, "is a web page instead of weights; download them again")


def _read(path: str) -> tuple[dict[str, Any] | None, bool]:
    """The tensors in a file by their names, None where there are none; whether they were in something else."""
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file

            return load_file(path), False
        if is_torchscript(path):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that torch.jit is deprecated
                state = torch.jit.load(path, map_location="cpu").state_dict()
            # OpenAI's own archives hold the sizes of the model as buffers; traced ones what is not saved otherwise.
            others = ("input_resolution", "context_length", "vocab_size", "attn_mask")
            return {name: tensor for name, tensor in state.items() if name not in others}, True
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # whatever is wrong with it, open_clip has said it
        return None, False
    nested = next((found[name] for name in _NESTED if isinstance(found, dict) and _is_state(found.get(name))), None)
    if nested is not None:
        return dict(nested), True
    return (dict(found), False) if _is_state(found) else (None, False)


def is_torchscript(path: str) -> bool:
    """Whether the file is an archive of `torch.jit.save`, as OpenAI publishes its weights."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(each, torch.Tensor) for each in value.values())
