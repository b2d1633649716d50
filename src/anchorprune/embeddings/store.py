"""The output folder: what is finished in it, whose it is, and what it sums up to.

    encode.json            the request, what was found, what it took
    failures.parquet       images without an embedding: id, row, reason
    embeddings/00000.parquet …, or img_emb/, metadata/, text_emb/ (`layouts.py`)
    shards/00000.json …    written after a shard's own files: with it the shard is finished

Processes that share the folder write different shards. What is said of all of them is summed up from `shards/` by
whoever comes to its end.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from anchorprune.embeddings.layouts import LAYOUTS, Rows
from anchorprune.embeddings.request import EncodeRequest
from anchorprune.errors import FieldError, UserError
from anchorprune.evaluation.request import config_hash, plain
from anchorprune.files import clear_unfinished, real_path, write_text, writing
from anchorprune.reading import bytes_of, json_of

SCHEMA_VERSION = 1


class Store:
    """The folder of one request.

    Attributes:
        identity: what decides the output; another one is refused.
        shards: how many there are.
    """

    def __init__(self, folder: Path, request: EncodeRequest, identity: dict[str, Any], images: int) -> None:
        """
        Raises:
            FieldError: the folder holds what another request made; the sentence says what differs.
        """
        self.folder, self.identity, self.images = folder, plain(identity), images
        self.request = request
        self.hash = config_hash(identity)
        self.shards = -(-images // request.rows_per_shard)
        self.layout = LAYOUTS[request.format](folder, self.shards)
        self._about: dict[str, Any] = {}
        self._check()

    def _check(self) -> None:
        path = self.folder / "encode.json"
        if not path.exists():
            if any((self.folder / name).exists() for name in ("shards", "img_emb", "embeddings")):
                raise FieldError("out", str(self.folder), "holds embeddings without encode.json; name another folder")
            return
        try:
            before = json_of(bytes_of(path))["identity"]
            keys = [key for key in {**self.identity, **before} if before.get(key) != self.identity.get(key)]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: is not what encode writes ({error}); name another folder") from error
        if keys:
            both = [f"{key}: {_short(before.get(key))} there, {_short(self.identity.get(key))} here" for key in keys]
            fix = f"holds the embeddings of another request ({'; '.join(both)}); name another folder"
            raise FieldError("out", str(self.folder), fix)

    def begin(self, about: dict[str, Any]) -> None:
        """Make the folder this request's, before the first shard.

        Args:
            about: what is known of it by now, such as its GMACs.
        """
        self._about = about
        if not (self.folder / "encode.json").exists():
            self._write({"finished": False})
        for path in (self.folder / "shards", *self.layout.folders(texts=self.request.texts is not None)):
            path.mkdir(exist_ok=True)
            clear_unfinished(real_path(path))

    def _record(self, shard: int) -> Path:
        return self.folder / "shards" / f"{shard:05d}.json"

    def record(self, shard: int) -> dict[str, Any] | None:
        """What is known of a finished shard; None for one that is not, or whose files are gone.

        Raises:
            UserError: it is another request's.
        """
        try:
            found: dict[str, Any] = json_of(bytes_of(self._record(shard)))
            done, rows = found["request"], int(found["rows"])
            failures = [(int(row), str(id), str(reason)) for row, id, reason in found["failures"]]
            seconds = {str(name): float(value) for name, value in found["seconds"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        if done != self.hash:
            where = self._record(shard)
            raise UserError(f"{where}: is of another request, begun at the same time; name another folder")
        if rows and not all(path.exists() for path in self.layout.files(shard, self.request)):
            return None
        return found | {"rows": rows, "failures": failures, "seconds": seconds}

    def write(
        self, shard: int, rows: Rows, failures: list[tuple[int, str, str]], seconds: dict[str, float], began: float
    ) -> None:
        """A shard's files, each whole or not at all, and last its record.

        Args:
            failures: (row, id, reason) of each image without an embedding.
            seconds: what it took; the writing is added, and all in all.
            began: when it did, by `time.perf_counter`.
        """
        start = time.perf_counter()
        self.layout.write(shard, rows, self.request, {"anchorprune": json.dumps({"request": self.hash, **self._about})})
        end = time.perf_counter()
        record = {
            "request": self.hash,
            "shard": shard,
            "rows": len(rows.ids),
            "failures": sorted(failures),
            "seconds": {**seconds, "writing": end - start, "total": end - began},
        }
        write_text(json.dumps(record) + "\n", self._record(shard))

    def keep_check(self, found: dict[str, Any]) -> None:
        """What the comparison with the unpruned model found."""
        write_text(json.dumps(found) + "\n", self.folder / "shards" / "check.json")

    def check(self) -> dict[str, Any] | None:
        with suppress(OSError, ValueError):
            found = json_of(bytes_of(self.folder / "shards" / "check.json"))
            return found if isinstance(found, dict) else None
        return None

    def sum_up(self) -> dict[str, Any]:
        """Write encode.json and failures.parquet of what all processes have finished by now; gives encode.json."""
        rows = finished = 0
        seconds: dict[str, float] = {}
        failures: list[tuple[int, str, str]] = []
        for shard in range(self.shards):
            if (record := self.record(shard)) is None:
                continue
            finished += 1
            rows += record["rows"]
            failures += record["failures"]
            for name, value in record["seconds"].items():
                seconds[name] = seconds.get(name, 0.0) + value
        self._write_failures(failures)
        total = seconds.get("total", 0.0)  # of all processes together
        return self._write(
            {
                "finished": finished == self.shards,
                "shards": {"finished": finished, "all": self.shards},
                "images": self.images,
                "rows": rows,
                "failures": len(failures),
                "images_per_second": (rows + len(failures)) / total if total else None,
                "seconds": seconds,
                "check": self.check(),
            }
        )

    def _write(self, found: dict[str, Any]) -> dict[str, Any]:
        content = {
            "schema_version": SCHEMA_VERSION,
            **found,
            **self._about,
            "request": self.request.as_dict(),
            "identity": self.identity,
            "hash": self.hash,
        }
        text = json.dumps(plain(content), indent=2, allow_nan=False, ensure_ascii=False)
        write_text(text + "\n", self.folder / "encode.json")
        return content

    def _write_failures(self, failures: list[tuple[int, str, str]]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = list(zip(*failures, strict=True)) or [(), (), ()]
        table = pa.table(
            {
                "id": pa.array(columns[1], pa.string()),
                "row": pa.array(columns[0], pa.int64()),
                "reason": pa.array(columns[2], pa.string()),
            }
        )
        with writing(self.folder / "failures.parquet") as out:
            pq.write_table(table, out)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"
