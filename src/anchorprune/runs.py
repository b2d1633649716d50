"""`anchorprune eval`: checks all that can be known before the work starts, then one result file a run."""

from __future__ import annotations

import argparse
import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anchorprune import demo, outcomes, results, tasks
from anchorprune.datasets import check_dataset, dataset_root, open_dataset
from anchorprune.errors import FieldError, UserError, did_you_mean
from anchorprune.languages import nllb_code, set_language
from anchorprune.planning import Run, local_rank, plan_runs
from anchorprune.results import StrPath
from anchorprune.strategies import make_strategy, registry
from anchorprune.strategies.base import Strategy

if TYPE_CHECKING:
    import torch

    from anchorprune.evaluate import Evaluation, Settings
    from anchorprune.towers.base import LoadedModel


def run_eval(args: argparse.Namespace, strategy_fields: dict[str, Any]) -> None:
    """Evaluate all that `args` (the parsed `eval` command line) asks for and write the results.

    Raises:
        UserError: something in the input is wrong. What can be known before the work starts is raised before it.
    """
    strategy = _strategy(args, strategy_fields)
    runs = plan_runs(args)
    solved = check(args, runs, strategy)

    # Only now: everything above answers at once, this takes seconds to import.
    from anchorprune.evaluate import evaluate, save_attention

    settings = settings_of(args)
    loaded: LoadedModel | None = None
    loaded_name: tuple[str, str] | None = None
    for run in runs:
        strategy = solved[run.model]
        if strategy is not None and args.target_gmacs is not None:
            say(args, f"{args.target_gmacs:g} GMACs: {strategy.name} {strategy.flags()}".rstrip())
        config_hash = results.config_hash(config_of(args, run, strategy, settings))
        if args.skip_existing and _is_done(args, run, config_hash, strategy):
            say(args, f"Skip {run.output}, exists already.")
            continue
        if args.skip_existing and os.path.exists(run.output):
            say(args, f"{run.output} is not the result of these very settings: evaluating again.")
        say(args, f"Running '{run.task}' on '{run.dataset}' with '{run.model} {run.pretrained}' ({run.language})")
        if loaded is None or loaded_name != (run.model, run.pretrained):
            loaded = None  # frees the last model before the next one is loaded
            loaded, loaded_name = load(args, run, settings), (run.model, run.pretrained)
        set_language(loaded.tokenizer, run.model, run.language)  # the last run's may have been another
        dataset = open_dataset(run.dataset, transform=loaded.transform, **source_of(args, run))
        if args.save_outcomes and dataset.multilabel:
            raise UserError(f"--save_outcomes: {run.dataset} has many labels an image, neither right nor wrong")
        found = evaluate(
            loaded,
            dataset,
            strategy,
            settings,
            keep_outcomes=args.save_outcomes,
            extract_attention=run.attention_output is not None,
        )
        result = result_of(args, run, found.result, config_hash)
        if args.dump_classnames and dataset.classes:
            result["classnames"] = dataset.classes
        if args.dump_templates and dataset.templates:
            result["templates"] = dataset.templates
        if found.attention is not None and run.attention_output is not None:
            shape, size = list(found.attention.weights[0].shape), found.attention.megabytes
            say(args, f"Attention {shape} of block 1, {size:.1f} MB in all: {run.attention_output}")
            save_attention(found.attention, run.attention_output, run.model, run.pretrained, run.dataset)
        if args.save_outcomes:
            save_outcomes(found, run.output)
            result["outcomes"] = outcomes.path_for(run.output).name
        results.write(result, run.output)
        say(args, f"{summary(result)}\nDump results to: {run.output}")


def source_of(args: argparse.Namespace, run: Run) -> dict[str, Any]:
    """Where the data set is and what it is called with, for `open_dataset`."""
    return {
        "root": dataset_root(args.dataset_root, run.dataset),
        "split": args.split,
        "task": run.task,
        "language": run.language,
        "annotation_file": args.annotation_file,
        "custom_classname_file": args.custom_classname_file,
        "custom_template_file": args.custom_template_file,
        "wds_cache_dir": args.wds_cache_dir,
    }


def _is_done(args: argparse.Namespace, run: Run, config_hash: str, strategy: Strategy | None) -> bool:
    """Whether all that this run would write is there: its result, and what else was asked for."""
    others = [path for path in (run.attention_output, args.save_clf) if path]
    if args.save_outcomes:
        others.append(str(outcomes.path_for(run.output)))
    if not results.is_done(run.output, config_hash, pruned=strategy is not None):
        return False
    dumped = results.read(run.output)
    asked = [key for key in ("classnames", "templates") if getattr(args, f"dump_{key}")]
    return all(map(os.path.exists, others)) and all(key in dumped for key in asked)


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


def _strategy(args: argparse.Namespace, fields: dict[str, Any]) -> Strategy | None:
    name = args.strategy or "anchor"
    if name not in registry():
        raise UserError(f"--strategy {name}: choose one of {', '.join(registry())}.{did_you_mean(name, registry())}")
    strategy = make_strategy(name, **fields)  # a wrong value is an error also without effect
    if args.target_gmacs is not None:
        check_no_budget(strategy, fields)
    if args.enable_pruning:
        return strategy
    others = [name for name in ("strategy", "target_gmacs") if getattr(args, name) is not None]
    idle = [f"--{name}" for name in others + list(fields)]
    if idle:
        warnings.warn(f"without --enable_pruning, {', '.join(idle)} have no effect", stacklevel=2)
    return None


def check(args: argparse.Namespace, runs: list[Run], strategy: Strategy | None) -> dict[str, Strategy | None]:
    """Whatever can be found wrong before a model is loaded; returns the strategy for each, its budget solved."""
    if args.model_type == "ja_clip":
        raise UserError(
            "--model_type ja_clip: models of the package japanese_clip are not there yet; use clip-benchmark for them, "
            "or --model_type open_clip or hf"
        )
    for flag in ("attention_images", "batch_size", "limit"):
        if (value := getattr(args, flag)) is not None and value < 1:
            raise UserError(f"--{flag} {value}: must be 1 or more")
    if args.num_workers < 0:
        raise UserError(f"--num_workers {args.num_workers}: must be 0 (no worker processes) or more")
    precision_of(args)
    for path in args.load_clfs:
        if not os.path.isfile(path):
            raise UserError(f"--load_clfs {path}: no such file")
    if args.save_clf:
        _check_output("--save_clf", args.save_clf)
    for run in runs:
        tasks.check(run.task, run.dataset)
        nllb_code(run.model, run.language)
        _check_output("--output", run.output)
        if run.attention_output:
            _check_output("--attention_output", run.attention_output)

    if args.attention_output and not args.extract_attention:
        warnings.warn("without --extract_attention, --attention_output has no effect", stacklevel=2)
    if len(runs) > 1:  # a single one is opened soon enough; here nothing may fail after hours of other runs
        for run in {(run.dataset, run.language): run for run in runs}.values():
            check_dataset(run.dataset, **source_of(args, run))

    from anchorprune.towers import library

    solved: dict[str, Strategy | None] = {run.model: strategy for run in runs}
    for model, pretrained in dict.fromkeys((run.model, run.pretrained) for run in runs):
        library(args.model_type).check(model, pretrained, args.model_cache_dir)
        if strategy or args.extract_attention:
            solved[model] = check_tower(args.model_type, model, strategy, args.target_gmacs)
    return solved


def check_no_budget(strategy: Strategy, fields: Mapping[str, Any]) -> None:
    """Raise FieldError where `fields` holds a budget of the strategy, which `--target_gmacs` solves."""
    largest, *_, smallest = [budget.as_dict() for budget in strategy.budgets(196, 12)]
    for name in fields:
        if largest[name] != smallest[name] or name == "keep_ratio":
            raise FieldError(name, fields[name], "is what --target_gmacs solves; give one of them")


def check_tower(
    model_type: str, model: str, strategy: Strategy | None, target_gmacs: float | None = None
) -> Strategy | None:
    """The strategy, solved for `target_gmacs` where that is given.

    Raises:
        UserError: the model's tower cannot be pruned by it, or with None, its attention not be read.
    """
    from anchorprune.budget import solve
    from anchorprune.pruning import check_layers
    from anchorprune.towers import find_tower, skeleton

    if (built := skeleton(model_type, model)) is None:
        if target_gmacs is not None:
            raise UserError(f"--target_gmacs {target_gmacs:g}: the cost of {model} cannot be counted before loading it")
        return strategy  # then loading it will tell
    try:
        tower = find_tower(built)
    except UserError as error:
        what = str(error) if strategy else str(error).replace("cannot prune", "cannot read the attention of", 1)
        raise UserError(f"--model {model}: {what}") from error
    if strategy:
        check_layers(tower, strategy)
    return solve(built, strategy, target_gmacs) if strategy and target_gmacs is not None else strategy


def save_outcomes(found: Evaluation, output: StrPath) -> None:
    """Write what each image was taken for beside the result at `output`."""
    assert found.outcomes is not None
    outcomes.write(found.outcomes, outcomes.path_for(output))


def _check_output(flag: str, path: str) -> None:
    try:
        results.check_output(path)
    except UserError as error:
        raise UserError(str(error).replace("--output", flag, 1)) from error


def settings_of(args: argparse.Namespace) -> Settings:
    """The `evaluate.Settings` that the command line asks for. UserError for a device that is not to be had."""
    import torch

    from anchorprune.evaluate import Settings

    torch.manual_seed(args.seed)
    return Settings(
        device=device_of(args),
        precision=precision_of(args),
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        limit=args.limit,
        seed=args.seed,
        skip_bad_images=args.skip_bad_images,
        verbose=args.verbose,
        load_clfs=tuple(args.load_clfs),
        save_clf=args.save_clf,
        attention_images=args.attention_images,
        cache_dir=str(results.user_cache()) if args.clf_cache is None else args.clf_cache,
    )


def device_of(args: argparse.Namespace) -> torch.device:
    """UserError for a device that is not to be had."""
    import torch

    name = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if getattr(args, "distributed", False) and name == "cuda":
        name = f"cuda:{local_rank()}"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: is not to be had here ({str(error).splitlines()[0][:100]})") from error
    return device


def precision_of(args: argparse.Namespace) -> str:
    """UserError where --no_amp and --precision contradict each other."""
    if not args.amp and args.precision not in (None, "fp32"):
        raise UserError(f"--precision {args.precision}: contradicts --no_amp, which means fp32; give one of them")
    return args.precision or ("amp" if args.amp else "fp32")


def load(args: argparse.Namespace, run: Run, settings: Settings) -> LoadedModel:
    from anchorprune.towers import library

    loaded: LoadedModel = library(args.model_type).load(
        run.model,
        run.pretrained,
        cache_dir=args.model_cache_dir,
        device=settings.device,
        precision=settings.weights,
    )
    return loaded


def config_of(args: argparse.Namespace, run: Run, strategy: Strategy | None, settings: Settings) -> dict[str, Any]:
    """What decides a result, the data set by its name and place: equal configurations have equal metrics."""
    strategy_fields = strategy.as_dict() if strategy else None

    def file(path: str | None) -> str | None:
        return results.fingerprint(path) if path and os.path.isfile(path) else path

    library: dict[str, Any] = {}
    if (
        args.model_type == "hf"
    ):  # all that is in a model's folder: weights, configuration, words, what it does to images
        own = sorted(path for path in Path(run.model).glob("*") if path.is_file()) if os.path.isdir(run.model) else []
        library = {"model_type": "hf", "files": [[path.name, file(str(path))] for path in own]}

    bundled = (run.model, run.pretrained) == (demo.MODEL, demo.TAG)
    return {
        "model": run.model,
        "pretrained": file(str(demo.WEIGHTS) if bundled else run.pretrained),
        "dataset": run.dataset,
        "dataset_root": dataset_root(args.dataset_root, run.dataset),
        "split": args.split,
        "language": run.language,
        "task": run.task,
        "custom_classname_file": file(args.custom_classname_file),
        "custom_template_file": file(args.custom_template_file),
        "load_clfs": [file(path) for path in args.load_clfs],
        "precision": settings.precision,
        # What autocast computes in depends on the kind of device.
        "device": settings.device.type if settings.precision == "amp" else None,
        # Where one image of a batch chooses for all, it matters which are together.
        "batch_size": args.batch_size
        if strategy_fields and strategy_fields.get("selection") == "first_image"
        else None,
        "limit": args.limit,
        "seed": args.seed if args.limit or not run.pretrained else None,
        "pruning": strategy_fields,
        **library,
    }


def summary(result: dict[str, Any]) -> str:
    known = {name: value for name, value in result["metrics"].items() if not math.isnan(value)}  # acc5 of 4 classes
    metrics = ", ".join(f"{name} {value:.4f}" for name, value in known.items())
    line = f"{metrics} on {result['n_samples']} of {result['n_total']} images"
    if result["n_bad_images"]:
        line += f" ({result['n_bad_images']} unreadable)"
    if result["pruning"]:
        line += f"; {result['pruning']['tokens_after']} of {result['pruning']['tokens_before']} tokens"
    if (gmacs := result["cost"]["gmacs"]) is not None:
        dense = result["cost"]["gmacs_dense"]
        line += f"; {gmacs:.2f} GMACs" if gmacs == dense else f"; {gmacs:.2f} of {dense:.2f} GMACs"
    return f"{line}; {result['cost']['images_per_second']:.1f} images/s"


def say(args: argparse.Namespace, text: str) -> None:
    if args.verbose:
        print(text, flush=True)
