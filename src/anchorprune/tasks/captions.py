"""The texts that come with images, as the tasks that compare the two need them. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anchorprune.errors import FieldError, UserError
from anchorprune.tasks.base import Bench

if TYPE_CHECKING:
    from torch import Tensor

    from anchorprune.datasets.sampling import Batch


class Captions:
    """The features of a batch's texts: made once for all ways of pruning, since no pruning touches a text tower."""

    def __init__(self, bench: Bench) -> None:
        """UserError for a model without a text tower."""
        if bench.loaded.tokenizer is None:
            raise UserError("this model has no text tower to compare images with texts by: give a CLIP-like one")
        self._bench = bench
        self._batch: Batch | None = None
        self._features: Tensor | None = None

    def of(self, batch: Batch) -> Tensor:
        """The features of all its texts, image by image, `[texts, D]`, normalised float32, on the CPU.

        Equal texts of a batch have equal features, to the bit.

        Raises:
            UserError: an image without a text.
        """
        if self._features is None or batch is not self._batch:
            self._features, self._batch = self._encoded(batch), batch
        return self._features

    def _encoded(self, batch: Batch) -> Tensor:
        import torch

        from anchorprune.models.texts import encode_texts

        bench, texts = self._bench, batch.targets
        check_texts(batch, bench.dataset.name)
        assert bench.loaded.tokenizer is not None
        places = {text: i for i, text in enumerate(dict.fromkeys(text for own in texts for text in own))}
        with bench.autocast():
            tokens = bench.loaded.tokenizer(list(places))
            features = encode_texts(bench.loaded.model, tokens, bench.device).cpu()
        return features[torch.tensor([places[text] for own in texts for text in own])]


def check_texts(batch: Batch, dataset: str) -> None:
    """UserError for an image without a text, of a batch of `dataset`."""
    for key, own in zip(batch.keys, batch.targets, strict=True):
        if not own:
            raise FieldError("dataset", dataset, f"sample {key} has no text; give it one or more")
