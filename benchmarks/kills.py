"""Kills anchorprune again and again, and looks whether anything is half, lost, done twice or of two runs afterwards.

    python benchmarks/kills.py
    python benchmarks/kills.py --kills 20 --seed 1 --commands sweep download

eval (three data sets), sweep, tune, encode, export-wds and a download from a server on this machine run with a tiny
model on the bundled photos until `kill -9` ends them: at a moment of the time that they take, or right before an n-th
file is opened for writing, renamed or removed; the process alone, or with its workers. Some begin where another run's
results lie. After each kill every file with a name of its own has to be whole, the undisturbed run's or the earlier
one's, and beside a result lies its own run's. Then the command is started again, and killed again or let end: it has to
leave what the undisturbed run left, must not write anew what was finished, and nothing temporary stays.

Processes are forked from one that has imported everything and run nothing, since starting one takes seconds. Linux.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import http.server
import io
import json
import os
import random
import shutil
import signal
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# A process that forks must have one thread.
os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
os.environ |= {"HF_HUB_OFFLINE": "1", "no_proxy": "127.0.0.1"}

import numpy as np
import open_clip
import torch
from PIL import Image

from anchorprune import bundled
from anchorprune.commands import main as anchorprune
from anchorprune.errors import UserError
from anchorprune.evaluation import outcomes, result

NAME = "kills-tiny"
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 4, "head_width": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
# What differs between equal runs: times, what tune chooses by them, and what is known of a result later than it.
TIMES = {"cost", "environment", "seconds", "images_per_second", "speed_up", "milliseconds", "measured", "saved_beside"}
TIMES |= {"chosen", "strategy", "command", "loss", "loss_low", "loss_high", "peak_memory_mb", "frontier"}
GOES_ON = {"finished", "shards", "rows", "images", "failures", "check"}  # of encode.json
IN_A_ROW = 4  # kills, before it is let end
Files = dict[str, Any]


@dataclass
class Work:
    """A command and how to look at what it leaves.

    Attributes:
        argv: what goes on where it stopped.
        other: the flags with which an earlier run has left other results in the folder, where that may be.
        settled: of the files in a folder those that must not be written again.
        whole, before: what lies there after an undisturbed run, and after that earlier one.
        seconds, events: how long the undisturbed run took, and how often it touched files.
    """

    argv: list[str]
    settled: Callable[[Path, Files], Iterable[str]]
    other: list[str] = field(default_factory=list)
    whole: Files = field(default_factory=dict)
    before: Files = field(default_factory=dict)
    left: Path = Path()
    seconds: float = 0.0
    events: int = 0


# --- what is killed


def works(data: Path, url: str) -> dict[str, Work]:
    run = ["--model", NAME, "--pretrained", str(data / "tiny.pt"), "--no_amp", "--device", "cpu", "--num_workers", "1"]
    sets = [f"folder:{data / name}" for name in ("one", "two", "three")]
    beside = ["--save_outcomes", "--extract_attention", "--attention_images", "2", "--attention_output", "{dataset}.pt"]
    ways = ["--strategies", "coarse --keep_patches 4", "tome --r 2", "--ways_per_pass", "1", "--out", "."]
    encode = ["encode", *run, "--input", str(data / "one"), "--out", ".", "--rows_per_shard", "5", "--batch_size", "5"]
    download = ["datasets", "check", "wds/photos", "--dataset_root", url, "--wds_cache_dir", ".", "--num_workers", "1"]
    tune = ["tune", *run, "--dataset", bundled.TAG, "--max_drop", "100", "--strategies", "coarse", "--calibration", "1"]
    export = ["export-wds", "--dataset", sets[0], "--output", ".", "--max_count", "3", "--image_format", "png"]
    return {
        "eval": Work(
            ["eval", *run, "--dataset", *sets, *beside, "--output", "{dataset}.json", "--skip_existing"],
            whole_results,
            ["--limit", "30"],
        ),
        "sweep": Work(
            ["sweep", *run, "--dataset", sets[0], *ways, "--skip_existing"], whole_results, ["--limit", "31"]
        ),
        "tune": Work([*tune, "--limit", "60", "--out", "."], nothing, ["--limit", "61"]),
        "encode": Work(encode, encoded),
        "npy": Work([*encode, "--format", "npy"], encoded),
        "export-wds": Work([*export, "--num_workers", "1"], tars),
        "download": Work(download, downloaded),
    }


def make_data(folder: Path) -> None:
    """A tiny model; the bundled photos as three folders of two classes each, and as a webdataset of several tars."""
    folder.mkdir(parents=True)
    (folder / f"{NAME}.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(folder / f"{NAME}.json")
    torch.manual_seed(0)
    torch.save(open_clip.create_model(NAME).state_dict(), folder / "tiny.pt")
    names = (bundled.PHOTOS / "classnames.txt").read_text().split("\n")
    with tarfile.open(bundled.PHOTOS / "test" / "0.tar") as tar:
        parts = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    labels = {key: int(parts[f"{key}.cls"]) for key in sorted({name[:-4] for name in parts})}
    for i, name in enumerate(("one", "two", "three")):
        for label in (2 * i, 2 * i + 1):
            (folder / name / names[label]).mkdir(parents=True)
            for key in [key for key, own in labels.items() if own == label][:24]:
                (folder / name / names[label] / f"{key}.jpg").write_bytes(parts[f"{key}.jpg"])
    shutil.copytree(bundled.PHOTOS, folder / "web")
    for number, first in enumerate(range(0, 60, 12)):
        with tarfile.open(folder / "web" / "test" / f"{number}.tar", "w") as tar:
            for name in [f"{key}.{end}" for key in list(labels)[first : first + 12] for end in ("jpg", "cls")]:
                info = tarfile.TarInfo(name)
                info.size = len(parts[name])
                tar.addfile(info, io.BytesIO(parts[name]))
    (folder / "web" / "test" / "nshards.txt").write_text(str(number + 1))


# --- what is there


def files_in(folder: Path) -> Files:
    """What each file means, times left out; raises whatever comes of a file that is not whole."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(folder)): meaning(path) for path in found}


def meaning(path: Path) -> Any:
    data = path.read_bytes()
    if path.suffix == ".json":
        return without_times(json.loads(data), TIMES | (GOES_ON if path.name == "encode.json" else set()))
    if path.suffix == ".npz":
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return {name: arrays[name].tolist() for name in arrays}
    if path.suffix == ".pt":
        return {k: str(v) for k, v in torch.load(io.BytesIO(data), weights_only=True).items() if k != "seconds"}
    if path.suffix == ".csv":
        rows = csv.DictReader(io.StringIO(data.decode(), newline=""))
        return sorted(str({k: v for k, v in row.items() if k not in TIMES}) for row in rows)
    if path.suffix == ".html":
        assert data.rstrip().endswith(b"</html>"), f"{path}: half a page"
        return "a page"
    if path.suffix == ".png":
        Image.open(io.BytesIO(data), formats=["PNG"]).load()
        return "a picture"
    return data


def without_times(content: Any, names: set[str]) -> Any:
    if isinstance(content, dict):
        return {key: without_times(value, names) for key, value in content.items() if key not in names}
    if not isinstance(content, list):
        return content
    # tune's, sorted by what was timed
    return sorted((without_times(each, names) for each in content), key=str)


def whole_results(folder: Path, whole: Files) -> Iterable[str]:
    """Results of this very command, with all that belongs beside them."""
    for name, content in whole.items():
        if "metrics" not in content or not (folder / name).exists() or meaning(folder / name) != content:
            continue
        raw, stem = json.loads((folder / name).read_bytes()), name.removesuffix(".json")
        if not outcomes.are_beside(folder / name, raw):
            continue
        if f"{stem}.pt" in whole and not raw.get("saved_beside"):
            continue
        yield from {name, f"{stem}.outcomes.npz", f"{stem}.pt"} & whole.keys()


def nothing(_: Path, __: Files) -> Iterable[str]:
    return ()


def encoded(folder: Path, whole: Files) -> Iterable[str]:
    """Shards that have their record, but not the sums of all."""
    numbers = [path.stem for path in (folder / "shards").glob("0*.json")]
    return [name for name in whole if any(number in name for number in numbers)]


def tars(folder: Path, whole: Files) -> Iterable[str]:
    return [name for name in whole if name.endswith(".tar") and (folder / name).exists()]


def downloaded(folder: Path, whole: Files) -> Iterable[str]:
    """Those whose record says so."""
    for name in whole:
        record = (folder / name).with_name(f".{Path(name).name}.json")
        with suppress(OSError, ValueError):
            if json.loads(record.read_bytes()).get("marks"):
                yield name


# --- processes


def start(argv: list[str], folder: Path, *, die_at: int = 0) -> int:
    """`anchorprune ARGV` in `folder`, with its workers a group of its own.

    Args:
        die_at: it kills itself right before it touches a file for the n-th time.
    """
    if child := os.fork():
        with suppress(PermissionError):  # it has done so already
            os.setpgid(child, child)
        return child
    code = 1
    try:
        os.setpgid(0, 0)
        log = os.open(folder.parent / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(folder)
        count = 0

        def touched(event: str, args: tuple[Any, ...]) -> None:
            nonlocal count
            writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
            if writes or event in ("os.rename", "os.remove", "os.mkdir", "os.truncate"):
                count += 1
                if count == die_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(touched)
        code = anchorprune(argv)
        (folder.parent / "events").write_text(str(count))
        sys.stdout.flush()
    except BaseException:  # what a user would see
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def ended(child: int, seconds: float) -> int | None:
    """Its exit code, once it has one; None where it is still at work after so long."""
    until = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            return None
        time.sleep(0.005)


def gone(group: int) -> bool:
    """Whether no process of the group is left; those that have ended are taken note of."""
    with suppress(ChildProcessError):
        while os.waitpid(-group, os.WNOHANG)[0]:
            pass
    with suppress(ProcessLookupError):
        os.killpg(group, 0)
        return False
    return True


def undisturbed(argv: list[str], folder: Path) -> float:
    begin = time.monotonic()
    code = ended(start(argv, folder), 600)
    check(code == 0, folder, f"exit code {code} without a kill")
    return time.monotonic() - begin


# --- the rounds


def check(holds: bool, folder: Path, said: str) -> None:
    if not holds:
        log = (folder.parent / "log").read_text(errors="replace")[-3000:]
        sys.exit(f"FAILED in {folder}: {said}\n{log}")


def check_whole(work: Work, folder: Path) -> None:
    """Every file is one run's, all of it, and beside a result there is nothing else's."""
    try:
        found = files_in(folder)
    except Exception as error:
        check(False, folder, f"half a file: {error!r}")
    runs = (work.whole, work.before)
    for name, content in found.items():
        check(any(content == run.get(name) for run in runs), folder, f"{name} is no run's")
        if not isinstance(content, dict) or "metrics" not in content:
            continue
        with suppress(UserError):  # said to be another run's
            beside = result.load(folder / name).outcomes is not None
            own = [run for run in runs if content == run.get(name)]
            of_outcomes = name.replace(".json", ".outcomes.npz")
            fits = not beside or any(found[of_outcomes] == run[of_outcomes] for run in own)
            check(fits, folder, f"{of_outcomes} is another run's, and nothing says so")
            for each in json.loads((folder / name).read_bytes()).get("saved_beside") or ():
                check(any(found[each] == run[each] for run in own), folder, f"{each} is another run's")


def settled(work: Work, folder: Path) -> dict[str, tuple[int, int]]:
    stats = {name: (folder / name).stat() for name in work.settled(folder, work.whole) if (folder / name).exists()}
    return {name: (stat.st_mtime_ns, stat.st_ino) for name, stat in stats.items()}


def prepare(work: Work, folder: Path) -> None:
    """What undisturbed runs leave, and what they take."""
    if work.other:
        work.left = folder / "before"
        work.left.mkdir(parents=True)
        undisturbed([*work.argv, *work.other], work.left)
        work.before = files_in(work.left)
    whole = folder / "whole"
    whole.mkdir(parents=True)
    work.seconds = undisturbed(work.argv, whole)
    work.events = int((folder / "events").read_text())
    work.whole = files_in(whole)


def one_round(work: Work, folder: Path, chance: random.Random, most: int, groups: dict[int, str]) -> int:
    """Kills until the command is let end; how many."""
    shutil.rmtree(folder, ignore_errors=True)
    if work.other and chance.random() < 0.5:
        shutil.copytree(work.left, folder)
    else:
        folder.mkdir()
    kills = 0
    while kills < min(most, IN_A_ROW):
        done = settled(work, folder)
        by_event, alone = chance.random() < 0.5, chance.random() < 0.5
        child = start(work.argv, folder, die_at=chance.randint(1, work.events) if by_event else 0)
        code = ended(child, 600 if by_event else chance.uniform(0, work.seconds))
        if code is None or (code == -signal.SIGKILL and not alone):
            with suppress(ProcessLookupError, PermissionError):
                (os.kill if alone else os.killpg)(child, signal.SIGKILL)
        if code is None:
            code = ended(child, 60)
        groups[child] = folder.parent.name
        check(code in (0, -signal.SIGKILL), folder, f"exit code {code}")
        check_whole(work, folder)
        now = settled(work, folder)
        check(done.items() <= now.items(), folder, f"written again: {sorted(done.items() - now.items())}")
        if code == 0:
            break
        kills += 1
    done = settled(work, folder)
    undisturbed(work.argv, folder)
    check_whole(work, folder)
    check(done.items() <= settled(work, folder).items(), folder, "what was finished was written again")
    found = files_in(folder)
    wrong = [name for name in found.keys() | work.whole.keys() if found.get(name) != work.whole.get(name)]
    check(not wrong, folder, f"not what the undisturbed run left: {wrong}")
    temporary = [str(path) for path in folder.rglob(".anchorprune-*")]
    check(not temporary, folder, f"left behind: {temporary}")
    return kills


# --- a server


class Handler(http.server.BaseHTTPRequestHandler):
    """Files below `root`, with ETag and ranges, slowly."""

    root = Path()

    def do_GET(self) -> None:
        path = self.root / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        data, etag = path.read_bytes(), f'"{path.stat().st_mtime_ns}"'
        asked = self.headers.get("Range", "")
        first = int(asked[6:-1]) if asked and self.headers.get("If-Range") == etag else 0
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - first))
        self.send_header("ETag", etag)
        self.end_headers()
        with suppress(OSError):  # the client was killed
            for at in range(first, len(data) if self.command == "GET" else first, 1 << 15):
                self.wfile.write(data[at : at + (1 << 15)])
                time.sleep(0.01)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


def serve(root: Path) -> tuple[int, str]:
    """The process id and the address of a server."""
    Handler.root = root
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if child := os.fork():
        server.server_close()
        return child, f"http://127.0.0.1:{server.server_address[1]}"
    server.serve_forever()
    os._exit(1)


def import_everything(argvs: Iterable[list[str]], folder: Path) -> None:
    """What the commands import when they run, so that what is killed is work and no imports."""
    for argv in argvs:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        reader, writer = os.pipe()
        if not os.fork():
            os.chdir(folder)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            anchorprune(argv)
            with os.fdopen(writer, "w") as names:
                names.write("\n".join(sys.modules))
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as names:
            listed = names.read().split("\n")
        os.wait()
        for name in listed:
            with suppress(Exception):
                __import__(name)


def threads() -> list[str]:
    """The names of this process's threads, but of that which goes with a fork and is started again."""
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if name != "jemalloc_bg_thd"]  # pyarrow's


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", nargs="+", default=None, help="some of them (default: all)")
    parser.add_argument("--folder", help="where to work, and to leave what has failed (default: a temporary folder)")
    args = parser.parse_args()

    torch.set_num_threads(1)
    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: workers of killed processes become ours
    temporary = None if args.folder else tempfile.TemporaryDirectory(prefix="anchorprune-kills-")
    folder = Path(args.folder or temporary.name)  # type: ignore[union-attr]
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    make_data(folder / "data")
    server, url = serve(folder / "data" / "web")
    groups: dict[int, str] = {}  # of processes, and the command that each was
    chance, begin, total = random.Random(args.seed), time.monotonic(), 0
    try:
        chosen = {name: work for name, work in works(folder / "data", url).items() if name in (args.commands or name)}
        import_everything((work.argv for work in chosen.values()), folder / "imports")
        assert len(threads()) == 1, f"threads {threads()}: a fork of these is not what a process of its own is"
        for name, work in chosen.items():
            (folder / name).mkdir()
            prepare(work, folder / name)
            print(f"{name}: {work.seconds:.1f} s, touches {work.events} files, leaves {len(work.whole)}", flush=True)
        killed = dict.fromkeys(chosen, 0)
        while total < args.kills:
            name = min(killed, key=killed.__getitem__)
            count = one_round(chosen[name], folder / name / "out", chance, args.kills - total, groups)
            killed[name] += count
            total += count
            print(f"{total} kills after {time.monotonic() - begin:.0f} s: {name}, {count} in a row", flush=True)
        until = time.monotonic() + 30  # how long a worker may take to find itself alone
        while (left := [group for group in groups if not gone(group)]) and time.monotonic() < until:
            time.sleep(0.1)
        for group in left:
            os.killpg(group, signal.SIGKILL)
        if left:
            sys.exit(
                f"FAILED: processes that outlive a killed one by half a minute: {[groups[group] for group in left]}"
            )
        print(f"seed {args.seed}: {', '.join(f'{name} {count}' for name, count in killed.items())}; all whole")
    finally:
        os.kill(server, signal.SIGKILL)
        if temporary:
            temporary.cleanup()


if __name__ == "__main__":
    main()
