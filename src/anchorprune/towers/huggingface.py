"""Hugging Face transformers: the vision towers of CLIP, Chinese CLIP and SigLIP."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anchorprune.errors import UserError
from anchorprune.grid import resample_positions
from anchorprune.towers.base import NO_CALL, Call, LoadedModel, Tower

# Towers by the name of their class, with how many tokens stand before the patches: transformers 5, transformers 4.
_PREFIX = {"CLIPVisionModel": 1, "ChineseCLIPVisionModel": 1, "SiglipVisionModel": 0}
_PREFIX |= {name.replace("Model", "Transformer"): prefix for name, prefix in _PREFIX.items()}
CHINESE_LENGTH = 52  # tokens that Chinese CLIP was trained with; its BERT could take more


def match(model: nn.Module) -> HuggingFaceTower | None:
    """The tower of a transformers model or the vision model itself; None for a model of another library.

    Raises:
        UserError: a transformers model whose tower cannot be pruned.
    """
    if pooled := isinstance(model, HuggingFaceCLIP):
        model = model.model
    if not type(model).__module__.startswith("transformers."):
        return None
    visual: Any = getattr(model, "vision_model", model)
    kind = type(visual).__name__
    if kind not in _PREFIX:
        reason = "its patches come in any number and shape" if kind.startswith("Siglip2") else "it is another tower"
        raise UserError(f"cannot prune {kind}: {reason}; CLIP, Chinese CLIP and SigLIP of transformers can be pruned")
    config, prefix = visual.config, _PREFIX[kind]
    side = config.image_size // config.patch_size
    return HuggingFaceTower(
        module=visual,
        blocks=list(visual.encoder.layers),
        batch_first=True,
        num_prefix_tokens=prefix,
        grid=(side, side),
        image_size=(config.image_size, config.image_size),
        # Every other model hands all tokens on to its caller (`last_hidden_state`).
        reads_patches=not pooled or prefix == 0,
        has_cls=prefix > 0,
    )


@dataclass
class HuggingFaceTower(Tower):
    """`encoder.layers` of `self_attn` and `mlp`, each after a LayerNorm."""

    @property
    def stem(self) -> nn.Module:
        module: Any = self.module
        embeddings: nn.Module = module.embeddings
        return embeddings

    @torch.no_grad()  # a constant to the gradient
    def on_grid(self, grid: tuple[int, int], whole: tuple[int, int]) -> list[tuple[nn.Module, str, Any]]:
        stem: Any = self.stem
        if not hasattr(stem, "interpolate_pos_encoding"):
            raise UserError(
                "this version of transformers has images of one size alone: update it, or choose a strategy that does "
                "not shrink them"
            )
        # Resampled as open_clip and timm do it: without antialiasing the same weights would give other features.
        positions = resample_positions(stem.position_embedding.weight, self.grid, grid).unsqueeze(0)
        return [
            (stem, "interpolate_pos_encoding", partial(_first, positions)),
            (stem, "forward", partial(_interpolating, stem)),
        ]

    def num_heads(self, block: Any) -> int:
        return int(block.self_attn.num_heads)

    def pool_query_key(self, patches: Tensor) -> tuple[Tensor, Tensor] | None:
        module: Any = self.module
        if getattr(module, "head", None) is None:
            return None
        head = module.head.attention
        (q_weight, k_weight, _), (q_bias, k_bias, _) = head.in_proj_weight.chunk(3), head.in_proj_bias.chunk(3)
        q = F.linear(module.head.probe, q_weight, q_bias).expand(len(patches), -1, -1)
        k = F.linear(module.post_layernorm(patches), k_weight, k_bias)
        q, k = (y.unflatten(-1, (head.num_heads, -1)).transpose(1, 2) for y in (q, k))
        return q, k

    def query_key(self, block: Any, x: Tensor, call: Call = NO_CALL) -> tuple[Tensor, Tensor]:
        attention, x = block.self_attn, block.layer_norm1(x)
        return self._heads(block, attention.q_proj(x)), self._heads(block, attention.k_proj(x))

    def attention_half(
        self, block: Any, x: Tensor, bias: Tensor | None, call: Call = NO_CALL
    ) -> tuple[Tensor, Tensor, Tensor]:
        attention, normed = block.self_attn, block.layer_norm1(x)
        q, k, v = (self._heads(block, part(normed)) for part in (attention.q_proj, attention.k_proj, attention.v_proj))
        if call.get("output_attentions", attention.config.output_attentions):
            if _returns_tuple(block):
                raise UserError(
                    "output_attentions: this version of transformers has none of blocks that a strategy acts inside "
                    "of; leave it out and use anchorprune.get_vision_attention(model, images)"
                )
            # transformers collects what the module itself returns; so it runs, projections and all, once more
            bias = None if bias is None else bias.to(normed.dtype)
            return x + attention(hidden_states=normed, attention_mask=bias, **call)[0], q, k
        dropout = attention.dropout if attention.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, None if bias is None else bias.to(q.dtype), dropout)
        return x + attention.out_proj(y.transpose(1, 2).flatten(2)), q, k

    def returned(self, block: Any, x: Tensor) -> Any:
        return (x,) if _returns_tuple(block) else x

    def mlp_half(self, block: Any, x: Tensor) -> Tensor:
        y: Tensor = x + block.mlp(block.layer_norm2(x))
        return y

    def _heads(self, block: Any, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads(block), -1)).transpose(1, 2)


def _first(value: Tensor, *args: Any) -> Tensor:
    return value


def _interpolating(stem: Any, pixels: Tensor, **kwargs: Any) -> Tensor:
    """In place of an embedding's forward: with its positions interpolated to the size of the image."""
    embedded: Tensor = type(stem).forward(stem, pixels, interpolate_pos_encoding=True)
    return embedded


def _returns_tuple(block: Any) -> bool:
    """Blocks of transformers 4 that are themselves asked for their attention return it, or nothing, beside tokens."""
    return "output_attentions" in inspect.signature(type(block).forward).parameters


class HuggingFaceCLIP(nn.Module):
    """A transformers model with the methods that `evaluate` calls."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        # BERT, the text tower of Chinese CLIP, would read the padding.
        self._pad = model.config.text_config.pad_token_id if model.config.model_type == "chinese_clip" else None

    def encode_image(self, images: Tensor) -> Tensor:
        return _pooled(self.model.get_image_features(pixel_values=images))

    def encode_text(self, tokens: Tensor) -> Tensor:
        mask = {} if self._pad is None else {"attention_mask": tokens.ne(self._pad).long()}
        return _pooled(self.model.get_text_features(input_ids=tokens, **mask))


def _pooled(output: Any) -> Tensor:
    features: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return features


def check(model: str, pretrained: str, cache_dir: str | None = None) -> None:
    """Raise UserError unless `model` is a folder or a hub's model that transformers has an image and a text tower for.

    `pretrained` has no meaning: these models come with their weights.
    """
    _configs[model] = _config(model, cache_dir)


_configs: dict[str, Any] = {}  # of what was checked, by name


def _config(model: str, cache_dir: str | None) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise UserError("--model_type hf: needs transformers: pip install transformers") from error
    try:
        config = transformers.AutoConfig.from_pretrained(model, cache_dir=cache_dir)
    except Exception as error:  # of the hub's clients, of JSON, of transformers itself
        raise _loading_error(model, error) from error
    if config.model_type not in ("clip", "chinese_clip", "siglip"):
        raise UserError(
            f"--model {model}: is a {config.model_type} model; CLIP, Chinese CLIP and SigLIP of transformers can be "
            "evaluated"
        )
    return config


def _loading_error(model: str, error: Exception) -> UserError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return UserError(f"--model {model}: cannot be loaded by transformers ({reason})")


def skeleton(model: str) -> nn.Module | None:
    """A model that was checked, without weights, to look at its tower before anything large is read."""
    import transformers

    with torch.device("meta"):
        built: nn.Module = transformers.AutoModel.from_config(_configs[model])
    return built


def load(model: str, pretrained: str, *, cache_dir: str | None, device: torch.device, precision: str) -> LoadedModel:
    """A transformers model with its image processor and tokenizer.

    Args:
        model: a folder, or a name on the hub.
        pretrained: has no meaning.
        precision: of the weights, by open_clip's name: fp32, bf16, fp16.

    Raises:
        UserError: no such model, weights that are damaged or missing, no network.
    """
    config = _config(model, cache_dir)
    import transformers

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    options = {"cache_dir": cache_dir}
    try:
        built = transformers.AutoModel.from_pretrained(model, **options)
        processor = transformers.AutoImageProcessor.from_pretrained(model, **options)
        tokenizer = transformers.AutoTokenizer.from_pretrained(model, **options)
    except Exception as error:
        raise _loading_error(model, error) from error
    length = config.text_config.max_position_embeddings if config.model_type != "chinese_clip" else CHINESE_LENGTH

    def transform(image: Any) -> Tensor:
        pixels: Tensor = processor(images=image.convert("RGB"), return_tensors="pt")["pixel_values"][0]
        return pixels

    def tokenize(texts: list[str]) -> Tensor:
        # Padded to full length as in training: SigLIP reads the last position.
        encoded = tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        ids: Tensor = encoded["input_ids"]
        return ids

    # Cast here: what the precision is called in from_pretrained, and what it is without, depends on the version.
    return LoadedModel(HuggingFaceCLIP(built).eval().to(device, dtype), transform, tokenize)
