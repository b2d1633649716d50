"""What the tests of the command line run on: tiny models and data sets, and `anchorprune` as a person runs it."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import tarfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from anchorprune.commands import main

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]

# 17 tokens in 4 blocks; `--top_m 4 --k_anchors 3` keeps 8 of them.
TINY = "cli-tiny"
TINY_TOKENS, TINY_LAYERS, TINY_HEADS = 17, 4, 4
PRUNED = ["--enable_pruning", "--k_anchors", "3", "--top_m", "4"]


@dataclass
class Outcome:
    """How a command ended: its exit code and the lines that it printed."""

    code: int
    out: list[str]
    err: list[str]


def command(*argv: object) -> Outcome:
    """`anchorprune ARGV` in this process, with the warning filters that a process of its own would have.

    On one thread: on a busy machine two are slower.
    """
    out, err = io.StringIO(), io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        warnings.simplefilter("default")
        for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            code = main([str(arg) for arg in argv])
        except SystemExit as error:  # argparse
            code = error.code if isinstance(error.code, int) else 1
        finally:
            torch.set_num_threads(threads)
    return Outcome(code, out.getvalue().splitlines(), err.getvalue().splitlines())


def evaluated(*argv: object) -> dict[str, Any]:
    """The result of `anchorprune eval ARGV --output ONE_FILE`, which must succeed."""
    outcome = command("eval", "--num_workers", 0, *argv)
    assert outcome.code == 0, outcome.err
    return read(argv[argv.index("--output") + 1])


def read(path: Any) -> dict[str, Any]:
    return json.loads(Path(path).read_text())


def slug(dataset: str) -> str:
    """What `{dataset}` makes of a data set's name."""
    return dataset.removeprefix("wds/").replace(":", "_").replace("/", "_").replace("__", "_")


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder below, with the files' content."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


# --- models


def tiny_config(**vision: Any) -> dict[str, Any]:
    return {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 4, "head_width": 8} | vision,
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }


def register(folder: Path, name: str = TINY, **vision: Any) -> str:
    """Makes `name` a model of open_clip's in this process."""
    file = folder / f"{name}.json"
    file.write_text(json.dumps(tiny_config(**vision)))
    open_clip.add_model_config(file)
    return name


def checkpoint(path: Path, name: str = TINY, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """A file of seeded weights, large enough that attention is not flat and the images differ."""
    torch.manual_seed(seed)
    state = open_clip.create_model(name).state_dict()
    if name.startswith("cli-"):
        state = {key: torch.randn_like(w) * 0.2 if w.dim() > 1 else w for key, w in state.items()}
    torch.save({key: w.to(dtype) for key, w in state.items()}, path)
    return path


# --- data


def picture(seed: int, size: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def make_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch, per_class: int = 2) -> Path:
    """A tiny CIFAR-10 in torchvision's own format; its checksums, the real files', are not looked at."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    labels = [i % 10 for i in range(10 * per_class)]
    pixels = np.random.default_rng(0).integers(0, 256, (len(labels), 3072), dtype=np.uint8)
    (folder / "test_batch").write_bytes(pickle.dumps({"data": pixels, "labels": labels}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": CIFAR10}))
    monkeypatch.setattr("torchvision.datasets.CIFAR10._check_integrity", lambda _: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    return root


def make_folder(path: Path, classes: int = 6, per_class: int = 4) -> Path:
    for label in range(classes):
        (path / f"thing_{label}").mkdir(parents=True)
        for i in range(per_class):
            picture(100 * label + i).save(path / f"thing_{label}" / f"{i}.png")
    return path


def make_wds(path: Path, labels: list[Any], classes: int = 3) -> Path:
    """A webdataset; labels are class indices, or lists of 0 and 1 for a multi-label one."""
    multilabel = isinstance(labels[0], list)
    (path / "test").mkdir(parents=True)
    with tarfile.open(path / "test" / "0.tar", "w") as tar:
        for i, label in enumerate(labels):
            image, target = io.BytesIO(), io.BytesIO()
            picture(i).save(image, "PNG")
            if multilabel:
                np.save(target, np.array(label))
            else:
                target.write(str(label).encode())
            for extension, data in (("png", image), ("npy" if multilabel else "cls", target)):
                info = tarfile.TarInfo(f"s{i}.{extension}")
                info.size = data.tell()
                data.seek(0)
                tar.addfile(info, data)
    (path / "test" / "nshards.txt").write_text("1")
    (path / "classnames.txt").write_text("".join(f"thing {c}\n" for c in range(classes)))
    (path / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\nthe {c}.\n")
    if multilabel:
        (path / "dataset_type.txt").write_text("multilabel")
    return path


def make_captions(path: Path, captions: list[list[str]]) -> Path:
    """A webdataset of images with captions, several each."""
    (path / "test").mkdir(parents=True)
    with tarfile.open(path / "test" / "0.tar", "w") as tar:
        for i, own in enumerate(captions):
            image = io.BytesIO()
            picture(i).save(image, "PNG")
            for extension, data in (("png", image.getvalue()), ("txt", "\n".join(own).encode())):
                info = tarfile.TarInfo(f"s{i}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    (path / "test" / "nshards.txt").write_text("1")
    (path / "dataset_type.txt").write_text("retrieval\n")
    return path


# Of 7 images, one to three each, in words that set them apart.
CAPTIONS = [
    [f"{count} {thing} {place}" for place in ("at sea", "on a hill", "in the rain")[: 1 + i % 3]]
    for i, (count, thing) in enumerate(
        zip(["one", "two", "three", "four", "five", "six", "ten"], CIFAR10, strict=False)
    )
]


@dataclass
class World:
    """A model and data sets, as flags of `eval`."""

    folder: Path
    weights: Path
    model: list[str]
    cifar10: list[str]  # 20 images, 10 classes
    things: list[str]  # 24 images, 6 classes
    three: list[str]  # 7 images, 3 classes
    labels: list[str]  # 6 images, 3 labels, several an image
    captioned: list[str]  # 7 images with `CAPTIONS`


def make_world(folder: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    register(folder)
    weights = checkpoint(folder / "tiny.pt")
    root = make_cifar10(folder / "root", monkeypatch)
    make_wds(folder / "wds-three", [0, 1, 2, 0, 1, 2, 0])
    make_wds(folder / "wds-labels", [[1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 1], [1, 0, 0], [0, 1, 1]])
    make_captions(folder / "wds-captioned", CAPTIONS)
    wds = ["--dataset_root", str(folder / "wds-{dataset}")]
    return World(
        folder=folder,
        weights=weights,
        model=["--model", TINY, "--pretrained", str(weights)],
        cifar10=["--dataset", "cifar10", "--dataset_root", str(root)],
        things=["--dataset", f"folder:{make_folder(folder / 'things')}"],
        three=["--dataset", "wds/three", *wds],
        labels=["--dataset", "wds/labels", *wds],
        captioned=["--dataset", "wds/captioned", *wds],
    )
