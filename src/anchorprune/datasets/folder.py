"""`folder:PATH`: your own images, one subfolder a class."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from anchorprune.datasets.base import DataSpec, EvalDataset, Source, Transform
from anchorprune.datasets.encoded import EncodedItems
from anchorprune.datasets.images import EXTENSIONS
from anchorprune.datasets.prompts import GENERAL_TEMPLATES, check_templates, custom_classes, positions
from anchorprune.datasets.reading import read_file, read_lines
from anchorprune.errors import FieldError, UserError, did_you_mean
from anchorprune.files import folder_stamp
from anchorprune.reading import path_of

WHOLE = "test"  # the one split of a folder without any
# What systems put beside pictures: archives made on a Mac, Synology's thumbnails, Windows' bins.
_SYSTEMS = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
_LINK = "link back to a folder above"
MOST_TIMES = 100  # that one folder is come to by links
_SPLITS = {"train", "val", "valid", "validation", "test"}


class FolderItems(EncodedItems):
    """`items[i] -> (transform(image), class index)`, decoded on demand."""

    def __init__(self, files: list[tuple[Path, int]], transform: Transform) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> bytes:
        return read_file(self.files[index][0])

    def target(self, index: int) -> int:
        return self.files[index][1]

    def source(self, index: int) -> str:
        return str(self.files[index][0])


class Folder(Source):
    """`folder:PATH`."""

    name: ClassVar[str] = "folder"

    @classmethod
    def open(cls, spec: DataSpec, transform: Transform, task: str) -> EvalDataset:
        if task == "fidelity":
            return open_pictures(spec.name, transform)
        return open_folder(spec.name, split=spec.split, transform=transform, classnames=spec.classnames)

    @classmethod
    def stamp(cls, spec: DataSpec) -> Any:
        path = path_of(spec.name.removeprefix("folder:"))
        return [os.path.realpath(path), folder_stamp(path)]

    @classmethod
    def check(cls, spec: DataSpec, task: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is passed over is said where it is opened
            super().check(spec, task)


def open_pictures(name: str, transform: Transform) -> EvalDataset:
    """All images below `PATH`, whatever folders they lie in, without classes; name is `folder:PATH`. Keys are paths.

    Raises UserError for a missing folder, or one without images.
    """
    path = path_of(name.removeprefix("folder:"))
    if name == "folder:" or not os.path.isdir(path):
        raise FieldError("dataset", name, "no such folder; give folder:PATH with images in it.")
    files, passed_over = _images(path)
    if not files:
        said = f", only {_said(passed_over)}" if passed_over else ""
        raise FieldError("dataset", name, f"{path} holds no image (.{', .'.join(EXTENSIONS)}){said}.")
    if passed_over:
        warnings.warn(f"{name}: passed over {_said(passed_over)}", stacklevel=2)
    return EvalDataset(
        name=name,
        items=FolderItems([(file, 0) for file in files], transform),
        keys=[file.relative_to(path).as_posix() for file in files],
        classes=None,
        templates=None,
        kind="images",
    )


def open_folder(name: str, *, split: str, transform: Transform, classnames: str | None = None) -> EvalDataset:
    """The images below `PATH/SPLIT` if that holds subfolders, else, as the split `test`, below `PATH`.

    `name` is `folder:PATH`.

    A class is a subfolder, in sorted order; its name is the folder's with `_` as spaces, or what the custom file
    `classnames`, else `PATH/classnames.txt`, says (`positions`). Templates:
    `PATH/zeroshot_classification_templates.txt`, else `GENERAL_TEMPLATES`. Keys are paths relative to the class
    folders' parent. Names that begin with a dot, links back to a folder above and what is in no format of photographs
    are passed over, which a warning counts.

    Raises UserError for a missing folder, one without class folders or images, and bad text files.
    """
    path = path_of(name.removeprefix("folder:"))
    if name == "folder:" or not os.path.isdir(path):
        raise FieldError("dataset", name, "no such folder; give folder:PATH with one subfolder of images a class.")
    top = path / split if _subfolders(path / split) else path
    folders = _subfolders(top)
    if not folders:
        said = f"{top} has no subfolders; make one subfolder of images a class, or take "
        raise FieldError("dataset", name, f"{said}the task fidelity.", typed=f"{said}--task fidelity.")
    if top == path and set(folders) <= _SPLITS:
        raise FieldError(
            "split", split, f"{path} has the splits {', '.join(folders)} only.{did_you_mean(split, folders)}"
        )
    if top == path and split != WHOLE:  # its images would count for every split
        raise FieldError("split", split, f"{path} has no folder {split} with one subfolder of images a class in it.")
    if (odd := next((each for each in folders if not _is_text(each)), None)) is not None:
        raise FieldError(
            "dataset", name, f"the name of the folder {odd!a} is no UTF-8, and no class is called so; rename it"
        )
    if classnames is not None:
        classes = custom_classes(classnames, name)
        targets = positions(folders, classes, f"custom_classname_file={classnames!r}")
    else:
        classes, targets = _class_names(path / "classnames.txt", folders)
    files, passed_over = [], Counter(_stray(top))
    for target, folder in zip(targets, folders, strict=True):
        found, others = _images(top / folder)
        passed_over += others
        if not found:
            said = f", only {_said(others)}" if others else ""
            raise FieldError(
                "dataset",
                name,
                f"{top / folder} holds no image (.{', .'.join(EXTENSIONS)}){said}; add some or remove the folder.",
            )
        files += [(file, target) for file in found]
    if passed_over:
        warnings.warn(f"{name}: passed over {_said(passed_over)}", stacklevel=2)
    return EvalDataset(
        name=name,
        items=FolderItems(files, transform),
        keys=[file.relative_to(top).as_posix() for file, _ in files],
        classes=classes,
        templates=read_templates(path / "zeroshot_classification_templates.txt"),
        targets=[target for _, target in files],
    )


def _subfolders(path: Path) -> list[str]:
    if not os.path.isdir(path):
        return []
    above = _and_above(path)
    return sorted(
        entry.name
        for entry, is_folder in _entries(path)
        if is_folder and not _is_hidden(entry.name) and entry.resolve() not in above
    )


def _entries(folder: Path) -> list[tuple[Path, bool]]:
    """What is in a folder, and whether it is one itself."""
    try:
        with os.scandir(folder) as found:
            return [(Path(entry.path), os.path.isdir(entry)) for entry in found]
    except OSError as err:
        raise _unlisted(err) from err


def _unlisted(err: OSError) -> UserError:
    """Of a folder that cannot be listed: without it, the numbers would be those of other data."""
    return UserError(f"{err.filename}: cannot be listed ({err.strerror}); make it readable, or take it out of the data")


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _SYSTEMS


def _and_above(folder: Path) -> set[Path]:
    return {folder.resolve(), *folder.resolve().parents}


def _stray(top: Path) -> Iterator[str]:
    """What stands beside the class folders as if it were part of the data."""
    above = _and_above(top)
    for entry, is_folder in _entries(top):
        if is_folder and entry.resolve() in above:
            yield _LINK
        elif entry.suffix.lower()[1:] in EXTENSIONS and not entry.name.startswith("."):
            yield "image outside of the class folders"


def _images(folder: Path) -> tuple[list[Path], Counter[str]]:
    """The images below, sorted, and how much of which kind is passed over."""
    found, passed_over = [], Counter[str]()
    above = {str(folder): _and_above(folder)}
    times = Counter[Path]()

    def fail(err: OSError) -> None:
        raise _unlisted(err) from err

    for parent, folders, files in os.walk(folder, followlinks=True, onerror=fail):
        around = above.pop(parent)
        for name in list(folders):
            real = Path(parent, name).resolve()
            if _is_hidden(name) or real in around:
                passed_over["hidden folder" if _is_hidden(name) else _LINK] += 1
                folders.remove(name)
            else:
                above[os.path.join(parent, name)] = around | {real}
                times[real] += 1
                if times[real] > MOST_TIMES:  # folders that link to one another have more ways than can be walked
                    raise UserError(f"{real}: {MOST_TIMES} links in {folder} lead to it; remove some")
        for file in files:
            ending = os.path.splitext(file)[1].lower()
            if file.startswith("."):
                passed_over["hidden file"] += 1
            elif ending[1:] in EXTENSIONS:
                found.append(Path(parent, file))
            else:
                passed_over[ending or "file without an ending"] += 1
    return sorted(found), passed_over


def _said(passed_over: Counter[str]) -> str:
    """`35 .heic, 1 hidden folder`, the most frequent first."""
    return ", ".join(f"{n} {kind}" for kind, n in sorted(passed_over.items(), key=lambda each: (-each[1], each[0])))


def _class_names(file: Path, folders: list[str]) -> tuple[list[str], list[int]]:
    """All class names, and which of them each folder has."""
    in_order = list(range(len(folders)))
    if not file.exists():
        return [folder.replace("_", " ") for folder in folders], in_order
    lines = [line for line in read_lines(file) if line]
    if not any("\t" in line for line in lines):
        return lines, positions(folders, lines, str(file))
    names: dict[str, str] = {}
    for line in lines:
        folder, _, label = (part.strip() for part in line.partition("\t"))
        if folder not in folders:
            raise UserError(f"{file}: there is no class folder {folder!r}.{did_you_mean(folder, folders)}")
        if not label or folder in names:
            raise UserError(f"{file}: give exactly one line of folder<TAB>name for {folder!r}.")
        names[folder] = label
    missing = [folder for folder in folders if folder not in names]
    if missing:
        raise UserError(f"{file}: no line for the class folder {missing[0]!r}; add {missing[0]}<TAB>name.")
    return [names[folder] for folder in folders], in_order


def read_templates(file: Path) -> list[str]:
    if not file.exists():
        return list(GENERAL_TEMPLATES)
    lines = [line for line in read_lines(file) if line]
    if not lines:
        raise UserError(f"{file}: is empty; give one template a line, such as {GENERAL_TEMPLATES[0]!r}.")
    return check_templates(lines, str(file))


def _is_text(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False
