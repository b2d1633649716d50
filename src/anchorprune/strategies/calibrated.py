"""Another strategy at a budget of a calibration, whose features are brought nearer to the unpruned ones."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from anchorprune.errors import FieldError, UserError
from anchorprune.files import StrPath, write_bytes
from anchorprune.reading import check_regular, json_of
from anchorprune.strategies.base import CompositeStrategy, Strategy, option

if TYPE_CHECKING:
    from torch import Tensor, nn

    from anchorprune.alignment import Alignment
    from anchorprune.tokens import TokenPlan, Tokens

VERSION = 1  # of the file's form
KEY = "anchorprune"  # of the safetensors file's metadata


@dataclass(frozen=True)
class Calibrated(CompositeStrategy):
    """Prunes as a file of `anchorprune calibrate` says, and aligns the features with the unpruned ones.

    What pruning does to features is in part the same for all images. `calibrate` measures it on images without labels,
    by least squares, and this undoes it: one D × D product an image (docs/method.md).
    """

    name: ClassVar[str] = "calibrated"
    budget_fields: ClassVar[tuple[str, ...]] = ("entry",)

    calibration: str = option("", "the file that `anchorprune calibrate` wrote", file=True)
    entry: int = option(0, "which of its budgets, counted from 0, the most expensive first")

    def __post_init__(self) -> None:
        if isinstance(self.calibration, os.PathLike):
            object.__setattr__(self, "calibration", os.fspath(self.calibration))
        super().__post_init__()
        if self.entry < 0:
            raise FieldError("entry", self.entry, "must be 0 or more")

    def _content(self) -> Calibration:
        if not self.calibration:
            raise FieldError("calibration", "", "name a file that `anchorprune calibrate` wrote")
        path = Path(self.calibration)
        try:
            stamp = path.stat()
        except OSError as error:
            raise FieldError("calibration", self.calibration, f"cannot be read ({error.strerror})") from error
        content = _loaded(path, stamp.st_mtime_ns, stamp.st_size)
        if self.entry >= len(content.strategies):
            raise FieldError("entry", self.entry, f"{self.calibration} has {len(content.strategies)}, counted from 0")
        return content

    @property
    def inner(self) -> Strategy:
        """The strategy that chooses the tokens."""
        return self._content().strategies[self.entry]

    def applied(self) -> tuple[Strategy, Callable[[Tensor], Tensor] | None]:
        content = self._content()
        return content.strategies[self.entry], content.alignments[self.entry]

    def check_fits(self, module: nn.Module) -> None:
        if not self._content().is_of(module):
            raise FieldError(
                "calibration", self.calibration, "was made for other weights than this model's: calibrate it anew"
            )

    @property
    def couples_batch(self) -> bool:
        return self.inner.couples_batch

    def schedule(self, num_patches: int, num_blocks: int) -> dict[int, int]:
        return self.inner.schedule(num_patches, num_blocks)

    def plan(self, tokens: Tokens, keep_patches: int) -> TokenPlan:
        return self.inner.plan(tokens, keep_patches)

    def budgets(self, num_patches: int, num_blocks: int) -> Sequence[Strategy]:
        return [dataclasses.replace(self, entry=i) for i in range(len(self._content().strategies))]


@lru_cache(maxsize=8)
def _loaded(path: Path, mtime: int, size: int) -> Calibration:
    """A file's content, read again when it has changed."""
    try:
        return Calibration.load(path)
    except UserError as error:
        raise FieldError("calibration", str(path), str(error)) from error


@dataclass(frozen=True, eq=False)
class Calibration:
    """Strategies with their alignments, for one image tower.

    Attributes:
        strategies: each with a budget, the most expensive first.
        alignments: of each, for the features that come out of the tower.
        tower: `signature` of the weights that it was made for.
        about: what it was made of: model, data, images, and of each strategy its GMACs and what the alignment is worth.
    """

    strategies: tuple[Strategy, ...]
    alignments: tuple[Alignment, ...]
    tower: Tensor
    about: Mapping[str, Any] = field(default_factory=dict)

    def is_of(self, module: nn.Module) -> bool:
        """Whether an image tower has the weights that this was made for; true for one that has none to tell by."""
        from anchorprune.alignment import same_tower, signature

        found = signature(module)
        return found is None or same_tower(self.tower, found)

    def save(self, path: StrPath) -> None:
        """Write a safetensors file, all of it or nothing."""
        from safetensors.torch import save

        tensors = {"tower": self.tower}
        for i, alignment in enumerate(self.alignments):
            tensors |= {f"{i}.matrix": alignment.matrix.contiguous(), f"{i}.bias": alignment.bias.contiguous()}
        content = {
            "version": VERSION,
            "strategies": [strategy.as_dict() for strategy in self.strategies],
            "about": dict(self.about),
        }
        write_bytes(save(tensors, {KEY: json.dumps(content)}), path)

    @staticmethod
    def load(path: StrPath) -> Calibration:
        """What `save` wrote. UserError for anything else."""
        from safetensors import safe_open

        from anchorprune.alignment import Alignment

        try:
            check_regular(path)
            with safe_open(str(path), framework="pt") as file:
                names, content = list(file.keys()), json_of((file.metadata() or {}).get(KEY, "null"))
                tensors = {name: file.get_tensor(name) for name in names}
        except Exception as error:  # safetensors', json's and the file system's
            reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
            raise UserError(f"is no file that `anchorprune calibrate` wrote ({reason})") from error
        if not isinstance(content, dict) or not isinstance(given := content.get("strategies"), list) or not given:
            raise UserError("is no file that `anchorprune calibrate` wrote")
        if content.get("version") != VERSION:
            raise UserError(f"is of version {content.get('version')!r}; this anchorprune reads version {VERSION}")
        strategies = tuple(Strategy.from_dict(each) for each in given)
        if made := next(
            (each for each in strategies if isinstance(each, CompositeStrategy) or each.acts == "stages"), None
        ):
            # `calibrate` writes none; one that names this very file would have no end
            raise UserError(f"holds the strategy {made.name!r}, which is made of others; calibrate those")
        alignments = tuple(
            Alignment(_tensor(tensors, f"{i}.matrix", 2), _tensor(tensors, f"{i}.bias", 1))
            for i in range(len(strategies))
        )
        for alignment in alignments:
            if alignment.matrix.shape != (len(alignment.bias),) * 2:
                raise UserError("holds a matrix and a bias that do not fit each other")
        about = content.get("about")
        return Calibration(
            strategies, alignments, _tensor(tensors, "tower", 2), about if isinstance(about, dict) else {}
        )


def _tensor(tensors: Mapping[str, Tensor], name: str, dims: int) -> Tensor:
    tensor = tensors.get(name)
    if tensor is None or tensor.dim() != dims or str(tensor.dtype) != "torch.float32":
        raise UserError(f"has no float32 tensor {name} of {dims} dimensions")
    if not bool(tensor.isfinite().all()):
        raise UserError(f"holds numbers that are not finite in {name}")
    return tensor
