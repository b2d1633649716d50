"""Which evaluations a command line asks for: models × data sets × languages, and where each result goes."""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from anchorprune.commands._data import data_spec
from anchorprune.commands._flags import DEFAULT_OUTPUT, DEFAULT_PRETRAINED
from anchorprune.datasets import default_task, expand_names
from anchorprune.errors import FieldError, UserError, did_you_mean
from anchorprune.evaluation.request import Compute, DataSpec, ModelSpec, Request
from anchorprune.files import lines_of, read_text, short_name
from anchorprune.outputs import Read
from anchorprune.reading import filled
from anchorprune.scale.ranks import launched
from anchorprune.tasks import make_task, registry

# clip-benchmark's collections, except openclip_all, which is open_clip's own list of pretrained models.
MODEL_COLLECTIONS = {
    "openclip_base": [
        ("ViT-B-32-quickgelu", "laion400m_e32"),
        ("ViT-B-32", "laion2b_e16"),
        ("ViT-B-32", "laion2b_s34b_b79k"),
        ("ViT-B-16", "laion400m_e32"),
        ("ViT-B-16-plus-240", "laion400m_e32"),
        ("ViT-L-14", "laion400m_e32"),
        ("ViT-L-14", "laion2b_s32b_b82k"),
        ("ViT-H-14", "laion2b_s32b_b79k"),
        ("ViT-g-14", "laion2b_s12b_b42k"),
    ],
    "openclip_multilingual": [
        ("xlm-roberta-base-ViT-B-32", "laion5b_s13b_b90k"),
        ("xlm-roberta-large-ViT-H-14", "frozen_laion5b_s13b_b90k"),
    ],
    "openai": [
        ("ViT-B-32", "openai"),
        ("ViT-B-16", "openai"),
        ("ViT-L-14", "openai"),
        ("ViT-L-14-336", "openai"),
    ],
}
ATTENTION_OUTPUT = "attention_{dataset}_{pretrained}_{model}.pt"


@dataclass(frozen=True)
class Run:
    """One evaluation of the many that a command line asks for, and where what it finds goes."""

    request: Request
    output: str
    attention_output: str | None = None


def plan_runs(args: argparse.Namespace) -> list[Run]:
    """The evaluations that `eval`'s command line asks for, in clip-benchmark's order; of one rank when distributed.

    Their pruning is not in them yet: its budget may depend on the model.

    Raises:
        UserError: an unknown collection, an unreadable list file, a wrong placeholder, two runs with one output, a
            value that cannot be.
    """
    runs = []
    for request in requests_of(args):
        names = _output_names(request)
        attention = None
        if args.extract_attention:
            attention = _fill("--attention_output", args.attention_output or ATTENTION_OUTPUT, names)
        runs.append(Run(request, _fill("--output", _output_template(args), names), attention))
    _check_collisions(args.save_clf, runs, outcomes=args.save_outcomes)
    return dealt(runs, *launched()) if args.distributed else runs


def dealt(runs: list[Run], rank: int, world: int) -> list[Run]:
    """One rank's runs: a slice of the list by model, so that a model is loaded by few ranks and by each once."""
    models = list(dict.fromkeys(run.request.model for run in runs))
    by_model = sorted(runs, key=lambda run: models.index(run.request.model))
    return by_model[len(runs) * rank // world : len(runs) * (rank + 1) // world]


def single_request(args: argparse.Namespace) -> Request:
    """The one evaluation that the command line describes. UserError for several models, data sets or languages."""
    requests = requests_of(args)
    if len(requests) != 1:
        raise UserError(
            f"{args.which}: takes one model, one data set and one language at a time, and these are {len(requests)} "
            "combinations; run it for each"
        )
    return requests[0]


def folder_names(requests: Sequence[Request]) -> list[str]:
    """What the folder of each of a sweep's combinations is called. UserError where two would have one name."""
    form = "{model}_{pretrained}_{dataset}_{language}"
    names = [short_name(filled(form, **_output_names(request))) for request in requests]
    for name, count in Counter(names).items():
        if count > 1:
            raise UserError(
                f"--out: {count} of these models and data sets would have the folder {name}; sweep them apart"
            )
    return names


def requests_of(args: argparse.Namespace) -> list[Request]:
    """Models × data sets × languages, unpruned."""
    if args.model_type == "ja_clip":
        raise UserError(
            "--model_type ja_clip: models of the package japanese_clip are not there yet; use clip-benchmark for them, "
            "or --model_type open_clip or hf"
        )
    compute, datasets, requests = compute_of(args), expand_names(_as_list(args.dataset)), []
    for (model, pretrained), (i, dataset), language in product(
        _models(args), enumerate(datasets), _as_list(args.language)
    ):
        data = dataclasses.replace(data_spec(args, dataset, language), limit=args.limit, seed=args.seed)
        spec = ModelSpec(
            name=model,
            pretrained=pretrained,
            library=args.model_type,
            cache_dir=args.model_cache_dir,
            trust_remote_code=args.trust_remote_code,
        )
        task = _task(args, data, i, len(datasets))
        requests.append(Request(model=spec, data=data, task=task, compute=compute))
    return requests


def warn_of_idle_task_flags(args: argparse.Namespace, requests: Sequence[Request]) -> None:
    """Say which settings of tasks were given that none of these tasks has."""
    used = {field.name for request in requests for field in dataclasses.fields(request.task)}
    others = {field.name: field.default for task in registry().values() for field in dataclasses.fields(task)}

    def several(value: Any) -> tuple[Any, ...]:
        return tuple(value) if isinstance(value, (list, tuple)) else (value,)

    left = {name: default for name, default in others.items() if name not in used and hasattr(args, name)}
    idle = [f"--{name}" for name, default in left.items() if several(getattr(args, name)) != several(default)]
    if idle and requests:
        names = ", ".join(dict.fromkeys(request.task.name for request in requests))
        has = "has" if len(idle) == 1 else "have"
        warnings.warn(f"with --task {names}, {', '.join(idle)} {has} no effect", stacklevel=2)


def compute_of(args: argparse.Namespace) -> Compute:
    """UserError where --no_amp and --precision contradict each other, or a value cannot be."""
    if not args.amp and args.precision not in (None, "fp32"):
        raise UserError(f"--precision {args.precision}: contradicts --no_amp, which means fp32; give one of them")
    names = ("batch_size", "num_workers", "clf_cache", "feature_root", "skip_load")
    asked = {name: getattr(args, name) for name in names if hasattr(args, name)}
    return Compute(device=args.device, precision=args.precision or ("amp" if args.amp else "fp32"), **asked)


def _task(args: argparse.Namespace, data: DataSpec, place: int, count: int) -> Any:
    """The task on `data`, the one at `place` of `count`."""
    name = default_task(data) if args.task == "auto" else args.task
    fields = [field for field in dataclasses.fields(registry()[name]) if hasattr(args, field.name)]
    given = {field.name: getattr(args, field.name) for field in fields}
    for field in fields:
        if isinstance(value := given[field.name], list) and not isinstance(field.default, tuple):
            if len(value) not in (1, count):
                raise FieldError(field.name, value, f"give one for all data sets, or one for each of the {count}")
            given[field.name] = value[place if len(value) > 1 else 0]
    return make_task(name, **given)


def list_files(args: argparse.Namespace) -> list[Read]:
    """The files that hold names of models or data sets."""
    named = [("dataset", name) for name in _as_list(args.dataset)]
    named += [("pretrained_model", name) for name in _as_list(args.pretrained_model)]
    return [Read(flag, name) for flag, name in named if os.path.isfile(name)]


def _check_collisions(save_clf: str | None, runs: list[Run], *, outcomes: bool) -> None:
    """Raise UserError where one file would be written twice: what was written first would be lost."""
    files = [("--output", run.output) for run in runs]
    if outcomes:
        from anchorprune.evaluation.outcomes import path_for  # imports NumPy

        files += [("--output", str(path_for(run.output))) for run in runs]
    files += [("--attention_output", run.attention_output) for run in runs if run.attention_output]
    files += [("--save_clf", save_clf) for _ in runs if save_clf]
    times = Counter(os.path.realpath(path) for _, path in files)
    for flag, path in files:
        if (count := times[os.path.realpath(path)]) > 1:
            raise UserError(
                f"{flag} {path}: would be written {count} times; "
                + (
                    "evaluate one model and data set at a time"
                    if flag == "--save_clf"
                    else "put {model}, {dataset}… in it"
                )
            )


def _models(args: argparse.Namespace) -> list[tuple[str, str]]:
    if not args.pretrained_model:
        given = _as_list(args.pretrained)
        return [
            (model, each)
            for model in _as_list(args.model)
            for each in ([weights_of(model, args.model_type)] if given == DEFAULT_PRETRAINED else given)
        ]
    models: list[tuple[str, str]] = []
    for name in _as_list(args.pretrained_model):
        if os.path.isfile(name):
            models += _list_file(name)
        elif name == "openclip_all":
            import open_clip

            models += [(model, tag) for model, tag in open_clip.list_pretrained()]
        elif name in MODEL_COLLECTIONS:
            models += MODEL_COLLECTIONS[name]
        else:
            models.append(_pair(name, "--pretrained_model"))
    return models


def weights_of(model: str, library: str) -> str:
    """What `--pretrained` is of this model where it was not given: its default is a tag of open_clip's."""
    if library == "hf" or model.startswith(("hf-hub:", "local-dir:")):  # they come with their weights
        return ""
    if library == "timm":
        from anchorprune.models.timm import default_weights

        return default_weights(model)
    return DEFAULT_PRETRAINED[0]


def _list_file(name: str) -> list[tuple[str, str]]:
    try:
        lines = lines_of(read_text(name))
    except (OSError, ValueError) as error:
        raise FieldError("pretrained_model", name, f"cannot be read as a list of models ({error})") from error
    listed = [_pair(line, f"--pretrained_model {name}, line") for line in lines if line]
    if not listed:
        raise FieldError("pretrained_model", name, "the file is empty; write one 'model,pretrained' pair a line")
    return listed


def _pair(text: str, source: str) -> tuple[str, str]:
    model, comma, pretrained = text.partition(",")
    if not comma:
        known = [*MODEL_COLLECTIONS, "openclip_all"]
        raise UserError(
            f"{source} {text}: is no 'model,pretrained' pair, no collection and no file.{did_you_mean(text, known)}"
        )
    return model.strip(), pretrained.strip()


def _output_names(request: Request) -> dict[str, str]:
    pretrained = request.model.pretrained
    is_file = os.path.isfile(pretrained)
    return {
        "model": request.model.name.replace("/", "_"),
        "pretrained": os.path.basename(pretrained) if is_file else pretrained,
        "pretrained_full_path": pretrained.replace("/", "_") if is_file else pretrained,
        "task": request.task.name,
        # folder:PATH too makes a file name
        "dataset": re.sub(r"[/\\:]+", "_", request.data.name.removeprefix("wds/")),
        "language": request.data.language,
    }


def _output_template(args: argparse.Namespace) -> str:
    if args.enable_pruning and args.output == DEFAULT_OUTPUT:
        # Under its default name a pruned run must not overwrite the unpruned one's result.
        return DEFAULT_OUTPUT.replace(".json", f"_{args.strategy or 'anchor'}.json")
    return str(args.output)


def _fill(flag: str, template: str, names: dict[str, str]) -> str:
    try:
        return filled(template, **names)
    except ValueError as error:
        known = ", ".join(f"{{{name}}}" for name in names)
        raise UserError(f"{flag} {template}: the placeholders are {known}") from error


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
