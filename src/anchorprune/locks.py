"""Locks on open files, which end with the process that holds them; advisory, and of this machine."""

from __future__ import annotations

import functools
import hashlib
import socket
from pathlib import Path


def take(descriptor: int, *, wait: bool = True) -> bool | None:
    """Lock an open file for this process alone; the lock goes when the file is closed.

    Returns:
        False: another process has it. None: there are no locks here, on this system or this file system.
    """
    try:
        import fcntl
    except ImportError:  # not there on Windows
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@functools.cache
def machine() -> str:
    """8 hex digits of the running system: locks tell something of its processes, and of no others."""
    try:
        name = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except OSError:
        name = socket.gethostname()
    return hashlib.sha256(name.encode()).hexdigest()[:8]
