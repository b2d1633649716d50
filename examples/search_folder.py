"""Search a folder of images: encode it once through a pruned model, then ask by an image or by a text.

    python examples/search_folder.py my_photos --text "a photo of a dog"
    python examples/search_folder.py my_photos --image my_photos/dogs/rex.jpg

The first question encodes the folder; later ones find the embeddings in --index. The bundled model, the default, knows
40 classes of photographs and nothing else: for real work add --model ViT-B-16 --pretrained openai.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import torch
from PIL import Image

import anchorprune
from anchorprune import Coarse, Compute, EncodeRequest, ModelSpec
from anchorprune.models import load

TOP = 5


def main() -> None:
    parser = argparse.ArgumentParser(description="Search a folder of images by an image or by a text.")
    parser.add_argument("folder")
    question = parser.add_mutually_exclusive_group(required=True)
    question.add_argument("--image", help="find images like this one")
    question.add_argument("--text", help="find images of this")
    parser.add_argument("--model", default="anchorprune-demo")
    parser.add_argument("--pretrained", default="bundled")
    parser.add_argument("--index", default="index", help="folder for the embeddings (default: %(default)s)")
    args = parser.parse_args()

    spec = ModelSpec(name=args.model, pretrained=args.pretrained)
    compute = Compute(precision="fp32", num_workers=0)
    pruning = Coarse(keep_ratio=0.34)  # of the patches: about half of the compute
    request = EncodeRequest(input=args.folder, model=spec, pruning=pruning, compute=compute)
    anchorprune.encode(request, args.index)
    ids, embeddings = read_index(Path(args.index))

    loaded = load(spec, torch.device("cpu"), "fp32")
    with torch.no_grad():
        if args.text:
            asked = loaded.model.encode_text(loaded.tokenizer([args.text]))
        else:
            image = loaded.transform(Image.open(args.image).convert("RGB"))
            with anchorprune.prune(loaded.model, pruning):
                asked = loaded.model.encode_image(image[None])
    asked = torch.nn.functional.normalize(asked[0].float(), dim=0).numpy()

    likeness = embeddings @ asked  # cosines: both have length 1
    for place in np.argsort(-likeness, kind="stable")[:TOP]:
        print(f"{likeness[place]:.3f}  {ids[place]}")


def read_index(folder: Path) -> tuple[list[str], np.ndarray]:
    """File names, and their embeddings `[N, D]`."""
    tables = [parquet.read_table(file) for file in sorted((folder / "embeddings").glob("*.parquet"))]
    rows = [
        row for table in tables for row in zip(table["id"].to_pylist(), table["embedding"].to_pylist(), strict=True)
    ]
    return [name for name, _ in rows], np.array([vector for _, vector in rows], np.float32)


if __name__ == "__main__":
    main()
