"""A `Compute` on this machine: the device itself, and what is computed in."""

from __future__ import annotations

import platform
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch

import anchorprune
from anchorprune.errors import FieldError
from anchorprune.evaluation.request import Compute
from anchorprune.reading import reason

# What autocast or the weights compute in, by the names that open_clip gives precisions.
AUTOCAST = {"amp": None, "amp_bf16": torch.bfloat16}
WEIGHTS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Runtime:
    """The device and the precision."""

    device: torch.device
    precision: str = "amp"

    @classmethod
    def of(cls, compute: Compute) -> Runtime:
        """UserError for a device that is not to be had here."""
        name = compute.device_name()
        try:
            device = torch.device(name)
            # A tensor of `meta` holds nothing, one of `cpu:7` is on the one processor that there is.
            if float(torch.ones(1, device=device)) != 1 or (device.type == "cpu" and device.index not in (None, 0)):
                raise RuntimeError("there is no such one")
        except Exception as error:  # what a backend raises that is not in this build of torch: anything
            raise FieldError("device", name, f"is not to be had here ({reason(error)[:100]})") from error
        return cls(device, compute.precision)

    def autocast(self) -> AbstractContextManager[Any]:
        if self.precision not in AUTOCAST:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=AUTOCAST[self.precision])

    @property
    def weights(self) -> str:
        """What the weights are held in, by open_clip's name."""
        return self.precision if self.precision in WEIGHTS else "fp32"

    @property
    def images(self) -> torch.dtype:
        """What images go into the tower in."""
        return WEIGHTS.get(self.precision, torch.float32)

    @property
    def dtype(self) -> str:
        """What matrix products are computed in, for the record."""
        if self.precision in WEIGHTS:
            return str(WEIGHTS[self.precision]).removeprefix("torch.")
        dtype = AUTOCAST[self.precision] or torch.get_autocast_dtype(self.device.type)
        return f"{str(dtype).removeprefix('torch.')} (autocast)"

    def environment(self) -> dict[str, Any]:
        """Versions, device, dtype and threads: what a measurement depends on besides the input."""
        cuda = self.device.type == "cuda"
        return {
            "anchorprune": anchorprune.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "open_clip": version("open_clip_torch"),
            "platform": platform.platform(),
            "device": str(self.device),
            "device_name": torch.cuda.get_device_name(self.device) if cuda else _processor(),
            "dtype": self.dtype,
            "threads": torch.get_num_threads(),
        }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
