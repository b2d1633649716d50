import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from anchorprune import files
from anchorprune.errors import UserError
from anchorprune.evaluation import request
from anchorprune.evaluation import result as results
from anchorprune.report import csv as csv_files

UPSTREAM = {
    "dataset": "cifar10",
    "model": "ViT-B-32",
    "pretrained": "openai",
    "task": "zeroshot_classification",
    "metrics": {"acc1": 0.825, "acc5": 0.975, "mean_per_class_recall": 0.8125},
    "language": "en",
}
OURS: dict[str, Any] = {
    **UPSTREAM,
    "schema_version": 2,
    "pruning": {"strategy": "anchor", "k_anchors": 10, "measured": {"effective": True, "tokens_after": 61}},
    "cost": {"gmacs_dense": 17.58, "gmacs": 6.7},
    "limit": None,
    "seed": 0,
    "model_options": {},
    "environment": {"device": "cpu", "names": ["a", "ü"]},
    "config_hash": "0123456789abcdef",
}
UNPRUNED: dict[str, Any] = {**OURS, "pruning": None, "config_hash": "fedcba9876543210"}


def put(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# --- config_hash and fingerprint


def test_equal_settings_have_one_hash_in_whatever_order() -> None:
    one = request.config_hash({"model": "m", "pruning": {"k_anchors": 10, "alpha": 0.5}, "sizes": (1, 2)})
    two = request.config_hash({"sizes": [1, 2], "pruning": {"alpha": 0.5, "k_anchors": 10}, "model": "m"})
    assert one == two
    assert len(one) == 16
    assert int(one, 16) >= 0


def test_the_hash_is_the_same_in_every_process() -> None:
    assert request.config_hash({"b": None, "a": "ü", "c": 0.5}) == "0112cbc29e8e7e1d"


@pytest.mark.parametrize("change", [{"seed": 1}, {"pruning": None}, {"pruning": {"k_anchors": 20}}])
def test_another_setting_gives_another_hash(change: dict[str, Any]) -> None:
    config = {"seed": 0, "pruning": {"k_anchors": 10}}
    assert request.config_hash({**config, **change}) != request.config_hash(config)


def test_a_replaced_checkpoint_changes_the_fingerprint_even_with_the_size_and_time_of_the_old_one(
    tmp_path: Path,
) -> None:
    checkpoint = tmp_path / "model.pt"
    checkpoint.write_bytes(b"weights 1")
    before, times = files.fingerprint(checkpoint), checkpoint.stat()
    checkpoint.write_bytes(b"weights 2")
    os.utime(checkpoint, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert files.fingerprint(checkpoint) != before


def test_the_fingerprint_is_of_the_content_and_not_of_the_name(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000  # more than one chunk
    (tmp_path / "a").write_bytes(content)
    (tmp_path / "b").write_bytes(content)
    assert files.fingerprint(tmp_path / "a") == files.fingerprint(tmp_path / "b")


def test_the_fingerprint_of_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.pt: no such file"):
        files.fingerprint(tmp_path / "gone.pt")


# --- check_output


def test_a_good_output_passes_and_nothing_is_left_behind(tmp_path: Path) -> None:
    files.check_output(tmp_path / "out.json")
    assert list(tmp_path.iterdir()) == []


def test_checking_the_output_leaves_an_earlier_file_alone(tmp_path: Path) -> None:
    path = put(tmp_path / "out.json", OURS)
    files.check_output(path)
    assert json.loads(path.read_text()) == OURS


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing/out.json", "there is no folder"),
        ("file/out.json", "."),
        (".", "this is a folder"),
        ("x" * 300, "cannot write"),
    ],
    ids=["missing folder", "file for a folder", "folder", "name too long"],
)
def test_an_output_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=reason) as error:
        files.check_output(tmp_path / name)
    assert error.value.as_flag().startswith(f"--output {tmp_path / name}: ")
    assert sorted(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_device_is_refused_as_output() -> None:
    with pytest.raises(UserError, match="not a regular file"):
        files.check_output("/dev/null")


def test_a_folder_without_write_permission_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "read_only"
    folder.mkdir(mode=0o500)
    if os.access(folder, os.W_OK):
        pytest.skip("this user (root) may write everywhere")
    with pytest.raises(UserError, match="cannot write in"):
        files.check_output(folder / "out.json")


def test_a_folder_that_the_system_will_not_write_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(files.tempfile, "TemporaryFile", refuse)
    with pytest.raises(UserError, match="Read-only file system"):
        files.check_output(tmp_path / "out.json")


# --- write and read


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    results.write(OURS, tmp_path / "out.json")
    assert results.read(tmp_path / "out.json") == OURS
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_nan_and_infinity_become_null(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    metrics = {"acc1": math.nan, "acc5": math.inf, "list": [-math.inf, 1.0]}
    results.write({**OURS, "metrics": metrics}, path)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not strict JSON")

    strict = json.loads(path.read_text(), parse_constant=refuse)
    assert strict["metrics"] == {"acc1": None, "acc5": None, "list": [None, 1.0]}


def test_numpy_scalars_and_paths_are_written_as_numbers_and_text(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    metrics = {"acc1": numpy.float32(0.5), "n": numpy.int64(3), "nan": numpy.float32("nan")}
    results.write({**OURS, "metrics": metrics, "dataset_root": Path("a/b")}, tmp_path / "out.json")
    written = results.read(tmp_path / "out.json")
    assert written["metrics"] == {"acc1": 0.5, "n": 3, "nan": None}
    assert written["dataset_root"] == "a/b"


@pytest.mark.parametrize("failing", ["files.os.replace", "files.os.fsync", "evaluation.result.json.dumps"])
@pytest.mark.parametrize("failure", [OSError("disk full"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_an_interrupted_write_leaves_the_old_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, failure: BaseException
) -> None:
    path = put(tmp_path / "out.json", UPSTREAM)
    before = path.read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(f"anchorprune.{failing}", fail)
        with pytest.raises(type(failure)):
            results.write(OURS, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_value_that_json_cannot_hold_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        results.write({**OURS, "seed": object()}, tmp_path / "out.json")
    assert list(tmp_path.iterdir()) == []


def test_a_result_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "any").touch()
    results.write(OURS, tmp_path / "out.json")
    assert (tmp_path / "out.json").stat().st_mode == (tmp_path / "any").stat().st_mode


def test_one_place_alone_puts_files_into_place() -> None:
    """So that every temporary name is unique across machines, and every file is synced and whole."""
    source = Path(files.__file__).parent
    movers = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*.py")
        if any(call in path.read_text(encoding="utf-8") for call in ("os.replace(", "os.rename(", "getpid("))
    }
    assert movers == {"files.py", "datasets/download.py"}  # whose unfinished files are gone on with


def test_a_symbolic_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "out.json"
    link.symlink_to(tmp_path / "real" / "file.json")
    files.check_output(link)
    results.write(OURS, link)
    assert link.is_symlink()
    assert results.read(tmp_path / "real" / "file.json") == OURS


def test_upstreams_results_are_read_and_their_nan_is_none(tmp_path: Path) -> None:
    path = put(tmp_path / "up.json", {**UPSTREAM, "metrics": {"acc1": 0.5, "acc5": math.nan}})
    assert "NaN" in path.read_text()
    assert results.read(path)["metrics"] == {"acc1": 0.5, "acc5": None}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no such file"),
        (b'{"dataset": ', "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[1, 2]", "not the result"),
        (b'{"dataset": "d", "model": "m", "task": "t", "metrics": {}}', "it has no pretrained"),
        (b'{"dataset": "d", "model": "m", "pretrained": "p", "task": "t", "metrics": 1}', "not the result"),
    ],
)
def test_what_is_not_a_result_is_refused_by_name(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "bad.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=reason) as error:
        results.read(path)
    assert str(path) in str(error.value)


# --- is_done


def test_only_the_result_of_this_configuration_is_done(tmp_path: Path) -> None:
    path = put(tmp_path / "out.json", OURS)
    assert results.is_done(path, OURS["config_hash"], pruned=True)
    assert not results.is_done(path, UNPRUNED["config_hash"], pruned=False)
    assert not results.is_done(tmp_path / "missing.json", OURS["config_hash"], pruned=True)


def test_upstreams_result_counts_for_an_unpruned_run_only(tmp_path: Path) -> None:
    path = put(tmp_path / "out.json", UPSTREAM)
    assert results.is_done(path, "0" * 16, pruned=False)
    assert not results.is_done(path, "0" * 16, pruned=True)


def test_a_pruned_result_that_lost_its_hash_never_counts(tmp_path: Path) -> None:
    path = put(tmp_path / "out.json", {**UPSTREAM, "pruning": {"strategy": "anchor"}})
    assert not results.is_done(path, "0" * 16, pruned=False)


def test_a_half_written_file_is_not_done(tmp_path: Path) -> None:
    (tmp_path / "out.json").write_text('{"dataset": "cif')
    assert not results.is_done(tmp_path / "out.json", "0" * 16, pruned=False)


# --- build


def test_build_agrees_with_upstream_on_upstreams_columns(tmp_path: Path) -> None:
    pytest.importorskip("clip_benchmark")
    retrieval = {**UPSTREAM, "task": "zeroshot_retrieval", "metrics": {"image_retrieval_recall@5": 0.1}}
    probe = {**UPSTREAM, "task": "linear_probe", "metrics": {"lp_acc1": 0.5, "seed": 7}}
    folder = tmp_path / "folder"
    folder.mkdir()
    files = [put(tmp_path / "a.json", UPSTREAM), put(tmp_path / "b.json", probe), folder]
    put(folder / "c.json", retrieval)
    (folder / "notes.txt").write_text("not a result")
    theirs, ours = tmp_path / "theirs.csv", tmp_path / "ours.csv"
    code = (
        "import sys; from argparse import Namespace; from clip_benchmark.cli import main_build;"
        "main_build(Namespace(output=sys.argv[1], files=sys.argv[2:]))"
    )
    names = [str(path) for path in files]
    command = [sys.executable, "-W", "ignore", "-c", code, str(theirs), *names]
    subprocess.run(command, check=True, cwd=tmp_path)
    assert csv_files.build(names, ours) == 3
    assert table(ours) == table(theirs)


def test_build_makes_columns_of_metrics_and_dotted_columns_of_settings(tmp_path: Path) -> None:
    named = [put(tmp_path / "pruned.json", OURS), put(tmp_path / "upstream.json", UPSTREAM)]
    csv_files.build(named, tmp_path / "out.csv")
    pruned, upstream = table(tmp_path / "out.csv")
    assert list(pruned) == sorted(pruned)
    assert pruned["acc1"] == "0.825"
    assert pruned["model_fullname"] == "ViT-B-32 openai"
    assert pruned["pruning.strategy"] == "anchor"
    assert pruned["pruning.measured.effective"] == "True"
    assert pruned["cost.gmacs"] == "6.7"
    assert json.loads(pruned["environment.names"]) == ["a", "ü"]
    assert pruned["limit"] == ""
    assert upstream["acc1"] == "0.825"
    assert upstream["pruning.strategy"] == ""
    assert "metrics" not in pruned


def test_an_unpruned_run_has_empty_cells_below_the_columns_of_the_pruning(tmp_path: Path) -> None:
    named = [put(tmp_path / "a.json", OURS), put(tmp_path / "b.json", UNPRUNED)]
    csv_files.build(named, tmp_path / "out.csv")
    pruned, unpruned = table(tmp_path / "out.csv")
    assert "pruning" not in pruned
    assert unpruned["pruning.strategy"] == ""


def test_class_names_and_templates_are_one_cell_each(tmp_path: Path) -> None:
    result = {**UPSTREAM, "classnames": ["cat", "dog"], "templates": {"cat": ["a cat"]}}
    csv_files.build([put(tmp_path / "a.json", result)], tmp_path / "out.csv")
    (row,) = table(tmp_path / "out.csv")
    assert json.loads(row["classnames"]) == ["cat", "dog"]
    assert json.loads(row["templates"]) == {"cat": ["a cat"]}


def test_rows_come_in_the_order_given_and_those_of_a_folder_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in "hcfadgbe":
        put(folder / f"{name}.json", {**UPSTREAM, "dataset": name})
    first = put(tmp_path / "z.json", {**UPSTREAM, "dataset": "z"})
    last = put(tmp_path / "0.json", {**UPSTREAM, "dataset": "0"})
    assert csv_files.build([first, folder, last], tmp_path / "out.csv") == 10
    assert [row["dataset"] for row in table(tmp_path / "out.csv")] == ["z", *"abcdefgh", "0"]


def test_build_refuses_a_json_file_that_is_not_a_result_and_keeps_the_old_table(tmp_path: Path) -> None:
    put(tmp_path / "a.json", UPSTREAM)
    put(tmp_path / "settings.json", {"alpha": 0.5})
    (tmp_path / "out.csv").write_text("old")
    with pytest.raises(UserError, match=r"settings\.json"):
        csv_files.build([tmp_path], tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == "old"


def test_build_without_any_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for named in ([], [tmp_path / "empty"]):
        with pytest.raises(UserError, match="no \\*\\.json file"):
            csv_files.build(named, tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_build_never_overwrites_one_of_the_results_it_reads(tmp_path: Path) -> None:
    path = put(tmp_path / "a.json", UPSTREAM)
    with pytest.raises(UserError, match="one of the results"):
        csv_files.build([tmp_path], path)
    assert json.loads(path.read_text()) == UPSTREAM


def test_an_interrupted_build_leaves_the_old_table_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    source = put(tmp_path / "a.json", UPSTREAM)
    (tmp_path / "out.csv").write_text("old")
    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        csv_files.build([source], tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2


def test_results_and_compare_import_no_torch() -> None:
    code = "import sys, anchorprune.evaluation.result, anchorprune.studies.compare; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
