"""Whatever is done to the bytes of an image, it is still an image or a bad one.

`MUTATED_IMAGES=20000 pytest tests/test_mutated_images.py` looks at so many of each format.
"""

from __future__ import annotations

import os
import random
import warnings

import pytest
from support.mutated import mutated, originals

from anchorprune.datasets.images import FORMATS, BadImage, decode

COUNT = int(os.environ.get("MUTATED_IMAGES", "40"))


@pytest.mark.parametrize("kind", FORMATS)
def test_a_mutated_image_is_an_image_or_a_bad_one(kind: str) -> None:
    whole, draw, bad = originals(kind), random.Random(kind), []
    assert whole
    for number in range(COUNT):
        data = mutated(draw.choice(whole), whole, draw)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, on what is odd about a file
            try:
                assert decode(data, "a file").mode == "RGB"
            except BadImage as err:
                bad.append(str(err))
            except BaseException as err:
                raise AssertionError(f"{kind}, number {number}: {data.hex()[:2000]}") from err
    assert bad
    assert all(reason.startswith("a file: ") for reason in bad)


def test_every_mode_that_a_format_has_is_mutated() -> None:
    assert {kind: len(originals(kind)) for kind in FORMATS} == pytest.approx(
        {"JPEG": 4, "PNG": 7, "WEBP": 6, "AVIF": 6, "TIFF": 8, "JPEG2000": 5, "GIF": 6, "BMP": 5, "PPM": 5, "QOI": 2},
        abs=3,
    )
