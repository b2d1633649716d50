"""`--quiet` for other libraries' progress bars, of downloads and of loading weights."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

# What huggingface_hub (and by it transformers) and tqdm look at when they are imported.
_ENVIRONMENT = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}


@contextmanager
def no_bars() -> Iterator[None]:
    """No library shows a progress bar within, whether it is imported already or not."""
    with ExitStack() as undo:
        for name in _ENVIRONMENT.keys() - os.environ.keys():
            os.environ[name] = _ENVIRONMENT[name]
            undo.callback(os.environ.pop, name, None)
        if "huggingface_hub" in sys.modules:
            from huggingface_hub import utils

            if not utils.are_progress_bars_disabled():
                utils.disable_progress_bars()
                undo.callback(utils.enable_progress_bars)
        if "transformers" in sys.modules:
            from transformers.utils import logging

            if logging.is_progress_bar_enabled():
                logging.disable_progress_bar()
                undo.callback(logging.enable_progress_bar)
        yield
