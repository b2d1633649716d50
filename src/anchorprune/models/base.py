"""A CLIP-like model: which one (`ModelSpec`), and loaded, with what it takes to feed it. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Which model.

    Attributes:
        name: what its library calls it, or a folder.
        pretrained: a tag of its weights, or a checkpoint file; empty: random ones, or those that the name stands for.
        library: `open_clip`, `hf` (transformers) or `timm`.
        cache_dir: where downloaded weights are kept; None: where the library keeps them.
        trust_remote_code: whether Python code that lies beside the weights is run.
    """

    name: str
    pretrained: str = ""
    library: str = "open_clip"
    cache_dir: str | None = None
    trust_remote_code: bool = False

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it: trust is mentioned where it is given."""
        content = dataclasses.asdict(self)
        if not self.trust_remote_code:
            del content["trust_remote_code"]
        return content


@dataclass
class LoadedModel:
    """A CLIP-like model, ready to evaluate.

    Attributes:
        model: has `encode_image`, and `encode_text` where a task needs texts; in evaluation mode, on its device.
        transform: PIL image -> `[3, height, width]`.
        tokenizer: list of texts -> LongTensor `[texts, length]`; None for a model without a text tower.
        options: how it was built, where that differs from its config; goes into the result.
        spec: what it was loaded by; None for a model of your own.
    """

    model: Any
    transform: Callable[[Any], Tensor]
    tokenizer: Callable[[list[str]], Tensor] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    spec: ModelSpec | None = None
