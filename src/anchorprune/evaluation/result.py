"""One evaluation, one JSON file: what it holds, how it is written, found again and read.

The keys are a superset of clip_benchmark's, so its own result files can be read here and ours there.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from anchorprune.errors import UserError
from anchorprune.evaluation import outcomes as outcome_files
from anchorprune.evaluation.request import Request, plain
from anchorprune.files import StrPath, unreadable, write_bytes, write_text
from anchorprune.reading import bytes_of, json_of
from anchorprune.tasks.base import Meter, Outcomes

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA_VERSION = 2
_TEXT, _WHOLE, _NUMBER, _OBJECT = (str,), (int,), (int, float), (dict,)
_WORDS = {_TEXT: "a text", _WHOLE: "a whole number", _NUMBER: "a number", _OBJECT: "an object"}
# What a result has to have, what it may have or be without, and what else one of ours has, each of which type.
_REQUIRED = {"dataset": _TEXT, "model": _TEXT, "pretrained": _TEXT, "task": _TEXT, "metrics": _OBJECT}
_KINDS = {
    **dict.fromkeys(("pruning", "pruning.measured", "cost", "environment", "model_options", "request"), _OBJECT),
    **dict.fromkeys(("language", "split", "config_hash", "outcomes", "pruning.strategy"), _TEXT),
    **dict.fromkeys(("schema_version", "n_samples", "n_total", "n_bad_images", "limit", "seed", "batch_size"), _WHOLE),
    **dict.fromkeys(("pruning.measured.tokens_before", "pruning.measured.tokens_after"), _WHOLE),
    **dict.fromkeys((f"cost.{name}" for name in ("gmacs", "gmacs_dense", "images_per_second")), _NUMBER),
    "cost.peak_memory_mb": _NUMBER,
}
_OURS = {
    **dict.fromkeys(("n_samples", "n_total", "n_bad_images", "environment.threads"), _WHOLE),
    **dict.fromkeys(("cost", "cost.seconds", "model_options", "environment"), _OBJECT),
    **dict.fromkeys(
        (f"cost.{n}" for n in ("images_per_second", "seconds.texts", "seconds.waiting_for_images")), _NUMBER
    ),
    **dict.fromkeys((f"environment.{name}" for name in ("device", "device_name", "dtype", "torch")), _TEXT),
}
# What was measured of a pruning; in version 1 it stood among the strategy's fields.
_MEASURED = ("effective", "tokens_before", "tokens_after", "tokens_by_block")


@dataclass
class Attention:
    """The attention of a few images, as `--attention_output` holds it.

    Attributes:
        weights: of each block, `[B, H, N, N]`.
        kept: `[B, K]`, the tokens that reach the end.
        tokens_before: N of the first block.
    """

    weights: list[Tensor]
    kept: Tensor
    tokens_before: int

    def as_dict(self, model: str, pretrained: str, dataset: str) -> dict[str, Any]:
        batch, heads = self.weights[0].shape[:2]
        return {
            "attention_weights": self.weights,
            "kept_indices": self.kept,
            "model": model,
            "pretrained": pretrained,
            "dataset": dataset,
            "num_layers": len(self.weights),
            "shape_info": {
                "images": batch,
                "heads": heads,
                "tokens_before": self.tokens_before,
                "tokens_after": self.kept.shape[1],
                "layers": [list(weights.shape) for weights in self.weights],
                "last_layer_shape": list(self.weights[-1].shape),
                "description": "[images, heads, tokens that look, tokens that are looked at]",
            },
        }

    @property
    def megabytes(self) -> float:
        return sum(weights.nbytes for weights in self.weights) / 1e6


@dataclass
class Part:
    """What a shard has measured and a whole result is made of."""

    meter: Meter
    keep_scores: bool

    def merged(self, other: Part) -> Part:
        """This part with the other's samples."""
        self.meter.merge(other.meter)
        return self


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """What one request found.

    Attributes:
        request: what was asked for.
        metrics: by name; the task's primary one among them.
        pruning: the strategy as JSON holds it, with `measured`: whether it dropped anything (`effective`),
            `tokens_before`, `tokens_after`, `tokens_by_block`; None unpruned.
        cost: `gmacs`, `gmacs_dense` (multiply-adds of an image in billions), `images_per_second` of the encoder,
            `seconds`, `peak_memory_mb` (MiB).
        n_samples, n_total, n_bad_images: images evaluated, in the data set, and not readable.
        model_options: how the model was built, where that differs from its config.
        environment: versions, device, dtype, threads.
        config_hash: of the request; None where its model or data were objects, which no name finds again.
        outcomes: each sample's score, where it was asked for; not in the JSON but in a file beside it.
        classes, templates: those of the data set; in the JSON on request only.
        artifacts: what else was made: `classifier`, `attention`; not in the JSON.
        part: what `merge` needs; None in a result that is whole.
    """

    request: Request
    metrics: dict[str, float]
    pruning: dict[str, Any] | None
    cost: dict[str, Any]
    n_samples: int
    n_total: int
    n_bad_images: int
    model_options: dict[str, Any]
    environment: dict[str, Any]
    config_hash: str | None = None
    outcomes: Outcomes | None = None
    classes: list[str] | None = None
    templates: Any = None
    artifacts: dict[str, Any] = field(default_factory=dict, repr=False)
    part: Part | None = field(default=None, repr=False)

    def finished(self) -> Result:
        """The whole result of a part: its meter read.

        Raises:
            UserError: not one sample was seen.
        """
        if self.part is None:
            return self
        if not self.n_samples:
            raise UserError(f"{self.request.data.name}: no image of it can be read")
        scores = self.part.meter.scores() if self.part.keep_scores else None
        return dataclasses.replace(self, metrics=self.part.meter.compute(), outcomes=scores, part=None)

    @property
    def primary(self) -> float:
        """The task's primary metric."""
        return self.metrics[self.request.task.primary]

    def to_dict(self) -> dict[str, Any]:
        """As the file holds it."""
        request = self.request
        return {
            "schema_version": SCHEMA_VERSION,
            "dataset": request.data.name,
            "model": request.model.name,
            "pretrained": request.model.pretrained,
            "task": request.task.name,
            "language": request.data.language,
            "split": request.data.split,
            "metrics": self.metrics,
            "pruning": self.pruning,
            "cost": self.cost,
            "n_samples": self.n_samples,
            "n_total": self.n_total,
            "n_bad_images": self.n_bad_images,
            "limit": request.data.limit,
            "seed": request.data.seed,
            "batch_size": request.compute.batch_size,
            "model_options": self.model_options,
            "environment": self.environment,
            "config_hash": self.config_hash,
            "request": request.as_dict(),
        }

    def save(self, path: StrPath, **more: Any) -> None:
        """Write the result, and then its outcomes beside it where there are any; each file whole or not at all.

        Args:
            more: further keys of the JSON.

        Raises:
            Unwritten: one of the two cannot be; where that is the outcomes, the result is there.
        """
        content = {**self.to_dict(), **more, "outcomes_digest": None}
        if self.outcomes is None:
            write(content, path)
            return
        file, data = outcome_files.path_for(path), outcome_files.as_bytes(self.outcomes, self.config_hash)
        write({**content, "outcomes": file.name, "outcomes_digest": outcome_files.digest(data)}, path)
        write_bytes(data, file)


def write(result: Mapping[str, Any], path: StrPath) -> None:
    """Write a result as strict JSON (NaN and infinities become null), all of it or nothing.

    A failure or an interruption leaves an earlier file at `path` as it was.
    """
    write_text(json.dumps(plain(result), indent=2, allow_nan=False) + "\n", path)


def read(path: StrPath) -> dict[str, Any]:
    """The result in the file, in the form of today; clip_benchmark's own included (its NaN is None here).

    UserError, naming the file, if it is missing, is not JSON or is not a result.
    """
    try:
        content = bytes_of(path)
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    try:
        result = json_of(content, nan_is_none=True)
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); name a result file of 'eval'") from error
    if not isinstance(result, dict):
        raise UserError(f"{path}: JSON, but not the result of an evaluation; name a result file of 'eval'")
    if missing := [key for key in _REQUIRED if key not in result]:
        raise UserError(
            f"{path}: not the result of an evaluation, it has no {', '.join(missing)}; name a result file of 'eval'"
        )
    result = _of_today(result)
    if odd := _odd(result, _REQUIRED, whole=True) or _odd(result, _KINDS):
        raise UserError(f"{path}: not the result of an evaluation, {odd}; name a result file of 'eval'")
    return result


def _odd(result: Mapping[str, Any], kinds: Mapping[str, tuple[type, ...]], *, whole: bool = False) -> str | None:
    """What of a result is of another type than `kinds` says by its dotted name, in words; None where all is right.

    What a result has not, and null, is right unless it has to be `whole`.
    """
    for name, allowed in kinds.items():
        value: Any = result
        for key in [name] if name in result else name.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if (value is not None or whole) and not (isinstance(value, allowed) and not isinstance(value, bool)):
            text = json.dumps(value)
            return f"its {name!r} is {text if len(text) <= 40 else f'{text[:39]}…'}, not {_WORDS[allowed]}"
    return None


def load(path: StrPath) -> Result:
    """The result that `Result.save` wrote, with its outcomes where they are beside it.

    Raises:
        UserError: the file, or the one of its outcomes, is none of ours or is damaged; it is named.
    """
    content = read(path)
    outcomes = outcome_files.beside(path, content)
    if outcomes is None and content.get("outcomes"):
        outcomes, _ = outcome_files.read(outcome_files.path_for(path))  # says that they are missing
    kept = ("pruning", "cost", "n_samples", "n_total", "n_bad_images", "model_options", "environment", "config_hash")
    if "request" not in content or any(name not in content for name in kept):
        raise UserError(f"{path}: does not hold its request (an older result, or clip-benchmark's); run its eval")
    try:
        request = Request.from_dict(content["request"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    # clip-benchmark's probe has a truth among its metrics
    metrics = {name: value for name, value in content["metrics"].items() if not isinstance(value, bool)}
    if odd := _odd(content, _OURS, whole=True) or _odd(metrics, dict.fromkeys(metrics, _NUMBER)):
        raise UserError(f"{path}: not a whole result, {odd}; run its eval")
    metrics = {name: math.nan if value is None else value for name, value in content["metrics"].items()}
    return Result(request=request, metrics=metrics, outcomes=outcomes, **{name: content[name] for name in kept})


def _of_today(result: dict[str, Any]) -> dict[str, Any]:
    """A result of schema version 1 in the form of version 2."""
    pruning = result.get("pruning")
    if result.get("schema_version") != 1 or not isinstance(pruning, dict):
        return result
    own = {key: value for key, value in pruning.items() if key not in _MEASURED}
    return {**result, "pruning": {**own, "measured": {key: pruning.get(key) for key in _MEASURED}}}


def is_done(path: StrPath, config_hash: str, *, pruned: bool) -> bool:
    """Whether `--skip_existing` may skip: the file holds the result of this very configuration.

    A result without a hash was written by clip_benchmark, which cannot prune: it counts for an unpruned run
    (`pruned=False`) only. A broken file is not done.
    """
    try:
        result = read(path)
    except UserError:
        return False
    if result.get("config_hash") is None:
        return not pruned and not result.get("pruning") and "schema_version" not in result
    return bool(result["config_hash"] == config_hash)
