"""Alignment: an affine map that brings a pruned tower's features nearer to those it gives unpruned.

What pruning does to features is in part the same for all images, and a map that was fitted to some of them undoes that
part for others. It is fitted by least squares, from unlabelled images, in closed form; nothing is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from anchorprune.errors import UserError

# How strongly the map is drawn to the identity, over the mean eigenvalue of the features' covariance.
RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
FOLDS = 5
LEAST = 50  # images, below which nothing is fitted
CLOSE = 0.02  # of a parameter's spread, by which rounding may move one of its values
SAMPLES = 4  # values that are remembered of each parameter


@dataclass(frozen=True, eq=False)
class Alignment:
    """f ↦ f · `matrix` + `bias`, for features `[..., D]`.

    Attributes:
        matrix: `[D, D]`, float32.
        bias: `[D]`, float32.
    """

    matrix: Float[Tensor, "D D"]
    bias: Float[Tensor, " D"]

    def __call__(self, features: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """In the features' own dtype, on their device.

        Raises:
            UserError: features of another width.
        """
        width = features.shape[-1]
        if width != len(self.bias):
            has = f"the calibration is for features of width {len(self.bias)}, this tower's have {width}"
            raise UserError(f"{has}; calibrate this model by anchorprune calibrate")
        matrix, bias = (part.to(features.device, features.dtype) for part in (self.matrix, self.bias))
        return features @ matrix + bias


@dataclass(frozen=True)
class Fit:
    """An alignment, and what it is worth on images that it was not fitted to.

    Attributes:
        ridge: of `RIDGES`, the one that fits left-out images best.
        cosine, aligned: mean cosine of pruned features to unpruned ones: before, and after by maps that were each
            fitted to other images.
    """

    alignment: Alignment
    ridge: float
    cosine: float
    aligned: float


def fit(pruned: Float[Tensor, "N D"], unpruned: Float[Tensor, "N D"]) -> Fit:
    """The map from pruned features to unpruned ones of the same images, by ridge regression towards the identity.

    With X and Y the centred features: W = I + (XᵀX + λI)⁻¹ Xᵀ(Y − X), which minimises ‖XW − Y‖² + λ‖W − I‖². λ is
    chosen among `RIDGES` by cross-validation in `FOLDS` parts, so that with few images little is changed.

    Raises:
        UserError: fewer than `LEAST` images.
    """
    if len(pruned) < LEAST:
        raise UserError(
            f"{len(pruned)} images are too few to calibrate with; give {LEAST} or more, best some thousands"
        )
    x, y = pruned.double(), unpruned.double()
    fold = torch.arange(len(x)) % FOLDS
    found = torch.zeros(len(RIDGES), len(x), dtype=torch.float64)
    for left_out in range(FOLDS):
        inside, outside = fold != left_out, fold == left_out
        for i, (matrix, bias) in enumerate(_maps(x[inside], y[inside], RIDGES)):
            found[i, outside] = F.cosine_similarity(x[outside] @ matrix + bias, y[outside])
    means = found.mean(dim=1)
    best = int(means.argmax())
    ((matrix, bias),) = _maps(x, y, RIDGES[best : best + 1])
    before = float(F.cosine_similarity(x, y).mean())
    return Fit(Alignment(matrix.float(), bias.float()), RIDGES[best], before, float(means[best]))


def _maps(x: Tensor, y: Tensor, ridges: Sequence[float]) -> list[tuple[Tensor, Tensor]]:
    """Matrix and bias for each ridge, from one decomposition."""
    mean_x, mean_y = x.mean(dim=0), y.mean(dim=0)
    centred = x - mean_x
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    lost = vectors.T @ (centred.T @ (y - mean_y - centred))
    unit = torch.eye(x.shape[1], dtype=x.dtype)
    maps = []
    for ridge in ridges:
        matrix = unit + vectors @ (lost / (values.clamp_min(0) + ridge * values.mean()).unsqueeze(1))
        maps.append((matrix, mean_y - mean_x @ matrix))
    return maps


def signature(module: nn.Module) -> Float[Tensor, "P 4"] | None:
    """A few values of each floating-point parameter, by which a tower is known again; None where it has none to show.

    Evenly spaced, in float32, over the parameter's spread: whatever it was rounded to, they are nearly the same.
    """
    rows = []
    for parameter in module.parameters():
        if parameter.device.type == "meta":
            return None
        flat = parameter.detach().flatten()
        if not flat.is_floating_point() or not len(flat):
            continue
        places = torch.linspace(0, len(flat) - 1, SAMPLES, device=flat.device).long()
        spread = flat.float().square().mean().sqrt().clamp_min(1e-12)
        rows.append((flat[places].float() / spread).cpu())
    return torch.stack(rows) if rows else None


def same_tower(one: Tensor, other: Tensor) -> bool:
    """Whether two signatures are of the same weights."""
    return one.shape == other.shape and bool(((one - other).abs() <= CLOSE * one.abs().clamp_min(1)).all())
