"""Two results beside each other, as text."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from anchorprune.errors import UserError

if TYPE_CHECKING:
    from anchorprune.outcomes import Outcomes

MISSING = "–"
# The metrics that are shares of 1. Others (CIDEr, weight decay) are shown as they are.
_SHARE = re.compile(r"(^|_)(acc|recall|precision)", re.IGNORECASE)
_SAME_QUESTION = (
    "dataset", "task", "split", "model", "pretrained", "model_options", "language", "seed",
    "n_total", "n_samples", "n_bad_images",
)  # fmt: skip
_SAME_MACHINE = ("device", "device_name", "dtype", "threads", "batch_size", "torch")


def compare(
    a: Mapping[str, Any],
    b: Mapping[str, Any],
    names: Sequence[str] = ("A", "B"),
    outcomes: tuple[Outcomes, Outcomes] | None = None,
) -> str:
    """The table of two results that `anchorprune compare` prints: metrics, tokens and cost, A against B.

    Shares are in percent and differ by points; `x` is B divided by A; `–` is a value that a result has not.
    Lines below the table say how sure the difference of acc1 is, where `outcomes` are given, and what makes the two,
    or their timings, not comparable.

    Args:
        a, b: results as `results.read` gives them, clip_benchmark's own included.
        names: what to call them, such as their file names.
        outcomes: what became of each image in a and in b. Where they cannot be paired a line says why.
    """
    rows = [("", "A", "B", "B against A")]
    for name in dict.fromkeys([*a["metrics"], *b["metrics"]]):
        values = a["metrics"].get(name), b["metrics"].get(name)
        if not any(isinstance(value, (list, dict)) for value in values):
            rows.append((name, *_metric(name, *values)))
    rows.append(("pruning", _strategy(a), _strategy(b), ""))
    rows += [(key, str(of_a), str(of_b), "") for key, of_a, of_b in _other_settings(a, b)]
    rows.append(("tokens", _tokens(a, b), _tokens(b, a), ""))
    rows.append(("GMACs an image", *_ratio(_gmacs(a), _gmacs(b), ".2f")))
    rows.append(("images/s", *_ratio(_cost(a, "images_per_second"), _cost(b, "images_per_second"), ".1f")))
    rows.append(("peak memory, MiB", *_ratio(_cost(a, "peak_memory_mb"), _cost(b, "peak_memory_mb"), ".0f")))
    rows.append(("samples", _samples(a), _samples(b), ""))
    head = [f"{letter}: {name}" for letter, name in zip("AB", names, strict=True)]
    below = [*(_paired((a, b), outcomes) if outcomes else []), *_remarks(a, b)]
    return "\n".join([*head, "", *_aligned(rows), *([""] if below else []), *map(_wrapped, below)])


def _aligned(rows: Sequence[tuple[str, str, str, str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _metric(name: str, a: Any, b: Any) -> tuple[str, str, str]:
    share = _SHARE.search(name) is not None
    scale, form, unit = (100, ".2f", " %") if share else (1, ".4g", "")
    shown = [format(scale * value, form) + unit if _is_number(value) else _text(value) for value in (a, b)]
    if not (_is_number(a) and _is_number(b)):
        return shown[0], shown[1], ""
    difference = format(scale * (b - a), "+" + form)
    return shown[0], shown[1], difference + (" points" if share else "")


def _ratio(a: Any, b: Any, form: str) -> tuple[str, str, str]:
    shown = [format(value, form) if _is_number(value) else MISSING for value in (a, b)]
    known = _is_number(a) and _is_number(b) and a > 0
    return shown[0], shown[1], f"{b / a:.2f} x" if known else ""


def _strategy(result: Mapping[str, Any]) -> str:
    pruning = result.get("pruning")
    return _text(pruning.get("strategy")) if pruning else "none"


def _other_settings(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Where both are pruned by the same strategy: the settings that set them apart."""
    of_a, of_b = a.get("pruning") or {}, b.get("pruning") or {}
    if of_a.get("strategy") != of_b.get("strategy"):
        return []
    measured = ("effective", "tokens_before", "tokens_after")
    return [
        (key, of_a[key], of_b[key]) for key in of_a if key in of_b and key not in measured and of_a[key] != of_b[key]
    ]


def _tokens(result: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    if pruning := result.get("pruning"):
        before, after = pruning.get("tokens_before"), pruning.get("tokens_after")
        return _text(after) if before == after else f"{_text(after)} of {_text(before)}"
    # An unpruned result does not count its tokens; a pruned one of the same model did.
    same = all((result.get(key) or None) == (other.get(key) or None) for key in ("model", "model_options"))
    return _text((other.get("pruning") or {}).get("tokens_before") if same else None)


def _cost(result: Mapping[str, Any], key: str) -> Any:
    return (result.get("cost") or {}).get(key)


def _gmacs(result: Mapping[str, Any]) -> Any:
    gmacs = _cost(result, "gmacs")
    return _cost(result, "gmacs_dense") if gmacs is None and not result.get("pruning") else gmacs


def _samples(result: Mapping[str, Any]) -> str:
    used, total = result.get("n_samples"), result.get("n_total")
    return _text(used) if total in (None, used) else f"{_text(used)} of {total}"


def _paired(both: Sequence[Mapping[str, Any]], outcomes: tuple[Outcomes, Outcomes]) -> list[str]:
    """The difference of acc1 on the images that both have; see `report.stats` for the interval and the test."""
    from anchorprune.outcomes import paired  # here, so that two JSON files are compared without NumPy
    from anchorprune.report.stats import bootstrap_difference, mcnemar

    for letter, result, found in zip("AB", both, outcomes, strict=True):
        acc1, right = result["metrics"].get("acc1"), found.right.sum() / max(1, len(found.keys))
        # Not to the digit: of two equally good classes the metric may have taken the other.
        if _is_number(acc1) and abs(right - acc1) > 0.001:
            return [f"Not paired: the outcomes beside {letter} have acc1 {100 * right:.2f} %, so are of another run."]
    try:
        of_a, of_b = paired(*outcomes)
    except UserError as error:
        return [f"Not paired: {error}."]
    n, only_a, only_b = len(of_a), (of_a & ~of_b).sum(), (of_b & ~of_a).sum()
    samples = [_text(result.get("n_samples")) for result in both]
    lines = []
    if any(text not in (MISSING, str(n)) for text in samples):
        lines.append(f"Paired where both have the image: n = {n}, of {samples[0]} in A and {samples[1]} in B.")
    if only_a == only_b == 0:
        return [*lines, f"A and B are right on the same images (n = {n})."]
    difference, p = bootstrap_difference(of_b, of_a), mcnemar(of_b, of_a)
    chance = "< 0.0001" if p < 1e-4 else f"= {p:.2g}"
    value, low, high = (f"{100 * share:+.2f}" for share in (difference.value, difference.low, difference.high))
    return [
        *lines,
        f"acc1 of B minus A, image by image (n = {n}): {value} points, 95 % interval {low} to {high} (bootstrap).",
        f"Right only in A: {only_a}; only in B: {only_b}; McNemar's exact p {chance}.",
    ]


def _remarks(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    lines = []
    for letter, result in zip("AB", (a, b), strict=True):
        pruning, dense, gmacs = result.get("pruning"), _cost(result, "gmacs_dense"), _gmacs(result)
        if pruning and pruning.get("effective") is False:
            lines.append(
                f"{letter}: nothing was dropped, the budget covers all {_text(pruning.get('tokens_before'))} tokens."
            )
        elif pruning and _is_number(dense) and _is_number(gmacs) and gmacs > dense:
            lines.append(f"{letter}: pruning costs more than it saves: {dense:.2f} GMACs without it.")
        if "schema_version" not in result:
            lines.append(f"{letter}: not written by anchorprune; its seed, samples and timing are not known.")
    lines += _differences("Not comparable", _SAME_QUESTION, a, b)
    # A limit above the size of the data set changes nothing; what counts is the number of samples.
    if a.get("n_samples") is None or b.get("n_samples") is None:
        lines += _differences("Not comparable", ("limit",), a, b)
    lines += _differences("Timings not comparable", _SAME_MACHINE, _flat(a), _flat(b))
    return lines


def _differences(what: str, keys: Sequence[str], a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    # What only one of them says (clip_benchmark's files say little) is not a difference.
    return [
        f"{what}: {key} is {_text(a[key])} in A, {_text(b[key])} in B."
        for key in keys
        if key in a and key in b and a[key] != b[key]
    ]


def _wrapped(line: str) -> str:
    return textwrap.fill(line, 80, subsequent_indent="   ", break_long_words=False, break_on_hyphens=False)


def _flat(result: Mapping[str, Any]) -> dict[str, Any]:
    return {**result, **(result.get("environment") or {})}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _text(value: Any) -> str:
    return MISSING if value is None else str(value)
