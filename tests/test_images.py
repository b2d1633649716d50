"""An image decodes to what a viewer shows; whatever is wrong with a file makes it a bad image."""

from __future__ import annotations

import ast
import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from support.material import command
from support.opened import opened

from anchorprune.datasets.images import EXTENSIONS, FORMATS, decode
from anchorprune.datasets.own import as_eval_dataset
from anchorprune.datasets.sampling import BadImage, loader
from anchorprune.datasets.zoo import ZooItems

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY16 = RNG.integers(0, 65536, (6, 9), dtype=np.uint16)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def decoded(data: bytes) -> NDArray[np.int64]:
    image = decode(data, "a file")
    assert image.mode == "RGB"
    return np.asarray(image).astype(np.int64)


def grey(values: NDArray[Any]) -> NDArray[np.int64]:
    """As red, green and blue."""
    return np.repeat(np.rint(values).astype(np.int64)[:, :, None], 3, axis=2)


def tiff(pixels: bytes, width: int, height: int, *, bits: int, photometric: int, sample_format: int = 1) -> bytes:
    """An uncompressed little-endian grey TIFF, by its specification."""
    tags = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, bits),
        (259, 3, 1),  # no compression
        (262, 3, photometric),
        (273, 4, 8),  # where the pixels are
        (277, 3, 1),
        (278, 4, height),
        (279, 4, len(pixels)),
        (339, 3, sample_format),
    ]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    pixels += b"\0" * (len(pixels) % 2)
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + struct.pack("<H", len(tags)) + entries + b"\0" * 4


# --- what a viewer shows


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_16_bit_grey_is_scaled_to_8(kind: str) -> None:
    data = encoded(Image.fromarray(GREY16), kind)
    assert abs(decoded(data) - grey(GREY16 / 257)).max() <= (1 if kind == "JPEG2000" else 0)


@pytest.mark.parametrize(("photometric", "shown"), [(1, GREY16 / 257), (0, 255 - GREY16 / 257)])
def test_16_bit_grey_of_a_tiff_is_dark_where_it_says_so(photometric: int, shown: NDArray[Any]) -> None:
    data = tiff(GREY16.astype("<u2").tobytes(), 9, 6, bits=16, photometric=photometric)
    assert abs(decoded(data) - grey(shown)).max() <= 1


def test_12_bit_grey_of_a_tiff_is_scaled_by_what_12_bits_hold() -> None:
    values = RNG.integers(0, 4096, (6, 8))
    pairs = values.reshape(-1, 2)
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], axis=1)
    data = tiff(packed.astype(np.uint8).tobytes(), 8, 6, bits=12, photometric=1)
    assert np.array_equal(decoded(data), grey(values * 255 / 4095))


@pytest.mark.parametrize(
    ("bits", "sample_format", "dtype"), [(32, 1, "<u4"), (32, 2, "<i4"), (32, 3, "<f4"), (16, 2, "<i2")]
)
def test_pixels_of_which_nothing_says_what_is_white_are_no_photograph(
    bits: int, sample_format: int, dtype: str
) -> None:
    pixels = np.full((6, 9), 200).astype(dtype).tobytes()
    with pytest.raises(BadImage, match="a file: "):
        decode(tiff(pixels, 9, 6, bits=bits, photometric=1, sample_format=sample_format), "a file")


def test_16_bit_colours_are_scaled_to_8() -> None:
    import zlib

    values = RNG.integers(0, 65536, (6, 9, 3))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 9, 6, 16, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert abs(decoded(data) - values / 257).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF"])
def test_a_palette_image_has_its_palettes_colours(kind: str) -> None:
    palette = RNG.integers(0, 256, (256, 3), dtype=np.uint8)
    indices = RNG.integers(0, 256, (6, 9), dtype=np.uint8)
    image = Image.fromarray(indices, "L")
    image.putpalette(palette.tobytes())
    assert np.array_equal(decoded(encoded(image, kind)), palette[indices])


def test_cmyk_is_ink_on_white_paper() -> None:
    inks = RNG.integers(0, 256, (6, 9, 4), dtype=np.uint8)
    data = encoded(Image.frombytes("CMYK", (9, 6), inks.tobytes()), "TIFF")
    light = (255 - inks[:, :, :3].astype(float)) * (255 - inks[:, :, 3:].astype(float)) / 255
    assert abs(decoded(data) - light).max() <= 1


def test_a_cmyk_jpeg_as_adobe_writes_it_is_not_inverted() -> None:
    inks = np.zeros((16, 16, 4), dtype=np.uint8)
    inks[:, :, 0] = 200  # cyan
    data = encoded(Image.frombytes("CMYK", (16, 16), inks.tobytes()), "JPEG", quality=100)
    assert b"Adobe" in data
    assert abs(decoded(data) - [55, 255, 255]).max() <= 3


def test_grey_with_transparency_is_its_grey() -> None:
    pixels = RNG.integers(0, 256, (6, 9, 2), dtype=np.uint8)
    data = encoded(Image.frombytes("LA", (9, 6), pixels.tobytes()), "PNG")
    assert np.array_equal(decoded(data), grey(pixels[:, :, 0]))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_counts(kind: str) -> None:
    frames = [Image.new("RGB", (9, 6), colour) for colour in ("red", "blue", "lime")]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **lossless)
    assert np.array_equal(decoded(data), np.broadcast_to([255, 0, 0], (6, 9, 3)))


def test_the_stand_in_of_an_animated_png_is_not_its_first_frame() -> None:
    frames = [Image.new("RGB", (9, 6), colour) for colour in ("red", "blue", "lime")]
    data = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:], default_image=True)
    assert np.array_equal(decoded(data), np.broadcast_to([0, 0, 255], (6, 9, 3)))


# What a viewer shows of stored pixels, by EXIF 2.3: where row 0 and column 0 of what is stored are.
SHOWN = {
    1: lambda a: a,  # top, left
    2: lambda a: a[:, ::-1],  # top, right
    3: lambda a: a[::-1, ::-1],  # bottom, right
    4: lambda a: a[::-1],  # bottom, left
    5: lambda a: a.transpose(1, 0, 2),  # left, top
    6: lambda a: a.transpose(1, 0, 2)[:, ::-1],  # right, top
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],  # right, bottom
    8: lambda a: a.transpose(1, 0, 2)[::-1],  # left, bottom
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", SHOWN)
def test_an_image_stands_as_its_exif_says(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(Image.fromarray(RGB), kind, exif=exif, **lossless)
    assert np.array_equal(decoded(data), SHOWN[orientation](RGB))


@pytest.mark.parametrize("kind", ["JPEG", "AVIF"])
def test_a_lossy_photograph_stands_as_its_exif_says(kind: str) -> None:
    pixels = np.zeros((32, 48, 3), dtype=np.uint8)
    pixels[:16, :24] = 255  # top left of what is stored
    exif = Image.Exif()
    exif[0x0112] = 6
    found = decoded(encoded(Image.fromarray(pixels), kind, quality=95, exif=exif))
    assert abs(found - SHOWN[6](pixels)).mean() < 3


def test_exif_that_cannot_be_read_leaves_the_image_as_it_is() -> None:
    exif = b"Exif\0\0II*\0\xff\xff\xff\x7f"
    data = encoded(Image.fromarray(RGB), "PNG", exif=exif)
    assert np.array_equal(decoded(data), RGB)


# --- what is no photograph, or damaged


@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICO", "TGA", "PCX", "DDS", "SGI"])
def test_what_is_no_photograph_is_not_opened_whatever_its_name(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.Popen", None)  # Ghostscript
    data = encoded(Image.fromarray(RGB).resize((32, 32)), kind)
    with pytest.raises(BadImage, match=r"photo.jpg: not an image that Pillow can read"):
        decode(data, "photo.jpg")


def test_the_endings_are_those_that_pillow_knows_for_these_formats() -> None:
    Image.init()
    known = {end[1:] for end, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO")}
    assert known - {"pfm"} == set(EXTENSIONS)  # whose pixels are floating-point


@pytest.mark.parametrize("kind", FORMATS)
def test_a_damaged_file_of_any_format_is_a_bad_image_or_still_an_image(kind: str) -> None:
    whole = encoded(Image.fromarray(RGB).resize((24, 24)), kind)
    reasons = []
    for at in range(0, len(whole), max(1, len(whole) // 60)):
        for damaged in (whole[:at], whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :]):
            try:
                assert decode(damaged, "photo.jpg").mode == "RGB"
            except BadImage as err:
                reasons.append(str(err))
    assert reasons
    assert all(reason.startswith("photo.jpg: ") for reason in reasons)


@pytest.fixture
def damaged_avif() -> bytes:
    """One for which the decoder raises RuntimeError."""
    whole = encoded(Image.fromarray(RGB).resize((24, 24)), "AVIF")
    for at in range(len(whole)):
        damaged = whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :]
        try:
            Image.open(io.BytesIO(damaged)).load()
        except RuntimeError:
            return damaged
        except (OSError, SyntaxError):
            pass
    raise AssertionError("none was found")


def test_a_damaged_avif_is_passed_over_in_every_source(tmp_path: Path, damaged_avif: bytes) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "0.jpg").write_bytes(damaged_avif)
    folder = opened(f"folder:{tmp_path}", transform=lambda image: image)
    [batch] = loader(folder, [0], batch_size=1, num_workers=0)
    assert [key for key, _ in batch.bad] == ["cat/0.jpg"]

    class Own:
        """As a data set of one's own, or torchvision's, decodes by itself."""

        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> Any:
            return Image.open(io.BytesIO(damaged_avif)).convert("RGB"), 0

    [batch] = loader(as_eval_dataset(Own(), "own", lambda image: image), [0], batch_size=1, num_workers=0)
    assert [key for key, _ in batch.bad] == ["0"]
    assert batch.bad[0][1].startswith("RuntimeError: ")


# --- how large an image may be


def header(width: int, height: int) -> bytes:
    """A PNG that promises so many pixels of one bit each, and has none."""
    import zlib

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    ihdr = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + ihdr + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("width", "height", "said"),
    [
        (1_000_000, 1, "one side more than 500 times the other"),
        (1, 1_000_000, "one side more than 500 times the other"),
        (80_000_000, 1, "one side more than 500 times the other"),
        (100_000_000, 1, ""),
        (14_000, 14_000, ""),
        (2**31 - 1, 2**31 - 1, ""),
    ],
)
def test_an_image_that_no_memory_would_hold_is_a_bad_image(width: int, height: int, said: str) -> None:
    with pytest.raises(BadImage, match=f"^a file: .*{said}"):
        decode(header(width, height), "a file")


def test_a_panorama_is_none_of_them() -> None:
    assert decode(encoded(Image.new("RGB", (5000, 10), "red"), "PNG"), "a file").size == (5000, 10)


def test_the_bounds_on_images_are_in_the_help() -> None:
    for name in ("eval", "sweep", "tune", "encode", "export-wds"):
        said = " ".join(" ".join(command(name, "--help").out).split())
        assert "178,956,970 pixels or 536,870,912 bytes, or one side more than 500 times the other" in said


# --- what preprocesses an image


class Fails:
    """A transform that fails on images that are wider than high, as Pillow's resizing does on a strip."""

    def __call__(self, image: Image.Image) -> Any:
        if image.width > image.height:
            raise MemoryError
        return image


def test_a_transform_that_fails_on_one_image_makes_it_a_bad_image(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    for i, size in enumerate([(9, 6), (6, 9)]):
        Image.new("RGB", size).save(tmp_path / "cat" / f"{i}.png")

    class Own:
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Any:
            return Image.new("RGB", [(9, 6), (6, 9)][index]), 0

    for dataset in (opened(f"folder:{tmp_path}", transform=Fails()), as_eval_dataset(Own(), "own", Fails())):
        assert dataset.items[1][0].size == (6, 9)
        with pytest.raises(BadImage, match=r"cannot be preprocessed \(MemoryError\)"):
            dataset.items[0]


# --- who opens images


def opens(tree: ast.AST) -> Iterator[str]:
    """Each way to open an image that Pillow would choose the format of."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "PIL.Image" and "open" in {a.name for a in node.names}:
            yield "from PIL.Image import open"
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Image.open"):
            formats = [each.value for each in node.keywords if each.arg == "formats"]
            allowed = formats and (
                ast.unparse(formats[0]) == "_formats()" or set(ast.literal_eval(formats[0])) <= set(FORMATS)
            )
            if not allowed:
                yield ast.unparse(node)
        if isinstance(node, ast.Attribute) and node.attr in ("default_loader", "pil_loader", "imread"):
            yield ast.unparse(node)


def test_nobody_opens_an_image_without_saying_of_which_formats() -> None:
    root = Path(__file__).parents[1]
    files = [file for folder in ("src", "tools", "benchmarks") for file in (root / folder).rglob("*.py")]
    assert len(files) > 100
    found = {str(file): list(opens(ast.parse(file.read_text(encoding="utf-8")))) for file in files}
    assert {file: ways for file, ways in found.items() if ways} == {}


@pytest.mark.parametrize("code", ["Image.open(x)", "PIL.Image.open(x, formats=['EPS'])", "from PIL.Image import open"])
def test_such_an_opening_would_be_found(code: str) -> None:
    assert list(opens(ast.parse(code)))


def test_other_packages_data_sets_open_photographs_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.Popen", None)  # Ghostscript
    for name, kind in (("ps.jpg", "EPS"), ("photo.jpg", "JPEG")):
        (tmp_path / name).write_bytes(encoded(Image.fromarray(RGB).resize((32, 32)), kind))

    class Upstream:
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Any:
            return Image.open(tmp_path / ["ps.jpg", "photo.jpg"][index]).convert("RGB"), 0

    items = ZooItems(Upstream(), "classes")
    with pytest.raises(BadImage, match="cannot identify"):
        items[0]
    assert items[1][0].size == (32, 32)
    assert "EPS" in Image.ID
