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


def tofu(k: Tensor, prefix: int, count: int, depth: float, pruned_share: float) -> Plan:
    """Kim et al. 2024: ToMe's edges, of which early blocks drop the one in A and late ones merge both."""
    plan = tome(k, prefix, count)
    return Plan(plan.keep) if depth <= pruned_share else plan


def rapid_like(q: Tensor, k: Tensor, prefix: int, count: int, depth: float, pruned_share: float, weight: float) -> Plan:
    """After Choi and Jang 2026: ToMe's edges, ranked by redundancy where they prune, later by little importance."""
    keys, looked_at = key_means(k, prefix), cls_scores(q, k, prefix)
    b, a, early = list(keys)[::2], list(keys)[1::2], depth <= pruned_share
    target, rank = {}, {}
    for i in a:
        similar = {j: naive.cosine(keys[i], keys[j]) for j in keys if j != i}
        target[i] = first_of_the_best({j: similar[j] for j in b})
        more = sum(similar.values()) / len(similar) if early else -looked_at[i] / max(looked_at.values())
        rank[i] = similar[target[i]] + weight * more
    gone = naive.best(rank, len(keys) - count)
    keep = [i for i in range(k.shape[1]) if i not in gone]
    return Plan(keep) if early else Plan(keep, {i: target[i] for i in gone})


def token_transforming(q: Tensor, k: Tensor, prefix: int, count: int) -> Plan:
    """After Zeng et al. 2025: the informative patches stay; of each other one most goes to the one most like it."""
    keys, informative = key_means(k, prefix), sorted(naive.best(cls_scores(q, k, prefix), count))
    into = {
        j: first_of_the_best({i: naive.cosine(keys[i], keys[j]) for i in informative})
        for j in keys
        if j not in informative
    }
    return Plan([*range(prefix), *informative], into)


def transformation(k: Tensor, prefix: int, keep: list[int], temperature: float) -> list[Vector]:
    """The matrix, K × N: of a kept token all in its own row; of each other one the softmax of its cosines."""
    keys, matrix = key_means(k, prefix), [[0.0] * k.shape[1] for _ in keep]
    for j in range(k.shape[1]):
        if j in keep:
            matrix[keep.index(j)][j] = 1.0
            continue
        raised = {i: math.exp(naive.cosine(keys[i], keys[j]) / temperature) for i in keep[prefix:]}
        for i, weight in raised.items():
            matrix[keep.index(i)][j] = weight / sum(raised.values())
    return matrix


def transform(rows: list[Vector], sizes: Vector, matrix: list[Vector]) -> tuple[list[Vector], Vector]:
    """The tokens that go on and their sizes: averages with the weights share times size."""
    n, width = len(rows), len(rows[0])
    after = [sum(row[j] * sizes[j] for j in range(n)) for row in matrix]
    out = [
        [sum(row[j] * sizes[j] * rows[j][c] for j in range(n)) / total for c in range(width)]
        for row, total in zip(matrix, after, strict=True)
    ]
    return out, after


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


def page_rank(a: list[Vector], rounds: int, cls: bool) -> Vector:
    """Wang et al. 2024, algorithm 1: s ← Aᵀ s, from scores that add up to N, that of CLS √N times the others'."""
    n = len(a)
    scores = [math.sqrt(n) if cls and i == 0 else 1.0 for i in range(n)]
    scores = [n * score / sum(scores) for score in scores]
    for _ in range(rounds):
        scores = [sum(a[i][j] * scores[i] for i in range(n)) for j in range(n)]
    return scores


def zero_tprune_importance(
    graphs: list[list[Vector]], rounds: int, prefix: int, low: float, high: float
) -> dict[int, float]:
    """Sections 3.2 and 3.3: root mean square over the heads whose scores vary neither too little nor too much."""
    heads, filtered = [], []
    for a in graphs:
        scores = page_rank(a, rounds, cls=True)[prefix:]
        mean = sum(scores) / len(scores)
        scores = [score / mean for score in scores]
        heads.append(scores)
        if low <= sum((score - 1) ** 2 for score in scores) / len(scores) <= high:
            filtered.append(scores)
    chosen = filtered or heads
    return {prefix + i: math.sqrt(sum(scores[i] ** 2 for scores in chosen) / len(chosen)) for i in range(len(heads[0]))}


def zero_tprune(
    q: Tensor, k: Tensor, prefix: int, count: int, rounds: int, share: float, low: float = 0.01, high: float = 0.7
) -> Plan:
    """Wang et al. 2024, I′, S, I: rank by one vote; drop the least important copies; rank what is left."""
    graphs = [naive.attention(q[h : h + 1], k[h : h + 1]) for h in range(len(q))]
    keys = key_means(k, prefix)
    first = naive.best(zero_tprune_importance(graphs, 1, prefix, low, high), len(keys))
    half = len(keys) // 2
    a, b = sorted(first[len(keys) - half :]), first[: len(keys) - half]
    alike = {i: max(naive.cosine(keys[i], keys[j]) for j in b) for i in a}
    gone = naive.best(alike, min(round(share * (len(keys) - count)), half))
    left = [i for i in range(k.shape[1]) if i not in gone]
    if len(left) - prefix > count:
        graphs = [[[row[j] for j in left] for i, row in enumerate(graph) if i in left] for graph in graphs]
        graphs = [[[weight / sum(row) for weight in row] for row in graph] for graph in graphs]
        ranked = zero_tprune_importance(graphs, rounds, prefix, low, high)
        left = [left[i] for i in sorted([*range(prefix), *naive.best(ranked, count)])]
    return Plan(left)


def vwt_intra(image: Tensor, patch: int, prefix: int, count: int) -> Plan:
    """Gee et al. 2025: the patches of one image `[C, height, width]` in which all pixel values vary most."""
    colours, height, width = image.shape
    pixels, variance = image.double().tolist(), {}
    for row in range(0, height, patch):
        for column in range(0, width, patch):
            own = [
                pixels[colour][row + i][column + j]
                for colour in range(colours)
                for i in range(patch)
                for j in range(patch)
            ]
            mean = sum(own) / len(own)
            variance[prefix + len(variance)] = sum((value - mean) ** 2 for value in own) / (len(own) - 1)
    return Plan(sorted([*range(prefix), *naive.best(variance, count)]))


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


def merge(
    rows: list[Vector], weights: Vector, plan: Plan, averaged: bool = True, at_length: bool = False
) -> list[Vector]:
    """The tokens that go on, each the weighted mean, or sum, of itself and of what is merged into it.

    Kim et al. 2024, MLERP: that mean, divided by its length, times the length of the longest of those in it.
    """
    out = []
    for host in plan.keep:
        members = [host, *(i for i, into in plan.goes_into.items() if into == host)]
        total = sum(weights[i] for i in members) if averaged else 1.0
        mean = [sum(weights[i] * rows[i][c] for i in members) / total for c in range(len(rows[0]))]
        if at_length and len(members) > 1:
            mean = [value / math.hypot(*mean) * max(math.hypot(*rows[i]) for i in members) for value in mean]
        out.append(mean)
    return out
