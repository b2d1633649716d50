"""Hugging Face transformers: the vision towers of CLIP, Chinese CLIP and SigLIP; ViT, DeiT and DINOv2."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from anchorprune.errors import UserError
from anchorprune.towers.base import NO_CALL, Call, Changes, Gives, Grid, Tower, class_of, kind_of, part_of
from anchorprune.towers.pooling import add_to_logits, for_each_key
from anchorprune.towers.positions import resample_positions, written_to_a_file

# Towers by the name of their class, with how many tokens stand before the patches: transformers 5, transformers 4.
_CLIP_LIKE = {"CLIPVisionModel": 1, "ChineseCLIPVisionModel": 1, "SiglipVisionModel": 0}
_CLIP_LIKE |= {name.replace("Model", "Transformer"): prefix for name, prefix in _CLIP_LIKE.items()}
_PREFIX = _CLIP_LIKE | {"ViTModel": 1, "DeiTModel": 2, "Dinov2Model": 1, "Dinov2WithRegistersModel": 1}
# What transformers computes attention with, to the same result; others are somebody's own.
_ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")


@dataclass
class HuggingFaceTower(Tower):
    """Blocks of an attention and an `mlp`, each after a LayerNorm, by the names that each model has for them."""

    name: ClassVar[str] = "huggingface"
    libraries: ClassVar = ("transformers",)

    @classmethod
    def match(cls, model: nn.Module) -> HuggingFaceTower | None:
        if pooled := getattr(model, "reads_pooled_features", False):
            model = part_of(model, "model")
        if not class_of(model).__module__.startswith("transformers."):
            return None
        visual: Any = part_of(model, "vision_model")
        kind = kind_of(visual)
        if kind not in _PREFIX:
            reason = "its patches come in any number and shape" if kind.startswith("Siglip2") else "it is another tower"
            raise UserError(
                f"cannot prune {kind}: {reason}; CLIP, Chinese CLIP, SigLIP, ViT, DeiT and DINOv2 of transformers can "
                "be pruned"
            )
        config, prefix = visual.config, _PREFIX[kind] + int(getattr(visual.config, "num_register_tokens", 0) or 0)
        encoder = visual if hasattr(visual, "layers") else visual.encoder
        blocks = list(encoder.layers if hasattr(encoder, "layers") else encoder.layer)
        if not hasattr(_attention(blocks[0]), "q_proj"):
            raise UserError(
                f"cannot prune {kind}: this version of transformers cuts its blocks up otherwise; update it"
            )
        if (used := getattr(config, "_attn_implementation", None) or "eager") not in _ATTENTION:
            raise UserError(f"cannot prune {kind}: its attention, {used!r}, is none of transformers' own")
        height, width = _pair(config.image_size)
        patch_height, patch_width = _pair(config.patch_size)
        return cls(
            module=visual,
            blocks=blocks,
            batch_first=True,
            num_prefix_tokens=prefix,
            grid=(height // patch_height, width // patch_width),
            image_size=(height, width),
            # Every other model hands all tokens on to its caller (`last_hidden_state`).
            reads_patches=not pooled or prefix == 0,
            has_cls=prefix > 0,
        )

    @property
    def stem(self) -> nn.Module:
        module: Any = self.module
        embeddings: nn.Module = module.embeddings
        return embeddings

    def grid_of(self, height: int, width: int, call: Call) -> Grid | None:
        stem: Any = self.stem
        always = "interpolate_pos_encoding" not in inspect.signature(type(stem).forward).parameters
        if not always and not call.get("interpolate_pos_encoding"):
            return super().grid_of(height, width, call)
        patch_height, patch_width = (side // count for side, count in zip(self.image_size, self.grid, strict=True))
        return height // patch_height, width // patch_width

    def on_grid(self, grids: Callable[[], tuple[Grid, Grid]]) -> Changes:
        stem: Any = self.stem
        if not hasattr(stem, "interpolate_pos_encoding"):
            raise UserError(
                "this version of transformers has images of one size alone: update it, or choose a strategy that does "
                "not shrink them"
            )
        changes = Changes([(stem, "interpolate_pos_encoding", partial(_resampled, stem, self.grid, grids))])
        if "interpolate_pos_encoding" in inspect.signature(type(stem).forward).parameters:
            changes.attributes.append((stem, "forward", partial(_interpolating, stem)))
        return changes

    def pool_by_size(self, sizes: Gives, bias: Gives, weighted: bool) -> Changes:
        head: Any = getattr(self.module, "head", None)
        if not isinstance(getattr(head, "attention", None), nn.MultiheadAttention):
            return Changes()
        add = partial(add_to_logits, bias, "key_padding_mask", for_each_key)
        return Changes(pre_hooks=[(head.attention, add)])

    def with_features(self, output: Any, change: Callable[[Tensor], Tensor]) -> Any:
        pooled = output[1] if isinstance(output, tuple) and len(output) > 1 else getattr(output, "pooler_output", None)
        if pooled is None:
            raise UserError(f"{kind_of(self.module)} gives tokens and no features of the image: nothing to align")
        if isinstance(output, tuple):
            return (output[0], change(pooled), *output[2:])
        output.pooler_output = change(pooled)
        return output

    def replaced(self, block: Any) -> list[nn.Module]:
        return [block, _attention(block)]

    def scored(self, block: Any) -> list[nn.Module]:
        attention = _attention(block)
        return [_norm(block, 1), attention.q_proj, attention.k_proj]

    def cut(
        self, block: Any, args: tuple[Any, ...], kwargs: dict[str, Any], kept: Callable[[], Tensor | None]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if written_to_a_file():  # transformers then makes a mask of its own, in which each token sees all
            args = args if len(args) == 1 else (args[0], None, *args[2:])
            kwargs = {**kwargs, "attention_mask": None} if "attention_mask" in kwargs else kwargs
        if kwargs.get("attention_mask", args[1] if len(args) > 1 else None) is not None:
            raise UserError("attention_mask: a pruned tower of transformers takes none; restore() it first")
        return super().cut(block, args, kwargs, kept)

    def num_heads(self, block: Any) -> int:
        attention = _attention(block)
        return int(attention.num_heads if hasattr(attention, "num_heads") else attention.num_attention_heads)

    def pool_query_key(
        self, patches: Float[Tensor, "B n D"]
    ) -> tuple[Float[Tensor, "B H M d"], Float[Tensor, "B H n d"]] | None:
        module: Any = self.module
        if getattr(module, "head", None) is None:
            return None
        head = module.head.attention
        (q_weight, k_weight, _), (q_bias, k_bias, _) = head.in_proj_weight.chunk(3), head.in_proj_bias.chunk(3)
        q = F.linear(module.head.probe, q_weight, q_bias).expand(patches.shape[0], -1, -1)
        k = F.linear(module.post_layernorm(patches), k_weight, k_bias)
        q, k = (y.unflatten(-1, (head.num_heads, -1)).transpose(1, 2) for y in (q, k))
        return q, k

    def query_key(
        self, block: Any, x: Float[Tensor, "B N D"], call: Call = NO_CALL
    ) -> tuple[Float[Tensor, "B H N d"], Float[Tensor, "B H N d"]]:
        return self.raw_query_key(block, _norm(block, 1)(x))

    def raw_query_key(
        self, block: Any, x: Float[Tensor, "B N D"], call: Call = NO_CALL
    ) -> tuple[Float[Tensor, "B H N d"], Float[Tensor, "B H N d"]]:
        attention = _attention(block)
        return self._heads(block, attention.q_proj(x)), self._heads(block, attention.k_proj(x))

    def attention_half(
        self,
        block: Any,
        x: Float[Tensor, "B N D"],
        bias: Float[Tensor, ...] | None,
        call: Call = NO_CALL,
    ) -> tuple[Float[Tensor, "B N D"], Float[Tensor, "B H N d"], Float[Tensor, "B H N d"]]:
        attention, normed = _attention(block), _norm(block, 1)(x)
        q, k, v = (self._heads(block, part(normed)) for part in (attention.q_proj, attention.k_proj, attention.v_proj))
        if call.get("output_attentions", attention.config.output_attentions):
            if _returns_tuple(block):
                raise UserError(
                    "output_attentions: this version of transformers has none of blocks that a strategy acts inside "
                    "of; leave it out and use anchorprune.get_vision_attention(model, images)"
                )
            # transformers collects what the module itself returns; so it runs, projections and all, once more
            bias = None if bias is None else bias.to(normed.dtype)
            y = attention(hidden_states=normed, attention_mask=bias, **call)[0]
        else:
            own = attention.dropout if hasattr(attention, "dropout") else attention.attention_dropout
            dropout = own if attention.training else 0.0
            y = F.scaled_dot_product_attention(q, k, v, None if bias is None else bias.to(q.dtype), dropout)
            out: nn.Module = attention.out_proj if hasattr(attention, "out_proj") else attention.o_proj
            y = out(y.transpose(1, 2).flatten(2))
        return x + _after(block, 1, y), q, k

    def returned(self, block: Any, x: Tensor) -> Any:
        return (x,) if _returns_tuple(block) else x

    def mlp_half(self, block: Any, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        y: Tensor = x + _after(block, 2, block.mlp(_norm(block, 2)(x)))
        return y

    def _heads(self, block: Any, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B H N d"]:
        return x.unflatten(-1, (self.num_heads(block), -1)).transpose(1, 2)


def _pair(size: Any) -> tuple[int, int]:
    return tuple(size) if isinstance(size, (tuple, list)) else (size, size)


def _attention(block: Any) -> Any:
    return block.self_attn if hasattr(block, "self_attn") else block.attention


def _norm(block: Any, half: int) -> nn.Module:
    """The LayerNorm in front of a half's part: as it is called in CLIP and SigLIP, in DINOv2, in ViT."""
    names = (f"layer_norm{half}", f"norm{half}", ("layernorm_before", "layernorm_after")[half - 1])
    norm: nn.Module = next(getattr(block, name) for name in names if hasattr(block, name))
    return norm


def _after(block: Any, half: int, y: Tensor) -> Tensor:
    """What of a half's part is added to the residual stream: CLIP and SigLIP do nothing to it."""
    for name in (f"layer_scale{half}", "drop_path", "dropout"):
        if isinstance(part := getattr(block, name, None), nn.Module):
            y = part(y)
    return y


def _resampled(stem: Any, old: Grid, grids: Callable[[], tuple[Grid, Grid]], *args: Any) -> Tensor:
    """In place of `interpolate_pos_encoding`: as open_clip and timm do it, antialiased.

    Without that the same weights would give other features in each library.
    """
    own = stem.position_embedding.weight if hasattr(stem, "position_embedding") else stem.position_embeddings[0]
    return resample_positions(own, old, grids()[0]).unsqueeze(0)


def _interpolating(stem: Any, *args: Any, **kwargs: Any) -> Tensor:
    """In place of an embedding's forward: with its positions interpolated to the size of the image."""
    embedded: Tensor = type(stem).forward(stem, *args, **{**kwargs, "interpolate_pos_encoding": True})
    return embedded


def _returns_tuple(block: Any) -> bool:
    """Blocks of transformers 4 that are themselves asked for their attention return it, or nothing, beside tokens."""
    return "output_attentions" in inspect.signature(type(block).forward).parameters
