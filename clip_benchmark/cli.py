"""The described entry point, `python3 clip_benchmark/cli.py eval …`: hands over to anchorprune.

Works from a clone: with the anchorprune beside it, and with the clone's .venv where this Python lacks its packages.
"""

import importlib.util
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV_PYTHON = os.path.join(ROOT, ".venv", "bin", "python")

if any(importlib.util.find_spec(name) is None for name in ("torch", "open_clip")):
    if not os.path.exists(VENV_PYTHON) or sys.executable == VENV_PYTHON:
        print("anchorprune: error: no torch and open_clip here; run `make setup` or `pip install .`", file=sys.stderr)
        sys.exit(2)
    os.execv(VENV_PYTHON, [VENV_PYTHON, os.path.abspath(__file__), *sys.argv[1:]])

sys.path[0] = os.path.join(ROOT, "src")  # instead of this folder, which is no package

from anchorprune.__main__ import run  # noqa: E402

if __name__ == "__main__":
    sys.exit(run())
