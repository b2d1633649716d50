"""Files that are damaged, of another kind or another shape: one line that names the file, and nothing written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.material import (
    PRUNED,
    TINY,
    World,
    checkpoint,
    command,
    make_folder,
    make_wds,
    read,
    register,
)
from test_cli_errors import refused

pytest.importorskip("clip_benchmark")


pytestmark = pytest.mark.usefixtures("here")


def refused_eval(world: World, *flags: object) -> str:
    """The line of an evaluation that would also write a classifier and attention."""
    writing = ["--output", "r.json", "--save_clf", "clf.pt", "--extract_attention", "--attention_output", "a.pt"]
    return refused("eval", *world.model, *world.three, "--num_workers", 0, *PRUNED, *writing, *flags)


# --- checkpoints


def half(path: Path) -> bytes:
    content = path.read_bytes()
    return content[: len(content) // 2]


def test_a_missing_checkpoint(world: World) -> None:
    line = refused_eval(world, "--pretrained", "no/such.pt")
    assert f"--pretrained no/such.pt: neither a file nor a tag of {TINY}" in line
    assert "give a checkpoint file" in line


def test_a_folder_for_a_checkpoint(world: World) -> None:
    Path("weights").mkdir()
    assert "--pretrained weights: is a folder; give the checkpoint file in it" in refused_eval(
        world, "--pretrained", "weights"
    )


@pytest.mark.parametrize("name", ["cut.pt", "cut.safetensors", "text.pt", "text.safetensors", "empty.pt", "png.pt"])
def test_a_damaged_checkpoint_or_none_at_all(world: World, name: str) -> None:
    from safetensors.torch import save_file

    save_file(torch.load(world.weights, weights_only=True), "whole.safetensors")
    content = {
        "cut.pt": half(world.weights),
        "cut.safetensors": half(Path("whole.safetensors")),
        "text.pt": b"these are no weights\n",
        "text.safetensors": b"these are no weights\n",
        "empty.pt": b"",
        "png.pt": next(Path(world.things[1].removeprefix("folder:")).rglob("*.png")).read_bytes(),
    }
    Path(name).write_bytes(content[name])
    assert f"--pretrained {name}: is damaged or no checkpoint (" in refused_eval(world, "--pretrained", name)


def test_safetensors_are_read(world: World) -> None:
    from safetensors.torch import save_file

    save_file(torch.load(world.weights, weights_only=True), "whole.safetensors")
    flags = ["--model", TINY, *world.three, "--num_workers", 0, "--output", "r.json", "--pretrained"]
    metrics = []
    for weights in (world.weights, "whole.safetensors"):
        assert command("eval", *flags, weights).code == 0
        metrics.append(read("r.json")["metrics"])
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), {}, {"state_dict": 5}, {1: torch.zeros(1)}])
def test_a_file_that_holds_something_else(world: World, content: object) -> None:
    torch.save(content, "other.pt")
    line = refused_eval(world, "--pretrained", "other.pt")
    assert "--pretrained other.pt: " in line


@pytest.mark.parametrize("vision", [{"layers": 2}, {"width": 64}, {"patch_size": 16}, {"image_size": 64}])
def test_a_checkpoint_of_another_architecture(world: World, vision: dict[str, int]) -> None:
    name = "cli-" + "-".join(f"{key}-{value}" for key, value in vision.items())
    weights = checkpoint(world.folder / f"{name}.pt", register(world.folder, name, **vision))
    if "image_size" in vision:  # open_clip resizes position embeddings
        assert command("eval", "--model", TINY, "--pretrained", weights, *world.three, "--output", "r.json").code == 0
        return
    line = refused_eval(world, "--pretrained", weights)
    assert f"--pretrained {weights}: holds weights of another architecture than {TINY} (" in line
    assert "give the --model that it was saved from" in line


# --- classifiers


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "--load_clfs clf.in: no such file"),
        (b"text", "--load_clfs clf.in: is no saved tensor ("),
        ({"a": torch.zeros(16, 3)}, "--load_clfs clf.in: must hold one tensor [features, classes]"),
        (torch.zeros(16), "--load_clfs clf.in: must hold one tensor [features, classes]"),
        (torch.ones(16, 5), "--load_clfs clf.in: holds 5 classes ([16, 5]), the data set has 3"),
        (
            torch.ones(8, 3),
            "the classifier is for features of width 8, the model's have 16: give classifiers (load_clfs)",
        ),
    ],
)
def test_a_classifier_that_does_not_fit(world: World, content: object, said: str) -> None:
    if isinstance(content, bytes):
        Path("clf.in").write_bytes(content)
    elif content is not None:
        torch.save(content, "clf.in")
    assert said in refused_eval(world, "--load_clfs", "clf.in")


def test_classifiers_of_different_shapes(world: World) -> None:
    torch.save(torch.ones(16, 3), "a.in")
    torch.save(torch.ones(8, 3), "b.in")
    assert "--load_clfs b.in: is [8, 3], a.in is [16, 3]" in refused_eval(world, "--load_clfs", "a.in", "b.in")


# --- images and tars


@pytest.mark.parametrize("spoil", [lambda whole: b"no image", lambda whole: whole[: len(whole) // 2]])
@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_named(world: World, spoil, workers: int) -> None:
    folder = make_folder(Path("spoiled"), classes=2)
    image = folder / "thing_1" / "2.png"
    image.write_bytes(spoil(image.read_bytes()))
    line = refused_eval(world, "--dataset", f"folder:{folder}", "--num_workers", workers, "--batch_size", 3)
    assert "cannot read image thing_1/2.png (spoiled/thing_1/2.png: " in line
    assert line.endswith("; --skip_bad_images goes on")


def test_data_without_one_readable_image(world: World) -> None:
    folder = make_folder(Path("spoiled"), classes=2, per_class=1)
    for image in folder.rglob("*.png"):
        image.write_bytes(b"")
    line = refused_eval(world, "--dataset", f"folder:{folder}", "--skip_bad_images")
    assert f"--dataset folder:{folder}: no image of it can be read" in line


def test_an_image_in_a_tar_is_named(world: World) -> None:
    tar = make_wds(Path("wds-spoiled"), [0, 1, 2]) / "test" / "0.tar"
    tar.write_bytes(tar.read_bytes().replace(b"\x89PNG", b"\x89GNP", 2))
    line = refused_eval(world, "--dataset", "wds/spoiled", "--dataset_root", "wds-{dataset}")
    assert "--dataset wds/spoiled: cannot read image 0.tar/s0 (" in line


@pytest.mark.parametrize("size", [0.5, 0.93])
def test_a_truncated_tar_is_named(world: World, size: float) -> None:
    tar = make_wds(Path("wds-cut"), [0, 1, 2]) / "test" / "0.tar"
    content = tar.read_bytes()
    end = content.rstrip(b"\0")
    tar.write_bytes(end[: int(size * len(end))])
    line = refused_eval(world, "--dataset", "wds/cut", "--dataset_root", "wds-{dataset}")
    assert "wds-cut/test/0.tar: is not a readable, uncompressed tar (" in line


def test_a_tar_that_is_none(world: World) -> None:
    tar = make_wds(Path("wds-text"), [0, 1, 2]) / "test" / "0.tar"
    tar.write_text("no tar\n" * 500)
    line = refused_eval(world, "--dataset", "wds/text", "--dataset_root", "wds-{dataset}")
    assert "wds-text/test/0.tar: is not a readable, uncompressed tar (" in line


# --- lists, names and results


def test_list_files_that_are_none(world: World) -> None:
    Path("empty.txt").write_text("\n")
    Path("bytes.txt").write_bytes(b"\xff\xfe\x00")
    Path("odd.txt").write_text("ViT-B-32;openai\n")
    assert "--dataset empty.txt: the file is empty" in refused_eval(world, "--dataset", "empty.txt")
    assert "--dataset bytes.txt: cannot be read as a list" in refused_eval(world, "--dataset", "bytes.txt")
    said = "--pretrained_model empty.txt: the file is empty; write one 'model,pretrained' pair a line"
    assert said in refused_eval(world, "--pretrained_model", "empty.txt")
    said = "--pretrained_model bytes.txt: cannot be read as a list of models"
    assert said in refused_eval(world, "--pretrained_model", "bytes.txt")
    said = "--pretrained_model odd.txt, line ViT-B-32;openai: is no 'model,pretrained' pair"
    assert said in refused_eval(world, "--pretrained_model", "odd.txt")


@pytest.mark.parametrize("flag", ["--custom_classname_file", "--custom_template_file"])
@pytest.mark.parametrize(
    ("content", "said"),
    [("{", "cannot be read as JSON ("), ("[]", "must hold one JSON object"), ('{"thre": ["a {c}"]}', "add the key")],
)
def test_custom_files_that_are_none(world: World, flag: str, content: str, said: str) -> None:
    Path("own.json").write_text(content)
    line = refused_eval(world, flag, "own.json")
    assert f"{flag} own.json: " in line
    assert said in line


def test_results_that_are_none(world: World) -> None:
    Path("text.json").write_text("text")
    Path("list.json").write_text("[]")
    Path("bare.json").write_text(json.dumps({"metrics": {}}))
    for name, said in (("text", "not JSON"), ("list", "not the result"), ("bare", "it has no dataset, model")):
        assert said in refused("build", f"{name}.json", "--output", "all.csv")
        assert said in refused("compare", f"{name}.json", f"{name}.json")
    assert "--output no/all.csv: there is no folder" in refused("build", "text.json", "--output", "no/all.csv")
