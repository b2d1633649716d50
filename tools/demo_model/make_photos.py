"""Choose the photographs that travel with the package, from a test split in the webdataset layout.

    python tools/demo_model/make_photos.py --data wds_caltech --classnames run/classnames.txt --out photos

Takes the first `--at_most` photographs of each class, in the order of the shards, byte for byte as they are.
The same input gives the same bytes.
"""

from __future__ import annotations

import argparse
import io
import tarfile
from pathlib import Path

from material import keep_classes, read_classnames, read_split
from train import PROMPTS

ATTRIBUTION = """\
The photographs in test/0.tar are {photos} images of {classes} classes from Caltech-101, scaled down to a short side
of 128 pixels and stored as JPEG; nothing else was changed.

  Caltech-101. Fei-Fei Li, Marco Andreeto, Marc'Aurelio Ranzato, Pietro Perona.
  CaltechDATA, 2022. https://doi.org/10.22002/D1.20086
  Licence: Creative Commons Attribution 4.0 International (CC BY 4.0),
  https://creativecommons.org/licenses/by/4.0/

They belong to a test split that the bundled model was not trained on. The class of human faces is left out.
"""


def write_tar(path: Path, files: list[tuple[str, bytes]]) -> None:
    """A plain tar whose bytes depend on the names and contents alone."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Caltech-101 in the webdataset layout")
    parser.add_argument("--classnames", type=Path, required=True, help="the classes to take, one a line")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the data set to")
    parser.add_argument("--at_most", type=int, default=10, help="photographs of a class")
    args = parser.parse_args(arguments)

    names = args.classnames.read_text().splitlines()
    everything = read_classnames(args.data)
    photos = keep_classes(read_split(args.data, "test"), [everything.index(name) for name in names], args.at_most)
    files = []
    for i, photo in enumerate(photos):
        files += [(f"{i:06d}.jpg", photo.jpeg), (f"{i:06d}.cls", str(photo.label).encode())]

    (args.out / "test").mkdir(parents=True, exist_ok=True)
    write_tar(args.out / "test" / "0.tar", files)
    (args.out / "test" / "nshards.txt").write_text("1\n")
    (args.out / "classnames.txt").write_text("\n".join(names) + "\n")
    (args.out / "zeroshot_classification_templates.txt").write_text("\n".join(PROMPTS) + "\n")
    (args.out / "ATTRIBUTION.txt").write_text(ATTRIBUTION.format(photos=len(photos), classes=len(names)))
    print(f"{len(photos)} photographs of {len(names)} classes in {args.out}")


if __name__ == "__main__":
    main()
