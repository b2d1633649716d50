"""What of a model gives the features of images, and where they are in what comes back."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from anchorprune.errors import UserError

_METHODS = ("encode_image", "get_image_features")  # of open_clip and what has its interface, and of transformers
_NAMES = ("image_embeds", "pooler_output")


def method_of(model: Any) -> str:
    """The method that one calls for the features of images; `forward` where it has no other."""
    return next((name for name in _METHODS if hasattr(model, name)), "forward")


def features_of(found: Any) -> Tensor:
    """`[B, D]`, in what that method gave. UserError where there are none."""
    features = found if isinstance(found, Tensor) else getattr(found, _name_in(found), None)
    if isinstance(features, Tensor):
        return features
    raise UserError(f"this model returns {type(found).__name__}, in which no features [B, D] are to be found")


def with_features(found: Any, features: Tensor) -> Any:
    """Of the kind of `found`, with these features and nothing else."""
    return features if isinstance(found, Tensor) else type(found)(**{_name_in(found): features})


def _name_in(found: Any) -> str:
    return next((name for name in _NAMES if isinstance(getattr(found, name, None), Tensor)), _NAMES[0])
