"""Arrays, classifiers and weights of whatever kind: what cannot be one is refused in one line that names the file."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.material import TINY, World, command

from anchorprune import reading
from anchorprune.datasets.wds import _vector
from anchorprune.errors import FieldError, UserError
from anchorprune.evaluation import outcomes
from anchorprune.evaluation.request import ModelSpec
from anchorprune.models import load
from anchorprune.models.texts import cached
from anchorprune.pruning.export import read_about
from anchorprune.pruning.gate import read_classifier
from anchorprune.reading import check_real
from anchorprune.strategies import make_strategy
from anchorprune.tasks.zeroshot_classification import load_classifiers

# Each takes the path of a file that torch or safetensors would open.
TENSORS: dict[str, Callable[[Path], Any]] = {
    "a classifier": lambda path: load_classifiers([str(path)], 3),
    "the texts of a gate": lambda path: read_classifier(str(path), "gate_texts"),
    "a calibration": lambda path: make_strategy("calibrated", calibration=str(path)).applied(),
    "an exported program": lambda path: read_about(path, "torch"),
    "a model's own weights": lambda path: load(ModelSpec(name=f"local-dir:{path.parent}"), torch.device("cpu"), "fp32"),
}


@pytest.mark.parametrize("reader", TENSORS)
@pytest.mark.parametrize("kind", ["a FIFO", "a device"])
def test_tensors_are_read_of_regular_files_alone(here: Path, reader: str, kind: str) -> None:
    path = here / "w.pt"
    if kind == "a FIFO":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(UserError, match=r"w\.pt'?: .*not a regular file"):
        TENSORS[reader](path)


@pytest.mark.parametrize("reader", [each for each in TENSORS if each != "a calibration"])
def test_an_archive_that_unpacks_to_far_more_than_it_is_is_refused_before_that(
    here: Path, reader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MOST_PACKED", 1 << 10)
    torch.save(torch.zeros(400, 3), here / "plain.pt")
    reading.check_archive(here / "plain.pt")
    with (
        zipfile.ZipFile(here / "plain.pt") as plain,
        zipfile.ZipFile(here / "w.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    (here / "plain.pt").unlink()
    with pytest.raises(UserError, match=r"w\.pt'?: .*an archive of [\d,]+ bytes that unpacks to [\d,]+"):
        TENSORS[reader](here / "w.pt")


# --- arrays


def npy(array: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def header(shape: str, kind: str = "<f4", data: bytes = b"") -> bytes:
    """A .npy file that says so of itself."""
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}}}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


WHOLE = npy(np.arange(3.0))
ODD_ARRAYS = {
    "nothing": b"",
    "text": b"0 1 0",
    **{f"cut at {size}": WHOLE[:size] for size in (4, 8, 9, 20, 100, 130, 140)},
    "an archive": (lambda out: (np.savez(out, a=np.zeros(3)), out.getvalue())[1])(io.BytesIO()),
    "a pickle": b"\x80\x04N.",
    "objects": header("(3,)", "|O", bytes(24)),
    "36 TiB": header("(10000000000000,)"),
    "more than 64 bits": header(f"({10**30},)"),
    "less than nothing": header("(-3,)", data=bytes(12)),
    "no shape": header("'abc'"),
    "no type": header("(3,)", "nonsense", bytes(12)),
    "nested": header("(" * 500 + ")" * 500),
    "complex": npy(np.ones(3, complex)),
    "dates": npy(np.array(["2020-01-01"] * 3, "datetime64[D]")),
    "texts": npy(np.array(["a", "b", "c"])),
    "records": npy(np.zeros(3, [("a", "f4")])),
    "nan": npy(np.array([0, np.nan, 1])),
    "infinite": npy(np.array([0, np.inf, 1])),
    "version 9": b"\x93NUMPY\x09\x00" + WHOLE[8:],
}


@pytest.mark.parametrize("name", ODD_ARRAYS)
def test_an_odd_array_is_refused_by_every_reader(here: Path, name: str) -> None:
    data = ODD_ARRAYS[name]
    with pytest.raises(ValueError, match=r"."):
        reading.array_of(data)
    with pytest.raises(UserError, match=r"^x: its \.npy must hold one number for each class \(.+\)\.$"):
        _vector(data, "x")
    for path in (here / "r.outcomes.npz", here / "alone.npz"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("keys.npy", npy(np.frombuffer(b'["a","b","c"]', np.uint8)))
            archive.writestr("scores.npy", data)
        if path.stem == "alone":
            path.write_bytes(data)
        with pytest.raises(
            UserError, match=rf"{path.name}: not the outcomes of an evaluation \(.+\); remove it"
        ) as said:
            outcomes.read(path)
        assert len(str(said.value).splitlines()) == 1
    (here / "c.npy").write_bytes(data)
    with pytest.raises(FieldError, match=r"load_clfs='.*c\.npy': is no saved tensor"):
        load_classifiers([str(here / "c.npy")], 3)


@pytest.mark.parametrize("array", [np.zeros((2, 2)), np.zeros(()), np.zeros((0, 3))], ids=["2", "0", "empty"])
def test_an_array_of_another_rank_is_no_vector_of_labels(array: Any) -> None:
    with pytest.raises(UserError, match=r"must hold one number for each class \(its shape is"):
        _vector(npy(array), "x")


def nested() -> Any:
    return torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])


def quantised() -> Any:
    return torch.quantize_per_tensor(torch.zeros(4, 3), 0.1, 0, torch.quint8)


ODD_TENSORS: dict[str, Callable[[], Any]] = {
    "no tensor": lambda: {"a": torch.zeros(4, 3)},
    "a list": lambda: [torch.zeros(4, 3)],
    "a number": lambda: 5,
    "sparse": lambda: torch.eye(3).to_sparse(),
    "sparse rows": lambda: torch.eye(3).to_sparse_csr(),
    "meta": lambda: torch.zeros(4, 3, device="meta"),
    "quantised": quantised,
    "nested": nested,
    "complex": lambda: torch.zeros(4, 3, dtype=torch.complex64),
    "truths": lambda: torch.zeros(4, 3, dtype=torch.bool),
    "whole numbers": lambda: torch.zeros(4, 3, dtype=torch.int64),
    "a vector": lambda: torch.zeros(3),
    "an image": lambda: torch.zeros(1, 4, 3),
    "empty": lambda: torch.zeros(0, 3),
    "larger than itself": lambda: torch.zeros(1).expand(1 << 40, 3),
    "nan": lambda: torch.full((4, 3), torch.nan),
    "infinite as float32": lambda: torch.full((4, 3), 1e300, dtype=torch.float64),
    "small and nan": lambda: torch.full((4, 3), torch.nan).to(torch.float8_e4m3fn),
}


@pytest.mark.filterwarnings("ignore")  # what torch says of its own kinds
@pytest.mark.parametrize("name", ODD_TENSORS)
def test_an_odd_tensor_is_no_classifier(here: Path, name: str) -> None:
    torch.save(ODD_TENSORS[name](), here / "c.pt")
    with pytest.raises(FieldError, match=r"load_clfs='.*c\.pt': ") as refused:
        load_classifiers([str(here / "c.pt")], 3)
    assert len(str(refused.value).splitlines()) == 1


def test_plain_tensors_of_every_kind_of_floating_point_are_classifiers(here: Path) -> None:
    for kind in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        torch.save(torch.ones(4, 3, dtype=kind), here / "c.pt")
        assert torch.equal(load_classifiers([str(here / "c.pt")], 3), torch.ones(4, 3))
    check_real(torch.ones(6, 4)[::2].t(), 2)


@pytest.mark.filterwarnings("ignore")  # what torch says of its own kinds
@pytest.mark.parametrize("name", [*ODD_TENSORS, "of another width"])
def test_an_odd_tensor_among_the_kept_classifiers_is_built_again(here: Path, name: str) -> None:
    torch.save(ODD_TENSORS.get(name, lambda: torch.zeros(4, 5))(), here / "key.pt")
    assert torch.equal(cached(str(here), "key", lambda: torch.eye(3), 3), torch.eye(3))


def test_a_file_that_is_no_tensor_is_no_classifier(here: Path) -> None:
    torch.save(torch.zeros(4, 3), here / "whole.pt")
    whole = (here / "whole.pt").read_bytes()
    np.savez(here / "a.npz", a=np.zeros((4, 3)))
    for data in (b"", b"text", whole[:50], whole[:-50], (here / "a.npz").read_bytes(), b"\x80\x04cos\nsystem\n."):
        (here / "c.pt").write_bytes(data)
        with pytest.raises(FieldError, match=r"load_clfs='.*c\.pt': is no saved tensor \(.+\)"):
            load_classifiers([str(here / "c.pt")], 3)


# --- weights


@pytest.mark.parametrize("form", ["pt", "old.pt", "safetensors"])
@pytest.mark.parametrize("name", ["visual.proj", "logit_scale", "token_embedding.weight"])
def test_weights_that_are_not_finite_are_refused_though_no_feature_shows_them(
    world: World, here: Path, form: str, name: str
) -> None:
    state = torch.load(world.weights, weights_only=True)
    state[name].view(-1)[-1] = torch.inf
    saved(state, form)
    line = refused(world, f"w.{form}")
    assert f"--pretrained w.{form}: numbers that are not finite: its weights hold 1 such numbers ({name})" in line


@pytest.mark.parametrize("form", ["pt", "old.pt", "safetensors"])
def test_complex_weights_are_refused(world: World, here: Path, form: str) -> None:
    state = torch.load(world.weights, weights_only=True)
    state["visual.proj"] = state["visual.proj"].to(torch.complex64)
    try:
        saved(state, form)
    except (KeyError, ValueError, TypeError):
        pytest.skip("this safetensors knows no complex numbers")
    assert f"--pretrained w.{form}: holds complex numbers; weights are real" in refused(world, f"w.{form}")


@pytest.mark.parametrize("form", ["pt", "pth", "safetensors"])
def test_whole_numbers_and_truths_are_no_weights(world: World, here: Path, form: str) -> None:
    state = torch.load(world.weights, weights_only=True)
    for name, kind in (("visual.proj", torch.int8), ("visual.conv1.weight", torch.bool)):
        saved({**state, name: state[name].to(kind)}, form)
        assert f"--pretrained w.{form}: holds weights that are no real numbers: {name} is of" in refused(
            world, f"w.{form}"
        )
    saved({name: weight.bfloat16() for name, weight in state.items()}, form)
    load(ModelSpec(name=TINY, pretrained=f"w.{form}"), torch.device("cpu"), "fp32")


@pytest.mark.parametrize("value", [0.0, 3e38])
def test_a_classifier_by_which_all_images_are_equally_near_is_refused(here: Path, value: float) -> None:
    torch.save(torch.cat([torch.ones(4, 2), torch.full((4, 1), value)], dim=1), "c.pt")
    for read in (TENSORS["a classifier"], TENSORS["the texts of a gate"]):
        with pytest.raises(UserError, match="1 of its 3 classes are zeros, or too large"):
            read(Path("c.pt"))


def saved(state: dict[str, Any], form: str) -> None:
    if form == "safetensors":
        save_file(state, f"w.{form}")
    else:
        torch.save(state, f"w.{form}", _use_new_zipfile_serialization=form == "pt")


def refused(world: World, weights: str) -> str:
    outcome = command("eval", "--model", TINY, "--pretrained", weights, *world.three, "--num_workers", 0)
    assert outcome.code == 2
    [line] = outcome.err
    return line
