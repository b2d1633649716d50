"""A pruned model on a GPU: the tokens that a CPU keeps, CUDA graphs, half precision, threads, torch.compile.

    python benchmarks/on_a_gpu.py --model ViT-B-16-quickgelu

Random weights and images. Each line is a check that holds or does not; the last one says how many did not. Speeds are
`anchorprune speed --device cuda`, with `--compile reduce-overhead` or `max-autotune` too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import open_clip
import torch
from torch import Tensor

from anchorprune import prune
from anchorprune.pruning.copies import sharing_copy
from anchorprune.pruning.cost import image_tower_flops
from anchorprune.strategies import standalone

failed: list[str] = []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ViT-B-16-quickgelu")
    parser.add_argument("--compiled", nargs="*", default=["coarse", "random"], help="strategies to compile")
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    model = open_clip.create_model(args.model).eval()
    images = torch.randn(8, 3, *model.visual.image_size)
    print(torch.cuda.get_device_name(), torch.__version__, args.model)
    with torch.no_grad():
        on_cpu = {name: features(model, name, images) for name in standalone()}
        model.cuda()
        images = images.cuda()
        for name in standalone():
            check(
                f"{name}: the tokens and features of a CPU", lambda name=name: same(model, name, images, on_cpu[name])
            )
            check(f"{name}: a CUDA graph replays what eager gives", lambda name=name: graph(model, name, images))
            check(f"{name}: half precision is finite", lambda name=name: half(model, name, images))
            check(f"{name}: eight threads get what one gets", lambda name=name: threads(model, name, images))
        for name in args.compiled:
            check(f"{name}: compiles into one graph", lambda name=name: compiled(model, name, images))
    print(f"{len(failed)} did not hold")
    return bool(failed)


def pruned(model: Any, name: str) -> tuple[Any, Any]:
    """A copy of the image tower that is pruned to about half of the compute, and the handle."""
    tower = sharing_copy(model.visual)
    return tower, prune(tower, name, target_gmacs=image_tower_flops(model) / 4e9)


def features(model: Any, name: str, images: Tensor) -> tuple[Tensor, Tensor]:
    tower, pruning = pruned(model, name)
    found = tower(images)
    return found, pruning.kept


def same(model: Any, name: str, images: Tensor, on_cpu: tuple[Tensor, Tensor]) -> str:
    found, kept = features(model, name, images)
    equal = int((kept.cpu() == on_cpu[1]).all(dim=1).sum())
    error = off(found.cpu(), on_cpu[0])
    assert equal >= len(images) - 1  # one close call is allowed
    assert error < 1e-4
    return f"{equal} of {len(images)} images keep the same tokens, features within {error:.1e} (median, relative)"


def graph(model: Any, name: str, images: Tensor) -> str:
    tower, _ = pruned(model, name)
    expected, still = tower(images), images.clone()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        tower(still)
    torch.cuda.current_stream().wait_stream(stream)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        found = tower(still)
    still.copy_(images.flip(0))
    captured.replay()
    flipped = off(found, tower(images.flip(0)))
    still.copy_(images)
    captured.replay()
    error = max(flipped, off(found, expected))
    assert error < 1e-4
    return f"features within {error:.1e} (median, relative)"


def off(found: Tensor, expected: Tensor) -> float:
    """Median over the images; merging adds in whatever order a GPU takes, so that two runs differ by rounding."""
    return float((found - expected).norm(dim=1).div(expected.norm(dim=1)).median())


def half(model: Any, name: str, images: Tensor) -> str:
    tower, _ = pruned(model, name)
    whole = tower(images)
    said = []
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("cuda", dtype):
            found = tower(images).float()
        assert found.isfinite().all()
        said.append(f"{dtype}: cosine {float(torch.cosine_similarity(found, whole).min()):.4f}")
    return ", ".join(said)


def threads(model: Any, name: str, images: Tensor) -> str:
    tower, _ = pruned(model, name)
    batches = [images[: 1 + i % 8] for i in range(32)]
    expected = [tower(batch) for batch in batches]

    def encode(batch: Tensor) -> Tensor:
        with torch.no_grad():
            return tower(batch)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(encode, batches))
    error = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
    assert error < 1e-4
    return f"largest difference {error:.1e}"


def compiled(model: Any, name: str, images: Tensor) -> str:
    tower, _ = pruned(model, name)
    expected = tower(images)
    found = torch.compile(tower, fullgraph=True)(images)
    error = off(found, expected)
    assert error < 1e-3
    return f"features within {error:.1e} (median, relative)"


def check(what: str, holds: Callable[[], str]) -> None:
    try:
        print(f"{what}: {holds()}", flush=True)
    except Exception as error:  # whatever a library raises: the other checks go on
        failed.append(what)
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        print(f"{what}: NOT ({type(error).__name__}: {reason})", flush=True)


if __name__ == "__main__":
    sys.exit(main())
