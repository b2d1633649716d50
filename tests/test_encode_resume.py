"""An encoding that is killed goes on where it was: no row twice, none missing, the same bytes as without."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import open_clip
import pytest
from support.material import command, picture
from support.models import make_clip
from torchvision import transforms as T

import anchorprune
from anchorprune import Coarse, Compute, EncodeRequest, LoadedModel, ModelSpec, Thin, UserError
from anchorprune.embeddings.request import DTYPES
from anchorprune.progress import Reporting

pq = pytest.importorskip("pyarrow.parquet")

TESTS = Path(__file__).parent
CPU = Compute(device="cpu", precision="fp32", batch_size=3, num_workers=0)


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    from support.killed import TRANSFORM

    return LoadedModel(make_clip(), TRANSFORM, open_clip.get_tokenizer("ViT-B-32"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(23):
        picture(i, 40).save(folder / f"{i:02d}.png")
        (folder / f"{i:02d}.txt").write_text(f"number {i}")
    (folder / "11.png").write_bytes(b"broken")
    return folder


def request(source: Any, **fields: Any) -> EncodeRequest:
    defaults = {"input": str(source), "model": ModelSpec(name="tiny"), "compute": CPU, "rows_per_shard": 5}
    return EncodeRequest(**{**defaults, **fields})


def ids(out: Path) -> list[str]:
    return pq.read_table(out / "embeddings")["id"].to_pylist()


def all_but(broken: str = "11.png") -> list[str]:
    return [name for name in (f"{i:02d}.png" for i in range(23)) if name != broken]


@pytest.mark.parametrize(("seed", "shards"), [(1, []), (2, ["0/3", "1/3", "2/3"])])
def test_killed_at_random_moments_it_writes_what_it_writes_undisturbed(
    photos: Path, tmp_path: Path, seed: int, shards: list[str]
) -> None:
    script = [sys.executable, str(TESTS / "support" / "killed.py"), str(photos), str(tmp_path / "out"), str(seed)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    done = subprocess.run([*script, *shards], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 1
    assert ids(tmp_path / "out") == all_but()
    for file in sorted((tmp_path / "out-whole" / "embeddings").iterdir()):
        assert (tmp_path / "out" / "embeddings" / file.name).read_bytes() == file.read_bytes()
    found = json.loads((tmp_path / "out" / "encode.json").read_text())
    assert (found["finished"], found["rows"], found["failures"]) == (True, 22, 1)
    assert pq.read_table(tmp_path / "out" / "failures.parquet")["id"].to_pylist() == ["11.png"]


def test_the_command_line_goes_on_after_kill_9(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(120):
        picture(i, 64).save(folder / f"{i:03d}.png")
    words = [sys.executable, "-m", "anchorprune", "encode", "--model", "anchorprune-demo", "--pretrained", "bundled"]
    words += ["--input", str(folder), "--out", str(tmp_path / "out"), "--rows_per_shard", "4", "--batch_size", "4"]
    words += ["--num_workers", "1", "--device", "cpu", "--no_amp"]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True) as first:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("out/shards/0*.json")) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.killpg(first.pid, signal.SIGKILL)
    finished = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("out/shards/0*.json")}
    assert 0 < len(finished) < 30
    last = subprocess.run(words, capture_output=True, text=True, timeout=300, check=True)
    assert f"{4 * len(finished)} of 120 images are done already" in last.stdout
    assert all((tmp_path / "out" / "shards" / name).stat().st_mtime_ns == when for name, when in finished.items())
    assert ids(tmp_path / "out") == [f"{i:03d}.png" for i in range(120)]


def test_what_is_finished_is_not_done_again(model: LoadedModel, photos: Path, tmp_path: Path) -> None:
    asked, out = request(photos), tmp_path / "out"
    anchorprune.encode(asked, out, model=model)
    times = {p: p.stat().st_mtime_ns for p in (out / "embeddings").iterdir()}
    (out / "shards" / "00002.json").unlink()
    (out / "embeddings" / "00003.parquet").unlink()
    anchorprune.encode(asked, out, model=model)
    again = {p.name for p, when in times.items() if p.stat().st_mtime_ns != when}
    assert again == {"00002.parquet", "00003.parquet"}
    assert ids(out) == all_but()


def test_processes_share_the_work_by_whole_files(model: LoadedModel, photos: Path, tmp_path: Path) -> None:
    asked, out = request(photos), tmp_path / "out"
    for rank in (2, 0):
        found = anchorprune.encode(asked, out, shard=(rank, 3), model=model)
        assert not found["finished"]
    assert sorted(p.name for p in (out / "embeddings").iterdir()) == [f"0000{i}.parquet" for i in (0, 2, 3)]
    found = anchorprune.encode(asked, out, shard=(1, 3), model=model)
    assert (found["finished"], found["rows"], found["failures"]) == (True, 22, 1)
    anchorprune.encode(asked, tmp_path / "alone", model=model)
    assert pq.read_table(out / "embeddings").equals(pq.read_table(tmp_path / "alone" / "embeddings"))


def test_a_process_of_several_says_that_it_counts_its_own_images(
    model: LoadedModel, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    how = {"shard": (1, 3), "model": model, "reporting": Reporting(log_format="json"), "say": said.append}
    anchorprune.encode(request(photos), tmp_path / "out", **how)
    anchorprune.encode(request(photos), tmp_path / "out", **how)
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    counted = len(range(5, 10)) + len(range(20, 23))
    assert (first["what"], first["done"], first["total"]) == ("encode, shard 1/3", counted, counted)
    assert (second["done"], said) == (counted, [f"encode, shard 1/3: {counted} of {counted} images are done already"])


def test_more_processes_than_files_is_no_error(model: LoadedModel, photos: Path, tmp_path: Path) -> None:
    asked, out = request(photos), tmp_path / "out"
    assert anchorprune.encode(asked, out, shard=(7, 8), model=model)["rows"] == 0
    assert anchorprune.encode(asked, out, model=model)["rows"] == 22


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pruning": Coarse(keep_patches=(4,))}, "strategy: null there, coarse here"),
        ({"dtype": "fp32"}, "dtype: fp16 there, fp32 here"),
        ({"rows_per_shard": 6}, "rows_per_shard: 5 there, 6 here"),
        ({"normalize": False}, "normalize: true there, false here"),
        ({"keep_columns": ("txt",)}, r'keep_columns: \[\] there, \["txt"\] here'),
        ({"limit": 4}, "limit: null there, 4 here"),
        ({"compute": Compute(device="cpu", precision="amp_bf16", num_workers=0)}, "precision: float32 there, bfloat16"),
    ],
)
def test_another_request_on_the_same_folder_is_refused_with_what_differs(
    model: LoadedModel, photos: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    out = tmp_path / "out"
    anchorprune.encode(request(photos), out, model=model)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match=f"holds the embeddings of another request .*{said}.*; name another folder"):
        anchorprune.encode(request(photos, **change), out, model=model)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


def test_what_does_not_decide_the_output_may_change(model: LoadedModel, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    anchorprune.encode(request(photos), out, shard=(0, 2), model=model)
    other = Compute(device="cpu", precision="fp32", batch_size=2, num_workers=1)
    anchorprune.encode(request(photos, compute=other, max_failures=0.5), out, model=model)
    assert ids(out) == all_but()


def test_the_same_preprocessing_is_the_same_wherever_it_lies_in_memory(
    model: LoadedModel, photos: Path, tmp_path: Path
) -> None:
    for _ in range(2):
        steps = T.Compose([lambda image: image.convert("RGB"), *model.transform.transforms])  # as open_clip 2 has it
        found = anchorprune.encode(request(photos), tmp_path / "out", model=LoadedModel(model.model, steps))
    assert "<function" in found["identity"]["preprocessing"]


def test_other_weights_or_other_images_are_another_request(model: LoadedModel, photos: Path, tmp_path: Path) -> None:
    anchorprune.encode(request(photos), tmp_path / "out", model=model)
    other = make_clip()
    other.logit_scale.data += 1
    with pytest.raises(UserError, match="weights: "):
        anchorprune.encode(request(photos), tmp_path / "out", model=LoadedModel(other, model.transform))
    picture(99).save(photos / "new.png")
    with pytest.raises(UserError, match=r"images: 23 \(.*\) there, 24 \(.*\) here"):
        anchorprune.encode(request(photos), tmp_path / "out", model=model)


def test_a_strategy_that_couples_the_batch_keeps_its_batch_size() -> None:
    coupled = anchorprune.Anchor(selection="first_image")
    assert request("x", pruning=coupled).identity()["batch_size"] == 3
    assert request("x", pruning=Thin()).identity()["batch_size"] is None


def test_a_shard_of_another_request_that_ran_at_the_same_time_is_refused(
    model: LoadedModel, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    anchorprune.encode(request(photos), out, shard=(0, 2), model=model)
    record = out / "shards" / "00002.json"
    record.write_text(record.read_text().replace('"request": "', '"request": "0'))
    with pytest.raises(UserError, match=r"00002.json: is of another request"):
        anchorprune.encode(request(photos), out, model=model)


def test_a_folder_that_holds_other_embeddings_is_refused(model: LoadedModel, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "img_emb").mkdir(parents=True)
    with pytest.raises(UserError, match=r"holds embeddings without encode.json; name another folder"):
        anchorprune.encode(request(photos, format="npy"), tmp_path / "out", model=model)


def test_what_a_killed_process_left_half_written_goes_away(model: LoadedModel, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    anchorprune.encode(request(photos), out, shard=(0, 2), model=model)
    old, new = (out / "embeddings" / f".anchorprune-{name}.tmp" for name in ("old", "new"))
    for file in (old, new):
        file.write_bytes(b"half")
    os.utime(old, (0, 0))
    anchorprune.encode(request(photos), out, model=model)
    assert (old.exists(), new.exists()) == (False, True)


def test_the_check_is_made_once(model: LoadedModel, photos: Path, tmp_path: Path) -> None:
    asked, said = request(photos, pruning=Coarse(keep_patches=(4,))), list[str]()
    for _ in range(2):
        found = anchorprune.encode(asked, tmp_path / "out", check=8, model=model, say=said.append)
    assert len([line for line in said if line.startswith("check of 8")]) == 1
    assert found["check"]["images"] == 8


def test_every_precision_of_embeddings_is_one_that_numpy_and_torch_have() -> None:
    import numpy as np
    import torch

    assert all(np.dtype(name) and hasattr(torch, name) for name in DTYPES.values())


def test_the_second_command_line_says_what_differs_in_flags(world: Any, here: Path) -> None:
    words = ["encode", "--input", world.folder / "things", *world.model, "--num_workers", 0, "--out", "out", "--quiet"]
    assert command(*words).code == 0
    outcome = command(*words, "--dtype", "fp32")
    assert outcome.code == 2
    assert outcome.err[-1] == (
        "anchorprune: error: --out out: holds the embeddings of another request (dtype: fp16 there, fp32 here); "
        "name another folder"
    )
