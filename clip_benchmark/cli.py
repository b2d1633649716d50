"""The described entry point, `python3 clip_benchmark/cli.py eval …`: hands over to anchorprune.

Works from a clone: with the anchorprune beside it, and with the clone's .venv where this Python has no torch.
"""

import importlib.util
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV_PYTHON = os.path.join(ROOT, ".venv", "bin", "python")

if importlib.util.find_spec("torch") is None and os.path.exists(VENV_PYTHON) and sys.executable != VENV_PYTHON:
    os.execv(VENV_PYTHON, [VENV_PYTHON, os.path.abspath(__file__), *sys.argv[1:]])

sys.path[0] = os.path.join(ROOT, "src")  # instead of this folder, which is no package

from anchorprune.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
