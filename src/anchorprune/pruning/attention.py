"""`get_vision_attention`: what the blocks of an image tower attend to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from anchorprune.errors import FieldError
from anchorprune.pruning.injection import active_pruning, forget_compiled_code
from anchorprune.tokens import head_attention
from anchorprune.towers import Tower, find_tower
from anchorprune.towers.masks import find_mask


@torch.no_grad()
def get_vision_attention(
    model: nn.Module,
    images: Tensor,
    device: str | torch.device | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """The attention of every block of the image tower, for `images`.

    Computed from the queries and keys of each block's own input, because fused attention never forms it. The
    blocks themselves run as always.

    Args:
        model: an open_clip model or its image tower, pruned or not.
        images: `[B, 3, height, width]`, preprocessed, on the model's device.
        device: the model's; the images are moved there. None: they are there already.
        dtype: of the returned tensors; `torch.float16` halves their memory.

    Returns:
        One `[B, H, N, N]` a block, softmax(q kᵀ / √d + mask) of each head, row = the token that looks. On a
        pruned model N falls from block to block as tokens go, the handle's `kept_before(block)` says which are left,
        and merged tokens count as often as their strategy has it.

    Raises:
        UserError: a model without an image tower that anchorprune knows, or one that is not on `device`.
    """
    tower = find_tower(model)
    if device is not None:
        images = images.to(_of_model(tower, device))
    pruning = active_pruning(tower)
    attention: list[Tensor] = []

    def look(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = tower.tokens(args[0])
        q, k = tower.query_key(block, x, kwargs)
        number = len(attention) + 1
        mask = find_mask(block, args, kwargs)
        addend = None if mask is None else tower.mask_bias(block, mask, x)
        if pruning is not None and (sizes := pruning.size_bias(number)) is not None:
            addend = sizes if addend is None else addend + sizes
        attention.append(head_attention(q, k, addend).to(dtype))

    # Registered after the hooks of a pruning, so that these see the tokens that the block sees.
    hooks = [block.register_forward_pre_hook(look, with_kwargs=True) for block in tower.blocks]
    forget_compiled_code()
    try:
        tower.module(images)
    finally:
        for hook in hooks:
            hook.remove()
        forget_compiled_code()
    return attention


def _of_model(tower: Tower, device: str | torch.device) -> torch.device:
    """The device, which has to be the tower's: a model is not moved behind its owner's back."""
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise FieldError("device", device, "no such device; name one such as cpu or cuda") from error
    own = next(tower.module.parameters()).device
    if wanted.type != own.type or wanted.index not in (None, own.index or 0):
        raise FieldError("device", str(device), f"the model is on {own}; move it first: model.to({str(device)!r})")
    return own
