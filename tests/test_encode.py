"""`anchorprune.encode`: the files hold what the model gives, in the input's order, and every failure is a row."""

from __future__ import annotations

import io
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.encoded import (
    TRANSFORM,
    embeddings,
    expected,
    make_photos,
    make_tars,
    pq,
    request,
    table,
    tiny_model,
)
from support.material import command, picture
from support.models import make_clip
from torch.nn import functional as F

import anchorprune
from anchorprune import Coarse, Compute, EncodeRequest, LoadedModel, UserError
from anchorprune.datasets.workers import in_batches
from anchorprune.embeddings.fidelity import fidelity
from anchorprune.embeddings.files import Files
from anchorprune.embeddings.loading import Reader
from anchorprune.embeddings.strings import Strings


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return tiny_model()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "photos")


def test_the_files_hold_what_the_model_gives_in_the_order_of_the_input(
    model: LoadedModel, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    found = anchorprune.encode(request(photos, dtype="fp32", rows_per_shard=4), out, model=model)
    ids = table(out)["id"].to_pylist()
    paths = sorted(photos.rglob("*.png"))
    assert ids == [path.relative_to(photos).as_posix() for path in paths]
    torch.testing.assert_close(embeddings(out), expected(model, paths), atol=1e-5, rtol=0)
    assert [p.name for p in sorted((out / "embeddings").iterdir())] == [f"0000{i}.parquet" for i in range(3)]
    assert [pq.read_metadata(p).num_rows for p in sorted((out / "embeddings").iterdir())] == [4, 4, 2]
    assert (found["rows"], found["failures"], found["finished"]) == (10, 0, True)


def test_half_precision_is_that_of_the_floats_and_lists_have_a_fixed_size(
    model: LoadedModel, photos: Path, tmp_path: Path
) -> None:
    anchorprune.encode(request(photos), tmp_path / "half", model=model)
    anchorprune.encode(request(photos, dtype="fp32"), tmp_path / "whole", model=model)
    assert str(table(tmp_path / "half")["embedding"].type) == "fixed_size_list<element: halffloat>[16]"
    assert torch.equal(embeddings(tmp_path / "half").half(), embeddings(tmp_path / "whole").half())


def test_raw_embeddings_point_where_the_normalised_ones_do(model: LoadedModel, photos: Path, tmp_path: Path) -> None:
    for name, normalize in (("raw", False), ("unit", True)):
        anchorprune.encode(
            request(photos, dtype="fp32", normalize=normalize, texts="source"), tmp_path / name, model=model
        )
    for column in ("embedding", "text_embedding"):
        raw, unit = (embeddings(tmp_path / name, column) for name in ("raw", "unit"))
        assert not torch.allclose(raw.norm(dim=1), torch.ones(10), atol=0.1)
        torch.testing.assert_close(F.normalize(raw, dim=-1), unit, atol=1e-6, rtol=0)


def test_a_pruning_is_in_force_and_the_model_is_whole_again_afterwards(
    model: LoadedModel, photos: Path, tmp_path: Path
) -> None:
    paths = sorted(photos.rglob("*.png"))
    before = expected(model, paths)
    found = anchorprune.encode(
        request(photos, dtype="fp32", pruning=Coarse(keep_patches=(4,))), tmp_path / "out", model=model
    )
    with anchorprune.prune(model.model, Coarse(keep_patches=(4,))):
        pruned = expected(model, paths)
    torch.testing.assert_close(embeddings(tmp_path / "out"), pruned, atol=1e-5, rtol=0)
    assert not torch.allclose(pruned, before, atol=1e-2)
    assert torch.equal(expected(model, paths), before)
    assert 0 < found["gmacs"] < found["gmacs_dense"]


def test_workers_change_nothing(model: LoadedModel, photos: Path, tmp_path: Path) -> None:
    anchorprune.encode(request(photos), tmp_path / "alone", model=model)
    workers = Compute(device="cpu", precision="fp32", batch_size=4, num_workers=2)
    anchorprune.encode(request(photos, compute=workers), tmp_path / "with", model=model)
    assert table(tmp_path / "with").equals(table(tmp_path / "alone"))


def test_captions_and_the_keys_of_a_json_are_carried_along(model: LoadedModel, photos: Path, tmp_path: Path) -> None:
    anchorprune.encode(request(photos, keep_columns=("txt", "source", "score")), tmp_path / "out", model=model)
    rows = {row["id"].split("/")[-1]: row for row in table(tmp_path / "out").to_pylist()}
    assert rows["3.png"]["txt"] == "number 3"
    assert (rows["3.png"]["source"], rows["3.png"]["score"]) == ("s3", "1.5")
    assert rows["4.png"]["txt"] is None


def test_a_column_that_no_image_has_is_said(model: LoadedModel, photos: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="none of the first 4 images has 'sorce' to be carried along"):
        anchorprune.encode(request(photos, keep_columns=("sorce",)), tmp_path / "out", model=model)


def test_texts_are_encoded_as_the_model_does_and_a_row_without_one_is_a_failure(
    model: LoadedModel, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    anchorprune.encode(request(photos, texts="txt", dtype="fp32"), out, model=model)
    texts = table(out)["txt"].to_pylist()
    assert len(texts) == 9
    with torch.no_grad():
        own = F.normalize(model.model.encode_text(model.tokenizer(texts)), dim=-1)
    torch.testing.assert_close(embeddings(out, "text_embedding"), own, atol=1e-5, rtol=0)
    (failure,) = pq.read_table(out / "failures.parquet").to_pylist()
    assert (failure["id"], "has no text 'txt'" in failure["reason"]) == ("group 1/deep/4.png", True)


def make_hostile(folder: Path) -> dict[str, str]:
    """Files that are no images, each with what is to be said of it."""
    whole = io.BytesIO()
    picture(0, 64).save(whole, "JPEG")
    (folder / "cut.jpg").write_bytes(whole.getvalue()[:1500])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "page.png").write_bytes(b"<html>not found</html>")
    (folder / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    (folder / "endless.jpg").symlink_to("/dev/zero")
    os.mkfifo(folder / "waiting.jpg")
    with open(folder / "vast.png", "wb") as file:
        Image.new("1", (30_000, 30_000)).save(file, "PNG")
    with open(folder / "sparse.jpg", "wb") as file:
        file.truncate(1 << 30)
    return {
        "cut.jpg": "runcated",
        "empty.jpg": "",
        "page.png": "not an image",
        "gone.jpg": "No such file",
        "endless.jpg": "not a regular file",
        "waiting.jpg": "not a regular file",
        "vast.png": "pixels",
        "sparse.jpg": "more than are read",
    }


def test_files_that_are_no_images_are_rows_of_failures_and_neither_stop_nor_block(
    model: LoadedModel, photos: Path, tmp_path: Path
) -> None:
    said = make_hostile(photos)
    out = tmp_path / "out"
    found = anchorprune.encode(request(photos), out, model=model)
    assert (found["rows"], found["failures"], found["images"]) == (10, len(said), 10 + len(said))
    failures = {row["id"]: row["reason"] for row in pq.read_table(out / "failures.parquet").to_pylist()}
    assert failures.keys() == said.keys()
    for name, part in said.items():
        assert part in failures[name], failures[name]


class Slow(Files):
    def read(self, row: int) -> bytes:
        if row == 2:
            time.sleep(60)
        return super().read(row)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_takes_too_long_is_a_failure(photos: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    monkeypatch.setattr("anchorprune.embeddings.loading.SECONDS", 0.3)
    paths = [str(path) for path in sorted(photos.rglob("*.png"))]
    reader = Reader(Slow("", Strings(paths)), TRANSFORM)
    batches = list(in_batches(reader, [range(0, 4), range(4, 8)], num_workers=workers))
    assert [batch.rows for batch in batches] == [[0, 1, 3], [4, 5, 6, 7]]
    assert [(row, reason) for row, _, reason in batches[0].failures] == [(2, "takes more than 0.3 s")]
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_an_alarm_of_the_programs_own_is_left_alone(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anchorprune.embeddings.loading.SECONDS", 1e-9)
    before = signal.signal(signal.SIGALRM, own := lambda *_: None)
    try:
        reader = Reader(Files("", Strings([str(next(photos.rglob("*.png")))])), TRANSFORM)
        [batch] = in_batches(reader, [[0]], num_workers=0)
        assert (batch.rows, signal.getsignal(signal.SIGALRM)) == ([0], own)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_the_first_failure_stops_where_that_is_asked_for(model: LoadedModel, photos: Path, tmp_path: Path) -> None:
    (photos / "zzz.jpg").write_bytes(b"no")
    with pytest.raises(UserError, match=r"cannot encode zzz.jpg .*on_error='skip' goes on"):
        anchorprune.encode(request(photos, on_error="fail"), tmp_path / "out", model=model)


def test_more_failures_than_allowed_stop(model: LoadedModel, photos: Path, tmp_path: Path) -> None:
    for name in "abc":
        (photos / f"{name}.jpg").write_bytes(b"no")
    anchorprune.encode(request(photos, max_failures=0.25), tmp_path / "three of thirteen", model=model)
    with pytest.raises(UserError, match=r"max_failures=0.2: 3 of 13 images could not be encoded, the latest c.jpg"):
        anchorprune.encode(request(photos, max_failures=0.2), tmp_path / "out", model=model)


def test_an_embedding_that_is_not_finite_is_a_failure(model: LoadedModel, photos: Path, tmp_path: Path) -> None:
    class Once(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own, self.calls = make_clip(), 0

        def encode_image(self, images: torch.Tensor) -> torch.Tensor:
            features = self.own.encode_image(images)
            self.calls += 1
            if self.calls == 2:
                features[1] = torch.inf
            return features

    out = tmp_path / "out"
    broken = LoadedModel(Once(), TRANSFORM)
    found = anchorprune.encode(request(photos, normalize=False), out, model=broken)
    ids = [path.relative_to(photos).as_posix() for path in sorted(photos.rglob("*.png"))]
    assert table(out)["id"].to_pylist() == ids[:1] + ids[2:]
    (failure,) = pq.read_table(out / "failures.parquet").to_pylist()
    assert (failure["id"], failure["row"], failure["reason"]) == (ids[1], 1, "its embedding is not finite")
    assert found["gmacs"] is None or found["gmacs"] > 0


def test_a_limit_takes_the_same_images_whatever_else_is_done(model: LoadedModel, photos: Path, tmp_path: Path) -> None:
    anchorprune.encode(request(photos, limit=4), tmp_path / "some", model=model)
    anchorprune.encode(request(photos), tmp_path / "all", model=model)
    some, every = ({row["id"]: row["embedding"] for row in table(tmp_path / n).to_pylist()} for n in ("some", "all"))
    assert len(some) == 4
    assert some.keys() < every.keys()


def test_what_is_written_says_where_it_comes_from(model: LoadedModel, photos: Path, tmp_path: Path) -> None:
    asked = request(photos, pruning=Coarse(keep_patches=(4,)), keep_columns=("txt",))
    anchorprune.encode(asked, tmp_path / "out", model=model)
    found = json.loads((tmp_path / "out" / "encode.json").read_text())
    assert EncodeRequest.from_dict(found["request"]) == asked
    assert found["identity"]["strategy"] == "coarse"
    assert len(found["identity"]["weights"]) == 64
    assert "CenterCrop" in found["identity"]["preprocessing"]
    assert found["environment"]["torch"] == torch.__version__
    assert found["seconds"].keys() == {"reading", "decoding", "encoding", "encoding_texts", "writing", "total"}
    assert 0 < found["seconds"]["encoding"] < found["seconds"]["total"]


def test_the_check_says_how_near_the_embeddings_are(model: LoadedModel, photos: Path, tmp_path: Path) -> None:
    asked = request(photos, pruning=Coarse(keep_patches=(4,)), dtype="fp32")
    found = anchorprune.encode(asked, tmp_path / "out", check=10, model=model)["check"]
    paths = sorted(photos.rglob("*.png"))
    theirs, ours = expected(model, paths), embeddings(tmp_path / "out")
    cosines = (theirs * ours).sum(dim=1)
    assert found["cosine_mean"] == pytest.approx(float(cosines.mean()), abs=1e-5)
    nearest = (ours @ theirs.T).argmax(dim=1) == torch.arange(10)
    assert found["recall@1"] == pytest.approx(float(nearest.float().mean()))
    assert (found["images"], found["read"]) == (10, 10)


def test_recall_is_that_of_a_naive_search() -> None:
    generator = np.random.default_rng(0)
    theirs = generator.normal(size=(50, 8))
    ours = theirs + generator.normal(size=(50, 8))
    found = fidelity(ours, theirs)
    unit = theirs / np.linalg.norm(theirs, axis=1, keepdims=True)
    hits = [sorted(range(50), key=lambda j: -float(ours[i] @ unit[j])).index(i) for i in range(50)]
    assert 0 < found["recall@1"] < 1
    assert found["recall@1"] == pytest.approx(np.mean([hit < 1 for hit in hits]))
    assert found["recall@5"] == pytest.approx(np.mean([hit < 5 for hit in hits]))


def test_nothing_to_check_is_refused(model: LoadedModel, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="check=5: nothing is pruned here"):
        anchorprune.encode(request(photos), tmp_path / "out", check=5, model=model)
    assert not (tmp_path / "out").exists()


def test_fast_decoding_reads_jpegs_smaller_and_encodes_nearly_the_same(model: LoadedModel, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    y, x = np.mgrid[0:400, 0:500] / 80.0
    for i in range(4):
        waves = np.stack([np.sin(x * (i + 1) + c) * np.cos(y * (c + 1)) for c in range(3)], axis=-1)
        Image.fromarray((127 + 120 * waves).astype(np.uint8)).save(folder / f"{i}.jpg", quality=95)
    for pruning in (None, Coarse(keep_patches=(4,))):
        name = pruning.name if pruning else "unpruned"
        found = {}
        for fast in (False, True):
            out = tmp_path / f"{name} {fast}"
            asked = request(folder, pruning=pruning, fast_decode=fast, dtype="fp32")
            anchorprune.encode(asked, out, model=model)
            found[fast] = embeddings(out)
        assert not torch.equal(found[True], found[False])
        assert (found[True] * found[False]).sum(dim=1).min() > 0.99


def test_only_a_jpeg_much_larger_than_needed_comes_smaller() -> None:
    from anchorprune.datasets.images import decode

    file = io.BytesIO()
    picture(0, 400).save(file, "JPEG")
    assert decode(file.getvalue(), "a").size == (400, 400)
    assert decode(file.getvalue(), "a", (64, 64)).size == (100, 100)
    assert decode(file.getvalue(), "a", (101, 101)).size == (200, 200)
    assert decode(file.getvalue(), "a", (201, 201)).size == (400, 400)


# --- the command line


def test_the_command_line_writes_what_the_call_does(world: Any, here: Path) -> None:
    words = ["encode", "--input", world.folder / "things", *world.model, "--num_workers", 0, "--device", "cpu"]
    words += ["--no_amp", "--rows_per_shard", 10, "--log_every", 0]
    outcome = command(*words, "--strategy", "coarse", "--keep_patches", 4, "--check", 24, "--out", "out")
    assert outcome.code == 0, outcome.err
    assert outcome.out[0].startswith("check of 24 images, against the unpruned model: cosine 0.")
    assert outcome.out[1] == "24 embeddings of 24 images: out"
    asked = EncodeRequest.from_dict(json.loads(Path("out/encode.json").read_text())["request"])
    anchorprune.encode(asked, "again")
    assert table(Path("again"))["id"].equals(table(Path("out"))["id"])
    torch.testing.assert_close(embeddings(Path("again")), embeddings(Path("out")), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--shard", "4/4"], "--shard 4/4: give I/N with I from 0 to N - 1"),
        (["--keep_patches", "4"], "--keep_patches 4: name the --strategy, too"),
        (["--target_gmacs", "1"], "--target_gmacs 1.0: name the --strategy, too"),
        (["--log_every", "-1"], "--log_every -1.0: give seconds, or 0 for no lines"),
        (["--on_error", "fail", "--max_failures", "-1"], "--max_failures -1.0: is a share of the images, 0 … 1"),
        (["--input", "mixed"], "--input mixed: holds image and tars: say which with --input_format"),
        (["--strategy", "coarse", "--keep_patches", "4", "--prune_layers", "9"], "--prune_layers 9"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_flag(world: Any, here: Path, words: list[str], said: str) -> None:
    make_tars(here / "mixed")
    picture(1).save(here / "mixed" / "1.png")
    outcome = command("encode", "--input", world.folder / "things", *world.model, "--out", "out", *words)
    assert outcome.code == 2
    assert said in outcome.err[-1]
    assert not Path("out").exists()
