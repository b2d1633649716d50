"""How near embeddings are to those of the unpruned model, without labels."""

from __future__ import annotations

from typing import Any

import numpy as np

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
    ours, unpruned = ours.astype(np.float64), unpruned.astype(np.float64)
    ours, unpruned = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (ours, unpruned))
    own = np.einsum("nd,nd->n", ours, unpruned)
    ranks = np.empty(len(ours), dtype=np.int64)
    for start in range(0, len(ours), 1024):  # [N, N] at once would be 8 GB for 32,000 images
        part = slice(start, start + 1024)
        ranks[part] = (ours[part] @ unpruned.T >= own[part, None] - 1e-12).sum(axis=1)
    return {
        "cosine_mean": float(own.mean()),
        "cosine_p5": float(np.quantile(own, 0.05)),
        "recall@1": float((ranks <= 1).mean()),
        "recall@5": float((ranks <= 5).mean()),
    }
