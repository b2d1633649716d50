"""Pruning where every patch shows real detail: images at their own pixels, nothing enlarged for the tower.

    python benchmarks/native_pixels.py --model ViT-B-16-quickgelu --pretrained CHECKPOINT.pt \\
      --data DATA/wds_caltech96 --load_clfs caltech96.pt

The tower is built for images of 128 × 176 px (8 × 11 patches of 16 px), its positions resampled by open_clip, and sees
the middle of each image of that size or more, cropped and never scaled. That is not the size that its weights were
trained at: compare the ways with each other and with the unpruned row, not with other tables. Images of the search half
(benchmarks/held_out.py) of the test split. Aligned: with features aligned as `anchorprune calibrate` does it,
by such crops of `--calibrate` images of the train split, without their labels.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path

import open_clip
import target
import torch
from held_out import difference, half_of
from torch import Tensor
from torchvision.transforms import CenterCrop, Compose, Normalize, ToTensor

from anchorprune import prune
from anchorprune.alignment import fit
from anchorprune.datasets import DataSpec, open_dataset
from anchorprune.pruning.cost import image_tower_flops
from anchorprune.strategies import make_strategy
from anchorprune.strategies.base import Strategy

SIZE = (128, 176)
# The names and their budgets, from light to heavy; each column of budgets is of about the same GMACs.
WAYS = {
    "coarse": ("keep_patches", (66, 33, 23)),
    "thin": ("keep_patches", (66, 33, 21)),
    "tome": ("r", (3, 7, 9)),
    "random": ("keep_patches", (68, 41, 31)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--pretrained", required=True)
    parser.add_argument("--data", required=True, help="a webdataset folder with the split test")
    parser.add_argument("--load_clfs", required=True, help="the classifier, [features, classes]")
    parser.add_argument("--calibrate", type=int, default=2000, metavar="IMAGES", help="of the train split, 0: none")
    parser.add_argument("--batch_size", type=int, default=50)
    args = parser.parse_args()
    torch.manual_seed(0)

    model = open_clip.create_model(args.model, pretrained=args.pretrained, force_image_size=SIZE).eval()
    clip = model.visual.preprocess_cfg
    transform = Compose([CenterCrop(SIZE), ToTensor(), Normalize(clip["mean"], clip["std"])])
    images, labels = native(args.data, "test", transform)
    classifier = torch.load(args.load_clfs, weights_only=True).float()
    print(f"{len(images)} images, bfloat16 autocast, batch {args.batch_size}, {torch.get_num_threads()} threads\n")
    print("| pruned to | GMACs | top-1, % | points to unpruned | coarse minus this |\n|---|---|---|---|---|")

    def encoded(shown: Tensor, strategy: Strategy | None) -> Tensor:
        return torch.cat([encode(model, batch, strategy) for batch in shown.split(args.batch_size)])

    def hits(features: Tensor) -> list[float]:
        return ((features @ classifier).argmax(dim=1) == labels).double().tolist()

    def aligned(features: Tensor, strategy: Strategy) -> Tensor:
        return fit(encoded(unlabelled, strategy), unpruned).alignment(features)

    if args.calibrate:
        unlabelled = native(args.data, "train", transform, args.calibrate)[0]
        unpruned = encoded(unlabelled, None)
    dense = hits(encoded(images, None))
    print(f"| everything | {image_tower_flops(model) / 2e9:.2f} | {100 * sum(dense) / len(dense):.1f} | | |")
    for step in range(3):
        first: list[float] = []
        for name, (field, budgets) in WAYS.items():
            draws: list[Strategy] = [make_strategy(name, **{field: budgets[step]})]
            if name == "random":
                draws = [make_strategy(name, keep_patches=budgets[step], draw_seed=seed) for seed in range(3)]
            features = [encoded(images, draw) for draw in draws]
            shares = [sum(each) / len(draws) for each in zip(*map(hits, features), strict=True)]
            with prune(model, draws[0]):
                gmacs = image_tower_flops(model) / 2e9
            first = first or shares
            row(f"`{name} --{field} {budgets[step]}`", gmacs, shares, dense, first)
            if name != "random" and args.calibrate:
                row(
                    f"`{name} --{field} {budgets[step]}`, aligned",
                    gmacs,
                    hits(aligned(features[0], draws[0])),
                    dense,
                    first,
                )


def row(way: str, gmacs: float, right: list[float], dense: list[float], coarse: list[float]) -> None:
    behind = "" if right is coarse else difference(coarse, right)
    top1 = 100 * sum(right) / len(right)
    print(f"| {way} | {gmacs:.2f} | {top1:.1f} | {difference(right, dense)} | {behind} |", flush=True)


def native(data: str, split: str, transform: Compose, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """The images `[n, 3, *SIZE]` of the split that are large enough to be cropped to `SIZE`, and their labels.

    Of `test` those of the search half; with `limit` so many of them, drawn at random.
    """
    spec = DataSpec(name=f"wds/{Path(data).name}", root=data, split=split)
    dataset = open_dataset(spec, lambda image: image.convert("RGB"))
    places = half_of(dataset.keys, "search") if split == "test" else torch.randperm(len(dataset.keys)).tolist()
    chosen: list[Tensor] = []
    labels: list[int] = []
    for i in places:
        if len(chosen) == limit:
            break
        image, label = dataset.items[i]
        if image.height >= SIZE[0] and image.width >= SIZE[1]:
            chosen.append(transform(image))
            labels.append(int(label))
    return torch.stack(chosen), torch.tensor(labels)


@torch.no_grad()
def encode(model: open_clip.CLIP, images: Tensor, strategy: Strategy | None) -> Tensor:
    """Features, not normalised; pruned where there is a strategy."""
    with torch.autocast("cpu", torch.bfloat16), prune(model, strategy) if strategy else nullcontext():
        return model.encode_image(images).float()


if __name__ == "__main__":
    target.run(main)
