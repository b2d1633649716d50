"""Texts through the text tower, without the padding where that is exact; and classifiers kept on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anchorprune.errors import UserError
from anchorprune.files import replacing
from anchorprune.models.digest import add_model
from anchorprune.reading import check_archive, check_real

# Changes when other numbers would be computed for the same key.
_VERSION = 1
# Where the image towers of open_clip and transformers are.
_IMAGE = ("visual.", "model.vision_model.", "model.visual_projection.")


@torch.no_grad()
def encode_texts(
    model: Any, tokens: Tensor, device: torch.device, batch_size: int = 256, *, normalize: bool = True
) -> Tensor:
    """Embeddings `[texts, D]`, float32, of `tokens` `[texts, length]`; of length 1 unless `normalize` is off.

    Texts of like length go through the tower together, cut behind the last token that any of them is read at: with a
    causal mask nothing before it looks further. Towers that are not causal get all of it.

    Raises:
        UserError: embeddings that are not finite, which any metric would rank in silence.
    """
    tower = _causal_tower(model)
    lengths = _lengths(tower, tokens) if tower is not None else torch.full((len(tokens),), tokens.shape[1])
    order = lengths.argsort(stable=True)
    encoded, broken = [], 0
    for batch in order.split(batch_size):
        longest = int(lengths[batch].max())
        with _cut_to(tower, longest):
            features = model.encode_text(tokens[batch, :longest].to(device))
        # Where a length overflows, normalising would give zeros.
        broken += int((~features.float().norm(dim=-1).isfinite()).sum())
        encoded.append(F.normalize(features.float(), dim=-1) if normalize else features.float())
    if broken:
        raise UserError(
            f"{broken} of {len(tokens)} texts have embeddings that are not finite numbers: the weights of the text "
            "tower are damaged, or overflow at this precision (fp32 would tell)"
        )
    return torch.cat(encoded)[order.argsort().to(device)]


def _causal_tower(model: Any) -> Any | None:
    """The module that adds positions and masks in open_clip's text towers; None for one that must see the padding."""
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper
    tower = getattr(model, "text", model)
    tower = getattr(tower, "_orig_mod", tower)
    mask, positions = getattr(tower, "attn_mask", None), getattr(tower, "positional_embedding", None)
    if not isinstance(mask, Tensor) or not isinstance(positions, nn.Parameter) or mask.dim() != 2:
        return None
    if getattr(tower, "cls_emb", None) is not None or _pool_type(tower) not in ("argmax", "eos"):
        return None
    above = torch.ones_like(mask, dtype=torch.bool).triu(1)
    causal = positions.shape[0] == mask.shape[0] and bool((mask[above] == -torch.inf).all())
    return tower if causal else None


def _pool_type(tower: Any) -> str:
    return str(getattr(tower, "text_pool_type", getattr(tower, "pool_type", "")))


def _lengths(tower: Any, tokens: Tensor) -> Tensor:
    """How many tokens of each text have a say: up to the one that the tower reads."""
    if _pool_type(tower) == "eos":
        end: int = getattr(tower, "text_eos_id", None) or tower.eos_id
        return tokens.eq(end).int().argmax(dim=1) + 1
    return tokens.argmax(dim=1) + 1


@contextmanager
def _cut_to(tower: Any | None, length: int) -> Iterator[None]:
    """The tower for texts of `length` tokens."""
    if tower is None:
        yield
        return
    positions, mask = tower.positional_embedding, tower.attn_mask
    tower._parameters["positional_embedding"] = nn.Parameter(positions[:length], requires_grad=False)
    tower._buffers["attn_mask"] = mask[:length, :length]
    try:
        yield
    finally:
        tower._parameters["positional_embedding"], tower._buffers["attn_mask"] = positions, mask


def prompts_of(name: str, templates: Sequence[str]) -> list[str]:
    """Each template with the class name in place of `{c}`. Nothing else in it means anything, `{0[a]}` nor `{{`."""
    return [template.replace("{c}", name) for template in templates]


def cached(folder: str, key: str, build: Callable[[], Tensor], columns: int | None = None) -> Tensor:
    """What `build` gives, kept in `folder` under `key`.

    Where nothing can be written or read there, or what is there is no classifier of so many `columns`, it is built.
    """
    file = Path(folder) / f"{key}.pt"
    with suppress(Exception):  # not there, damaged, not ours to read: torch.load raises half a dozen kinds
        check_archive(file)
        kept = torch.load(file, map_location="cpu", weights_only=True)
        check_real(kept, 2)
        if kept.dtype == torch.float32 and kept.isfinite().all() and columns in (None, kept.shape[1]):
            return kept
    built = build()
    with suppress(OSError, RuntimeError):  # torch.save raises RuntimeError for a folder that is not there
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as unfinished:
            torch.save(built.cpu(), unfinished)
    return built


def classifier_key(
    model: Any,
    tokenizer: Callable[[list[str]], Tensor],
    classes: Sequence[str],
    templates: Sequence[str] | dict[str, list[str]],
    precision: str,
) -> str:
    """A name for the classifier of these texts by this text tower: of its weights, not of what they are called."""
    digest = hashlib.sha256()
    prompts = templates if isinstance(templates, dict) else list(templates)
    digest.update(json.dumps([_VERSION, torch.__version__, precision, list(classes), prompts]).encode())
    # Two vocabularies would differ somewhere in these.
    if isinstance(templates, dict):
        some = list(classes) + [own[0] for own in templates.values() if own]
    else:
        some = prompts_of(classes[0], templates) + [prompts_of(name, templates[:1])[0] for name in classes]
    digest.update(tokenizer(some).numpy().tobytes())
    add_model(digest, model, lambda name: not name.startswith(_IMAGE))
    return digest.hexdigest()
