"""open_clip: `VisionTransformer` towers, in each of the layouts that open_clip has used since 2.24."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from anchorprune.errors import UserError
from anchorprune.towers.base import NO_CALL, Call, Changes, Gives, Grid, Tower, is_sharded, kind_of, part_of
from anchorprune.towers.masks import Mask
from anchorprune.towers.pooling import add_to_logits, for_each_key, weigh
from anchorprune.towers.positions import Positions


def to_pair(size: Any) -> tuple[int, int]:
    """Height and width of `size`, which is both or each of them."""
    return tuple(size) if isinstance(size, (tuple, list)) else (size, size)


@dataclass
class OpenClipTower(Tower):
    """A `VisionTransformer`: one CLS token, then the patches, row by row."""

    name: ClassVar[str] = "open_clip"
    libraries: ClassVar = ("open_clip", "clip")

    @classmethod
    def match(cls, model: nn.Module) -> OpenClipTower | None:
        visual: Any = part_of(model, "visual")
        kind = kind_of(visual)
        if kind == "ModifiedResNet":
            raise UserError(f"cannot prune {kind}: it is a ResNet, and convolutions need the whole grid of pixels")
        blocks = getattr(visual._modules.get("transformer"), "resblocks", None)
        if blocks is None or not hasattr(visual, "class_embedding"):
            return None
        attention = blocks[0].attn
        if not isinstance(getattr(attention, "in_proj_weight", None), Tensor):
            raise UserError(f"cannot prune {kind}: {kind_of(attention)} has no joint query-key-value projection")
        if getattr(attention, "logit_scale", None) is not None:
            raise UserError(f"cannot prune {kind}: its blocks use cosine attention, which anchorprune does not score")
        if getattr(attention, "bias_k", None) is not None or getattr(attention, "add_zero_attn", False):
            raise UserError(f"cannot prune {kind}: its attention has keys that belong to no token")
        # Blocks were tokens-first up to 2.24 and are batch-first or either since; the transformer says so where it
        # does the transposing, and otherwise the attention knows.
        batch_first = getattr(visual.transformer, "batch_first", getattr(attention, "batch_first", True))
        # OpenAI's own package has this tower under other names.
        height, width = to_pair(getattr(visual, "image_size", None) or visual.input_resolution)
        patch_height, patch_width = visual.conv1.kernel_size
        return cls(
            module=visual,
            blocks=list(blocks),
            batch_first=batch_first,
            num_prefix_tokens=1,
            grid=(height // patch_height, width // patch_width),
            image_size=(height, width),
            # OpenAI's own has none of these and reads CLS alone.
            reads_patches=getattr(visual, "pool_type", "tok") != "tok"
            or getattr(visual, "attn_pool", None) is not None
            or getattr(visual, "output_tokens", False),
        )

    @property
    def stem(self) -> nn.Module:
        module: Any = self.module
        conv: nn.Module = module.conv1
        return conv

    def grid_of(self, height: int, width: int, call: Call) -> Grid | None:
        # The convolution drops what is left over, and the positions have to fit.
        sides = zip((height, width), self.image_size, self.grid, strict=True)
        return self.grid if all(side // (own // count) == count for side, own, count in sides) else None

    def on_grid(self, grids: Callable[[], tuple[Grid, Grid]]) -> Changes:
        name = "positional_embedding"
        if is_sharded(self.module):
            raise UserError(
                f"fully_shard has the {name} of this tower in its care, so that images of another size find none: "
                "choose a strategy that does not shrink them, or shard the blocks alone"
            )
        return Changes([(self.module, name, Positions(self.module, name, self.grid, grids))])

    def pool_by_size(self, sizes: Gives, bias: Gives, weighted: bool) -> Changes:
        visual: Any = self.module
        if getattr(visual, "attn_pool", None) is not None:
            pools = [visual.attn_pool]
            if getattr(visual, "attn_pool_type", "") == "parallel":  # in a cascade it pools what the first one gave
                pools.append(visual.attn_pool_contrastive)
            plain = isinstance(visual.attn_pool.attn, nn.MultiheadAttention)  # of the main branch it is its own
            keyword, shaped = ("key_padding_mask", for_each_key) if plain else ("attn_mask", _same)
            add = partial(add_to_logits, bias, keyword, shaped)
            return Changes(pre_hooks=[(pool.attn, add) for pool in pools])
        if getattr(visual, "pool_type", "tok") != "avg":
            return Changes()
        return Changes([(visual, "_global_pool", partial(_pool_by_size, visual._global_pool, sizes))])

    def replaced(self, block: Any) -> list[nn.Module]:
        dropout = getattr(block.attn, "attn_drop", None)
        return [block, block.attn] if dropout is None else [block, block.attn, dropout]

    def scored(self, block: Any) -> list[nn.Module]:
        norms = [getattr(block.attn, name, None) for name in ("ln_q", "ln_k")]
        return [block.ln_1, *(norm for norm in norms if norm is not None)]

    def num_heads(self, block: Any) -> int:
        heads: int = block.attn.num_heads
        return heads

    def mask_bias(self, block: Any, mask: Mask, x: Float[Tensor, "B N D"]) -> Float[Tensor, ...]:
        if mask.dtype == torch.bool and isinstance(block.attn, nn.MultiheadAttention):
            mask = mask.to(x.dtype)  # plain blocks add a boolean mask as 0 and 1
        return super().mask_bias(block, mask, x)

    def query_key(
        self, block: Any, x: Float[Tensor, "B N D"], call: Call = NO_CALL
    ) -> tuple[Float[Tensor, "B H N d"], Float[Tensor, "B H N d"]]:
        q, k = self._project(block, block.ln_1(x), 2)
        return q, k

    def raw_query_key(
        self, block: Any, x: Float[Tensor, "B N D"], call: Call = NO_CALL
    ) -> tuple[Float[Tensor, "B H N d"], Float[Tensor, "B H N d"]]:
        q, k = self._project(block, x, 2)
        return q, k

    def attention_half(
        self,
        block: Any,
        x: Float[Tensor, "B N D"],
        bias: Float[Tensor, ...] | None,
        call: Call = NO_CALL,
    ) -> tuple[Float[Tensor, "B N D"], Float[Tensor, "B H N d"], Float[Tensor, "B H N d"]]:
        attention = block.attn
        q, k, v = self._project(block, block.ln_1(x), 3)
        plain = isinstance(attention, nn.MultiheadAttention)
        dropout = (attention.dropout if plain else attention.attn_drop.p) if attention.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, None if bias is None else bias.to(q.dtype), dropout)
        if getattr(attention, "head_scale", None) is not None:
            y = y * attention.head_scale
        y = y.transpose(1, 2).flatten(2)
        if plain:  # its own forward calls no module either, so that what wraps this one does not take part there
            y = F.linear(y, attention.out_proj.weight, attention.out_proj.bias)
        else:
            y = attention.out_drop(attention.out_proj(attention.ln_inner(y)))
        for name in ("ln_attn", "ls_1"):  # what plain blocks and OpenAI's own do not have
            y = getattr(block, name, _same)(y)
        return x + y, q, k

    def mlp_half(self, block: Any, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        return x + getattr(block, "ls_2", _same)(block.mlp(block.ln_2(x)))

    def _project(self, block: Any, normed: Float[Tensor, "B N D"], parts: int) -> list[Float[Tensor, "B H N d"]]:
        """Queries and keys, and for three parts values, each `[B, H, N, d]`."""
        attention = block.attn
        weight, bias = attention.in_proj_weight, attention.in_proj_bias
        if parts < 3:  # otherwise whole: autocast keeps what it has cast of a parameter, not of a part of one
            rows = parts * normed.shape[-1]
            weight, bias = weight[:rows], None if bias is None else bias[:rows]
        projected = F.linear(normed, weight, bias)
        heads = attention.num_heads
        q, k, *v = projected.unflatten(-1, (parts, heads, normed.shape[-1] // heads)).permute(2, 0, 3, 1, 4)
        if hasattr(attention, "ln_q"):
            q, k = attention.ln_q(q), attention.ln_k(k)
        return [q, k, *v]


def _same(x: Tensor) -> Tensor:
    return x


def _pool_by_size(own: Callable[[Tensor], tuple[Tensor, Tensor]], sizes: Gives, x: Tensor) -> tuple[Tensor, Tensor]:
    """In place of `_global_pool`, which averages all but CLS: weighted by size."""
    pooled, tokens = own(x)
    if (counts := sizes()) is None:
        return pooled, tokens
    return own(torch.cat([x[:, :1], weigh(x[:, 1:], counts[:, 1:])], dim=1))[0], tokens
