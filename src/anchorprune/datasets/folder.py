"""`folder:PATH`: your own images, one subfolder a class."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

from anchorprune.datasets.base import DataSpec, EvalDataset, Source, Transform
from anchorprune.datasets.encoded import EncodedItems
from anchorprune.datasets.images import one_line
from anchorprune.datasets.prompts import GENERAL_TEMPLATES, check_templates
from anchorprune.datasets.sampling import BadImage
from anchorprune.errors import FieldError, UserError, did_you_mean

EXTENSIONS = (".webp", ".png", ".jpg", ".jpeg", ".bmp")

WHOLE = "test"  # the one split of a folder without any
_SPLITS = {"train", "val", "valid", "validation", "test"}


class FolderItems(EncodedItems):
    """`items[i] -> (transform(image), class index)`, decoded on demand."""

    def __init__(self, files: list[tuple[Path, int]], transform: Transform) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> bytes:
        path, _ = self.files[index]
        try:
            return path.read_bytes()
        except OSError as err:
            raise BadImage(f"{path}: {one_line(err)}") from err

    def target(self, index: int) -> int:
        return self.files[index][1]

    def source(self, index: int) -> str:
        return str(self.files[index][0])


class Folder(Source):
    """`folder:PATH`."""

    name: ClassVar[str] = "folder"

    @classmethod
    def open(cls, spec: DataSpec, transform: Transform, task: str) -> EvalDataset:
        return open_folder(spec.name, split=spec.split, transform=transform)


def open_folder(name: str, *, split: str, transform: Transform) -> EvalDataset:
    """The images below `PATH/SPLIT` if that holds subfolders, else, as the split `test`, below `PATH`.

    `name` is `folder:PATH`.

    A class is a subfolder, in sorted order; its name is the folder's with `_` as spaces, or what
    `PATH/classnames.txt` says. Templates: `PATH/zeroshot_classification_templates.txt`, else
    `GENERAL_TEMPLATES`. Keys are paths relative to the class folders' parent. Names that begin with a dot
    are skipped.

    Raises UserError for a missing folder, one without class folders or images, and bad text files.
    """
    path = Path(name.removeprefix("folder:")).expanduser()
    if name == "folder:" or not path.is_dir():
        raise FieldError("dataset", name, "no such folder; give folder:PATH with one subfolder of images a class.")
    top = path / split if _subfolders(path / split) else path
    folders = _subfolders(top)
    if not folders:
        raise FieldError("dataset", name, f"{top} has no subfolders; make one subfolder of images a class.")
    if top == path and set(folders) <= _SPLITS:
        raise FieldError(
            "split", split, f"{path} has the splits {', '.join(folders)} only.{did_you_mean(split, folders)}"
        )
    if top == path and split != WHOLE:  # its images would count for every split
        raise FieldError("split", split, f"{path} has no folder {split} with one subfolder of images a class in it.")
    files = []
    for target, folder in enumerate(folders):
        found = _images(top / folder)
        if not found:
            raise FieldError(
                "dataset",
                name,
                f"{top / folder} holds no image ({', '.join(EXTENSIONS)}); add some or remove the folder.",
            )
        files += [(file, target) for file in found]
    return EvalDataset(
        name=name,
        items=FolderItems(files, transform),
        keys=[file.relative_to(top).as_posix() for file, _ in files],
        classes=_class_names(path / "classnames.txt", folders),
        templates=read_templates(path / "zeroshot_classification_templates.txt"),
        targets=[target for _, target in files],
    )


def _subfolders(path: Path) -> list[str]:
    if not path.is_dir():
        return []
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    found = []
    for parent, _, files in os.walk(folder, followlinks=True):
        for file in files:
            if file.lower().endswith(EXTENSIONS) and not file.startswith("."):
                found.append(Path(parent, file))
    return sorted(found)


def _lines(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as err:
        raise UserError(f"{file}: cannot be read as UTF-8 text ({err}).") from err
    return [line.strip() for line in lines if line.strip()]


def _class_names(file: Path, folders: list[str]) -> list[str]:
    if not file.exists():
        return [folder.replace("_", " ") for folder in folders]
    lines = _lines(file)
    if not any("\t" in line for line in lines):
        if len(lines) != len(folders):
            raise UserError(
                f"{file}: {len(lines)} class names for {len(folders)} class folders; "
                "give one line a folder, in sorted order, or lines of folder<TAB>name."
            )
        return lines
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
    return [names[folder] for folder in folders]


def read_templates(file: Path) -> list[str]:
    if not file.exists():
        return list(GENERAL_TEMPLATES)
    lines = _lines(file)
    if not lines:
        raise UserError(f"{file}: is empty; give one template a line, such as {GENERAL_TEMPLATES[0]!r}.")
    return check_templates(lines, str(file))
