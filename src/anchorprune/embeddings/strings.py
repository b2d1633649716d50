"""Millions of strings in one block of memory."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from typing import overload


class Strings(Sequence[str]):
    """A list of strings that costs 8 bytes each beside their text, and that a forked process need not copy.

    File names need not be valid UTF-8 (surrogateescape).
    """

    def __init__(self, strings: Iterable[str] = ()) -> None:
        self._text, self._ends = bytearray(), array("q")
        for each in strings:
            self.append(each)

    def append(self, string: str) -> None:
        self._text += string.encode("utf-8", "surrogateescape")
        self._ends.append(len(self._text))

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        end = self._ends[index]
        position = index % len(self._ends)
        start = self._ends[position - 1] if position else 0
        return self._text[start:end].decode("utf-8", "surrogateescape")

    def repeated(self) -> tuple[int, str]:
        """How many are there a second time or more often, and the first of them; 0 and nothing for none.

        For a while that takes 16 bytes a string.
        """
        import numpy as np

        hashes = np.fromiter(map(hash, self), np.int64, len(self))
        ordered = np.sort(hashes)
        again = ordered[1:][ordered[1:] == ordered[:-1]]
        seen: set[str] = set()
        count, first = 0, ""
        for row in np.flatnonzero(np.isin(hashes, again)) if len(again) else ():
            if (string := self[int(row)]) in seen:
                count, first = count + 1, first if count else string
            seen.add(string)
        return count, first

    def digest(self) -> str:
        """64 hex digits that name this very list."""
        found = hashlib.sha256(self._text)
        found.update(self._ends.tobytes())
        return found.hexdigest()
