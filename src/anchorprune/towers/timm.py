"""timm: `VisionTransformer` and `Eva` towers, alone or in open_clip's `TimmModel`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from anchorprune.errors import UserError
from anchorprune.towers.base import NO_CALL, Call, Changes, Gives, Grid, Tower, class_of, kind_of, part_of
from anchorprune.towers.masks import Mask
from anchorprune.towers.pooling import add_to_logits, weigh
from anchorprune.towers.positions import resample_positions

_TOWERS = ("VisionTransformer", "VisionTransformerDistilled", "Eva")
_POST_NORM = "EvaBlockPostNorm"
_BLOCKS = ("Block", "EvaBlock", _POST_NORM)
_ATTENTION = ("Attention", "AttentionRope", "EvaAttention")
_CONVOLUTIONAL = ("ConvNeXt", "ResNet", "FastVit", "ByobNet", "MobileNet", "EfficientNet", "RegNet")
_WINDOWED = ("Swin", "Hiera")


def _tower(trunk: Any) -> TimmTower:
    kind = kind_of(trunk)
    if kind not in _TOWERS:
        reason = "it is no plain vision transformer with one flat sequence of tokens"
        if kind.startswith(_CONVOLUTIONAL):
            reason = "it is convolutional and needs the whole grid of pixels"
        elif kind.startswith(_WINDOWED):
            reason = "it attends within windows of the grid, which pruning would tear apart"
        elif kind.startswith("Beit") or kind.endswith("RelPos"):
            reason = "its attention adds a bias of its own for each pair of places on the whole grid"
        elif kind == "NaFlexVit":
            reason = "its patches come in any number and shape"
        raise UserError(f"cannot prune {kind} of timm: {reason}")
    for block in trunk.blocks:
        attention: Any = getattr(block, "attn", None)
        if kind_of(block) not in _BLOCKS or kind_of(attention) not in _ATTENTION:
            names = f"{kind_of(block)} with {kind_of(attention)}"
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
        takes_any_size=getattr(trunk, "dynamic_img_size", False)
        or not getattr(trunk.patch_embed, "strict_img_size", True),
    )


def _pools_prefix(trunk: Any) -> bool:
    return trunk.global_pool == "token" and getattr(trunk, "attn_pool", None) is None


@dataclass
class TimmTower(Tower):
    """Blocks of `norm1`, `attn`, `norm2`, `mlp`, each norm before its part, or after it (`EvaBlockPostNorm`).

    In Eva with rotary embedding, which is cut with the tokens.
    """

    name: ClassVar[str] = "timm"
    libraries: ClassVar = ("timm",)

    takes_any_size: bool = False

    @classmethod
    def match(cls, model: nn.Module) -> TimmTower | None:
        visual: Any = part_of(model, "visual")
        if kind_of(visual) == "TimmModel":
            return replace(_tower(visual.trunk), module=visual, reads_patches=not _pools_prefix(visual.trunk))
        if not class_of(visual).__module__.startswith("timm."):
            return None
        tower = _tower(visual)
        pooled = getattr(model, "reads_pooled_features", False)
        return replace(tower, reads_patches=False) if pooled and _pools_prefix(visual) else tower

    @property
    def parts(self) -> list[nn.Module]:
        module: Any = self.module
        return [module, module.trunk] if hasattr(module, "trunk") else [module]

    @property
    def stem(self) -> nn.Module:
        trunk: Any = self.parts[-1]
        stem: nn.Module = trunk.patch_embed
        return stem

    def grid_of(self, height: int, width: int, call: Call) -> Grid | None:
        trunk: Any = self.parts[-1]
        if not self.takes_any_size:
            return super().grid_of(height, width, call)
        patch_height, patch_width = (side // count for side, count in zip(self.image_size, self.grid, strict=True))
        padded = getattr(trunk.patch_embed, "dynamic_img_pad", False)
        if (height % patch_height or width % patch_width) and not padded:
            return None
        return -(-height // patch_height), -(-width // patch_width)

    def on_grid(self, grids: Callable[[], tuple[Grid, Grid]]) -> Changes:
        trunk: Any = self.parts[-1]
        changes = Changes([(self.stem, "strict_img_size", False)])
        if trunk.pos_embed is not None and not getattr(trunk, "dynamic_img_size", False):  # else it does so itself
            if "_pos_embed" in vars(trunk):
                raise UserError("this tower has a _pos_embed of its own, which knows one grid: restore timm's")
            changes.attributes.append((trunk, "_pos_embed", partial(_positioned, trunk, self.grid, grids)))
        if (rope := getattr(trunk, "rope", None)) is not None:  # of all places; `cut` takes those of the new patches
            changes.attributes.append((rope, "get_embed", partial(_of_whole_grid, rope, grids)))
        return changes

    def pool_by_size(self, sizes: Gives, bias: Gives, weighted: bool) -> Changes:
        trunk: Any = self.parts[-1]
        if (pool := getattr(trunk, "attn_pool", None)) is not None:
            if "attn_mask" in inspect.signature(type(pool).forward).parameters:
                return Changes(pre_hooks=[(pool, partial(add_to_logits, bias, "attn_mask", _as_it_is))])
            if weighted:
                raise UserError(
                    f"cannot prune by a strategy that counts merged tokens: {kind_of(pool)} of timm pools "
                    "without asking for how many a token stands"
                )
            return Changes()
        if getattr(trunk, "global_pool", "token") not in ("avg", "avgmax"):
            return Changes()
        if not hasattr(trunk, "pool"):
            raise UserError("this version of timm averages patches where sizes cannot be given: update it")
        return Changes([(trunk, "pool", partial(_pool_by_size, trunk.pool, trunk, sizes))])

    def replaced(self, block: Any) -> list[nn.Module]:
        return [block, block.attn, block.attn.attn_drop]

    def scored(self, block: Any) -> list[nn.Module]:
        attention, names = block.attn, ["qkv", "q_proj", "k_proj", "v_proj", "q_norm", "k_norm"]
        if getattr(attention, "q_bias", None) is not None and not getattr(attention, "qkv_bias_separate", False):
            names.remove("qkv")  # its weight alone is read
        parts = [getattr(attention, name, None) for name in names]
        first = [] if kind_of(block) == _POST_NORM else [block.norm1]
        return [*first, *(part for part in parts if part is not None)]

    def num_heads(self, block: Any) -> int:
        return int(block.attn.num_heads)

    def pool_query_key(
        self, patches: Float[Tensor, "B n D"]
    ) -> tuple[Float[Tensor, "B H M d"], Float[Tensor, "B H n d"]] | None:
        trunk: Any = getattr(self.module, "trunk", self.module)
        pool: Any = getattr(trunk, "attn_pool", None)
        if kind_of(pool) != "AttentionPoolLatent":
            return None
        q = pool.q(pool.latent).expand(patches.shape[0], -1, -1)
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
        batch, heads, width = patches.shape[0], rope.shape[1], rope.shape[-1]
        index = patches[:, None, :, None].expand(batch, heads, -1, width)
        return args, {**kwargs, "rope": rope.expand(batch, -1, -1, -1).gather(2, index)}

    def mask_bias(self, block: Any, mask: Mask, x: Float[Tensor, "B N D"]) -> Float[Tensor, ...]:
        if mask.dtype == torch.bool:  # True takes part, as in scaled_dot_product_attention
            mask = torch.zeros_like(mask, dtype=x.dtype).masked_fill_(~mask, -float("inf"))
        return super().mask_bias(block, mask, x)

    def query_key(
        self, block: Any, x: Float[Tensor, "B N D"], call: Call = NO_CALL
    ) -> tuple[Float[Tensor, "B H N d"], Float[Tensor, "B H N d"]]:
        q, k, _ = self._project(block, self._before(block, 1, x), call)
        return q, k

    def raw_query_key(
        self, block: Any, x: Float[Tensor, "B N D"], call: Call = NO_CALL
    ) -> tuple[Float[Tensor, "B H N d"], Float[Tensor, "B H N d"]]:
        q, k, _ = self._project(block, x, call)
        return q, k

    def attention_half(
        self,
        block: Any,
        x: Float[Tensor, "B N D"],
        bias: Float[Tensor, ...] | None,
        call: Call = NO_CALL,
    ) -> tuple[Float[Tensor, "B N D"], Float[Tensor, "B H N d"], Float[Tensor, "B H N d"]]:
        if call.get("is_causal"):
            raise UserError("is_causal: blocks that a strategy acts inside of attend to all tokens; give an attn_mask")
        attention, normed = block.attn, self._before(block, 1, x)
        q, k, v = self._project(block, normed, call)
        dropout = attention.attn_drop.p if attention.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, None if bias is None else bias.to(q.dtype), dropout)
        y = attention.norm(y.transpose(1, 2).flatten(2))
        if getattr(attention, "gate", None) is not None:
            y = y * attention.gate(normed).sigmoid()
        y = attention.proj_drop(attention.proj(y))
        return x + block.drop_path1(self._after(block, 1, y)), q, k

    def mlp_half(self, block: Any, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        y: Tensor = x + block.drop_path2(self._after(block, 2, block.mlp(self._before(block, 2, x))))
        return y

    def _before(self, block: Any, half: int, x: Tensor) -> Tensor:
        """What a half's part gets of the residual stream."""
        return x if kind_of(block) == _POST_NORM else getattr(block, f"norm{half}")(x)

    def _after(self, block: Any, half: int, y: Tensor) -> Tensor:
        """What of a half's part is added to the residual stream: LayerScale has a name in each kind of block."""
        if kind_of(block) == _POST_NORM:
            y = getattr(block, f"norm{half}")(y)
        scale, gamma = getattr(block, f"ls{half}", None), getattr(block, f"gamma_{half}", None)
        if scale is not None:
            y = scale(y)
        return y if gamma is None else gamma * y

    def _project(
        self, block: Any, normed: Float[Tensor, "B N D"], call: Call
    ) -> tuple[Float[Tensor, "B H N d"], Float[Tensor, "B H N d"], Float[Tensor, "B H N d"]]:
        """Queries, keys and values, each `[B, H, N, d]`."""
        attention, heads = block.attn, self.num_heads(block)
        if attention.qkv is None:
            parts = [part(normed) for part in (attention.q_proj, attention.k_proj, attention.v_proj)]
        else:
            parts = list(_fused(attention, normed).chunk(3, dim=-1))
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


def _fused(attention: Any, normed: Tensor) -> Tensor:
    """Queries, keys and values in one, `[B, N, 3·H·d]`, as the attention's own forward has them."""
    if getattr(attention, "q_bias", None) is None:
        projected: Tensor = attention.qkv(normed)
        return projected
    bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
    if getattr(attention, "qkv_bias_separate", False):
        return attention.qkv(normed) + bias
    return F.linear(normed, attention.qkv.weight, bias)


class _Positioned:
    """A trunk as its own `_pos_embed` is to see it: with other positions, and as it is in all else."""

    def __init__(self, trunk: Any, pos_embed: Tensor) -> None:
        self.trunk, self.pos_embed = trunk, pos_embed

    def __getattr__(self, name: str) -> Any:
        return getattr(self.trunk, name)


def _positioned(trunk: Any, old: Grid, grids: Callable[[], tuple[Grid, Grid]], x: Tensor) -> Any:
    """In place of `_pos_embed`: with the positions of the pass's own grid, of the weights as they are in that pass."""
    pos_embed = resample_positions(trunk.pos_embed[0], old, grids()[0]).unsqueeze(0)
    return type(trunk)._pos_embed(_Positioned(trunk, pos_embed), x)


def _of_whole_grid(rope: Any, grids: Callable[[], tuple[Grid, Grid]], shape: Any = None) -> Tensor:
    """In place of a rotary embedding's `get_embed`: that of the image before it was shrunk."""
    embedding: Tensor = type(rope).get_embed(rope, shape=grids()[1])
    return embedding


def _as_it_is(addend: Tensor) -> Tensor:
    return addend


def _pool_by_size(
    own: Callable[..., Tensor], trunk: Any, sizes: Gives, x: Tensor, pool_type: str | None = None
) -> Tensor:
    """In place of `pool`, which averages the tokens: weighted by size."""
    kind = trunk.global_pool if pool_type is None else pool_type
    if (counts := sizes()) is None or kind not in ("avg", "avgmax"):
        return own(x, pool_type)
    skipped = 0 if getattr(trunk, "pool_include_prefix", False) else trunk.num_prefix_tokens
    mean = own(torch.cat([x[:, :skipped], weigh(x[:, skipped:], counts[:, skipped:])], dim=1), "avg")
    return mean if kind == "avg" else 0.5 * (own(x, "max") + mean)
