"""One evaluation, one JSON file: how results are written, found again, read and put into one table.

The keys are a superset of clip_benchmark's, so its own result files can be read here and ours there.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from anchorprune.errors import UserError

SCHEMA_VERSION = 1
_REQUIRED = ("dataset", "model", "pretrained", "task", "metrics")
# Mappings of any size that are data, not settings: a cell of JSON in the CSV instead of a column for each key.
_ONE_CELL = ("classnames", "templates")

StrPath = str | os.PathLike[str]


def user_cache() -> Path:
    """`anchorprune` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "anchorprune"


def config_hash(config: Mapping[str, Any]) -> str:
    """16 hex digits that name a configuration: equal settings, in whatever order, give equal digits.

    For a file that takes part in the configuration put its `fingerprint` into `config`, not its name.
    """
    text = json.dumps(_plain(config), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprint(path: StrPath) -> str:
    """The sha256 of the file's content, as hex (about 0.6 s a GB). UserError if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise _unreadable(path, error) from error
    return digest.hexdigest()


@contextmanager
def folder(flag: str, path: StrPath, page: str = "report.html") -> Iterator[Path]:
    """The folder that results go to, there and writable; one made here does not stay behind empty.

    Raises:
        UserError: it cannot be had, or the page that will be written in it is a folder.
    """
    target, made = Path(path), not os.path.lexists(path)
    if not made and not target.is_dir():
        raise UserError(f"{flag} {path}: is a file; name a folder")
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target):
            pass
    except OSError as error:
        raise UserError(
            f"{flag} {path}: cannot write there ({error.strerror or error}); name another folder"
        ) from error
    if (target / page).is_dir():
        raise UserError(f"{flag} {path}: {page} in it is a folder; name another folder")
    try:
        yield target
    finally:
        if made:
            with suppress(OSError):  # not empty, as it should be
                target.rmdir()


def check_output(path: StrPath) -> None:
    """Raise UserError unless a file can be written at `path`. For use before the work; leaves nothing behind."""
    target = _target(path)
    folder = target.parent
    try:
        # Renaming over /dev/null, run as root, would replace the device by a file.
        if target.exists() and not target.is_file():
            kind = "a folder" if target.is_dir() else "not a regular file"
            raise UserError(f"--output {path}: this is {kind}; name a file")
        if not folder.is_dir():
            raise UserError(f"--output {path}: there is no folder {folder}; make it first or name another")
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"--output {path}: cannot write in {folder} ({reason}); name another file") from error


def write(result: Mapping[str, Any], path: StrPath) -> None:
    """Write a result as strict JSON (NaN and infinities become null), all of it or nothing.

    A failure or an interruption leaves an earlier file at `path` as it was.
    """
    write_text(json.dumps(_plain(result), indent=2, allow_nan=False) + "\n", path)


def read(path: StrPath) -> dict[str, Any]:
    """The result in the file, clip_benchmark's own included (its NaN is None here).

    UserError, naming the file, if it is missing, is not JSON or is not a result.
    """
    try:
        result = json.loads(Path(path).read_bytes(), parse_constant=lambda _: None)
    except OSError as error:
        raise _unreadable(path, error) from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); name a result file of 'eval'") from error
    if not isinstance(result, dict) or not isinstance(result.get("metrics", {}), dict):
        raise UserError(f"{path}: JSON, but not the result of an evaluation; name a result file of 'eval'")
    if missing := [key for key in _REQUIRED if key not in result]:
        raise UserError(
            f"{path}: not the result of an evaluation, it has no {', '.join(missing)}; name a result file of 'eval'"
        )
    return result


def is_done(path: StrPath, config_hash: str, *, pruned: bool) -> bool:
    """Whether `--skip_existing` may skip: the file holds the result of this very configuration.

    A result without a hash was written by clip_benchmark, which cannot prune: it counts for an unpruned run
    (`pruned=False`) only. A broken file is not done.
    """
    try:
        result = read(path)
    except UserError:
        return False
    if result.get("config_hash") is None:
        return not pruned and not result.get("pruning")
    return bool(result["config_hash"] == config_hash)


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
    if any(path.resolve() == _target(output) for path in paths):
        raise UserError(f"--output {output}: this is one of the results to be read; name another file")
    rows = [_row(read(path)) for path in paths]
    columns = {column for row in rows for column in row}
    # `pruning: null` of an unpruned run says no more than the empty cells below `pruning.strategy`.
    nested = {column.partition(".")[0] for column in columns if "." in column}
    columns -= {name for name in nested if all(row.get(name) is None for row in rows)}
    write_csv(rows, output, sorted(columns))
    return len(rows)


def write_csv(rows: Sequence[Mapping[str, Any]], output: StrPath, columns: Sequence[str] | None = None) -> None:
    """Write rows as CSV; the columns are those of the first row where they are not given."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns or list(rows[0]), extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    write_text(text.getvalue(), output)


def _json_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    try:
        return sorted(entry for entry in path.iterdir() if entry.suffix == ".json" and not entry.is_dir())
    except OSError as error:
        raise _unreadable(path, error) from error


def _row(result: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    # Like clip_benchmark's build: where a metric and a key share a name, the key wins.
    for key, value in [*result["metrics"].items(), *result.items()]:
        if key != "metrics":
            row.update({key: _cell(value)} if key in _ONE_CELL else _flat(key, value))
    row["model_fullname"] = f"{result['model']} {result['pretrained']}"
    return row


def _flat(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: _cell(value)}
    return {column: cell for key, inner in value.items() for column, cell in _flat(f"{name}.{key}", inner).items()}


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else value


def _plain(value: Any) -> Any:
    """The value as strict JSON holds it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "item"):  # a NumPy or torch scalar
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _target(path: StrPath) -> Path:
    """Where the file really is: a rename onto a symbolic link would replace the link."""
    return Path(os.path.realpath(path))


def write_text(text: str, path: StrPath) -> None:
    """Write a file as UTF-8, all of it or nothing; its line ends stay as they are."""
    write_bytes(text.encode("utf-8", "surrogateescape"), path)


def write_bytes(content: bytes, path: StrPath) -> None:
    """Write a file, all of it or nothing: to a temporary one that is renamed."""
    target = _target(path)
    # In the same folder, because a rename is atomic within one file system only; not named .json, so that
    # `build` never takes it for a result.
    temporary = target.parent / f".anchorprune-{secrets.token_hex(6)}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _unreadable(path: StrPath, error: OSError) -> UserError:
    reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror or str(error)
    return UserError(f"{path}: {reason}; name a file that can be read")
