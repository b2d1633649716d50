"""What `result.schema.json` has against a result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

import anchorprune

FILE = Path(anchorprune.__file__).parent / "evaluation" / "result.schema.json"
SCHEMA: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))


def complaints(result: Any) -> list[str]:
    """One sentence a fault, with its place; none of a result that is as the schema says."""
    return [f"{error.json_path}: {error.message}" for error in Draft202012Validator(SCHEMA).iter_errors(result)]
