"""The outcomes of single images: their file, pairing two of them, and what `compare` says of a pair."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import random
import re
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorprune.errors import UserError
from anchorprune.evaluation.outcomes import as_bytes, paired, path_for, read, write
from anchorprune.report.csv import build
from anchorprune.studies.compare import Side, beside
from anchorprune.tasks.base import Outcomes


def some(n: int = 20, classes: int = 10) -> Outcomes:
    draw = np.random.default_rng(0)
    keys = tuple(f"class {i % classes}/image {i:05}.jpg" for i in range(n))
    return Outcomes.of_classes(keys, draw.integers(0, classes, n), draw.integers(0, classes, n))


def assert_equal(a: Outcomes, b: Outcomes) -> None:
    assert a.keys == b.keys
    assert a.scores.tolist() == b.scores.tolist()
    assert {k: v.tolist() for k, v in a.details.items()} == {k: v.tolist() for k, v in b.details.items()}


# --- one evaluation


def test_an_image_is_right_where_the_prediction_is_its_class() -> None:
    right = Outcomes.of_classes(("a", "b", "c"), np.array([1, 2, 3]), np.array([1, 3, 3])).scores
    assert right.tolist() == [1, 0, 1]


def test_tensors_and_narrow_integers_are_taken_as_they_are() -> None:
    found = Outcomes.of_classes(("a", "b"), torch.tensor([200, 3]), np.array([200, 4], np.uint8))  # type: ignore[arg-type]
    assert found.details["targets"].dtype == found.details["predictions"].dtype == np.int64
    assert found.scores.tolist() == [1, 0]


@pytest.mark.parametrize("targets", [[[1, 0], [0, 1]], [0.5, 1.0], [1, 2, 3]], ids=["multi-label", "floats", "three"])
def test_anything_but_one_class_an_image_is_refused(targets: list[Any]) -> None:
    with pytest.raises(ValueError, match="2 samples"):
        Outcomes.of_classes(("a", "b"), np.array(targets), np.array([1, 2]))


# --- the file


@pytest.mark.parametrize(
    ("result", "outcomes"),
    [
        ("x.json", "x.outcomes.npz"),
        ("folder.json/ViT-B-16_v1.5.json", "folder.json/ViT-B-16_v1.5.outcomes.npz"),
        ("without an ending 1.5", "without an ending 1.5.outcomes.npz"),
    ],
)
def test_the_outcomes_lie_beside_the_result(result: str, outcomes: str) -> None:
    assert path_for(result) == path_for(Path(result)) == Path(outcomes)


def test_build_does_not_take_outcomes_for_results(tmp_path: Path) -> None:
    write(some(), path_for(tmp_path / "x.json"))
    with pytest.raises(UserError, match=r"no \*\.json file"):
        build([tmp_path], tmp_path / "out.csv")


names = st.one_of(st.text(max_size=20), st.binary(max_size=20).map(lambda b: b.decode("utf-8", "surrogateescape")))
classes = st.integers(-(2**40), 2**40) | st.integers(0, 300)


@settings(deadline=None)
@given(st.lists(st.tuples(names, classes, classes), max_size=30))
def test_what_is_written_is_read_whatever_the_images_are_called(
    tmp_path_factory: pytest.TempPathFactory, images: list[tuple[str, int, int]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.outcomes.npz"
    keys, targets, predictions = zip(*images, strict=True) if images else ((), (), ())
    outcomes = Outcomes.of_classes(keys, np.array(targets, np.int64), np.array(predictions, np.int64))
    write(outcomes, path)
    assert_equal(read(path)[0], outcomes)


@pytest.mark.parametrize(
    ("largest", "dtype"),
    [(255, "uint8"), (256, "uint16"), (65_535, "uint16"), (65_536, "uint32"), (2**32 - 1, "uint32"), (2**32, "int64")],
)
def test_classes_take_the_smallest_type_that_fits(tmp_path: Path, largest: int, dtype: str) -> None:
    write(Outcomes.of_classes(("a", "b"), np.array([0, largest]), np.array([0, 1])), tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz", allow_pickle=False) as file:
        assert file["targets"].dtype == dtype
        assert file["predictions"].dtype == "uint8"


def test_the_outcomes_of_50000_images_fit_into_300_kilobytes(tmp_path: Path) -> None:
    n = 50_000
    draw = np.random.default_rng(0)
    targets = np.repeat(np.arange(1000), 50)
    numbers = draw.permutation(n)  # ILSVRC's validation images are numbered in no order of their classes
    keys = [f"n{1_440_000 + 7919 * c:08}/ILSVRC2012_val_{i:08}.JPEG" for c, i in zip(targets, numbers, strict=True)]
    predictions = np.where(draw.random(n) < 0.7, targets, draw.integers(0, 1000, n))
    write(Outcomes.of_classes(tuple(keys), targets, predictions), tmp_path / "x.npz")
    assert os.path.getsize(tmp_path / "x.npz") < 300_000


def test_the_file_is_numpys_and_made_without_all_of_its_text_in_memory() -> None:
    keys = tuple(f"class {i % 4}/{i:08d}.png" if i % 7 else f"\u00fc\udcff\n{i}" for i in range(40_000))
    labels = np.arange(len(keys)) % 4
    found = Outcomes.of_classes(keys, labels, labels[::-1])
    file, text = io.BytesIO(), json.dumps(keys, separators=(",", ":")).encode()
    small = {"targets": labels.astype(np.uint8), "predictions": labels[::-1].astype(np.uint8)}
    np.savez_compressed(file, keys=np.frombuffer(text, np.uint8), **small)
    tracemalloc.start()
    written = as_bytes(found)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert written == file.getvalue()
    assert most < 32 * len(keys)


def test_the_same_outcomes_give_the_same_bytes(tmp_path: Path) -> None:
    write(some(), tmp_path / "a.npz")
    write(some(), tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize("failing", ["replace", "fsync"])
@pytest.mark.parametrize("failure", [OSError("disk full"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_an_interrupted_write_leaves_the_old_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, failure: BaseException
) -> None:
    path = tmp_path / "x.outcomes.npz"
    write(some(), path)

    def fail(*_: object) -> None:
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, fail)
        with pytest.raises(type(failure)):
            write(some(30), path)
    assert_equal(read(path)[0], some())
    assert list(tmp_path.iterdir()) == [path]


def npy(path: Path) -> None:
    with open(path, "wb") as file:
        np.save(file, np.arange(3))


def pickled(path: Path) -> None:
    with open(path, "wb") as file:
        one = np.array([1])
        np.savez(file, keys=np.array([{"a": 1}], dtype=object), targets=one, predictions=one)


def other_arrays(path: Path) -> None:
    with open(path, "wb") as file:
        np.savez(file, images=np.arange(3))


def holding(keys: str, n: int) -> Callable[[Path], None]:
    def put(path: Path) -> None:
        with open(path, "wb") as file:
            np.savez(file, keys=np.frombuffer(keys.encode(), np.uint8), targets=np.arange(n), predictions=np.arange(n))

    return put


@pytest.mark.parametrize(
    "put",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text('{"metrics": {}}'),
        lambda path: path.write_bytes(b"PK\x03\x04" + bytes(40)),
        npy,
        pickled,
        other_arrays,
        holding('{"a": 1}', 1),
        holding("[1, 2]", 2),
        holding('["a", "b"]', 3),
        holding('["a", ', 1),
    ],
    ids=["empty", "JSON", "zip", "npy", "pickle", "other arrays", "no list", "no names", "too few", "half"],
)
def test_a_file_of_something_else_is_refused_in_one_line(tmp_path: Path, put: Callable[[Path], object]) -> None:
    path = tmp_path / "x.outcomes.npz"
    put(path)
    with pytest.raises(UserError, match="run its 'eval' again") as error:
        read(path)
    assert str(error.value).startswith(f"{path}: not the outcomes of an evaluation (")
    assert "\n" not in str(error.value)


def test_a_missing_file_or_a_folder_is_refused_by_name(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.outcomes.npz", tmp_path):
        with pytest.raises(UserError, match=f"^{re.escape(str(path))}: cannot be read"):
            read(path)


@settings(max_examples=200, deadline=None)
@given(st.randoms(use_true_random=False), st.booleans())
def test_a_damaged_file_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, draw: random.Random, cut: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.outcomes.npz"
    write(some(), path)
    content = bytearray(path.read_bytes())
    place = draw.randrange(len(content))
    if cut:
        del content[place:]
    else:
        content[place] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    with suppress(UserError):
        assert_equal(read(path)[0], some())  # as where the damage is to a date that the zip holds


# --- pairing


images = st.dictionaries(st.text("abc", max_size=3), st.tuples(st.integers(0, 2), st.booleans(), st.booleans()))


def outcomes_of(keys: list[str], targets: list[int], right: list[bool]) -> Outcomes:
    truth = np.array(targets, np.int64)
    return Outcomes.of_classes(tuple(keys), truth, truth + ~np.array(right, bool))


@given(images, st.data())
def test_pairing_is_by_name_in_any_order(found: dict[str, tuple[int, bool, bool]], data: st.DataObject) -> None:
    sides, shown = [], []
    for side in (1, 2):
        keys = data.draw(st.permutations(sorted(found)))
        keys = keys[: data.draw(st.integers(0, len(keys)))]
        shown.append(keys)
        sides.append(outcomes_of(keys, [found[key][0] for key in keys], [found[key][side] for key in keys]))
    both = [key for key in shown[0] if key in shown[1]]
    if not both:
        with pytest.raises(UserError, match="no image in common"):
            paired(*sides)
        return
    of_a, of_b = paired(*sides)
    assert of_a.tolist() == [found[key][1] for key in both]
    assert of_b.tolist() == [found[key][2] for key in both]


def test_images_of_another_class_are_not_the_same_images() -> None:
    """As those of two of clip-benchmark's data sets, whose names are numbers."""
    a = outcomes_of(["0", "1"], [3, 4], [True, True])
    b = outcomes_of(["1", "0"], [5, 3], [True, True])
    with pytest.raises(UserError, match=r"image '1' is of class 4 in one and 5 in the other; compare"):
        paired(a, b)


def test_a_name_that_occurs_twice_is_left_out() -> None:
    a = outcomes_of(["x", "y", "x"], [0, 0, 0], [True, False, False])
    b = outcomes_of(["y", "x"], [0, 0], [True, True])
    of_a, of_b = paired(a, b)
    assert (of_a.tolist(), of_b.tolist()) == ([False], [True])


def test_a_name_that_is_no_utf8_can_be_printed() -> None:
    a, b = (outcomes_of(["\udcff\n"], [target], [True]) for target in (0, 1))
    with pytest.raises(UserError) as error:
        paired(a, b)
    assert str(error.value).isascii()
    assert "\n" not in str(error.value)


# --- compare


def pair(only_a: int, only_b: int, both: int, neither: int) -> tuple[Outcomes, Outcomes]:
    counts = [only_a, only_b, both, neither]
    keys, targets = [str(i) for i in range(sum(counts))], [i % 7 for i in range(sum(counts))]
    right_a, right_b = (np.repeat(right, counts).tolist() for right in ([1, 0, 1, 0], [0, 1, 1, 0]))
    return outcomes_of(keys, targets, right_a), outcomes_of(keys, targets, right_b)


def result_of(outcomes: Outcomes) -> dict[str, Any]:
    return {
        "dataset": "d",
        "model": "m",
        "pretrained": "p",
        "task": "zeroshot_classification",
        "metrics": {"acc1": float(outcomes.scores.mean())},
        "schema_version": 1,
        "n_samples": len(outcomes.keys),
    }


def compared(
    a: dict[str, Any], b: dict[str, Any], outcomes: tuple[Outcomes | None, Outcomes | None] = (None, None)
) -> str:
    return beside(Side("A", a, outcomes[0]), Side("B", b, outcomes[1])).to_text()


def below(a: dict[str, Any], b: dict[str, Any], outcomes: Any) -> str:
    """What is said below the table, unwrapped."""
    text = compared(a, b, outcomes)
    assert max(map(len, text.splitlines())) <= 80
    table = compared(a, b).splitlines()
    last = next(line for line in table if line.startswith("samples"))
    return text[text.index(last) + len(last) :].strip().replace("\n   ", " ")


def test_compare_says_how_sure_the_difference_is() -> None:
    outcomes = pair(10, 2, 50, 38)
    said = below(*map(result_of, outcomes), outcomes)
    assert said == (
        "acc1 of B minus A, image by image (n = 100): -8.00 points, 95 % interval -15.80 to -1.43 "
        "(Tango's score interval).\n"
        "Right only in A: 10; only in B: 2; McNemar's exact p = 0.039."
    )
    text = compared(*map(result_of, outcomes), outcomes)
    assert "-8.00 points" in next(line for line in text.splitlines() if line.startswith("acc1"))  # the same sign


def test_compare_without_outcomes_says_what_it_said() -> None:
    a, b = pair(10, 2, 50, 38)
    assert below(result_of(a), result_of(b), (None, None)) == ""


def test_a_tiny_p_is_not_spelt_out() -> None:
    outcomes = pair(4000, 2, 50, 38)
    assert below(*map(result_of, outcomes), outcomes).endswith("McNemar's exact p < 0.0001.")


def test_where_no_image_differs_it_says_what_so_few_leave_open() -> None:
    """Wilson's limit of none in ten is 27.75 %."""
    outcomes = pair(0, 0, 5, 5)
    assert below(*map(result_of, outcomes), outcomes) == (
        "A and B are right on the same images (n = 10): a difference of 0 points, 95 % interval -27.75 to "
        "+27.75 (Tango's score interval)."
    )


def test_compare_says_that_only_some_images_are_in_both() -> None:
    a, b = pair(10, 2, 50, 38)
    fewer = Outcomes.of_classes(b.keys[::2], b.details["targets"][::2], b.details["predictions"][::2])
    said = below(result_of(a), result_of(fewer), (a, fewer)).splitlines()
    assert said[0] == "Paired where both have the image: n = 50, of 100 in A and 50 in B."
    assert said[1].startswith("acc1 of B minus A, image by image (n = 50): -8.00 points")
    assert said[2] == "Right only in A: 5; only in B: 1; McNemar's exact p = 0.22."
    assert said[3] == "Not comparable: n_samples is 100 in A, 50 in B."


def test_compare_says_why_images_cannot_be_paired_and_shows_the_table() -> None:
    a, b = pair(10, 2, 50, 38)
    elsewhere = dataclasses.replace(b, keys=tuple(f"other {key}" for key in b.keys))
    said = below(result_of(a), result_of(b), (a, elsewhere))
    assert said == "Not paired: the two have no image in common; compare evaluations of the same data set."


def test_outcomes_of_an_earlier_run_are_not_taken_for_those_of_the_result() -> None:
    a, b = pair(10, 2, 50, 38)
    stale = {**result_of(b), "metrics": {"acc1": 0.75}}
    assert below(result_of(a), stale, (a, b)) == (
        "Not paired: the outcomes beside B have acc1 52.00 %, so are of another run."
    )
