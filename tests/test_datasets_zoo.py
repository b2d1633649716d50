"""clip-benchmark's zoo behind one file: its names, its data, and its failures in one sentence."""

import importlib.machinery
import inspect
import json
import pickle
import re
import sys
import types
import urllib.error
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from support.material import picture
from support.opened import opened as opened_by_name
from torchvision.datasets import CIFAR10
from torchvision.transforms import CenterCrop, Compose, Normalize, ToTensor

from anchorprune.datasets import DataSpec, catalog, default_task, names
from anchorprune.datasets.export import Layout
from anchorprune.datasets.sampling import BadImage, loader
from anchorprune.errors import UserError
from anchorprune.progress import Reporting, telling

builder = pytest.importorskip("clip_benchmark.datasets.builder")


def opened(name: str, root: Path | str = "nowhere", **options):
    return opened_by_name(name, root=str(root), transform=ToTensor(), **options)


def building(monkeypatch: pytest.MonkeyPatch, result: object) -> None:
    """Makes upstream's build_dataset raise or return `result`."""

    def build_dataset(**_: object) -> object:
        print("Downloading…")
        if isinstance(result, BaseException):
            raise result
        return result

    monkeypatch.setattr(builder, "build_dataset", build_dataset)


class Pairs:
    """A data set of upstream's kind; an item that is an exception is raised."""

    classes, templates = ("cat", "dog"), ["a {c}"]

    def __init__(self, *items: object) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> object:
        if isinstance(self.items[index], BaseException):
            raise self.items[index]
        return self.items[index]


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three images of CIFAR-10 in torchvision's own format."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3072), dtype=np.uint8)
    (folder / "test_batch").write_bytes(pickle.dumps({"data": pixels, "labels": [3, 0, 9]}))
    labels = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": labels}))
    # the real files' checksums
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    return tmp_path


# --- names


def test_the_names_are_those_of_the_installed_clip_benchmark() -> None:
    source = inspect.getsource(builder.build_dataset)
    assert set(re.findall(r"dataset_name == ['\"]([^'\"]+)", source)) == names.ZOO
    assert builder.dataset_collection.keys() == names.COLLECTIONS.keys()
    for name, members in builder.dataset_collection.items():
        assert sorted(members) == sorted(names.COLLECTIONS[name])


def test_collections_have_upstreams_order() -> None:
    assert builder.dataset_collection == names.COLLECTIONS


def test_default_tasks_are_upstreams() -> None:
    for name in names.known_names():
        assert default_task(DataSpec(name=name)) == builder.get_dataset_default_task(name)


# --- data


def test_a_zoo_data_set_has_upstreams_images_labels_names_and_templates(cifar: Path) -> None:
    dataset = opened("cifar10", cifar)
    upstream = builder.build_dataset("cifar10", root=str(cifar), transform=ToTensor(), split="test")
    assert dataset.keys == ["0", "1", "2"]
    assert dataset.targets == [3, 0, 9]
    assert dataset.classes == upstream.classes
    assert dataset.templates == upstream.templates
    [batch] = loader(dataset, [2, 0], batch_size=2, num_workers=0)
    assert batch.targets.tolist() == [9, 3]
    assert torch.equal(batch.images, torch.stack([upstream[2][0], upstream[0][0]]))


def test_custom_names_and_templates_reach_a_zoo_data_set(cifar: Path, tmp_path: Path) -> None:
    file = tmp_path / "custom.json"
    file.write_text(json.dumps({"cifar10": [f"thing {i} {{c}}" for i in range(10)]}))
    dataset = opened("cifar10", cifar, classnames=str(file), templates=str(file))
    assert dataset.classes[0] == dataset.templates[0] == "thing 0 {c}"
    file.write_bytes("\ufeff".encode() + json.dumps({"cifar10": [f"Ding {i} ü{{c}}\r" for i in range(10)]}).encode())
    dataset = opened("cifar10", cifar, classnames=str(file), templates=str(file))
    assert dataset.classes[0] == dataset.templates[0] == "Ding 0 ü{c}"
    file.write_text('{"cifar10": ["cat", "dog"]}')
    with pytest.raises(UserError, match="sample 0 has label 3, but there are 2 class names"):
        opened("cifar10", cifar, classnames=str(file))
    file.write_text('{"cifar100": ["cat", "dog"]}')
    with pytest.raises(UserError, match=r"no class names for 'cifar10'.* Did you mean 'cifar100'"):
        opened("cifar10", cifar, classnames=str(file))


def test_upstreams_own_prompts_file_is_found_by_its_name(cifar: Path) -> None:
    with pytest.raises(UserError, match=r"no prompts for the class 'automobile'|no prompts for the class 'airplane'"):
        opened("cifar10", cifar, templates="cupl_prompts.json")


def test_upstreams_prints_go_to_standard_error(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    building(monkeypatch, Pairs((torch.zeros(3, 4, 4), 1)))
    dataset = opened("dtd")
    assert dataset.classes == ["cat", "dog"]
    assert capsys.readouterr() == ("", "Downloading…\n")


def test_an_image_that_upstream_cannot_read_is_a_bad_image(monkeypatch: pytest.MonkeyPatch) -> None:
    building(monkeypatch, Pairs((torch.zeros(3, 4, 4), 1), OSError("image file is truncated"), RuntimeError("a bug")))
    dataset = opened("dtd")
    [batch] = loader(dataset, [0, 1], batch_size=2, num_workers=0)
    assert batch.bad == [("1", "item 1: image file is truncated")]
    assert issubclass(BadImage, Exception)
    with pytest.raises(RuntimeError, match="a bug"):
        dataset.items[2]


def test_voc2007_multilabel_has_float_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    building(monkeypatch, Pairs((torch.zeros(3, 4, 4), torch.tensor([0, 1]))))
    [batch] = loader(opened("voc2007_multilabel"), [0], batch_size=2, num_workers=0)
    assert batch.targets.tolist() == [[0.0, 1.0]]
    assert batch.targets.dtype == torch.float32


def test_the_transform_is_not_changed_by_a_data_set_that_inserts_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(builder, "build_dataset", lambda **options: seen.append(options["transform"]) or Pairs())
    transform = ToTensor()
    opened_by_name("imagenet-w", root="nowhere", transform=transform)
    assert seen[0] is not transform


# (Of babel_imagenet upstream leaves two files open.)
# Of upstream's own classes, which one a name opens; torchvision's are what `datasets` lists.
UPSTREAMS_OWN = {
    "babel_imagenet": "babel_imagenet.BabelImageNet",
    "caltech101": "caltech101.Caltech101",
    "imagenetv2": "imagenetv2.ImageNetV2Dataset",
    "objectnet": "objectnet.ObjectNetDataset",
    "voc2007": "voc2007.PASCALVoc2007Cropped",
    "voc2007_multilabel": "voc2007.PASCALVoc2007",
}
CLASSIFICATION = sorted(name for name in names.ZOO - {"dummy"} if names.default_task(name) == "zeroshot_classification")


@pytest.mark.filterwarnings("ignore:split argument ignored", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", CLASSIFICATION)
def test_each_name_opens_the_class_that_the_list_says(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = next(entry for entry in catalog.entries() if entry.name == name)
    path = UPSTREAMS_OWN.get(name) or entry.origin.removeprefix("clip-benchmark: torchvision's ")
    module = getattr(builder, path.rpartition(".")[0]) if "." in path else builder
    real, made = getattr(module, path.rpartition(".")[2]), []
    if "." not in path:
        assert real is getattr(torchvision.datasets, path)
    label = torch.tensor([0, 1]) if name == "voc2007_multilabel" else 0

    class Stub(Pairs):
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__((torch.zeros(3, 4, 4), label))
            made.append(options)

    monkeypatch.setattr(module, path.rpartition(".")[2], Stub)
    if name == "imagenet-w":
        watermark = types.SimpleNamespace(AddWatermark=lambda size: torch.nn.Identity())
        monkeypatch.setitem(sys.modules, "imagenet_w", watermark)
    steps = Compose([CenterCrop(4), ToTensor(), Normalize((0.5,) * 3, (0.5,) * 3)])
    language = "de" if name == "babel_imagenet" else "en"
    dataset = opened_by_name(name, root=str(tmp_path), transform=steps, language=language)
    assert len(made) == 1
    assert dataset.classes
    assert dataset.templates
    if name.startswith(("imagenet1k", "imagenet-w", "imagenetv2", "imagenet_sketch")):
        assert len(dataset.classes) == 1000


def test_imagenet_w_takes_class_names_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "names.json"
    file.write_text(json.dumps({"imagenet-w": [f"thing {i}" for i in range(1000)]}))
    seen = []
    monkeypatch.setattr(
        builder,
        "build_dataset",
        lambda **o: seen.append(json.loads(Path(o["custom_classname_file"]).read_text())) or Pairs(),
    )
    opened("imagenet-w", classnames=str(file))
    assert seen[0]["imagenet1k"] == seen[0]["imagenet-w"] == [f"thing {i}" for i in range(1000)]


def test_the_sizes_that_the_list_states_are_those_of_torchvisions_documentation() -> None:
    stated = {entry.name: entry for entry in catalog.entries() if entry.samples and entry.name != "bundled"}
    assert stated
    per_class = {"country211": 211, "food101": 101}
    for name, entry in stated.items():
        text = getattr(torchvision.datasets, entry.origin.rpartition(" ")[2]).__doc__.replace("'", "").replace(",", "")
        for count in entry.samples.values():
            assert re.search(rf"\b{count // per_class.get(name, 1)}\b", text), (name, count)


# --- TensorFlow's, which are streams


class Stream:
    """What upstream makes of vtab/ and tfds/: images in order, and a length."""

    classes, templates = ("ant", "bee"), ["a {c}"]

    def __init__(self, count: int, promised: int | None = None) -> None:
        self.count, self.promised = count, count if promised is None else promised

    def __len__(self) -> int:
        return self.promised

    def __iter__(self) -> Iterator[tuple[Image.Image, int]]:
        for i in range(self.count):
            yield picture(i), i % 2


@pytest.fixture
def stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """TensorFlow is as good as installed, and the cache is in this folder."""
    for package in ("task_adaptation", "tensorflow_datasets", "tensorflow"):
        module = types.ModuleType(package)
        module.__spec__ = importlib.machinery.ModuleSpec(package, None)
        monkeypatch.setitem(sys.modules, package, module)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", ["vtab/dtd", "tfds/insects"])
def test_a_stream_is_copied_once_and_has_items_by_number(
    name: str, stream: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    building(monkeypatch, Stream(5))
    for _ in range(2):
        dataset = opened(name)
        assert (len(dataset), dataset.targets, dataset.classes) == (5, [0, 1, 0, 1, 0], ["ant", "bee"])
        for i in (3, 0, 4):
            assert torch.equal(dataset.items[i][0], ToTensor()(picture(i)))
        building(monkeypatch, RuntimeError("is read again"))


def test_a_copy_that_was_cut_off_goes_on_and_a_stream_that_is_short_is_refused(
    stream: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("anchorprune.datasets.streams._LAYOUT", Layout("png", max_count=2))
    building(monkeypatch, Stream(3, promised=5))
    with pytest.raises(UserError, match=r"vtab/dtd.*gave 3 of the 5 images that it promises"):
        opened("vtab/dtd")
    building(monkeypatch, Stream(5))
    capsys.readouterr()
    with telling(Reporting(log_format="json")):
        assert opened("vtab/dtd").targets == [0, 1, 0, 1, 0]
        told = json.loads(next(line for line in capsys.readouterr().err.splitlines() if line.startswith("{")))
    assert (told["what"], told["done"], told["total"]) == ("copying vtab/dtd", 5, 5)


def test_names_of_ones_own_do_not_stay_in_the_copy(stream: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(builder, "build_dataset", lambda **options: asked.append(options) or Stream(2))
    file = stream / "names.json"
    file.write_text(json.dumps({"dtd": ["wasp", "fly"]}))
    assert opened("vtab/dtd", classnames=str(file)).classes == ["wasp", "fly"]
    assert opened("vtab/dtd").classes == ["ant", "bee"]
    assert [options["custom_classname_file"] for options in asked] == [None]


def test_without_their_packages_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install task_adaptation==0.1 tensorflow_datasets tensorflow$"):
        opened("vtab/dtd")
    with pytest.raises(UserError, match=r"pip install tensorflow_datasets tensorflow timm$"):
        opened("tfds/mnist")


def test_a_split_that_tensorflow_has_not_is_refused(stream: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    building(monkeypatch, AssertionError(("val", ["train", "test"])))
    with pytest.raises(UserError, match=r"split='val': tfds/mnist has train, test."):
        opened("tfds/mnist", split="val")
    building(monkeypatch, KeyError("val"))
    with pytest.raises(UserError, match=r"split='val': vtab/dtd has no such split"):
        opened("vtab/dtd", split="val")


def test_flickr8k_gives_upstreams_images_and_all_captions_of_each(tmp_path: Path) -> None:
    lines = ["image,caption"]
    for i in range(3):
        Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(tmp_path / f"{i}.jpg")
        lines += [f"{i}.jpg,thing {i}, seen {j} times" for j in range(2)]
    (tmp_path / "flickr8k_test_karpathy.txt").write_text("\n".join(lines))
    dataset = opened("flickr8k", tmp_path)
    upstream = builder.build_dataset("flickr8k", root=str(tmp_path), transform=ToTensor(), task="zeroshot_retrieval")
    assert (dataset.kind, len(dataset)) == ("captions", 3)
    for i in range(3):
        image, captions = dataset.items[i]
        assert torch.equal(image, upstream[i][0])
        assert captions == upstream[i][1] == [f"thing {i}, seen 0 times", f"thing {i}, seen 1 times"]


def test_captions_in_a_language_that_upstream_has_not_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="language='tlh': clip-benchmark has no captions of crossmodal3600 in it"):
        opened("crossmodal3600", tmp_path, language="tlh")
    for name in ("sugar_crepe/add_att", "winoground", "mscoco_captions"):  # where upstream would take it for English
        with pytest.raises(UserError, match=f"language='de': the captions of {name} are in English"):
            opened(name, tmp_path, language="de")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # upstream leaves its file open
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_sugar_crepe_gives_the_right_caption_first(tmp_path: Path) -> None:
    (tmp_path / "val2017").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "val2017" / "a.jpg")
    sample = {"filename": "a.jpg", "caption": "a red cat", "negative_caption": "a blue cat"}
    (tmp_path / "add_att.json").write_text(json.dumps({"17": sample}))
    dataset = opened("sugar_crepe/add_att", tmp_path)
    assert (dataset.kind, dataset.classes) == ("choices", None)
    assert dataset.items[0][1] == ["a red cat", "a blue cat"]


# --- what can go wrong


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cifar11", r"dataset='cifar11': neither .*Did you mean 'cifar10'"),
    ],
)
def test_names_that_cannot_be_evaluated_are_refused(name: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        opened(name)


def test_an_unknown_split_or_language_is_refused(cifar: Path) -> None:
    with pytest.raises(UserError, match=r"split='val': Only `train` and `test` split available for cifar10"):
        opened("cifar10", cifar, split="val")
    with pytest.raises(UserError, match=r"language='jpn': .*Did you mean 'jp'"):
        opened("cifar10", cifar, language="jpn")
    with pytest.raises(UserError, match="language='it': clip-benchmark has no class names for dummy"):
        opened_with_missing_names(cifar)


def opened_with_missing_names(cifar: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        building(patch, KeyError("dummy"))
        opened("dummy", cifar, language="it")


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (urllib.error.URLError("no route\nto host"), "is not in nowhere and could not be downloaded or read"),
        (FileNotFoundError("no such file"), "could not be downloaded or read .no such file"),
        (RuntimeError("Dataset not found."), "could not be downloaded or read .Dataset not found."),
        (pickle.UnpicklingError("x"), "could not be downloaded or read"),
        (ModuleNotFoundError("No module named 'x'", name="imagenet_w"), "pip install imagenet_w"),
        (SystemExit(1), "kaggle or gdown"),
    ],
)
def test_data_that_is_not_to_be_had_is_one_sentence(monkeypatch, failure: BaseException, reason: str) -> None:
    building(monkeypatch, failure)
    with pytest.raises(UserError, match=reason) as caught:
        opened("dtd")
    assert "\n" not in str(caught.value)
    assert "dataset='dtd'" in str(caught.value)


def test_a_bug_of_upstreams_is_not_called_a_mistake_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    building(monkeypatch, TypeError("a bug"))
    with pytest.raises(TypeError, match="a bug"):
        opened("dtd")


def test_without_clip_benchmark_the_zoo_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "clip_benchmark.datasets", None)
    monkeypatch.delitem(sys.modules, "clip_benchmark.datasets.builder")
    with pytest.raises(UserError, match=re.escape("pip install 'anchorprune[zoo]'")):
        opened("cifar10")
