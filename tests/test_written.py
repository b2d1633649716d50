"""What was computed is not lost, and no result stands beside what another run left: killed, full disks, two at once."""

from __future__ import annotations

import csv
import dataclasses
import errno
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.material import PRUNED, World, checkpoint, command, make_folder, read, slug, tree
from test_cli_errors import refused

from anchorprune import files, locks
from anchorprune.errors import UserError
from anchorprune.evaluation import outcomes
from anchorprune.evaluation.result import load
from anchorprune.studies.compare import compare
from anchorprune.studies.sweep import Sweep
from anchorprune.tasks.base import Outcomes

pytestmark = pytest.mark.usefixtures("here")

RUN = ["--no_amp", "--num_workers", 0]
TOME = ["--strategies", "tome --r 2"]


@pytest.fixture(autouse=True)
def plain_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts take a second each, and are not what these tests are about."""
    monkeypatch.setattr("anchorprune.report.sweep_chart.write_png", lambda _, path, __: files.write_bytes(b"", path))
    monkeypatch.setattr(Sweep, "to_html", lambda *_: "a page")


def small(world: World, *flags: object) -> list[object]:
    return ["eval", *world.model, *world.three, *RUN, "--output", "r.json", *flags]


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException, *names: str) -> None:
    """Files of these names cannot be put into place; of no names, all."""
    replace = os.replace

    def refuse(source: object, target: Path) -> None:
        if not names or Path(target).name in names:
            raise error
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", refuse)


def full() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


def no_temporary_files() -> bool:
    return not list(Path().rglob(".anchorprune-*"))


# --- the numbers of one run beside those of another


@pytest.fixture
def killed_between(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run with other settings, killed after its result and before its outcomes."""
    assert command(*small(world, "--save_outcomes")).code == 0
    with monkeypatch.context() as patch:
        failing(patch, KeyboardInterrupt(), "r.outcomes.npz")
        assert command(*small(world, *PRUNED, "--save_outcomes")).code == 130
    assert read("r.json")["pruning"]


def test_outcomes_of_another_run_are_not_compared(world: World, killed_between: None) -> None:
    command(*small(world, "--save_outcomes", "--output", "dense.json"))
    text = " ".join(compare("dense.json", "r.json").to_text().split())
    assert "Not paired: the outcomes beside B are of another run." in text
    with pytest.raises(UserError, match=r"holds the outcomes of another run than r\.json"):
        load("r.json")


def test_outcomes_of_another_run_are_not_skipped(world: World, killed_between: None) -> None:
    again = command(*small(world, *PRUNED, "--save_outcomes", "--skip_existing"))
    assert not any(line.startswith("Skip") for line in again.out)
    assert load("r.json").outcomes is not None
    assert command(*small(world, *PRUNED, "--save_outcomes", "--skip_existing")).out[0].startswith("Skip")


def test_outcomes_without_a_hash_are_tied_to_their_result_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of data of one's own, which no request finds again."""
    command(*small(world, "--save_outcomes"))
    mine = dataclasses.replace(load("r.json"), config_hash=None)
    mine.save("mine.json")
    assert load("mine.json").outcomes is not None
    assert mine.outcomes is not None
    found = mine.outcomes.details
    others = Outcomes.of_classes(mine.outcomes.keys, found["targets"], found["predictions"] + 1)
    other = dataclasses.replace(mine, outcomes=others)
    with monkeypatch.context() as patch:
        failing(patch, full(), "mine.outcomes.npz")
        with pytest.raises(UserError, match=r"mine\.outcomes\.npz: cannot be written"):
            other.save("mine.json")
    with pytest.raises(UserError, match="another run"):
        load("mine.json")
    assert any("beside A are of another run" in remark for remark in compare("mine.json", "r.json").remarks)


def test_a_result_that_was_saved_without_outcomes_takes_none(world: World) -> None:
    command(*small(world, "--save_outcomes"))
    command(*small(world))
    assert Path("r.outcomes.npz").exists()
    assert outcomes.beside("r.json", read("r.json")) is None
    assert not command(*small(world, "--save_outcomes", "--skip_existing")).out[0].startswith("Skip")


@pytest.mark.parametrize("flags", [["--save_clf", "c.pt"], ["--extract_attention", "--attention_output", "c.pt"]])
def test_tensors_of_another_run_are_not_skipped(
    world: World, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command(*small(world, *flags))
    before = Path("c.pt").read_bytes()
    with monkeypatch.context() as patch:
        failing(patch, KeyboardInterrupt(), "c.pt")
        assert command(*small(world, *flags, *PRUNED)).code == 130
    assert Path("c.pt").read_bytes() == before
    assert not command(*small(world, *flags, *PRUNED, "--skip_existing")).out[0].startswith("Skip")
    assert command(*small(world, *flags, *PRUNED, "--skip_existing")).out[0].startswith("Skip")


# --- what cannot be written after the work


@pytest.mark.parametrize("names", [["r.json"], ["r.outcomes.npz"], ["a.pt"], ["clf.pt"], []], ids=str)
def test_the_metrics_are_told_and_the_rest_is_written(
    world: World, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = ["--save_outcomes", "--save_clf", "clf.pt", "--extract_attention", "--attention_output", "a.pt"]
    failing(monkeypatch, full(), *names)
    outcome = command(*small(world, *everything, "--quiet"))
    assert outcome.code == 2
    [line] = outcome.err
    for name in names or ["r.json", "a.pt", "clf.pt"]:
        assert f"{name}: cannot be written (No space left on device)" in line
    assert "mean_per_class_recall" in outcome.out[-1]
    expected = {"r.json", "r.outcomes.npz", "a.pt", "clf.pt"} - set(names) if names else set()
    assert set(tree(Path())) == expected - ({"r.outcomes.npz"} if "r.json" in names else set())


def test_the_other_evaluations_go_on_where_that_is_asked_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = [f"folder:{make_folder(Path(name), classes=2, per_class=1)}" for name in ("one", "two")]
    failing(monkeypatch, full(), f"{slug(sets[0])}.json")
    flags = ["eval", *world.model, *RUN, "--dataset", *sets, "--output", "{dataset}.json", "--keep_going"]
    outcome = command(*flags)
    assert (outcome.code, outcome.err[-2]) == (2, "anchorprune: error: 1 of 2 failed:")
    assert Path(f"{slug(sets[1])}.json").exists()


@pytest.mark.parametrize("names", [["unpruned.json"], [], ["sweep.csv"]], ids=str)
def test_a_sweep_on_a_full_disk_tells_what_it_found(
    world: World, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, full(), *names)
    outcome = command("sweep", *world.model, *world.things, *RUN, *TOME, "--out", "out", "--quiet")
    assert outcome.code == 2
    [line] = outcome.err
    assert "No space left on device); what was found is printed above" in line
    said = "\n".join(outcome.out)
    assert ("tome" in said) == (names != ["unpruned.json"])
    assert "unpruned" in said
    assert Path("out/tome_r_2.json").exists() == bool(names)


def test_other_commands_on_a_full_disk_tell_what_they_found(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(*_: object) -> None:
        files.write_text("{}", "out/tune.json")

    command(*small(world))
    found = SimpleNamespace(command="anchorprune eval --r 3", to_text=lambda: "tome --r 3", save=save)
    monkeypatch.setattr("anchorprune.studies.tune.tune", lambda *_, **__: found)
    failing(monkeypatch, full())
    tuned = command("tune", *world.model, *world.things, *RUN, "--max_drop", 1, "--strategies", "tome", "--out", "out")
    assert tuned.out == ["tome --r 3", "", "anchorprune eval --r 3"]
    rerun = command("rerun", "r.json", "--output", "again.json", "--quiet")
    assert "mean_per_class_recall" in rerun.out[-1]
    built = command("build", "r.json", "--output", "all.csv")
    for outcome in (tuned, rerun, built):
        assert outcome.code == 2
        assert "cannot be written (No space left on device)" in outcome.err[-1]
    assert no_temporary_files()


# --- what can be known before


@pytest.mark.parametrize(
    ("line", "folder"),
    [
        ("eval --save_outcomes --output r.json", "r.outcomes.npz"),
        ("eval --output r.json", "r.json"),
        ("sweep --strategies tome --out out", "out/report.html"),
        ("sweep --strategies tome --out out", "out/sweep.csv"),
        ("sweep --strategies tome --out out", "out/sweep.png"),
        ("sweep --strategies tome --out out", "out/unpruned.json"),
        ("sweep --strategies tome --out out", "out/unpruned.outcomes.npz"),
        ("tune --max_drop 1 --strategies tome --out out", "out/tune.csv"),
        ("tune --max_drop 1 --strategies tome --out out", "out/tune.json"),
    ],
)
def test_an_output_that_is_a_folder_is_refused(world: World, line: str, folder: str) -> None:
    Path(folder).mkdir(parents=True)
    name, *flags = line.split()
    said = refused(name, *world.model, *world.three, *RUN, *flags)
    assert "is a folder; name a" in said
    assert Path(folder).name in said


@pytest.mark.parametrize("kind", ["a FIFO", "a device", "a link to itself"])
def test_what_is_no_regular_file_is_not_replaced_by_one(kind: str, tmp_path: Path) -> None:
    """Run as root, a link to /dev/null in the folder of a sweep would cost the machine its /dev/null."""
    place = tmp_path / "sweep.csv"
    if kind == "a FIFO":
        os.mkfifo(place)
    else:
        place.symlink_to("/dev/null" if kind == "a device" else place.name)
    said = "leads to itself" if kind == "a link to itself" else "not a regular file"
    with pytest.raises(UserError, match=said):
        files.check_output(place)
    with pytest.raises(UserError, match=said):
        files.write_text("", place)
    refusal = pytest.raises(UserError, match="symbolic links" if kind == "a link to itself" else said)
    with refusal, files.output_folder("out", tmp_path, "sweep.csv"):
        pass
    assert place.is_fifo() or place.is_symlink()
    assert Path("/dev/null").is_char_device()


def test_the_name_of_a_folder_is_no_output() -> None:
    with pytest.raises(UserError, match="this is the name of a folder"):
        files.check_output("r.json/")


def test_so_it_is_for_commands_without_data(world: World) -> None:
    Path("out/speed.png").mkdir(parents=True)
    assert "speed.png in it is a folder" in refused("speed", *world.model, "--out", "out")
    Path("demo/report.html").mkdir(parents=True)
    assert "report.html in it is a folder" in refused("demo", "--out", "demo")
    Path("encoded").mkdir()
    Path("encoded/shards").touch()
    photos = make_folder(Path("photos"), classes=1, per_class=1)
    line = refused("encode", *world.model, "--input", photos, "--out", "encoded")
    assert "--out encoded: shards in it is a file" in line


@pytest.mark.parametrize("name", ["r" * 245 + ".json", "r" * 300, "d" * 120 + "/" + "é" * 125 + ".json"])
def test_a_name_is_refused_that_is_too_long_with_what_is_added(world: World, name: str) -> None:
    Path("d" * 120).mkdir()
    line = refused("eval", *world.model, *world.three, *RUN, "--save_outcomes", "--output", name)
    assert "File name too long" in line
    assert "--output " in line


def test_a_sweep_goes_by_its_own_folder_and_shortens_what_is_long(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sets = [f"folder:{make_folder(Path('p' * 90, 'q' * 90, 'r' * 90, name), classes=2, per_class=1)}" for name in "ab"]
    there = tmp_path / "elsewhere"
    there.mkdir()
    temporary = files.tempfile.TemporaryFile

    def refuse(dir: Path) -> object:
        if Path(dir).resolve() == Path.cwd():
            raise OSError(errno.EROFS, "Read-only file system")
        return temporary(dir=dir)

    monkeypatch.setattr(files.tempfile, "TemporaryFile", refuse)
    outcome = command("sweep", *world.model, *RUN, "--dataset", *sets, *TOME, "--out", there)
    assert outcome.code == 0, outcome.err
    folders = [path for path in there.iterdir() if path.is_dir()]
    assert len(folders) == 2
    assert all(len(path.name) < 220 and (path / "unpruned.json").exists() for path in folders)


# --- temporary files


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not() -> None:
    left = Path(f".anchorprune-{locks.machine()}-0123456789abcdef.tmp")
    elsewhere, old = Path(".anchorprune-00000000-01.tmp"), Path(".anchorprune-00000000-02.tmp")
    for path in (left, elsewhere, old):
        path.write_bytes(b"half of it")
    os.utime(old, (0, 0))
    with files.replacing("r.json") as unfinished:
        unfinished.write_bytes(b"{}")
        files.clear_unfinished(Path.cwd())
        assert unfinished.exists()
    assert sorted(tree(Path())) == [str(elsewhere), "r.json"]


def test_a_folder_is_cleared_before_the_work(world: World) -> None:
    Path("out").mkdir()
    for folder in (".", "out"):
        Path(folder, f".anchorprune-{locks.machine()}-0123456789abcdef.tmp").touch()
    assert command(*small(world)).code == 0
    assert command("sweep", *world.model, *world.three, *RUN, *TOME, "--out", "out").code == 0
    assert no_temporary_files()


# --- two at once


def at_once(*argvs: list[object]) -> list[int]:
    """The exit codes of commands that run at the same time, each in a process of its own."""

    def start(argv: list[object]) -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python 3.12 on forks
            child = os.fork()
        if not child:
            code = 1
            try:
                code = command(*argv).code
            finally:
                os._exit(code)
        return child

    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in [start(argv) for argv in argvs]]


def evaluating(world: World) -> list[object]:
    sets = [f"folder:{make_folder(Path(name), classes=2, per_class=1)}" for name in ("one", "two", "three")]
    return ["eval", *world.model, *RUN, "--dataset", *sets, "--output", "out/{dataset}.json", "--save_outcomes"]


def sweeping(world: World) -> list[object]:
    return ["sweep", *world.model, *world.things, *RUN, *TOME, "--out", "out", "--ways_per_pass", 1]


def encoding(world: World) -> list[object]:
    photos = make_folder(Path("photos"), classes=2, per_class=3)
    return ["encode", *world.model, *RUN, "--input", photos, "--out", "out", "--rows_per_shard", 2]


@pytest.mark.parametrize("work", [evaluating, sweeping, encoding])
def test_two_processes_on_one_folder_leave_whole_files_and_all_of_them(
    world: World, work: Callable[[World], list[object]]
) -> None:
    Path("out").mkdir()
    argv = work(world)
    more = [] if "encode" in argv else ["--skip_existing"]
    assert at_once([*argv, *more], [*argv, *more]) == [0, 0]
    assert no_temporary_files()
    if "encode" in argv:
        assert (read("out/encode.json")["finished"], read("out/encode.json")["rows"]) == (True, 6)
        return
    results = sorted(path for path in Path("out").glob("*.json"))
    assert len(results) == (2 if "sweep" in argv else 3)
    assert all(load(path).outcomes is not None for path in results)
    if "sweep" in argv:
        with open("out/sweep.csv", encoding="utf-8") as file:
            assert len(list(csv.DictReader(file))) == 2
    assert all(line.startswith("Skip") for line in command(*argv, "--skip_existing").out if "json" in line)


def test_other_weights_make_another_run(world: World) -> None:
    """What ties a result to its outcomes goes by content."""
    for seed in (0, 1):
        checkpoint(Path(f"{seed}.pt"), seed=seed)
        command(*small(world, "--save_outcomes", "--pretrained", f"{seed}.pt", "--output", f"{seed}.json"))
    os.replace("0.outcomes.npz", "1.outcomes.npz")
    assert outcomes.are_beside("1.json", read("1.json")) is False
