"""Small open_clip models with random weights; every test builds on these."""

from __future__ import annotations

import open_clip
import torch
from open_clip.transformer import VisionTransformer

IMAGE_SIZE, PATCH, WIDTH, LAYERS, HEADS, EMBED = 32, 8, 32, 4, 4, 16
TOKENS = 1 + (IMAGE_SIZE // PATCH) ** 2  # 17


def make_visual(**options: object) -> VisionTransformer:
    """A tower of 17 tokens and 4 blocks, seeded, in evaluation mode."""
    torch.manual_seed(0)
    settings = {
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH,
        "width": WIDTH,
        "layers": LAYERS,
        "heads": HEADS,
        "mlp_ratio": 2.0,
        "output_dim": EMBED,
    }
    visual = VisionTransformer(**(settings | options))
    for parameter in visual.parameters():  # larger than the default, so that attention is not flat
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return visual.eval()


def make_clip() -> open_clip.CLIP:
    """A whole CLIP around `make_visual`'s tower, with a text tower and open_clip's own vocabulary."""
    torch.manual_seed(0)
    model = open_clip.CLIP(
        embed_dim=EMBED,
        vision_cfg={
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH,
            "width": WIDTH,
            "layers": LAYERS,
            "head_width": WIDTH // HEADS,
            "mlp_ratio": 2.0,
        },
        text_cfg={"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    )
    return model.eval()
