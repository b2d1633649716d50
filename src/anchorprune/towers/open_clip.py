"""open_clip: `VisionTransformer` towers, in each of the layouts that open_clip has used since 2.24."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anchorprune import demo
from anchorprune.errors import UserError, did_you_mean
from anchorprune.grid import resample_positions
from anchorprune.towers.base import NO_CALL, Call, LoadedModel, Tower

# Models that come with their weights; --pretrained has no meaning then.
_SCHEMAS = ("hf-hub:", "local-dir:")
# What open_clip, torch and hub clients raise for weights that are out of reach or do not fit.
_LOADING_ERRORS = (RuntimeError, OSError, EOFError, ValueError, KeyError, ImportError, UnpicklingError)


def match(model: nn.Module) -> OpenClipTower | None:
    """The tower of an open_clip model or of its `.visual`; None for a model of another library.

    Raises:
        UserError: an open_clip model whose tower cannot be pruned.
    """
    visual: Any = getattr(model, "visual", model)
    kind = type(visual).__name__
    if kind == "ModifiedResNet":
        raise UserError(f"cannot prune {kind}: it is a ResNet, and convolutions need the whole grid of pixels")
    blocks = getattr(getattr(visual, "transformer", None), "resblocks", None)
    if blocks is None or not hasattr(visual, "class_embedding"):
        return None
    attention = blocks[0].attn
    if not isinstance(getattr(attention, "in_proj_weight", None), Tensor):
        raise UserError(f"cannot prune {kind}: {type(attention).__name__} has no joint query-key-value projection")
    if getattr(attention, "logit_scale", None) is not None:
        raise UserError(f"cannot prune {kind}: its blocks use cosine attention, which anchorprune does not score")
    # Blocks were tokens-first up to 2.24 and are batch-first or either since; the transformer says so where it
    # does the transposing, and otherwise the attention knows.
    batch_first = getattr(visual.transformer, "batch_first", getattr(attention, "batch_first", True))
    # OpenAI's own package has this tower under other names.
    height, width = to_pair(getattr(visual, "image_size", None) or visual.input_resolution)
    patch_height, patch_width = visual.conv1.kernel_size
    return OpenClipTower(
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


def to_pair(size: Any) -> tuple[int, int]:
    """Height and width of `size`, which is both or each of them."""
    return tuple(size) if isinstance(size, (tuple, list)) else (size, size)


@dataclass
class OpenClipTower(Tower):
    """A `VisionTransformer`: one CLS token, then the patches, row by row."""

    @property
    def stem(self) -> nn.Module:
        module: Any = self.module
        conv: nn.Module = module.conv1
        return conv

    @torch.no_grad()  # a constant to the gradient
    def on_grid(self, grid: tuple[int, int], whole: tuple[int, int]) -> list[tuple[nn.Module, str, Any]]:
        name = "positional_embedding"
        own: Any = {**self.module._parameters, **self.module._buffers}[name]
        return [(self.module, name, resample_positions(own, self.grid, grid))]

    def num_heads(self, block: Any) -> int:
        heads: int = block.attn.num_heads
        return heads

    def mask_bias(self, block: Any, mask: Tensor, x: Tensor) -> Tensor:
        if mask.dtype == torch.bool and isinstance(block.attn, nn.MultiheadAttention):
            mask = mask.to(x.dtype)  # plain blocks add a boolean mask as 0 and 1
        return super().mask_bias(block, mask, x)

    def query_key(self, block: Any, x: Tensor, call: Call = NO_CALL) -> tuple[Tensor, Tensor]:
        q, k = self._project(block, x, 2)
        return q, k

    def attention_half(
        self, block: Any, x: Tensor, bias: Tensor | None, call: Call = NO_CALL
    ) -> tuple[Tensor, Tensor, Tensor]:
        attention = block.attn
        q, k, v = self._project(block, x, 3)
        y = F.scaled_dot_product_attention(q, k, v, None if bias is None else bias.to(q.dtype))
        if getattr(attention, "head_scale", None) is not None:
            y = y * attention.head_scale
        y = y.transpose(1, 2).flatten(2)
        # What plain blocks and OpenAI's own do not have.
        for part, names in ((attention, ("ln_inner", "out_proj", "out_drop")), (block, ("ln_attn", "ls_1"))):
            for name in names:
                y = getattr(part, name, _same)(y)
        return x + y, q, k

    def mlp_half(self, block: Any, x: Tensor) -> Tensor:
        return x + getattr(block, "ls_2", _same)(block.mlp(block.ln_2(x)))

    def _project(self, block: Any, x: Tensor, parts: int) -> list[Tensor]:
        """Queries and keys, and for three parts values, of the block's input, each `[B, H, N, d]`."""
        attention, rows = block.attn, parts * x.shape[-1]
        weight, bias = attention.in_proj_weight[:rows], attention.in_proj_bias
        projected = F.linear(block.ln_1(x), weight, None if bias is None else bias[:rows])
        q, k, *v = projected.unflatten(-1, (parts, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if hasattr(attention, "ln_q"):
            q, k = attention.ln_q(q), attention.ln_k(k)
        return [q, k, *v]


def _same(x: Tensor) -> Tensor:
    return x


def check(model: str, pretrained: str, cache_dir: str | None = None) -> None:
    """Raise UserError unless open_clip knows the model and the weights are a tag of its or a file."""
    import open_clip

    if model.startswith(_SCHEMAS):
        return
    demo.register()
    if model.replace("/", "-") not in open_clip.list_models():  # ViT-B/32 is ViT-B-32, as open_clip itself reads it
        raise UserError(
            f"--model {model}: open_clip has no such model.{did_you_mean(model, open_clip.list_models())} "
            "`python -c 'import open_clip; print(open_clip.list_models())'` lists them"
        )
    tags = [demo.TAG] if model == demo.MODEL else open_clip.list_pretrained_tags_by_model(model)
    if pretrained == demo.TAG and (model == demo.MODEL or not os.path.exists(pretrained)):
        return demo.check_weights(model)
    if os.path.isdir(pretrained):
        raise UserError(f"--pretrained {pretrained}: is a folder; give the checkpoint file in it")
    if pretrained and not open_clip.get_pretrained_cfg(model, pretrained) and not os.path.isfile(pretrained):
        known = f"its tags are {', '.join(tags)}" if tags else "it has no tags, give a checkpoint file"
        raise UserError(
            f"--pretrained {pretrained}: neither a file nor a tag of {model}.{did_you_mean(pretrained, tags)} ({known})"
        )


def skeleton(model: str) -> nn.Module | None:
    """The model without weights, to look at its tower before anything is downloaded; None where that cannot be had."""
    import open_clip

    if model.startswith(_SCHEMAS):
        return None
    try:
        with _logged(), torch.device("meta"):
            # pretrained_hf: some text towers would fetch weights of their own.
            return open_clip.create_model(model, device="meta", pretrained_hf=False)
    except Exception:  # some timm towers compute with values while they are built; meta tensors have none
        return None


def load(model: str, pretrained: str, *, cache_dir: str | None, device: torch.device, precision: str) -> LoadedModel:
    """An open_clip model with its image transform and tokenizer.

    Where the weights' tag declares QuickGELU and the model's config does not, the model is built with QuickGELU,
    which is what the weights were trained with; open_clip itself only warns.

    Args:
        model: a name of `open_clip.list_models()`, `hf-hub:…` or `local-dir:…`.
        pretrained: a tag of that model, or a checkpoint file.
        precision: open_clip's name for the weights' precision: fp32, bf16, fp16.

    Raises:
        UserError: unknown model or tag, a checkpoint that is damaged or of another architecture, no network.
    """
    import open_clip

    check(model, pretrained)
    bundled = model == demo.MODEL and pretrained == demo.TAG
    tag = open_clip.get_pretrained_cfg(model, pretrained) if pretrained else {}
    config = {} if model.startswith(_SCHEMAS) else open_clip.get_model_config(model) or {}
    force_quick_gelu = bool(tag.get("quick_gelu")) and not config.get("quick_gelu", False)
    with _logged() as log:
        try:
            built, _, transform = open_clip.create_model_and_transforms(
                model,
                pretrained=None if bundled else pretrained or None,
                cache_dir=cache_dir,
                device=device,
                precision=precision,
                force_quick_gelu=force_quick_gelu,
                # open_clip goes on with random weights where a hub or a folder gives none.
                require_pretrained=bool(pretrained and not bundled) or model.startswith(_SCHEMAS),
            )
            tokenizer = open_clip.get_tokenizer(model)
        except Exception as error:
            # Reading a file that somebody takes for a checkpoint can raise anything.
            if not isinstance(error, _LOADING_ERRORS) and not os.path.isfile(pretrained):
                raise
            raise _loading_error(model, pretrained, error) from error
    if bundled:
        demo.load_weights(built)
        log = []  # it says that no weights were loaded
    if force_quick_gelu:
        warnings.warn(
            f"the weights {pretrained!r} were trained with QuickGELU and the config {model!r} has GELU: building it "
            "with QuickGELU",
            stacklevel=2,
        )
    for line in log:
        warnings.warn(line, stacklevel=2)
    return LoadedModel(
        model=built.eval(),
        transform=transform,
        tokenizer=tokenizer,
        options={"force_quick_gelu": True} if force_quick_gelu else {},
    )


@contextmanager
def _logged() -> Iterator[list[str]]:
    """What open_clip (by the root logger) and huggingface_hub warn of meanwhile, kept off stderr.

    To be said once where loading succeeds; where it fails, the exception says it.
    """
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(  # type: ignore[method-assign]
        f"{'open_clip' if record.name == 'root' else record.name.split('.')[0]}: {record.getMessage()}"
    )
    root, hub = logging.getLogger(), logging.getLogger("huggingface_hub")
    root.addHandler(handler)  # without one, logging.warning() would install one that writes to stderr for good
    hubs_own, hub.handlers = hub.handlers, [logging.NullHandler()]  # its records reach the root too
    try:
        yield lines
    finally:
        root.removeHandler(handler)
        hub.handlers = hubs_own


def _loading_error(model: str, pretrained: str, error: Exception) -> UserError:
    """What went wrong, in one sentence; `error` is whatever open_clip, torch or a hub client raised."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if isinstance(error, ImportError) or "pip install" in lines[0]:
        return UserError(f"--model {model}: needs a Python package that is not installed ({lines[0][:160]})")
    if os.path.isfile(pretrained):
        if "loading state_dict" in lines[0]:
            return UserError(
                f"--pretrained {pretrained}: holds weights of another architecture than {model} ({lines[1][:120]}); "
                "give the --model that it was saved from"
            )
        kind = "" if isinstance(error, RuntimeError) or not str(error) else f"{type(error).__name__}: "
        return UserError(f"--pretrained {pretrained}: is damaged or no checkpoint ({kind}{' '.join(lines)[:160]})")
    reason = " ".join(lines).rpartition("Last error: ")[2]
    return UserError(
        f"--model {model} --pretrained {pretrained}: cannot get the weights ({reason[:200]}); "
        "check the network, or give a local checkpoint file with --pretrained"
    )
