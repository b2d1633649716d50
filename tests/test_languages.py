"""NLLB-CLIP's tokenizer marks the language of each text; `--language` says which, as in clip-benchmark."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import transformers
from support.material import World, checkpoint, command, evaluated, register

from anchorprune import UserError
from anchorprune.models.languages import nllb_code, set_language

upstream = pytest.importorskip("clip_benchmark.models.nllb_clip")
MODEL = "cli-nllb-clip-tiny"


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    """open_clip's, of an NLLB tokenizer that knows its languages and no words."""
    transformers.NllbTokenizer().save_pretrained(tmp_path / "words")
    return open_clip.tokenizer.HFTokenizer(str(tmp_path / "words"), context_length=8)


def test_texts_are_marked_as_upstream_would_have_them_marked(tokenizer: Any) -> None:
    words = tokenizer.tokenizer
    for language, code in upstream.lang_map.items():
        set_language(tokenizer, "nllb-clip-base", language)
        ours = tokenizer(["a dog"])[0].tolist()
        assert ours[0] == words.convert_tokens_to_ids(code) != words.unk_token_id
        upstream.set_language(tokenizer, language)  # until the tokenizer is called itself, as open_clip 3.3.0 does
        assert words.backend_tokenizer.encode("a dog").ids == ours


def test_the_tokenizer_of_any_other_model_is_left_alone() -> None:
    set_language(open_clip.get_tokenizer("ViT-B-32"), "ViT-B-32", "es")
    assert nllb_code("xlm-roberta-base-ViT-B-32", "a language that nobody has") is None


@pytest.mark.usefixtures("here")
def test_each_run_has_its_own_language(
    world: World, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One model, loaded once, in three languages, in `eval` and alone in `sweep`."""
    register(world.folder, MODEL)
    marks: list[str] = []

    class Watched(type(tokenizer)):
        def __call__(self, texts: list[str], *args: Any) -> Any:
            tokens = super().__call__(texts, *args)
            marks.append(self.tokenizer.convert_ids_to_tokens(int(tokens[0, 0])))
            return tokens

    tokenizer.__class__ = Watched
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda name: tokenizer)
    model = ["--model", MODEL, "--pretrained", checkpoint(tmp_path / "tiny.pt", MODEL), *world.three]
    flags = ["--num_workers", 0, "--clf_cache", "", "--no_amp"]
    done = command("eval", *model, *flags, "--language", "es", "en", "fr", "--output", "{language}.json")
    assert done.code == 0, done.err
    assert list(dict.fromkeys(marks)) == ["spa_Latn", "eng_Latn", "fra_Latn"]
    marks.clear()
    swept = command("sweep", *model, *flags, "--language", "de", "--strategies", "tome --r 2", "--out", "out")
    assert swept.code == 0, swept.err
    assert set(marks) == {"deu_Latn"}
    assert evaluated(*model, *flags, "--language", "it", "--output", "it.json")["language"] == "it"


def test_a_language_that_is_none_of_its_is_one_line() -> None:
    with pytest.raises(UserError, match=r"language='esp': is none .* nllb-clip-base knows; .* Did you mean 'es'\?"):
        nllb_code("nllb-clip-base", "esp")


def test_without_clip_benchmark_there_is_english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "clip_benchmark.models.nllb_clip", None)
    assert nllb_code("nllb-clip-base", "en") == "eng_Latn"
    with pytest.raises(UserError, match=r"language='es': .* not installed: pip install 'anchorprune\[zoo\]'"):
        nllb_code("nllb-clip-base", "es")
