"""What clip-benchmark's own functions and ours are both run on: small models and data, made the same each time.

Imports nothing of anchorprune: `tools/upstream_goldens/make.py` runs it in clip-benchmark's own environment.
All numbers are drawn by NumPy, whose generators give the same on every machine and version.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]
GOLDENS = ROOT / "tests" / "goldens"
PHOTOS = ROOT / "src" / "anchorprune" / "bundled" / "photos"

TINY, COCA, DEMO = "upstream-tiny", "coca-upstream-tiny", "anchorprune-demo"
DEMO_WEIGHTS = ROOT / "src" / "anchorprune" / "bundled" / "model.safetensors"

_VISION = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 4, "head_width": 8}
_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    TINY: {"embed_dim": 16, "vision_cfg": _VISION, "text_cfg": _TEXT},
    COCA: {
        "embed_dim": 16,
        "vision_cfg": _VISION | {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        "text_cfg": _TEXT | {"context_length": 76, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": _TEXT | {"context_length": 76, "width": 16, "attn_pooler_heads": 2},
        "custom_text": True,
    },
}
CLASSES = ["ant", "bear", "crow", "deer", "eel", "fox", "goat"]
TEMPLATES = ["a photo of a {c}.", "the {c}.", "{c}"]

# The linear probe's settings, by the flags' names; each case is one golden.
PROBES: dict[str, dict[str, Any]] = {
    "full": {},
    "few shots": {"fewshot_k": 5, "fewshot_epochs": 20, "seed": 1},
    "validation split": {"val_split": "val"},
    # So many steps that the weights overflow where the weight decay is large: those candidates just lose.
    "validation split, long": {"val_split": "val", "fewshot_epochs": 80, "seed": 2},
    "validation share": {"val_proportion": 0.3, "seed": 3},
    "few shots, validation split": {"fewshot_k": 4, "val_split": "val", "seed": 1},
    "not normalised": {"normalize": False, "fewshot_lr": 0.01, "batch_size": 20, "seed": 1},
}
PROBE_DEFAULTS: dict[str, Any] = {
    "fewshot_k": -1,
    "fewshot_epochs": 10,
    "fewshot_lr": 0.1,
    "normalize": True,
    "batch_size": 32,
    "seed": 0,
    "val_split": None,
    "val_proportion": None,
}
RECALL_K = [1, 3, 5, 10]


@dataclass(frozen=True)
class Sample:
    """One or several images, as the bytes of files, and what is true of them: a class, several, or captions."""

    images: tuple[bytes, ...]
    target: Any
    extension: str = "png"


# --- models


def register(folder: Path, name: str) -> None:
    """Make open_clip know the architecture, in this process."""
    if name == DEMO:
        open_clip.add_model_config(DEMO_WEIGHTS.with_name(f"{DEMO}.json"))
        return
    file = folder / f"{name}.json"
    file.write_text(json.dumps(CONFIGS[name]))
    open_clip.add_model_config(file)


def weights(folder: Path, name: str) -> Path:
    """A checkpoint of random weights, large enough that attention is not flat and images differ."""
    if name == DEMO:
        return DEMO_WEIGHTS
    rng = np.random.default_rng(7)
    state = open_clip.create_model(name).state_dict()
    for key in sorted(state):
        drawn = state[key].dim() > 1 or key.endswith(("class_embedding", "cls_emb"))
        if drawn:
            state[key] = torch.from_numpy(0.2 * rng.standard_normal(state[key].shape, dtype=np.float32))
        elif key.endswith("bias"):
            state[key] = torch.zeros_like(state[key])
    path = folder / f"{name}.pt"
    torch.save(state, path)
    return path


# --- generated data


def picture(label: int, number: int, noise: float = 45.0) -> bytes:
    """A PNG of 32 x 32 pixels: coarse colours that all of a class share, and noise of its own."""
    shared = np.random.default_rng(label).integers(0, 256, (4, 4, 3)).repeat(8, 0).repeat(8, 1)
    own = np.random.default_rng(1000 + number).normal(0, noise, (32, 32, 3))
    return _png(np.clip(shared + own, 0, 255).astype(np.uint8))


def classification() -> dict[str, list[Sample]]:
    """Seven classes of 21 or 22 images in `train`; no split is in the order of its classes."""
    numbers = {"train": range(150), "val": range(1000, 1060), "test": range(2000, 2140)}
    label = {n: (n * n + n // 7) % len(CLASSES) for of_split in numbers.values() for n in of_split}
    return {split: [Sample((picture(label[n], n),), label[n]) for n in of_split] for split, of_split in numbers.items()}


def multilabel() -> list[Sample]:
    """Images of two classes at once, each half of them; the last class never occurs."""
    samples = []
    for n in range(40):
        a, b = n % 6, (n // 2) % 6
        left, right = (np.asarray(Image.open(io.BytesIO(picture(label, n)))) for label in (a, b))
        target = [int(c in (a, b)) for c in range(len(CLASSES))]
        samples.append(Sample((_png(np.hstack([left[:, :16], right[:, 16:]])),), target))
    return samples


def retrieval() -> list[Sample]:
    """Images with one to four captions each, all captions different."""
    kinds, places = ["red", "tall", "old", "quiet", "wet"], ["at sea", "in a field", "by a wall", "under trees"]
    samples = []
    for n in range(36):
        captions = [
            f"a {kinds[(n + i) % 5]} {CLASSES[n % 7]} {places[(n // 5 + i) % 4]}, seen {n + i} times"
            for i in range(1 + n % 4)
        ]
        samples.append(Sample((picture(n, n),), captions))
    return samples


def selection(images: int) -> list[Sample]:
    """As Winoground (two images, two captions) or SugarCrepe (one image; the right caption, then a wrong one)."""
    return [
        Sample(
            tuple(picture(3 * n + i, n) for i in range(images)),
            [f"a {CLASSES[n % 7]} beside a {CLASSES[(n + 2) % 7]}", f"a {CLASSES[(n + 2) % 7]} above {n} of a kind"],
        )
        for n in range(40)
    ]


def captions() -> tuple[list[list[str]], list[str]]:
    """References, several for each image, and one caption each to be judged: right, near, far, one-word."""
    references = [
        ["A man rides a horse on the beach.", "A person on horseback near the sea.", "Man riding a brown horse"],
        ["Two dogs play in the snow, happily!", "A pair of dogs running through deep snow"],
        ["A red bus drives down a busy city street.", "Red double-decker bus in traffic.", "A bus on a street"],
        ["A bowl of soup with bread on a table", "Soup and bread are on the wooden table.", "A bowl of soup."],
        ["Children flying kites in a park", "Kids fly colourful kites on a windy day."],
    ]
    judged = [
        "a man riding a horse on the beach",
        "two dogs are playing in snow",
        "a red car parked on the street",
        "a plate of fruit",
        "kites",
    ]
    return references, judged


# --- the bundled photographs


def photographs() -> dict[str, list[Sample]]:
    """Of the first twenty classes, five photographs to train on and five to test."""
    splits: dict[str, list[Sample]] = {"train": [], "test": []}
    seen: dict[int, int] = {}
    for jpeg, label in _bundled():
        seen[label] = seen.get(label, 0) + 1
        if label < 20:
            splits["train" if seen[label] <= 5 else "test"].append(Sample((jpeg,), label, "jpg"))
    return splits


def photographs_with_captions() -> list[Sample]:
    """One photograph of each class, with three captions: in the words that the demonstration model knows."""
    names, prompts = class_names(), photograph_prompts()
    first: dict[int, bytes] = {}
    for jpeg, label in _bundled():
        first.setdefault(label, jpeg)
    return [Sample((jpeg,), [p.format(c=names[label]) for p in prompts], "jpg") for label, jpeg in first.items()]


def photographs_to_tell_apart(images: int) -> list[Sample]:
    """Photographs of one class or two, and ten captions: first those of the images, then of other classes."""
    of = photographs_with_captions()
    samples = []
    for i in range(len(of)):
        near = [of[(i + step) % len(of)] for step in range(10)]
        samples.append(Sample(tuple(s.images[0] for s in near[:images]), [s.target[0] for s in near], "jpg"))
    return samples


def class_names() -> list[str]:
    return _lines("classnames.txt")


def photograph_prompts() -> list[str]:
    return _lines("zeroshot_classification_templates.txt")


def _lines(name: str) -> list[str]:
    return (PHOTOS / name).read_text(encoding="utf-8").splitlines()


def _bundled() -> list[tuple[bytes, int]]:
    with tarfile.open(PHOTOS / "test" / "0.tar") as tar:
        content = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}  # type: ignore[union-attr]
    return [(content[n], int(content[n[:-3] + "cls"])) for n in sorted(content) if n.endswith("jpg")]


# --- files


def write_wds(
    folder: Path,
    splits: Mapping[str, Sequence[Sample]],
    kind: str = "classification",
    classes: Sequence[str] = CLASSES,
    templates: Sequence[str] = TEMPLATES,
) -> Path:
    """The webdataset layout; `kind` is what `dataset_type.txt` says."""
    label = {"classification": "cls", "multilabel": "npy", "retrieval": "txt"}[kind]
    for split, samples in splits.items():
        (folder / split).mkdir(parents=True)
        (folder / split / "nshards.txt").write_text("1")
        with tarfile.open(folder / split / "0.tar", "w") as tar:
            for i, sample in enumerate(samples):
                for extension, data in ((sample.extension, sample.images[0]), (label, _label(sample.target))):
                    info = tarfile.TarInfo(f"s{i:04}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    (folder / "dataset_type.txt").write_text(kind)
    if kind != "retrieval":
        (folder / "classnames.txt").write_text("\n".join(classes) + "\n")
        (folder / "zeroshot_classification_templates.txt").write_text("\n".join(templates) + "\n")
    return folder


def write_sugar_crepe(folder: Path, name: str, samples: Sequence[Sample]) -> Path:
    """SugarCrepe's files as clip-benchmark looks for them, of samples with one image and two captions each."""
    (folder / "val2017").mkdir(parents=True)
    annotations = {}
    for i, sample in enumerate(samples):
        file = f"{i:012}.{sample.extension}"
        (folder / "val2017" / file).write_bytes(sample.images[0])
        right, wrong = sample.target
        annotations[str(i)] = {"filename": file, "caption": right, "negative_caption": wrong}
    (folder / f"{name}.json").write_text(json.dumps(annotations))
    return folder


def _label(target: Any) -> bytes:
    if isinstance(target, int):
        return str(target).encode()
    if isinstance(target[0], str):
        return "\n".join(target).encode()
    file = io.BytesIO()
    np.save(file, np.array(target))
    return file.getvalue()


def _png(pixels: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
