"""What encoding so many images takes and costs, from images/s that were measured and the price of an hour.

    python benchmarks/plan.py --images 1e9 --price 4 --rate unpruned=6185 coarse=9988 --devices 64 --decoding 3000

A device encodes no faster than its machine decodes for it: with `--decoding`, the slower of the two counts.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence


def rate(text: str) -> tuple[str, float]:
    """`NAME=IMAGES_PER_SECOND`."""
    name, _, value = text.rpartition("=")
    if not name:
        raise argparse.ArgumentTypeError(f"{text}: give NAME=IMAGES_PER_SECOND")
    return name, positive(value)


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: must be above 0")
    return value


def table(
    images: float, price: float, rates: Sequence[tuple[str, float]], devices: int = 1, decoding: float = math.inf
) -> list[str]:
    """The lines of the plan, as Markdown.

    Args:
        price: of a device for an hour, with its share of the machine.
        rates: images/s that one device encodes, by name; the first is what the others are compared with.
        decoding: images/s that are decoded for one device.
    """
    lines = [
        "| | images/s | bound by | device hours | days | cost | of the first |",
        "|---|---:|---|---:|---:|---:|---:|",
    ]
    first = images / min(rates[0][1], decoding)
    for name, encoding in rates:
        seconds = images / min(encoding, decoding)
        hours = seconds / 3600
        bound = "encoding" if encoding <= decoding else "decoding"
        lines.append(
            f"| {name} | {min(encoding, decoding):,.0f} | {bound} | {hours:,.1f} | {hours / 24 / devices:,.2f} | "
            f"{hours * price:,.0f} | {100 * seconds / first:.0f} % |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description="What encoding so many images takes and costs.")
    add = parser.add_argument
    add("--images", type=positive, required=True, help="how many, such as 1e9")
    add("--price", type=positive, required=True, help="of one device for an hour, in whatever money")
    add("--rate", type=rate, nargs="+", required=True, metavar="NAME=X", help="images/s that one device encodes")
    add("--devices", type=int, default=1, help="that share the work, for the days (default: 1)")
    add("--decoding", type=positive, default=math.inf, help="images/s that are decoded for one device")
    args = parser.parse_args()
    if args.devices < 1:
        parser.error("--devices: must be 1 or more")
    print("\n".join(table(args.images, args.price, args.rate, args.devices, args.decoding)))


if __name__ == "__main__":
    main()
