"""Small image towers of OpenAI, transformers and timm with random weights, every kind that anchorprune prunes."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import open_clip
import packaging.version
import pytest
import timm
import torch
import transformers
from open_clip.timm_model import TimmModel
from torch import Tensor, nn

from support.models import EMBED, HEADS, IMAGE_SIZE, LAYERS, PATCH, WIDTH

with pytest.MonkeyPatch.context() as patch:
    # OpenAI's takes `packaging` from pkg_resources, which setuptools no longer has.
    patch.setitem(sys.modules, "pkg_resources", types.SimpleNamespace(packaging=packaging))
    import clip
    import clip.model

VISION = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "image_size": IMAGE_SIZE,
    "patch_size": PATCH,
}
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 100,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}


def lively(model: nn.Module) -> Any:
    """Seeded weights larger than the default, so that attention is not flat and no two numbers are equal."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def openai_clip(vision_layers: Any = LAYERS) -> Any:
    """Of OpenAI's own package, which has 64 channels a head; a ResNet where there are four `vision_layers`."""
    torch.manual_seed(0)
    return lively(
        clip.model.CLIP(
            embed_dim=EMBED,
            image_resolution=IMAGE_SIZE,
            vision_layers=vision_layers,
            vision_width=128,
            vision_patch_size=PATCH,
            context_length=8,
            vocab_size=100,
            transformer_width=64,
            transformer_heads=1,
            transformer_layers=1,
        )
    )


def hf_clip(attention: str = "sdpa") -> Any:
    config = transformers.CLIPConfig(
        vision_config=VISION | {"projection_dim": EMBED},
        text_config=TEXT | {"projection_dim": EMBED},
        projection_dim=EMBED,
        attn_implementation=attention,
    )
    return lively(transformers.CLIPModel._from_config(config))


def hf_siglip() -> Any:
    config = transformers.SiglipConfig(
        vision_config=VISION, text_config=TEXT | {"hidden_size": WIDTH, "projection_size": WIDTH}
    )
    return lively(transformers.SiglipModel(config))


def hf_chinese() -> Any:
    config = transformers.ChineseCLIPConfig(
        vision_config=VISION | {"projection_dim": EMBED}, text_config=TEXT, projection_dim=EMBED
    )
    return lively(transformers.ChineseCLIPModel(config))


def hf_vision(kind: str = "CLIP", attention: str = "eager") -> Any:
    config = getattr(transformers, f"{kind}VisionConfig")(**VISION, attn_implementation=attention)
    return lively(getattr(transformers, f"{kind}VisionModel")._from_config(config))


def hf_projection() -> Any:
    config = transformers.CLIPVisionConfig(**VISION, projection_dim=EMBED)
    return lively(transformers.CLIPVisionModelWithProjection(config))


def hf_vit(attention: str = "sdpa") -> Any:
    config = transformers.ViTConfig(**VISION, attn_implementation=attention)
    return lively(transformers.ViTModel._from_config(config))


def hf_dinov2(registers: int = 0, **options: Any) -> Any:
    sizes = {name: value for name, value in VISION.items() if name != "intermediate_size"} | {"mlp_ratio": 2} | options
    if registers:
        config = transformers.Dinov2WithRegistersConfig(**sizes, num_register_tokens=registers)
        return lively(transformers.Dinov2WithRegistersModel(config))
    return lively(transformers.Dinov2Model(transformers.Dinov2Config(**sizes)))


def hf_deit() -> Any:
    return lively(transformers.DeiTModel(transformers.DeiTConfig(**VISION)))


def timm_distilled(**options: Any) -> Any:
    plain = {"img_size": IMAGE_SIZE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": LAYERS, "num_heads": HEADS}
    return lively(timm.models.deit.VisionTransformerDistilled(**(plain | {"num_classes": EMBED} | options)))


def timm_vit(**options: Any) -> Any:
    plain = {"img_size": IMAGE_SIZE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": LAYERS, "num_heads": HEADS}
    return lively(timm.models.VisionTransformer(**(plain | {"num_classes": EMBED} | options)))


def timm_eva(**options: Any) -> Any:
    plain = {"img_size": IMAGE_SIZE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": LAYERS, "num_heads": HEADS}
    return lively(timm.models.Eva(**(plain | {"num_classes": EMBED, "use_rot_pos_emb": True} | options)))


def in_open_clip(name: str, **options: Any) -> Callable[[], Any]:
    """A timm tower as open_clip wraps it."""

    def make() -> Any:
        sizes = {"embed_dim": WIDTH, "depth": LAYERS, "num_heads": HEADS, "patch_size": PATCH} | options
        original = timm.create_model
        try:  # TimmModel names a model of timm's; these are the same, smaller
            timm.create_model = lambda *args, **kwargs: original(*args, **(kwargs | sizes))
            built = TimmModel(name, embed_dim=EMBED, image_size=IMAGE_SIZE, pool="", proj="linear", pretrained=False)
        finally:
            timm.create_model = original
        return lively(built)

    return make


LIBRARIES: dict[str, Callable[[], Any]] = {
    "OpenAI's clip": openai_clip,
    "OpenAI's clip, image tower alone": lambda: openai_clip().visual,
    "transformers CLIP": hf_clip,
    "transformers CLIP, eager": lambda: hf_clip("eager"),
    "transformers CLIP, vision alone": hf_vision,
    "transformers CLIP, with projection": hf_projection,
    "transformers SigLIP": hf_siglip,
    "transformers Chinese CLIP": hf_chinese,
    "transformers ViT": hf_vit,
    "transformers DeiT": hf_deit,
    "transformers DINOv2": hf_dinov2,
    "transformers DINOv2, registers, SwiGLU": lambda: hf_dinov2(registers=4, use_swiglu_ffn=True),
    "timm ViT": timm_vit,
    "timm ViT, distilled (DeiT)": timm_distilled,
    "timm ViT, mean pooling": lambda: timm_vit(global_pool="avg"),
    "timm ViT, registers, LayerScale, q/k norm": lambda: timm_vit(reg_tokens=4, init_values=0.5, qk_norm=True),
    "timm ViT, registers and no CLS": lambda: timm_vit(reg_tokens=3, class_token=False, global_pool="avg"),
    "timm ViT, attention pooling, no CLS (SigLIP)": lambda: timm_vit(class_token=False, global_pool="map"),
    "timm Eva, rotary": timm_eva,
    "timm Eva, q/k/v apart, LayerScale": lambda: timm_eva(qkv_fused=False, init_values=0.5),
    "timm Eva, norms after attention and MLP (EVA02-E)": lambda: timm_eva(use_post_norm=True),
    "timm Eva, attention of its ViTs (PE-Core)": lambda: timm_eva(attn_type="rope", norm_layer=torch.nn.LayerNorm),
    "timm Eva, registers, halves rotated (DINOv3)": lambda: timm_eva(
        num_reg_tokens=4, rope_type="dinov3", rope_rotate_half=True, use_abs_pos_emb=False
    ),
    "timm Eva, a rotation for each head and block": lambda: timm_eva(rope_type="mixed"),
}


def encode(model: Any, images: Tensor) -> Tensor:
    """The features of an image, whatever the model's way to give them."""
    if isinstance(model, (transformers.CLIPModel, transformers.SiglipModel, transformers.ChineseCLIPModel)):
        features = model.get_image_features(pixel_values=images)
        return features if isinstance(features, Tensor) else features.pooler_output  # transformers 4; 5
    if isinstance(model, clip.model.CLIP):
        return model.encode_image(images)
    found = model(images)
    if isinstance(found, Tensor):
        return found
    return found.image_embeds if "image_embeds" in found else found.pooler_output


def as_transformers(model: open_clip.CLIP, activation: str) -> Any:
    """The image tower of an open_clip CLIP as a `CLIPVisionModelWithProjection` of the same weights."""
    visual = model.visual
    width, patch = visual.conv1.weight.shape[0], visual.conv1.kernel_size[0]
    blocks = visual.transformer.resblocks
    config = transformers.CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=blocks[0].mlp.c_fc.weight.shape[0],
        num_hidden_layers=len(blocks),
        num_attention_heads=blocks[0].attn.num_heads,
        image_size=visual.image_size[0] if isinstance(visual.image_size, tuple) else visual.image_size,
        patch_size=patch,
        projection_dim=visual.proj.shape[1],
        hidden_act=activation,
    )
    state = {
        "vision_model.embeddings.class_embedding": visual.class_embedding,
        "vision_model.embeddings.patch_embedding.weight": visual.conv1.weight,
        "vision_model.embeddings.position_embedding.weight": visual.positional_embedding,
        "visual_projection.weight": visual.proj.T,
    }
    norms = {"vision_model.pre_layrnorm": visual.ln_pre, "vision_model.post_layernorm": visual.ln_post}
    for i, block in enumerate(blocks):
        name = f"vision_model.encoder.layers.{i}"
        norms |= {f"{name}.layer_norm1": block.ln_1, f"{name}.layer_norm2": block.ln_2}
        norms |= {f"{name}.mlp.fc1": block.mlp.c_fc, f"{name}.mlp.fc2": block.mlp.c_proj}
        norms[f"{name}.self_attn.out_proj"] = block.attn.out_proj
        for part, at in (("q", 0), ("k", 1), ("v", 2)):
            state[f"{name}.self_attn.{part}_proj.weight"] = block.attn.in_proj_weight.chunk(3)[at]
            state[f"{name}.self_attn.{part}_proj.bias"] = block.attn.in_proj_bias.chunk(3)[at]
    for name, module in norms.items():
        state |= {f"{name}.weight": module.weight, f"{name}.bias": module.bias}
    built = transformers.CLIPVisionModelWithProjection(config).eval()
    missing, unexpected = built.load_state_dict({k: v.detach() for k, v in state.items()}, strict=False)
    assert not unexpected
    assert all("position_ids" in name for name in missing)
    return built
