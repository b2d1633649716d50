"""A data set as a webdataset in clip-benchmark's layout (see `wds`): what `clip_benchmark_export_wds` does.

Tars take their names when they are whole, and `nshards.txt` comes last: what is there is right, and an export that was
cut off goes on with the next tar.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anchorprune.datasets.base import DataSpec, EvalDataset
from anchorprune.datasets.encoded import EncodedItems
from anchorprune.datasets.images import decode, one_line
from anchorprune.datasets.sampling import BadImage
from anchorprune.datasets.wds import last_key
from anchorprune.datasets.workers import in_batches
from anchorprune.errors import FieldError, UserError
from anchorprune.files import UNFINISHED, lines_of, read_text, replacing, text_of, write_text
from anchorprune.progress import Reporting, reporting_of
from anchorprune.reading import bytes_of, json_of

if TYPE_CHECKING:
    from PIL.Image import Image

# Of the extensions that the layout knows, what Pillow is told; as upstream's, the first two lose nothing.
FORMATS: dict[str, dict[str, Any]] = {
    "webp": {"format": "webp", "lossless": True},
    "png": {"format": "png"},
    "jpg": {"format": "jpeg"},
}
RECORD = "export.json"  # beside the tars: what was asked for
_LABELS = {"classes": "cls", "labels": "npy", "captions": "txt"}
_TYPES = {"classes": None, "labels": "multilabel\n", "captions": "retrieval\n"}

Parts = list[tuple[str, bytes]]  # extensions and contents of one sample's files


@dataclass(frozen=True)
class Layout:
    """How it is written.

    Attributes:
        image_format: of `FORMATS`; None: an image's own bytes where the source has them and the layout knows their
            format, else lossless WebP.
        max_count, max_size: a tar ends with the sample that reaches so many samples, or so many bytes of files.
    """

    image_format: str | None = None
    max_count: int = 10_000
    max_size: int = 1_000_000_000

    def __post_init__(self) -> None:
        if self.image_format not in (None, *FORMATS):
            raise FieldError("image_format", self.image_format, f"choose one of {', '.join(FORMATS)}")
        for name in ("max_count", "max_size"):
            if getattr(self, name) < 1:
                raise FieldError(name, getattr(self, name), "must be 1 or more")


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        samples: how many the source has.
        tars: how many there are now, and `found` of them from before.
        bad: (key, reason) of the images that could not be read now.
    """

    samples: int
    tars: int
    found: int
    bad: list[tuple[str, str]]


def export_wds(
    dataset: EvalDataset,
    spec: DataSpec,
    output: str,
    layout: Layout,
    *,
    num_workers: int = 0,
    progress: bool | Reporting = False,
) -> Exported:
    """Writes the data set, opened by `spec` with a transform that leaves images as they are, to `output`/SPLIT.

    Line breaks in captions become blanks, because the layout has one caption a line. Images are not decoded where
    their bytes are kept; `datasets check` is what finds damaged ones.

    Raises:
        UserError: a kind that the layout has no place for, a folder that holds another export or cannot be written, an
            image that cannot be read (unless `spec.skip_bad_images`).
    """
    if dataset.kind not in _LABELS:
        raise FieldError("dataset", spec.name, f"has {dataset.kind}, for which the webdataset layout has no place")
    _check_lines(dataset)
    digest = hashlib.blake2b("\0".join(dataset.keys).encode("utf-8", "surrogateescape"), digest_size=16)
    record = {
        "dataset": spec.name,
        "dataset_root": spec.root,
        "split": spec.split,
        "kind": dataset.kind,
        "samples": len(dataset),
        "keys": digest.hexdigest(),
        "image_format": layout.image_format,
        "max_count": layout.max_count,
        "max_size": layout.max_size,
    }
    folder = Path(output).expanduser() / spec.split
    with claimed(folder, record):
        write_texts(folder.parent, dataset)
        found, first = next_sample(folder)
        samples = _Samples(dataset, spec.name, layout.image_format)
        bad: list[tuple[str, str]] = []

        def good() -> Iterator[tuple[int, Parts]]:
            for index, parts in _loaded(samples, first, num_workers, progress):
                if isinstance(parts, BadImage):
                    if not spec.skip_bad_images:
                        fix = f"cannot read image {dataset.keys[index]} ({parts}); "
                        flag = "skip_bad_images goes on"
                        raise FieldError("dataset", spec.name, fix + flag, typed=f"{fix}--{flag}")
                    bad.append((dataset.keys[index], str(parts)))
                    continue
                yield index, parts

        tars = write_tars(good(), folder, found, layout)
        if not tars:
            raise FieldError("dataset", spec.name, "no image of it can be read")
        write_text(f"{tars}\n", folder / "nshards.txt")
    return Exported(len(dataset), tars, found, bad)


def write_tars(samples: Iterable[tuple[int, Parts]], folder: Path, first: int, layout: Layout) -> int:
    """Writes samples, by their numbers, to `folder/FIRST.tar` and on, each whole or not at all; one past the last.

    Equal samples give equal files, whoever writes them and when.
    """
    rest, number = iter(samples), first
    while (sample := next(rest, None)) is not None:
        with replacing(folder / f"{number}.tar") as unfinished, tarfile.open(unfinished, "w") as tar:
            count = size = 0
            while sample is not None:
                index, parts = sample
                for extension, data in parts:
                    info = tarfile.TarInfo(f"s{index:07d}.{extension}")  # upstream's keys
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
                    size += len(data)
                count += 1
                full = count >= layout.max_count or size >= layout.max_size
                sample = None if full else next(rest, None)  # a full tar waits for no other sample
        number += 1
    return number


def _check_lines(dataset: EvalDataset) -> None:
    """FieldError where a class name or a prompt would not come back from a file that holds one a line."""
    for name, lines in (("class name", dataset.classes), ("prompt", dataset.templates)):
        for line in lines if isinstance(lines, list) and dataset.kind != "captions" else ():
            text = text_of(line.replace("\0", "\n").encode("utf-8", "replace"))  # which refuses a NUL in other words
            if "\n" in text or lines_of(text) != [line.strip()]:  # blanks around it are nobody's
                raise FieldError("dataset", dataset.name, f"the {name} {line!a} is no line of a text file; change it")


def write_texts(root: Path, dataset: EvalDataset, flag: str = "output") -> None:
    """The files that describe it, at the root. UserError where others are there: of another split's classes, say."""
    texts = {"dataset_type.txt": _TYPES[dataset.kind], "classnames.txt": None}
    if dataset.classes:
        texts["classnames.txt"] = "\n".join(dataset.classes) + "\n"
    if isinstance(dataset.templates, list) and dataset.kind != "captions":
        texts["zeroshot_classification_templates.txt"] = "\n".join(dataset.templates) + "\n"
    for name, text in texts.items():
        try:
            there = read_text(root / name) if os.path.lexists(root / name) else None
        except (OSError, ValueError) as err:
            raise UserError(f"{root / name}: cannot be read ({one_line(err)})") from err
        if there is not None and there != text:
            raise FieldError(flag, str(root), f"{name} in it is of other data; name another folder")
    for name, text in texts.items():
        if text is not None:
            write_text(text, root / name)


def next_sample(folder: Path) -> tuple[int, int]:
    """How many tars are there, from 0.tar on, and the number of the first sample that comes after theirs."""
    tars = 0
    while (folder / f"{tars}.tar").is_file():
        tars += 1
    return tars, 1 + int(last_key(folder / f"{tars - 1}.tar")[1:]) if tars else 0


def parts_of(image: Image, target: Any, kind: str, image_format: str) -> Parts:
    """One sample's files. Raises BadImage where the format cannot hold the image."""
    return [(image_format, encode(image, image_format)), (_LABELS[kind], label_bytes(target, kind))]


def encode(image: Image, image_format: str) -> bytes:
    """The image, in RGB, in one of `FORMATS`. Raises BadImage where that cannot hold it."""
    out = io.BytesIO()
    try:
        image.convert("RGB").save(out, **FORMATS[image_format])
    except (OSError, ValueError) as err:  # WebP ends at 16,383 px
        raise BadImage(f"cannot be written as {image_format} ({one_line(err)})") from err
    return out.getvalue()


def unchanged(image: Any) -> Any:
    """The transform that `export_wds` needs."""
    return image


def format_of(data: bytes) -> str | None:
    """Which of `FORMATS` a file is, by its first bytes."""
    if data[:3] == b"\xff\xd8\xff":
        return "jpg"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    return "webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def label_bytes(target: Any, kind: str) -> bytes:
    """What the layout has of a sample's target."""
    if kind == "classes":
        return str(int(target)).encode()
    if kind == "captions":
        return "\n".join(" ".join(text.splitlines()) for text in target).encode()
    import numpy as np

    out = io.BytesIO()
    np.save(out, np.asarray(target).astype(np.int64))
    return out.getvalue()


class _Samples:
    """`samples[i]`: its number, and its files or why they cannot be had; for worker processes."""

    def __init__(self, dataset: EvalDataset, name: str, image_format: str | None) -> None:
        self.items, self.kind, self.length = dataset.items, dataset.kind, len(dataset)
        self.name, self.image_format = name, image_format

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[int, Parts | BadImage]:
        try:
            return index, self._parts(index)
        except BadImage as err:
            return index, err

    def collate(self, samples: list[Any]) -> Any:
        (sample,) = samples
        return sample

    def lost(self, index: int, reason: str) -> tuple[int, BadImage]:
        return index, BadImage(reason)

    def _parts(self, index: int) -> Parts:
        from PIL.Image import Image

        items, asked = self.items, self.image_format
        if isinstance(items, EncodedItems):
            data = items.read(index)
            if asked is None and (own := format_of(data)):
                return [(own, data), (_LABELS[self.kind], label_bytes(items.target(index), self.kind))]
            image, target = decode(data, items.source(index)), items.target(index)
        else:
            image, target = items[index]
        if not isinstance(image, Image):
            raise FieldError("dataset", self.name, f"its images are {type(image).__name__}, which no file can hold")
        return parts_of(image, target, self.kind, asked or "webp")


def _loaded(samples: _Samples, first: int, num_workers: int, progress: bool | Reporting) -> Iterator[tuple[int, Any]]:
    left = range(first, len(samples))
    loader = in_batches(samples, ([row] for row in left), num_workers=min(num_workers, len(left)))
    with reporting_of(progress).of(samples.name, len(samples), done=first) as told:
        for sample in loader:
            yield sample
            told.update(1)


@contextmanager
def claimed(folder: Path, record: dict[str, Any], flag: str = "output") -> Iterator[None]:
    """The folder of a split for this export alone, with what was asked for written down in it.

    Raises UserError where it holds something else, or cannot be written.
    """
    file = folder / RECORD
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if file.exists():
            _check_same(flag, folder, json_of(bytes_of(file)), record)
        elif not all(path.match(UNFINISHED) for path in folder.iterdir()):
            raise FieldError(flag, str(folder.parent), f"{folder} holds something else; name another folder")
        else:
            write_text(json.dumps(record, indent=2) + "\n", file)
        with file.open("r+b") as lock:
            _lock(lock, flag, folder)
            for unfinished in folder.glob(".anchorprune-*.tmp"):  # of a process that was killed
                unfinished.unlink()
            yield
    except UserError:
        raise
    except (OSError, ValueError) as err:
        raise FieldError(flag, str(folder.parent), f"cannot be written or read ({one_line(err)})") from err


def _lock(file: Any, flag: str, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # not there on Windows
        return
    try:
        # Of this process alone: flock's would live on in worker processes that outlive a killed one.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise FieldError(flag, str(folder.parent), f"another process writes to {folder}; wait for it") from None
    except OSError:  # a file system without locks
        return


def _check_same(flag: str, folder: Path, before: Any, record: dict[str, Any]) -> None:
    before = before if isinstance(before, dict) else {}
    for name, value in record.items():
        if before.get(name) != value:
            what = "other samples" if name == "keys" else f"{name} {before.get(name)!r}, not {value!r}"
            fix = f"{folder} holds an export with {what}; name another folder or remove that one"
            raise FieldError(flag, str(folder.parent), fix)
