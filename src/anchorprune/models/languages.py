"""The language of NLLB-CLIP's texts: its tokenizer marks it in each of them, and has to be told."""

from __future__ import annotations

from typing import Any

from anchorprune.errors import FieldError, did_you_mean


def nllb_code(model: str, language: str) -> str | None:
    """What NLLB calls clip-benchmark's `language`, `eng_Latn` for `en`; None for any model but NLLB-CLIP's.

    Raises:
        UserError: clip-benchmark, whose names these are, has no such language or is not installed.
    """
    if "nllb-clip" not in model:  # as clip-benchmark has it
        return None
    if language == "en":
        return "eng_Latn"
    try:
        from clip_benchmark.models.nllb_clip import lang_map
    except ImportError as error:
        raise FieldError(
            "language",
            language,
            "NLLB's codes of the languages are clip-benchmark's, which is not installed: "
            "pip install 'anchorprune[zoo]'",
        ) from error
    if language not in lang_map:
        raise FieldError(
            "language",
            language,
            f"is none that {model} knows; give one as clip-benchmark calls it (es) or as NLLB "
            f"does (spa_Latn).{did_you_mean(language, lang_map)}",
        )
    code: str = lang_map[language]
    return code


def set_language(tokenizer: Any, model: str, language: str) -> None:
    """Make the tokenizer of this model mark texts as being in this language. UserError as in `nllb_code`."""
    if (code := nllb_code(model, language)) is not None:
        # clip-benchmark, and open_clip's own set_language, call set_src_lang_special_tokens. That was enough while
        # open_clip called batch_encode_plus; a tokenizer that is called itself goes back to its `src_lang` first.
        tokenizer.tokenizer.src_lang = code
