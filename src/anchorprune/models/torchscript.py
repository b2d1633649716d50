"""The weights in a TorchScript archive, without PyTorch's interpreter: loading such an archive runs what is in it."""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

_MOST = 1_000_000  # attributes of modules


class _Object:
    """What the archive holds an object of: its attributes, and none of its code."""

    def __init__(self, *_: Any) -> None:
        self.attributes: Any = {}

    def __setstate__(self, state: Any) -> None:
        self.attributes = state


def _first(value: Any, *_: Any) -> Any:
    return value


# What archives call besides the classes of their own modules; lists say of what they are.
_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("collections", "OrderedDict"): OrderedDict,
    **{
        ("torch.jit._pickle", name): _first
        for name in ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist", "restore_type_tag")
    },
}


class _Unpickler(pickle.Unpickler):
    """Of data.pkl: tensors, plain values, and objects whose classes are the archive's own."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(archive.open(f"{folder}/data.pkl"))
        self._archive, self._folder = archive, folder

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "__torch__":
            return _Object
        if module == "torch" and name.endswith("Storage"):
            return name
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        raise pickle.UnpicklingError(f"the archive names {module}.{name}, which no weights need")

    def persistent_load(self, pid: Any) -> Any:
        _, kind, key, _, _ = pid
        info = self._archive.getinfo(f"{self._folder}/data/{key}")
        if info.compress_type != zipfile.ZIP_STORED:
            raise pickle.UnpicklingError("the archive is compressed, which none of torch is")
        data = bytearray(self._archive.read(info))
        storage = torch.frombuffer(data, dtype=torch.uint8).untyped_storage() if data else torch.UntypedStorage(0)
        return torch.storage.TypedStorage(wrap_storage=storage, dtype=getattr(torch, kind).dtype, _internal=True)


def state_of(path: str) -> dict[str, Tensor]:
    """The tensors of the modules in an archive of `torch.jit.save`, by the names that `state_dict` gives them.

    Raises whatever unpickling and zipfile raise for a damaged file; nothing in the file is run.
    """
    with zipfile.ZipFile(path) as archive:
        folder = next(name for name in archive.namelist() if name.endswith("/data.pkl")).removesuffix("/data.pkl")
        return dict(_tensors(_Unpickler(archive, folder).load(), "", iter(range(_MOST))))


def _tensors(thing: Any, prefix: str, count: Iterator[int]) -> Iterator[tuple[str, Tensor]]:
    if next(count, None) is None:
        raise pickle.UnpicklingError("the archive's modules have no end")
    if not isinstance(thing, _Object) or not isinstance(thing.attributes, dict):
        return
    for name, value in thing.attributes.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
        else:
            yield from _tensors(value, f"{prefix}{name}.", count)
