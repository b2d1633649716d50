"""Each place that writes, on a disk that is really full: a line and exit code 2, what was found told, nothing half."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.disk import room_for
from support.material import World, command, make_folder, picture, tree

from anchorprune.errors import Unwritten
from anchorprune.evaluation.artifacts import save_tensors
from anchorprune.files import writing

pytestmark = pytest.mark.usefixtures("here")

RUN = ["--no_amp", "--num_workers", 0, "--quiet"]


def on_a_full_disk(size: int, *argv: object) -> tuple[str, list[str], dict[str, bytes | None]]:
    """The line that it ends with, what it prints, and the files that it leaves beside what was there."""
    before = tree(Path())
    with room_for(size):
        outcome = command(*argv)
    assert outcome.code == 2
    [line] = [line for line in outcome.err if not line.startswith("anchorprune: warning")]
    after = tree(Path())
    assert {name: after.get(name) for name in before} == before
    left = {name: content for name, content in after.items() if name not in before and content is not None}
    assert not [name for name in left if ".anchorprune-" in name]
    return line, outcome.out, left


def test_eval_tells_its_metrics(world: World) -> None:
    everything = ["--save_outcomes", "--save_clf", "clf.pt", "--extract_attention", "--attention_output", "a.pt"]
    Path("r.json").write_text('{"metrics": {}, "task": "", "model": ""}')
    argv = ["eval", *world.model, *world.three, *RUN, "--output", "r.json", *everything]
    line, out, left = on_a_full_disk(0, *argv)
    for name in ("r.json", "clf.pt", "a.pt"):
        assert f"{name}: cannot be written (File too large)" in line
    assert "mean_per_class_recall" in out[-1]
    assert not left
    line, out, left = on_a_full_disk(20_000, *argv[:-6], "--save_clf", "clf.pt", *argv[-3:], "--output", "other.json")
    assert line.startswith("anchorprune: error: a.pt: cannot be written (File too large)")
    assert "mean_per_class_recall" in out[-1]
    assert {"other.json", "clf.pt"} <= left.keys()


def test_encode_names_the_file_of_embeddings(world: World) -> None:
    pytest.importorskip("pyarrow")
    photos = make_folder(Path("photos"), classes=2, per_class=30)
    argv = ["encode", *world.model, *RUN, "--dtype", "fp32", "--input", photos, "--out"]
    for form, file in (("parquet", "embeddings/00000.parquet"), ("npy", "img_emb/img_emb_0.npy")):
        line, _, left = on_a_full_disk(3400, *argv, form, "--format", form)
        assert f"{form}/{file}: cannot be written (" in line
        assert "File too large" in line
        assert not [name for name in left if "emb" in name or name.startswith(f"{form}/shards/")]
        assert command(*argv, form, "--format", form).code == 0


def test_export_wds_leaves_no_tar(world: World) -> None:
    argv = ["export-wds", *world.things, "--output", "out", "--num_workers", 0, "--quiet"]
    line, _, left = on_a_full_disk(20_000, *argv)
    assert line == "anchorprune: error: out/test/0.tar: cannot be written (File too large)"
    assert not [name for name in left if name.endswith(("tar", "nshards.txt"))]
    assert command(*argv).code == 0


def test_calibrate_tells_its_cosines(world: World) -> None:
    Path("flat").mkdir()
    for i in range(60):
        picture(i).save(f"flat/{i}.png")
    argv = ["calibrate", *world.model, "--dataset", "folder:flat", *RUN, "--strategies", "tome --r 2", "--out", "c"]
    line, out, left = on_a_full_disk(0, *argv)
    assert line == "anchorprune: error: c: cannot be written (File too large); what was found is printed above"
    assert "Cosines" in out[-1]
    assert not left


def test_features_that_cannot_be_kept_are_a_warning_in_plain_words(world: World) -> None:
    argv = ["eval", *world.model, *world.things, *RUN, "--task", "linear_probe", "--fewshot_epochs", 1]
    with room_for(3000):
        outcome = command(*argv, "--train_split", "test", "--feature_root", "kept", "--output", "r.json")
    assert outcome.code == 0, outcome.err
    assert "anchorprune: warning: features are not kept in kept (File too large)" in outcome.err


def test_torch_does_not_end_the_process_where_an_archive_cannot_be_written() -> None:
    Path("a.pt").write_bytes(b"old")
    program = torch.export.export(torch.nn.Linear(30, 30), (torch.zeros(2, 30),))
    with room_for(1000):
        with pytest.raises(Unwritten, match=r"a\.pt: cannot be written \(File too large\)"):
            save_tensors({"x": torch.zeros(10_000)}, "a.pt")
        with pytest.raises(Unwritten, match=r"a\.pt2: cannot be written \(File too large\)"), writing("a.pt2") as file:
            torch.export.save(program, file)
    assert tree(Path()) == {"a.pt": b"old"}
    save_tensors({"x": torch.zeros(10)}, "a.pt")
    assert torch.load("a.pt", weights_only=True)["x"].shape == (10,)
