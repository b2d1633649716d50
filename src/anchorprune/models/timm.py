"""timm: an image tower by its name, with its weights."""

from __future__ import annotations

import torch

from anchorprune.errors import FieldError, did_you_mean
from anchorprune.models.base import LoadedModel


def check(model: str, pretrained: str, cache_dir: str | None = None) -> None:
    """Raise UserError unless timm knows the model, and its weights where a tag (`NAME.TAG`) is given."""
    import timm

    if not timm.is_model(model):
        known = timm.list_models()
        raise FieldError("model", model, f"timm has no such model.{did_you_mean(model, known)}")
    if pretrained and pretrained not in (tags := timm.list_pretrained(model)):
        raise FieldError(
            "pretrained", pretrained, f"is none of timm's for {model} ({', '.join(tags) or 'it has none'})"
        )


def load(model: str, pretrained: str, *, cache_dir: str | None, device: torch.device, precision: str) -> LoadedModel:
    """A timm model, which has no text tower: to be timed, not to be evaluated.

    Args:
        pretrained: one of `timm.list_pretrained(model)`; empty for random weights.

    Raises:
        UserError: unknown model or weights, no network.
    """
    import timm

    check(model, pretrained)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    try:
        built = timm.create_model(pretrained or model, pretrained=bool(pretrained), cache_dir=cache_dir)
    except (RuntimeError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FieldError("pretrained", pretrained, f"cannot be loaded by timm ({reason})") from error
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=built))
    return LoadedModel(built.eval().to(device, dtype), transform)
