"""How files are damaged: hypothesis strategies for the bytes of files that were whole before."""

from __future__ import annotations

import copy
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import strategies as st

Bytes = st.SearchStrategy[bytes]
Originals = Callable[[], list[bytes]]

# What readers have stumbled over: sizes below zero and beyond everything, nesting, halves of characters.
_RUNS = (
    *(b"\0", b"\xff", b"\x7f", b"\n", b'"', b"{", b"\\ud800", b"NaN", b"-1", b"\0" * 8, b"\xff" * 8),
    *(b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"9" * 400, b"1e999", b"[" * 1000, b'{"a":' * 200),
)
_PLACES = st.integers(0, 600) | st.integers(0, 1 << 20)
_HOW = ("over", "over", "put", "cut", "double", "end")
Edit = tuple[str, int, bytes]
EDITS = st.lists(
    st.tuples(st.sampled_from(_HOW), _PLACES, st.sampled_from(_RUNS) | st.binary(min_size=1, max_size=16)),
    min_size=1,
    max_size=8,
)


def edited(data: bytes, edits: list[Edit]) -> bytes:
    """Bytes overwritten, put in, cut out or doubled, or all from somewhere on left out."""
    new = bytearray(data)
    for how, at, run in edits:
        at %= len(new) + 1
        if how == "over":
            new[at : at + len(run)] = run
        elif how == "put":
            new[at:at] = run
        elif how == "cut":
            del new[at : at + len(run)]
        elif how == "double":
            new[at:at] = new[at : at + 4 * len(run)]
        else:
            del new[at:]
    return bytes(new)


def damaged(originals: Originals) -> Bytes:
    """One of the originals with some edits."""
    return st.builds(edited, st.deferred(lambda: st.sampled_from(originals())), EDITS)


# --- JSON

_DEEP = "a value that is nested a thousand times"
_ODD = (_DEEP, "", "\0", "\ud800", "{c}", "{0[a]}", "a\nb", "x" * 3000, "../../x", 10**30, -1, 1 << 63, 10**400, 0.5)
_TEXTS = st.text(
    alphabet="ac:{}[]'\"\\/ \n\0\x1bé\u2028\ud800", max_size=5
)  # all of Unicode takes seconds to be listed
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _TEXTS | st.sampled_from(_ODD),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3),
    max_leaves=6,
)


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Each list or object within, with each of its indices or keys."""
    keys = content if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    for key in keys:
        yield content, key
        yield from _places(content[key])


@st.composite
def changed(draw: st.DrawFn, originals: Callable[[], list[Any]]) -> bytes:
    """JSON in which some values are others, gone, or under another key."""
    content = copy.deepcopy(draw(st.sampled_from(originals())))
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(content))
        if not places:
            break
        inner, key = draw(st.sampled_from(places))
        how = draw(st.sampled_from(("set", "set", "set", "remove", "add", "swap")))
        if how == "remove":
            del inner[key]
        elif how == "swap":
            other, place = draw(st.sampled_from(places))
            inner[key] = copy.deepcopy(other[place]) if place in _keys(other) else None
        elif how == "add" and isinstance(inner, dict):
            inner[draw(_TEXTS)] = draw(VALUES)
        else:
            inner[key] = draw(VALUES)
    return json.dumps(content).replace(json.dumps(_DEEP), "[" * 1000 + "]" * 1000).encode()


def _keys(inner: Any) -> Any:
    return inner if isinstance(inner, dict) else range(len(inner))


def odd_json(*originals: Any) -> Bytes:
    """JSON that is changed, JSON of anything, and JSON whose bytes are damaged."""
    anything = VALUES.map(lambda value: json.dumps(value).encode())
    return (
        changed(lambda: list(originals)) | damaged(lambda: [json.dumps(each).encode() for each in originals]) | anything
    )


# --- archives and other files that say of themselves how long their parts are


def resummed(tar: bytes) -> bytes:
    """The tar with checksums that are right, so that what else its headers say is looked at."""
    new = bytearray(tar)
    for at in range(0, len(new) - 511, 512):
        if new[at + 257 : at + 262] == b"ustar":
            new[at + 148 : at + 156] = b" " * 8
            new[at + 148 : at + 156] = b"%06o\0 " % sum(new[at : at + 512])
    return bytes(new)


def zipped(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def _rezipped(data: bytes, which: int, edits: list[Edit]) -> bytes:
    """An archive with one of its members damaged, and the sum of that one right."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = list(members)[which % len(members)]
    return zipped({**members, name: edited(members[name], edits)})


def damaged_zip(originals: Originals) -> Bytes:
    """An archive that is damaged, or whole with a damaged member."""
    inner = st.builds(_rezipped, st.deferred(lambda: st.sampled_from(originals())), st.integers(0, 9), EDITS)
    return damaged(originals) | inner


def _headed(header: bytes, rest: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + rest


def damaged_safetensors(original: Callable[[], bytes]) -> Bytes:
    """A safetensors file that is damaged, or whose header is other JSON and as long as it says."""

    def headers() -> Bytes:
        data = original()
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        return st.builds(_headed, changed(lambda: [header]), st.just(data[8 + size :]))

    return damaged(lambda: [original()]) | st.deferred(headers)
