"""Several processes of this package at once: torchrun's, and such as another launcher starts."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import anchorprune

ROOT = Path(__file__).resolve().parents[1]


def environment(**more: str) -> dict[str, str]:
    """For a process that finds this package and the tests' support."""
    path = os.pathsep.join([str(Path(anchorprune.__file__).parents[1]), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


def torchrun(ranks: int, *words: object, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """`torchrun --nproc_per_node RANKS WORDS`, to its end."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    return subprocess.run(
        [*command, *map(str, words)], env=environment(), capture_output=True, text=True, timeout=timeout, check=False
    )


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def said(stderr: str) -> list[str]:
    """The lines that are anchorprune's own, without torchrun's."""
    return [line for line in stderr.splitlines() if line.startswith("anchorprune:")]


def killed(process: subprocess.Popen[str]) -> bool:
    return process.returncode == -signal.SIGKILL
