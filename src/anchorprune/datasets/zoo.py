"""clip-benchmark's own data sets, class names and prompts. The only file that imports clip_benchmark.

Upstream downloads some of them through shell commands and unpickles some (see docs); it is imported only when one of
them is opened.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import pickle
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, cast

from anchorprune.datasets import prompts
from anchorprune.datasets.base import DataSpec, EvalDataset, Source, Transform
from anchorprune.datasets.images import check_size, one_line, photographs_only
from anchorprune.datasets.names import CHOICES, RETRIEVAL, default_task, known_names
from anchorprune.datasets.sampling import BadImage
from anchorprune.errors import FieldError, UserError, did_you_mean
from anchorprune.files import write_text
from anchorprune.reading import path_of

_MULTILABEL = frozenset({"voc2007_multilabel"})

# What comes out of torchvision and upstream when data is absent, cannot be downloaded or is damaged.
_NO_DATA = (
    OSError,  # urllib's URLError too
    RuntimeError,
    ValueError,
    EOFError,
    zipfile.BadZipFile,
    tarfile.TarError,
    pickle.UnpicklingError,
)


class ZooItems:
    """`items[i] -> (transform(image), target)` of an upstream data set."""

    def __init__(self, dataset: Any, kind: str) -> None:
        self.dataset, self.kind = dataset, kind

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        from PIL.Image import DecompressionBombError

        try:
            with photographs_only():
                image, target = self.dataset[index]
        except (OSError, SyntaxError, DecompressionBombError) as err:
            raise BadImage(f"item {index}: {one_line(err)}") from err
        if self.kind == "labels":
            import torch

            return image, torch.as_tensor(target, dtype=torch.float32)
        return image, int(target) if self.kind == "classes" else [str(text) for text in target]


class _Dummy:
    """Upstream's `dummy`, one image of zeros; its own has 224 px, whatever the model takes."""

    def __init__(self, dataset: Any, transform: Transform) -> None:
        self.dataset, self.transform = dataset, transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        import torch
        from PIL import Image

        _, target = self.dataset[index]
        return torch.zeros_like(self.transform(Image.new("RGB", (224, 224)))), target


class Zoo(Source):
    """What clip-benchmark knows, and whatever nobody else claims."""

    name: ClassVar[str] = "zoo"
    reads_custom_files: ClassVar[bool] = True
    reads_annotations: ClassVar[bool] = True

    @classmethod
    def claims(cls, name: str) -> bool:
        return False

    @classmethod
    def open(cls, spec: DataSpec, transform: Transform, task: str) -> EvalDataset:
        return open_zoo(spec, transform, task)

    @classmethod
    def stamp(cls, spec: DataSpec) -> Any:
        return os.path.realpath(path_of(spec.root))

    @classmethod
    def check(cls, spec: DataSpec, task: str) -> None:
        check_name(spec.name)


def open_zoo(spec: DataSpec, transform: Transform, task: str) -> EvalDataset:
    """The data set that clip-benchmark calls `spec.name`, with its class names and templates; keys are indices.

    Raises UserError for an unknown name, split or language, data that is neither there nor can be downloaded, a
    missing package and bad custom files.
    """
    check_name(spec.name)
    dataset = build_upstream(spec, transform, task)
    kind = _kind(spec.name)
    return EvalDataset(
        name=spec.name,
        items=ZooItems(_Dummy(dataset, transform) if spec.name == "dummy" else dataset, kind),
        keys=[str(index) for index in range(len(dataset))],
        classes=class_names(dataset),
        templates=getattr(dataset, "templates", None),
        kind=kind,
        targets=_targets(dataset) if kind == "classes" else None,
    )


def build_upstream(spec: DataSpec, transform: Transform, task: str) -> Any:
    """What upstream's `build_dataset` gives. Raises UserError for whatever it cannot build."""
    name, split, language = spec.name, spec.split, spec.language
    classes_file, templates_file = spec.classnames, spec.templates
    # upstream asserts, or goes on without names: look first
    if classes_file:
        prompts.custom_classes(classes_file, name)
    if templates_file:
        prompts.custom_templates(templates_file, name)
    kind = _kind(name)
    builder = _builder()
    languages = _languages(Path(str(builder.__file__)).parent)
    prompted = kind in ("classes", "labels") and name != "babel_imagenet"
    if prompted and language not in languages and not templates_file:
        said, meant = f"clip-benchmark has templates in {', '.join(languages)}", did_you_mean(language, languages)
        raise FieldError(
            "language",
            language,
            f"{said}; choose one of them or give a file of templates.{meant}",
            typed=f"{said}; choose one of them or give --custom_template_file.{meant}",
        )
    if language != "en" and not spec.annotation_file and (kind == "choices" or name == "mscoco_captions"):
        raise FieldError("language", language, f"the captions of {name} are in English; give en.")  # upstream takes any
    try:
        # upstream prints what it downloads; standard output is for results
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="anchorprune-"))
            if name == "imagenet-w":
                classes_file = stack.enter_context(_names_of_imagenet_w(spec, builder))
            else:
                classes_file = _plain_copy("custom_classname_file", classes_file, folder)
            return builder.build_dataset(
                dataset_name=name,
                root=spec.root,
                transform=_checked(transform),
                split=split,
                download=True,
                annotation_file=spec.annotation_file,
                language=language,
                task=task if kind in ("classes", "labels") else default_task(name),  # for others it wants class names
                custom_classname_file=classes_file,
                custom_template_file=_plain_copy("custom_template_file", templates_file, folder),
            )
    except (AssertionError, AttributeError, ImportError, LookupError, TypeError, SystemExit, *_NO_DATA) as err:
        problem = _explain(err, name, spec.root, split, language, language in languages)
        if problem is None:
            raise
        raise problem from err


def _checked(transform: Transform) -> Transform:
    """A copy, since imagenet-w inserts a step into it; images that are too large are bad before its first step."""
    copied: Any = copy.deepcopy(transform)
    if hasattr(copied, "transforms"):
        copied.transforms.insert(0, check_size)
        return cast(Transform, copied)
    return _Checked(copied)


class _Checked:
    def __init__(self, transform: Transform) -> None:
        self.transform = transform

    def __call__(self, image: Any) -> Any:
        return self.transform(check_size(image))


def _plain_copy(flag: str, file: str | None, folder: str) -> str | None:
    """A copy of a custom file that upstream reads right: it knows no byte-order mark, and reads by the locale."""
    if not file:
        return None
    copied = Path(folder) / f"{flag}.json"
    write_text(json.dumps(prompts.read(flag, file)), copied)
    return str(copied)


def check_name(name: str) -> None:
    """UserError for names that upstream does not know."""
    known = known_names()
    if name not in known:
        raise FieldError(
            "dataset",
            name,
            f"neither a data set that clip-benchmark knows nor a list file; your own images are "
            f"folder:PATH, webdatasets wds/NAME.{did_you_mean(name, known)}",
        )


def _kind(name: str) -> str:
    """What `EvalDataset.kind` it has."""
    if name in _MULTILABEL:
        return "labels"
    return "captions" if name in RETRIEVAL else "choices" if name in CHOICES else "classes"


def _builder() -> ModuleType:
    """`clip_benchmark.datasets.builder`; a mere folder called clip_benchmark does not count."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            from clip_benchmark.datasets import builder
    except ImportError as err:
        raise UserError(
            f"clip-benchmark's data sets need a package that is not installed ({one_line(err)}); "
            "pip install 'anchorprune[zoo]'."
        ) from err
    return builder


@contextlib.contextmanager
def _names_of_imagenet_w(spec: DataSpec, builder: ModuleType) -> Iterator[str]:
    """A file of ImageNet's class names: upstream has them of no other place for it, and wants them under two keys."""
    own = Path(str(builder.__file__)).with_name(f"{spec.language}_classnames.json")
    if spec.classnames:
        classes = prompts.custom_classes(spec.classnames, spec.name)
    else:
        classes = json.loads(own.read_text(encoding="utf-8"))["imagenet1k"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "classnames.json")
        file.write_text(json.dumps({"imagenet1k": classes, spec.name: classes}), encoding="utf-8")
        yield str(file)


def _languages(folder: Path) -> list[str]:
    ending = "_zeroshot_classification_templates.json"
    return sorted(path.name.removesuffix(ending) for path in folder.glob(f"*{ending}"))


def _explain(
    err: BaseException, name: str, root: str, split: str, language: str, language_known: bool
) -> UserError | None:
    """The sentence for what upstream raised while building, or None where it looks like a bug."""
    if isinstance(err, AssertionError) and "split" in str(err):
        return FieldError("split", split, f"{one_line(err)}.")
    if isinstance(err, AssertionError) and err.args and isinstance(err.args[0], tuple):  # tfds/: (split, the splits)
        return FieldError("split", split, f"{name} has {', '.join(map(str, err.args[0][1]))}.")
    if isinstance(err, KeyError) and err.args == (split,):  # vtab/
        return FieldError("split", split, f"{name} has no such split.")
    if isinstance(err, ValueError) and "Unsupported language" in str(err):  # of captions
        return FieldError("language", language, f"clip-benchmark has no captions of {name} in it; use another.")
    if isinstance(err, ImportError):
        module = err.name or one_line(err)
        return FieldError("dataset", name, f"needs the Python package {module!r}; pip install {module}.")
    if isinstance(err, KeyError) or (isinstance(err, TypeError) and not language_known):
        return FieldError(
            "language", language, f"clip-benchmark has no class names for {name} in it ({one_line(err)}); use en."
        )
    if isinstance(err, SystemExit):
        return FieldError(
            "dataset", name, f"clip-benchmark needs the kaggle or gdown command to download it to {root}."
        )
    if isinstance(err, TypeError):
        return None
    said = f"is not in {root} and could not be downloaded or read ({one_line(err)}); check"
    return FieldError("dataset", name, f"{said} root and the network.", typed=f"{said} --dataset_root and the network.")


def class_names(dataset: Any) -> list[str] | None:
    """Of what upstream built, by index; None where it has none."""
    values = getattr(dataset, "classes", None)
    return None if values is None else [str(value) for value in values]


def _targets(dataset: Any) -> list[int] | None:
    """The class indices where a torchvision data set holds them (it has three names for that), else None."""
    # upstream's own classes, and target transforms, may number the classes another way than these attributes
    if not type(dataset).__module__.startswith("torchvision.") or getattr(dataset, "target_transform", None):
        return None
    for attribute in ("targets", "labels", "_labels"):
        values = getattr(dataset, attribute, None)
        if values is not None and len(values) == len(dataset):
            return [int(value) for value in values]
    return None
