"""The image towers. Each file of this folder knows one model library: what it can prune, and why not the rest."""

from __future__ import annotations

import functools

import torch
from torch import nn

from anchorprune import plugins
from anchorprune.errors import UserError
from anchorprune.towers.base import Tower

__all__ = ["Tower", "find_tower"]


def find_tower(model: nn.Module) -> Tower:
    """The image tower of `model`: a CLIP-like model, its image tower alone, either one compiled, or a module around it.

    Raises:
        UserError: the model cannot be pruned, or there are several towers in it; the sentence says why.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"cannot prune {type(model).__name__}: it is no torch.nn.Module")
    if any(isinstance(part, nn.DataParallel) for part in model.modules()):
        raise UserError(
            "cannot prune nn.DataParallel: its replicas would share one record of the kept tokens; "
            "prune the model inside each process of DistributedDataParallel instead"
        )
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper
    # What `clip.load(…, jit=True)` gives, alone or in a model of the user's own.
    if isinstance(getattr(model, "visual", model), torch.jit.ScriptModule):
        raise UserError("cannot prune a TorchScript model: its blocks take no hooks; load it with jit=False")
    reason: UserError | None = None
    kinds = _kinds(tuple(__path__))
    try:
        if (tower := _match(model, kinds)) is not None:
            return tower
    except UserError as error:
        reason = error
        if _counts_on_all_tokens(model):
            raise
    inside = _inside(model, kinds)
    if len(inside) == 1:
        ((where, tower),) = inside.items()
        tower.where = where
        return tower
    if inside:
        named = " and ".join(f"{type(tower.module).__name__} at {where}" for where, tower in inside.items())
        raise UserError(
            f"cannot prune {type(model).__name__}: it has {len(inside)} image towers, {named}; prune one of them"
        )
    raise reason or UserError(
        f"cannot prune {type(model).__name__}: it is no image tower that anchorprune knows, and has none in it "
        "(a vision transformer of open_clip, OpenAI's clip, transformers or timm, or a model around one)"
    )


@functools.cache
def _kinds(path: tuple[str, ...]) -> list[type[Tower]]:
    """Every tower of these folders and of installed packages. UserError as in `plugins.found`."""
    return list(plugins.found(Tower, __name__).values())  # type: ignore[type-abstract]


def _match(model: nn.Module, kinds: list[type[Tower]]) -> Tower | None:
    for cls in kinds:
        if (tower := cls.match(model)) is not None:
            return tower
    return None


def _inside(model: nn.Module, kinds: list[type[Tower]]) -> dict[str, Tower]:
    """The towers in a module around them, by their dotted names in it; each once."""
    found: dict[int, tuple[str, Tower]] = {}
    for name, part in model.named_modules():
        if part is model:
            continue
        try:
            tower = _match(part, kinds)
        except UserError:  # most parts of a model are no tower
            continue
        if tower is not None:
            found.setdefault(id(tower.blocks[0]), (name, tower))
    return dict(found.values())


def _counts_on_all_tokens(model: nn.Module) -> bool:
    """Whether it is a language model of transformers in whose text a fixed number of places stands for an image."""
    config = getattr(model, "config", None)
    return any(getattr(config, name, None) is not None for name in ("image_token_id", "image_token_index"))
