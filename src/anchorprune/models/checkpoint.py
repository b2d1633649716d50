"""What a checkpoint file is that open_clip cannot read as it is, and its weights in the form that it can."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from anchorprune.errors import FieldError
from anchorprune.models.torchscript import state_of

# Where training code keeps the weights in a larger checkpoint.
_NESTED = ("state_dict", "model", "module")
_COMPLEX = re.compile(rb"Complex\w*Storage")  # how torch.save says of what a tensor is
_MOST_HEAD = 1 << 26  # bytes
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
            state = state_of(path)
            # OpenAI's own archives hold the sizes of the model as buffers; traced ones what is not saved otherwise.
            others = ("input_resolution", "context_length", "vocab_size", "attn_mask")
            return {name: tensor for name, tensor in state.items() if name not in others}, True
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # whatever is wrong with it, open_clip has said it
        return None, False
    if (nested := _nested(found)) is not None:
        return dict(nested), True
    return (dict(found), False) if _is_state(found) else (None, False)


def _nested(found: Any) -> Any:
    """The tensors by their names that a larger checkpoint holds beside other things; None where it holds none."""
    return next((found[name] for name in _NESTED if isinstance(found, dict) and _is_state(found.get(name))), None)


def is_torchscript(path: str) -> bool:
    """Whether the file is an archive of `torch.jit.save`, as OpenAI publishes its weights."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except Exception:  # it ends like an archive, and is none; zipfile raises half a dozen kinds
        return False


def refuse_complex(path: str) -> None:
    """FieldError for a checkpoint of complex weights, of which loading takes the real parts alone.

    Nothing in the file is run or made into tensors: what its head says of their types is looked at.
    """
    try:
        with open(path, "rb") as file:
            if path.endswith(".safetensors"):
                size = int.from_bytes(file.read(8), "little")
                found = re.search(rb'"dtype"\s*:\s*"C\d', file.read(min(size, _MOST_HEAD)))
            elif zipfile.is_zipfile(path):
                with zipfile.ZipFile(file) as archive:
                    heads = [name for name in archive.namelist() if name.endswith("data.pkl")]
                    found = next((one for name in heads if (one := _COMPLEX.search(archive.read(name)))), None)
            else:
                found = _COMPLEX.search(file.read(_MOST_HEAD))
    except MemoryError:
        raise
    except Exception:  # zipfile and zlib raise half a dozen kinds; what reads the weights will say what is wrong
        return
    if found:
        raise FieldError("pretrained", path, "holds complex numbers; weights are real")


def not_real(path: str, model: Any) -> str | None:
    """A weight that the file holds as whole numbers or truths, where the model has real ones, in words; None of none.

    Loading would cast it in silence. A file that cannot be read so is left to whoever loads it.
    """
    real = {name for name, weight in model.state_dict().items() if weight.is_floating_point()}
    try:
        types = _types(path)
    except MemoryError:
        raise
    except Exception:  # torch.load raises half a dozen kinds; of a TorchScript archive and of pickles, say
        return None
    for full, kind in types.items():
        name = full
        while name not in real and "." in name:  # without what stands before it in a larger checkpoint
            name = name.partition(".")[2]
        if name in real and not kind.lower().lstrip("b").startswith("f"):  # float16, bfloat16, F16, BF16
            return f"{full} is of {kind}"
    return None


def _types(path: str) -> dict[str, str]:
    """The type of each tensor in a file, by its name; no number of them is read where it can be helped."""
    if path.endswith(".safetensors"):
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            return {name: str(file.get_slice(name).get_dtype()) for name in file.keys()}  # noqa: SIM118
    found: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    state = found if (nested := _nested(found)) is None else nested
    return {name: str(each.dtype).removeprefix("torch.") for name, each in state.items() if hasattr(each, "dtype")}


def not_finite(model: Any) -> str | None:
    """Which weights hold numbers that are not finite, and how many, in words; None where none does."""
    broken = {name: int((~w.isfinite()).sum()) for name, w in model.state_dict().items() if _can_break(name, w)}
    held = {name: count for name, count in broken.items() if count}
    if not held:
        return None
    return f"weights hold {sum(held.values())} such numbers ({', '.join([*held][:3])}{', …' if len(held) > 3 else ''})"


def _can_break(name: str, weight: Any) -> bool:
    """A mask is of infinities; of the types of one byte torch cannot tell."""
    is_number = isinstance(weight, torch.Tensor) and weight.is_floating_point()
    return is_number and weight.itemsize > 1 and not weight.is_meta and not name.endswith("mask")


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(each, torch.Tensor) for each in value.values())
