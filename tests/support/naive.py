"""The described method as plain loops over numbers in float64, straight from its formulas."""

from __future__ import annotations

import math

from torch import Tensor


def attention(q: Tensor, k: Tensor) -> list[list[float]]:
    """A of one image: q, k `[H, N, d]` -> N × N, the mean over heads of softmax(q kᵀ / √d)."""
    heads, n, d = q.shape
    qs, ks = q.double().tolist(), k.double().tolist()
    a = [[0.0] * n for _ in range(n)]
    for h in range(heads):
        for i in range(n):
            logits = [sum(x * y for x, y in zip(qs[h][i], ks[h][j], strict=True)) / math.sqrt(d) for j in range(n)]
            top = max(logits)
            weights = [math.exp(logit - top) for logit in logits]
            total = sum(weights)
            for j in range(n):
                a[i][j] += weights[j] / total / heads
    return a


def best(scores: dict[int, float], count: int) -> list[int]:
    """The `count` best; a difference that only rounding makes is a tie, and ties go to the lower index."""
    return sorted(scores, key=lambda i: (-round(scores[i], 13), i))[:count]


def cosine(a: list[float], b: list[float]) -> float:
    def dot(u: list[float], v: list[float]) -> float:
        return sum(x * y for x, y in zip(u, v, strict=True))

    return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))  # one root: exactly 1 for a copy


def minmax(values: dict[int, float]) -> dict[int, float]:
    low, high = min(values.values()), max(values.values())
    return {i: (v - low) / (high - low) if high > low else 0.0 for i, v in values.items()}


def select(
    x: Tensor,
    q: Tensor,
    k: Tensor,
    k_anchors: int,
    top_m: int,
    alpha: float,
    prefix: int,
    score_norm: str,
    importance: str,
) -> list[int]:
    """Kept indices of one image: x `[N, D]`, q and k `[H, N, d]`."""
    a, rows = attention(q, k), x.double().tolist()
    patches = range(prefix, len(rows))
    # Without a CLS token: by the attention that a patch gets from all tokens.
    matters = {j: a[0][j] if prefix else sum(row[j] for row in a) / len(a) for j in patches}
    anchors = best(matters, k_anchors)
    candidates = [i for i in patches if i not in anchors]
    if importance == "to_anchors":
        imp = {i: sum(a[i][j] for j in anchors) / k_anchors for i in candidates}
    else:
        imp = {i: sum(a[j][i] for j in anchors) / k_anchors for i in candidates}
    div = {i: 1 - max(cosine(rows[i], rows[j]) for j in anchors) for i in candidates}
    if score_norm == "minmax" and candidates:
        imp, div = minmax(imp), minmax(div)
    score = {i: alpha * imp[i] + (1 - alpha) * div[i] for i in candidates}
    return sorted([*range(prefix), *anchors, *best(score, top_m)])
