"""What an image costs: multiply-adds counted on the tensors that run, and the memory that was used."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from anchorprune.pruning.injection import active_pruning
from anchorprune.towers import find_tower


@torch.no_grad()
def image_tower_flops(model: nn.Module) -> int:
    """FLOPs (2 per multiply-add) of the image tower for one image at its own size, selection included.

    Counted on the meta device, on the very operators that run: on a CPU the counter does not see fused attention.
    A model that is pruned at the moment is counted as pruned; under a cascade what its images have cost on average.

    Raises:
        UserError: a model that cannot be pruned; a cascade by a margin that has seen no image.
    """
    tower = find_tower(model)
    module, pruning = tower.module, active_pruning(tower)
    if pruning is not None and (mean := pruning.flops) is not None:
        return mean
    height, width = pruning.input_size if pruning else tower.image_size
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    on_meta = {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}
    image = torch.empty(1, 3, height, width, device="meta", dtype=next(module.parameters()).dtype)
    training = {part: part.training for part in module.modules()}
    module.eval()  # patch dropout would drop other tokens
    try:
        with pruning.off_the_record() if pruning else nullcontext(), FlopCounterMode(display=False) as counter:
            functional_call(module, on_meta, (image,))
    finally:
        for part, mode in training.items():
            part.training = mode
    return counter.get_total_flops()


def reset_peak_memory(device: torch.device) -> None:
    """Start `peak_memory_mb` anew, where the system can: on CUDA and on Linux."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif os.path.exists("/proc/self/clear_refs"):
        with suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")  # the kernel's number for "forget the peak resident set"


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory in MiB: of the allocator on CUDA, of the whole process (resident set) on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    with suppress(OSError, StopIteration), open("/proc/self/status", encoding="ascii", errors="replace") as lines:
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**10
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def time_in_turns(works: Sequence[Callable[[], object]], device: torch.device, repeats: int = 5) -> list[list[float]]:
    """Seconds that each of `works` takes, `repeats` times each, taken in turns.

    What else the machine does then slows all of them, where of two separate passes it might slow one; yet on a busy
    machine the threads' waiting for each other hides much of what less work saves (see `waited_seconds`). Every
    other round runs backwards. Run each before, so that it is warm.

    Returns:
        One list of `repeats` numbers for each.
    """
    seconds: list[list[float]] = [[] for _ in works]
    for repeat in range(repeats):
        order = range(len(works))
        for i in order if repeat % 2 == 0 else reversed(order):
            start = clock(device)
            works[i]()
            seconds[i].append(clock(device) - start)
    return seconds


def clock(device: torch.device) -> float:
    """Seconds, once the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def waited_seconds() -> float:
    """Seconds that this process has been ready to run and had no processor, because others had them.

    Of the main thread, and on Linux; 0 where the system does not say.
    """
    with suppress(OSError, ValueError, IndexError), open("/proc/self/schedstat", encoding="ascii") as file:
        return int(file.read().split()[1]) / 1e9
    return 0.0
