"""How sure an answer is: the margin between the two texts of a bank that are nearest to an image."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from anchorprune.errors import FieldError, UserError
from anchorprune.reading import check_archive, check_real, reason


def read_classifier(path: str, field: str) -> Float[Tensor, "D C"]:
    """The classifier in a file, as `save_clf` writes it, in float32 on the CPU.

    Args:
        field: what named the file, for the errors.

    Raises:
        FieldError: a file that is missing, damaged, holds something else, or numbers that are not finite.
    """
    try:
        check_archive(path)
        classifier = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise FieldError(field, path, "no such file") from error
    except MemoryError:
        raise
    except Exception as error:  # torch.load raises half a dozen kinds for a file that it cannot read
        raise FieldError(field, path, f"is no saved tensor ({reason(error)})") from error
    try:
        check_real(classifier, 2)
    except ValueError as error:
        fix = f"must hold one tensor [features, classes], as save_clf writes it; {error}"
        raise FieldError(field, path, fix) from error
    classifier = classifier.float()
    if broken := int((~classifier.isfinite()).any(dim=0).sum()):
        raise FieldError(field, path, f"{broken} of its {classifier.shape[1]} classes hold numbers that are not finite")
    length = classifier.norm(dim=0)
    if broken := int((~length.isfinite() | (length == 0)).sum()):  # all images would be equally near
        said = f"{broken} of its {classifier.shape[1]} classes are zeros, or too large for float32"
        raise FieldError(field, path, f"{said}; save it anew")
    found: Tensor = classifier
    return found


def margins(features: Float[Tensor, "B D"], bank: Float[Tensor, "D C"]) -> Float[Tensor, " B"]:
    """By how much each image's nearest text beats the next, as a difference of cosines where columns have length 1.

    In float32 also under autocast, where close texts would tie.
    """
    with torch.autocast(features.device.type, enabled=False):
        cosines = F.normalize(features.float(), dim=-1) @ bank
        best: Tensor = cosines.topk(2, dim=-1).values
    return best[:, 0] - best[:, 1]


def unsure(margins: Float[Tensor, " B"], share: float, min_margin: float | None) -> Int[Tensor, " U"]:
    """Which images go on, ascending: those below `min_margin`, or else the `share` of least margin.

    A share is rounded down, so that it never costs more than it says; of equal margins the first go on.
    """
    if min_margin is not None:
        return (margins < min_margin).nonzero().squeeze(1)
    count = int(share * len(margins) + 1e-9)  # 0.29 of 100 are 29
    return margins.argsort(stable=True)[:count].sort().values


def check_bank(bank: Tensor, width: int | None = None) -> None:
    """Raise UserError for a bank that no margin can be had of.

    Args:
        width: of the features; None where it is not known yet.
    """
    if bank.dim() != 2 or bank.shape[1] < 2:
        raise UserError(f"the texts of a cascade are {list(bank.shape)}; give [features, texts] of two texts or more")
    if width is not None and bank.shape[0] != width:
        raise UserError(
            f"the texts of a cascade are for features of width {bank.shape[0]}, the model's have {width}: give texts "
            "that this very model has encoded"
        )
