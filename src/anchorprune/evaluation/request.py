"""What is asked for: a model, data, a task, a pruning, and how to compute. JSON in and out; no torch.

A request is what `evaluate` takes, what a result holds, and what a worker on another machine is sent.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from anchorprune import bundled
from anchorprune.datasets import stamp
from anchorprune.datasets.base import COLUMNS, DataSpec
from anchorprune.errors import FieldError, UserError
from anchorprune.fields import check_range, check_types
from anchorprune.files import fingerprint
from anchorprune.models.base import ModelSpec
from anchorprune.strategies.base import Strategy
from anchorprune.tasks import task_from_dict
from anchorprune.tasks.base import Task
from anchorprune.tasks.zeroshot_classification import ZeroShotClassification

__all__ = ["PRECISIONS", "Compute", "DataSpec", "ModelSpec", "Request", "config_hash"]

VERSION = 1  # of `as_dict`'s form
# amp: autocast in what the kind of device has for it; fp32, bf16, fp16: the weights too.
PRECISIONS = ("amp", "amp_bf16", "fp32", "bf16", "fp16")
MOST_IMAGES = (1 << 31) - 1  # of a batch
MOST_WORKERS = 4096
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Compute:
    """How to compute. What of it decides a result is the precision, and the kind of device where that says `amp`.

    Attributes:
        device: `cpu`, `cuda:1` …; None: `cuda` where there is one.
        precision: one of `PRECISIONS`.
        batch_size: images encoded at once.
        num_workers: processes that decode images; 0: none.
        clf_cache: where classifiers made of texts are kept; empty: nowhere; None: in the user's cache.
        feature_root: where tasks that train on features keep them (`Task.keeps_features`); empty: nowhere.
        skip_load: whether all features come from there, without a look at the model or the images.
    """

    device: str | None = None
    precision: str = "amp"
    batch_size: int = 64
    num_workers: int = 4
    clf_cache: str | None = None
    feature_root: str = "features"
    skip_load: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise FieldError("precision", self.precision, f"choose one of {', '.join(PRECISIONS)}")
        check_range("batch_size", self.batch_size, 1, MOST_IMAGES, f"must be 1 or more, and at most {MOST_IMAGES}")
        said = f"must be 0 (no worker processes) or more, and at most {MOST_WORKERS}"
        check_range("num_workers", self.num_workers, 0, MOST_WORKERS, said)

    def device_name(self) -> str:
        """The device, where none is named the one that this machine has."""
        if self.device is not None:
            return self.device
        import torch  # here, so that a request can be read without it

        return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True, kw_only=True)
class Request:
    """One evaluation.

    Attributes:
        pruning: None for the unpruned model.
    """

    model: ModelSpec
    data: DataSpec
    task: Task = ZeroShotClassification()
    pruning: Strategy | None = None
    compute: Compute = Compute()

    def __post_init__(self) -> None:
        if self.compute.skip_load and not (self.task.keeps_features and self.compute.feature_root):
            why = f"{self.task.name} keeps no features" if self.compute.feature_root else "there is no feature_root"
            raise FieldError("skip_load", True, f"{why}; leave it out")
        if self.pruning is not None:
            self.task.check_pruning(self.pruning)

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it; `from_dict` reads it."""
        return {
            "version": VERSION,
            "model": self.model.as_dict(),
            "data": dataclasses.asdict(self.data),
            "task": self.task.as_dict(),
            "pruning": self.pruning.as_dict() if self.pruning else None,
            "compute": dataclasses.asdict(self.compute),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Request:
        """The request that `as_dict` gave.

        Raises:
            UserError: something else, another version, or a value that cannot be.
        """
        if not isinstance(content, Mapping) or not all(isinstance(content.get(k), Mapping) for k in _PARTS):
            raise UserError(f"a request as JSON has the parts {', '.join(_PARTS)}")
        if (version := content.get("version")) != VERSION:
            raise UserError(f"a request of version {version!r}: this anchorprune reads version {VERSION}; update it")
        pruning = content.get("pruning")
        return cls(
            model=spec_of(ModelSpec, content["model"]),
            data=spec_of(DataSpec, content["data"]),
            task=task_from_dict(content["task"]),
            pruning=None if pruning is None else Strategy.from_dict(pruning),
            compute=spec_of(Compute, content["compute"]),
        )

    def unpruned(self) -> Request:
        """The same without pruning: what requests that share one pass have in common."""
        return dataclasses.replace(self, pruning=None)

    def hash(self, contents: dict[str, str] | None = None) -> str:
        """16 hex digits: requests whose results must be equal have equal ones.

        Files count by their content, the data set by its name, root and split, and its source's stamp.

        Args:
            contents: fingerprints of files by their names, to read each once for many requests; added to.
        """
        known = {} if contents is None else contents

        def content(path: str | None) -> str | None:
            if not path or not os.path.isfile(path):
                return path
            if path not in known:
                known[path] = fingerprint(path)
            return known[path]

        model, data, compute = self.model, self.data, self.compute
        ours = (model.name, model.pretrained) == (bundled.MODEL, bundled.TAG)
        config: dict[str, Any] = {
            "model": model.name,
            "pretrained": content(str(bundled.WEIGHTS) if ours else model.pretrained),
            "dataset": data.name,
            "dataset_root": data.root,
            "split": data.split,
            "language": data.language,
            "task": self.task.name,
            "custom_classname_file": content(data.classnames),
            "custom_template_file": content(data.templates),
            "precision": compute.precision,
            # What autocast computes in depends on the kind of device.
            "device": compute.device_name().partition(":")[0] if compute.precision == "amp" else None,
            # Where one image of a batch chooses for all, it matters which are together.
            "batch_size": compute.batch_size if self._batches_decide else None,
            "limit": data.limit,
            "seed": data.seed if data.limit or not model.pretrained or self.task.trains else None,
            "pruning": {"strategy": self.pruning.name, **self.pruning.by_content(content)} if self.pruning else None,
            **self.task.by_content(content),
        }
        if (spec := repr(data)) not in known:
            known[spec] = json.dumps(stamp(data))
        if known[spec] != "null":
            config["data"] = known[spec]
        if data.annotation_file:
            config["annotation_file"] = content(data.annotation_file)
        config |= {name: value for name in COLUMNS if (value := getattr(data, name)) is not None}
        folder = model.name.removeprefix("local-dir:")
        if model.library != "open_clip" or folder != model.name:
            # All that is in a model's folder: weights, configuration, words, what it does to images.
            own = sorted(p for p in Path(folder).glob("*") if p.is_file()) if os.path.isdir(folder) else []
            config |= {"model_type": model.library, "files": [[p.name, content(str(p))] for p in own]}
        if model.trust_remote_code:
            config["trust_remote_code"] = True
        return config_hash(config)

    @property
    def _batches_decide(self) -> bool:
        return self.task.trains or bool(self.pruning and self.pruning.couples_batch)

    def features_hash(self, split: str, limit: int | None, contents: dict[str, str] | None = None) -> str:
        """16 hex digits of what decides the features of a split: all but the task's fields and the texts."""
        data = dataclasses.replace(
            self.data, split=split, limit=limit, language="en", classnames=None, templates=None, annotation_file=""
        )
        compute = dataclasses.replace(self.compute, skip_load=False)
        neutral = dataclasses.replace(self, data=data, task=ZeroShotClassification(), compute=compute)
        return config_hash({"features_of": neutral.hash(contents), "task": self.task.name})

    def flags(self) -> list[str]:
        """What to type after `anchorprune eval` for this request."""
        model, data, compute, task = self.model, self.data, self.compute, self.task
        words = ["--model", model.name, "--pretrained", model.pretrained, "--dataset", data.name]
        root = data.root.replace("{", "{{").replace("}", "}}")
        given = {
            "model_type": (model.library, "open_clip"),
            "model_cache_dir": (model.cache_dir, None),
            "dataset_root": (root, "root"),
            "split": (data.split, "test"),
            "language": (data.language, "en"),
            "annotation_file": (data.annotation_file, ""),
            "custom_classname_file": (data.classnames, None),
            "custom_template_file": (data.templates, None),
            **{name: (getattr(data, name), None) for name in COLUMNS},
            "wds_cache_dir": (data.cache_dir, None),
            "limit": (data.limit, None),
            "seed": (data.seed, 0),
            "task": (task.name, None),
            **{name: (value, None) for name, value in task.changed().items()},
            "device": (compute.device, None),
            "precision": (compute.precision, "amp"),
            "batch_size": (compute.batch_size, 64),
            "num_workers": (compute.num_workers, 4),
            "clf_cache": (compute.clf_cache, None),
            "feature_root": (compute.feature_root, "features"),
        }
        for name, (value, default) in given.items():
            if value != default:
                words += [f"--{name}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
        if model.trust_remote_code:
            words.append("--trust_remote_code")
        if data.skip_bad_images:
            words.append("--skip_bad_images")
        if compute.skip_load:
            words.append("--skip_load")
        if self.pruning:
            words += ["--enable_pruning", "--strategy", self.pruning.name, *shlex.split(self.pruning.flags())]
        return words


_PARTS = ("model", "data", "task", "compute")


def spec_of(kind: type[T], content: Mapping[str, Any]) -> T:
    """A part of a request as JSON holds it. UserError for one that it does not have, or a value that cannot be."""
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(map(str, set(content) - known)):
        raise UserError(f"a request's {kind.__name__} has no {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    try:
        made = kind(**content)
    except TypeError as error:  # a field without default is missing, or is of another type
        raise UserError(f"a request's {kind.__name__} cannot be read ({error})") from error
    check_types(made)
    return made


def config_hash(config: Mapping[str, Any]) -> str:
    """16 hex digits that name a configuration: equal settings, in whatever order, give equal digits.

    For a file that takes part in the configuration put its `fingerprint` into `config`, not its name.
    """
    text = json.dumps(plain(config), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def plain(value: Any) -> Any:
    """The value as strict JSON holds it: NaN and infinities become null."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "item"):  # a NumPy or torch scalar
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
