"""`anchorprune eval`: checks all that can be known before the work starts, then one result file a run."""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import warnings
from typing import Any

from anchorprune import tasks
from anchorprune.commands import _flags as flags
from anchorprune.commands._flags import DEFAULT_OUTPUT, add_strategy_flags, given_fields, say
from anchorprune.commands._requests import Run, plan_runs
from anchorprune.errors import FieldError, UserError, did_you_mean
from anchorprune.files import check_output
from anchorprune.strategies import make_strategy, registry
from anchorprune.strategies.base import Strategy
from anchorprune.tasks.base import Task

HELP = "evaluate models on data sets, pruned or not"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """clip-benchmark's, and ours."""
    flags.add_source_flags(parser)
    _add_eval_flags(parser)
    flags.add_running_flags(parser)
    flags.add_progress_flags(parser)
    _add_pruning_flags(parser.add_argument_group("pruning"))
    flags.add_task_flags(parser)


def _add_eval_flags(parser: argparse._ActionsContainer) -> None:
    """What only `eval` has of clip-benchmark's."""
    add = parser.add_argument
    add(
        "--train_split",
        type=str,
        nargs="+",
        default="train",
        help="what the linear probe is trained on; one split, or one for each data set (default: %(default)s)",
    )
    add("--recall_k", default=[5], type=int, nargs="+", help="k of Recall@k, for retrieval")
    add(
        "--fewshot_k", default=-1, type=int, help="images of each class to train the linear probe on; -1: all (default)"
    )
    add("--fewshot_epochs", default=10, type=int, help="epochs of the linear probe (default: %(default)s)")
    add("--fewshot_lr", default=0.1, type=float, help="learning rate of the linear probe (default: %(default)s)")
    add(
        "--skip_load",
        action="store_true",
        help="for linear probes whose features are all under --feature_root: neither model nor images are opened",
    )
    add("--distributed", action="store_true", help="share the evaluations out over the ranks of torchrun or slurm")
    add(
        "--normalize",
        default=True,
        type=flags.true_or_false,
        help="True or False: whether the linear probe's features get length 1 (default: %(default)s)",
    )
    add("--dump_classnames", default=False, action="store_true", help="put the class names into the result")
    add("--dump_templates", default=False, action="store_true", help="put the prompts into the result")
    add(
        "--output",
        default=DEFAULT_OUTPUT,
        type=str,
        help="result file, may hold placeholders (default: %(default)s, with the strategy's name at the end when "
        "pruning)",
    )
    add(
        "--save_outcomes",
        action="store_true",
        help="save what each image was taken for, beside the result as NAME.outcomes.npz; `compare` reads it",
    )
    add("--save_clf", default=None, type=str, help="save the classifier made of the texts")
    add(
        "--skip_existing",
        default=False,
        action="store_true",
        help="skip what the output file already holds the result of, with these very settings",
    )
    validation = parser.add_mutually_exclusive_group()
    validation.add_argument(
        "--val_split",
        default=None,
        type=str,
        nargs="+",
        help="the linear probe's weight decay is chosen on this split; one, or one for each data set",
    )
    validation.add_argument(
        "--val_proportion",
        default=None,
        type=float,
        nargs="+",
        help="the same on this share of the train split, 0 … 1; one, or one for each data set",
    )


def _add_pruning_flags(ours: argparse._ActionsContainer) -> None:
    """What `eval` prunes, and what it saves of the attention."""
    ours.add_argument("--enable_pruning", action="store_true", help="prune tokens")
    ours.add_argument(
        "--strategy",
        choices=None,
        default=None,
        metavar="NAME",
        help=f"which tokens to keep: {', '.join(registry())} (default: anchor, the described method)",
    )
    add_strategy_flags(ours)
    ours.add_argument(
        "--target_gmacs",
        default=None,
        type=float,
        metavar="X",
        help="instead of a budget: the largest under which the image tower, selection included, costs at most X "
        "billion multiply-adds for an image",
    )
    ours.add_argument("--extract_attention", action="store_true", help="save the attention of a few images")
    ours.add_argument(
        "--attention_output",
        default=None,
        type=str,
        help="its file, a template like --output (default: attention_{dataset}_{pretrained}_{model}.pt)",
    )
    ours.add_argument("--attention_images", default=8, type=int, help="of how many images (default: 8)")


def run(args: argparse.Namespace) -> None:
    """Evaluate all that the command line asks for and write the results.

    Raises:
        UserError: something in the input is wrong. What can be known before the work starts is raised before it.
    """
    reporting = flags.reporting(args)
    runs = _pruned(args, plan_runs(args))
    _warn_of_idle_task_flags(args, runs)

    # Only now: everything above answers at once, this takes seconds to import.
    from anchorprune.evaluation.engine import evaluate
    from anchorprune.evaluation.runtime import Runtime
    from anchorprune.models import load
    from anchorprune.models.base import LoadedModel

    loaded: LoadedModel | None = None
    for run in runs:
        request = run.request
        model, data = request.model, request.data
        if request.pruning is not None and args.target_gmacs is not None:
            say(args, f"{args.target_gmacs:g} GMACs: {request.pruning.name} {request.pruning.flags()}".rstrip())
        if args.skip_existing and _is_done(args, run):
            say(args, f"Skip {run.output}, exists already.")
            continue
        if args.skip_existing and os.path.exists(run.output):
            say(args, f"{run.output} is not the result of these very settings: evaluating again.")
        say(
            args,
            f"Running '{request.task.name}' on '{data.name}' with '{model.name} {model.pretrained}' ({data.language})",
        )
        if request.compute.skip_load:
            loaded = None
        elif loaded is None or loaded.spec != model:
            loaded = None  # frees the last model before the next one is loaded
            runtime = Runtime.of(request.compute)
            loaded = load(model, runtime.device, runtime.weights, data.seed)
        result = evaluate(
            request,
            model=loaded,
            keep_scores=args.save_outcomes,
            attention_images=args.attention_images if run.attention_output else 0,
            progress=reporting,
        )
        _write(args, run, result)


def _pruned(args: argparse.Namespace, runs: list[Run]) -> list[Run]:
    """The runs with their pruning, its budget solved; checked for whatever can be found wrong before the work."""
    if args.attention_images < 1:
        raise FieldError("attention_images", args.attention_images, "must be 1 or more")
    strategy = _strategy(args)
    for flag, path in _outputs(args, runs):
        check_output(path, flag)
    if args.attention_output and not args.extract_attention:
        warnings.warn("without --extract_attention, --attention_output has no effect", stacklevel=2)

    from anchorprune.evaluation import preflight

    preflight.check([run.request for run in runs], attention=args.extract_attention)
    if strategy is None:
        return runs
    models = dict.fromkeys(run.request.model for run in runs)
    # Of kept features the model is not looked at, unless its budget has to be solved.
    as_it_is = args.skip_load and args.target_gmacs is None
    solved = {model: strategy if as_it_is else preflight.solved(model, strategy, args.target_gmacs) for model in models}
    return [
        dataclasses.replace(run, request=dataclasses.replace(run.request, pruning=solved[run.request.model]))
        for run in runs
    ]


def _outputs(args: argparse.Namespace, runs: list[Run]) -> list[tuple[str, str]]:
    named = [("save_clf", args.save_clf)] if args.save_clf else []
    for run in runs if args.save_clf else []:
        if type(run.request.task).artifacts is Task.artifacts:
            raise FieldError("save_clf", args.save_clf, f"{run.request.task.name} makes no classifier of texts")
    for run in runs:
        named.append(("output", run.output))
        named += [("attention_output", run.attention_output)] if run.attention_output else []
    return named


def _strategy(args: argparse.Namespace) -> Strategy | None:
    fields = given_fields(args)
    name = args.strategy or "anchor"
    if name not in registry():
        raise UserError(f"--strategy {name}: choose one of {', '.join(registry())}.{did_you_mean(name, registry())}")
    strategy = make_strategy(name, **fields)  # a wrong value is an error also without effect
    if args.target_gmacs is not None:
        from anchorprune.evaluation.preflight import check_no_budget

        check_no_budget(strategy, tuple(fields))
    if args.enable_pruning:
        return strategy
    idle = [f"--{name}" for name in ("strategy", "target_gmacs") if getattr(args, name) is not None]
    idle += [f"--{name}" for name in fields]
    if idle:
        has = "has" if len(idle) == 1 else "have"
        warnings.warn(f"without --enable_pruning, {', '.join(idle)} {has} no effect", stacklevel=2)
    return None


def _warn_of_idle_task_flags(args: argparse.Namespace, runs: list[Run]) -> None:
    """Say which settings of tasks were given that no run's task has."""
    used = {field.name for run in runs for field in dataclasses.fields(run.request.task)}
    others = {field.name: field.default for task in tasks.registry().values() for field in dataclasses.fields(task)}

    def several(value: Any) -> tuple[Any, ...]:
        return tuple(value) if isinstance(value, (list, tuple)) else (value,)

    left = {name: default for name, default in others.items() if name not in used and hasattr(args, name)}
    idle = [f"--{name}" for name, default in left.items() if several(getattr(args, name)) != several(default)]
    if idle and runs:
        names = ", ".join(dict.fromkeys(run.request.task.name for run in runs))
        has = "has" if len(idle) == 1 else "have"
        warnings.warn(f"with --task {names}, {', '.join(idle)} {has} no effect", stacklevel=2)


def _is_done(args: argparse.Namespace, run: Run) -> bool:
    """Whether all that this run would write is there: its result, and what else was asked for."""
    from anchorprune.evaluation import outcomes, result

    config_hash = run.request.hash()
    if not result.is_done(run.output, config_hash, pruned=run.request.pruning is not None):
        return False
    others = [path for path in (run.attention_output, args.save_clf) if path]
    asked = [key for key in ("classnames", "templates") if getattr(args, f"dump_{key}")]
    found = result.read(run.output)
    if args.save_outcomes and not outcomes.are_of(outcomes.path_for(run.output), config_hash):
        return False
    return all(map(os.path.exists, others)) and all(key in found for key in asked)


def _write(args: argparse.Namespace, run: Run, result: Any) -> None:
    """The result's file, and those beside it."""
    from anchorprune.evaluation.artifacts import save_tensors

    model, data = run.request.model, run.request.data
    more: dict[str, Any] = {}
    if args.dump_classnames and result.classes:
        more["classnames"] = result.classes
    if args.dump_templates and result.templates:
        more["templates"] = result.templates
    if args.save_clf:
        save_tensors(result.artifacts["classifier"], args.save_clf)
    if run.attention_output is not None:
        attention = result.artifacts["attention"]
        shape, size = list(attention.weights[0].shape), attention.megabytes
        say(args, f"Attention {shape} of block 1, {size:.1f} MB in all: {run.attention_output}")
        save_tensors(attention.as_dict(model.name, model.pretrained, data.name), run.attention_output)
    result.save(run.output, **more)
    say(args, f"{summary(result.to_dict())}\nDump results to: {run.output}")


def summary(result: dict[str, Any]) -> str:
    """The result in one line."""
    known = {name: value for name, value in result["metrics"].items() if not math.isnan(value)}  # acc5 of 4 classes
    metrics = ", ".join(f"{name} {_shown(name, value)}" for name, value in known.items())
    line = f"{metrics} on {result['n_samples']} of {result['n_total']} images"
    if result["n_bad_images"]:
        line += f" ({result['n_bad_images']} unreadable)"
    if result["pruning"]:
        measured = result["pruning"]["measured"]
        line += f"; {measured['tokens_after']} of {measured['tokens_before']} tokens"
    if (gmacs := result["cost"]["gmacs"]) is not None:
        dense = result["cost"]["gmacs_dense"]
        line += f"; {gmacs:.2f} GMACs" if gmacs == dense else f"; {gmacs:.2f} of {dense:.2f} GMACs"
    return f"{line}; {result['cost']['images_per_second']:.1f} images/s"


def _shown(name: str, value: Any) -> str:
    """A metric; what is no share says how it was come by, as weight decay does."""
    return f"{value:.4f}" if isinstance(value, float) and name != "weight_decay" else f"{value}"
