"""A pruned image tower, or a text tower, as one file that a runtime without anchorprune runs.

ONNX by torch.export, for ONNX Runtime, OpenVINO and others, or the `torch.export` program itself. `studies/export.py`
holds the file against the model.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anchorprune.errors import FieldError, UserError
from anchorprune.files import StrPath, replacing, unreadable, writing
from anchorprune.pruning.features import features_of, method_of
from anchorprune.pruning.injection import active_pruning
from anchorprune.reading import check_archive, json_of, reason
from anchorprune.strategies.base import Strategy
from anchorprune.towers import find_tower
from anchorprune.towers.positions import fixed_positions

Run = Callable[[Tensor], Tensor]

FORMATS = ("onnx", "torch")
METADATA = "anchorprune"  # the key, in the file, of what it says of itself: JSON
_ONE_FILE = 2**31 - 2**24  # bytes of weights; protobuf, in which ONNX is written, ends at 2 GiB
_TRACED_BATCH = 2  # any but 1, which a trace would take for a constant
# What torch.export gives up with for what it cannot trace; onnxscript's errors are RuntimeErrors.
_TRACING_ERRORS = (RuntimeError, ValueError, TypeError, NotImplementedError, AttributeError, KeyError)


class ImageTower(nn.Module):
    """Images `[B, 3, height, width]` -> features `[B, D]`, as `encode_image` gives them.

    Args:
        model: any that `prune` takes; what its forward returns otherwise is the features, or has them by the name of
            `image_embeds` or `pooler_output`.
        normalize: features of length 1.
    """

    def __init__(self, model: nn.Module, normalize: bool = False) -> None:
        super().__init__()
        self.model, self.normalize = model, normalize

    def forward(self, images: Tensor) -> Tensor:
        model: Any = self.model
        if (method := method_of(model)) == "forward":
            found = model(images)
        elif method == "get_image_features":
            found = model.get_image_features(pixel_values=images)
        else:
            found = getattr(model, method)(images)
        features = features_of(found)
        return F.normalize(features, dim=-1) if self.normalize else features


class TextTower(nn.Module):
    """Tokens `[B, length]` -> features `[B, D]`, as `encode_text` gives them."""

    def __init__(self, model: nn.Module, normalize: bool = False) -> None:
        super().__init__()
        self.model, self.normalize = model, normalize

    def forward(self, tokens: Tensor) -> Tensor:
        model: Any = self.model
        features = features_of(model.encode_text(tokens))
        return F.normalize(features, dim=-1) if self.normalize else features


def check_format(name: str, *, run: bool = False) -> None:
    """Raise FieldError for a format that is none, or whose packages are missing.

    Args:
        run: whether the file is to be run, too.
    """
    if name not in FORMATS:
        raise FieldError("format", name, f"choose one of {', '.join(FORMATS)}")
    needed = {"onnx": ["onnx", "onnxscript", *(["onnxruntime"] if run else [])], "torch": []}[name]
    if missing := [package for package in needed if importlib.util.find_spec(package) is None]:
        raise FieldError("format", name, f"needs {' and '.join(missing)}: pip install 'anchorprune[export]'")
    if not hasattr(torch.compiler, "is_exporting"):
        raise FieldError("format", name, f"needs torch 2.7 or later, and this is {torch.__version__}: update it")


def check_strategy(strategy: Strategy) -> None:
    """Raise UserError for a strategy that no file can hold."""
    if strategy.acts == "stages":
        raise UserError(
            f"cannot export {strategy.name}: a file holds one tower, and which images go on is decided as they "
            "run; export each stage"
        )
    if strategy.couples_batch:
        raise UserError(
            f"cannot export {strategy}: one image would choose for whatever batch it comes in; use "
            "selection='per_image'"
        )


def write(
    tower: nn.Module, example: Tensor, path: StrPath, format: str, names: tuple[str, str], about: Mapping[str, Any]
) -> None:
    """Write what `tower` computes of `example [2 or more, …]`, for batches of any size, all of a file or nothing.

    Args:
        tower: in evaluation mode, on the CPU, in float32; a pruned one as it is pruned at the moment.
        format: one of `FORMATS`.
        names: of the input and the output.
        about: what the file says of itself, under `METADATA`, as JSON.

    Raises:
        UserError: torch.export or the format cannot express it, or it is too large for one file.
    """
    if format == "onnx":
        size = sum(tensor.numel() * tensor.element_size() for tensor in tower.parameters())
        if size > _ONE_FILE:
            raise FieldError(
                "format", format, f"{size / 2**30:.1f} GiB of weights are more than one such file holds; use torch"
            )
    text = json.dumps(about, sort_keys=True)
    with _quietly(), _as_a_function():
        program = traced(tower, example, names[0])
        if format == "torch":
            with writing(path) as file:
                torch.export.save(program, file, extra_files={f"{METADATA}.json": text})
            return
        with replacing(path) as temporary:
            made = _made("onnx", lambda: _as_onnx(program, names))
            made.model.metadata_props[METADATA] = text
            made.save(temporary, external_data=False)


def runner(path: StrPath, format: str) -> Run:
    """What runs a file on this machine's processor: images `[B, 3, height, width]` -> features `[B, D]`."""
    if format == "torch":
        with open(path, "rb") as file:  # by its name it would have to end in .pt2
            return _run_program(torch.export.load(file).module())
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    (name,) = (each.name for each in session.get_inputs())
    return lambda batch: torch.from_numpy(session.run(None, {name: batch.numpy()})[0])


def read_about(path: StrPath, format: str) -> dict[str, Any]:
    """What a file says of itself. UserError, naming it, for one that `write` has not written."""
    try:
        check_archive(path)
        about = json_of(_metadata(path, format))
        if not isinstance(about, dict):
            raise ValueError("what it says of itself is no object")
    except (FileNotFoundError, PermissionError) as error:
        raise unreadable(path, error) from error
    except MemoryError:
        raise
    except Exception as error:  # torch, zipfile and protobuf raise a dozen kinds for bytes that they cannot read
        raise UserError(f"{path}: is no file that export wrote as {format} ({reason(error)})") from error
    return about


def _metadata(path: StrPath, format: str) -> str:
    if format == "torch":
        # An archive, whose program need not be loaded for that: it may hold pickles.
        with zipfile.ZipFile(path) as archive:
            (name,) = (each for each in archive.namelist() if each.rpartition("/")[2] == f"{METADATA}.json")
            return archive.read(name).decode()
    import onnx

    model = onnx.load(os.fspath(path), load_external_data=False)
    return str({each.key: each.value for each in model.metadata_props}[METADATA])


def _run_program(module: Any) -> Run:
    def run(batch: Tensor) -> Tensor:
        with torch.no_grad():
            features: Tensor = module(batch)
            return features

    return run


def traced(tower: nn.Module, example: Tensor, name: str) -> torch.export.ExportedProgram:
    """The program of `tower` for batches of any size; as in `write`."""
    batch = torch.export.Dim("batch")
    with fixed_positions(), _off_the_record(tower):
        tower(example)  # positions are resampled here, for good
        return _made(
            "torch.export",
            lambda: torch.export.export(tower, (example,), dynamic_shapes=({0: batch},), strict=False),
        )


@torch.no_grad()
def image_tower_alone(model: Any) -> Any:
    """The model without the modules that its image features do not need, such as the text tower; changed in place.

    A program of torch.export would hold their weights, too. To be called with a `sharing_copy`.
    """
    called: set[int] = set()
    hooks = [module.register_forward_pre_hook(lambda module, _: called.add(id(module))) for module in model.modules()]
    try:
        ImageTower(model)(example_images(find_tower(model).image_size)[:1])
    finally:
        for hook in hooks:
            hook.remove()
    _drop_uncalled(model, called)
    return model


def _drop_uncalled(module: nn.Module, called: set[int]) -> None:
    """Of a module around towers, whose parts are called past it; what is called itself stays whole."""
    if id(module) in called:
        return
    for name, part in list(module.named_children()):
        if not any(id(inner) in called for inner in part.modules()):
            delattr(module, name)
        else:
            _drop_uncalled(part, called)


def example_images(image_size: tuple[int, int]) -> Tensor:
    """Images of noise to trace with, `[2, 3, height, width]`."""
    return torch.randn(_TRACED_BATCH, 3, *image_size, generator=torch.Generator().manual_seed(0))


def _as_onnx(program: torch.export.ExportedProgram, names: tuple[str, str]) -> Any:
    return torch.onnx.export(
        program, dynamo=True, input_names=names[:1], output_names=names[1:], verbose=False, external_data=False
    )


def _made(by: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except UserError:
        raise
    except _TRACING_ERRORS as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"cannot be exported: {by} has no way to say it ({reason[:300]})") from error


@contextmanager
def _as_a_function() -> Iterator[None]:
    """No gradients, no autocast, and none of the fused paths that are of PyTorch alone."""
    mha = torch.backends.mha
    fast = mha.get_fastpath_enabled()
    mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            yield
    finally:
        mha.set_fastpath_enabled(fast)


@contextmanager
def _off_the_record(tower: nn.Module) -> Iterator[None]:
    """A trace's tensors are none, and may not stay on the handle."""
    try:
        pruning = active_pruning(find_tower(getattr(tower, "model", tower)))
    except UserError:  # a text tower
        pruning = None
    with pruning.off_the_record() if pruning else nullcontext():
        yield


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what torch and onnxscript tell of their own ways meanwhile."""
    earlier = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(earlier)
