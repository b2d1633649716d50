"""What an input is once it is listed: images by their number, with stable ids, read when asked for."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from anchorprune.datasets.images import one_line
from anchorprune.datasets.remote import is_url
from anchorprune.datasets.sampling import BadImage
from anchorprune.embeddings.strings import Strings
from anchorprune.errors import FieldError
from anchorprune.reading import json_of


class Listing(ABC):
    """The images of an input, in its order. A process that reads them may be a fork or a pickled copy.

    Attributes:
        ids: one for each image, the same in every run.
        left_out: what was found and is no image, to be said; empty where there is nothing.
    """

    ids: Strings
    left_out: str = ""

    def __len__(self) -> int:
        return len(self.ids)

    @abstractmethod
    def read(self, row: int) -> bytes:
        """The image as it is kept. Raises BadImage where it cannot be read."""

    @abstractmethod
    def columns(self, row: int, names: Sequence[str]) -> dict[str, Any]:
        """What is carried along with it; None for what it does not have. Raises BadImage where it cannot be read."""

    def path(self, row: int) -> str:
        """Where a person finds the image: its file, where it is one, else its id."""
        return self.ids[row]

    def types(self, names: Sequence[str]) -> dict[str, Any]:
        """The Arrow type of each column; text unless the input says more. UserError for one that cannot be there."""
        import pyarrow as pa

        return {name: pa.string() for name in names}


def labels(files: Sequence[str]) -> list[str]:
    """What files, or URLs, are called in ids: by their paths below the folder that all of them lie in.

    Raises:
        FieldError: one is named twice.
    """
    parts = [f.partition("?")[0].split("/") if is_url(f) else os.path.abspath(f).split(os.sep) for f in files]
    shared = 0
    while all(len(each) > shared + 1 and each[shared] == parts[0][shared] for each in parts):
        shared += 1
    found = ["/".join(each[shared:]) for each in parts]
    if twice := next((label for label, times in Counter(found).items() if times > 1), None):
        raise FieldError("input", twice, "is there twice, so that its images had the same ids; name each file once")
    return found


def beside(names: Sequence[str], part: Callable[[str], bytes | None], source: str) -> dict[str, str | None]:
    """Texts that stand beside an image: of `txt` the file or member NAME.txt, else what NAME.json has under that key.

    Args:
        part: the content by the extension; None where there is none.
    """
    found: dict[str, str | None] = {}
    fields: Any = None
    for name in names:
        data = part(name)
        if data is not None:
            found[name] = _text(data, f"{source}, {name}").strip()
            continue
        if fields is None:
            content = part("json")
            fields = {} if content is None else _object(content, f"{source}, json")
        value = fields.get(name)
        found[name] = value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return found


def _text(data: bytes, source: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        raise BadImage(f"{source}: is no UTF-8 text ({one_line(err)})") from err


def _object(data: bytes, source: str) -> dict[str, Any]:
    try:
        content = json_of(_text(data, source), nan_is_none=True)
    except ValueError as err:
        raise BadImage(f"{source}: is no JSON ({one_line(err)})") from err
    return content if isinstance(content, dict) else {}
