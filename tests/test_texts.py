"""Texts go through the text tower without their padding where that changes nothing, and classifiers are kept."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.transformer import TextTransformer
from support.models import make_clip
from torch import Tensor, nn

from anchorprune.models.texts import cached, classifier_key, encode_texts

CPU = torch.device("cpu")
TOKENIZER = open_clip.get_tokenizer("ViT-B-32")
TEXTS = ["a cat", "", "a photo of several very small dogs on a red carpet", "two words"] * 3


class WithText(nn.Module):
    """What `CustomTextCLIP` is to its caller."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.text = TextTransformer(width=16, heads=2, layers=2, output_dim=8, **options).eval()

    def encode_text(self, text: Tensor) -> Any:
        return self.text(text)


CUT: dict[str, Callable[[], nn.Module]] = {
    "CLIP": make_clip,
    "a text tower of its own": WithText,
    "read at a token's number": lambda: WithText(pool_type="eos", eos_id=49407),
    "one projection with bias": lambda: WithText(proj_bias=True),
}
WHOLE: dict[str, Callable[[], nn.Module]] = {
    "no causal mask": lambda: WithText(no_causal_mask=True),
    "no causal mask, padding masked": lambda: WithText(no_causal_mask=True, use_pad_mask=True),
    "read at its end": lambda: WithText(pool_type="last"),
    "a CLS token at the end (CoCa)": lambda: WithText(embed_cls=True),
}


@torch.no_grad()
@pytest.mark.parametrize("make", [*CUT.values(), *WHOLE.values()], ids=[*CUT, *WHOLE])
@pytest.mark.parametrize("batch_size", [1, 5, 256])
def test_embeddings_are_those_of_the_padded_texts(make: Callable[[], nn.Module], batch_size: int) -> None:
    model: Any = make()
    tokens = TOKENIZER(TEXTS)
    expected = nn.functional.normalize(model.encode_text(tokens).float(), dim=-1)
    torch.testing.assert_close(encode_texts(model, tokens, CPU, batch_size), expected, atol=1e-5, rtol=0)
    after = nn.functional.normalize(model.encode_text(tokens).float(), dim=-1)
    assert torch.equal(after, expected)  # the tower is whole again


@pytest.mark.parametrize("make", CUT.values(), ids=CUT)
def test_a_causal_tower_sees_no_padding(make: Callable[[], nn.Module]) -> None:
    assert lengths_seen(make()) == [4, 13]


@pytest.mark.parametrize("make", WHOLE.values(), ids=WHOLE)
def test_any_other_tower_sees_all_of_it(make: Callable[[], nn.Module]) -> None:
    assert set(lengths_seen(make())) <= {77, 78}


def lengths_seen(model: Any) -> list[int]:
    """The lengths of two batches in the tower's blocks: the shorter half of `TEXTS`, the longer half."""
    seen: list[int] = []
    transformer = getattr(model, "text", model).transformer
    transformer.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    encode_texts(model, TOKENIZER(TEXTS), CPU, len(TEXTS) // 2)
    return seen


def test_a_failure_leaves_the_tower_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_clip()
    before = dict(model.state_dict())
    monkeypatch.setattr(model, "encode_text", lambda texts: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        encode_texts(model, TOKENIZER(TEXTS), CPU)
    assert before.keys() == model.state_dict().keys()
    assert model.positional_embedding.shape[0] == model.attn_mask.shape[0] == 77


def key(model: Any, **changed: Any) -> str:
    texts = {"tokenizer": TOKENIZER, "classes": ["cat", "dog"], "templates": ["a {c}"], "precision": "float32 cpu"}
    return classifier_key(model, **(texts | changed))


def test_the_key_is_of_all_that_the_classifier_depends_on_and_no_more() -> None:
    model, other = make_clip(), make_clip()
    assert key(model) == key(other)
    with torch.no_grad():
        other.visual.conv1.weight.add_(1.0)
    assert key(model) == key(other)
    with torch.no_grad():
        other.token_embedding.weight[7, 3] += 1e-6
    keys = [
        key(model),
        key(other),
        key(copy.deepcopy(model).bfloat16()),
        key(model, classes=["dog", "cat"]),
        key(model, templates=["a {c}."]),
        key(model, templates={"cat": ["a cat"], "dog": ["a dog"]}),
        key(model, precision="bfloat16 (autocast) cpu"),
        key(model, tokenizer=open_clip.get_tokenizer("ViT-B-32", context_length=32)),
        key(WithText()),
    ]
    assert len(set(keys)) == len(keys)
    for change in (
        lambda clip: setattr(clip.transformer.resblocks[0].mlp, "gelu", open_clip.transformer.QuickGELU()),
        lambda clip: setattr(clip.transformer.resblocks[0].attn, "num_heads", 1),
        lambda clip: setattr(clip, "text_pool_type", "last"),
        lambda clip: clip.attn_mask.zero_(),
    ):
        changed = make_clip()
        change(changed)
        assert key(changed) != key(model)


def test_a_classifier_is_built_once(tmp_path: Path) -> None:
    folder, built = str(tmp_path / "a" / "b"), torch.randn(4, 3)
    assert torch.equal(cached(folder, "one", lambda: built), built)
    assert torch.equal(cached(folder, "one", lambda: 1 / 0), built)  # type: ignore[arg-type, return-value]
    assert [path.name for path in Path(folder).iterdir()] == ["one.pt"]


def test_a_damaged_file_is_built_again_and_a_folder_out_of_reach_is_no_obstacle(tmp_path: Path) -> None:
    built = torch.randn(4, 3)
    for damage in (b"", b"PK\3\4", b"not a tensor"):
        (tmp_path / "one.pt").write_bytes(damage)
        assert torch.equal(cached(str(tmp_path), "one", lambda: built), built)
        assert torch.equal(torch.load(tmp_path / "one.pt"), built)
    torch.save({"no": "classifier"}, tmp_path / "two.pt")
    assert torch.equal(cached(str(tmp_path), "two", lambda: built), built)
    assert torch.equal(cached(str(tmp_path / "one.pt" / "a file, no folder"), "one", lambda: built), built)
