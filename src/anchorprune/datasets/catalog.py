"""All data sets by name: their task, their size where it is stated, and where they come from. Imports no torch."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

from anchorprune.datasets import names, sources

_UNKNOWN = "–"
_TORCHVISION = {
    "cifar10": "CIFAR10", "cifar100": "CIFAR100", "imagenet1k": "ImageNet", "imagenet-w": "ImageNet",
    "imagenet1k-unverified": "ImageFolder", "imagenet_sketch": "ImageFolder", "imagenet-a": "ImageFolder",
    "imagenet-r": "ImageFolder", "imagenet-o": "ImageFolder", "fer2013": "ImageFolder",
    "mscoco_captions": "CocoCaptions",
    "food101": "Food101", "sun397": "SUN397", "cars": "StanfordCars", "fgvc_aircraft": "FGVCAircraft", "dtd": "DTD",
    "pets": "OxfordIIITPet", "flowers": "Flowers102", "mnist": "MNIST", "stl10": "STL10", "eurosat": "EuroSAT",
    "gtsrb": "GTSRB", "country211": "Country211", "pcam": "PCAM", "renderedsst2": "RenderedSST2",
}  # fmt: skip

# What the documentation of torchvision's class of that name states, by split; "all" where there is but one.
_STATED = {
    "cars": {"train": 8144, "test": 8041},
    "country211": {"train": 150 * 211, "valid": 50 * 211, "test": 100 * 211},
    "food101": {"train": 750 * 101, "test": 250 * 101},
    "renderedsst2": {"train": 6920, "val": 872, "test": 1821},
    "sun397": {"all": 108_754},
}

# What is not one data set but a way to name one's own.
_FORMS = {
    "wds/NAME": ("what its dataset_type.txt says", "a webdataset in clip-benchmark's layout: folder, URL or hub"),
    "folder:PATH": ("zeroshot_classification", "your images, one subfolder a class"),
    "table:FILE": (
        "what its columns allow",
        "your CSV, TSV, JSON lines or Parquet of images, labels, captions",
    ),
    "tfds/NAME": ("zeroshot_classification", "tensorflow_datasets"),
}


@dataclass(frozen=True)
class Entry:
    """One line of the list.

    Attributes:
        name: what `--dataset` takes.
        task: what `--task auto` means for it.
        samples: by split, where that is known for sure; empty: nobody states it.
        origin: where it comes from.
    """

    name: str
    task: str
    samples: dict[str, int]
    origin: str


def entries() -> list[Entry]:
    """Every data set that has a name, the ways to name one's own first."""
    listed = [Entry(name, task, {}, origin) for name, (task, origin) in _FORMS.items()]
    ours = {"bundled", "folder", "table", "wds", "zoo", "streams"}
    for name, source in sources().items():
        if name not in ours:  # of another package
            lines = (source.__doc__ or "").strip().splitlines()
            listed.append(Entry(f"{name}:…", "its own", {}, lines[0] if lines else source.__module__))
    for name in names.known_names():
        if members := names.COLLECTIONS.get(name):
            listed.append(Entry(name, "those of its data sets", {}, f"a collection of {len(members)}"))
        else:
            samples = {"test": _bundled_count()} if name == "bundled" else _STATED.get(name, {})
            listed.append(Entry(name, names.default_task(name), samples, _origin(name)))
    return listed


def to_text(listed: list[Entry], width: int | None = None) -> str:
    """The list as columns; where they are wider than `width`, a line for each, and what is known of it below."""
    rows = [("data set", "task", "samples", "from")]
    rows += [(entry.name, entry.task, _samples(entry.samples), entry.origin) for entry in listed]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    if width is not None and sum(widths) + 6 + max(len(row[3]) for row in rows) > width:
        known = [(row[0], [cell for cell in row[1:] if cell != _UNKNOWN]) for row in rows[1:]]
        return "\n".join(
            textwrap.fill("; ".join([f"{name}: {cells[0]}", *cells[1:]]), width, subsequent_indent="  ")
            for name, cells in known
        )
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row[:3], widths, strict=True)), row[3]]) for row in rows
    )


def _samples(counts: dict[str, int]) -> str:
    return ", ".join(f"{split} {count:,}" for split, count in counts.items()) or _UNKNOWN


def _origin(name: str) -> str:
    if name == "bundled":
        return "comes with anchorprune"
    if name.startswith("vtab/"):
        return "clip-benchmark: task_adaptation, tensorflow_datasets"
    return f"clip-benchmark: torchvision's {_TORCHVISION[name]}" if name in _TORCHVISION else "clip-benchmark"


def _bundled_count() -> int:
    from anchorprune.datasets import DataSpec, open_dataset

    return len(open_dataset(DataSpec(name="bundled"), lambda image: image))
