"""The time that pruning saves, in alternating repeats, beside what the FLOPs promise."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch

from anchorprune.errors import FieldError
from anchorprune.evaluation.request import Compute
from anchorprune.evaluation.result import SCHEMA_VERSION
from anchorprune.evaluation.runtime import Runtime
from anchorprune.files import StrPath, output_folder, write_text
from anchorprune.models import check as check_model
from anchorprune.models import load
from anchorprune.models.base import LoadedModel, ModelSpec
from anchorprune.pruning import prune
from anchorprune.pruning.budget import solve
from anchorprune.pruning.cascade import Cascading
from anchorprune.pruning.copies import sharing_copy
from anchorprune.pruning.cost import (
    image_tower_flops,
    peak_memory_mb,
    reset_peak_memory,
    time_in_turns,
    waited_seconds,
)
from anchorprune.pruning.features import features_of
from anchorprune.strategies import RECOMMENDED, Wanted
from anchorprune.strategies.base import Strategy
from anchorprune.strategies.cascade import Cascade
from anchorprune.studies.ways import ways_of
from anchorprune.towers import find_tower

SEARCHED = (RECOMMENDED, "tome", "anchor")

# Share of the timing spent waiting for the processor from which on its numbers are called unreliable.
BUSY = 0.05
TEXTS = 100  # random ones, by which a cascade tells who goes on


@dataclasses.dataclass(frozen=True)
class Speed:
    """One way of pruning at one batch size.

    Attributes:
        strategy: None for the unpruned tower.
        tokens: that reach the tower's end, of `tokens_before`.
        gmacs: multiply-adds in billions for one image, selection included.
        milliseconds: that each repeat took.
        speed_up: median over the repeats of the unpruned tower's time over this one's in the same round.
        speed_up_by_flops: what the FLOPs of both promise.
        peak_memory_mb: of the allocator on CUDA, of the whole process on a CPU.
    """

    strategy: Strategy | None
    batch_size: int
    tokens: int
    tokens_before: int
    gmacs: float
    milliseconds: tuple[float, ...]
    speed_up: float
    speed_up_by_flops: float
    peak_memory_mb: float

    @property
    def name(self) -> str:
        return f"{self.strategy.name} {self.strategy.flags()}".rstrip() if self.strategy else "unpruned"

    @property
    def p50(self) -> float:
        """Milliseconds that half of the repeats stayed below."""
        return statistics.median(self.milliseconds)

    @property
    def p95(self) -> float:
        """Milliseconds that 95 % of the repeats stayed below, the next longer one where that is no whole number."""
        return sorted(self.milliseconds)[math.ceil(0.95 * len(self.milliseconds)) - 1]

    @property
    def images_per_second(self) -> float:
        return 1000 * self.batch_size / self.p50

    @property
    def achieved(self) -> float:
        """The speed-up over what the FLOPs promise."""
        return self.speed_up / self.speed_up_by_flops

    def as_dict(self) -> dict[str, Any]:
        return {
            "pruning": self.strategy.as_dict() if self.strategy else None,
            "batch_size": self.batch_size,
            "tokens_before": self.tokens_before,
            "tokens_after": self.tokens,
            "gmacs": self.gmacs,
            "images_per_second": self.images_per_second,
            "p50_ms": self.p50,
            "p95_ms": self.p95,
            "peak_memory_mb": self.peak_memory_mb,
            "speed_up": self.speed_up,
            "speed_up_by_flops": self.speed_up_by_flops,
            "achieved": self.achieved,
            "repeats_ms": list(self.milliseconds),
        }


@dataclasses.dataclass(frozen=True)
class Speeds:
    """What `speed` measured.

    Attributes:
        speeds: the unpruned tower and each way, batch size by batch size.
        busy: share of the time that this process waited for a processor, because other programs had it.
    """

    model: ModelSpec
    speeds: Sequence[Speed]
    environment: dict[str, Any]
    repeats: int
    compile_mode: str | None
    busy: float

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "model": self.model.name,
            "pretrained": self.model.pretrained,
            "compile": self.compile_mode,
            "repeats": self.repeats,
            "environment": self.environment,
            "waited_for_processor": self.busy,
            "speeds": [speed.as_dict() for speed in self.speeds],
        }

    def to_text(self) -> str:
        """A Markdown table."""
        return as_text(self.speeds)

    def save(self, folder: StrPath) -> None:
        """Write speed.json and speed.png into a folder, which is made if it is not there."""
        from anchorprune.report.speed_chart import write_png

        title = f"{self.model.name}, {self.environment['device_name']}, {self.environment['dtype']}"
        with output_folder("folder", folder) as out:
            write_text(json.dumps(self.to_dict(), indent=2) + "\n", out / "speed.json")
            write_png(self.speeds, out / "speed.png", title)


def speed(
    model: ModelSpec | LoadedModel,
    strategies: Sequence[str | Strategy | Wanted] | None = None,
    *,
    target_gmacs: Sequence[float] | None = None,
    batch_sizes: Sequence[int] = (1, 16),
    repeats: int = 20,
    compile_mode: str | None = None,
    compute: Compute = Compute(),
    seed: int = 0,
    say: Callable[[str], object] | None = None,
) -> Speeds:
    """Time the image tower on random images, unpruned and pruned in turns.

    Args:
        model: which one (random weights will do, time depends on none), or a loaded one.
        strategies: names or strategies; None: `SEARCHED`. Of one that draws a single draw.
        target_gmacs: solve each strategy's budget for each of these; None: the budgets as they are.
        repeats: times that each is run.
        compile_mode: torch.compile's, for the unpruned tower too; None: not compiled.
        compute: the device and the precision.
        seed: of the random images.
        say: is told in two lines what is going to be measured, and on what.

    Raises:
        UserError: something in the input is wrong.

    Warns:
        UserWarning: other programs used the processor meanwhile, so that the speeds are not reliable.
    """
    for batch_size in batch_sizes:
        if batch_size < 1:
            raise FieldError("batch_size", batch_size, "must be 1 or more")
    if repeats < 2:
        raise FieldError("repeats", repeats, "must be 2 or more")
    runtime = Runtime.of(compute)
    loaded = _loaded(model, runtime, seed) if isinstance(model, ModelSpec) else model
    spec = loaded.spec or ModelSpec(name=type(loaded.model).__name__)
    find_tower(loaded.model)  # refuses what cannot be pruned

    def solved(strategy: Strategy, target: float | None) -> Strategy:
        return strategy if target is None else solve(loaded.model, strategy, target)

    ways = ways_of(SEARCHED if strategies is None else strategies, target_gmacs, solved)
    for way in ways:
        _check(way.strategies[0], compile_mode)
    tried = [None, *(way.strategies[0] for way in ways)]  # one draw takes the time of any other
    environment = runtime.environment()
    if say:
        say(describe(spec, environment, repeats, compile_mode))
    before, start = waited_seconds(), time.perf_counter()
    found = [
        each
        for batch_size in batch_sizes
        for each in measure(loaded.model, tried, runtime, batch_size, repeats, compile_mode, seed)
    ]
    busy = (waited_seconds() - before) / (time.perf_counter() - start)
    if busy > BUSY:
        warnings.warn(
            f"other programs used the processor meanwhile (this one waited for it {100 * busy:.0f} % of the time): "
            "these speeds are not reliable; run it again when the machine is idle",
            stacklevel=2,
        )
    return Speeds(spec, found, environment, repeats, compile_mode, busy)


def _check(strategy: Strategy, compile_mode: str | None) -> None:
    """Raise FieldError for what cannot be timed."""
    if isinstance(strategy, Cascade) and strategy.min_margin is not None:
        raise FieldError(
            "min_margin", strategy.min_margin, "random images have no telling margins; give a share to time"
        )
    if isinstance(strategy, Cascade) and compile_mode is not None:
        raise FieldError("compile", compile_mode, "a cascade is no one graph; time it without")


def _loaded(spec: ModelSpec, runtime: Runtime, seed: int) -> LoadedModel:
    check_model(spec)
    with warnings.catch_warnings():
        if not spec.pretrained:
            warnings.filterwarnings("ignore", "open_clip: No pretrained weights")
        return load(spec, runtime.device, runtime.weights, seed)


def measure(
    model: torch.nn.Module,
    strategies: Sequence[Strategy | None],
    runtime: Runtime,
    batch_size: int,
    repeats: int,
    compile_mode: str | None = None,
    seed: int = 0,
) -> list[Speed]:
    """Time a model's image tower on random images; the strategies take turns, so that what slows one slows all.

    Args:
        model: unpruned, on the runtime's device.
        strategies: the first must be None, what the others are held against.
        compile_mode: torch.compile's, for the unpruned tower too; None: not compiled.
    """
    tower, device = find_tower(model), runtime.device
    images = torch.randn(batch_size, 3, *tower.image_size, generator=torch.Generator().manual_seed(seed))
    images = images.to(device, runtime.images)
    candidates = [_Candidate(model, strategy, compile_mode) for strategy in strategies]
    generator = torch.Generator().manual_seed(seed)
    memory = []
    # Not inference_mode: on a CPU, under autocast, it takes F.linear off its fast path (torch 2.14).
    with torch.no_grad(), runtime.autocast(), _room_for(len(candidates)) if compile_mode else nullcontext():
        width = features_of(candidates[0].encode(images)).shape[-1]
        for candidate in candidates:
            if isinstance(candidate.pruning, Cascading):
                candidate.pruning.bank = torch.randn(width, TEXTS, generator=generator)
            candidate.encode(images)  # warms up, and says how many tokens are kept
            reset_peak_memory(device)
            candidate.encode(images)
            memory.append(peak_memory_mb(device))
        works = [partial(candidate.encode, images) for candidate in candidates]
        seconds = time_in_turns(works, device, repeats)
    return [
        Speed(
            strategy=candidate.strategy,
            batch_size=batch_size,
            tokens=candidate.tokens or tower.num_tokens,
            tokens_before=tower.num_tokens,
            gmacs=candidate.flops / 2e9,
            milliseconds=tuple(1000 * each for each in own),
            speed_up=statistics.median(dense / pruned for dense, pruned in zip(seconds[0], own, strict=True)),
            speed_up_by_flops=candidates[0].flops / candidate.flops,
            peak_memory_mb=peak,
        )
        for candidate, own, peak in zip(candidates, seconds, memory, strict=True)
    ]


class _Candidate:
    """A copy of a tower that stays pruned by a strategy, and shares its weights with the others."""

    def __init__(self, model: Any, strategy: Strategy | None, compile_mode: str | None) -> None:
        model = sharing_copy(model)
        self.strategy = strategy
        module = find_tower(model).module
        # A cascade in the method that is timed, which here is the tower's own.
        self.pruning = prune(module if isinstance(strategy, Cascade) else model, strategy) if strategy else None
        self._model, self._flops = model, image_tower_flops(model)
        self.encode = module if compile_mode is None else torch.compile(module, mode=compile_mode, fullgraph=True)

    @property
    def flops(self) -> int:
        """Of an image; of a cascade's the mean."""
        return image_tower_flops(self._model) if isinstance(self.pruning, Cascading) else self._flops

    @property
    def tokens(self) -> int | None:
        """That reach the end; None for the unpruned tower."""
        if self.pruning is None:
            return None
        assert self.pruning.tokens_after is not None, "another tower's compiled code ran"
        return self.pruning.tokens_after


def _room_for(candidates: int) -> AbstractContextManager[Any]:
    """torch.compile gives up on code after 8 variants of it, and the candidates share theirs."""
    import torch._dynamo

    patch: AbstractContextManager[Any] = torch._dynamo.config.patch(recompile_limit=max(8, 2 * candidates))
    return patch


def describe(spec: ModelSpec, where: dict[str, Any], repeats: int, compile_mode: str | None) -> str:
    """The line above the table: on what, and how."""
    weights = spec.pretrained or "random weights"
    compiled = f", torch.compile ({compile_mode})" if compile_mode else ""
    return (
        f"{spec.name} ({weights}) on {where['device_name']} ({where['device']}, {where['threads']} threads), "
        f"{where['dtype']}{compiled}, random images, median of {repeats} alternating repeats\n"
        f"anchorprune {where['anchorprune']}, torch {where['torch']}, open_clip {where['open_clip']}, "
        f"Python {where['python']}"
    )


def as_text(speeds: Sequence[Speed]) -> str:
    """A Markdown table."""
    lines = [
        "| batch | pruning | tokens | GMACs | images/s | p50 ms | p95 ms | MiB | speed-up | by FLOPs | achieved |",
        "|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {s.batch_size} | {s.name} | {s.tokens} | {s.gmacs:.2f} | {s.images_per_second:.1f} | {s.p50:.1f} | "
        f"{s.p95:.1f} | {s.peak_memory_mb:.0f} | {s.speed_up:.2f} × | {s.speed_up_by_flops:.2f} × | {s.achieved:.2f} |"
        for s in speeds
    ]
    return "\n".join(lines)
