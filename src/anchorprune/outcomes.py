"""What became of each image in one evaluation, in a file beside the result; two of them can be paired.

Single-label classification only. A file holds three arrays: `targets` and `predictions`, in the smallest type that
fits, and `keys`, the bytes of a JSON list. Text, not hashes: names that resemble each other compress to less than
8 bytes each, and the images that changed sides can be named.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anchorprune import results
from anchorprune.errors import UserError

_ARRAYS = {"keys", "targets", "predictions"}


@dataclass(frozen=True, eq=False)
class Outcomes:
    """The images of one evaluation, in any order.

    Attributes:
        keys: n names, those of `EvalDataset.keys`.
        targets, predictions: int64 `[n]`, the class each image has and the one it was given. Anything that NumPy takes
            for whole numbers may be passed, a LongTensor on the CPU included.

    Raises:
        ValueError: not one whole number an image, as with multi-label targets.
    """

    keys: tuple[str, ...]
    targets: NDArray[np.int64]
    predictions: NDArray[np.int64]

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", tuple(self.keys))
        for name in ("targets", "predictions"):
            array = np.asarray(getattr(self, name))
            if array.shape != (len(self.keys),) or array.dtype.kind not in "iu":
                raise ValueError(
                    f"{name} are {array.dtype} {list(array.shape)}, not one whole number for each of "
                    f"{len(self.keys)} images"
                )
            object.__setattr__(self, name, array.astype(np.int64))

    @property
    def right(self) -> NDArray[np.bool_]:
        """`[n]`, whether each image was recognised."""
        return self.targets == self.predictions


def path_for(result_path: results.StrPath) -> Path:
    """Where the outcomes of a result are: `x.json` -> `x.outcomes.npz`."""
    path = Path(result_path)
    return path.with_name(f"{path.name.removesuffix('.json')}.outcomes.npz")


def write(outcomes: Outcomes, path: results.StrPath) -> None:
    """Write the file, all of it or nothing; the same outcomes give the same bytes."""
    # JSON in ASCII holds every name that a file can have: line ends, and bytes that are no UTF-8 (surrogateescape).
    keys = np.frombuffer(json.dumps(outcomes.keys, separators=(",", ":")).encode("ascii"), np.uint8)
    file = io.BytesIO()
    np.savez_compressed(
        file, keys=keys, targets=_smallest(outcomes.targets), predictions=_smallest(outcomes.predictions)
    )
    results.write_bytes(file.getvalue(), path)


def read(path: results.StrPath) -> Outcomes:
    """The outcomes in the file. UserError, naming it, if it cannot be read, is damaged or is something else."""
    try:
        return _parsed(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); run its 'eval' again") from error
    except Exception as error:  # zipfile, zlib, NumPy and json raise a dozen kinds for bytes that they cannot read
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise UserError(
            f"{path}: not the outcomes of an evaluation ({reason}); remove it, or run its 'eval' again"
        ) from error


def paired(a: Outcomes, b: Outcomes) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether each image that both have was recognised: by `a` and by `b`, in the order of `a`.

    Images are the same where their keys are. A key that occurs twice in one of them is left out: nothing says which
    image is which.

    Raises:
        UserError: no image in common, or an image of two different classes.
    """
    of_a, of_b = _places(a.keys), _places(b.keys)
    both = [key for key in of_a if key in of_b]
    if not both:
        raise UserError("the two have no image in common; compare evaluations of the same data set")
    in_a = np.array([of_a[key] for key in both])
    in_b = np.array([of_b[key] for key in both])
    differ = np.flatnonzero(a.targets[in_a] != b.targets[in_b])
    if len(differ):
        first = differ[0]
        raise UserError(
            f"image {both[first]!a} is of class {a.targets[in_a[first]]} in one and {b.targets[in_b[first]]} in the "
            "other; compare evaluations of the same data set"
        )
    return a.right[in_a], b.right[in_b]


def _parsed(content: bytes) -> Outcomes:
    arrays: Any = np.load(io.BytesIO(content), allow_pickle=False)
    if set(getattr(arrays, "files", ())) != _ARRAYS:
        raise ValueError(f"it has to hold {', '.join(sorted(_ARRAYS))}")
    with arrays:
        keys = json.loads(arrays["keys"].tobytes())
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise ValueError("its keys are not a list of names")
        return Outcomes(tuple(keys), arrays["targets"], arrays["predictions"])


def _smallest(array: NDArray[np.int64]) -> NDArray[Any]:
    low, high = array.min(initial=0), array.max(initial=0)
    kinds = (np.uint8, np.uint16, np.uint32)  # class indices; anything else stays as it is
    return array.astype(next((kind for kind in kinds if low >= 0 and high <= np.iinfo(kind).max), np.int64))


def _places(keys: tuple[str, ...]) -> dict[str, int]:
    counts = Counter(keys)
    return {key: i for i, key in enumerate(keys) if counts[key] == 1}
