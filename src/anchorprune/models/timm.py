"""timm: an image tower by its name, with its weights."""

from __future__ import annotations

import os
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from anchorprune.errors import FieldError, did_you_mean
from anchorprune.models.base import LoadedModel


class TimmImages(nn.Module):
    """A timm model with the method that `evaluate` calls: its pooled features, without its classifier."""

    # Nobody reads the patches of its last block, where it does not pool them.
    reads_pooled_features: ClassVar[bool] = True

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def encode_image(self, images: Tensor) -> Tensor:
        features: Tensor = self.visual(images)
        return features


def check(model: str, pretrained: str, cache_dir: str | None = None, trust: bool = False) -> None:
    """Raise UserError unless timm knows the model, and its weights where a tag (`NAME.TAG`) and no file is given."""
    import timm

    if not timm.is_model(model):
        raise FieldError("model", model, f"timm has no such model.{did_you_mean(model, timm.list_models())}")
    if pretrained and not os.path.isfile(pretrained) and pretrained not in (tags := timm.list_pretrained(model)):
        known = ", ".join(tags) or "it has none"
        raise FieldError("pretrained", pretrained, f"neither a file nor one of timm's for {model} ({known})")


def default_weights(model: str) -> str:
    """The weights that timm itself takes when none are named. UserError for a model without any."""
    import timm

    check(model, "")
    if not (tags := timm.list_pretrained(model)):
        raise FieldError("model", model, "timm has no weights of it; give a checkpoint file as pretrained")
    known = timm.get_pretrained_cfg(model)
    name = f"{model}.{known.tag}" if known else ""
    return name if name in tags else str(tags[0])


def has_text_tower(model: str) -> bool:
    """None of timm's has one."""
    return False


def skeleton(model: str) -> nn.Module | None:
    """The model without weights, to look at its tower before anything is downloaded; None where that cannot be had."""
    import timm

    try:
        with torch.device("meta"):
            return TimmImages(timm.create_model(model, num_classes=0)).eval()
    except Exception:  # some towers compute with values while they are built; meta tensors have none
        return None


def load(
    model: str,
    pretrained: str,
    *,
    cache_dir: str | None,
    device: torch.device,
    precision: str,
    trust: bool = False,
) -> LoadedModel:
    """A timm model without its classifier. It has no text tower: for a linear probe, and to be timed and exported.

    Args:
        pretrained: one of `timm.list_pretrained(model)`, or a checkpoint file of this model; empty for random weights.

    Raises:
        UserError: unknown model or weights, a file that is damaged or of another model, no network.
    """
    import timm

    check(model, pretrained)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    from_file = os.path.isfile(pretrained)
    name, known = (model, False) if from_file else (pretrained or model, bool(pretrained))
    try:
        built = timm.create_model(name, pretrained=known, cache_dir=cache_dir, num_classes=0)
        if from_file:
            built.load_state_dict(_weights_in(pretrained, built))
    except Exception as error:  # of timm, the hub's client, torch and safetensors
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        reason = " ".join(lines[:2])[:160]
        raise FieldError("pretrained", pretrained, f"cannot be loaded by timm as {model} ({reason})") from error
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=built))
    return LoadedModel(TimmImages(built).eval().to(device, dtype), transform)


def _weights_in(file: str, built: Any) -> dict[str, Tensor]:
    """A checkpoint's weights without those of the classifier, which `built` has none of. Nothing in the file runs."""
    from timm.models import load_state_dict

    heads = built.pretrained_cfg.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else heads
    state: dict[str, Tensor] = load_state_dict(file, weights_only=True)
    return {name: weight for name, weight in state.items() if not name.startswith(tuple(f"{head}." for head in heads))}
