"""What is fuzzed: each reader of files that others may have written, what it is given, and what it may raise."""

from __future__ import annotations

import csv
import io
import json
import tarfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from anchorprune.alignment import Alignment
from anchorprune.datasets.images import FORMATS, BadImage, decode
from anchorprune.datasets.prompts import custom_classes, custom_templates
from anchorprune.datasets.rows import open_table
from anchorprune.datasets.wds import open_wds, samples
from anchorprune.embeddings.tars import Tars
from anchorprune.errors import UserError
from anchorprune.evaluation import outcomes
from anchorprune.evaluation import result as results
from anchorprune.models.checkpoint import is_torchscript, refuse_complex, weights_of
from anchorprune.models.texts import cached
from anchorprune.pruning.export import read_about
from anchorprune.reading import array_of
from anchorprune.report.csv import build
from anchorprune.strategies import make_strategy
from anchorprune.strategies.base import Strategy
from anchorprune.strategies.calibrated import Calibration
from anchorprune.studies.compare import compare
from anchorprune.tasks.base import Outcomes
from anchorprune.tasks.zeroshot_classification import load_classifiers
from support.command_lines import command_lines, run_line
from support.edits import Bytes, damaged, damaged_safetensors, damaged_zip, odd_json, resummed, zipped
from support.material import picture
from support.mutated import originals

GOLDENS = Path(__file__).parent.parent / "goldens"


@dataclass(frozen=True)
class Fuzzed:
    """A kind of file.

    Attributes:
        read: all that is done with such a file.
        content: what it may hold.
        suffix: of its name.
        raises: how it is refused.
    """

    read: Callable[[Path], Any]
    content: Bytes
    suffix: str = ""
    raises: tuple[type[Exception], ...] = (UserError,)


def every(*reads: Callable[[Path], Any], refused: type[Exception] = UserError) -> Callable[[Path], None]:
    """All of these, also where one of them refuses the file; raises what the last of those said."""

    def read(path: Path) -> None:
        said: Exception | None = None
        for one in reads:
            try:
                one(path)
            except refused as error:
                said = error
        if said:
            raise said

    return read


# --- whole files, to be damaged

RESULTS = [json.loads(file.read_text()) for file in sorted(GOLDENS.glob("result_*.json"))]
STRATEGIES = [
    {"version": 1, **make_strategy(name, **fields).as_dict()}
    for name, fields in (("anchor", {}), ("tome", {"r": 2}), ("coarse", {"keep_patches": 9}), ("cascade", {}))
]
CLASSES = {"cifar10": ["cat", "dog"], "imagenet1k": ["a", "b"]}
TEMPLATES = {"cifar10": ["a photo of a {c}.", "the {c}"], "imagenet1k": {"cat": ["a cat"], "dog": ["a dog"]}}


def npy(array: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def saved(content: Any, **options: Any) -> bytes:
    out = io.BytesIO()
    torch.save(content, out, **options)
    return out.getvalue()


@cache
def arrays() -> list[bytes]:
    return [npy(np.arange(6.0)), npy(np.zeros((2, 3), np.uint8)), npy(np.float16(1))]


@cache
def scored() -> list[bytes]:
    seen = Outcomes(("a", "b", "c"), np.array([0, 1, 1]), {})
    classes = {"targets": np.array([0, 1, 2]), "predictions": np.array([0, 1, 1])}
    return [outcomes.as_bytes(seen, "0123"), outcomes.as_bytes(Outcomes(seen.keys, seen.scores, classes), None)]


@cache
def tensors() -> list[bytes]:
    clf = torch.eye(3)
    return [saved(clf), saved(clf.half()), saved(clf, _use_new_zipfile_serialization=False)]


@cache
def weights() -> list[bytes]:
    state = {"a.weight": torch.eye(3), "a.bias": torch.zeros(3)}
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, on its own format
        script = torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2))
        torch.jit.save(script, out)
    return [saved(state), saved({"state_dict": state}, _use_new_zipfile_serialization=False), out.getvalue()]


@cache
def calibration() -> bytes:
    found = Calibration(
        strategies=(make_strategy("coarse", keep_patches=9), make_strategy("tome", r=2)),
        alignments=tuple(Alignment(torch.eye(2), torch.zeros(2)) for _ in range(2)),
        tower=torch.zeros(2, 4),
    )
    written = tensors_of(found)
    content = {"version": 1, "strategies": [each.as_dict() for each in found.strategies], "about": {}}
    return save(written, {"anchorprune": json.dumps(content)})


def tensors_of(found: Calibration) -> dict[str, torch.Tensor]:
    parts = {
        f"{i}.{part}": getattr(each, part) for i, each in enumerate(found.alignments) for part in ("matrix", "bias")
    }
    return {"tower": found.tower, **parts}


@cache
def tars() -> list[bytes]:
    image = io.BytesIO()
    picture(0, 8).save(image, "PNG")
    found = []
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=form) as tar:
            for name, data in (("0.png", image.getvalue()), ("0.cls", b"1"), ("ü" * 70 + ".png", b""), ("1.cls", b"0")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        found.append(out.getvalue()[:8192])
    return found


@cache
def csvs() -> list[bytes]:
    out = io.StringIO()
    csv.writer(out).writerows([["image", "label", "caption"], ["0.png", "cat", 'a "cat"'], ["1.png", "dog", "a,\nb"]])
    return [out.getvalue().encode()]


@cache
def parquets() -> list[bytes]:
    import pyarrow as pa
    from pyarrow import parquet

    out = io.BytesIO()
    parquet.write_table(pa.table({"image": ["0.png", "1.png"], "label": [0, 1]}), out)
    return [out.getvalue()]


@cache
def images() -> list[bytes]:
    return [data for kind in FORMATS for data in originals(kind)]


# --- what is done with them


def _strategy(strategy: Strategy) -> None:
    strategy.as_dict(), strategy.flags(), [part.schedule(49, 4) for part in strategy.parts]


def _calibrated(path: Path) -> None:
    for entry in (0, 1):
        strategy = make_strategy("calibrated", calibration=str(path), entry=entry)
        strategy.applied(), strategy.couples_batch, strategy.schedule(49, 4)


def _webdataset(path: Path) -> None:
    folder = path.with_suffix("")
    (folder / "test").mkdir(parents=True)
    path.rename(folder / "test" / "0.tar")
    (folder / "test" / "nshards.txt").write_text("1")
    found = open_wds("wds/x", root=str(folder), split="test", transform=lambda image: image, cache_dir=None)
    for index in range(len(found.items)):
        try:
            found.items[index]
        except BadImage:
            continue


def _listed(path: Path) -> None:
    listing = Tars([str(path)], ["0.tar"], ["txt", "caption"])
    for row in range(len(listing)):
        try:
            listing.columns(row, ["txt", "caption"])
            decode(listing.read(row), "a file")
        except BadImage:
            continue


def _rows(path: Path) -> None:
    table = open_table(path)
    list(table.rows(table.columns))


def _weights(path: Path) -> None:
    refuse_complex(str(path))
    is_torchscript(str(path))
    weights_of(str(path))


def _plain_array(path: Path) -> None:
    try:
        array_of(path.read_bytes())
    except ValueError as error:
        raise UserError(str(error)) from error


READERS = {
    "result": Fuzzed(
        every(
            results.read,
            results.load,
            lambda path: build([path], path.with_name("all.csv")),
            lambda path: compare(path, path).to_text(),
        ),
        odd_json(*RESULTS),
        ".json",
    ),
    "strategy": Fuzzed(lambda path: _strategy(Strategy.load(path)), odd_json(*STRATEGIES), ".json"),
    "calibration": Fuzzed(_calibrated, damaged_safetensors(calibration), ".safetensors"),
    "class-names": Fuzzed(lambda path: custom_classes(str(path), "cifar10"), odd_json(CLASSES), ".json"),
    "templates": Fuzzed(
        every(lambda path: custom_templates(str(path), "cifar10"), lambda path: custom_templates(str(path), "other")),
        odd_json(TEMPLATES),
        ".json",
    ),
    "tar": Fuzzed(
        every(lambda path: list(samples(path)), _listed, _webdataset),
        damaged(tars) | damaged(tars).map(resummed),
        ".tar",
    ),
    "array": Fuzzed(_plain_array, damaged(arrays), ".npy"),
    "outcomes": Fuzzed(outcomes.read, damaged_zip(scored), ".outcomes.npz"),
    "classifier": Fuzzed(
        every(
            lambda path: load_classifiers([str(path)], 3),
            lambda path: cached(str(path.parent), path.stem, lambda: torch.eye(3), 3),
        ),
        damaged(tensors) | damaged_zip(lambda: tensors()[:2]),
        ".pt",
    ),
    "weights": Fuzzed(_weights, damaged(weights) | damaged_zip(lambda: weights()[::2]), ".pt"),
    "safetensors": Fuzzed(_weights, damaged_safetensors(lambda: save({"a": torch.eye(3)})), ".safetensors"),
    "exported": Fuzzed(
        lambda path: read_about(path, "torch"),
        damaged_zip(lambda: [zipped({"a/extra/anchorprune.json": b"{}"})]),
        ".pt2",
    ),
    "csv": Fuzzed(_rows, damaged(csvs), ".csv"),
    "json-lines": Fuzzed(_rows, odd_json({"image": "0.png", "label": "cat"}), ".jsonl"),
    "parquet": Fuzzed(_rows, damaged(parquets), ".parquet"),
    "image": Fuzzed(lambda path: decode(path.read_bytes(), "a file"), damaged(images), raises=(BadImage,)),
    "command-line": Fuzzed(run_line, command_lines(), ".json"),
}
