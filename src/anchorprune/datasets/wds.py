"""`wds/NAME`: clip-benchmark's webdataset layout, read as a map-style data set.

    ROOT/classnames.txt                            one class name a line
    ROOT/zeroshot_classification_templates.txt     one template with {c} a line
    ROOT/dataset_type.txt                          optional: classification, multilabel or retrieval
    ROOT/SPLIT/nshards.txt                         how many tars there are
    ROOT/SPLIT/0.tar …                             KEY.jpg (webp, png, jpeg) beside KEY.cls (or KEY.npy, or KEY.txt)

Each tar is scanned once, headers and labels only; an image is then one seek and one read. That gives a length, exact
`--limit` and evenly loaded workers, which a stream of tars cannot give, and needs no webdataset package.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, ClassVar

from anchorprune.datasets.base import DataSpec, EvalDataset, Source, Transform
from anchorprune.datasets.encoded import EncodedItems
from anchorprune.datasets.images import one_line
from anchorprune.datasets.prompts import check_templates
from anchorprune.datasets.reading import MAX_TEXT, read_file
from anchorprune.datasets.remote import Files, files_at, is_url
from anchorprune.datasets.sampling import BadImage
from anchorprune.errors import FieldError, UserError, did_you_mean
from anchorprune.files import fingerprint, folder_stamp, lines_of, text_of
from anchorprune.reading import array_of, path_of, whole_number

# In upstream's order of preference, should a sample have several.
EXTENSIONS = ("webp", "png", "jpg", "jpeg")

# What dataset_type.txt may say, as `EvalDataset.kind`, and where the target of each kind stands.
KINDS = {"classification": "classes", "multilabel": "labels", "retrieval": "captions"}
_TARGETS = {"classes": "cls", "labels": "npy", "captions": "txt"}

# webdataset's convention: the key runs to the first dot of the base name, the rest is the extension; names that
# start with a dot, and __meta__ members, are no samples.
_MEMBER = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)")
_META = re.compile(r"__[^/]*__($|/)")
_BLOCK = tarfile.BLOCKSIZE
MOST_TARS = 10_000_000
_MOST_HEADER = 1 << 18  # bytes of what tarfile reads at once: names, and what archivers add to them
_MOST_BLOCKS = 64  # that it reads for one member

Span = tuple[int, int]  # offset and size in the tar, bytes


class WdsItems(EncodedItems):
    """`items[i] -> (transform(image), target)`, read from the tars on demand."""

    def __init__(self, transform: Transform) -> None:
        self.transform = transform
        self.tars: list[Path] = []
        self.keys: list[str] = []
        self.targets: list[Any] = []
        self.where: list[tuple[int, Span]] = []  # which tar, and where in it the image is

    def add(self, tar: Path, label: str, kind: str) -> None:
        """Indexes one more tar, called `label` in keys and messages. Raises UserError as `_scan` does."""
        for key, image, target in _scan(tar, label, kind):
            self.keys.append(f"{label}/{key}")
            self.targets.append(target)
            self.where.append((len(self.tars), image))
        self.tars.append(tar)

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, index: int) -> bytes:
        shard, (offset, size) = self.where[index]
        try:
            # Opened each time: some 20 µs beside milliseconds of decoding, and no handle that forked workers could
            # share and seek under each other.
            return read_file(self.tars[shard], offset, size)
        except BadImage as err:
            raise BadImage(f"{self.source(index)}: {str(err).removeprefix(f'{self.tars[shard]}: ')}") from err

    def target(self, index: int) -> Any:
        return self.targets[index]

    def source(self, index: int) -> str:
        return f"{self.tars[self.where[index][0]]}, {self.keys[index].split('/', 1)[1]}"


class Wds(Source):
    """`wds/NAME`."""

    name: ClassVar[str] = "wds"

    @classmethod
    def claims(cls, name: str) -> bool:
        return name.startswith("wds/")

    @classmethod
    def open(cls, spec: DataSpec, transform: Transform, task: str) -> EvalDataset:
        return open_wds(spec.name, root=spec.root, split=spec.split, transform=transform, cache_dir=spec.cache_dir)

    @classmethod
    def default_task(cls, spec: DataSpec) -> str:
        kind = _kind(files_at(spec.root, spec.cache_dir))
        if kind is None:
            return super().default_task(spec)
        return "zeroshot_retrieval" if kind == "captions" else "zeroshot_classification"

    @classmethod
    def stamp(cls, spec: DataSpec) -> Any:
        if is_url(spec.root):
            return None
        root = path_of(spec.root)
        return [
            os.path.realpath(root),
            folder_stamp(root / spec.split),
            [_content(p) for p in sorted(root.glob("*.txt")) if p.is_file()],
        ]

    @classmethod
    def check(cls, spec: DataSpec, task: str) -> None:
        if "://" not in spec.root:
            super().check(spec, task)


def _content(path: Path) -> list[str]:
    return [path.name, fingerprint(path)]


def open_wds(name: str, *, root: str, split: str, transform: Transform, cache_dir: str | None) -> EvalDataset:
    """The split of the webdataset at `root`, a folder or an http(s) URL (also a Hugging Face data set page).

    Keys are `0.tar/KEY`. `classes` and `templates` are None where their files are missing; targets are ints, float
    tensors [C] for multi-label data, or lists of captions for retrieval.

    Raises UserError for missing, damaged or contradictory files.
    """
    source = files_at(root, cache_dir)
    count = _shard_count(source, name, split)
    kind = _kind(source) or "classes"
    classes = _lines(source, "classnames.txt")
    templates = _lines(source, "zeroshot_classification_templates.txt")
    if templates is not None:
        check_templates(templates, source.where("zeroshot_classification_templates.txt"))
    items = WdsItems(transform)
    for shard in range(count):
        tar = source.fetch(f"{split}/{shard}.tar")
        if tar is None:
            raise UserError(
                f"{source.where(f'{split}/{shard}.tar')}: no such file, but {split}/nshards.txt promises "
                f"{count} tars; add the tar or correct nshards.txt."
            )
        items.add(tar, f"{shard}.tar", kind)
    if not items.keys:
        raise FieldError("dataset", name, f"the {count} tars of {source.where(split)} hold no image with a label.")
    return EvalDataset(name, items, items.keys, classes, templates, kind, items.targets)


def _shard_count(source: Files, name: str, split: str) -> int:
    if source.folder is not None and not source.folder.is_dir():
        raise FieldError("dataset_root", source.root, f"no such folder; {name} needs one with {split}/0.tar in it.")
    where = source.where(f"{split}/nshards.txt")
    text = source.read_text(f"{split}/nshards.txt")
    if text is None:
        splits = [] if source.folder is None else sorted(p.parent.name for p in source.folder.glob("*/nshards.txt"))
        hint = f" Splits here: {', '.join(splits)}." if splits else ""
        raise FieldError("split", split, f"there is no {where}.{hint}{did_you_mean(split, splits)}")
    try:
        count = whole_number(text)
    except ValueError:
        count = 0
    if not 1 <= count <= MOST_TARS:
        raise UserError(f"{where}: must hold the number of tars, 1 to {MOST_TARS:,}, not {text.strip()[:40]!r}.")
    return count


def _kind(source: Files) -> str | None:
    """What `EvalDataset.kind` its dataset_type.txt makes it; None where there is no such file."""
    text = source.read_text("dataset_type.txt")
    if not text:
        return None
    kind = text.strip().lower()
    if kind not in KINDS:
        where, hint = source.where("dataset_type.txt"), did_you_mean(kind, KINDS)
        raise UserError(f"{where}: {kind[:40]!r} is none of {', '.join(KINDS)}.{hint}")
    return KINDS[kind]


def _lines(source: Files, name: str) -> list[str] | None:
    text = source.read_text(name)
    if text is None:
        return None
    lines = lines_of(text)
    if not lines or not all(lines):
        raise UserError(
            f"{source.where(name)}: line {lines.index('') + 1 if lines else 1} is empty; remove or fill it."
        )
    return lines


def _scan(tar: Path, label: str, kind: str) -> Iterator[tuple[str, Span, Any]]:
    """(key, where the image is, target) of each sample in a tar, in order.

    Raises UserError, naming the tar (and key), where it is damaged or a sample lacks its image or label.
    """
    with _reading(tar), tar.open("rb") as file:
        for key, parts in _groups(_members(tar, file), tar):
            image = next((parts[ext] for ext in EXTENSIONS if ext in parts), None)
            wanted = _TARGETS[kind]
            _refuse_dotted(tar, key, parts, wanted)
            if image is None and wanted not in parts:
                continue  # a README, say
            if image is None or wanted not in parts:
                lacks = f"label (.{wanted})" if image else f"image (.{', .'.join(EXTENSIONS)})"
                other = next((type for type, own in KINDS.items() if _TARGETS[own] in parts and image), None)
                hint = f"; for .{_TARGETS[KINDS[other]]} dataset_type.txt must say {other}" if other else ""
                raise UserError(f"{tar}: sample {key!r} has no {lacks}, only .{', .'.join(parts)}{hint}.")
            offset, size = parts[wanted]
            if size > MAX_TEXT:
                raise UserError(f"{tar}: sample {key!r} has {size:,} bytes of .{wanted}, which is no label.")
            # reading in between is safe: tarfile seeks before each header
            file.seek(offset)
            data = file.read(size)
            yield key, image, _READ[kind](data, f"{tar}: sample {key!r}")


def samples(tar: Path) -> Iterator[tuple[str, dict[str, Span]]]:
    """(key, extension → where it is) of each sample in an uncompressed tar, in order, whatever it has.

    Raises UserError, naming the tar, where it is damaged or has something twice: after the samples before that.
    """
    with _reading(tar), tar.open("rb") as file:
        yield from _groups(_members(tar, file), tar)


def last_key(tar: Path) -> str:
    """The key of the last sample of a tar. Raises UserError where it is damaged or has none."""
    key = None
    with _reading(tar, "remove it"), tar.open("rb") as file:
        for key, _ in _groups(_members(tar, file), tar):  # noqa: B007  (the last one is what is asked for)
            pass
    if key is None:
        raise UserError(f"{tar}: holds no sample; remove it")
    return key


@contextmanager
def _reading(tar: Path, fix: str = "export or download it again.") -> Iterator[None]:
    """UserError for whatever the bytes of a tar bring tarfile to raise."""
    try:
        yield
    except (UserError, MemoryError, GeneratorExit):
        raise
    except Exception as err:
        raise UserError(f"{tar}: is not a readable, uncompressed tar ({one_line(err)}); {fix}") from err


class _Headers:
    """A tar as tarfile reads it: a bounded number of short blocks a member, and never behind where it is.

    Headers may ask for gigabytes, for sizes below zero, which lead back, and for one more header without end.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._left, self._at = file, _MOST_BLOCKS, 0

    def next_member(self) -> None:
        self._left = _MOST_BLOCKS

    def read(self, size: int) -> bytes:
        self._left -= 1
        if not 0 <= size <= _MOST_HEADER or self._left < 0:
            raise tarfile.ReadError("a header without end")
        data = self._file.read(size)
        self._at = max(self._at, self._file.tell())
        return data

    def seek(self, offset: int) -> None:
        if offset < self._at - 1:  # tarfile looks at the last byte before the next header
            raise tarfile.ReadError("a header that leads back")
        self._file.seek(offset)

    def tell(self) -> int:
        return self._file.tell()


def _refuse_dotted(tar: Path, key: str, parts: dict[str, Span], wanted: str) -> None:
    """UserError for images of their own that webdataset takes for parts of this sample, as `v1.0003.png` for `0003.png`
    of `v1`: upstream passes them over, or takes one of them for the sample. `seg.png` beside `png` is a part.
    """
    whole = wanted in parts and any(each in parts for each in EXTENSIONS)
    for extension in parts:
        name, dot, ending = extension.rpartition(".")
        own = f"{name}.{wanted}" in parts and any(f"{name}.{each}" in parts for each in EXTENSIONS)
        if dot and ending in (*EXTENSIONS, wanted) and (own or not whole):
            raise UserError(
                f"{tar}: {key}.{extension} is part {extension!r} of sample {key!r}, because webdataset's keys end at "
                f"the first dot; name it {key}_{name.replace('.', '_')}.{ending}, and what belongs to it likewise."
            )


def _members(tar: Path, file: IO[bytes]) -> Iterator[tuple[str, Span]]:
    """(name, span) of the regular files in an uncompressed tar; links and devices are none. Nothing is extracted."""
    headers, length = _Headers(file), os.fstat(file.fileno()).st_size
    with tarfile.open(fileobj=headers, mode="r:") as archive:  # type: ignore[call-overload]
        while (member := archive.next()) is not None:
            archive.members.clear()  # it would keep every header
            headers.next_member()
            if member.issparse():
                raise tarfile.ReadError(f"{member.name!r} is sparse, which no image is")
            if member.isreg():
                if member.size < 0:
                    raise tarfile.ReadError(f"{member.name!r} has a size below zero")
                yield member.name, (member.offset_data, member.size)
                if member.size > length - member.offset_data:  # what came before is whole by now
                    raise tarfile.ReadError(f"{member.name!r} has {member.size} bytes, which are not there")
        # tarfile takes a damaged header, or a file that stops between members, for the end of the archive
        file.seek(archive.offset)
        if file.read(_BLOCK) != bytes(_BLOCK):
            raise tarfile.ReadError(f"no end mark at byte {archive.offset}: cut short or damaged")


def _groups(members: Iterator[tuple[str, Span]], tar: Path) -> Iterator[tuple[str, dict[str, Span]]]:
    """(key, extension → span) of each run of members with the same key, as webdataset groups them."""
    current, parts, seen = None, dict[str, Span](), set[str]()
    for name, span in members:
        match = _MEMBER.fullmatch(name)
        if match is None or _META.match(name):
            continue
        key, extension = match[1], match[2].lower()
        if key != current:
            if current is not None:
                yield current, parts
            if key in seen:
                raise UserError(f"{tar}: sample {key!r} is there twice, apart from one another; remove one.")
            seen.add(key)
            current, parts = key, {}
        if extension in parts:
            raise UserError(f"{tar}: sample {key!r} has .{extension} twice; remove one.")
        parts[extension] = span
    if current is not None:
        yield current, parts


def _class_index(data: bytes, source: str) -> int:
    try:
        return whole_number(text_of(data))
    except ValueError:
        raise UserError(f"{source} has the label {data[:40]!r}; a .cls file holds one class index.") from None


def _vector(data: bytes, source: str) -> Any:
    """A float tensor [C] from the bytes of a .npy file, which may hold no pickled objects."""
    import numpy as np
    import torch

    try:
        array = array_of(data)
        if array.ndim != 1:
            raise ValueError(f"its shape is {array.shape}")
        if not np.isin(array, (0, 1)).all():
            raise ValueError("not all of them are 0 or 1")
        return torch.from_numpy(array.astype(np.float32))
    except ValueError as err:
        raise UserError(f"{source}: its .npy must hold one number for each class ({one_line(err)}).") from err


def _captions(data: bytes, source: str) -> list[str]:
    """One a line, blank ones left out."""
    try:
        lines = [line.strip() for line in data.decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError as err:
        raise UserError(f"{source}: its .txt is no UTF-8 text ({one_line(err)}).") from err
    if not any(lines):
        raise UserError(f"{source} has no caption; a .txt file holds one or more, each on a line of its own.")
    return [line for line in lines if line]


_READ: dict[str, Callable[[bytes, str], Any]] = {"classes": _class_index, "labels": _vector, "captions": _captions}
