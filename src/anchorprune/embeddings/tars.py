"""Images in webdataset tars: KEY.jpg, and what stands beside it under the same key."""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anchorprune.datasets.download import MAX_TAR, folder_of, kept
from anchorprune.datasets.reading import read_file
from anchorprune.datasets.remote import is_url
from anchorprune.datasets.sampling import BadImage
from anchorprune.datasets.wds import EXTENSIONS, samples
from anchorprune.embeddings.listing import Listing, beside, labels
from anchorprune.embeddings.strings import Strings
from anchorprune.errors import FieldError, UserError
from anchorprune.files import user_cache

_NOWHERE = -1  # the size of what is not there


class Tars(Listing):
    """Members of tars by where they are in them: 12 bytes and the id an image, 16 more for each text beside it.

    A tar that is damaged is a failure of its own after the images that can be had from it.
    """

    def __init__(self, tars: Sequence[str], called: Sequence[str], names: Sequence[str]) -> None:
        """
        Args:
            called: what each tar is called in ids.
            names: what will be asked for in `columns`.
        """
        self.ids, self.tars = Strings(), list(tars)
        self._tar, self._offset, self._size = array("l"), array("q"), array("q")
        # Where a text may be: a member of its own, or a key of the JSON.
        self._beside = {name: (array("q"), array("q")) for name in dict.fromkeys([*names, "json"] if names else ())}
        self._damage: dict[int, str] = {}
        without = 0
        for number, (tar, label) in enumerate(zip(tars, called, strict=True)):
            try:
                for key, parts in samples(Path(tar)):
                    image = next((parts[ext] for ext in EXTENSIONS if ext in parts), None)
                    if image is None:
                        without += 1
                        continue
                    self._add(f"{label}/{key}", number, image, parts)
            except UserError as error:
                self._damage[len(self.ids)] = str(error)
                self._add(label, number, (0, _NOWHERE), {})
        if without:
            self.left_out = f"{without:,} samples of the tars have no image ({', '.join(EXTENSIONS)})"

    def _add(self, name: str, tar: int, image: tuple[int, int], parts: dict[str, tuple[int, int]]) -> None:
        self.ids.append(name)
        self._tar.append(tar)
        for (offsets, sizes), (offset, size) in (
            ((self._offset, self._size), image),
            *((arrays, parts.get(ext, (0, _NOWHERE))) for ext, arrays in self._beside.items()),
        ):
            offsets.append(offset)
            sizes.append(size)

    def read(self, row: int) -> bytes:
        if row in self._damage:
            raise BadImage(self._damage[row])
        return read_file(self.tars[self._tar[row]], self._offset[row], self._size[row])

    def columns(self, row: int, names: Sequence[str]) -> dict[str, Any]:
        tar = self.tars[self._tar[row]]

        def part(extension: str) -> bytes | None:
            offsets, sizes = self._beside[extension]
            return None if sizes[row] == _NOWHERE else read_file(tar, offsets[row], sizes[row])

        return beside(names, part, f"{tar}, {self.ids[row]}")


def open_tars(tars: Sequence[str], names: Sequence[str], cache_dir: str | None) -> Tars:
    """The images of these tars, each scanned once; those from URLs are downloaded first, and kept in `cache_dir`.

    Ids are TAR/KEY, where TAR is the tar's path below the folder that all of them lie in.
    """
    folder = os.path.expanduser(cache_dir) if cache_dir else str(user_cache() / "tars")
    return Tars([_local(tar, folder) if is_url(tar) else tar for tar in tars], labels(tars), names)


def _local(url: str, folder: str) -> str:
    try:
        path = kept(url, Path(folder) / folder_of(url), MAX_TAR)
    except OSError as error:
        raise FieldError("cache_dir", folder, f"cannot be written ({error.strerror or error})") from error
    if path is None:
        raise FieldError("input", url, "the server has no such file")
    return str(path)
