"""`encode`: all images of an input through a pruned model into files, from wherever an earlier run stopped."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import time
import warnings
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from anchorprune.datasets.sampling import choose
from anchorprune.datasets.workers import in_batches
from anchorprune.embeddings.fidelity import fidelity
from anchorprune.embeddings.inputs import files_of, open_input
from anchorprune.embeddings.listing import Listing
from anchorprune.embeddings.loading import LONGEST, Loaded, Reader, shown
from anchorprune.embeddings.request import FOLDERS, EncodeRequest
from anchorprune.embeddings.tower import Encoded, PrunedTower
from anchorprune.errors import FieldError, UserError
from anchorprune.evaluation.inputs import field_reads, model_reads
from anchorprune.evaluation.runtime import Runtime
from anchorprune.files import StrPath, output_folder, real_path
from anchorprune.models import check as check_model
from anchorprune.models import load
from anchorprune.models.base import LoadedModel
from anchorprune.outputs import Read, check_names
from anchorprune.progress import QUIET, Reporting, telling
from anchorprune.pruning.copies import sharing_copy

if TYPE_CHECKING:
    from anchorprune.embeddings.store import Store

_FILES = ("encode.json", "failures.parquet")


def encode(
    request: EncodeRequest,
    out: StrPath,
    *,
    shard: tuple[int, int] = (0, 1),
    check: int = 0,
    model: LoadedModel | None = None,
    reporting: Reporting = QUIET,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Encode the images that the request names into files in the folder `out`; goes on where it was stopped.

    Output shards that are finished stay, the others are done anew: their rows are the same, however often it was
    stopped.

    Args:
        out: a folder that is new, or that this very request began.
        shard: (rank, world): only every world-th output shard from the rank-th on. Processes that share a folder so
            write different files of it.
        check: how many images to encode unpruned as well, to say how near the embeddings are. By rank 0.
        model: a `LoadedModel` to use instead of loading what the request names.
        reporting: how progress is told; not at all by default.
        say: is given what else a person wants to read.

    Returns:
        What encode.json holds: what all processes have finished by now.

    Raises:
        UserError: an input, a model or a pruning that cannot be; a folder of another request; more failures than the
            request allows. Finished shards stay.
    """
    _require_pyarrow()
    rank, world = shard
    if not 0 <= rank < world:
        raise FieldError("shard", shard, "must be (rank, world) with a rank below the world's size")
    if check < 0:
        raise FieldError("check", check, "give a number of images, or 0 for none")
    if check and request.pruning is None and not request.fast_decode:
        raise FieldError("check", check, "nothing is pruned here, so that there is nothing to compare; leave it out")
    if model is None:
        spec = request.model
        check_model(spec)
    runtime = Runtime.of(request.compute)
    from anchorprune.embeddings.store import Store  # which imports pyarrow

    _check_apart(request, Path(out))
    with output_folder("out", out, *_FILES, *(f"{name}/" for name in FOLDERS[request.format])) as folder:
        with telling(reporting):
            listing = open_input(request)
        if listing.left_out:
            warnings.warn(f"{listing.left_out}: left out", stacklevel=2)
        count, first = listing.ids.repeated()
        if count:
            what = "1 image has" if count == 1 else f"{count:,} images have"
            warnings.warn(f"{what} an id that is there already, such as {first!r}; each is a row", stacklevel=2)
        types = listing.types(request.columns)
        if request.texts and "string" not in str(of_texts := types[request.texts]):
            raise FieldError("texts", request.texts, f"is a column of {of_texts}; texts are what is encoded")
        rows = _chosen(listing, request)
        if model is None:
            model = load(request.model, runtime.device, runtime.weights, request.seed)
        if request.texts and model.tokenizer is None:
            raise FieldError("texts", request.texts, "this model has no text tower; leave it out")
        identity = {
            **request.identity(),
            "images": f"{len(listing)} ({listing.ids.digest()[:16]})",
            "weights": weights_fingerprint(model.model),
            # Functions among the steps show where they lie in this process's memory.
            "preprocessing": re.sub(r" at 0x[0-9a-fA-F]+", "", str(model.transform)),
            "precision": runtime.dtype,
        }
        store = Store(folder, request, identity, len(rows))
        tower = PrunedTower(model, request, runtime, pruning=request.pruning, fast_decode=request.fast_decode)
        try:
            environment = runtime.environment()
            store.begin({**tower.about, "model_options": model.options, "environment": environment})
            job = _Job(request, listing, rows, types, model, tower, store)
            if check and rank == 0 and (store.check() or {}).get("images") != min(check, len(rows)):
                store.keep_check(job.check(check))
                say(_of_check(store.check() or {}))
            try:
                job.run(shard, reporting, say)
                if tower.pruning and (shares := tower.pruning.shares):
                    say(f"of the images the stages encoded {', '.join(f'{100 * share:.1f} %' for share in shares)}")
            finally:
                summary = store.sum_up()
        finally:
            tower.restore()
    if summary["finished"] and not summary["rows"]:
        fix = f"no image of it could be encoded; {folder}/failures.parquet says why"
        raise FieldError("input", " ".join(request.input), fix)
    return summary


def _check_apart(request: EncodeRequest, out: Path) -> None:
    """FieldError where what is read lies where this writes."""
    reads = [*model_reads(request.model), *(Read("input", file) for file in files_of(request))]
    reads += field_reads(request.pruning) if request.pruning else []
    check_names("out", out, _FILES, reads)
    folders = [real_path(out / name) for name in FOLDERS[request.format]]
    for read in reads:
        if any(real_path(read.path).is_relative_to(folder) for folder in folders):
            said = f"is where {{}} {read.path} lies, which is read; name another folder"
            raise FieldError("out", str(out), said.format(read.name), typed=said.format(f"--{read.name}"))


def _require_pyarrow() -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise UserError("encode writes Parquet files by pyarrow: pip install 'anchorprune[encode]'") from error


def _chosen(listing: Listing, request: EncodeRequest) -> Sequence[int]:
    if request.limit is None:
        return range(len(listing))
    return array("q", choose(listing.ids, request.limit, request.seed))


def weights_fingerprint(model: Any) -> str:
    """The sha256 of all parameters and buffers by their names, whatever file they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _of_check(found: dict[str, Any]) -> str:
    return (
        f"check of {found['images']} images, against the unpruned model: cosine {found['cosine_mean']:.4f} on average, "
        f"{found['cosine_p5']:.4f} at the 5th percentile; recall@1 {found['recall@1']:.4f}, @5 {found['recall@5']:.4f}"
    )


@dataclass
class _Part:
    """An output shard that is being filled, from batches in the input's order."""

    shard: int
    began: float
    listing: Listing
    encoded: list[Encoded] = field(default_factory=list)
    failures: list[tuple[int, str, str]] = field(default_factory=list)
    seen: int = 0

    def add(self, encoded: Encoded) -> None:
        """One more batch, less the rows whose embeddings are not finite, which nobody could search."""
        batch = encoded.batch
        self.seen += len(batch)
        self.failures += batch.failures
        finite = np.isfinite(encoded.embeddings).all(axis=1)
        if encoded.texts is not None:
            finite &= np.isfinite(encoded.texts).all(axis=1)
        if not finite.all():
            places = np.flatnonzero(finite)
            bad = [batch.rows[i] for i in np.flatnonzero(~finite)]
            self.failures += [(row, shown(self.listing.ids[row]), "its embedding is not finite") for row in bad]
            batch.rows = [batch.rows[i] for i in places]
            batch.columns = {name: [values[i] for i in places] for name, values in batch.columns.items()}
            encoded.embeddings = encoded.embeddings[places]
            encoded.texts = None if encoded.texts is None else encoded.texts[places]
        self.encoded.append(encoded)

    def collected(self, types: dict[str, Any]) -> Any:
        """`layouts.Rows` of all batches."""
        import pyarrow as pa

        from anchorprune.embeddings.layouts import Rows

        rows = [row for part in self.encoded for row in part.batch.rows]
        texts = [part.texts for part in self.encoded if part.texts is not None]
        return Rows(
            ids=[shown(self.listing.ids[row]) for row in rows],
            paths=[shown(self.listing.path(row)) for row in rows],
            embeddings=np.concatenate([part.embeddings for part in self.encoded]),
            texts=np.concatenate(texts) if texts else None,
            columns={
                name: pa.array([value for part in self.encoded for value in part.batch.columns[name]], kind)
                for name, kind in types.items()
            },
        )

    def spent(self) -> dict[str, float]:
        """Seconds: of the workers for reading and decoding, and of the device."""
        return {
            "reading": sum(part.batch.reading for part in self.encoded),
            "decoding": sum(part.batch.decoding for part in self.encoded),
            "encoding": sum(part.encoding for part in self.encoded),
            "encoding_texts": sum(part.encoding_texts for part in self.encoded),
        }


@dataclass
class _Job:
    """A request with all that it needs, opened."""

    request: EncodeRequest
    listing: Listing
    rows: Sequence[int]
    types: dict[str, Any]
    model: LoadedModel
    tower: PrunedTower
    store: Store

    def run(self, share: tuple[int, int], reporting: Reporting, say: Callable[[str], None]) -> None:
        """The output shards of (rank, world), as far as they are not finished."""
        rank, world = share
        name = f"encode, shard {rank}/{world}" if world > 1 else "encode"  # of which the images are counted
        todo, failed, there = [], 0, 0
        for shard in range(rank, self.store.shards, world):
            if (record := self.store.record(shard)) is None:
                todo.append(shard)
            else:
                failed += len(record["failures"])
                there += self._size(shard)
        total = there + sum(map(self._size, todo))
        if there:
            say(f"{name}: {there:,} of {total:,} images are done already")
        with reporting.of(name, total, done=there) as progress:
            encoded = self.tower.encode(self._loaded(self.tower, self._batches(todo)))
            for shard in todo:
                part = _Part(shard, time.perf_counter(), self.listing)
                while part.seen < self._size(shard):
                    before = part.seen, len(part.failures)
                    part.add(next(encoded))
                    progress.update(part.seen - before[0])
                    if shard == todo[0] and not before[0]:
                        _warn_of_nothing(part.encoded[0].batch)
                    if new := part.failures[before[1] :]:
                        failed += len(new)
                        self._allow(failed, total, new[-1])
                self.store.write(shard, part.collected(self.types), part.failures, part.spent(), part.began)

    def check(self, count: int) -> dict[str, Any]:
        """`fidelity` of images chosen by the seed: of what would be written of them, and of the unpruned model's."""
        ids = [self.listing.ids[row] for row in self.rows] if self.request.limit else self.listing.ids
        chosen = [self.rows[i] for i in choose(ids, count, self.request.seed)]
        whole = dataclasses.replace(self.model, model=sharing_copy(self.model.model))
        unpruned = PrunedTower(whole, self.request, self.tower.runtime, pruning=None, fast_decode=False)
        found: list[dict[int, Any]] = []
        for tower in (self.tower, unpruned):
            batches = _cut(chosen, self.request.compute.batch_size)
            parts = tower.encode(self._loaded(tower, batches, images_only=True))
            found.append({row: e for part in parts for row, e in zip(part.batch.rows, part.embeddings, strict=True)})
        both = [row for row in chosen if row in found[0] and row in found[1]]
        if not both:
            raise FieldError("check", count, "none of the images chosen for it can be read")
        ours, theirs = (np.stack([each[row] for row in both]) for each in found)
        return {"images": len(chosen), "read": len(both), **fidelity(ours, theirs)}

    def _positions(self, shard: int) -> slice:
        return slice(shard * self.request.rows_per_shard, (shard + 1) * self.request.rows_per_shard)

    def _size(self, shard: int) -> int:
        return len(range(len(self.rows))[self._positions(shard)])

    def _batches(self, shards: Sequence[int]) -> Iterator[Sequence[int]]:
        """Batches end where shards end, so that a row does not depend on which shards were there already."""
        for shard in shards:
            yield from _cut(self.rows[self._positions(shard)], self.request.compute.batch_size)

    def _loaded(
        self, tower: PrunedTower, batches: Iterator[Sequence[int]], *, images_only: bool = False
    ) -> Iterator[Loaded]:
        columns = () if images_only else self.request.columns
        needed = None if images_only else self.request.texts
        reader = Reader(self.listing, tower.transform, columns, needed, tower.least)
        pin = tower.runtime.device.type == "cuda"
        workers = self.request.compute.num_workers
        return in_batches(reader, batches, num_workers=workers, pin_memory=pin, patience=LONGEST)

    def _allow(self, failed: int, total: int, latest: tuple[int, str, str]) -> None:
        """UserError where the request does not allow so many failures."""
        _, key, reason = latest
        if self.request.on_error == "fail":
            text = f"cannot encode {key} ({reason}); {{}} goes on"
            fix, typed = text.format("on_error='skip'"), text.format("--on_error skip")
            raise FieldError("input", " ".join(self.request.input), fix, typed=typed)
        share = self.request.max_failures
        if failed > share * total:
            fix = f"{failed:,} of {total:,} images could not be encoded, the latest {key} ({reason})"
            raise FieldError("max_failures", share, fix)


def _warn_of_nothing(first: Loaded) -> None:
    """A column that is misspelt would be empty to the end."""
    for name, values in first.columns.items():
        if values and all(value is None for value in values):
            warnings.warn(f"none of the first {len(values)} images has {name!r} to be carried along", stacklevel=3)


def _cut(rows: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
