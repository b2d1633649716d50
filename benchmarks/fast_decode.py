"""What `--fast_decode` of `anchorprune encode` changes: the embeddings, and the time that decoding takes.

    python benchmarks/fast_decode.py --keep_patches 66 30
    python benchmarks/fast_decode.py --images FOLDER --model ViT-B-16-quickgelu --pretrained openai --keep_patches 51

Embeddings of exactly and of fast decoded images of the same model, unpruned and with `coarse`: the cosine of each
image's two (mean, 5th percentile), and recall@1 and @5 of the fast ones among the exact ones. Then the processor's time
for one photograph, enlarged to several sizes, decoded to what a tower of 224 pixels needs.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import target
from encode_throughput import extracted
from PIL import Image

import anchorprune
from anchorprune import Coarse, Compute, EncodeRequest, ModelSpec
from anchorprune.datasets.images import decode
from anchorprune.embeddings.fidelity import fidelity
from anchorprune.embeddings.tower import MARGIN


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", help="folder of JPEG files (default: the bundled photos)")
    parser.add_argument("--model", default="anchorprune-demo")
    parser.add_argument("--pretrained", default="bundled")
    parser.add_argument("--keep_patches", type=int, nargs="+", default=[66], help="budgets of coarse")
    parser.add_argument("--num_workers", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = Path(args.images) if args.images else extracted(Path(folder) / "photos")
        for pruning in (None, *(Coarse(keep_patches=(keep,)) for keep in args.keep_patches)):
            found = {}
            for fast in (False, True):
                request = EncodeRequest(
                    input=str(images),
                    model=ModelSpec(name=args.model, pretrained=args.pretrained),
                    pruning=pruning,
                    fast_decode=fast,
                    dtype="fp32",
                    compute=Compute(precision="fp32", num_workers=args.num_workers),
                )
                out = Path(folder) / f"{pruning}{fast}"
                summary = anchorprune.encode(request, out)
                found[fast] = np.stack(pq.read_table(out / "embeddings")["embedding"].to_numpy())
            agreement = ", ".join(f"{name} {value:.4f}" for name, value in fidelity(found[True], found[False]).items())
            name = f"{pruning.name} {pruning.flags()}" if pruning else "unpruned"
            print(f"{name}: {agreement} ({summary['rows']} images)", flush=True)
        times(next(iter(sorted(images.rglob("*.jpg")))))


def times(path: Path) -> None:
    """Milliseconds of the processor, the least of five, with the resizing that follows."""
    photo = Image.open(path, formats=["JPEG"]).convert("RGB")
    for side in (320, 640, 1280, 2560):
        width, height = (round(length * side / min(photo.size)) for length in photo.size)
        file = io.BytesIO()
        photo.resize((width, height)).save(file, "JPEG", quality=90)
        least = []
        for small in (None, (MARGIN * 224, MARGIN * 224)):
            spent = []
            for _ in range(5):
                start = time.process_time()
                decode(file.getvalue(), str(path), small).resize((224, 224), Image.Resampling.BICUBIC)
                spent.append(1000 * (time.process_time() - start))
            least.append(min(spent))
        print(f"{width} × {height} pixels: {least[0]:.1f} ms, fast {least[1]:.1f} ms")


if __name__ == "__main__":
    target.run(main)
