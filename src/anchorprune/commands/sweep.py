"""`anchorprune sweep`: many ways of pruning in one pass over the data, and which of them are worth their compute."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anchorprune.commands import _flags as flags
from anchorprune.commands._flags import parse_strategies, say
from anchorprune.commands._requests import folder_names, list_files, requests_of, warn_of_idle_task_flags
from anchorprune.commands._results import all_of, kept, noted, summary
from anchorprune.commands._scale import Failures, add_engine_flags, engine_of, results_of
from anchorprune.errors import FieldError, Unwritten, UserError
from anchorprune.evaluation.request import Request
from anchorprune.files import output_folder
from anchorprune.outputs import check_names
from anchorprune.scale.jobs import Engine, Job, groups
from anchorprune.strategies import Wanted
from anchorprune.terminal import line_width

if TYPE_CHECKING:
    from anchorprune.evaluation.result import Result
    from anchorprune.studies.ways import Way

WAYS_ON_RAY = 4  # that share a pass there: more decode an image less often, fewer spread better

HELP = "evaluate many ways of pruning in one pass; accuracy against compute"


def add_flags(parser: argparse.ArgumentParser) -> None:
    own = parser.add_argument_group("what to try")
    own.add_argument(
        "--strategies",
        nargs="+",
        metavar="SPEC",
        default=None,
        help="names, or names with flags in quotes such as 'anchor --prune_layer 6' (default: every strategy)",
    )
    flags.add_targets(own)
    own.add_argument(
        "--out",
        metavar="DIR",
        default="anchorprune-sweep",
        help="folder for the results (%(default)s); in it one for each model and data set where there are several",
    )
    own.add_argument(
        "--skip_existing",
        action="store_true",
        help="read what --out already holds of these very settings, and evaluate the rest",
    )
    own.add_argument(
        "--ways_per_pass",
        type=int,
        metavar="N",
        default=None,
        help="so many ways share a pass over the data, and are written at its end (default: all of a model and data "
        f"set; {WAYS_ON_RAY} with --engine ray)",
    )
    flags.add_source_flags(parser)
    flags.add_running_flags(parser)
    flags.add_progress_flags(parser)
    add_engine_flags(parser)
    flags.add_task_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluate all ways that the command line asks for, and write the results to `--out`; returns the exit code.

    Each result is written when its pass is done, and the pages are made of the files at the end.
    """
    if args.ways_per_pass is not None and args.ways_per_pass < 1:
        raise FieldError("ways_per_pass", args.ways_per_pass, "must be 1 or more")
    requests = requests_of(args)
    warn_of_idle_task_flags(args, requests)
    strategies = parse_strategies(args.strategies)
    from anchorprune.evaluation.inputs import reads_of, strategy_reads

    failures = Failures()
    with engine_of(args) as engine:
        swept = _planned(args, engine, requests, strategies, failures)
        names, reads = _names(swept), [read for one in swept for read in reads_of(one.request)]
        check_names("out", args.out, names, [*list_files(args), *reads, *strategy_reads(strategies)])
        with output_folder("out", args.out, *names) as folder:
            todo: dict[Request, Path] = {}
            for one in swept:
                for way in one.ways:
                    say(args, f"{way.name} {way.flags}".rstrip())
                todo |= _not_done(args, one.files(folder))
            at_most = args.ways_per_pass or (WAYS_ON_RAY if args.engine == "ray" else None)
            jobs = [Job(requests, keep_scores=True) for requests in groups(list(todo), at_most)]
            for job, results in results_of(args, engine, jobs, partial(_announce, args, len(jobs)), failures):
                try:
                    _save(results, todo)
                except UserError as error:
                    if not args.keep_going:
                        raise
                    failures.add(job.title, error)
            _report(args, folder, [one for one in swept if not todo.keys() & one.files(folder).keys()])
    return failures.listed(len(requests))


@dataclass(frozen=True)
class _Swept:
    """One model on one data set, and the ways that are tried of it."""

    request: Request
    ways: list[Way]
    name: str  # of its folder in --out; empty for the folder itself

    def files(self, folder: Path) -> dict[Request, Path]:
        """Where the result of each request goes."""
        from anchorprune.studies.sweep import file_name

        requests = [request for way in self.ways for request in way.requests(self.request)]
        return {request: folder / self.name / file_name(request.pruning) for request in requests}


def _names(swept: list[_Swept]) -> list[str]:
    """Of all files and folders in `--out`, those that are written."""
    from anchorprune.evaluation.outcomes import path_for

    names = ["sweep.csv"]
    for one in swept:
        names += [f"{one.name}/"] if one.name else []
        names += [str(Path(one.name, page)) for page in ("sweep.csv", "sweep.png", "report.html")]
        for file in one.files(Path()).values():
            names += [str(file), str(path_for(file))]
    return list(dict.fromkeys(names))


def _planned(
    args: argparse.Namespace,
    engine: Engine,
    requests: list[Request],
    strategies: list[Wanted] | None,
    failures: Failures,
) -> list[_Swept]:
    from anchorprune.evaluation import preflight
    from anchorprune.studies.sweep import plan

    names = folder_names(requests) if len(requests) > 1 else [""]
    here = args.engine == "local"
    if len(requests) > 1 and not args.keep_going:
        preflight.check(requests, here=here)
    swept = []
    for request, name in zip(requests, names, strict=True):
        asked = dataclasses.replace(request, compute=engine.compute(request.compute))
        try:
            swept.append(_Swept(asked, plan(asked, strategies, args.targets, here=here), name))
        except UserError as error:
            if not args.keep_going:
                raise
            failures.add(Job((asked,)).title, error)
    return swept


def _save(results: list[Result], todo: dict[Request, Path]) -> None:
    """Each result's file, which is done with then.

    Raises:
        UserError: some cannot be written; their metrics are on standard output.
    """
    lost: list[Unwritten] = []
    for result in results:
        path = todo[result.request]
        with noted(lost):
            try:
                path.parent.mkdir(exist_ok=True)
            except OSError as error:
                raise Unwritten(path.parent, error) from error
            result.save(path)
            del todo[result.request]
        if result.request in todo:
            print(f"{path.name}: {summary(result.to_dict())}", flush=True)
    if lost:
        raise all_of(lost)


def _not_done(args: argparse.Namespace, files: dict[Request, Path]) -> dict[Request, Path]:
    """Those of which the file is not there yet, or is of other settings; without `--skip_existing` all."""
    if not args.skip_existing:
        return files
    from anchorprune.evaluation import outcomes, result

    contents: dict[str, str] = {}
    todo = {}
    for request, path in files.items():
        digest = request.hash(contents)
        done = result.is_done(path, digest, pruned=request.pruning is not None)
        if done and outcomes.are_beside(path, result.read(path)):
            say(args, f"Skip {path}, exists already.")
        else:
            todo[request] = path
    return todo


def _announce(args: argparse.Namespace, jobs: int, job: Job) -> None:
    if jobs > 1:
        say(args, f"Running {job.title}: {_ways(job)}")


def _ways(job: Job) -> str:
    """Those of the job by their names; of many the first, since all of them were listed before."""
    prunings = [request.pruning for request in job.requests]
    names = ["unpruned" if way is None else f"{way.name} {way.flags()}".rstrip() for way in prunings]
    more = len(names) - WAYS_ON_RAY
    return ", ".join(names[:WAYS_ON_RAY]) + (f" and {more} more way{'s' * (more > 1)}" if more > 0 else "")


def _report(args: argparse.Namespace, folder: Path, swept: list[_Swept]) -> None:
    """The pages of those of which every result is there, and where there are several a table of all."""
    from anchorprune.files import write_text
    from anchorprune.report.csv import csv_text
    from anchorprune.studies.sweep import Sweep

    command = shlex.join(["anchorprune", "sweep", *args.argv])
    rows: list[dict[str, Any]] = []
    for one in swept:
        files, own = one.files(folder), folder / one.name
        found = Sweep.load(own, one.request, one.ways)
        kept(args, f"\n{found.to_text(line_width())}", partial(found.save_report, own, command))
        say(args, f"\n{len(files)} results, sweep.csv, sweep.png and report.html: {own}")
        model, data = one.request.model, one.request.data
        named = {"model": model.name, "pretrained": model.pretrained, "dataset": data.name, "language": data.language}
        rows += [{**named, **row} for row in found.to_dict()["points"]]
    if len(swept) > 1:
        columns = dict.fromkeys(column for row in rows for column in row)  # metrics differ between tasks
        write_text(csv_text([dict.fromkeys(columns) | row for row in rows]), folder / "sweep.csv")
        say(args, f"\nAll {len(rows)} rows: {folder / 'sweep.csv'}")
