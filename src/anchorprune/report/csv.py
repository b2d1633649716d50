"""Tables as CSV: of result files, and of a sweep's rows."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from anchorprune.errors import UserError
from anchorprune.evaluation import outcomes
from anchorprune.evaluation import result as results
from anchorprune.files import StrPath, check_output, unreadable, write_text
from anchorprune.outputs import Read, check_apart

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # how cells begin that spreadsheets run
_FLAG = r"--\w+(?: -?[\w.]+)*"  # names and numbers: no call, no other program
_HARMLESS = re.compile(rf"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|[+-]?(?:inf|nan)|{_FLAG}(?: {_FLAG})*", re.ASCII)
# Mappings of any size that are data, not settings: a cell of JSON in the CSV instead of a column for each key.
_ONE_CELL = ("classnames", "templates")
# A request says once more what the other columns say; the last two tie files to each other.
_NO_COLUMNS = ("metrics", "request", "outcomes_digest", "saved_beside")


def build(files: Iterable[StrPath], output: StrPath) -> int:
    """Put result files, and the *.json files of folders, into one CSV file; returns the number of rows.

    Metrics are columns of their own, `model_fullname` is the model and its weights, nested settings have dots
    (`pruning.strategy`), lists are JSON. Rows come in the order given, a folder's sorted by name.
    UserError if a file is not a result, if there is none, or if `output` cannot be written.
    """
    check_output(output)
    paths = [path for name in files for path in _json_files(Path(name))]
    if not paths:
        raise UserError("build: no *.json file there; name result files of 'eval' or folders of them")
    reads = [Read("one of the results to be read", path) for path in paths]
    reads += [Read("the outcomes of one of the results", outcomes.path_for(path)) for path in paths]
    check_apart([("output", output)], reads)
    rows = [_row(results.read(path)) for path in paths]
    columns = {column for row in rows for column in row}
    # `pruning: null` of an unpruned run says no more than the empty cells below `pruning.strategy`.
    nested = {column.partition(".")[0] for column in columns if "." in column}
    columns -= {name for name in nested if all(row.get(name) is None for row in rows)}
    write_csv(rows, output, sorted(columns))
    return len(rows)


def write_csv(rows: Sequence[Mapping[str, Any]], output: StrPath, columns: Sequence[str] | None = None) -> None:
    """Write rows as CSV; the columns are those of the first row where they are not given."""
    write_text(csv_text(rows, columns), output)


def csv_text(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Rows as CSV; the columns are those of the first row where they are not given.

    Text that a spreadsheet would take for a formula has a `'` in front, which tells it that this is text.
    """
    text = io.StringIO(newline="")
    names = list(columns or rows[0])
    writer = csv.writer(text)
    writer.writerow(map(_inert, names))
    writer.writerows([_inert(row.get(name)) for name in names] for row in rows)
    return text.getvalue()


def _inert(cell: Any) -> Any:
    """The cell as a spreadsheet shows it and does not run it; numbers and a strategy's own flags stay what they are."""
    if not isinstance(cell, str) or not cell.startswith(_FORMULA) or _HARMLESS.fullmatch(cell):
        return cell
    return f"'{cell}"


def _json_files(path: Path) -> list[Path]:
    if not os.path.isdir(path):  # which takes every text for a name
        return [path]
    try:
        return sorted(entry for entry in path.iterdir() if entry.suffix == ".json" and not entry.is_dir())
    except OSError as error:
        raise unreadable(path, error) from error


def _row(result: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    # Like clip_benchmark's build: where a metric and a key share a name, the key wins.
    for key, value in [*result["metrics"].items(), *result.items()]:
        if key not in _NO_COLUMNS:
            row.update({key: _cell(value)} if key in _ONE_CELL else _flat(key, value))
    row["model_fullname"] = f"{result['model']} {result['pretrained']}"
    return row


def _flat(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: _cell(value)}
    return {column: cell for key, inner in value.items() for column, cell in _flat(f"{name}.{key}", inner).items()}


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else value
