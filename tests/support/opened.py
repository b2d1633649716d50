"""A data set as the engine opens it, from its name and the fields of a `DataSpec`."""

from __future__ import annotations

from typing import Any

from anchorprune.datasets import DataSpec, EvalDataset, open_dataset


def opened(name: str, *, transform: Any, **fields: Any) -> EvalDataset:
    return open_dataset(DataSpec(name=name, **fields), transform)
