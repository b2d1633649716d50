"""How near embeddings are to those of the unpruned model, without labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from anchorprune.tasks.fidelity import nearer

Array = np.ndarray[Any, Any]


def fidelity(ours: Array, unpruned: Array) -> dict[str, float]:
    """What is left of the neighbourhoods in which people search.

    Args:
        ours, unpruned: `[N, D]`, of the same images in the same order; of any length.

    Returns:
        `cosine_mean` and `cosine_p5` (5 % of the images are below it) of each image's two embeddings; `recall@1` and
        `recall@5`: of how many images, searched by their embedding among all unpruned ones, their own is the nearest,
        or among the five nearest. Ties count against it.
    """
    a, b = (F.normalize(torch.from_numpy(each.astype(np.float64)), dim=1) for each in (ours, unpruned))
    own = (a * b).sum(dim=1)
    before = nearer(a, b)
    return {
        "cosine_mean": float(own.mean()),
        "cosine_p5": float(torch.quantile(own, 0.05)),
        "recall@1": float((before < 1).double().mean()),
        "recall@5": float((before < 5).double().mean()),
    }
