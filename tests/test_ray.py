"""`--engine ray` on a real cluster of several nodes in this machine: the files that one process writes.

The nodes have a processor each and no GPU; what larger machines would be given is worked out from their figures.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.launched import environment
from support.material import command, make_folder, make_wds, read

from anchorprune import Compute, DataSpec, ModelSpec, Request
from anchorprune.errors import UserError
from anchorprune.evaluation import outcomes
from anchorprune.evaluation.engine import evaluate
from anchorprune.scale import ray as on_ray
from anchorprune.scale.jobs import Job
from anchorprune.strategies import make_strategy

pytest.importorskip("ray")
from ray.cluster_utils import Cluster

pytestmark = [
    pytest.mark.usefixtures("here"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"),
]

MODEL = ["--model", "anchorprune-demo", "--pretrained", "bundled"]
QUICK = ["--no_amp", "--num_workers", "0", "--batch_size", "4"]
NODE = {"num_cpus": 1, "object_store_memory": 80 << 20}
# A node that is gone is noticed after two seconds, not after half a minute.
HEALTH = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000, "health_check_failure_threshold": 2}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without a processor and one node; tests add others."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(RAY_ENABLE_RECORD_ACTOR_TASK_LOGGING="0").items():
            patch.setenv(name, value)
        head = {**NODE, "num_cpus": 0, "include_dashboard": False, "_system_config": HEALTH}
        made = Cluster(initialize_head=True, head_node_args=head)
        made.add_node(**NODE)
        patch.setenv("RAY_ADDRESS", made.address)
        yield made
        made.shutdown()


@pytest.fixture
def sets(here: Path) -> list[object]:
    """Two data sets, and between them one with an image that cannot be read."""
    for name in ("a", "bad", "b"):
        path = make_wds(here / f"wds-{name}", [0, 1, 2, 0, 1, 2, 0])
        (path / "classnames.txt").write_text("airplane\nbutterfly\nlotus\n")
    with open("wds-bad/test/0.tar", "r+b") as tar:
        position = tar.read().index(b"\x89PNG")
        tar.seek(position)
        tar.write(b"XXXX")
    # Relative to the folder that the command is run in, where the workers have to go.
    return ["--dataset", "wds/a", "wds/bad", "wds/b", "--dataset_root", "wds-{dataset}"]


def same(a: Path, b: Path) -> None:
    """All but what was timed."""
    ours, own = read(a), read(b)
    for key in own.keys() - {"cost", "environment"}:
        assert ours[key] == own[key], key
    assert ours["cost"]["gmacs"] == own["cost"]["gmacs"]
    if "outcomes" in own:
        assert outcomes.path_for(a).read_bytes() == outcomes.path_for(b).read_bytes()


def test_evaluations_on_a_cluster_leave_the_files_of_one_process(cluster: Cluster, sets: list[object]) -> None:
    """A broken one is reported, the others go on; what is done is not done again."""
    flags = ["eval", *MODEL, *sets, *QUICK, "--save_outcomes", "--dump_classnames", "--keep_going", "--output"]
    for folder in ("one", "ray"):
        Path(folder).mkdir()
    assert command(*flags, "one/{dataset}.json").code == 2
    outcome = command(*flags, "ray/{dataset}.json", "--engine", "ray")
    assert outcome.code == 2
    assert outcome.err[-2] == "anchorprune: error: 1 of 3 failed:"
    assert "wds/bad" in outcome.err[-1]
    assert "cannot read image" in outcome.err[-1]
    assert {path.name for path in Path("ray").glob("*.json")} == {"a.json", "b.json"}
    for name in ("a.json", "b.json"):
        same(Path("ray", name), Path("one", name))
    again = command(*flags, "ray/{dataset}.json", "--engine", "ray", "--skip_existing")
    assert [line for line in again.out if line.startswith(("Skip", "Running"))] == [
        "Skip ray/a.json, exists already.",
        "Skip ray/b.json, exists already.",
        "Running 'zeroshot_classification' on 'wds/bad' with 'anchorprune-demo bundled' (en)",
    ]


def test_a_sweep_on_a_cluster_leaves_the_files_of_one_process(cluster: Cluster, sets: list[object]) -> None:
    sets.remove("wds/bad")
    ways = ["--strategies", "tome --r 2", "coarse --keep_patches 20", "--ways_per_pass", "2"]
    flags = ["sweep", *MODEL, *sets, *QUICK, *ways, "--out"]
    assert command(*flags, "one").code == 0
    outcome = command(*flags, "ray", "--engine", "ray")
    assert outcome.code == 0, outcome.err
    written = {path.relative_to("one") for path in Path("one").rglob("*")}
    assert written == {path.relative_to("ray") for path in Path("ray").rglob("*")}
    results = [path for path in written if path.suffix == ".json"]
    assert len(results) == 6
    for path in results:
        same("ray" / path, "one" / path)


def test_a_lost_node_loses_nothing_that_is_finished_and_its_work_is_done_elsewhere(cluster: Cluster) -> None:
    model = ModelSpec(name="anchorprune-demo", pretrained="bundled")
    compute = Compute(precision="fp32", num_workers=0)
    prunings = [None, make_strategy("tome"), make_strategy("coarse", keep_patches=20)]
    jobs = [
        Job(
            (Request(model=model, data=DataSpec(name="bundled", limit=40), pruning=pruning, compute=compute),),
            keep_scores=True,
        )
        for pruning in prunings
    ]
    [node] = list(cluster.worker_nodes)
    begun, found = [], {}
    with on_ray.connected(None, None, None, num_workers=0) as workers:
        assert workers.workers == 1
        for job, results in workers.evaluated(jobs, start=begun.append):
            assert job not in found
            found[job] = results
            if len(found) == 1:  # the second is on the node's one worker by now
                cluster.add_node(**NODE)
                cluster.remove_node(node, allow_graceful=False)
    assert found.keys() == set(jobs)
    assert [begun.count(job) for job in jobs] == [1, 2, 1]
    for job in jobs:
        [one] = evaluate(job.requests, keep_scores=True, progress=False)
        assert found[job][0].metrics == one.metrics
        assert found[job][0].outcomes.scores.tolist() == one.outcomes.scores.tolist()


def test_what_a_cluster_does_not_have_is_one_line(cluster: Cluster, sets: list[object]) -> None:
    flags = ["eval", *MODEL, *sets, *QUICK, "--output", "{dataset}.json", "--engine", "ray"]
    for more, said in (
        (["--ray_gpus", "1"], "--ray_gpus 1.0: no machine of the cluster has so many; the most is 0"),
        (["--ray_cpus", "64"], "--ray_cpus 64.0: no machine of the cluster has so many; the most is 1"),
        (["--distributed"], "--engine ray: shares the work out by itself; leave --distributed out"),
    ):
        outcome = command(*flags, *more)
        assert (outcome.code, len(outcome.err)) == (2, 1)
        assert said in outcome.err[0]


def test_a_machine_without_the_folder_is_one_line(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    request = Request(model=ModelSpec(name="m"), data=DataSpec(name="d"))
    with on_ray.connected(None, None, None, num_workers=0) as workers:
        monkeypatch.setattr(os, "getcwd", lambda: "/nowhere/at/all")
        with pytest.raises(UserError, match="has no folder /nowhere/at/all"):
            list(workers.evaluated([Job((request,))], start=print))


@pytest.mark.parametrize(
    "address", ["127.0.0.1:9", "ray://127.0.0.1:9", "no-such-host.invalid:6379", "127.0.0.1:99999"]
)
def test_a_cluster_that_is_not_there_is_one_line(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    outcome = command("eval", *MODEL, "--dataset", "bundled", "--engine", "ray", "--output", "r.json")
    assert (outcome.code, len(outcome.err)) == (2, 1)
    assert f"--engine ray: no cluster at RAY_ADDRESS={address}" in outcome.err[0]


def test_without_ray_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    outcome = command("eval", *MODEL, "--dataset", "bundled", "--engine", "ray", "--output", "r.json")
    assert outcome.code == 2
    assert "Ray is not installed; pip install 'anchorprune[ray]'" in outcome.err[0]


@pytest.mark.parametrize(
    ("machines", "asked", "workers"),
    [
        # (processors, GPUs) of each machine; (GPUs, processors, device, num_workers) asked for; (GPUs, processors) of
        # each worker, and how many there are
        ([(64, 8)], (None, None, None, 4), (1, 5, 8)),
        ([(16, 8)], (None, None, None, 4), (1, 2, 8)),  # as many processors as there are for each GPU
        ([(16, 8)], (0.5, None, None, 4), (0.5, 1, 16)),
        ([(32, 0)], (None, None, None, 4), (0, 5, 6)),
        ([(4, 0), (64, 8)], (None, None, None, 4), (1, 5, 8)),  # a machine without a GPU counts for nothing
        ([(4, 0), (64, 8)], (None, None, "cpu", 4), (0, 4, 17)),
        ([(8, 1), (8, 1)], (None, 3, None, 4), (1, 3, 2)),
    ],
)
def test_a_worker_is_given_what_a_machine_has_for_each(
    machines: list[tuple[int, int]],
    asked: tuple[Any, ...],
    workers: tuple[float, float, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    figures = [{"CPU": float(cpus), "GPU": float(gpus)} for cpus, gpus in machines]
    monkeypatch.setattr(on_ray.Cluster, "_machines", staticmethod(lambda: figures))
    made = on_ray.Cluster(*asked)
    assert (made.gpus, made.cpus, made.workers) == workers


# --- encode


def encoded(folder: Path) -> list[tuple[str, list[float]]]:
    """Ids and embeddings, file after file."""
    import pyarrow.parquet as pq

    rows = []
    for path in sorted((folder / "embeddings").glob("*.parquet")):
        table = pq.read_table(path)
        rows += list(zip(table["id"].to_pylist(), table["embedding"].to_pylist(), strict=True))
    return rows


def test_encoding_on_a_cluster_leaves_the_files_of_one_process_whatever_is_lost(
    cluster: Cluster, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(here / "photos", classes=3, per_class=7)
    flags = ["encode", "--input", "photos", *MODEL, *QUICK, "--rows_per_shard", "2", "--out"]
    assert command(*flags, "one").code == 0
    [node] = list(cluster.worker_nodes)
    done, parts = on_ray.Cluster.done, []

    def losing(self: on_ray.Cluster, jobs: list[Any], *, start: Any) -> Iterator[Any]:
        for job, found in done(self, jobs, start=start):
            parts.append(job)
            if len(parts) == 1:
                cluster.add_node(**NODE)
                cluster.remove_node(node, allow_graceful=False)
            yield job, found

    monkeypatch.setattr(on_ray.Cluster, "done", losing)
    outcome = command(*flags, "ray", "--engine", "ray")
    assert outcome.code == 0, outcome.err
    assert encoded(Path("ray")) == encoded(Path("one"))
    assert len(encoded(Path("ray"))) == 21
    ours, own = read("ray/encode.json"), read("one/encode.json")
    for key in ("finished", "shards", "images", "rows", "failures", "identity", "hash"):
        assert ours[key] == own[key], key
    assert outcome.out[-2].startswith("21 embeddings of 21 images: ray")
    refused = command(*flags, "ray", "--engine", "ray", "--shard", "0/2")
    assert refused.err == ["anchorprune: error: --engine ray: shares the work out by itself; leave --shard out"]
