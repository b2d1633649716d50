"""`anchorprune eval`: models × data sets × languages, checked before the work starts, one result file each."""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from anchorprune import results, tasks
from anchorprune.cli import DEFAULT_OUTPUT
from anchorprune.datasets import dataset_root, default_task, expand_names, open_dataset
from anchorprune.errors import UserError, did_you_mean
from anchorprune.strategies import make_strategy, registry
from anchorprune.strategies.base import Strategy

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
    """One evaluation of the many that a command line asks for."""

    model: str
    pretrained: str
    dataset: str
    language: str
    task: str
    output: str
    attention_output: str | None


def run_eval(args: argparse.Namespace, strategy_fields: dict[str, Any]) -> None:
    """Evaluate all that `args` (the parsed `eval` command line) asks for and write the results.

    Raises:
        UserError: something in the input is wrong. What can be known before the work starts is raised before it.
    """
    strategy = _strategy(args, strategy_fields)
    runs = plan_runs(args)
    _check(args, runs, strategy)

    # Only now: everything above answers at once, this takes seconds to import.
    from anchorprune.evaluate import evaluate, save_attention
    from anchorprune.towers.base import LoadedModel

    settings = settings_of(args)
    loaded: LoadedModel | None = None
    loaded_name: tuple[str, str] | None = None
    for run in runs:
        config = config_of(args, run, strategy)
        config_hash = results.config_hash(config)
        if args.skip_existing and results.is_done(run.output, config_hash, pruned=strategy is not None):
            _say(args, f"Skip {run.output}, exists already.")
            continue
        if args.skip_existing and os.path.exists(run.output):
            _say(args, f"{run.output} holds another configuration: evaluating again.")
        _say(args, f"Running '{run.task}' on '{run.dataset}' with '{run.model} {run.pretrained}' ({run.language})")
        if loaded is None or loaded_name != (run.model, run.pretrained):
            loaded = None  # frees the last model before the next one is loaded
            loaded, loaded_name = _load(args, run, settings), (run.model, run.pretrained)
        dataset = open_dataset(
            run.dataset,
            root=dataset_root(args.dataset_root, run.dataset),
            split=args.split,
            transform=loaded.transform,
            task=run.task,
            language=run.language,
            annotation_file=args.annotation_file,
            custom_classname_file=args.custom_classname_file,
            custom_template_file=args.custom_template_file,
            wds_cache_dir=args.wds_cache_dir,
        )
        found = evaluate(loaded, dataset, strategy, settings, extract_attention=run.attention_output is not None)
        result = result_of(args, run, found.result, config_hash)
        if args.dump_classnames and dataset.classes:
            result["classnames"] = dataset.classes
        if args.dump_templates and dataset.templates:
            result["templates"] = dataset.templates
        if found.attention is not None and run.attention_output is not None:
            shape, size = list(found.attention.weights[0].shape), found.attention.megabytes
            _say(args, f"Attention {shape} of block 1, {size:.1f} MB in all: {run.attention_output}")
            save_attention(found.attention, run.attention_output, run.model, run.pretrained, run.dataset)
        results.write(result, run.output)
        _say(args, f"{_summary(result)}\nDump results to: {run.output}")


def result_of(args: argparse.Namespace, run: Run, found: Mapping[str, Any], config_hash: str) -> dict[str, Any]:
    """A result as its file holds it: what was asked for, and what `evaluate` found."""
    return {
        "schema_version": results.SCHEMA_VERSION,
        "dataset": run.dataset,
        "model": run.model,
        "pretrained": run.pretrained,
        "task": run.task,
        "language": run.language,
        "split": args.split,
        **found,
        "config_hash": config_hash,
    }


def plan_runs(args: argparse.Namespace) -> list[Run]:
    """The evaluations that the command line asks for, in clip-benchmark's order; of one rank when distributed.

    Raises:
        UserError: an unknown collection, an unreadable list file, a wrong placeholder, two runs with one output.
    """
    runs = []
    for (model, pretrained), dataset, language in product(
        _models(args), expand_names(_as_list(args.dataset)), _as_list(args.language)
    ):
        task = default_task(dataset) if args.task == "auto" else args.task
        names = _output_names(model, pretrained, dataset, language, task)
        attention = None
        if args.extract_attention:
            attention = _fill("--attention_output", args.attention_output or ATTENTION_OUTPUT, names)
        output = _fill("--output", _output_template(args), names)
        runs.append(Run(model, pretrained, dataset, language, task, output, attention))
    for flag, paths in (
        ("--output", [r.output for r in runs]),
        ("--attention_output", [r.attention_output for r in runs]),
    ):
        path, count = Counter(paths).most_common(1)[0]
        if path is not None and count > 1:
            raise UserError(f"{flag} {path}: names one file for {count} evaluations; put {{model}}, {{dataset}}… in it")
    if args.distributed:
        rank, world_size = _rank()
        random.Random(args.seed).shuffle(runs)  # so that large models and data sets spread over the ranks
        runs = runs[rank::world_size]
    return runs


def _models(args: argparse.Namespace) -> list[tuple[str, str]]:
    if not args.pretrained_model:
        return list(product(_as_list(args.model), _as_list(args.pretrained)))
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


def _list_file(name: str) -> list[tuple[str, str]]:
    try:
        lines = [line.strip() for line in Path(name).read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"--pretrained_model {name}: cannot be read as a list of models ({error})") from error
    listed = [_pair(line, f"--pretrained_model {name}, line") for line in lines if line]
    if not listed:
        raise UserError(f"--pretrained_model {name}: the file is empty; write one 'model,pretrained' pair a line")
    return listed


def _pair(text: str, source: str) -> tuple[str, str]:
    model, comma, pretrained = text.partition(",")
    if not comma:
        known = [*MODEL_COLLECTIONS, "openclip_all"]
        raise UserError(
            f"{source} {text}: is no 'model,pretrained' pair, no collection and no file.{did_you_mean(text, known)}"
        )
    return model, pretrained


def _output_names(model: str, pretrained: str, dataset: str, language: str, task: str) -> dict[str, str]:
    is_file = os.path.isfile(pretrained)
    return {
        "model": model.replace("/", "_"),
        "pretrained": os.path.basename(pretrained) if is_file else pretrained,
        "pretrained_full_path": pretrained.replace("/", "_") if is_file else pretrained,
        "task": task,
        "dataset": dataset.removeprefix("wds/").replace("/", "_"),
        "language": language,
    }


def _output_template(args: argparse.Namespace) -> str:
    if args.enable_pruning and args.output == DEFAULT_OUTPUT:
        # Under its default name a pruned run must not overwrite the unpruned one's result.
        return DEFAULT_OUTPUT.replace(".json", f"_{args.strategy or 'anchor'}.json")
    return str(args.output)


def _fill(flag: str, template: str, names: dict[str, str]) -> str:
    try:
        return template.format(**names)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        known = ", ".join(f"{{{name}}}" for name in names)
        raise UserError(f"{flag} {template}: the placeholders are {known}") from error


def _strategy(args: argparse.Namespace, fields: dict[str, Any]) -> Strategy | None:
    name = args.strategy or "anchor"
    if name not in registry():
        raise UserError(f"--strategy {name}: choose one of {', '.join(registry())}.{did_you_mean(name, registry())}")
    strategy = make_strategy(name, **fields)  # a wrong value is an error also without effect
    if args.enable_pruning:
        return strategy
    idle = [f"--{name}" for name in (["strategy"] if args.strategy else []) + list(fields)]
    if idle:
        print(f"anchorprune: warning: without --enable_pruning, {', '.join(idle)} have no effect", file=sys.stderr)
    return None


def _check(args: argparse.Namespace, runs: list[Run], strategy: Strategy | None) -> None:
    """Whatever can be found wrong before a model is loaded."""
    if args.model_type != "open_clip":
        raise UserError(f"--model_type {args.model_type}: not there yet; only open_clip is")
    for flag in ("attention_images", "batch_size", "limit"):
        if (value := getattr(args, flag)) is not None and value < 1:
            raise UserError(f"--{flag} {value}: must be 1 or more")
    if args.num_workers < 0:
        raise UserError(f"--num_workers {args.num_workers}: must be 0 (no worker processes) or more")
    if not args.amp and args.precision not in (None, "fp32"):
        raise UserError(f"--precision {args.precision}: contradicts --no_amp, which means fp32; give one of them")
    for path in args.load_clfs:
        if not os.path.isfile(path):
            raise UserError(f"--load_clfs {path}: no such file")
    if args.save_clf:
        _check_output("--save_clf", args.save_clf)
    for run in runs:
        tasks.check(run.task, run.dataset)
        _check_output("--output", run.output)
        if run.attention_output:
            _check_output("--attention_output", run.attention_output)

    from anchorprune.towers import open_clip

    for model, pretrained in dict.fromkeys((run.model, run.pretrained) for run in runs):
        open_clip.check(model, pretrained)


def _check_output(flag: str, path: str) -> None:
    try:
        results.check_output(path)
    except UserError as error:
        raise UserError(str(error).replace("--output", flag, 1)) from error


def settings_of(args: argparse.Namespace) -> Any:
    """The `evaluate.Settings` that the command line asks for. UserError for a device that is not to be had."""
    import torch

    from anchorprune.evaluate import Settings

    name = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if args.distributed and name == "cuda":
        name = f"cuda:{_local_rank()}"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: is not to be had here ({str(error).splitlines()[0][:100]})") from error
    torch.manual_seed(args.seed)
    return Settings(
        device=device,
        precision=args.precision or ("amp" if args.amp else "fp32"),
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        limit=args.limit,
        seed=args.seed,
        skip_bad_images=args.skip_bad_images,
        verbose=args.verbose,
        load_clfs=tuple(args.load_clfs),
        save_clf=args.save_clf,
        attention_images=args.attention_images,
    )


def _load(args: argparse.Namespace, run: Run, settings: Any) -> Any:
    from anchorprune.towers import open_clip

    return open_clip.load(
        run.model,
        run.pretrained,
        cache_dir=args.model_cache_dir,
        device=settings.device,
        precision=settings.precision if settings.precision in ("bf16", "fp16") else "fp32",
    )


def config_of(args: argparse.Namespace, run: Run, strategy: Strategy | None) -> dict[str, Any]:
    """Whatever decides a result: two runs with equal configurations have equal metrics."""

    def file(path: str | None) -> str | None:
        return results.fingerprint(path) if path and os.path.isfile(path) else path

    return {
        "model": run.model,
        "pretrained": file(run.pretrained),
        "dataset": run.dataset,
        "dataset_root": dataset_root(args.dataset_root, run.dataset),
        "split": args.split,
        "language": run.language,
        "task": run.task,
        "custom_classname_file": file(args.custom_classname_file),
        "custom_template_file": file(args.custom_template_file),
        "load_clfs": [file(path) for path in args.load_clfs],
        "precision": args.precision or ("amp" if args.amp else "fp32"),
        "limit": args.limit,
        "seed": args.seed if args.limit else None,
        "pruning": strategy.as_dict() if strategy else None,
    }


def _summary(result: dict[str, Any]) -> str:
    metrics = ", ".join(f"{name} {value:.4f}" for name, value in result["metrics"].items())
    line = f"{metrics} on {result['n_samples']} of {result['n_total']} images"
    if result["n_bad_images"]:
        line += f" ({result['n_bad_images']} unreadable)"
    if result["pruning"]:
        line += f"; {result['pruning']['tokens_after']} of {result['pruning']['tokens_before']} tokens"
    if (gmacs := result["cost"]["gmacs"]) is not None:
        line += f"; {gmacs:.2f} GMACs"
    return f"{line}; {result['cost']['images_per_second']:.1f} images/s"


def _say(args: argparse.Namespace, text: str) -> None:
    if args.verbose:
        print(text, flush=True)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _from_environment(names: tuple[str, ...], default: int) -> int:
    return next((int(os.environ[name]) for name in names if name in os.environ), default)


def _rank() -> tuple[int, int]:
    """Rank and world size, from the launchers that open_clip and clip-benchmark know."""
    return (
        _from_environment(("RANK", "PMI_RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK"), 0),
        _from_environment(("WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"), 1),
    )


def _local_rank() -> int:
    return _from_environment(("LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK"), 0)
