"""`anchorprune speed`: the time that pruning saves, in alternating repeats, beside what the FLOPs promise."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from anchorprune import results
from anchorprune.errors import UserError
from anchorprune.runs import device_of, precision_of, say
from anchorprune.strategies import RECOMMENDED
from anchorprune.strategies.base import Strategy
from anchorprune.sweep import ways_of

if TYPE_CHECKING:
    import torch

    from anchorprune.evaluate import Settings

# Share of the timing spent waiting for the processor from which on its numbers are called unreliable.
BUSY = 0.05


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


def run_speed(args: argparse.Namespace) -> None:
    """Time what `args` (the parsed command line) asks for; write speed.json and speed.png to `args.out`.

    Raises:
        UserError: something in the input is wrong.
    """
    for batch_size in args.batch_sizes:
        if batch_size < 1:
            raise UserError(f"--batch_size {batch_size}: must be 1 or more")
    if args.repeats < 2:
        raise UserError(f"--repeats {args.repeats}: must be 2 or more")
    with results.folder("--out", args.out) as folder:
        from anchorprune.budget import solve
        from anchorprune.evaluate import Settings, environment
        from anchorprune.report.speed_png import write_png
        from anchorprune.towers import find_tower, library

        settings = Settings(device=device_of(args), precision=precision_of(args), seed=args.seed)
        library(args.model_type).check(args.model, args.pretrained, args.model_cache_dir)
        with warnings.catch_warnings():
            if not args.pretrained:  # time depends on no weight
                warnings.filterwarnings("ignore", "open_clip: No pretrained weights")
            loaded = library(args.model_type).load(
                args.model,
                args.pretrained,
                cache_dir=args.model_cache_dir,
                device=settings.device,
                precision=settings.weights,
            )
        model = loaded.model
        find_tower(model)  # refuses what cannot be pruned

        def solved(strategy: Strategy, target: float | None) -> Strategy:
            return strategy if target is None else solve(model, strategy, target)

        ways = ways_of(args.strategies or [RECOMMENDED, "tome", "anchor"], args.targets, solved)
        strategies = [None, *(way.strategies[0] for way in ways)]  # one draw takes the time of any other
        where = environment(settings)
        say(args, describe(where, args))
        before, start = _waited(), time.perf_counter()
        found = [
            speed
            for batch_size in args.batch_sizes
            for speed in measure(model, strategies, settings, batch_size, args.repeats, args.compile)
        ]
        busy = (_waited() - before) / (time.perf_counter() - start)
        record = {
            "schema_version": results.SCHEMA_VERSION,
            "model": args.model,
            "pretrained": args.pretrained,
            "compile": args.compile,
            "repeats": args.repeats,
            "environment": where,
            "waited_for_processor": busy,
            "speeds": [speed.as_dict() for speed in found],
        }
        results.write_text(json.dumps(record, indent=2) + "\n", folder / "speed.json")
        write_png(found, folder / "speed.png", f"{args.model}, {where['device_name']}, {where['dtype']}")
        say(args, f"\n{as_text(found)}\n\nspeed.json and speed.png: {folder}")
        if busy > BUSY:
            warnings.warn(
                f"other programs used the processor meanwhile (this one waited for it {100 * busy:.0f} % of the time): "
                "these speeds are not reliable; run it again when the machine is idle",
                stacklevel=2,
            )


def _waited() -> float:
    from anchorprune.cost import waited_seconds

    return waited_seconds()


def measure(
    model: torch.nn.Module,
    strategies: Sequence[Strategy | None],
    settings: Settings,
    batch_size: int,
    repeats: int,
    compile_mode: str | None = None,
) -> list[Speed]:
    """Time a model's image tower on random images; the strategies take turns, so that what slows one slows all.

    Args:
        model: unpruned, on `settings.device`.
        strategies: the first must be None, what the others are held against.
        compile_mode: torch.compile's, for the unpruned tower too; None: not compiled.
    """
    import torch

    from anchorprune.cost import peak_memory_mb, reset_peak_memory, time_in_turns
    from anchorprune.evaluate import WEIGHTS
    from anchorprune.towers import find_tower

    tower = find_tower(model)
    images = torch.randn(batch_size, 3, *tower.image_size, generator=torch.Generator().manual_seed(settings.seed))
    images = images.to(settings.device, WEIGHTS.get(settings.precision, torch.float32))
    candidates = [_Candidate(model, strategy, compile_mode) for strategy in strategies]
    memory = []
    # Not inference_mode: on a CPU, under autocast, it takes F.linear off its fast path (torch 2.14).
    with torch.no_grad(), settings.autocast(), _room_for(len(candidates)) if compile_mode else nullcontext():
        for candidate in candidates:
            with candidate as encode:
                encode(images)  # warms up, and says how many tokens are kept
                reset_peak_memory(settings.device)
                encode(images)
                memory.append(peak_memory_mb(settings.device))
        seconds = time_in_turns(candidates, lambda encode: encode(images), settings.device, repeats)
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
    """A tower as a strategy leaves it while a `with` block on it lasts, which gives what encodes images."""

    def __init__(self, model: Any, strategy: Strategy | None, compile_mode: str | None) -> None:
        import torch

        from anchorprune.cost import image_tower_flops
        from anchorprune.pruning import prune
        from anchorprune.towers import find_tower

        # Compiled, each has a copy of its own that stays pruned: putting a strategy in drops all compiled code.
        model = model if compile_mode is None else copy.deepcopy(model)
        self.strategy = strategy
        self.pruning = prune(model, strategy) if strategy else None
        self.flops = image_tower_flops(model)
        module = find_tower(model).module
        self._stays = compile_mode is not None
        if self.pruning and not self._stays:
            self.pruning.restore()
        self._encode = module if compile_mode is None else torch.compile(module, mode=compile_mode, fullgraph=True)

    @property
    def tokens(self) -> int | None:
        """That reach the end; None for the unpruned tower."""
        if self.pruning is None:
            return None
        assert self.pruning.tokens_after is not None, "another tower's compiled code ran"
        return self.pruning.tokens_after

    def __enter__(self) -> Callable[[Any], Any]:
        if self.pruning and not self._stays:
            self.pruning.__enter__()
        return self._encode

    def __exit__(self, *error: object) -> None:
        if self.pruning and not self._stays:
            self.pruning.restore()


def _room_for(candidates: int) -> AbstractContextManager[Any]:
    """torch.compile gives up on code after 8 variants of it, and the candidates share theirs."""
    import torch._dynamo

    patch: AbstractContextManager[Any] = torch._dynamo.config.patch(recompile_limit=max(8, 2 * candidates))
    return patch


def describe(where: dict[str, Any], args: argparse.Namespace) -> str:
    """The line above the table: on what, and how."""
    weights = args.pretrained or "random weights"
    compiled = f", torch.compile ({args.compile})" if args.compile else ""
    return (
        f"{args.model} ({weights}) on {where['device_name']} ({where['device']}, {where['threads']} threads), "
        f"{where['dtype']}{compiled}, random images, median of {args.repeats} alternating repeats\n"
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
