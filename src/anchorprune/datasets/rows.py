"""Tables as files hold them: CSV, TSV, JSON lines and Parquet, row by row, without the bytes of images."""

from __future__ import annotations

import bisect
import csv
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import current_process
from pathlib import Path
from typing import Any, Protocol

from anchorprune.datasets.images import one_line
from anchorprune.errors import UserError
from anchorprune.reading import json_of, lines_in

At = Callable[[], int] | None  # the line or row that a reader is at
Row = tuple[str, list[Any]]  # where it stands, for messages, and the values of the columns asked for

_DELIMITERS = {".csv": ",;\t", ".tsv": "\t", ".tab": "\t"}
_ENDINGS = (*_DELIMITERS, ".jsonl", ".ndjson", ".json", ".parquet", ".pq")
_BATCH = 32  # rows of images that are in memory at once


class Table(Protocol):
    """One file.

    Attributes:
        file: its path.
        columns: their names, in order.
    """

    file: Path
    columns: list[str]

    def rows(self, columns: Sequence[str]) -> Iterator[Row]:
        """These columns of every row. UserError, naming file and row, for what is malformed."""


def open_table(file: Path) -> Table:
    """The table in a file, whose ending says what it is. UserError where it is none, or cannot be read."""
    ending = file.suffix.lower()
    if ending not in _ENDINGS:
        raise UserError(f"{file}: a table's file ends in {', '.join(_ENDINGS)}; rename or convert it")
    if ending in (".parquet", ".pq"):
        return ParquetTable(file)
    return TextTable(file, _DELIMITERS[ending]) if ending in _DELIMITERS else LinesTable(file)


class TextTable:
    """CSV or TSV, with the columns' names in its first line."""

    def __init__(self, file: Path, delimiters: str) -> None:
        self.file = file
        with _reading(file), file.open(encoding="utf-8-sig", newline="") as text:
            head = next((line for line in lines_in(text) if line.strip()), "")
            # whichever separates the names: semicolons are what some spreadsheets write
            self._delimiter = max(delimiters, key=head.count)
        self.columns = next((values for _, values in self._lines()), [])
        if not self.columns:
            raise UserError(f"{file}: is empty; its first line names the columns")
        _check_names(file, self.columns)

    def rows(self, columns: Sequence[str]) -> Iterator[Row]:
        places = [self.columns.index(name) for name in columns]
        lines = self._lines()
        next(lines)
        for place, values in lines:
            if len(values) != len(self.columns):
                raise UserError(f"{place}: has {len(values)} values for {len(self.columns)} columns; quote or add some")
            yield place, [values[i] for i in places]

    def _lines(self) -> Iterator[tuple[str, list[str]]]:
        line = 0
        with _reading(self.file, lambda: line + 1), self.file.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(lines_in(text), delimiter=self._delimiter, strict=True)
            for values in reader:
                first, line = line + 1, reader.line_num
                if values:
                    yield f"{self.file}, line {first}", [value.strip() for value in values]


class LinesTable:
    """JSON lines: one object a line, whose keys are the columns."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.columns = next((list(content) for _, content in self._objects()), [])
        if not self.columns:
            raise UserError(f"{file}: is empty; write one JSON object a line, with the columns as keys")

    def rows(self, columns: Sequence[str]) -> Iterator[Row]:
        for place, content in self._objects():
            if missing := [name for name in columns if name not in content]:
                raise UserError(f"{place}: has no {missing[0]!r}, only {', '.join(map(repr, content))}")
            yield place, [content[name] for name in columns]

    def _objects(self) -> Iterator[tuple[str, dict[str, Any]]]:
        number = 0
        with _reading(self.file, lambda: number + 1), self.file.open(encoding="utf-8-sig") as text:
            for number, line in enumerate(lines_in(text), 1):
                if not line.strip():
                    continue
                place = f"{self.file}, line {number}"
                try:
                    content = json_of(line, nan_is_none=True)
                except ValueError as err:
                    raise UserError(f"{place}: is no JSON ({one_line(err)}); write one object a line") from err
                if not isinstance(content, dict):
                    raise UserError(f"{place}: is no JSON object; write one object a line, with the columns as keys")
                yield place, content


class ParquetTable:
    """Parquet. Of a column that holds images' bytes, only what else is beside them is read in `rows`.

    Attributes:
        types: of the columns, by their names.
        num_rows: how many rows there are.
        class_names: by column, what Hugging Face's `datasets` wrote down of labels.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        with _parquet(file) as parquet:
            schema = parquet.schema_arrow
            self.columns = list(schema.names)
            self.types = {name: schema.field(name).type for name in schema.names}
            self.num_rows: int = parquet.metadata.num_rows
            self.class_names = _class_names(schema.metadata or {})
        _check_names(file, self.columns)

    def bytes_in(self, column: str) -> str | None:
        """The path within the schema to a column's bytes of images; None where it holds texts.

        Raises UserError for a column of another type.
        """
        import pyarrow.types as types

        kind = self.types[column]
        if types.is_dictionary(kind):
            kind = kind.value_type
        if types.is_string(kind) or types.is_large_string(kind):
            return None
        if types.is_binary(kind) or types.is_large_binary(kind):
            return column
        inner = {field.name: field.type for field in kind} if types.is_struct(kind) else {}
        if "bytes" in inner and (types.is_binary(inner["bytes"]) or types.is_large_binary(inner["bytes"])):
            return f"{column}.bytes"
        raise UserError(
            f"{self.file}: column {column!r} is {kind}; images are paths, bytes or a struct of bytes and path"
        )

    def paths_beside(self, column: str) -> bool:
        """Whether the images' bytes have paths beside them, as Hugging Face's `datasets` writes them."""
        import pyarrow.types as types

        kind = self.types[column]
        return bool(types.is_struct(kind)) and any(field.name == "path" for field in kind)

    def rows(self, columns: Sequence[str]) -> Iterator[Row]:
        """As in `Table.rows`; `NAME.path` and `NAME.bytes` name one field of a struct."""
        row = 0
        with _parquet(self.file, lambda: row + 1) as parquet:
            for batch in parquet.iter_batches(batch_size=1024, columns=list(columns), use_threads=False):
                values = [_leaf(batch, name) for name in columns]
                for each in zip(*values, strict=True) if values else ():
                    row += 1
                    yield f"{self.file}, row {row}", list(each)


class ParquetBytes:
    """`bytes_of[row]`: images that lie in a Parquet file, read as they are asked for, in order at best.

    A few rows at a time are in memory: the reader goes on from where it was, and begins the row group anew only for a
    row that is behind it. Each process opens the file itself.
    """

    def __init__(self, file: Path, leaf: str) -> None:
        self.file, self.leaf = file, leaf
        self._process: int | None = None
        self._group = -1  # the row group that is read
        self._first = self._next = 0  # its rows from the first to the one before the next are at hand

    def __getstate__(self) -> dict[str, Any]:
        return {"file": self.file, "leaf": self.leaf, "_process": None, "_group": -1, "_first": 0, "_next": 0}

    def __getitem__(self, row: int) -> bytes | None:
        with _reading(self.file, lambda: row + 1, "row"):
            if self._process != current_process().ident:
                self._open()
            group = bisect.bisect_right(self._starts, row) - 1
            if group != self._group or row < self._first:
                self._group = group
                self._first = self._next = self._starts[group]
                self._batches = self._parquet.iter_batches(
                    batch_size=_BATCH, row_groups=[group], columns=[self.leaf], use_threads=False
                )
            while row >= self._next:
                self._batch = next(self._batches)
                self._first = self._next
                self._next += len(self._batch)
            value: bytes | None = _leaf(self._batch.slice(row - self._first, 1), self.leaf)[0]
            return value

    def _open(self) -> None:
        # mapped: of a row group of gigabytes only the pages that are looked at are read
        self._parquet = _arrow().ParquetFile(self.file, memory_map=True, pre_buffer=False)
        sizes = [self._parquet.metadata.row_group(i).num_rows for i in range(self._parquet.num_row_groups)]
        self._starts = [sum(sizes[:i]) for i in range(len(sizes))]
        self._group, self._first, self._next = -1, 0, 0
        self._process = current_process().ident


def _leaf(batch: Any, name: str) -> list[Any]:
    """A column of a record batch, or one field of a struct column (`NAME.path`), as Python values."""
    if name in batch.schema.names:
        return list(batch.column(name).to_pylist())
    column, _, field = name.rpartition(".")
    return [value and value[field] for value in batch.column(column).to_pylist()]


def _class_names(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    try:
        features = json_of(metadata[b"huggingface"])["info"]["features"]
        named = {name: feature["names"] for name, feature in features.items() if "names" in feature}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
    return {name: list(map(str, names)) for name, names in named.items() if isinstance(names, list)}


def _check_names(file: Path, columns: list[str]) -> None:
    for name in columns:
        if columns.count(name) > 1:
            raise UserError(f"{file}: has two columns {name!r}; rename one")


def _arrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as err:
        raise UserError(
            f"Parquet files need the package pyarrow ({one_line(err)}); pip install 'anchorprune[parquet]'"
        ) from err
    return pyarrow.parquet


@contextmanager
def _parquet(file: Path, at: At = None) -> Iterator[Any]:
    with _reading(file, at, "row"), _arrow().ParquetFile(file, memory_map=True, pre_buffer=False) as parquet:
        yield parquet


@contextmanager
def _reading(file: Path, at: At = None, what: str = "line") -> Iterator[None]:
    """What goes wrong in reading a file as a UserError that names it, and where `at` says it was."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except UnicodeDecodeError as err:
        raise UserError(f"{file}: is no UTF-8 text ({one_line(err)}); save it as UTF-8") from err
    except Exception as err:  # csv and pyarrow raise a dozen kinds for what they cannot read
        place = f"{file}, {what} {at()}" if at else str(file)
        reason = "no such file" if isinstance(err, FileNotFoundError) else one_line(err)
        raise UserError(f"{place}: cannot be read ({reason})") from err
