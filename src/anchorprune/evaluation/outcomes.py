"""What became of each sample in one evaluation, in a file beside the result; two of them can be paired.

A file holds `keys`, the bytes of a JSON list, and `scores`, in the smallest type that fits; of classification instead
of scores, which follow from them, `targets` and `predictions`; and `config_hash`, the bytes of the request's hash. Keys
are text, not hashes: names that resemble each other compress to less than 8 bytes each, and the images that changed
sides can be named.

The result is written first, and says which bytes its outcomes are (`digest`): whoever is killed between the two leaves
a result whose outcomes are missing, never one beside those of another run.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from anchorprune.errors import UserError
from anchorprune.files import StrPath, write_bytes
from anchorprune.reading import arrays_of, bytes_of, json_of, reason
from anchorprune.tasks.base import Outcomes

_CLASSES = {"targets", "predictions"}
_AT_ONCE = 1024  # keys


class OfAnotherRun(UserError):
    """The outcomes beside a result are not its own."""


def path_for(result_path: StrPath) -> Path:
    """Where the outcomes of a result are: `x.json` -> `x.outcomes.npz`."""
    path = Path(result_path)
    return path.with_name(f"{path.name.removesuffix('.json')}.outcomes.npz")


def write(outcomes: Outcomes, path: StrPath, config_hash: str | None = None) -> None:
    """Write the file, all of it or nothing; the same outcomes give the same bytes."""
    write_bytes(as_bytes(outcomes, config_hash), path)


def digest(content: bytes) -> str:
    """16 hex digits of a file's bytes."""
    return hashlib.sha256(content).hexdigest()[:16]


def as_bytes(outcomes: Outcomes, config_hash: str | None = None) -> bytes:
    """The file of these outcomes."""
    arrays: dict[str, NDArray[Any]] = {}
    if config_hash is not None:
        arrays["config_hash"] = np.frombuffer(config_hash.encode("ascii"), np.uint8)
    if not outcomes.details.keys() >= _CLASSES:
        scores = outcomes.scores
        arrays["scores"] = scores.astype(np.uint8) if np.isin(scores, (0, 1)).all() else scores
    arrays |= {name: _smallest(array) for name, array in outcomes.details.items()}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:  # as np.savez_compressed, but for the keys
        with _member(archive, "keys") as member:
            _write_keys(outcomes.keys, member)
        for name, array in arrays.items():
            with _member(archive, name) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    return file.getvalue()


def _member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    return archive.open(f"{name}.npy", "w", force_zip64=True)


def _write_keys(keys: Sequence[str], member: IO[bytes]) -> None:
    """The array of the bytes of their JSON list, never all of it in memory: keys are most of what is known of a sample.

    JSON in ASCII holds every name that a file can have: line ends, and bytes that are no UTF-8 (surrogateescape).
    """
    size = sum(map(len, _pieces(keys)))
    np.lib.format.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": (size,)})
    for piece in _pieces(keys):
        member.write(piece)


def _pieces(keys: Sequence[str]) -> Iterator[bytes]:
    yield b"["
    for first in range(0, len(keys), _AT_ONCE):
        part = json.dumps(keys[first : first + _AT_ONCE], separators=(",", ":"))[1:-1]
        yield (("," if first else "") + part).encode("ascii")
    yield b"]"


def read(path: StrPath) -> tuple[Outcomes, str | None]:
    """The outcomes in the file, and the hash of the request that they are of; None where the file does not say.

    UserError, naming it, if it cannot be read, is damaged or is something else.
    """
    return _read(_content(path), path)


def _content(path: StrPath) -> bytes:
    try:
        return bytes_of(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); run its 'eval' again") from error


def _read(content: bytes, path: StrPath) -> tuple[Outcomes, str | None]:
    try:
        return _parsed(content)
    except MemoryError:
        raise
    except Exception as error:  # zipfile, zlib, NumPy and json raise a dozen kinds for bytes that they cannot read
        raise UserError(
            f"{path}: not the outcomes of an evaluation ({reason(error)}); remove it, or run its 'eval' again"
        ) from error


def beside(path: StrPath, result: Mapping[str, Any]) -> Outcomes | None:
    """The outcomes beside the result at `path`, where there are any, and they are its own.

    A result of today says which bytes they are; an older one has to have the hash that they hold.

    Raises:
        OfAnotherRun: they are another run's.
        UserError: they are damaged, or cannot be read.
    """
    file, told = path_for(path), result.get("outcomes_digest")
    if ("outcomes_digest" in result and told is None) or not os.path.lexists(file):
        return None  # it was written without
    content = _content(file)
    outcomes, config_hash = _read(content, file)
    own = result.get("config_hash")
    if digest(content) != told if told else own and config_hash and own != config_hash:
        raise OfAnotherRun(f"{file}: holds the outcomes of another run than {path}; run its 'eval' again")
    return outcomes


def paired(a: Outcomes, b: Outcomes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The score of each sample that both have: by `a` and by `b`, in the order of `a`.

    Samples are the same where their keys are. A key that occurs twice in one of them is left out: nothing says which
    sample is which.

    Raises:
        UserError: no sample in common, or one of two different classes.
    """
    of_a, of_b = _places(a.keys), _places(b.keys)
    both = [key for key in of_a if key in of_b]
    if not both:
        raise UserError("the two have no image in common; compare evaluations of the same data set")
    in_a = np.array([of_a[key] for key in both])
    in_b = np.array([of_b[key] for key in both])
    if "targets" in a.details and "targets" in b.details:
        targets = a.details["targets"][in_a], b.details["targets"][in_b]
        if len(differ := np.flatnonzero(targets[0] != targets[1])):
            first = differ[0]
            raise UserError(
                f"image {both[first]!a} is of class {targets[0][first]} in one and {targets[1][first]} in the other; "
                "compare evaluations of the same data set"
            )
    return a.scores[in_a], b.scores[in_b]


def _parsed(content: bytes) -> tuple[Outcomes, str | None]:
    arrays = arrays_of(content)
    if "keys" not in arrays or not (arrays.keys() >= _CLASSES or "scores" in arrays):
        raise ValueError("it has to hold keys, and scores or targets and predictions")
    keys = json_of(arrays.pop("keys").tobytes())
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError("its keys are not a list of names")
    stamp = arrays.pop("config_hash", None)
    config_hash = None if stamp is None else stamp.tobytes().decode("ascii")
    scores = arrays.pop("scores", None)
    if scores is None:
        return Outcomes.of_classes(tuple(keys), arrays["targets"], arrays["predictions"]), config_hash
    return Outcomes(tuple(keys), scores, arrays), config_hash


def _smallest(array: NDArray[np.int64]) -> NDArray[Any]:
    low, high = array.min(initial=0), array.max(initial=0)
    kinds = (np.uint8, np.uint16, np.uint32)  # class indices; anything else stays as it is
    return array.astype(next((kind for kind in kinds if low >= 0 and high <= np.iinfo(kind).max), np.int64))


def _places(keys: tuple[str, ...]) -> dict[str, int]:
    counts = Counter(keys)
    return {key: i for i, key in enumerate(keys) if counts[key] == 1}


def are_beside(path: StrPath, result: Mapping[str, Any]) -> bool:
    """Whether the result at `path` has its own outcomes beside it."""
    try:
        return beside(path, result) is not None
    except UserError:
        return False
