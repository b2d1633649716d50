"""`Request`: JSON in and out, equal hashes for equal requests, and the command line that means the same."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import anchorprune
from anchorprune import Compute, DataSpec, LinearProbe, ModelSpec, Request, UserError, ZeroShotClassification
from anchorprune.commands import build_parser
from anchorprune.commands._flags import given_fields
from anchorprune.commands._requests import requests_of
from anchorprune.strategies import known, make_strategy

PLAIN = Request(model=ModelSpec(name="ViT-B-16", pretrained="openai"), data=DataSpec(name="cifar10"))

text = st.text("ab/é {}'\"", min_size=1, max_size=8)
words = st.text("abc._/", min_size=1, max_size=8).filter(lambda word: not word.startswith("-"))
prunings = st.none() | st.sampled_from(
    [
        make_strategy("anchor", k_anchors=3, score_norm="minmax"),
        make_strategy("coarse", keep_patches=(66,), grid_share=0.25),
        make_strategy("random", prune_layers=(2, 4), keep_ratio=(0.5, 0.25), draw_seed=7),
        make_strategy("tome", r=13),
        make_strategy("tome", r=(16, 8, 0), prop_attn="off"),
        make_strategy("tome", r=8, r_inflect=-1),
        make_strategy("pitome", ratio=(0.9, 0.5), margin=0.9),
        make_strategy("cascade", gate_texts="a 'b' é.pt"),
        make_strategy(
            "cascade",
            stages=("tome --r 16 8", "coarse --keep_ratio 0.5", "unpruned"),
            min_margin=0.01,
            gate_texts="c.pt",
        ),
    ]
)
requests = st.builds(
    Request,
    model=st.builds(
        ModelSpec,
        name=words,
        pretrained=words,
        library=st.sampled_from(["open_clip"]),
        cache_dir=st.none() | words,
    ),
    data=st.builds(
        DataSpec,
        name=words,
        root=text,
        split=words,
        language=st.sampled_from(["en", "jp"]),
        annotation_file=st.just("") | words,
        classnames=st.none() | words,
        templates=st.none() | words,
        cache_dir=st.none() | words,
        limit=st.none() | st.integers(1, 1000),
        seed=st.integers(0, 9),
        skip_bad_images=st.booleans(),
    ),
    task=st.builds(ZeroShotClassification, load_clfs=st.lists(words, max_size=2).map(tuple))
    | st.builds(
        LinearProbe,
        train_split=words,
        val_split=st.none() | words,
        fewshot_k=st.sampled_from([-1, 4]),
        fewshot_lr=st.sampled_from([0.1, 1e-3]),
        normalize=st.booleans(),
    )
    | st.builds(LinearProbe, val_proportion=st.sampled_from([0.25, 0.1])),
    pruning=prunings,
    compute=st.builds(
        Compute,
        device=st.none() | st.sampled_from(["cpu", "cuda:1"]),
        precision=st.sampled_from(["amp", "fp32", "bf16"]),
        batch_size=st.integers(1, 100),
        num_workers=st.integers(0, 8),
        clf_cache=st.none() | st.just("") | words,
        feature_root=st.just("") | words,
    ),
)


@given(requests)
def test_json_and_back_is_the_same_request(request_: Request) -> None:
    assert Request.from_dict(json.loads(json.dumps(request_.as_dict()))) == request_


@given(requests)
def test_its_flags_mean_the_same_request(request_: Request) -> None:
    args = build_parser().parse_args(["eval", *request_.flags()])
    [typed] = requests_of(args)
    pruning = make_strategy(args.strategy, **given_fields(args)) if args.enable_pruning else None
    assert dataclasses.replace(typed, pruning=pruning) == request_


@given(requests, requests)
def test_equal_requests_have_equal_hashes(one: Request, other: Request) -> None:
    again = Request.from_dict(one.as_dict())
    assert again.hash() == one.hash()
    decides = [
        dataclasses.replace(of, compute=Compute(device="cpu", precision=of.compute.precision)) for of in (one, other)
    ]
    if one.hash() == other.hash():  # then all that decides is equal: what differs is how it is computed
        models = [dataclasses.replace(of.model, cache_dir=None) for of in decides]
        assert models[0] == models[1]
        assert decides[0].pruning == decides[1].pruning


@pytest.mark.parametrize(
    "change",
    [
        {"model": ModelSpec(name="ViT-B-32", pretrained="openai")},
        {"model": ModelSpec(name="ViT-B-16", pretrained="laion400m_e32")},
        {"data": DataSpec(name="cifar100")},
        {"data": DataSpec(name="cifar10", split="train")},
        {"data": DataSpec(name="cifar10", root="elsewhere")},
        {"data": DataSpec(name="cifar10", language="jp")},
        {"data": DataSpec(name="cifar10", limit=9)},
        {"data": DataSpec(name="cifar10", annotation_file="a.json")},
        {"task": ZeroShotClassification(load_clfs=("clf.pt",))},
        {"pruning": make_strategy("tome")},
        {"compute": Compute(precision="fp32")},
        {"task": LinearProbe()},
    ],
)
def test_whatever_decides_a_result_is_in_the_hash(change: dict[str, Any]) -> None:
    assert dataclasses.replace(PLAIN, **change).hash() != PLAIN.hash()


@pytest.mark.parametrize(
    "change",
    [
        {"compute": Compute(batch_size=1, num_workers=0, clf_cache="c", feature_root="f")},
        {"model": ModelSpec(name="ViT-B-16", pretrained="openai", cache_dir="c")},
        {"data": DataSpec(name="cifar10", seed=3)},  # without a limit nothing is drawn
        {"data": DataSpec(name="cifar10", cache_dir="c")},
    ],
)
def test_what_decides_nothing_is_not(change: dict[str, Any]) -> None:
    assert dataclasses.replace(PLAIN, **change).hash() == PLAIN.hash()


def test_the_batch_size_decides_where_one_image_chooses_for_all() -> None:
    for strategy, decides in (
        (make_strategy("anchor", selection="first_image"), True),
        (make_strategy("anchor"), False),
    ):
        hashes = {
            dataclasses.replace(PLAIN, pruning=strategy, compute=Compute(batch_size=size)).hash() for size in (1, 2)
        }
        assert len(hashes) == (2 if decides else 1)


def test_a_request_knows_no_torch() -> None:
    code = (
        "import sys, json\nfrom anchorprune import Request\n"
        f"request = Request.from_dict(json.loads({json.dumps(json.dumps(PLAIN.as_dict()))}))\n"
        "assert request.model.name == 'ViT-B-16'\nassert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": 2}, "version 2: this anchorprune reads version 1"),
        ({"model": None}, "has the parts model, data, task, compute"),
        ({"model": {"name": "x", "nam": 1}}, "ModelSpec has no nam; it has"),
        ({"data": {}}, "DataSpec cannot be read"),
        ({"data": {"name": "x", "limit": 0}}, "limit=0: must be 1 or more"),
        ({"task": {"task": "zeroshot"}}, "unknown task 'zeroshot'"),
        ({"task": {"task": "zeroshot_classification", "k": 1}}, "has no such field"),
        ({"pruning": {"strategy": "tom"}}, "unknown strategy 'tom'"),
        ({"pruning": {"strategy": "tome", "r": -1}}, "r=-1: must be 0"),
        ({"pruning": []}, "a strategy as JSON is"),
        ({"compute": {"precision": "fp8"}}, "precision='fp8': choose one of"),
    ],
)
def test_a_request_that_cannot_be_is_one_line(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Request.from_dict({**PLAIN.as_dict(), **change})


@pytest.mark.parametrize("name", sorted(known()))
def test_a_strategy_is_saved_and_loaded(name: str, tmp_path: Path) -> None:
    strategy = make_strategy(name)
    strategy.save(tmp_path / "s.json")
    assert anchorprune.Strategy.load(tmp_path / "s.json") == strategy
    assert json.loads((tmp_path / "s.json").read_text()) == strategy.to_dict()
    assert anchorprune.Strategy.from_dict(strategy.as_dict()) == strategy  # as it stands in a result


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", r"s\.json: not JSON"),
        ("[]", r"s\.json: a strategy as JSON is"),
        ('{"strategy": "tome", "version": 9}', r"s\.json: a strategy of version 9"),
        ('{"strategy": "tome", "s": 1}', r"s\.json: s=1: strategy 'tome' has no such field; it has r"),
    ],
)
def test_a_file_that_is_no_strategy_is_one_line(content: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(content)
    with pytest.raises(UserError, match=says):
        anchorprune.Strategy.load(tmp_path / "s.json")
    with pytest.raises(UserError, match=r"gone\.json: no such file"):
        anchorprune.Strategy.load(tmp_path / "gone.json")


# --- data that changed under the same name


def _hash(name: str, **data: str) -> str:
    return Request(model=ModelSpec(name="m"), data=DataSpec(name=name, **data)).hash()


def test_a_folder_that_changed_under_its_name_has_another_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("a", "b"):
        (tmp_path / place / "photos" / "cat").mkdir(parents=True)
        (tmp_path / place / "photos" / "cat" / "0.png").write_bytes(b"0")
    monkeypatch.chdir(tmp_path / "a")
    before = _hash("folder:photos")
    assert _hash("folder:photos") == before
    monkeypatch.chdir(tmp_path / "b")
    assert _hash("folder:photos") != before
    monkeypatch.chdir(tmp_path / "a")
    Path("photos/cat/1.png").write_bytes(b"1")
    more = _hash("folder:photos")
    Path("photos/cat/1.png").write_bytes(b"12")
    assert len({before, more, _hash("folder:photos")}) == 3


def test_a_webdataset_that_changed_under_its_name_has_another_hash(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "0.tar").write_bytes(b"0" * 9000)
    (tmp_path / "classnames.txt").write_text("cat\n")
    seen = {_hash("wds/x", root=str(tmp_path))}
    (tmp_path / "classnames.txt").write_text("dog\n")
    seen.add(_hash("wds/x", root=str(tmp_path)))
    (tmp_path / "test" / "0.tar").write_bytes(b"0" * 9999)
    seen.add(_hash("wds/x", root=str(tmp_path)))
    assert len(seen) == 3


def test_a_table_that_changed_under_its_name_has_another_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text("image,label\n0.png,cat\n")
    before = _hash("table:t.csv")
    assert _hash("table:t.csv") == before
    Path("0.png").write_bytes(b"an image")
    with_image = _hash("table:t.csv")
    Path("0.png").write_bytes(b"another image")
    assert len({before, with_image, _hash("table:t.csv")}) == 3
    Path("t.csv").write_text("image,label\n0.png,dog\n")
    assert _hash("table:t.csv") not in {before, with_image}


def test_another_folders_root_of_the_same_name_has_another_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        monkeypatch.chdir(tmp_path / place)
        seen.add(_hash("cifar10"))
    assert len(seen) == 2


def test_weights_in_a_local_folder_of_open_clips_count(tmp_path: Path) -> None:
    def hashed() -> str:
        return Request(model=ModelSpec(name=f"local-dir:{tmp_path}"), data=DataSpec(name="bundled")).hash()

    (tmp_path / "open_clip_model.safetensors").write_bytes(b"0")
    before = hashed()
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"1")
    assert hashed() != before
