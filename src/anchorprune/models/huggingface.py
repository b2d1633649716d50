"""Hugging Face transformers: a CLIP-like model, or an image tower alone, from a folder or a hub."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from anchorprune.errors import FieldError, UserError
from anchorprune.models.base import LoadedModel
from anchorprune.models.foreign import no_foreign_code, refused, wants_code

WITH_TEXTS = ("clip", "chinese_clip", "siglip")
CHINESE_LENGTH = 52  # tokens that Chinese CLIP was trained with; its BERT could take more


class HuggingFaceCLIP(nn.Module):
    """A transformers model with the methods that `evaluate` calls."""

    # Of the image tower the pooled output alone, so that pruning need not keep the last block's patches.
    reads_pooled_features: ClassVar[bool] = True

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


class HuggingFaceImages(nn.Module):
    """An image tower of transformers without a text tower, with the method that `evaluate` calls.

    Its features are what the model pools, or its CLS token where it pools nothing, or by a layer (`ViTPooler`) that is
    trained for a head and random in most checkpoints.
    """

    reads_pooled_features: ClassVar[bool] = True

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        if isinstance(getattr(getattr(model, "pooler", None), "dense", None), nn.Module):
            model.pooler = None

    def encode_image(self, images: Tensor) -> Tensor:
        output: Any = self.model(pixel_values=images)
        pooled: Tensor | None = getattr(output, "pooler_output", None)
        features: Tensor = output.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)
        return features


@dataclass(frozen=True)
class Preprocess:
    """PIL image -> `[3, height, width]` by an image processor of transformers.

    Attributes:
        resize: what resizes and crops instead of the processor; None: the processor itself.
    """

    processor: Any
    resize: Callable[[Any], Any] | None = None

    def __call__(self, image: Any) -> Tensor:
        image, options = image.convert("RGB"), {}
        if self.resize is not None:
            image, options = self.resize(image), {"do_resize": False, "do_center_crop": False}
            if not hasattr(self.processor, "do_center_crop"):
                del options["do_center_crop"]
        pixels: Tensor = self.processor(images=image, return_tensors="pt", **options)["pixel_values"][0]
        return pixels

    def resized(self, change: Callable[[Any, Any, int], Callable[[Any], Any]]) -> Preprocess:
        """The same with another resizing: what `change` makes of this one's (`pruning/preprocessing.py`)."""
        size, crop = dict(self.processor.size), None
        if getattr(self.processor, "do_center_crop", False):
            crop = (self.processor.crop_size["height"], self.processor.crop_size["width"])
        resized = size["shortest_edge"] if "shortest_edge" in size else (size["height"], size["width"])
        return replace(self, resize=change(resized, crop, int(self.processor.resample)))

    @property
    def mean_and_std(self) -> tuple[list[float], list[float]]:
        return list(self.processor.image_mean), list(self.processor.image_std)


def _pooled(output: Any) -> Tensor:
    features: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return features


def check(model: str, pretrained: str, cache_dir: str | None = None, trust: bool = False) -> None:
    """Raise UserError unless `model` is a folder or a hub's model that transformers has an image tower for.

    `pretrained` has to be empty.
    """
    _check_no_weights(pretrained)
    _configs[model] = _config(model, cache_dir, trust), trust


def _check_no_weights(pretrained: str) -> None:
    if pretrained:
        raise FieldError("pretrained", pretrained, "models of transformers come with their weights; leave it out")


_configs: dict[str, tuple[Any, bool]] = {}  # of what was checked, by name, and whether its code is trusted


def _config(model: str, cache_dir: str | None, trust: bool = False) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            "models of Hugging Face need a package that is not installed: pip install transformers"
        ) from error
    try:
        with no_foreign_code(model, trust):
            config = transformers.AutoConfig.from_pretrained(model, cache_dir=cache_dir, trust_remote_code=trust)
    except Exception as error:  # of the hub's clients, of JSON, of transformers itself
        raise _loading_error(model, error) from error
    if config.model_type not in (*WITH_TEXTS, *_image_towers()):
        raise FieldError(
            "model",
            model,
            f"is a {config.model_type} model; CLIP, Chinese CLIP, SigLIP and image towers (ViT, DINOv2 …) of "
            "transformers can be evaluated",
        )
    return config


def _image_towers() -> set[str]:
    """What transformers classifies images with, but for models that have a text tower, or no one vector an image."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as KNOWN

    vision = {"dinov3_vit", "dinov3_convnext", *(f"{name}_vision_model" for name in WITH_TEXTS)}
    others = {"metaclip_2", "siglip2", "shieldgemma2", "imagegpt", "perceiver"}
    others |= {"segformer", "ijepa", "cvt", "poolformer", "pvt_v2", "swiftformer"}
    return (set(KNOWN) | vision) - others - set(WITH_TEXTS)


def has_text_tower(model: str) -> bool:
    """Whether it is one of those that `encode_text`."""
    return _known(model)[0].model_type in WITH_TEXTS


def _known(model: str) -> tuple[Any, bool]:
    return _configs.get(model) or (_config(model, None), False)


def _loading_error(model: str, error: Exception) -> UserError:
    if isinstance(error, UserError):
        return error
    if wants_code(error):
        return refused(model)
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return FieldError("model", model, f"cannot be loaded by transformers ({reason})")


def skeleton(model: str) -> nn.Module | None:
    """The model without weights, to look at its tower before anything large is read."""
    import transformers

    config, trust = _known(model)
    with torch.device("meta"), no_foreign_code(model, trust):
        built: nn.Module = transformers.AutoModel.from_config(config, trust_remote_code=trust)
    return built


def load(
    model: str,
    pretrained: str,
    *,
    cache_dir: str | None,
    device: torch.device,
    precision: str,
    trust: bool = False,
) -> LoadedModel:
    """A transformers model with its image processor and tokenizer.

    Args:
        model: a folder, or a name on the hub.
        pretrained: has to be empty.
        precision: of the weights, by open_clip's name: fp32, bf16, fp16.

    Raises:
        UserError: no such model, weights that are damaged or missing, no network.
    """
    _check_no_weights(pretrained)
    config = _config(model, cache_dir, trust)
    import transformers

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    options = {"cache_dir": cache_dir, "trust_remote_code": trust}
    try:
        with no_foreign_code(model, trust):
            built = transformers.AutoModel.from_pretrained(model, **options)
            processor = transformers.AutoImageProcessor.from_pretrained(model, **options)
            with_texts = config.model_type in WITH_TEXTS
            tokenizer = transformers.AutoTokenizer.from_pretrained(model, **options) if with_texts else None
    except Exception as error:
        raise _loading_error(model, error) from error
    # Cast here: what the precision is called in from_pretrained, and what it is without, depends on the version.
    if tokenizer is None:
        return LoadedModel(HuggingFaceImages(built).eval().to(device, dtype), Preprocess(processor))
    length = config.text_config.max_position_embeddings if config.model_type != "chinese_clip" else CHINESE_LENGTH

    def tokenize(texts: list[str]) -> Tensor:
        # Padded to full length as in training: SigLIP reads the last position.
        encoded = tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        ids: Tensor = encoded["input_ids"]
        return ids

    return LoadedModel(HuggingFaceCLIP(built).eval().to(device, dtype), Preprocess(processor), tokenize)
