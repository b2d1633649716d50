"""`export`: a pruned image tower as a file for another runtime, run there and held against the model."""

from __future__ import annotations

import dataclasses
import os
import statistics
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import anchorprune
from anchorprune import bundled
from anchorprune.datasets import open_dataset
from anchorprune.datasets.base import DataSpec
from anchorprune.errors import FieldError, FieldWarning, UserError
from anchorprune.evaluation.inputs import field_reads, model_reads
from anchorprune.evaluation.request import Compute
from anchorprune.evaluation.runtime import Runtime
from anchorprune.files import StrPath, real_path
from anchorprune.models import check as check_model
from anchorprune.models import load
from anchorprune.models.base import LoadedModel, ModelSpec
from anchorprune.outputs import check_outputs
from anchorprune.pruning import Pruning, prune
from anchorprune.pruning.copies import sharing_copy
from anchorprune.pruning.cost import image_tower_flops, time_in_turns
from anchorprune.pruning.export import (
    ImageTower,
    Run,
    TextTower,
    check_format,
    check_strategy,
    example_images,
    image_tower_alone,
    runner,
    write,
)
from anchorprune.pruning.preprocessing import mean_and_std
from anchorprune.strategies import make_strategy
from anchorprune.strategies.base import Strategy
from anchorprune.towers import Tower, find_tower

# An image whose features differ by more than this share of their length had another token chosen by a close call:
# rounding alone stays below it by a factor of some hundred.
CLOSE = 1e-3
IMAGES, TIMED, REPEATS = 32, 8, 7  # checked by default; images of a batch that is timed, and times
WARNED = 0.25  # share of the images above CLOSE from which on the file is called another model
VERSION = 1  # of the metadata's form


@dataclass(frozen=True)
class Check:
    """What a file gives for images, or texts, held against the model that it was made of.

    Attributes:
        samples: how many.
        largest_difference: between two numbers of the features.
        least_cosine: of the two features of one sample.
        differing: share of the samples whose features differ by more than `CLOSE` of their length.
    """

    samples: int
    largest_difference: float
    least_cosine: float
    differing: float


@dataclass(frozen=True)
class ExportSpeed:
    """The time of a batch in the file's runtime, unpruned and pruned in turns, in milliseconds."""

    device: str
    batch_size: int
    unpruned_ms: tuple[float, ...]
    pruned_ms: tuple[float, ...]

    @property
    def speed_up(self) -> float:
        """Median over the repeats of the unpruned time over the pruned one of the same round."""
        return statistics.median(u / p for u, p in zip(self.unpruned_ms, self.pruned_ms, strict=True))


@dataclass(frozen=True)
class Export:
    """What was written, and what it is worth.

    Attributes:
        about: what the file says of itself.
        check: None where no images were asked for.
        speed: None unpruned, or where it was not asked for.
        text_path, text_check: of the text tower's file.
    """

    path: str
    format: str
    megabytes: float
    about: Mapping[str, Any]
    check: Check | None
    speed: ExportSpeed | None
    text_path: str | None = None
    text_check: Check | None = None

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"speed_up": self.speed.speed_up if self.speed else None}

    def to_text(self) -> str:
        """The report, a fact a line."""
        height, width = self.about["image_size"]
        lines = [
            f"{self.path}: {self.format}, {self.megabytes:.1f} MB, images of {height} × {width} pixels, "
            f"{self.about['gmacs']:.2f} of {self.about['gmacs_dense']:.2f} GMACs"
        ]
        if self.check:
            lines.append(_said(self.check, "photographs" if self.about["checked_on"] == bundled.TAG else "images"))
        if self.speed:
            unpruned, pruned = (statistics.median(ms) for ms in (self.speed.unpruned_ms, self.speed.pruned_ms))
            runtime = "ONNX Runtime" if self.format == "onnx" else "torch.export program"
            lines.append(
                f"{runtime}, batch {self.speed.batch_size}: unpruned {unpruned:.1f} ms, pruned {pruned:.1f} ms, "
                f"{self.speed.speed_up:.2f} × (median of {len(self.speed.pruned_ms)} alternating repeats, "
                f"{self.speed.device}, {torch.get_num_threads()} threads, float32)"
            )
        if self.text_path and self.text_check:
            lines += [f"{self.text_path}: {self.format}, the text tower", _said(self.text_check, "texts")]
        return "\n".join(lines)


def _said(check: Check, what: str) -> str:
    return (
        f"held against the model on {check.samples} {what}: largest difference {check.largest_difference:.1e}, least "
        f"cosine {check.least_cosine:.6f}; {100 * check.differing:.0f} % of them differ by more than {CLOSE:g} of "
        "their length"
    )


def export(
    model: ModelSpec | LoadedModel | nn.Module,
    strategy: str | Strategy | None,
    path: StrPath,
    *,
    format: str = "onnx",
    target_gmacs: float | None = None,
    normalize: bool = False,
    text_path: StrPath | None = None,
    transform: Callable[[Any], Tensor] | None = None,
    check_images: int = IMAGES,
    speed: bool = True,
    say: Callable[[str], object] | None = None,
    **fields: Any,
) -> Export:
    """Write the pruned image tower as a file that runs without anchorprune, run it, and hold it against the model.

    Its input is `images`, float32 `[B, 3, height, width]` of any B, its output `features`, `[B, D]` as `encode_image`
    gives them. Where the strategy has a coarser grid (`coarse`), the images come in that size: `Pruning.transform` of a
    model pruned with `small_images` makes them. The file says what it is (`METADATA`).

    Args:
        model: which one, a loaded one, or a bare module; it stays as it is.
        strategy: a name, with its fields in `fields`, or a strategy; None: unpruned.
        path: of the file, which appears whole or not at all.
        format: `onnx`, or `torch` for a `torch.export` program (.pt2).
        target_gmacs: as in `prune`.
        normalize: features of length 1.
        text_path: a file for the text tower, too: `tokens`, int64 `[B, length]`, to `features`.
        transform: the preprocessing of a bare module; None: resized, cropped and normalised as open_clip does it.
        check_images: of the bundled photographs, to hold the file against the model on; 0: none.
        speed: whether the file is timed beside an unpruned one.
        say: is told what is being done.

    Raises:
        UserError: something in the input is wrong, a package is missing, or the format cannot express the model.

    Warns:
        UserWarning: features differ for many images.
    """
    check_format(format, run=check_images > 0 or speed or text_path is not None)
    if check_images < 0:
        raise FieldError("check_images", check_images, "must be 0 (none) or more")
    if text_path is not None and real_path(text_path) == real_path(path):
        raise FieldError("text_output", str(text_path), "is the image tower's file; name another")
    if strategy == "none":
        strategy = None
    if isinstance(strategy, str):
        strategy, fields = make_strategy(strategy, **fields), {}
    elif fields:
        raise UserError(f"give fields ({', '.join(fields)}) with a strategy's name")
    targets = [("output", path), *([("text_output", text_path)] if text_path is not None else [])]
    reads = [
        *(model_reads(model) if isinstance(model, ModelSpec) else ()),
        *(field_reads(strategy) if strategy else ()),
    ]
    check_outputs(targets, reads)
    if strategy is not None:
        check_strategy(strategy)
    elif target_gmacs is not None:
        raise FieldError("target_gmacs", target_gmacs, "nothing is pruned; name a strategy")
    loaded = _loaded(model, transform)
    if text_path is not None and (loaded.tokenizer is None or not hasattr(loaded.model, "encode_text")):
        raise FieldError("text_output", str(text_path), "this model has no text tower with a tokenizer; leave it out")
    tell = say or (lambda _: None)

    dense = image_tower_alone(sharing_copy(loaded.model))
    tower, gmacs_dense = find_tower(dense), image_tower_flops(dense) / 2e9
    pruned, pruning = dense, None
    if strategy is not None:
        pruned = sharing_copy(dense)
        pruning = prune(pruned, strategy, target_gmacs=target_gmacs, small_images=True)
    size = pruning.image_size if pruning and pruning.image_size else tower.image_size
    about = _about(loaded, tower, pruning, size, image_tower_flops(pruned) / 2e9, gmacs_dense, normalize, check_images)

    seen = loaded.transform
    if pruning and (check_images or speed):
        seen = pruning.transform(seen)  # refused before the work, where it cannot be had

    tell(f"writing {path}")
    images = ("images", "features")
    write(ImageTower(pruned, normalize), example_images(size), path, format, images, about)
    check, found_speed = None, None
    if check_images or speed:
        batch = _photos(seen, check_images or TIMED)
        run = runner(path, format)
        if check_images:
            tell(f"running it on {len(batch)} photographs")
            check = _check(run, ImageTower(pruned, normalize), batch)
            _warn_of(check, str(path))
        if speed and pruning:
            tell("timing it beside an unpruned one")
            found_speed = _speed(run, dense, loaded.transform, batch, format)
    text_check = None
    if text_path is not None:
        tell(f"writing {text_path}")
        text_check = _export_text(loaded, text_path, format, normalize, about)
    return Export(
        path=str(path),
        format=format,
        megabytes=os.path.getsize(path) / 1e6,
        about=about,
        check=check,
        speed=found_speed,
        text_path=None if text_path is None else str(text_path),
        text_check=text_check,
    )


def _loaded(model: ModelSpec | LoadedModel | nn.Module, transform: Callable[[Any], Tensor] | None) -> LoadedModel:
    if isinstance(model, ModelSpec):
        check_model(model)
        model = load(model, torch.device("cpu"), "fp32")
    elif isinstance(model, nn.Module):
        model = LoadedModel(model, transform or _plain_transform(find_tower(model)))
    module = model.model
    if module.training:
        raise UserError("export: this model is in training mode; call model.eval() first")
    for tensor in module.parameters():
        if tensor.device.type != "cpu" or (tensor.is_floating_point() and tensor.dtype != torch.float32):
            raise UserError(
                f"export: weights in {str(tensor.dtype).removeprefix('torch.')} on {tensor.device}; export a model in "
                "float32 on the CPU (model.cpu().float()), and convert or quantise the file"
            )
    return model


def _plain_transform(tower: Tower) -> Any:
    """As open_clip has it for its own models."""
    from open_clip.transform import image_transform

    return image_transform(tower.image_size, is_train=False, mean=None, std=None)


def _about(
    loaded: LoadedModel,
    tower: Tower,
    pruning: Pruning | None,
    size: tuple[int, int],
    gmacs: float,
    gmacs_dense: float,
    normalize: bool,
    check_images: int,
) -> dict[str, Any]:
    normalised = mean_and_std(loaded.transform)
    return {
        "version": VERSION,
        "model": loaded.spec.name if loaded.spec else type(loaded.model).__name__,
        "pretrained": loaded.spec.pretrained if loaded.spec else None,
        "library": loaded.spec.library if loaded.spec else tower.name,
        "strategy": pruning.strategy.to_dict() if pruning else None,
        "gmacs": round(gmacs, 4),
        "gmacs_dense": round(gmacs_dense, 4),
        "image_size": list(size),
        "own_image_size": list(tower.image_size),
        "mean": normalised[0] if normalised else None,
        "std": normalised[1] if normalised else None,
        "normalized": normalize,
        "checked_on": bundled.TAG if check_images else None,
        "versions": {
            "anchorprune": anchorprune.__version__,
            **{
                name: _version(name)
                for name in ("torch", "open_clip_torch", "transformers", "timm", "onnx", "onnxscript")
            },
        },
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _photos(transform: Callable[[Any], Tensor], count: int) -> Tensor:
    """Bundled photographs, preprocessed for the file: `[count or all of them, 3, height, width]`, evenly spread."""
    data = open_dataset(DataSpec(name=bundled.TAG), transform)
    total = len(data.keys)
    count = min(count, total)
    return torch.stack([data.items[i * total // count][0] for i in range(count)])


def _check(run: Run, tower: nn.Module, batch: Tensor) -> Check:
    """In batches of several sizes, the last of them 1."""
    sizes = [TIMED] * ((len(batch) - 1) // TIMED)
    sizes += [rest for rest in (len(batch) - sum(sizes) - 1, 1) if rest]
    with torch.no_grad():
        parts = [(run(part), tower(part)) for part in batch.split(sizes)]
    ours, theirs = (torch.cat(each) for each in zip(*((b, a) for a, b in parts), strict=True))
    relative = (theirs - ours).norm(dim=1) / ours.norm(dim=1)
    return Check(
        samples=len(batch),
        largest_difference=float((theirs - ours).abs().max()),
        least_cosine=float(F.cosine_similarity(ours.double(), theirs.double()).min()),
        differing=float((~(relative <= CLOSE)).double().mean()),  # true for NaN too
    )


def _warn_of(check: Check, path: str) -> None:
    if check.differing > WARNED:
        text = f"{path}: its features are others than the model's for {100 * check.differing:.0f} % of the samples"
        warnings.warn(FieldWarning(text, text), stacklevel=3)


def _speed(run: Run, dense: nn.Module, transform: Callable[[Any], Tensor], batch: Tensor, format: str) -> ExportSpeed:
    batch = batch[:TIMED]
    own = _photos(transform, len(batch))
    with tempfile.TemporaryDirectory(prefix="anchorprune-") as folder:
        path = Path(folder) / "unpruned"
        write(ImageTower(dense), example_images(find_tower(dense).image_size), path, format, ("images", "features"), {})
        run_dense = runner(path, format)
        works: Sequence[Callable[[], object]] = [partial(run_dense, own), partial(run, batch)]
        for work in works:
            work()
        seconds = time_in_turns(works, torch.device("cpu"), REPEATS)
    unpruned, pruned = (tuple(1000 * each for each in own_seconds) for own_seconds in seconds)
    device = Runtime.of(Compute(device="cpu")).environment()["device_name"]
    return ExportSpeed(device, len(batch), unpruned, pruned)


def _export_text(loaded: LoadedModel, path: StrPath, format: str, normalize: bool, about: Mapping[str, Any]) -> Check:
    assert loaded.tokenizer is not None
    names = open_dataset(DataSpec(name=bundled.TAG), lambda image: image).classes or []
    tokens = loaded.tokenizer([f"a photo of a {name}." for name in names[:IMAGES]])
    tower = TextTower(sharing_copy(loaded.model), normalize)
    kept = ("version", "model", "pretrained", "library", "normalized", "versions")
    own = {name: about[name] for name in kept} | {"context_length": tokens.shape[1]}
    write(tower, tokens[:2], path, format, ("tokens", "features"), own)
    check = _check(runner(path, format), tower, tokens)
    _warn_of(check, str(path))
    return check
