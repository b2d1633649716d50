"""`table:FILE`: images with labels, captions or both, a row each: CSV, TSV, JSON lines or Parquet."""

from __future__ import annotations

import glob
import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from anchorprune.datasets.base import DataSpec, EvalDataset, Source, Transform
from anchorprune.datasets.encoded import EncodedItems
from anchorprune.datasets.folder import read_templates
from anchorprune.datasets.images import one_line
from anchorprune.datasets.reading import MAX_BYTES, read_file
from anchorprune.datasets.rows import ParquetBytes, ParquetTable, Table, open_table
from anchorprune.datasets.sampling import BadImage
from anchorprune.datasets.table_classes import Classes, is_index
from anchorprune.errors import FieldError, UserError, did_you_mean
from anchorprune.files import fingerprint
from anchorprune.reading import exists, path_of

# What columns are usually called; several of one row in a table are ambiguous.
USUAL = {
    "image": (
        "image", "images", "img", "image_path", "img_path", "image_file", "image_name", "path", "filepath", "file_path",
        "file", "filename", "file_name",
    ),
    "caption": ("caption", "captions", "text", "texts", "txt", "sentence", "sentences", "description"),
    "label": ("label", "labels", "class", "classes", "class_name", "category", "target", "cls"),
}  # fmt: skip
SPLIT = "split"  # the column that says which split a row is of
_SMALL = 1 << 28  # bytes of a table whose content is read for a request's hash
_OF_CAPTIONS = ("zeroshot_retrieval", "captioning", "image_caption_selection")
_OF_LABELS = ("zeroshot_classification", "linear_probe")

Image = str | tuple[int, int]  # a path, or which table and which of its rows


class TableItems(EncodedItems):
    """`items[i] -> (transform(image), target)`; images are files, or lie in the tables themselves."""

    def __init__(
        self,
        images: list[Image],
        targets: list[Any],
        tables: list[Path],
        within: list[ParquetBytes],
        transform: Transform,
    ) -> None:
        self.images, self.targets, self.tables, self.within = images, targets, tables, within
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> bytes:
        image = self.images[index]
        try:
            if isinstance(image, str):
                return read_file(image)
            data = self.within[image[0]][image[1]]
        except (OSError, ValueError) as err:  # a UserError too: what is damaged is these rows
            raise BadImage(f"{self.source(index)}: {one_line(err)}") from err
        if not data:
            raise BadImage(f"{self.source(index)}: holds no bytes")
        if len(data) > MAX_BYTES:
            raise BadImage(f"{self.source(index)}: has {len(data):,} bytes, more than are read ({MAX_BYTES:,})")
        return data

    def target(self, index: int) -> Any:
        return self.targets[index]

    def source(self, index: int) -> str:
        image = self.images[index]
        return image if isinstance(image, str) else f"{self.tables[image[0]]}, row {image[1] + 1}"


class TableSource(Source):
    """`table:FILE`: a CSV, TSV, JSON-lines or Parquet file of images with labels, captions or both."""

    name: ClassVar[str] = "table"
    reads_columns: ClassVar[bool] = True

    @classmethod
    def open(cls, spec: DataSpec, transform: Transform, task: str) -> EvalDataset:
        return open_table_dataset(spec, transform, task)

    @classmethod
    def stamp(cls, spec: DataSpec) -> Any:
        # Of a table that holds the images themselves its size has to do.
        of_tables = [
            [os.path.realpath(file), size if (size := file.stat().st_size) > _SMALL else fingerprint(file)]
            for file in _named(spec)
            if exists(file)
        ]
        return [of_tables, _sizes(spec)]

    @classmethod
    def default_task(cls, spec: DataSpec) -> str:
        """Classification where the table has labels, else retrieval."""
        tables = _tables(spec)
        columns = _Columns.of(spec, tables)
        return "zeroshot_retrieval" if columns.caption and not columns.label else "zeroshot_classification"


@dataclass(frozen=True)
class _Columns:
    """Which columns of the tables are what; None for one that they have not."""

    image: str
    caption: str | None
    label: str | None
    split: bool

    @classmethod
    def of(cls, spec: DataSpec, tables: list[Table]) -> _Columns:
        """UserError for a column that is named and not there, and for usual names that are missing or ambiguous."""
        columns = tables[0].columns
        for table in tables[1:]:
            if table.columns != columns:
                raise UserError(f"{table.file}: its columns are not those of {tables[0].file}; make them equal")
        image = _column(spec, "image", columns)
        if image is None:
            _complain(spec, "image", columns, f"no column is called {', '.join(USUAL['image'])}")
        caption, label = (_column(spec, what, columns) for what in ("caption", "label"))
        return cls(str(image), caption, label, SPLIT in columns)


def _column(spec: DataSpec, what: str, columns: list[str]) -> str | None:
    field = f"{what}_column"
    if (given := getattr(spec, field)) is not None:
        if given not in columns:
            fix = f"{spec.name} has no such column; its columns: {', '.join(columns)}.{did_you_mean(given, columns)}"
            raise FieldError(field, given, fix)
        return str(given)
    found = [name for name in columns if name.strip().lower() in USUAL[what]]
    if len(found) > 1:
        _complain(spec, what, columns, f"{' and '.join(map(repr, found))} may hold {what}s")
    return found[0] if found else None


def _complain(spec: DataSpec, what: str, columns: list[str], problem: str) -> None:
    flag, rest = f"{what}_column", f"Its columns: {', '.join(columns)}"
    raise FieldError(
        "dataset",
        spec.name,
        f"{problem}; name one with {flag}. {rest}",
        typed=f"{problem}; name one with --{flag}. {rest}",
    )


def open_table_dataset(spec: DataSpec, transform: Transform, task: str) -> EvalDataset:
    """The rows of `table:FILE`; FILE may have `*` for several files of equal columns, and `{split}` for the split.

    Images are paths, relative to the table's folder, or bytes in a Parquet file. Rows with one path are one sample:
    their captions are put together, their labels must be equal. Bytes are told apart by the path beside them or, for
    captions, by their content. A column `split` says which split a row is of; with neither that nor `{split}` all rows
    are `test`. Labels are class names, or indices of `classnames.txt` beside the table (or what a Parquet file says of
    them). Keys are the paths as written, or `FILE:ROW`.

    Raises:
        UserError: a file or row that cannot be read, naming both; columns that cannot be told; labels without a class.
    """
    tables = _tables(spec)
    columns = _Columns.of(spec, tables)
    wanted = _wanted(spec, columns, tables[0].columns, task)
    rows = _Rows(spec, tables, columns, wanted)
    items = TableItems(rows.images, rows.values, [table.file for table in tables], rows.within, transform)
    folder = tables[0].file.parent
    if wanted == columns.caption:
        return EvalDataset(spec.name, items, rows.keys, None, None, "captions", items.targets)
    classes = Classes(spec, tables[0], wanted, rows)
    items.targets = classes.targets
    templates = read_templates(folder / "zeroshot_classification_templates.txt")
    return EvalDataset(spec.name, items, rows.keys, classes.names, templates, classes.kind, items.targets)


def _named(spec: DataSpec) -> list[Path]:
    """The files that the data set's name means, whether they are there or not."""
    named = path_of(spec.name.removeprefix("table:").replace("{split}", spec.split))
    return sorted(Path(path) for path in glob.glob(str(named))) if "*" in str(named) else [named]


def _sizes(spec: DataSpec) -> str | None:
    """A digest of the sizes of the images that the tables name; None of tables that cannot be read, or hold them."""
    digest = hashlib.sha256()
    try:
        for path in _image_files(spec):
            if path is None:
                return None
            digest.update(b"%d " % (path.stat().st_size if exists(path) else -1))
    except UserError:  # said where the table is read
        return None
    return digest.hexdigest()


def image_files(spec: DataSpec) -> Iterator[Path]:
    """The images that the tables name, as far as they can be read."""
    with suppress(UserError):  # said where the table is read
        for path in _image_files(spec):
            if path is not None:
                yield path


def _image_files(spec: DataSpec) -> Iterator[Path | None]:
    """Of each row the image's file; None once for a table that holds them itself."""
    tables = _tables(spec)
    column = _Columns.of(spec, tables).image
    for table in tables:
        if isinstance(table, ParquetTable) and table.bytes_in(column):
            yield None
        else:
            for place, (value,) in table.rows([column]):
                yield table.file.parent / path_of(_path(value, place, column))


def _tables(spec: DataSpec) -> list[Table]:
    files = _named(spec)
    if spec.name == "table:" or not files or not all(map(exists, files)):
        fix = "no such file; give table:FILE, a CSV, TSV, JSON-lines or Parquet file with a row for each image"
        meant = spec.name.removeprefix("table:").replace("{split}", spec.split)
        raise FieldError("dataset", spec.name, f"{fix} ({meant})" if meant not in spec.name else fix)
    return [open_table(file) for file in files]


def _wanted(spec: DataSpec, columns: _Columns, names: list[str], task: str) -> str:
    """The column that the task reads; one that we do not know reads labels, or else captions."""
    if task in _OF_CAPTIONS:
        wanted, what = columns.caption, "caption"
    elif task in _OF_LABELS:
        wanted, what = columns.label, "label"
    else:
        wanted, what = columns.label or columns.caption, "label"
    if wanted is None:
        _complain(spec, what, names, f"{task} needs {what}s, and no column is called {', '.join(USUAL[what])}")
    return str(wanted)


class _Rows:
    """The samples of the split: images, keys, and what is in the wanted column, of each; rows of one image together.

    Attributes:
        seen: every value of that column, of other splits too: class names do not depend on the split.
        places: where each sample's first row stands.
    """

    def __init__(self, spec: DataSpec, tables: list[Table], columns: _Columns, wanted: str) -> None:
        self.images: list[Image] = []
        self.keys: list[str] = []
        self.values: list[Any] = []
        self.places: list[str] = []
        self.within: list[ParquetBytes] = []
        self.seen: set[Any] = set()
        self._of_captions = wanted == columns.caption
        splits: Counter[str] = Counter()
        known: dict[Any, int] = {}
        more = [SPLIT] if columns.split else []
        for number, table in enumerate(tables):
            leaf = table.bytes_in(columns.image) if isinstance(table, ParquetTable) else None
            identities = self._identities(table, columns.image, leaf)
            if leaf:
                self.within.append(ParquetBytes(table.file, leaf))
            names = [wanted, *more] if leaf else [wanted, *more, columns.image]
            for row, (place, values) in enumerate(table.rows(names)):
                value = self._value(values[0], place, wanted)
                if columns.split:
                    splits[str(values[1])] += 1
                    if str(values[1]) != spec.split:
                        continue
                if leaf:
                    image: Image = (number, row)
                    key, identity = f"{table.file.name}:{row + 1}", identities[row] if identities else None
                else:
                    key = _path(values[-1], place, columns.image)
                    image = identity = str(table.file.parent / path_of(key))
                self._add(known, identity, image, key, value, place)
        if columns.split and not splits[spec.split]:
            fix = f"the column 'split' of {spec.name} has {', '.join(sorted(splits)) or 'no rows'}"
            raise FieldError("split", spec.split, f"{fix}.{did_you_mean(spec.split, splits)}")
        if not columns.split and "{split}" not in spec.name and spec.split != "test":
            fix = f"{spec.name} has no column 'split'; add one, or put {{split}} into the name of the file"
            raise FieldError("split", spec.split, fix)
        if not self.images:
            raise FieldError("dataset", spec.name, "has no rows; write one for each image")

    def _identities(self, table: Table, column: str, leaf: str | None) -> list[Any] | None:
        """Of each row, what tells its bytes from others'; None where every row counts as another image."""
        if not leaf or not self._of_captions:
            return None
        assert isinstance(table, ParquetTable)
        if table.paths_beside(column):
            paths = [values[0] for _, values in table.rows([f"{column}.path"])]
            if all(paths) and len(set(paths)) == len(paths):
                return None
        # Rows of one image, a caption each, look alike in nothing but the bytes.
        return [hashlib.blake2b(values[0] or b"", digest_size=16).digest() for _, values in table.rows([leaf])]

    def _value(self, value: Any, place: str, column: str) -> Any:
        """What the column holds, checked: one caption or label, or several as a tuple."""
        several = isinstance(value, (list, tuple))
        for each in value if several else [value]:
            what = "caption" if self._of_captions else "label"
            if each is None or each != each or (isinstance(each, str) and not each.strip()):  # NaN is no value either
                raise UserError(f"{place}: has no {what} in column {column!r}; fill it or remove the row")
            # a label that is a number is an index, which pandas may have made 3.0 of
            if not isinstance(each, str) and (self._of_captions or not is_index(each)):
                raise UserError(f"{place}: column {column!r} holds {str(each)[:40]!r}, which is no {what}")
        if self._of_captions:
            if not value:
                raise UserError(f"{place}: has no caption in column {column!r}; fill it or remove the row")
            return tuple(value) if several else (value,)
        value = tuple(value) if several else value
        self.seen.update(value if several else [value])
        return value

    def _add(self, known: dict[Any, int], identity: Any, image: Image, key: str, value: Any, place: str) -> None:
        before = None if identity is None else known.get(identity)
        if before is None:
            if identity is not None:
                known[identity] = len(self.images)
            self.images.append(image)
            self.keys.append(key)
            self.values.append(value)
            self.places.append(place)
        elif self._of_captions:
            self.values[before] += value
        elif self.values[before] != value:
            first = self.places[before].rpartition(", ")[2]
            raise UserError(f"{place}: {key} has the label {value!r}, and {self.values[before]!r} in {first}; keep one")


def _path(value: Any, place: str, column: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{place}: has no path of an image in column {column!r}, but {str(value)[:40]!r}")
    if "://" in value:
        raise UserError(f"{place}: {value[:100]} is an address; download the images and write their paths")
    return value
