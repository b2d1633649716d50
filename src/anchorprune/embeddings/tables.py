"""Images that are rows of tables: by their paths, or as bytes in the tables themselves."""

from __future__ import annotations

import bisect
import json
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from multiprocessing import current_process
from pathlib import Path
from typing import Any

from anchorprune.datasets.images import one_line
from anchorprune.datasets.reading import MAX_BYTES, read_file
from anchorprune.datasets.rows import ParquetBytes, ParquetTable, Row, Table, open_table
from anchorprune.datasets.sampling import BadImage
from anchorprune.datasets.table import USUAL
from anchorprune.embeddings.listing import Listing, labels
from anchorprune.embeddings.request import EncodeRequest
from anchorprune.embeddings.strings import Strings
from anchorprune.errors import FieldError, UserError, did_you_mean
from anchorprune.reading import path_of


class Tables(Listing):
    """The rows of tables of equal columns. What is carried along stays in the files until its row is read."""

    def __init__(self, tables: Sequence[Table], image: str, id_column: str | None, names: Sequence[str]) -> None:
        """
        Args:
            image: the column of paths or bytes.
            id_column: None for the paths, or FILE:ROW where images are bytes.
            names: what will be asked for in `columns`.
        """
        self.ids, self._paths, self._tables = Strings(), Strings(), list(tables)
        self._bytes: list[ParquetBytes | None] = []
        self._columns = [_Columns(table, names) for table in tables]
        self._firsts: list[int] = []
        for table, label in zip(tables, labels([str(table.file) for table in tables]), strict=True):
            self._firsts.append(len(self.ids))
            leaf = table.bytes_in(image) if isinstance(table, ParquetTable) else None
            self._bytes.append(ParquetBytes(table.file, leaf) if leaf else None)
            if id_column:
                _check_ids(table, id_column)
                self._fill(self.ids, table, id_column)
            if not leaf:
                self._fill(self._paths if id_column else self.ids, table, image)
            elif not id_column:
                assert isinstance(table, ParquetTable)
                for row in range(table.num_rows):
                    self.ids.append(f"{label}:{row + 1}")
        if not id_column:
            self._paths = self.ids
        elif any(self._bytes):
            self._paths = Strings()

    @staticmethod
    def _fill(strings: Strings, table: Table, column: str) -> None:
        for _, (value,) in table.rows([column]):
            strings.append("" if value is None else str(value))

    def _place(self, row: int) -> tuple[int, int]:
        """Which table, and which of its rows."""
        table = bisect.bisect_right(self._firsts, row) - 1
        return table, row - self._firsts[table]

    def path(self, row: int) -> str:
        table, _ = self._place(row)
        return self.ids[row] if self._bytes[table] else str(self._tables[table].file.parent / self._paths[row])

    def read(self, row: int) -> bytes:
        number, place = self._place(row)
        source = f"{self._tables[number].file}, row {place + 1}"
        if (within := self._bytes[number]) is None:
            path = self._paths[row]
            if not path or "://" in path:
                raise BadImage(f"{source}: has no path of a file, but {path[:100]!r}")
            return read_file(str(self._tables[number].file.parent / path_of(path)))
        try:
            data = within[place]
        except (OSError, ValueError) as error:  # a UserError too: what is damaged is these rows
            raise BadImage(one_line(error)) from error
        if not data or len(data) > MAX_BYTES:
            raise BadImage(f"{source}: has {len(data or b''):,} bytes; an image has 1 to {MAX_BYTES:,}")
        return data

    def columns(self, row: int, names: Sequence[str]) -> dict[str, Any]:
        number, place = self._place(row)
        try:
            return dict(zip(names, self._columns[number][place], strict=True))
        except UserError as error:
            raise BadImage(str(error)) from error

    def types(self, names: Sequence[str]) -> dict[str, Any]:
        found = super().types(names)
        for table in self._tables:
            if isinstance(table, ParquetTable):
                own = {name: table.types[name] for name in names}
                if table is not self._tables[0] and own != found:
                    raise UserError(
                        f"{table.file}: its columns are of other types than those of {self._tables[0].file}"
                    )
                found = own
        return found


def _check_ids(table: Table, column: str) -> None:
    if isinstance(table, ParquetTable) and re.match(
        "list|large_list|struct|map|fixed_size_list", str(table.types[column])
    ):
        fix = f"is a column of {table.types[column]} in {table.file}; ids are texts or numbers"
        raise FieldError("id_column", column, fix)


class _Columns:
    """`columns[row]`: some columns of a table, read on from the last row that was asked for, by each process itself."""

    def __init__(self, table: Table, names: Sequence[str]) -> None:
        self._table, self._names = table, list(names)
        self._plain = isinstance(table, ParquetTable)  # whose values have types
        self._process: int | None = None
        self._next = 0
        self._rows: Iterator[Row] = iter(())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_process": -1, "_rows": iter(())}

    def __getitem__(self, row: int) -> list[Any]:
        if self._process != current_process().ident or row < self._next:
            self._process, self._next = current_process().ident, 0
            self._rows = self._table.rows(self._names)
        _, values = next(islice(self._rows, row - self._next, None))
        self._next = row + 1
        if self._plain:
            return values
        return [v if v is None or isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values]


def open_tables(files: Sequence[str], request: EncodeRequest) -> Tables:
    """The rows of CSV, TSV, JSON-lines or Parquet files of equal columns.

    Raises:
        UserError: a file that cannot be read, columns that differ, are missing or cannot be told.
    """
    tables = [open_table(Path(file)) for file in files]
    for table in tables[1:]:
        if table.columns != tables[0].columns:
            raise UserError(f"{table.file}: its columns are not those of {tables[0].file}; make them equal")
    known = tables[0].columns
    asked = [("keep_columns", name) for name in request.keep_columns]
    asked += [(field, getattr(request, field)) for field in ("image_column", "id_column", "texts")]
    for field, name in asked:
        if name is not None and name not in known:
            fix = f"{files[0]} has no such column; its columns: {', '.join(known)}.{did_you_mean(name, known)}"
            raise FieldError(field, name, fix)
    return Tables(tables, request.image_column or _image_column(known, files[0]), request.id_column, request.columns)


def _image_column(known: Sequence[str], file: str) -> str:
    found = [name for name in known if name.strip().lower() in USUAL["image"]]
    if len(found) == 1:
        return found[0]
    problem = f"{' and '.join(map(repr, found))} may hold images" if found else "no column is called like images"
    rest = f"image_column. Its columns: {', '.join(known)}"
    raise FieldError("input", file, f"{problem}; name one with {rest}", typed=f"{problem}; name one with --{rest}")
