"""The shards of a request, made one result."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import reduce
from typing import Any

from anchorprune.errors import UserError
from anchorprune.evaluation.result import Result


def merge(parts: Sequence[Result]) -> Result:
    """The result of one request from those of all its shards: for counts the one that a single process would have.

    Speed and seconds are summed up over the shards, of memory the largest is given.

    Raises:
        UserError: shards of different requests, or results that are no shards (read from a file, say).
    """
    first, *others = parts
    if any(part.request != first.request for part in others):
        raise UserError("these are shards of different requests, which make no one result")
    return reduce(_merged, others, first).finished() if others else first


def _merged(a: Result, b: Result) -> Result:
    if a.part is None or b.part is None:
        raise UserError("only results of evaluate(…, shard=…) in this session can be merged; this one was read")
    return dataclasses.replace(
        a,
        part=a.part.merged(b.part),
        pruning=_averaged(a, b),
        cost=_summed(a, b),
        n_samples=a.n_samples + b.n_samples,
        n_bad_images=a.n_bad_images + b.n_bad_images,
    )


def _averaged(a: Result, b: Result) -> dict[str, Any] | None:
    """What the pruning did. The same for all images, but for a cascade's, of which it is the mean."""
    if not (a.n_samples and b.n_samples and a.pruning and b.pruning and "shares" in a.pruning["measured"]):
        return a.pruning if a.n_samples else b.pruning  # that of no image has counted no tokens
    one, other = a.pruning["measured"], b.pruning["measured"]
    shares = [_mean(a, x, b, y) for x, y in zip(one["shares"], other["shares"], strict=True)]
    tokens = round(_mean(a, one["tokens_after"], b, other["tokens_after"]))
    return {**a.pruning, "measured": {**one, "tokens_after": tokens, "shares": shares}}


def _mean(a: Result, of_a: float, b: Result, of_b: float) -> float:
    """Over the images of both."""
    return (a.n_samples * of_a + b.n_samples * of_b) / (a.n_samples + b.n_samples)


def _summed(a: Result, b: Result) -> dict[str, Any]:
    one, other = (a.cost, b.cost) if a.n_samples else (b.cost, a.cost)
    memory = [m for m in (one["peak_memory_mb"], other["peak_memory_mb"]) if m is not None]
    costs = one["gmacs"], other["gmacs"]  # those of a cascade differ from shard to shard
    return {
        **one,
        "gmacs": _mean(a, costs[0], b, costs[1]) if a.n_samples and b.n_samples and costs[0] != costs[1] else costs[0],
        "images_per_second": one["images_per_second"] + other["images_per_second"],
        "seconds": {name: one["seconds"][name] + other["seconds"][name] for name in one["seconds"]},
        "peak_memory_mb": max(memory, default=None),
    }
