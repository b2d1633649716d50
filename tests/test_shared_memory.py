"""Worker processes where shared memory is small, and such as never give anything."""

from __future__ import annotations

import os
import pickle
import time
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.opened import opened
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter
from torchvision.transforms.functional import pil_to_tensor

from anchorprune.datasets import sampling
from anchorprune.datasets.own import as_eval_dataset
from anchorprune.datasets.sampling import Batch, loader
from anchorprune.datasets.shared_memory import room
from anchorprune.errors import FieldError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "cat").mkdir()
    for i in range(6):
        Image.new("RGB", (40, 30), (40 * i, 0, 0)).save(tmp_path / "cat" / f"{i}.png")
    return tmp_path


def shared(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """/dev/shm with so many bytes left."""
    found = types.SimpleNamespace(f_bavail=size // 4096, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda path: found)


def test_where_shared_memory_is_small_images_come_through_pipes_and_are_the_same(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = opened(f"folder:{photos}", transform=pil_to_tensor)
    plain = list(loader(dataset, range(6), batch_size=4, num_workers=0))
    shared(monkeypatch, 1 << 16)
    with pytest.warns(UserWarning, match=r"/dev/shm\) is small for 2 worker processes.*--shm-size=2g") as said:
        piped = list(loader(dataset, range(6), batch_size=4, num_workers=2))
    assert len(said) == 1
    assert [batch.by_value for batch in piped] == [True, False]  # of four images, and of two
    for one, other in zip(piped, plain, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.targets, other.targets)
        assert torch.equal(one.indices, other.indices)
        assert one.keys == other.keys
        assert one.images.is_shared() != one.by_value
    shared(monkeypatch, 1 << 40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [batch.by_value for batch in loader(dataset, range(6), batch_size=4, num_workers=2)] == [False, False]


def test_all_batches_under_way_have_to_fit_of_all_ranks_of_a_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    shared(monkeypatch, 64 << 20)  # Docker's
    assert room(4) == (64 << 20) // 10  # two ahead of each worker, one in hand, one on its way
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert room(4) == (8 << 20) // 10
    monkeypatch.setattr(os, "statvfs", lambda path: (_ for _ in ()).throw(FileNotFoundError(path)))
    assert room(4) is None


def test_a_batch_that_was_never_carried_is_pickled_as_it_is() -> None:
    batch = Batch(torch.ones(2, 3, dtype=torch.bfloat16), ["a"], torch.arange(2), ["a", "b"], [])
    again = pickle.loads(pickle.dumps(batch))
    assert torch.equal(again.images, batch.images)
    batch.by_value = True
    assert torch.equal(pickle.loads(pickle.dumps(batch)).images, batch.images)


class Sleeps:
    """Whose samples come late."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        time.sleep(2)
        return torch.zeros(3, 1, 1), 0


def test_workers_that_give_nothing_are_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "PATIENCE", -1.0)  # and two for the image
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.05,))  # how often it looks
    batches = loader(as_eval_dataset(Sleeps(), "own", lambda image: image), range(4), batch_size=1, num_workers=1)
    start = time.monotonic()
    with pytest.raises(FieldError, match=r"num_workers=1: .*none has given a batch in 1 s: .*in the main process: 0"):
        list(batches)
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (OSError(28, "No space left on device"), r"cannot be started \(\[Errno 28\] No space left"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. "), "has found no shared memory"),
    ],
)
def test_what_a_lack_of_shared_memory_brings_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, photos: Path, raised: Exception, said: str
) -> None:
    def fail(*_: object) -> Any:
        raise raised

    batches = loader(opened(f"folder:{photos}", transform=pil_to_tensor), range(6), batch_size=2, num_workers=1)
    if isinstance(raised, OSError):
        monkeypatch.setattr("torch.utils.data.DataLoader.__iter__", fail)
    else:
        monkeypatch.setattr("torch.utils.data.dataloader._MultiProcessingDataLoaderIter._next_data", fail)
    with pytest.raises(FieldError, match=f"num_workers=1: .*{said}.*--shm-size=2g"):
        list(batches)
