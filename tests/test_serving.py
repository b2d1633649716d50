"""One pruned model for many threads, and pruned models as files, copies and shares of another."""

from __future__ import annotations

import copy
import io
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from support.libraries import LIBRARIES, encode, timm_vit
from support.models import make_visual
from support.strategies import SMALL, across
from torch import Tensor

import anchorprune
from anchorprune.pruning.copies import sharing_copy

SERVED = ["open_clip", "timm ViT", "timm Eva, rotary", "transformers CLIP"]
FILED = [*SERVED, "timm ViT, mean pooling", "timm ViT, attention pooling, no CLS (SigLIP)", "transformers SigLIP"]


def make(library: str) -> Any:
    return make_visual() if library == "open_clip" else LIBRARIES[library]()


def batches(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(1 + i % 4, 3, 32, 32, generator=generator) for i in range(count)]


# Threads.


@pytest.mark.parametrize(("library", "strategy"), across(SERVED))
def test_threads_that_share_a_pruned_model_get_what_one_thread_gets(library: str, strategy: str) -> None:
    model, images = make(library), batches(24)
    with torch.inference_mode(), anchorprune.prune(model, strategy, **SMALL[strategy]) as pruning:
        alone = [encode(model, batch) for batch in images]
        kept = []
        for batch in images:
            encode(model, batch)
            kept.append(pruning.kept)
        gate = threading.Barrier(8)

        def serve(part: int) -> list[tuple[int, Tensor, Tensor]]:
            gate.wait()
            answers = []
            with torch.inference_mode():
                for i in range(part, len(images), 8):
                    features = encode(model, images[i])
                    answers.append((i, features, pruning.kept))  # of this thread's last pass
            return answers

        with ThreadPoolExecutor(8) as pool:
            for answers in pool.map(serve, range(8)):
                for i, features, own in answers:
                    assert torch.equal(features, alone[i])
                    assert torch.equal(own, kept[i])


@torch.no_grad()
def test_a_thread_that_ran_nothing_sees_nothing(images: Tensor) -> None:
    visual = make_visual()
    with anchorprune.prune(visual, "tome", r=3) as pruning:
        visual(images)
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(lambda: pruning.kept).result() is None
        assert pruning.kept is not None


@torch.no_grad()
def test_threads_may_enter_the_same_with_block(images: Tensor) -> None:
    visual = make_visual()
    dense = visual(images)
    pruning = anchorprune.prune(visual, "thin", keep_patches=6)
    pruned = visual(images)
    pruning.restore()

    def serve(_: int) -> Tensor:
        with torch.no_grad(), pruning:
            gate.wait()  # all of them are inside
            return visual(images)

    gate = threading.Barrier(4)
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(features, pruned) for features in pool.map(serve, range(4)))
    assert torch.equal(visual(images), dense)


@torch.no_grad()
def test_a_with_block_inside_another_ends_nothing(images: Tensor) -> None:
    visual = make_visual()
    dense = visual(images)
    with anchorprune.prune(visual, "thin", keep_patches=6) as pruning:
        pruned = visual(images)
        with pruning:
            assert torch.equal(visual(images), pruned)
        assert torch.equal(visual(images), pruned)
    assert torch.equal(visual(images), dense)
    with pruning, pruning:
        pruning.restore()  # said aloud, it counts at once
        assert torch.equal(visual(images), dense)
    assert torch.equal(visual(images), dense)


# open_clip, transformers and Eva of timm do not take an empty batch themselves.
@pytest.mark.parametrize(("library", "strategy"), across(name for name in LIBRARIES if name.startswith("timm ViT")))
@torch.no_grad()
def test_no_images_have_no_features(library: str, strategy: str) -> None:
    model = make(library)
    unpruned = encode(model, torch.zeros(0, 3, 32, 32))
    with anchorprune.prune(model, strategy, **SMALL[strategy]) as pruning:
        pruned = encode(model, torch.zeros(0, 3, 32, 32))
    assert (pruned.shape, pruned.dtype) == (unpruned.shape, unpruned.dtype)
    assert pruning.kept.shape[0] == 0


# Files and copies.


@pytest.mark.parametrize(("library", "strategy"), across(FILED))
@torch.no_grad()
def test_a_pruned_model_comes_out_of_a_file_pruned_and_can_be_restored(
    library: str, strategy: str, images: Tensor
) -> None:
    model = make(library)
    dense, keys = encode(model, images), list(model.state_dict())
    file = io.BytesIO()
    with anchorprune.prune(model, strategy, **SMALL[strategy]):
        pruned = encode(model, images)
        torch.save(model, file)
        copied = copy.deepcopy(model)
    file.seek(0)
    for other in (torch.load(file, weights_only=False), copied):
        assert torch.equal(encode(other, images), pruned)
        anchorprune.restore(other)
        assert torch.equal(encode(other, images), dense)
        assert list(other.state_dict()) == keys
        with anchorprune.prune(other, strategy, **SMALL[strategy]):
            assert torch.equal(encode(other, images), pruned)


ELSEWHERE = """
import sys, torch
assert "anchorprune" not in sys.modules
torch.set_num_threads(2)
folder = sys.argv[1]
given = torch.load(f"{folder}/given.pt", weights_only=True)
model = torch.load(f"{folder}/model.pt", weights_only=False)
with torch.no_grad():
    torch.testing.assert_close(model(given["images"]), given["pruned"])
    import anchorprune
    anchorprune.restore(model)
    torch.testing.assert_close(model(given["images"]), given["dense"])
"""


@pytest.mark.parametrize(
    ("library", "strategy"), [("open_clip", "coarse"), ("open_clip", "anchor"), ("timm ViT", "tome")]
)
@torch.no_grad()
def test_another_process_that_never_heard_of_us_can_read_it(
    library: str, strategy: str, images: Tensor, tmp_path: Path
) -> None:
    model = make(library)
    dense = model(images)
    with anchorprune.prune(model, strategy, **SMALL[strategy]):
        given = {"images": images, "dense": dense, "pruned": model(images)}
        torch.save(given, tmp_path / "given.pt")
        torch.save(model, tmp_path / "model.pt")
    package = Path(anchorprune.__file__).parents[1]
    run = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


# Several prunings of one model at once.


@pytest.mark.parametrize("library", SERVED)
@torch.no_grad()
def test_a_sharing_copy_is_pruned_alone_and_has_the_originals_weights(library: str, images: Tensor) -> None:
    model = make(library)
    dense = encode(model, images)
    copies = {name: sharing_copy(model) for name in ("coarse", "tome", "anchor")}
    handles = {name: anchorprune.prune(one, name, **SMALL[name]) for name, one in copies.items()}
    pruned = {name: encode(one, images) for name, one in copies.items()}
    assert torch.equal(encode(model, images), dense)
    for name, one in copies.items():
        own = dict(model.named_parameters()) | dict(model.named_buffers())
        shared = dict(one.named_parameters()) | dict(one.named_buffers())
        assert own.keys() == shared.keys()
        assert all(shared[key] is own[key] for key in own)
        assert not {id(part) for part in one.modules()} & {id(part) for part in model.modules()}
        assert handles[name].effective
        with anchorprune.prune(model, name, **SMALL[name]):
            assert torch.equal(encode(model, images), pruned[name])


@torch.no_grad()
def test_a_sharing_copy_of_a_pruned_model_is_unpruned_and_learns_with_it(images: Tensor) -> None:
    model = timm_vit()
    dense = model(images)
    with anchorprune.prune(model, "tome", r=3):
        pruned = model(images)
        other = sharing_copy(model)
        assert torch.equal(other(images), dense)
        assert torch.equal(model(images), pruned)
    model.head.weight.mul_(2)
    assert torch.equal(other(images), model(images))
