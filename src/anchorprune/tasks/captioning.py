"""Captioning: what a model writes about an image against what people wrote, by pycocoevalcap's scorers.

Metrics are held against clip-benchmark 1.6.2's own function in the tests. pycocoevalcap, and through it Java, are used
here only, and only when this task is asked for.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from anchorprune.errors import FieldError, UserError
from anchorprune.tasks.base import Bench, EncodeSplit, Outcomes, Task, option
from anchorprune.tasks.captions import check_texts

if TYPE_CHECKING:
    from torch import Tensor

    from anchorprune.datasets.sampling import Batch

_INSTALL = "pip install 'anchorprune[captioning]'"
_BEGIN, _END = "<start_of_text>", "<end_of_text>"

Tokens = dict[int, list[str]]


@dataclass(frozen=True)
class Captioning(Task):
    """The caption that the model writes for each image, against those that the image has."""

    name: ClassVar[str] = "captioning"
    kinds: ClassVar[tuple[str, ...]] = ("captions",)
    reads_features: ClassVar[bool] = False

    spice: str = option(
        "yes", "whether to compute SPICE, which fetches 400 MB once and takes minutes", choices=("yes", "no")
    )

    @property
    def primary(self) -> str:
        # CIDEr, which people look at first, is no share. Of those that are, this alone is a mean over images.
        return "ROUGE_L"

    def check(self) -> None:
        try:
            folder = Path(str(_scorers("tokenizer.ptbtokenizer").__file__)).parent
        except ImportError as error:
            raise UserError(f"captioning needs the package pycocoevalcap ({error}): {_INSTALL}") from error
        if shutil.which("java") is None:
            raise UserError(
                "captioning: its scorers are Java programs, and there is no java on the PATH; install a Java runtime, "
                "such as the package default-jre-headless"
            )
        if not os.access(folder, os.W_OK):
            raise UserError(f"captioning: pycocoevalcap writes temporary files to {folder}, and you may not")
        if self.spice == "yes":
            _fetch_spice()

    def forward(self, model: Any, images: Tensor) -> Tensor:
        """Token ids `[B, length]`, as the model's own `generate` gives them by its defaults."""
        ids: Tensor = model.generate(images)
        return ids

    def prepare(self, bench: Bench) -> Prepared:
        self.check()  # there may have been no preflight
        model, decode = bench.loaded.model, getattr(bench.loaded.tokenizer, "decode", None)
        if not callable(getattr(model, "generate", None)) or decode is None:
            raise UserError("this model writes no captions (it has no generate): give a CoCa, such as coca_ViT-B-32")
        if not getattr(sys.modules[type(model).__module__], "_has_transformers", True):  # open_clip's own mark
            raise UserError(
                "captioning: open_clip searches captions with parts of transformers that it finds up to version 4.55; "
                "pip install 'transformers<4.56'"
            )
        return Prepared(decode, self.spice == "yes", bench.dataset.name)

    def meter(self, prepared: Prepared, encode_split: EncodeSplit) -> Captioned:
        return Captioned(prepared)


@dataclass
class Prepared:
    """Token ids to text; whether SPICE is wanted; what the data set is called."""

    decode: Callable[[Sequence[int]], str]
    spice: bool
    dataset: str


class Captioned:
    """The captions that were written, and those that the images have."""

    def __init__(self, prepared: Prepared) -> None:
        self._decode, self._spice, self._dataset = prepared.decode, prepared.spice, prepared.dataset
        self._written: dict[int, tuple[str, str, list[str]]] = {}  # key, the model's, the image's own
        self._scored: tuple[dict[str, float], list[float]] | None = None

    def update(self, out: Tensor, batch: Batch) -> None:
        """Take token ids `[B, length]`. UserError for an image without a caption."""
        check_texts(batch, self._dataset)
        for i, key, ids, own in zip(batch.indices.tolist(), batch.keys, out.tolist(), batch.targets, strict=True):
            text = self._decode(ids).split(_END)[0].replace(_BEGIN, "")
            self._written[i] = key, text, own
        self._scored = None

    def merge(self, other: Captioned) -> None:
        self._written |= other._written
        self._scored = None

    def compute(self) -> dict[str, float]:
        """Bleu_1 … Bleu_4, METEOR, ROUGE_L, CIDEr and SPICE. All but CIDEr are between 0 and 1."""
        return self._score()[0]

    def scores(self) -> Outcomes:
        """ROUGE_L of each image."""
        import numpy as np

        return Outcomes(tuple(self._written[i][0] for i in sorted(self._written)), np.array(self._score()[1]))

    def _score(self) -> tuple[dict[str, float], list[float]]:
        if self._scored is None:
            samples = [self._written[i] for i in sorted(self._written)]
            written = tokenized([[text] for _, text, _ in samples])
            self._scored = score(written, tokenized([own for _, _, own in samples]), self._spice)
        return self._scored


def tokenized(texts: Sequence[Sequence[str]]) -> Tokens:
    """The Penn Treebank's tokens of several texts a sample, without punctuation, in lower case, joined by blanks.

    By the Stanford tokenizer that pycocoevalcap brings, which takes and gives a line a text.
    """
    # A line for each, whatever separators a text holds; and one more, by which it is seen that none was lost.
    lines = {i: [{"caption": " ".join(text.split())} for text in own] for i, own in enumerate(texts)}
    lines[len(texts)] = [{"caption": "last"}]
    tokens: Tokens = _scorers("tokenizer.ptbtokenizer").PTBTokenizer().tokenize(lines)
    if tokens.pop(len(texts), None) != ["last"]:
        raise UserError("captioning: pycocoevalcap's tokenizer gave no line for each caption; try `java -version`")
    return tokens


def score(written: Tokens, own: Tokens, spice: bool) -> tuple[dict[str, float], list[float]]:
    """The metrics by clip-benchmark's names, and ROUGE_L of each image.

    Args:
        written, own: tokens of the one caption that was written for each image, and of those that it has.
    """
    metrics: dict[str, float] = {}
    with contextlib.redirect_stdout(io.StringIO()):  # the scorers say how far they are
        bleu, _ = _scorers("bleu.bleu").Bleu(4).compute_score(own, written)
        metrics |= {f"Bleu_{n}": float(value) for n, value in enumerate(bleu, 1)}
        metrics["METEOR"] = _meteor(written, own)
        rouge, of_each = _scorers("rouge.rouge").Rouge().compute_score(own, written)
        metrics["ROUGE_L"] = float(rouge)
        metrics["CIDEr"] = float(_scorers("cider.cider").Cider().compute_score(own, written)[0])
        if spice:
            metrics["SPICE"] = float(_scorers("spice.spice").Spice().compute_score(own, written)[0])
    return metrics, [float(value) for value in of_each]


def _meteor(written: Tokens, own: Tokens) -> float:
    scorer = _scorers("meteor.meteor").Meteor()
    try:
        return float(scorer.compute_score(own, written)[0])
    finally:  # it would leave its process, and the pipes to it, to the garbage collector
        scorer.meteor_p.kill()
        scorer.meteor_p.communicate()


def _scorers(module: str) -> Any:
    return importlib.import_module(f"pycocoevalcap.{module}")


def _fetch_spice() -> None:
    """What SPICE needs and its package does not bring, downloaded where it is not there. UserError if it cannot be."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            _scorers("spice.get_stanford_models").get_stanford_models()
    except Exception as error:  # urllib's, zipfile's and the file system's
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise FieldError(
            "spice",
            "yes",
            f"Stanford CoreNLP 3.6.0, which it needs, could not be had ({reason}); spice='no' goes without it",
            typed=f"Stanford CoreNLP 3.6.0, which it needs, could not be had ({reason}); --spice no goes without it",
        ) from error
