"""`evaluate` and `merge`: one pass for all prunings, any number of shards, models and data of one's own."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image
from support.material import World, picture
from support.models import make_clip
from torch import Tensor

import anchorprune
from anchorprune import Compute, DataSpec, LoadedModel, ModelSpec, OwnDataset, Request, UserError
from anchorprune.evaluation.engine import evaluate
from anchorprune.evaluation.merging import merge
from anchorprune.evaluation.result import Result
from anchorprune.strategies import make_strategy

QUICK = Compute(precision="fp32", batch_size=3, num_workers=0)
PRUNINGS = [
    None,
    make_strategy("anchor", k_anchors=2, top_m=3),
    make_strategy("tome", r=2),
    make_strategy("coarse", keep_patches=6),
]


@pytest.fixture
def asked(world: World) -> dict[str, Request]:
    """The tiny model on single-label and on multi-label data; on seven images in each case fewer than twice a shard."""
    model = ModelSpec(name=world.model[1], pretrained=world.model[3])
    roots = {"three": world.three[-1].format(dataset="three"), "labels": world.labels[-1].format(dataset="labels")}
    of = {name: DataSpec(name=f"wds/{name}", root=root) for name, root in roots.items()}
    of["things"] = DataSpec(name=world.things[1])
    return {name: Request(model=model, data=data, compute=QUICK) for name, data in of.items()}


def pruned(request: Request, prunings: Sequence[Any] = PRUNINGS) -> list[Request]:
    return [dataclasses.replace(request, pruning=pruning) for pruning in prunings]


def same(a: Result, b: Result) -> None:
    """Bit for bit, but for what was timed."""
    assert {k: v for k, v in a.metrics.items() if not math.isnan(v)} == {
        k: v for k, v in b.metrics.items() if not math.isnan(v)
    }
    assert a.metrics.keys() == b.metrics.keys()
    assert (a.n_samples, a.n_total, a.n_bad_images) == (b.n_samples, b.n_total, b.n_bad_images)
    assert (a.config_hash, a.pruning, a.cost["gmacs"]) == (b.config_hash, b.pruning, b.cost["gmacs"])
    assert (a.outcomes is None) == (b.outcomes is None)
    if a.outcomes is not None and b.outcomes is not None:
        assert a.outcomes.keys == b.outcomes.keys
        assert a.outcomes.scores.tolist() == b.outcomes.scores.tolist()


# --- one pass


@pytest.mark.parametrize("data", ["three", "labels"])
def test_together_they_find_what_each_finds_alone(asked: dict[str, Request], data: str) -> None:
    requests, keep = pruned(asked[data]), data != "labels"
    for request, together in zip(requests, evaluate(requests, keep_scores=keep, progress=False), strict=True):
        same(together, evaluate(request, keep_scores=keep, progress=False))


def test_requests_of_other_data_come_back_in_their_place(asked: dict[str, Request]) -> None:
    requests = [asked["three"], *pruned(asked["labels"])[1:2], *pruned(asked["three"])[1:2]]
    results = evaluate(requests, progress=False)
    assert [result.request for result in results] == requests
    assert [next(iter(result.metrics)) for result in results] == ["acc1", "mean_average_precision", "acc1"]


def test_each_image_is_decoded_once_for_all_prunings(
    asked: dict[str, Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    from anchorprune.datasets import wds

    seen: list[int] = []
    get = wds.WdsItems.__getitem__
    monkeypatch.setattr(wds.WdsItems, "__getitem__", lambda items, i: seen.append(i) or get(items, i))
    evaluate(pruned(asked["three"]), progress=False)
    assert sorted(seen) == list(range(7))


def test_the_weights_are_read_once_for_all_hashes(asked: dict[str, Request], monkeypatch: pytest.MonkeyPatch) -> None:
    from anchorprune.evaluation import request

    read: list[Any] = []
    own = request.fingerprint
    monkeypatch.setattr(request, "fingerprint", lambda path: read.append(path) or own(path))
    results = evaluate(pruned(asked["three"]), progress=False)
    assert len(read) == 1
    assert [result.config_hash for result in results] == [result.request.hash() for result in results]


@pytest.mark.parametrize("prunings", [PRUNINGS[1:2], PRUNINGS], ids=["one", "several"])
def test_a_pruning_stays_in_force_for_the_whole_pass(
    asked: dict[str, Request], monkeypatch: pytest.MonkeyPatch, prunings: list[Any]
) -> None:
    """What torch.compile has compiled is dropped when a pruning comes or goes: not with every batch."""
    drops = []
    monkeypatch.setattr("anchorprune.pruning.injection.forget_compiled_code", lambda: drops.append(1))

    def dropped(batch_size: int) -> int:
        drops.clear()
        compute = dataclasses.replace(QUICK, batch_size=batch_size)
        evaluate([dataclasses.replace(r, compute=compute) for r in pruned(asked["three"], prunings)], progress=False)
        return len(drops)

    assert 0 < dropped(7) == dropped(1)


def test_the_model_is_restored_also_after_an_error(asked: dict[str, Request]) -> None:
    model = make_clip()
    loaded = LoadedModel(model, lambda image: None, open_clip.get_tokenizer("ViT-B-32"))
    images = torch.randn(2, 3, 32, 32)
    before = model.encode_image(images)
    broken = OwnDataset([(torch.randn(3, 32, 32), 0), (torch.randn(3, 31, 32), 0)], classes=["a", "b"])
    for prunings in (PRUNINGS[1:2], PRUNINGS):
        with pytest.raises(RuntimeError):
            evaluate(pruned(asked["three"], prunings), model=loaded, dataset=broken, progress=False)
        assert torch.equal(model.encode_image(images), before)


# --- shards


@pytest.mark.parametrize("data", ["three", "labels", "things"])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_shards_make_the_result_of_one_process(asked: dict[str, Request], data: str, world_size: int) -> None:
    requests = pruned(asked[data], PRUNINGS[:2])
    keep = data != "labels"
    whole = evaluate(requests, keep_scores=keep, progress=False)
    shards = [
        evaluate(requests, shard=(rank, world_size), keep_scores=keep, progress=False) for rank in range(world_size)
    ]
    for parts, one in zip(zip(*shards, strict=True), whole, strict=True):
        same(merge(parts), one)
        same(merge(parts[::-1]) if world_size == 1 else one, one)


def test_each_sample_is_in_one_shard(asked: dict[str, Request]) -> None:
    """Seven on three: not padded to nine."""
    parts = [evaluate(asked["three"], shard=(rank, 3), progress=False) for rank in range(3)]
    assert [part.n_samples for part in parts] == [3, 2, 2]


def test_a_shard_without_samples_changes_nothing(asked: dict[str, Request]) -> None:
    one = dataclasses.replace(asked["three"], data=dataclasses.replace(asked["three"].data, limit=2))
    for request in pruned(one, PRUNINGS[:2]):
        parts = [evaluate(request, shard=(rank, 3), progress=False) for rank in range(3)]
        assert [part.n_samples for part in parts] == [1, 1, 0]
        same(merge([*parts[2:], *parts[:2]]), evaluate(request, progress=False))


def test_what_cannot_be_merged_is_one_line(asked: dict[str, Request]) -> None:
    part = evaluate(asked["three"], shard=(0, 2), progress=False)
    other = evaluate(asked["labels"], shard=(1, 2), progress=False)
    with pytest.raises(UserError, match="shards of different requests"):
        merge([part, other])
    with pytest.raises(UserError, match=r"only results of evaluate\(…, shard=…\)"):
        merge([evaluate(asked["three"], progress=False), part])
    with pytest.raises(UserError, match=r"shard=\(2, 2\): must be"):
        evaluate(asked["three"], shard=(2, 2), progress=False)


# --- of one's own


class Net:
    """No module, no open_clip: something with `encode_image` around a network."""

    def __init__(self) -> None:
        self.net = make_clip()

    def encode_image(self, images: Tensor) -> Tensor:
        return self.net.encode_image(images)

    def encode_text(self, tokens: Tensor) -> Tensor:
        return self.net.encode_text(tokens)


class Photos(torch.utils.data.Dataset):
    """As torchvision's: Pillow images and class indices."""

    classes = ("cat", "dog", "bird")

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return picture(index), index % 3


@pytest.fixture
def own() -> LoadedModel:
    transform = open_clip.image_transform(32, is_train=False)
    return LoadedModel(make_clip(), transform, open_clip.get_tokenizer("ViT-B-32"))


MINE = Request(model=ModelSpec(name="mine"), data=DataSpec(name="my photos"), compute=QUICK)


def test_a_model_and_data_of_ones_own_need_no_file(own: LoadedModel) -> None:
    results = evaluate(pruned(MINE), model=own, dataset=Photos(), progress=False)
    for result in results:
        assert result.n_samples == 6
        assert result.config_hash is None  # nothing finds them again by a name
    with torch.no_grad():
        images = torch.stack([own.transform(picture(i)) for i in range(6)])
        features = torch.nn.functional.normalize(own.model.encode_image(images), dim=-1)
        texts = [own.model.encode_text(own.tokenizer([f"a photo of a {c}."]))[0] for c in Photos.classes]
        classifier = torch.nn.functional.normalize(torch.stack(texts), dim=-1)
    right = (features @ classifier.T).argmax(dim=1) == torch.arange(6) % 3
    assert results[0].metrics["acc1"] == pytest.approx(right.float().mean())


def test_tensors_that_are_preprocessed_already_are_taken_as_they_are(own: LoadedModel) -> None:
    ready = [(own.transform(picture(i)), i % 3) for i in range(6)]
    named = OwnDataset(ready, classes=Photos.classes, keys=[f"k{i}" for i in range(6)])
    a = evaluate(MINE, model=own, dataset=named, keep_scores=True, progress=False)
    b = evaluate(MINE, model=own, dataset=Photos(), keep_scores=True, progress=False)
    assert a.metrics["acc1"] == b.metrics["acc1"]
    assert a.outcomes.keys == tuple(f"k{i}" for i in range(6))


def test_an_object_that_is_no_module_is_evaluated_unpruned(own: LoadedModel) -> None:
    mine = dataclasses.replace(own, model=Net())
    a, b = (evaluate(MINE, model=model, dataset=Photos(), progress=False) for model in (mine, own))
    assert a.metrics["acc1"] == b.metrics["acc1"]


@pytest.mark.parametrize(
    ("dataset", "says"),
    [
        (iter([]), "no map-style data set"),
        (OwnDataset([(None, 0)], classes=["a"], keys=["x", "y"]), "2 keys for 1 samples"),
        (OwnDataset([(None, 0)]), "has no class names"),
        (OwnDataset(None, splits={"train": OwnDataset([])}), "has no split 'test'; it has train"),
    ],
)
def test_data_that_cannot_be_used_is_one_line(own: LoadedModel, dataset: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        evaluate(MINE, model=own, dataset=dataset, progress=False)


# --- the other studies, from Python


@pytest.mark.usefixtures("few_suffice")
def test_sweep_tune_compare_and_speed_are_python_calls(own: LoadedModel, tmp_path: Any) -> None:
    own_data = {"model": own, "dataset": Photos(), "progress": False}
    swept = anchorprune.sweep(MINE, [anchorprune.Random(keep_patches=5), anchorprune.Tome(r=2)], **own_data)
    assert [(point.name, point.draws) for point in swept.points] == [("unpruned", 1), ("random", 3), ("tome", 1)]
    assert swept.to_csv().splitlines()[0].startswith("strategy,flags,draws,acc1")
    assert swept.to_html().startswith("<!doctype html>")
    assert swept.to_dict()["request"] == MINE.as_dict()
    files = swept.save(tmp_path / "a new" / "folder")
    comparison = anchorprune.compare(files[0], files[-1])
    assert comparison.to_text() == anchorprune.compare(swept.results[0][0], swept.results[2][0]).to_text().replace(
        "A (mine, my photos)", str(files[0])
    ).replace("B (mine, my photos)", str(files[-1]))
    assert comparison.to_dict()["difference"]["value"] == pytest.approx(swept.points[2].difference)
    tuned = anchorprune.tune(MINE, max_drop=100, strategies=["tome"], **own_data)
    assert tuned.strategy.name == "tome"
    assert tuned.to_dict()["used"] == 3
    speeds = anchorprune.speed(own, [anchorprune.Coarse(keep_patches=6)], batch_sizes=[2], repeats=2, compute=QUICK)
    assert [speed["tokens_after"] for speed in speeds.to_dict()["speeds"]] == [17, 7]
    for found, page in ((swept, "report.html"), (tuned, "tune.json"), (speeds, "speed.json")):
        found.save(tmp_path / page[:5])
        assert (tmp_path / page[:5] / page).is_file()
        with pytest.raises(UserError, match=r"folder='.*': is a file; name a folder"):
            found.save(tmp_path / page[:5] / page)


def test_pruning_a_model_loads_nothing_of_the_bench() -> None:
    import subprocess
    import sys

    code = (
        "import sys, open_clip, anchorprune\n"
        "model = open_clip.create_model('ViT-B-32', device='meta')\n"
        "anchorprune.prune(model)\n"
        "parts = ('models', 'datasets', 'tasks', 'evaluation', 'report', 'studies', 'commands')\n"
        "came = [m for m in sys.modules if m.startswith(tuple(f'anchorprune.{p}' for p in parts))]\n"
        "sys.exit(str(came) if came else 0)"
    )
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "other programs used the processor")
        warnings.filterwarnings("ignore", "tome is left out at")  # of so small a tower it cannot leave a third
        yield
