"""Which samples of a data set are used, and how they come in batches."""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from anchorprune.datasets.images import BadImage
from anchorprune.datasets.shared_memory import Carried
from anchorprune.datasets.workers import PATIENCE, in_batches
from anchorprune.errors import FieldError

__all__ = ["BadImage", "Batch", "choose", "loader"]

if TYPE_CHECKING:
    from torch import Tensor

    from anchorprune.datasets.base import EvalDataset


@dataclass
class Batch(Carried):
    """Some consecutive samples, bad ones taken out.

    Attributes:
        images: float [B, 3, H, W] (or [B, n, 3, H, W], see `EvalDataset.kind`), or None where no image of the batch
            could be read (B = 0).
        targets: long [B] of `classes`, float [B, C] of `labels`, a list of texts for each image of other kinds.
        indices: long [B], which samples of the data set these are.
        keys: what they are called.
        bad: (key, reason) of every image that could not be read, in order.
    """

    images: Tensor | None
    targets: Any
    indices: Tensor
    keys: list[str]
    bad: list[tuple[str, str]]


def choose(keys: Sequence[str], limit: int | None, seed: int) -> list[int]:
    """Indices of the `limit` samples whose keyed hash is smallest, ascending; all of them for None.

    Whether a sample is chosen depends on `seed`, its key and the other keys, never on the order of the data
    set, so a class-sorted data set gives several classes, and the chosen of a smaller limit are among those
    of a larger one. Equal keys: the lower index first.

    Raises UserError for a limit below 1.
    """
    if limit is not None and limit < 1:
        raise FieldError("limit", limit, "give a number of samples from 1 up, or leave it out for all of them.")
    if limit is None or limit >= len(keys):
        return list(range(len(keys)))

    def rank(index: int) -> tuple[bytes, int]:
        # surrogateescape: file names need not be valid UTF-8
        text = f"{seed}\0{keys[index]}".encode("utf-8", "surrogateescape")
        return hashlib.blake2b(text, digest_size=8).digest(), index

    return sorted(sorted(range(len(keys)), key=rank)[:limit])


class _Chosen:
    """The chosen samples of a data set, as the DataLoader sees them: a bad image is a value, not an error."""

    def __init__(self, dataset: EvalDataset, indices: Sequence[int], room: int | None = None) -> None:
        self.items, self.kind, self.room = dataset.items, dataset.kind, room
        self.indices = list(indices)
        # only the chosen keys: workers may get a pickled copy
        self.keys = [dataset.keys[index] for index in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[int, Any, Any]:
        try:
            image, target = self.items[self.indices[position]]
        except BadImage as err:
            return position, None, err
        except Exception as err:  # of a data set that decodes by itself
            if not _of_a_decoder(err):
                raise
            return position, None, BadImage(f"{type(err).__name__}: {err}")
        return position, image, target

    def lost(self, position: int, reason: str) -> tuple[int, Any, Any]:
        return position, None, BadImage(reason)

    def collate(self, samples: list[tuple[int, Any, Any]]) -> Batch:
        import torch

        bad = [(self.keys[i], str(err)) for i, _, err in samples if isinstance(err, BadImage)]
        good = [sample for sample in samples if not isinstance(sample[2], BadImage)]
        images = torch.stack([image for _, image, _ in good]) if good else None
        targets: Any
        if self.kind == "labels" and good:
            targets = torch.stack([torch.as_tensor(target, dtype=torch.float32) for _, _, target in good])
        elif self.kind in ("captions", "choices"):
            targets = [list(target) for _, _, target in good]
        else:
            targets = torch.tensor([int(target) for _, _, target in good], dtype=torch.long)
        indices = torch.tensor([self.indices[i] for i, _, _ in good], dtype=torch.long)
        batch = Batch(images, targets, indices, [self.keys[i] for i, _, _ in good], bad)
        batch.carry(self.room)
        return batch


def _of_a_decoder(err: BaseException) -> bool:
    """Whether it comes out of one of Pillow's decoders, which raise anything for a damaged file."""
    modules = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(err.__traceback__))
    return any(name == "PIL.ImageFile" or (name[:4] == "PIL." and name.endswith("ImagePlugin")) for name in modules)


def loader(dataset: EvalDataset, indices: Sequence[int], *, batch_size: int, num_workers: int) -> Iterator[Batch]:
    """A `Batch` for every `batch_size` of the chosen samples.

    The order is that of `indices`, and the batches are the same for any number of workers. A `BadImage` lands
    in `Batch.bad`, and so does what kills the process that reads it; any other exception propagates.

    Raises UserError for a batch size below 1 or a negative number of workers.
    """
    if batch_size < 1:
        raise FieldError("batch_size", batch_size, "give a number of images from 1 up.")
    if num_workers < 0:
        raise FieldError("num_workers", num_workers, "give 0 (no worker processes) or more.")
    chosen = _Chosen(dataset, indices)
    batches = [range(len(chosen))[start : start + batch_size] for start in range(0, len(chosen), batch_size)]
    return in_batches(chosen, batches, num_workers=min(num_workers, len(batches)), patience=PATIENCE + 2 * batch_size)
