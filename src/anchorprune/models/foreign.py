"""Code that lies beside a model's weights: it runs for those who say that they trust it, and nobody else."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from anchorprune.errors import FieldError

_FLAG = "trust_remote_code"
_MOST = 1 << 24  # bytes of a configuration
_FIX = "brings Python code of its own, which is not run: read it, and give {} if you trust it"


def refused(model: str) -> FieldError:
    """The sentence for a model that cannot be had without its own code."""
    return FieldError("model", model, _FIX.format("trust_remote_code=True"), typed=_FIX.format(f"--{_FLAG}"))


def wants_code(error: Exception) -> bool:
    """Whether this is what transformers raises of a model whose code is not trusted."""
    return "trust_remote_code" in str(error) or "execute custom code" in str(error)


@contextmanager
def no_foreign_code(model: str, trusted: bool) -> Iterator[None]:
    """Within, transformers imports nothing that lies beside a model, whoever calls it and whatever a file says.

    FieldError where something asks for that, unless it is `trusted`.
    """
    if trusted or "transformers" not in sys.modules:  # whoever imports it later does so for a name of open_clip's own
        yield
        return
    from transformers import dynamic_module_utils as imports

    def refuse(*_: Any, **__: Any) -> Any:
        raise refused(model)

    # The one place where such a file is imported; and it would ask on the terminal first.
    before = imports.get_class_in_module, getattr(imports, "TIME_OUT_REMOTE_CODE", 0)
    imports.get_class_in_module, imports.TIME_OUT_REMOTE_CODE = refuse, 0
    try:
        yield
    finally:
        imports.get_class_in_module, imports.TIME_OUT_REMOTE_CODE = before


def check_config(model: str, file: Path) -> None:
    """FieldError where the configuration in a model's folder asks for code to be trusted: that is not a file's to say.

    What cannot be read is left to whoever loads it.
    """
    if not os.path.isfile(file) or file.stat().st_size > _MOST:
        raise FieldError("model", model, f"has no {file.name} of at most {_MOST:,} bytes")
    try:
        asks = _asks(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return
    if asks:
        raise refused(model)


def _asks(content: Any) -> bool:
    if isinstance(content, dict):
        return bool(content.get(_FLAG)) or any(map(_asks, content.values()))
    return isinstance(content, list) and any(map(_asks, content))
