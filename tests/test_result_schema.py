"""`result.schema.json` is what a result file is: those of today are in it, others not. Every task: test_ranks.py."""

from __future__ import annotations

import dataclasses
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from support.schema import SCHEMA, complaints

from anchorprune import Compute, DataSpec, ModelSpec, Request
from anchorprune.evaluation import result as results
from anchorprune.evaluation.request import PRECISIONS
from anchorprune.evaluation.runtime import Runtime

GOLDENS = sorted((Path(__file__).parent / "goldens").glob("result_*.json"))
UPSTREAM = sorted((Path(__file__).parent / "goldens").glob("upstream_result_*.json"))


def whole(path: Path) -> dict[str, Any]:
    """A golden file, with what was measured on some machine put back."""
    content = json.loads(path.read_text(encoding="utf-8"))
    content["environment"] = Runtime.of(Compute(device="cpu")).environment()
    content["cost"] |= {
        "images_per_second": 10.0,
        "seconds": {"texts": 0.1, "waiting_for_images": 0.0, "encoding": 2.4},
        "peak_memory_mb": 812.5,
    }
    return content


def test_it_is_in_the_package_and_is_a_schema() -> None:
    from jsonschema import Draft202012Validator

    Draft202012Validator.check_schema(SCHEMA)
    shipped = files("anchorprune").joinpath("evaluation/result.schema.json")
    assert json.loads(shipped.read_text(encoding="utf-8")) == SCHEMA


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_a_result_of_eval_is_as_it_says(path: Path) -> None:
    assert complaints(whole(path)) == []


WRONG: dict[str, dict[str, Any]] = {
    "schema_version": {"schema_version": 1},
    "metrics": {"metrics": {}},
    "config_hash": {"config_hash": "no hash"},
    "n_samples": {"n_samples": 0},
    "a key that nobody knows": {"acuracy": 0.5},
    "cost": {"cost": {"gmacs": 1.0}},
    "pruning": {"pruning": {"strategy": "coarse"}},
    "request": {"request": {"version": 1}},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_file_that_is_otherwise_is_not(wrong: str) -> None:
    assert complaints({**whole(GOLDENS[0]), **WRONG[wrong]})


@pytest.mark.parametrize("key", SCHEMA["required"])
def test_every_key_that_is_always_there_is_asked_for(key: str) -> None:
    content = whole(GOLDENS[0])
    del content[key]
    (complaint,) = complaints(content)
    assert key in complaint


@pytest.mark.parametrize("path", UPSTREAM, ids=lambda path: path.stem)
def test_it_has_all_of_clip_benchmarks_keys(path: Path) -> None:
    assert json.loads(path.read_text(encoding="utf-8")).keys() <= SCHEMA["properties"].keys()


def test_it_says_what_the_code_says() -> None:
    request = Request(model=ModelSpec(name="m"), data=DataSpec(name="d"))
    empty = results.Result(
        request=request,
        metrics={},
        pruning=None,
        cost={},
        n_samples=1,
        n_total=1,
        n_bad_images=0,
        model_options={},
        environment={},
    )
    written = empty.to_dict()
    assert list(written) == SCHEMA["required"]
    assert written["schema_version"] == SCHEMA["properties"]["schema_version"]["const"]
    asked = SCHEMA["properties"]["request"]
    assert list(request.as_dict()) == asked["required"]
    for part, kind in {"model": ModelSpec, "data": DataSpec, "compute": Compute}.items():
        assert [field.name for field in dataclasses.fields(kind)] == list(asked["properties"][part]["properties"])
    assert asked["properties"]["compute"]["properties"]["precision"]["enum"] == list(PRECISIONS)


def test_every_key_says_what_it_is() -> None:
    for key, value in SCHEMA["properties"].items():
        assert value.get("description"), key
