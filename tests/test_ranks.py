"""`eval --shard_samples` on real processes of torchrun and of other launchers: the files that one process writes."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support import every_task
from support.launched import environment, free_port, said, torchrun
from support.material import World, command, make_wds, read, tree
from support.schema import complaints

from anchorprune import DataSpec, ModelSpec, Request, tasks
from anchorprune.commands._requests import Run, dealt
from anchorprune.errors import FieldError, UserError
from anchorprune.evaluation import outcomes
from anchorprune.evaluation.engine import evaluate
from anchorprune.scale.jobs import Job, packed, unpacked
from anchorprune.strategies import make_strategy
from anchorprune.tasks import captioning

pytestmark = pytest.mark.usefixtures("here")

MODEL = ["--model", "anchorprune-demo", "--pretrained", "bundled"]
QUICK = ["--no_amp", "--num_workers", "0", "--batch_size", "2"]


# --- every task, merged over ranks


RANK = """
import json, sys
from pathlib import Path
from support.every_task import found
from anchorprune.scale import ranks
from anchorprune.scale.jobs import Job, Worker
from anchorprune.tasks import captioning
captioning._meteor = lambda *_: 0.0  # half a minute of Java
Worker.do = lambda self, job: found(job, self._shard)
jobs = [Job.from_json(text) for text in json.loads(Path(sys.argv[1]).read_text())]
with ranks.joined() as group:
    for i, (job, results) in enumerate(group.evaluated(jobs, start=lambda job: None)):
        assert group.first
        if isinstance(results, Exception):
            raise results
        for j, result in enumerate(results):
            result.save(Path(sys.argv[2]) / f"{i}-{j}.json")
"""
SCORERS = importlib.util.find_spec("pycocoevalcap") is not None and shutil.which("java") is not None


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Job], Path]:
    """The jobs of all tasks, and a folder with what one process finds."""
    folder = tmp_path_factory.mktemp("alone")
    jobs = [job for job in every_task.jobs(folder) if SCORERS or job.requests[0].task.name != "captioning"]
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(captioning, "_meteor", lambda *_: 0.0)
        torch.set_num_threads(1)  # as each rank has
        for i, job in enumerate(jobs):
            for j, result in enumerate(every_task.found(job)):
                result.save(folder / f"{i}-{j}.json")
    torch.set_num_threads(threads)
    return jobs, folder


@pytest.mark.parametrize(("ranks", "some"), [(2, slice(None)), (3, slice(2)), (1, slice(1))], ids=[2, 3, 1])
def test_any_number_of_ranks_finds_what_one_process_finds_for_every_task(
    alone: tuple[list[Job], Path], ranks: int, some: slice, here: Path
) -> None:
    jobs, folder = alone
    assert {job.requests[0].task.name for job in jobs} == set(tasks.registry()) - (set() if SCORERS else {"captioning"})
    jobs = jobs[some]
    Path("rank.py").write_text(RANK)
    Path("jobs.json").write_text(json.dumps([job.to_json() for job in jobs]))
    Path("out").mkdir()
    run = torchrun(ranks, "rank.py", "jobs.json", "out")
    assert run.returncode == 0, run.stderr[-4000:]
    names = {f"{i}-{j}.json" for i, job in enumerate(jobs) for j in range(len(job.requests))}
    assert {path.name for path in Path("out").glob("*.json")} == names
    for name in names:
        same(Path("out") / name, folder / name)
        assert complaints(read(Path("out") / name)) == []  # as result.schema.json says, whatever the task


def same(a: Path, b: Path) -> None:
    """All but what was timed; counts bit for bit, and each sample once."""
    ours, own = read(a), read(b)
    assert ours["n_samples"] == own["n_samples"] >= 7
    # Fidelity gives means, whose last bits depend on which images were encoded together.
    counts = own.keys() - {"cost", "environment", *(["metrics"] if own["task"] == "fidelity" else [])}
    assert ours["metrics"] == pytest.approx(own["metrics"], abs=1e-5, nan_ok=True)
    for key in counts:
        assert ours[key] == own[key], key
    assert ours["cost"]["gmacs"] == own["cost"]["gmacs"]
    if "outcomes" in own:
        assert outcomes.path_for(a).read_bytes() == outcomes.path_for(b).read_bytes()


# --- the command


def test_the_first_rank_alone_speaks_and_writes(here: Path) -> None:
    make_wds(here / "wds-seven", [0, 1, 2, 0, 1, 2, 0])
    flags = [*MODEL, "--dataset", "wds/seven", "--dataset_root", here / "wds-{dataset}", *QUICK, "--save_outcomes"]
    flags += ["--enable_pruning", "--strategy", "tome", "--save_clf", "clf.pt", "--dump_classnames"]
    Path("one").mkdir()
    Path("three").mkdir()
    assert command("eval", *flags, "--output", "one/r.json").code == 0
    ours = [*flags, "--output", "three/r.json", "--shard_samples", "--skip_existing"]
    ours += ["--log_format", "json", "--log_every", "99"]
    run = torchrun(3, "-m", "anchorprune", "eval", *ours)
    assert run.returncode == 0, run.stderr[-4000:]
    assert sorted(tree(Path("three"))) == ["r.json", "r.outcomes.npz"]
    same(Path("three/r.json"), Path("one/r.json"))
    running, summary, end = run.stdout.splitlines()
    assert (running[:9], end) == ("Running '", "Dump results to: three/r.json")
    assert "on 7 of 7 images" in summary
    (told,) = [json.loads(line) for line in run.stderr.splitlines() if line.startswith("{")]
    assert (told["what"], told["done"], told["total"]) == ("wds/seven, rank 0 of 3", 3, 3)
    again = torchrun(2, "-m", "anchorprune", "eval", *ours)
    assert (again.returncode, again.stdout) == (0, "Skip three/r.json, exists already.\n"), again.stderr


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--extract_attention"], "--extract_attention: is of the first images"),
        (["--distributed"], "--shard_samples deals samples out, --distributed whole evaluations; give one of them"),
        (["--skip_load"], "--skip_load: needs no model and no images to share; leave --shard_samples out"),
        (["--engine", "ray"], "--engine ray: shares the work out by itself; leave --shard_samples out"),
    ],
)
def test_what_does_not_go_with_shares_of_samples_is_one_line(world: World, flags: list[str], says: str) -> None:
    outcome = command("eval", *world.model, *world.three, "--output", "r.json", "--shard_samples", *flags)
    assert outcome.code == 2
    assert says in outcome.err[-1]
    assert not list(Path().iterdir())


def test_a_choice_for_the_whole_batch_cannot_be_dealt_out(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    coupled = make_strategy("anchor", selection="first_image")
    request = Request(model=ModelSpec(name="m"), data=DataSpec(name="d"), pruning=coupled)
    with pytest.raises(UserError, match="one image chooses for its whole batch"):
        evaluate(request, shard=(0, 2))


@pytest.mark.parametrize("flag", ["--shard_samples", "--distributed"])
def test_without_a_launcher_it_is_one_process_and_one_line_says_so(world: World, flag: str) -> None:
    outcome = command("eval", *world.model, *world.three, *QUICK, flag, "--output", "r.json")
    said = "no launcher (torchrun, SLURM, MPI) started this process, which does all by itself"
    assert (outcome.code, outcome.err) == (0, [f"anchorprune: warning: {flag}: {said}"])
    assert read("r.json")["n_samples"] == 7


def test_ranks_that_cannot_find_one_another_are_told_what_is_missing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    flags = [*world.model, *world.three, *QUICK, "--shard_samples", "--output", "r.json"]
    outcome = command("eval", *flags)
    assert outcome.code == 2
    assert "--shard_samples: MASTER_ADDR and MASTER_PORT not set" in outcome.err[-1]
    monkeypatch.setenv("SLURM_NTASKS", "two")
    assert "SLURM_NTASKS=two in the environment is no number" in command("eval", *flags).err[-1]


# --- failures


def started(ranks: int, launcher: dict[str, str], *words: object) -> list[subprocess.Popen[str]]:
    """The ranks without an agent over them, as srun or mpirun start them."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    own = [{name: str(rank) if value == "rank" else value for name, value in launcher.items()} for rank in range(ranks)]
    return [
        subprocess.Popen(
            [sys.executable, *map(str, words)],
            env=environment(**address, **of_rank),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for of_rank in own
    ]


SLURM = {"SLURM_PROCID": "rank", "SLURM_NTASKS": "3", "SLURM_LOCALID": "rank"}
MPI = {"OMPI_COMM_WORLD_RANK": "rank", "OMPI_COMM_WORLD_SIZE": "3", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}

# The command, in which one rank dies in the middle of its second evaluation.
DIES = """
import os, signal, sys
from anchorprune.commands import main
from anchorprune.scale.ranks import launched
from anchorprune.tasks.zeroshot_classification import ZeroShot
update, calls = ZeroShot.update, []
def dying(self, out, batch):
    calls.append(1)
    if launched()[0] == 2 and len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return update(self, out, batch)
ZeroShot.update = dying
sys.exit(main(sys.argv[1:]))
"""


def test_where_a_rank_is_killed_the_others_stop_with_one_line(here: Path) -> None:
    for name in ("a", "b", "c"):
        make_wds(here / f"wds-{name}", [0, 1, 2, 0, 1, 2, 0])
    Path("dies.py").write_text(DIES)
    sets = ["--dataset", "wds/a", "wds/b", "wds/c", "--dataset_root", here / "wds-{dataset}"]
    flags = [*MODEL, *sets, *QUICK, "--shard_samples", "--output", "out-{dataset}.json"]
    ranks = started(3, MPI, "dies.py", "eval", *flags)
    ended = [rank.communicate(timeout=200) for rank in ranks]
    assert ranks[2].returncode == -signal.SIGKILL
    for rank, (_, stderr) in list(zip(ranks, ended, strict=True))[:2]:
        assert rank.returncode == 2, stderr
        [line] = stderr.splitlines()
        assert "another rank has stopped" in line
    assert sorted(path.name for path in Path().glob("out-*")) == ["out-a.json"]  # which was done before
    assert not list(Path().glob(".anchorprune*"))


def test_under_torchrun_too(here: Path) -> None:
    """Whose agent tells the others to stop."""
    for name in ("a", "b"):
        make_wds(here / f"wds-{name}", [0, 1, 2, 0, 1, 2, 0])
    Path("dies.py").write_text(DIES)
    sets = ["--dataset", "wds/a", "wds/b", "--dataset_root", here / "wds-{dataset}"]
    run = torchrun(3, "dies.py", "eval", *MODEL, *sets, *QUICK, "--shard_samples", "--output", "out-{dataset}.json")
    assert run.returncode != 0
    lines = said(run.stderr)
    assert len(lines) == 2, run.stderr
    assert all("another rank has stopped" in line for line in lines)
    assert sorted(path.name for path in Path().glob("out-*")) == ["out-a.json"]


def test_a_bad_image_on_one_rank_stops_all_and_is_named_once(here: Path) -> None:
    make_wds(here / "wds-bad", [0, 1, 2, 0, 1, 2, 0])
    with open(here / "wds-bad/test/0.tar", "r+b") as tar:
        position = tar.read().index(b"\x89PNG")
        tar.seek(position)
        tar.write(b"XXXX")
    flags = [*MODEL, "--dataset", "wds/bad", "--dataset_root", here / "wds-{dataset}", *QUICK, "--shard_samples"]
    ranks = started(3, SLURM, "-m", "anchorprune", "eval", *flags, "--output", "r.json")
    ended = [rank.communicate(timeout=200)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [2, 2, 2]
    assert "rank 0 of 3: --dataset wds/bad: cannot read image" in ended[0]
    assert all("another rank has stopped" in line for line in ended[1:])
    assert not Path("r.json").exists()


def test_a_mistake_is_said_by_the_first_rank_alone(here: Path) -> None:
    of_two = {**SLURM, "SLURM_NTASKS": "2"}
    ranks = started(2, of_two, "-m", "anchorprune", "eval", *MODEL, "--dataset", "folder:nowhere", "--shard_samples")
    ended = [rank.communicate(timeout=200)[1].splitlines() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [2, 2]
    assert [len(lines) for lines in ended] == [1, 0]
    assert "--dataset folder:nowhere: no such folder" in ended[0][0]


def test_an_error_travels_between_processes_as_it_is() -> None:
    error = unpacked(packed(FieldError("limit", 0, "must be 1", typed="typed")))
    assert (type(error), str(error), error.as_flag()) == (FieldError, "limit=0: must be 1", "--limit 0: typed")
    try:
        math.sqrt(-1)
    except ValueError as raised:
        fault = unpacked(packed(raised))
    assert "math.sqrt(-1)" in str(fault)


# --- whole evaluations dealt out


def runs_of(models: int, sets: int) -> list[Run]:
    def request(model: int, data: int) -> Any:
        return Request(model=ModelSpec(name=f"m{model}"), data=DataSpec(name=f"d{data}"))

    return [Run(request(m, d), f"{m}-{d}") for d in range(sets) for m in range(models)]


@pytest.mark.parametrize(("models", "sets", "world"), [(3, 4, 2), (3, 4, 3), (2, 5, 4), (1, 3, 5), (5, 1, 2)])
def test_runs_are_dealt_by_model_each_once_and_evenly(models: int, sets: int, world: int) -> None:
    runs = runs_of(models, sets)
    shares = [dealt(runs, rank, world) for rank in range(world)]
    assert sorted(run.output for share in shares for run in share) == sorted(run.output for run in runs)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    loads = sum(len({run.request.model for run in share}) for share in shares)
    assert loads <= models + world - 1  # each boundary between two ranks cuts one model at most
