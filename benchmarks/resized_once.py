"""Images resized straight to the coarser grid's size (`small_images`), against twice: to the tower's, then to that.

    python benchmarks/resized_once.py
    python benchmarks/resized_once.py --model ViT-B-16-quickgelu --pretrained CHECKPOINT.pt --dataset wds/cifar8 \\
      --dataset_root 'DATA/wds_{dataset_cleaned}' --load_clfs cifar8.pt --limit 400
    python benchmarks/resized_once.py --model ViT-B-16-quickgelu --pretrained CHECKPOINT.pt --photos FOLDER --limit 200

Without `--photos` top-1 of a zero-shot classifier; with it, and beside it, the cosine of a pruned feature to the
unpruned feature of the same image, and the time that preprocessing takes. float32.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import target
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from anchorprune import ModelSpec, prune
from anchorprune.datasets import dataset_root, open_dataset
from anchorprune.datasets.base import DataSpec
from anchorprune.datasets.sampling import choose
from anchorprune.models import load
from anchorprune.models.base import LoadedModel
from anchorprune.tasks.zeroshot_classification import build_classifier, load_classifiers


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", default="anchorprune-demo")
    add("--pretrained", default="bundled")
    add("--dataset", default="bundled")
    add("--dataset_root", default="root")
    add("--load_clfs", default=None, help="a classifier, [features, classes]")
    add("--limit", type=int, default=400)
    add("--batch_size", type=int, default=20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_flags(parser)
    parser.add_argument("--photos", default=None, help="a folder of photographs without labels, instead of --dataset")
    parser.add_argument("--keep_ratio", type=float, nargs="+", default=[0.5, 0.25])
    args = parser.parse_args()
    loaded = load(ModelSpec(name=args.model, pretrained=args.pretrained), torch.device("cpu"), "fp32")
    pictures, labels, classifier = Photos(args), None, None
    if not args.photos:
        pictures, labels, classifier = labelled(args, loaded)
    model = loaded.model
    print(
        f"{args.model}, {len(pictures)} images, float32, batch {args.batch_size}, {torch.get_num_threads()} threads\n"
    )
    print("| pruned to | images of | resized | top-1 | right here alone | cosine to unpruned | preprocessing, ms |")
    print("|---|---|---|---:|---:|---:|---:|")
    images, ms = preprocessed(pictures, loaded.transform)
    unpruned = encode(model.encode_image, images, args.batch_size)

    def right(features: Tensor) -> Tensor:
        return (
            torch.zeros(len(features)) if classifier is None else ((features @ classifier).argmax(1) == labels).float()
        )

    def row(name: str, size: Any, how: str, features: Tensor, other: Tensor | None, ms: float) -> None:
        own = right(features)
        alone = "" if other is None else f"{int((own > right(other)).sum())}"
        top1 = "" if classifier is None else f"{100 * own.mean():.2f} %"
        cosine = (features * unpruned).sum(dim=1).mean()
        print(f"| {name} | {size[0]} × {size[1]} | {how} | {top1} | {alone} | {cosine:.4f} | {ms:.2f} |", flush=True)

    row("unpruned", images.shape[2:], "once", unpruned, None, ms)
    for ratio in args.keep_ratio:
        with prune(model, "coarse", keep_ratio=ratio) as pruning:
            twice, size = encode(model.encode_image, images, args.batch_size), pruning.image_size
        with prune(model, "coarse", keep_ratio=ratio, small_images=True) as pruning:
            small, small_ms = preprocessed(pictures, pruning.transform(loaded.transform))
            once = encode(model.encode_image, small, args.batch_size)
        row(f"coarse --keep_ratio {ratio}", size, "twice", twice, once, ms)
        row(f"coarse --keep_ratio {ratio}", size, "once", once, twice, small_ms)


class Photos:
    """The photographs of a folder, evenly spread where there are more than asked for."""

    def __init__(self, args: argparse.Namespace) -> None:
        paths = sorted(Path(args.photos).iterdir()) if args.photos else []
        self.paths = (
            [paths[i * len(paths) // args.limit] for i in range(args.limit)] if len(paths) > args.limit else paths
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        return Image.open(self.paths[index], formats=["JPEG", "PNG", "WEBP"]).convert("RGB")


def labelled(args: argparse.Namespace, loaded: LoadedModel) -> tuple[list[Any], Tensor, Tensor]:
    """The images, decoded, their labels and the classifier `[D, classes]`."""
    spec = DataSpec(name=args.dataset, root=dataset_root(args.dataset_root, args.dataset))
    data = open_dataset(spec, lambda image: image)
    pairs = [data.items[i] for i in choose(data.keys, args.limit, 0)]
    assert data.classes is not None
    if args.load_clfs:
        classifier = load_classifiers([args.load_clfs], len(data.classes))
    else:
        assert loaded.tokenizer is not None
        assert data.templates is not None
        classifier = build_classifier(loaded.model, loaded.tokenizer, data.classes, data.templates, torch.device("cpu"))
    return [image for image, _ in pairs], torch.tensor([target for _, target in pairs]), classifier.float()


def preprocessed(pictures: Sequence[Any], transform: Callable[[Any], Tensor]) -> tuple[Tensor, float]:
    """The images, and the milliseconds that each took, without decoding."""
    tensors, seconds = [], 0.0
    transform(pictures[0])  # the first one pays for imports
    for i in range(len(pictures)):
        picture = pictures[i]
        start = time.perf_counter()
        tensors.append(transform(picture))
        seconds += time.perf_counter() - start
    return torch.stack(tensors), 1000 * seconds / len(tensors)


@torch.no_grad()
def encode(run: Callable[[Tensor], Tensor], images: Tensor, batch_size: int) -> Tensor:
    """Features of length 1, `[images, D]`."""
    return torch.cat([F.normalize(run(batch).float(), dim=-1) for batch in images.split(batch_size)])


if __name__ == "__main__":
    target.run(main)
