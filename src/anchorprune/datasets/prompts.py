"""Custom class names and prompt templates: clip-benchmark's JSON files, and what prompts must look like."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from anchorprune.errors import FieldError, UserError, did_you_mean
from anchorprune.files import read_text
from anchorprune.reading import exists, json_of, path_of

Templates = list[str] | dict[str, list[str]]

# For data that brings no templates of its own, so that it needs no clip-benchmark.
GENERAL_TEMPLATES = ["a photo of a {c}."]

_FALLBACK = "imagenet1k"


def custom_classes(file: str, name: str) -> list[str]:
    """The class names of data set `name` in a `--custom_classname_file`.

    `file` is `{data set: [class name, …]}`; for `wds/x` (and vtab/, tfds/) the key is `wds/x`, else `x`.

    Raises UserError where the file cannot be read, has another shape, or has no such key.
    """
    flag = "custom_classname_file"
    content = read(flag, file)
    key = next((key for key in _lookup_keys(name) if key in content), None)
    if key is None:
        wanted = _lookup_keys(name)[-1]
        raise FieldError(
            flag, file, f"has no class names for {name!r}; add the key {wanted!r}.{did_you_mean(wanted, content)}"
        )
    if not _is_texts(content[key]):
        raise FieldError(flag, file, f"{key!r} must be a list of class names, each a non-empty text.")
    return list(content[key])


def custom_templates(file: str, name: str) -> Templates:
    """The templates of data set `name` in a `--custom_template_file`, else those of `imagenet1k` in it.

    A list of templates with `{c}` where the class name goes, or a dict from class name to finished prompts.

    Raises UserError where the file cannot be read, has another shape, or has neither key.
    """
    flag = "custom_template_file"
    content = read(flag, file)
    key = next((key for key in [*_lookup_keys(name), _FALLBACK] if key in content), None)
    if key is None:
        wanted = _lookup_keys(name)[-1]
        raise FieldError(
            flag,
            file,
            f"has no templates for {name!r}; add the key {wanted!r}, or {_FALLBACK!r} for all."
            f"{did_you_mean(wanted, content)}",
        )
    value = content[key]
    if isinstance(value, dict) and value and all(_is_texts(prompts) for prompts in value.values()):
        return {str(label): list(prompts) for label, prompts in value.items()}
    if not _is_texts(value):
        raise FieldError(
            flag,
            file,
            f"{key!r} must be a list of templates with {{c}}, or a dict from class name to a list of prompts.",
        )
    return check_templates(list(value), f"{file}: {key!r}")


def check_templates(templates: list[str], source: str) -> list[str]:
    """`templates` as they are, or UserError (opened by `source`) for one that takes no class name."""
    for template in templates:
        if "{c}" not in template:  # which is replaced; nothing else in braces means anything
            raise UserError(f"{source}: the template {template!r} must hold {{c}} where the class name goes.")
    return templates


def check_prompts(name: str, classes: list[str] | None, templates: Templates | None) -> None:
    """UserError where class-specific prompts leave a class of data set `name` without one."""
    if isinstance(templates, dict) and classes is not None:
        for label in classes:
            if label not in templates:
                raise UserError(
                    f"custom_template_file: has no prompts for the class {label!r} of {name!r}; "
                    f"give every class some.{did_you_mean(label, templates)}"
                )


def _lookup_keys(name: str) -> list[str]:
    """The keys under which upstream looks a data set up, in order."""
    if name.startswith(("folder:", "table:")):
        return [name, Path(name.partition(":")[2]).name]
    if name.startswith(("wds/", "vtab/", "tfds/")):
        return [name, name.split("/", 1)[1]]
    return [name]


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) and text for text in value)


def positions(folders: list[str], names: list[str], source: str) -> list[int]:
    """Which of the class names each of these class folders has: the one that it is called, else the one in its place.

    Raises UserError (opened by `source`) where names are not as many as folders and a folder is called by none.
    """
    called = [_words(name) for name in names]
    found = [called.index(_words(folder)) if called.count(_words(folder)) == 1 else None for folder in folders]
    matched = [place for place in found if place is not None]
    if len(matched) == len(folders) == len(set(matched)):
        return matched
    if len(names) == len(folders):
        return list(range(len(names)))
    raise UserError(
        f"{source}: {len(names)} class names for {len(folders)} class folders, and none for "
        f"{folders[found.index(None)] if None in found else folders[0]!r} by its name; give one name a folder, in "
        "sorted order, or names that are the folders'"
    )


def _words(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def resolve(flag: str, file: str) -> Path:
    """The path of a custom file; one that does not exist is looked up among clip-benchmark's own, as upstream.

    Raises UserError where it is in neither place.
    """
    path = path_of(file)
    if exists(path):
        return path
    try:
        spec = importlib.util.find_spec("clip_benchmark.datasets")
    except ImportError:  # no clip_benchmark, or a folder of that name
        spec = None
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if exists(Path(folder) / file):
            return Path(folder) / file
    raise FieldError(flag, file, "no such file; give the path of a JSON file, or of one in clip-benchmark.")


def read(flag: str, file: str) -> dict[str, Any]:
    """What a custom file holds, without blanks around names and prompts. UserError where it is no JSON object."""
    path = resolve(flag, file)
    try:
        content = _plain(json_of(read_text(path)))
    except (OSError, ValueError) as err:
        raise FieldError(flag, file, f"cannot be read as JSON ({err}).") from err
    if not isinstance(content, dict):
        raise FieldError(flag, file, "must hold one JSON object whose keys are data set names.")
    return content


def _plain(value: Any) -> Any:
    """Without blanks and line ends around names and prompts, as a script that read them from a file leaves them."""
    if isinstance(value, dict):
        plain = {_plain(key): _plain(inner) for key, inner in value.items()}
        if len(plain) < len(value):
            raise ValueError("two of its keys differ in blanks alone")
        return plain
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value.replace("\ufeff", "").strip() if isinstance(value, str) else value
