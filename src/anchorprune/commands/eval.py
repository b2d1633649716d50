"""`anchorprune eval`: checks all that can be known before the work starts, then one result file a run."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import sys
import warnings
from functools import partial
from typing import Any

from anchorprune.commands import _flags as flags
from anchorprune.commands._flags import DEFAULT_OUTPUT, add_strategy_flags, given_fields, say
from anchorprune.commands._requests import Run, list_files, plan_runs, warn_of_idle_task_flags
from anchorprune.commands._results import all_of, noted, summary
from anchorprune.commands._scale import Failures, add_engine_flags, engine_of, results_of
from anchorprune.errors import FieldError, Unwritten, UserError, did_you_mean
from anchorprune.evaluation.request import ModelSpec
from anchorprune.fields import true_or_false
from anchorprune.files import StrPath
from anchorprune.outputs import Read, check_outputs
from anchorprune.scale.jobs import Engine, Job
from anchorprune.scale.ranks import launched
from anchorprune.strategies import RECOMMENDED, known, make_strategy
from anchorprune.strategies.base import Strategy
from anchorprune.tasks.base import Task

HELP = "evaluate models on data sets, pruned or not"
ATTENTION_IMAGES = 8


def add_flags(parser: argparse.ArgumentParser) -> None:
    """clip-benchmark's, and ours."""
    flags.add_source_flags(parser)
    _add_eval_flags(parser)
    flags.add_running_flags(parser)
    flags.add_progress_flags(parser)
    add_engine_flags(parser)
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
    add("--distributed", action="store_true", help="deal the evaluations out to the ranks of torchrun, SLURM or MPI")
    add(
        "--shard_samples",
        action="store_true",
        help="deal the samples of each evaluation out to these ranks; the first merges and writes the result",
    )
    add(
        "--normalize",
        default=True,
        type=true_or_false,
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
        help=f"which tokens to keep: {', '.join(known())} (default: anchor, the described method)",
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
    ours.add_argument(
        "--attention_images", default=ATTENTION_IMAGES, type=int, help="of how many images (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Evaluate all that the command line asks for and write the results; returns the exit code.

    Raises:
        UserError: something in the input is wrong, or a file cannot be written. What can be known before the work
            starts is raised before it.
    """
    if args.shard_samples and args.extract_attention:
        raise UserError(
            "--extract_attention: is of the first images, and --shard_samples deals images out; leave one of them out"
        )
    if args.shard_samples and args.skip_load:
        raise UserError("--skip_load: needs no model and no images to share; leave --shard_samples out")
    with engine_of(args) as engine:
        runs, failures, total = engine.planned(lambda: _planned(args, engine))
        if runs:
            _name_the_recommended(args)
        jobs = {_job(args, run): run for run in runs}
        for job, (result,) in results_of(args, engine, list(jobs), partial(_announce, args), failures):
            try:
                _write(args, jobs[job], result)
            except UserError as error:
                if not args.keep_going:
                    raise
                failures.add(job.title, error)
    return failures.listed(total)


def _planned(args: argparse.Namespace, engine: Engine) -> tuple[list[Run], Failures, int]:
    """The runs that are not done yet, what of the others has failed already, and how many there are in all."""
    failures = Failures()
    runs = plan_runs(args)
    warn_of_idle_task_flags(args, [run.request for run in runs])
    todo = []
    for run in _pruned(args, runs, engine, failures):
        if args.skip_existing and _is_done(args, run):
            say(args, f"Skip {run.output}, exists already.")
            continue
        if args.skip_existing and os.path.exists(run.output):
            say(args, f"{run.output} is not the result of these very settings: evaluating again.")
        todo.append(run)
    return todo, failures, len(runs)


def _job(args: argparse.Namespace, run: Run) -> Job:
    images = args.attention_images if run.attention_output else 0
    return Job((run.request,), keep_scores=args.save_outcomes, attention_images=images)


def _announce(args: argparse.Namespace, job: Job) -> None:
    (request,) = job.requests
    model, data = request.model, request.data
    if request.pruning is not None and args.target_gmacs is not None:
        say(args, f"{args.target_gmacs:g} GMACs: {request.pruning.name} {request.pruning.flags()}".rstrip())
    named = f"'{request.task.name}' on '{data.name}' with '{model.name} {model.pretrained}' ({data.language})"
    say(args, f"Running {named}")


def _pruned(args: argparse.Namespace, runs: list[Run], engine: Engine, failures: Failures) -> list[Run]:
    """The runs with their pruning, its budget solved; checked for whatever can be found wrong before the work."""
    if args.attention_images < 1:
        raise FieldError("attention_images", args.attention_images, "must be 1 or more")
    strategy = _strategy(args)
    check_outputs(_outputs(args, runs), _reads(args, runs, strategy))
    _warn_of_idle_attention_flags(args)

    from anchorprune.evaluation import preflight

    here = args.engine == "local"
    check = partial(preflight.check, attention=args.extract_attention, here=here, alone=here and not args.shard_samples)

    @functools.cache
    def solved(model: ModelSpec) -> Strategy | None:
        # Of kept features the model is not looked at, unless its budget has to be solved.
        if strategy is None or (args.skip_load and args.target_gmacs is None):
            return strategy
        return preflight.solved(model, strategy, args.target_gmacs)

    if not args.keep_going:
        check([run.request for run in runs])
    ready = []
    for run in runs:
        request = dataclasses.replace(run.request, compute=engine.compute(run.request.compute))
        try:
            if args.keep_going:
                check([request])
            request = dataclasses.replace(request, pruning=solved(request.model))
            if args.shard_samples:
                preflight.check_shards([request])
        except UserError as error:
            if not args.keep_going:
                raise
            failures.add(_job(args, run).title, error)
        else:
            ready.append(dataclasses.replace(run, request=request))
    return ready


def _outputs(args: argparse.Namespace, runs: list[Run]) -> list[tuple[str, StrPath]]:
    from anchorprune.evaluation.outcomes import path_for

    named: list[tuple[str, StrPath]] = [("save_clf", args.save_clf)] if args.save_clf else []
    for run in runs if args.save_clf else []:
        if type(run.request.task).artifacts is Task.artifacts:
            raise FieldError("save_clf", args.save_clf, f"{run.request.task.name} makes no classifier of texts")
    for run in runs:
        named.append(("output", run.output))
        named += [("output", path_for(run.output))] if args.save_outcomes else []
        named += [("attention_output", run.attention_output)] if run.attention_output else []
    return named


def _reads(args: argparse.Namespace, runs: list[Run], strategy: Strategy | None) -> list[Read]:
    from anchorprune.evaluation.inputs import field_reads, reads_of

    found = [*list_files(args), *(read for run in runs for read in reads_of(run.request))]
    return list(dict.fromkeys([*found, *(field_reads(strategy) if strategy else ())]))


def _strategy(args: argparse.Namespace) -> Strategy | None:
    fields = given_fields(args)
    name = "anchor" if args.strategy is None else args.strategy
    if name not in known():
        raise UserError(
            f"--strategy {name or repr(name)}: choose one of {', '.join(known())}.{did_you_mean(name, known())}"
        )
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


def _name_the_recommended(args: argparse.Namespace) -> None:
    """Who asks for pruning and no more gets the described method, and is told of the recommended one."""
    if args.enable_pruning and args.strategy is None and not given_fields(args) and args.verbose and not launched()[0]:
        print(
            "anchorprune: --enable_pruning alone is the described method (--strategy anchor); "
            f"the recommended one is --strategy {RECOMMENDED}",
            file=sys.stderr,
        )


def _warn_of_idle_attention_flags(args: argparse.Namespace) -> None:
    if args.extract_attention:
        return
    idle = ["--attention_output"] if args.attention_output else []
    idle += ["--attention_images"] if args.attention_images != ATTENTION_IMAGES else []
    if idle:
        has = "has" if len(idle) == 1 else "have"
        warnings.warn(f"without --extract_attention, {', '.join(idle)} {has} no effect", stacklevel=2)


def _is_done(args: argparse.Namespace, run: Run) -> bool:
    """Whether all that this run would write is there: its result, and what else was asked for."""
    from anchorprune.evaluation import outcomes, result

    config_hash = run.request.hash()
    if not result.is_done(run.output, config_hash, pruned=run.request.pruning is not None):
        return False
    others = [path for path in (run.attention_output, args.save_clf) if path]
    asked = [key for key in ("classnames", "templates") if getattr(args, f"dump_{key}")]
    found = result.read(run.output)
    if args.save_outcomes and not outcomes.are_beside(run.output, found):
        return False
    if others and not set(others) <= set(found.get("saved_beside") or ()):
        return False  # it was killed before these were written, so that they are another run's
    return all(map(os.path.exists, others)) and all(key in found for key in asked)


def _write(args: argparse.Namespace, run: Run, result: Any) -> None:
    """The result's file first, then those beside it; what cannot be written does not keep the others from it.

    Raises:
        UserError: some cannot be; the metrics are on standard output, whatever was asked for.
    """
    from anchorprune.evaluation.artifacts import save_tensors

    model, data = run.request.model, run.request.data
    more: dict[str, Any] = {}
    asked = [("classnames", result.classes)] if args.dump_classnames else []
    asked += [("templates", result.templates)] if args.dump_templates else []
    for name, listed in asked:
        if listed:
            more[name] = listed
        else:
            idle = f"{run.request.task.name} on {data.name} has none, and --dump_{name} no effect"
            warnings.warn(idle, stacklevel=2)
    lost: list[Unwritten] = []
    beside = []
    with noted(lost):
        result.save(run.output, **more)
    if args.save_clf:
        with noted(lost):
            save_tensors(result.artifacts["classifier"], args.save_clf)
            beside.append(args.save_clf)
    if run.attention_output is not None:
        attention = result.artifacts["attention"]
        shape, size = list(attention.weights[0].shape), attention.megabytes
        say(args, f"Attention {shape} of block 1, {size:.1f} MB in all: {run.attention_output}")
        with noted(lost):
            save_tensors(attention.as_dict(model.name, model.pretrained, data.name), run.attention_output)
            beside.append(run.attention_output)
    if beside and not lost:
        # Said once they are there: a result that does not say so has another run's beside it, or none.
        with noted(lost):
            result.save(run.output, **more, saved_beside=beside)
    if lost:
        print(summary(result.to_dict()), flush=True)
        raise all_of(lost)
    say(args, f"{summary(result.to_dict())}\nDump results to: {run.output}")
