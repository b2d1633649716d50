"""The strategies from the literature as plain loops over numbers in float64, straight from the papers.

Each gives a `Plan` for one image: the patches that go on, and where those go that are merged. Tokens are counted with
the prefix, as in `TokenPlan`.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

from torch import Tensor

from support import naive

Vector = list[float]


@dataclass
class Plan:
    keep: list[int]
    goes_into: dict[int, int] = field(default_factory=dict)


def cls_scores(q: Tensor, k: Tensor, prefix: int) -> dict[int, float]:
    """What CLS pays each patch, mean over heads (EViT, section 3.2); q, k `[H, N, d]`."""
    row = naive.attention(q, k)[0]
    return {i: row[i] for i in range(prefix, len(row))}


def key_means(k: Tensor, prefix: int) -> dict[int, Vector]:
    """Each patch's key, averaged over the heads (ToMe, section 3)."""
    heads = k.double().tolist()
    return {
        i: [sum(parts) / len(heads) for parts in zip(*(h[i] for h in heads), strict=True)] for i in patches(k, prefix)
    }


def patches(k: Tensor, prefix: int) -> range:
    return range(prefix, k.shape[1])


def rounded(value: float) -> float:
    """A difference that only rounding makes is none."""
    return round(value, 12)


def first_of_the_best(scores: dict[int, float]) -> int:
    return naive.best(scores, 1)[0]


def cls_attention(q: Tensor, k: Tensor, prefix: int, count: int) -> Plan:
    return Plan(sorted([*range(prefix), *naive.best(cls_scores(q, k, prefix), count)]))


def evit(q: Tensor, k: Tensor, prefix: int, count: int) -> Plan:
    """Liang et al. 2022, 3.2 and 3.3: the attentive tokens stay, the others become one, which `count` includes."""
    scores = cls_scores(q, k, prefix)
    attentive = naive.best(scores, count - 1)
    others = [i for i in scores if i not in attentive]
    return Plan(sorted([*range(prefix), *attentive, others[0]]), dict.fromkeys(others[1:], others[0]))


def tome(k: Tensor, prefix: int, count: int) -> Plan:
    """Bolya et al. 2023, section 3: set A, each to its most similar in B, the most similar edges are merged."""
    keys = key_means(k, prefix)
    b, a = list(keys)[::2], list(keys)[1::2]
    target, weight = {}, {}
    for i in a:
        similar = {j: naive.cosine(keys[i], keys[j]) for j in b}
        target[i] = first_of_the_best(similar)
        weight[i] = similar[target[i]]
    merged = naive.best(weight, len(keys) - count)
    return Plan([i for i in range(k.shape[1]) if i not in merged], {i: target[i] for i in merged})


def thin(k: Tensor, prefix: int, count: int) -> Plan:
    """Every second patch is an anchor; of the others the most like one go, in rounds of at most half."""
    keys = key_means(k, prefix)
    while len(keys) > count:
        anchors, others = list(keys)[::2], list(keys)[1::2]
        like = {i: max(naive.cosine(keys[i], keys[j]) for j in anchors) for i in others}
        gone = naive.best(like, min(len(keys) - count, len(others)))
        keys = {i: key for i, key in keys.items() if i not in gone}
    return Plan([*range(prefix), *keys])


def coarse(q: Tensor, k: Tensor, prefix: int, count: int, depth: float) -> Plan:
    """In the tower's first half as `thin`, in its second the patches that get most attention from all tokens."""
    if depth <= 0.5:
        return thin(k, prefix, count)
    a = naive.attention(q, k)
    received = {j: sum(row[j] for row in a) / len(a) for j in patches(k, prefix)}
    return Plan(sorted([*range(prefix), *naive.best(received, count)]))


def pitome_energy(keys: dict[int, Vector], margin: float) -> dict[int, float]:
    """Tran et al. 2024, equation 4, α = 1, continuous at the margin: high for a patch in a large cluster."""
    energy = {}
    for i in keys:
        felt = 0.0
        for j in keys:
            if j != i:
                similar = naive.cosine(keys[i], keys[j])
                felt += similar - margin if similar > margin else math.exp(similar - margin) - 1
        energy[i] = felt / len(keys)
    return energy


def pitome(
    rows: dict[int, Vector], tokens: int, count: int, block: int, blocks: int, margin: float, unprotected: float
) -> Plan:
    """Tran et al. 2024: by falling energy in two alternating sets, the first one's merged into the second's.

    Of the 2r patches of highest energy each of the first set goes; where nobody is protected, the r closest of all.
    """
    r = len(rows) - count
    ranked = naive.best(pitome_energy(rows, margin - margin * (block - 1) / blocks), len(rows))
    if block > math.ceil(unprotected * blocks):
        ranked = ranked[: 2 * r]
    first, hosts = ranked[::2], ranked[1::2]
    into, weight = {}, {}
    for rank, i in enumerate(first):
        similar = [rounded(naive.cosine(rows[i], rows[j])) for j in hosts]
        into[i] = hosts[similar.index(max(similar))]  # among equals the one of higher energy
        weight[i] = (-max(similar), rank)
    merged = sorted(first, key=lambda i: weight[i])[:r]
    return Plan([i for i in range(tokens) if i not in merged], {i: into[i] for i in merged})


def cosine_distances(rows: list[Vector]) -> list[Vector]:
    return [[1 - naive.cosine(a, b) for b in rows] for a in rows]


def farthest_points(distance: list[Vector], count: int) -> list[int]:
    """Greedy max-min: first the point farthest from its nearest neighbour, then always the farthest from all chosen."""
    everything = range(len(distance))
    lonely = {i: min(distance[i][j] for j in everything if j != i) for i in everything}
    chosen = [first_of_the_best(lonely)]
    while len(chosen) < count:
        far = {i: min(distance[i][j] for j in chosen) for i in everything if i not in chosen}
        chosen.append(first_of_the_best(far))
    return chosen


def spread(distance: list[Vector], chosen: tuple[int, ...] | list[int]) -> float:
    """The smallest distance between two that are chosen: what max-min wants to be large."""
    return min(distance[i][j] for i, j in itertools.combinations(chosen, 2))


def best_spread(distance: list[Vector], count: int) -> float:
    return max(spread(distance, chosen) for chosen in itertools.combinations(range(len(distance)), count))


def merge(rows: list[Vector], weights: Vector, plan: Plan, averaged: bool = True) -> list[Vector]:
    """The tokens that go on, each the weighted mean, or sum, of itself and of what is merged into it."""
    out = []
    for host in plan.keep:
        members = [host, *(i for i, into in plan.goes_into.items() if into == host)]
        total = sum(weights[i] for i in members) if averaged else 1.0
        out.append([sum(weights[i] * rows[i][c] for i in members) / total for c in range(len(rows[0]))])
    return out
