"""open_clip: a model by its name, with its weights."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from anchorprune import bundled
from anchorprune.errors import FieldError, UserError, did_you_mean
from anchorprune.models.base import LoadedModel
from anchorprune.models.checkpoint import is_torchscript, weights_of
from anchorprune.models.foreign import check_config, no_foreign_code, refused, wants_code

_CONFIG = "open_clip_config.json"
_SCHEMAS = ("hf-hub:", "local-dir:")  # of models that come with their weights; open_clip says that it takes no others
# What open_clip, torch and hub clients raise for weights that are out of reach or do not fit.
_LOADING_ERRORS = (RuntimeError, OSError, EOFError, ValueError, KeyError, ImportError, UnpicklingError)


def check(model: str, pretrained: str, cache_dir: str | None = None, trust: bool = False) -> None:
    """Raise UserError unless open_clip knows the model and the weights are a tag of its or a file.

    `trust`: whether a folder of a model may have code of its own run.
    """
    import open_clip

    if model.startswith(_SCHEMAS):
        if not trust:
            _check_config(model, cache_dir)
        return
    bundled.register()
    if model.replace("/", "-") not in open_clip.list_models():  # ViT-B/32 is ViT-B-32, as open_clip itself reads it
        raise FieldError(
            "model",
            model,
            f"open_clip has no such model.{did_you_mean(model, open_clip.list_models())} "
            "`python -c 'import open_clip; print(open_clip.list_models())'` lists them",
        )
    tags = [bundled.TAG] if model == bundled.MODEL else open_clip.list_pretrained_tags_by_model(model)
    if pretrained == bundled.TAG and (model == bundled.MODEL or not os.path.exists(pretrained)):
        return bundled.check_weights(model)
    if os.path.isdir(pretrained):
        raise FieldError("pretrained", pretrained, "is a folder; give the checkpoint file in it")
    if pretrained and not open_clip.get_pretrained_cfg(model, pretrained) and not os.path.isfile(pretrained):
        known = f"its tags are {', '.join(tags)}" if tags else "it has no tags, give a checkpoint file"
        raise FieldError(
            "pretrained", pretrained, f"neither a file nor a tag of {model}.{did_you_mean(pretrained, tags)} ({known})"
        )


def _check_config(model: str, cache_dir: str | None) -> None:
    """FieldError where the configuration of a model in a folder, or at a hub, wants code to be run."""
    kind, _, name = model.partition(":")
    if kind == "local-dir":
        return check_config(model, Path(name, _CONFIG))
    import huggingface_hub

    repository, _, revision = name.partition("@")
    try:
        file = huggingface_hub.hf_hub_download(repository, _CONFIG, revision=revision or None, cache_dir=cache_dir)
    except Exception:  # no network, no such model: open_clip says it
        return
    check_config(model, Path(file))


def has_text_tower(model: str) -> bool:
    """All of open_clip's have one."""
    return True


def skeleton(model: str) -> nn.Module | None:
    """The model without weights, to look at its tower before anything is downloaded; None where that cannot be had."""
    import open_clip

    if model.startswith(_SCHEMAS):
        return None
    bundled.register()
    try:
        with _logged(), torch.device("meta"):
            # pretrained_hf: some text towers would fetch weights of their own.
            return open_clip.create_model(model, device="meta", pretrained_hf=False)
    except Exception:  # some timm towers compute with values while they are built; meta tensors have none
        return None


def load(
    model: str,
    pretrained: str,
    *,
    cache_dir: str | None,
    device: torch.device,
    precision: str,
    trust: bool = False,
) -> LoadedModel:
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

    check(model, pretrained, cache_dir, trust)
    ours = model == bundled.MODEL and pretrained == bundled.TAG
    tag = open_clip.get_pretrained_cfg(model, pretrained) if pretrained else {}
    config = {} if model.startswith(_SCHEMAS) else open_clip.get_model_config(model) or {}
    force_quick_gelu = bool(tag.get("quick_gelu")) and not config.get("quick_gelu", False)

    def build(weights: str | None) -> Any:
        return open_clip.create_model_and_transforms(
            model,
            pretrained=weights,
            cache_dir=cache_dir,
            device=device,
            precision=precision,
            force_quick_gelu=force_quick_gelu,
            # open_clip goes on with random weights where a hub or a folder gives none.
            require_pretrained=bool(pretrained and not ours) or model.startswith(_SCHEMAS),
        )

    with _logged() as log, no_foreign_code(model, trust):
        try:
            built, _, transform = _built(build, pretrained) if not ours else build(None)
            tokenizer = open_clip.get_tokenizer(model)
        except UserError:
            raise
        except Exception as error:
            if wants_code(error):
                raise refused(model) from error
            # Reading a file that somebody takes for a checkpoint can raise anything.
            if not isinstance(error, _LOADING_ERRORS) and not os.path.isfile(pretrained):
                raise
            raise _loading_error(model, pretrained, error) from error
    if ours:
        bundled.load_weights(built)
        log = []  # it says that no weights were loaded
    if force_quick_gelu:
        warnings.warn(
            f"the weights {pretrained!r} were trained with QuickGELU and the config {model!r} has GELU: building it "
            "with QuickGELU",
            stacklevel=2,
        )
    twin = f"{model.replace('/', '-')}-quickgelu"
    if os.path.isfile(pretrained) and twin in open_clip.list_models():
        warnings.warn(
            f"{model} computes GELU: weights that were trained with QuickGELU, such as OpenAI's, lose accuracy; for "
            f"them there is the model {twin}",
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


def _built(build: Callable[[str | None], Any], pretrained: str) -> Any:
    """What `build` gives for these weights; of a file that it cannot read, for the same weights in plain form."""
    try:
        if os.path.isfile(pretrained) and is_torchscript(pretrained):
            raise ValueError("a TorchScript archive, which cannot be read")
        return build(pretrained or None)
    except Exception:
        weights = weights_of(pretrained) if os.path.isfile(pretrained) else None
        if weights is None:
            raise
    with tempfile.TemporaryDirectory(prefix="anchorprune-") as folder:
        torch.save(weights, copied := os.path.join(folder, "weights.pt"))
        return build(copied)


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
        return FieldError("model", model, f"needs a Python package that is not installed ({lines[0][:160]})")
    if os.path.isfile(pretrained):
        if "loading state_dict" in lines[0]:
            said = f"holds weights of another architecture than {model} ({lines[1][:120]}); give the"
            own = "model that it was saved from"
            return FieldError("pretrained", pretrained, f"{said} {own}", typed=f"{said} --{own}")
        kind = "" if isinstance(error, RuntimeError) or not str(error) else f"{type(error).__name__}: "
        return FieldError("pretrained", pretrained, f"is damaged or no checkpoint ({kind}{' '.join(lines)[:160]})")
    reason = " ".join(lines).rpartition("Last error: ")[2]
    return FieldError(
        "pretrained",
        pretrained,
        f"cannot get the weights (of {model}: {reason[:200]}); check the network, or give a local checkpoint file",
    )
