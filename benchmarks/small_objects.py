"""A data set whose objects are small: each image of a webdataset folder, shrunk, in the middle of a blurred copy.

    python benchmarks/small_objects.py DATA/wds_caltech96 DATA/wds_caltech96_small

A test for pruning that coarsens the whole image, on data that is not detailed by itself: what is to be recognised then
has the image's own pixels and a third of its area, and the rest says nothing. Split `test` only; the same keys, labels
and class names; PNG, so that nothing but the size changes.
"""

from __future__ import annotations

import argparse
import io
import shutil
import tarfile
from pathlib import Path

from PIL import Image

SIDE, CANVAS = 128, 224


def small(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.convert("RGB").crop((left, top, left + side, top + side))
    blurred = square.resize((8, 8), Image.Resampling.BOX).resize((CANVAS, CANVAS), Image.Resampling.BICUBIC)
    blurred.paste(square.resize((SIDE, SIDE), Image.Resampling.BICUBIC), ((CANVAS - SIDE) // 2,) * 2)
    return blurred


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    (args.out / "test").mkdir(parents=True)
    for extra in [*args.source.glob("*.txt"), args.source / "test" / "nshards.txt"]:
        shutil.copy(extra, args.out / extra.relative_to(args.source))
    for shard in sorted((args.source / "test").glob("*.tar")):
        with tarfile.open(shard) as source, tarfile.open(args.out / "test" / shard.name, "w") as out:
            for member in source:
                file = source.extractfile(member)
                assert file is not None
                data = file.read()
                stem, ending = member.name.split(".", 1)
                if ending in ("jpg", "jpeg", "png", "webp"):
                    stored = io.BytesIO()
                    small(Image.open(io.BytesIO(data), formats=["JPEG", "PNG", "WEBP"])).save(stored, "PNG")
                    data, ending = stored.getvalue(), "png"
                entry = tarfile.TarInfo(f"{stem}.{ending}")
                entry.size = len(data)
                out.addfile(entry, io.BytesIO(data))
    print(f"{args.out}: objects of {SIDE} px in images of {CANVAS} px")


if __name__ == "__main__":
    main()
