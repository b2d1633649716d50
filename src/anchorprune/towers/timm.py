"""timm: `VisionTransformer` and `Eva` towers, alone or in open_clip's `TimmModel`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anchorprune.errors import UserError, did_you_mean
from anchorprune.grid import resample_positions
from anchorprune.towers.base import NO_CALL, Call, LoadedModel, Tower

_TOWERS = ("VisionTransformer", "Eva")
_POST_NORM = "EvaBlockPostNorm"
_BLOCKS = ("Block", "EvaBlock", _POST_NORM)
_ATTENTION = ("Attention", "AttentionRope", "EvaAttention")
_CONVOLUTIONAL = ("ConvNeXt", "ResNet", "FastVit", "ByobNet", "MobileNet", "EfficientNet", "RegNet")
_WINDOWED = ("Swin", "Hiera")


def match(model: nn.Module) -> TimmTower | None:
    """The tower of a timm model, or of an open_clip model around one; None for a model of another library.

    Raises:
        UserError: a timm model that cannot be pruned.
    """
    visual: Any = getattr(model, "visual", model)
    if type(visual).__name__ == "TimmModel":
        tower = _tower(visual.trunk)
        pooled = visual.trunk.global_pool == "token" and getattr(visual.trunk, "attn_pool", None) is None
        return replace(tower, module=visual, reads_patches=not pooled)
    return _tower(visual) if type(visual).__module__.startswith("timm.") else None


def _tower(trunk: Any) -> TimmTower:
    kind = type(trunk).__name__
    if kind not in _TOWERS:
        reason = "it is no plain vision transformer with one flat sequence of tokens"
        if kind.startswith(_CONVOLUTIONAL):
            reason = "it is convolutional and needs the whole grid of pixels"
        elif kind.startswith(_WINDOWED):
            reason = "it attends within windows of the grid, which pruning would tear apart"
        raise UserError(f"cannot prune {kind} of timm: {reason}")
    for block in trunk.blocks:
        attention = getattr(block, "attn", None)
        if type(block).__name__ not in _BLOCKS or type(attention).__name__ not in _ATTENTION:
            names = f"{type(block).__name__} with {type(attention).__name__}"
            raise UserError(f"cannot prune {kind} of timm: its blocks, {names}, are of a kind that anchorprune lacks")
        if getattr(attention, "num_kv_groups", 1) > 1:
            raise UserError(f"cannot prune {kind} of timm: its heads share keys (grouped-query attention)")
    if not hasattr(trunk.patch_embed, "grid_size") or trunk.patch_embed.grid_size is None:
        raise UserError(f"cannot prune {kind} of timm: its images come in any size (dynamic_img_size)")
    if getattr(getattr(trunk, "attn_pool", None), "pos_embed", None) is not None:
        raise UserError(f"cannot prune {kind} of timm: its pooling head has a place for each patch of the whole grid")
    prefix = trunk.num_prefix_tokens
    return TimmTower(
        module=trunk,
        blocks=list(trunk.blocks),
        batch_first=True,
        num_prefix_tokens=prefix,
        grid=tuple(trunk.patch_embed.grid_size),
        image_size=tuple(trunk.patch_embed.img_size),
        reads_patches=True,  # forward_features gives them to its caller
        has_cls=getattr(trunk, "cls_token", None) is not None,
    )


@dataclass
class TimmTower(Tower):
    """Blocks of `norm1`, `attn`, `norm2`, `mlp`, each norm before its part, or after it (`EvaBlockPostNorm`).

    In Eva with rotary embedding, which is cut with the tokens.
    """

    @property
    def parts(self) -> list[nn.Module]:
        module: Any = self.module
        return [module, module.trunk] if hasattr(module, "trunk") else [module]

    @property
    def stem(self) -> nn.Module:
        trunk: Any = self.parts[-1]
        stem: nn.Module = trunk.patch_embed
        return stem

    @torch.no_grad()  # a constant to the gradient
    def on_grid(self, grid: tuple[int, int], whole: tuple[int, int]) -> list[tuple[nn.Module, str, Any]]:
        trunk: Any = self.parts[-1]
        values: list[tuple[nn.Module, str, Any]] = [(self.stem, "strict_img_size", False)]
        if trunk._parameters.get("pos_embed") is not None and not trunk.dynamic_img_size:  # else it does so itself
            positions = resample_positions(trunk._parameters["pos_embed"][0], self.grid, grid)
            values.append((trunk, "pos_embed", positions.unsqueeze(0)))
        if (rope := getattr(trunk, "rope", None)) is not None:  # of all places; `cut` takes those of the new patches
            values.append((rope, "get_embed", partial(_of_grid, rope, whole)))
        return values

    def num_heads(self, block: Any) -> int:
        return int(block.attn.num_heads)

    def pool_query_key(self, patches: Tensor) -> tuple[Tensor, Tensor] | None:
        trunk: Any = getattr(self.module, "trunk", self.module)
        pool: Any = getattr(trunk, "attn_pool", None)
        if type(pool).__name__ != "AttentionPoolLatent":
            return None
        q = pool.q(pool.latent).expand(len(patches), -1, -1)
        k = pool.kv(trunk.norm(patches)).chunk(2, dim=-1)[0]
        q, k = (y.unflatten(-1, (pool.num_heads, -1)).transpose(1, 2) for y in (q, k))
        return pool.q_norm(q), pool.k_norm(k)

    def cut(
        self, block: Any, args: tuple[Any, ...], kwargs: dict[str, Any], kept: Callable[[], Tensor | None]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args, kwargs = super().cut(block, args, kwargs, kept)
        rope = kwargs.get("rope")
        if rope is None or (left := kept()) is None or left.shape[1] - self.num_prefix_tokens == rope.shape[-2]:
            return args, kwargs
        patches = left[:, self.num_prefix_tokens :] - self.num_prefix_tokens  # [B, K]
        while rope.dim() < 4:  # [n, e], or [H, n, e] where each head has its own
            rope = rope.unsqueeze(0)
        batch, heads, width = len(patches), rope.shape[1], rope.shape[-1]
        index = patches[:, None, :, None].expand(batch, heads, -1, width)
        return args, {**kwargs, "rope": rope.expand(batch, -1, -1, -1).gather(2, index)}

    def mask_bias(self, block: Any, mask: Tensor, x: Tensor) -> Tensor:
        if mask.dtype == torch.bool:  # True takes part, as in scaled_dot_product_attention
            mask = torch.zeros_like(mask, dtype=x.dtype).masked_fill_(~mask, -float("inf"))
        return super().mask_bias(block, mask, x)

    def query_key(self, block: Any, x: Tensor, call: Call = NO_CALL) -> tuple[Tensor, Tensor]:
        q, k, _ = self._project(block, self._before(block, 1, x), call)
        return q, k

    def attention_half(
        self, block: Any, x: Tensor, bias: Tensor | None, call: Call = NO_CALL
    ) -> tuple[Tensor, Tensor, Tensor]:
        attention, normed = block.attn, self._before(block, 1, x)
        q, k, v = self._project(block, normed, call)
        dropout = attention.attn_drop.p if attention.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, None if bias is None else bias.to(q.dtype), dropout)
        y = attention.norm(y.transpose(1, 2).flatten(2))
        if getattr(attention, "gate", None) is not None:
            y = y * attention.gate(normed).sigmoid()
        y = attention.proj_drop(attention.proj(y))
        return x + block.drop_path1(self._after(block, 1, y)), q, k

    def mlp_half(self, block: Any, x: Tensor) -> Tensor:
        y: Tensor = x + block.drop_path2(self._after(block, 2, block.mlp(self._before(block, 2, x))))
        return y

    def _before(self, block: Any, half: int, x: Tensor) -> Tensor:
        """What a half's part gets of the residual stream."""
        return x if type(block).__name__ == _POST_NORM else getattr(block, f"norm{half}")(x)

    def _after(self, block: Any, half: int, y: Tensor) -> Tensor:
        """What of a half's part is added to the residual stream: LayerScale has a name in each kind of block."""
        if type(block).__name__ == _POST_NORM:
            y = getattr(block, f"norm{half}")(y)
        scale, gamma = getattr(block, f"ls{half}", None), getattr(block, f"gamma_{half}", None)
        if scale is not None:
            y = scale(y)
        return y if gamma is None else gamma * y

    def _project(self, block: Any, normed: Tensor, call: Call) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each `[B, H, N, d]`."""
        attention, heads = block.attn, self.num_heads(block)
        if attention.qkv is None:
            parts = [part(normed) for part in (attention.q_proj, attention.k_proj, attention.v_proj)]
        else:
            bias = attention.qkv.bias
            if getattr(attention, "q_bias", None) is not None:
                bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
            parts = list(F.linear(normed, attention.qkv.weight, bias).chunk(3, dim=-1))
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts)
        q, k = attention.q_norm(q), attention.k_norm(k)
        if (rope := call.get("rope")) is not None:
            from timm.layers import apply_rot_embed_cat

            prefix, half = attention.num_prefix_tokens, getattr(attention, "rotate_half", False)

            def turned(y: Tensor) -> Tensor:
                patches = apply_rot_embed_cat(y[:, :, prefix:], rope, half=half)
                return torch.cat([y[:, :, :prefix], patches], dim=2).type_as(v)

            q, k = turned(q), turned(k)
        return q, k, v


def _of_grid(rope: Any, grid: tuple[int, int], shape: Any = None) -> Tensor:
    """In place of a rotary embedding's `get_embed`: that of `grid`, whatever shape is asked for."""
    embedding: Tensor = type(rope).get_embed(rope, shape=grid)
    return embedding


def check(model: str, pretrained: str, cache_dir: str | None = None) -> None:
    """Raise UserError unless timm knows the model, and its weights where a tag (`NAME.TAG`) is given."""
    import timm

    if not timm.is_model(model):
        known = timm.list_models()
        raise UserError(f"--model {model}: timm has no such model.{did_you_mean(model, known)}")
    if pretrained and pretrained not in (tags := timm.list_pretrained(model)):
        raise UserError(
            f"--pretrained {pretrained}: is none of timm's for {model} ({', '.join(tags) or 'it has none'})"
        )


def load(model: str, pretrained: str, *, cache_dir: str | None, device: torch.device, precision: str) -> LoadedModel:
    """A timm model, which has no text tower: to be timed, not to be evaluated.

    Args:
        pretrained: one of `timm.list_pretrained(model)`; empty for random weights.

    Raises:
        UserError: unknown model or weights, no network.
    """
    import timm

    check(model, pretrained)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    try:
        built = timm.create_model(pretrained or model, pretrained=bool(pretrained), cache_dir=cache_dir)
    except (RuntimeError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"--pretrained {pretrained}: cannot be loaded by timm ({reason})") from error
    return LoadedModel(built.eval().to(device, dtype), _refuse, _refuse)


def _refuse(_: Any) -> Tensor:
    raise UserError("--model_type timm: these models have no text tower to evaluate them with")
