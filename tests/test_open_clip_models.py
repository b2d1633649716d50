"""Every model that open_clip ships is pruned or refused with the reason; docs/towers.md is the table of it.

`WRITE_DOCS=1 python -m pytest tests/test_open_clip_models.py` writes the table anew.
"""

from __future__ import annotations

import json
import os
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import _build_vision_tower

import anchorprune
from anchorprune import UserError
from anchorprune.towers import find_tower

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "towers.md"
BEGIN, END = "<!-- written by tests/test_open_clip_models.py -->\n", "<!-- end -->\n"
# Models of other packages' tests stand in open_clip's list too.
MODELS = [name for name in open_clip.list_models() if not name.startswith(("cli-", "anchorprune-", "tiny"))]


def pooling(visual: Any) -> str:
    trunk = getattr(visual, "trunk", visual)
    if getattr(trunk, "attn_pool", None) is not None:
        return "attention"
    kind = getattr(trunk, "pool_type", None) or getattr(trunk, "global_pool", "")
    return {"tok": "CLS", "token": "CLS", "avg": "mean", "avgmax": "mean and max"}.get(kind, kind) or "–"


def row(name: str) -> str:
    """A line of the table."""
    vision = dict(open_clip.get_model_config(name)["vision_cfg"])
    if isinstance(vision.get("layers"), int):
        vision["layers"] = 3  # say as much as all of them
    vision.pop("timm_model_pretrained", None)
    return f"| {name} | {tried(json.dumps(vision, sort_keys=True))} |"


@cache
def tried(vision: str) -> str:
    """What becomes of an image tower of this configuration, without weights: pruning is tried, not only looked up."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        visual = _build_vision_tower(512, json.loads(vision)).eval()
    try:
        tower = find_tower(visual)
    except UserError as error:
        return f"| | | {str(error).removeprefix('cannot prune ')}"
    images = torch.empty(2, 3, *tower.image_size, device="meta")
    with torch.no_grad():
        dense = visual(images)
        for strategy, fields in {"anchor": {"k_anchors": 2, "top_m": 5}, "thin": {"keep_patches": 7}}.items():
            with anchorprune.prune(visual, strategy, **fields) as pruning:
                pruned = visual(images)
            schedule = pruning.strategy.schedule(tower.num_patches, len(tower.blocks))
            assert pruning.tokens_before == tower.num_tokens
            assert pruning.tokens_after == tower.num_prefix_tokens + min(schedule.values())
            first = [x[0] if isinstance(x, tuple) else x for x in (dense, pruned)]
            assert first[0].shape == first[1].shape
    prefix = f"{tower.num_prefix_tokens}{'' if tower.has_cls else ', no CLS'}"
    return f"{tower.num_tokens} | {prefix} | {pooling(visual)} | pruned"


def test_the_document_lists_them_all() -> None:
    table = ["| model | tokens | prefix | pooling | |", "|---|---:|---:|---|---|", *map(row, MODELS)]
    text = DOCUMENT.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    written = before + BEGIN + "\n".join(table) + "\n" + END + after
    if os.environ.get("WRITE_DOCS"):
        DOCUMENT.write_text(written, encoding="utf-8")
    elif open_clip.__version__ == "3.3.0":  # whose list of models it is
        assert text == written, "WRITE_DOCS=1 python -m pytest tests/test_open_clip_models.py"
