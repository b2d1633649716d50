"""Two results beside each other, as text."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from anchorprune.errors import UserError
from anchorprune.evaluation import outcomes as outcome_files
from anchorprune.evaluation import result as results
from anchorprune.evaluation.request import plain
from anchorprune.evaluation.result import Result
from anchorprune.evaluation.statistics import Difference, difference, mcnemar
from anchorprune.files import StrPath
from anchorprune.tasks import make_task, registry, task_from_dict
from anchorprune.tasks.base import Outcomes

MISSING = "–"
# The metrics that are shares of 1. Others (CIDEr, weight decay) are shown as they are.
_SHARE = re.compile(r"(^|_)(acc|recall|precision)", re.IGNORECASE)
_SAME_QUESTION = (
    "dataset", "task", "split", "model", "pretrained", "model_options", "language", "seed",
    "n_total", "n_samples", "n_bad_images",
)  # fmt: skip
_SAME_MACHINE = ("device", "device_name", "dtype", "threads", "batch_size", "torch")


@dataclass(frozen=True)
class Comparison:
    """Two results beside each other.

    Attributes:
        names: what they are called.
        rows: what is in A, what in B, and how B differs; the first row says so.
        remarks: how sure the difference of the primary metric is, and what makes the two not comparable.
        difference: of the primary metric, B minus A on the samples that both have; None where they were not paired.
        p_value: of McNemar's test of it; None where it does not apply.
    """

    names: tuple[str, str]
    rows: Sequence[tuple[str, str, str, str]]
    remarks: Sequence[str]
    difference: Difference | None = None
    p_value: float | None = None

    def to_text(self) -> str:
        """The table that `anchorprune compare` prints."""
        head = [f"{letter}: {name}" for letter, name in zip("AB", self.names, strict=True)]
        below = [*([""] if self.remarks else []), *map(_wrapped, self.remarks)]
        return "\n".join([*head, "", *_aligned(self.rows), *below])

    def to_dict(self) -> dict[str, Any]:
        return {
            "names": list(self.names),
            "rows": [list(row) for row in self.rows],
            "remarks": list(self.remarks),
            "difference": asdict(self.difference) if self.difference else None,
            "p_value": self.p_value,
        }


def compare(a: Result | StrPath, b: Result | StrPath) -> Comparison:
    """Two results side by side: metrics, tokens and cost, and how sure the difference is where both know each sample.

    Shares are in percent and differ by points; `x` is B divided by A; `–` is a value that a result has not.

    Args:
        a, b: results, or files of them, clip_benchmark's own included; `a` is usually the unpruned one. The outcomes
            beside the files are used.

    Raises:
        UserError: a file that cannot be read or is no result.
    """
    return beside(_side(a, "A"), _side(b, "B"))


@dataclass(frozen=True)
class Side:
    """One of the two: its JSON, and what became of each sample; `others` where what lies beside it is not its own."""

    name: str
    result: Mapping[str, Any]
    outcomes: Outcomes | None = None
    others: bool = False


def _side(what: Result | StrPath, letter: str) -> Side:
    if isinstance(what, Result):
        name = f"{letter} ({what.request.model.name}, {what.request.data.name})"
        return Side(name, plain(what.to_dict()), what.outcomes)
    result = results.read(what)
    try:
        return Side(str(what), result, outcome_files.beside(what, result))
    except outcome_files.OfAnotherRun:
        return Side(str(what), result, others=True)


def beside(side_a: Side, side_b: Side) -> Comparison:
    """`compare` for results as `evaluation.result.read` gives them; they are paired where both have outcomes."""
    a, b = side_a.result, side_b.result
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
    lines, difference, p_value = _paired(side_a, side_b)
    return Comparison((side_a.name, side_b.name), rows, [*lines, *_remarks(a, b)], difference, p_value)


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
    return [(key, of_a[key], of_b[key]) for key in of_a if key in of_b and key != "measured" and of_a[key] != of_b[key]]


def _tokens(result: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    if result.get("pruning"):
        before, after = _measured(result, "tokens_before"), _measured(result, "tokens_after")
        return _text(after) if before == after else f"{_text(after)} of {_text(before)}"
    # An unpruned result does not count its tokens; a pruned one of the same model did.
    same = all((result.get(key) or None) == (other.get(key) or None) for key in ("model", "model_options"))
    return _text(_measured(other, "tokens_before") if same else None)


def _measured(result: Mapping[str, Any], key: str) -> Any:
    return ((result.get("pruning") or {}).get("measured") or {}).get(key)


def _cost(result: Mapping[str, Any], key: str) -> Any:
    return (result.get("cost") or {}).get(key)


def _gmacs(result: Mapping[str, Any]) -> Any:
    gmacs = _cost(result, "gmacs")
    return _cost(result, "gmacs_dense") if gmacs is None and not result.get("pruning") else gmacs


def _samples(result: Mapping[str, Any]) -> str:
    used, total = result.get("n_samples"), result.get("n_total")
    return _text(used) if total in (None, used) else f"{_text(used)} of {total}"


def _paired(*sides: Side) -> tuple[list[str], Difference | None, float | None]:
    """The difference of the primary metric on the samples that both have; see `statistics` for interval and test."""
    others = [letter for letter, side in zip("AB", sides, strict=True) if side.others]
    if others:
        return [f"Not paired: the outcomes beside {' and '.join(others)} are of another run."], None, None
    if any(side.outcomes is None for side in sides):
        return [], None, None
    a, b = (side.outcomes for side in sides)
    assert a is not None
    assert b is not None
    try:
        metric = _primary(sides[0].result)
    except UserError as error:
        raise UserError(f"{sides[0].name}: {error}") from error
    for letter, side, found in zip("AB", sides, (a, b), strict=True):
        told, mean = side.result["metrics"].get(metric), found.scores.sum() / max(1, len(found.keys))
        # Not to the digit: of two equally good classes the metric may have taken the other.
        if _is_number(told) and abs(mean - told) > 0.001:
            text = f"the outcomes beside {letter} have {metric} {100 * mean:.2f} %, so are of another run"
            return [f"Not paired: {text}."], None, None
    try:
        of_a, of_b = outcome_files.paired(a, b)
    except UserError as error:
        return [f"Not paired: {error}."], None, None
    n = len(of_a)
    unit = "query" if "samples" in a.details else "image"
    lines = []
    if n != len(a.keys) or n != len(b.keys):
        lines.append(f"Paired where both have the {unit}: n = {n}, of {len(a.keys)} in A and {len(b.keys)} in B.")
    whole = all(score in (0, 1) for score in (*of_a.tolist(), *of_b.tolist()))
    by, p = difference(of_b, of_a), mcnemar(of_b, of_a) if whole else None
    value, low, high = (f"{100 * share:+.2f}" for share in (by.value, by.low, by.high))
    interval = f"95 % interval {low} to {high} ({by.method})"
    if (of_a == of_b).all():
        many = {"image": "images", "query": "queries"}[unit]
        lines.append(f"A and B are right on the same {many} (n = {n}): a difference of 0 points, {interval}.")
        return lines, by, p
    lines.append(f"{metric} of B minus A, {unit} by {unit} (n = {n}): {value} points, {interval}.")
    if "samples" in a.details:
        lines.append("The queries of one image are no independent trials: the interval is narrower than it should be.")
    if p is not None:
        chance = "< 0.0001" if p < 1e-4 else f"= {p:.2g}"
        only_a, only_b = int((of_a > of_b).sum()), int((of_b > of_a).sum())
        lines.append(f"Right only in A: {only_a}; only in B: {only_b}; McNemar's exact p {chance}.")
    return lines, by, p


def _primary(result: Mapping[str, Any]) -> str:
    request = result.get("request")
    name = str(result.get("task"))
    if isinstance(request, Mapping) and isinstance(request.get("task"), Mapping):
        return task_from_dict(request["task"]).primary
    return make_task(name).primary if name in registry() else "acc1"


def _remarks(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    lines = []
    for letter, result in zip("AB", (a, b), strict=True):
        pruning, dense, gmacs = result.get("pruning"), _cost(result, "gmacs_dense"), _gmacs(result)
        if pruning and _measured(result, "effective") is False:
            lines.append(
                f"{letter}: nothing was dropped, the budget covers all "
                f"{_text(_measured(result, 'tokens_before'))} tokens."
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
