"""Would it help to give each image a budget of its own? Gates without labels, and one that knows the answer.

    python benchmarks/adaptive.py --images FOLDER --model ViT-B-16-quickgelu --pretrained CHECKPOINT.pt

Each picture of a folder and a mirrored crop of it (those of `--task fidelity`) are encoded unpruned and by `--strategy`
at each of `--target_gmacs`. Then, for pairs of budgets and the mean of a third, a gate says which share of the images
gets the larger of the pair, so that the mean cost is that of the third for all:

    detail       what an image loses in its pixels when it is shrunk to a 10 × 10 grid and back
    disagreement the cosine between the image's features at the two smallest budgets (whose cost is not counted)
    random       no matter which
    oracle       what the smaller budget really loses against the larger: no gate can know it

With `--aligned` all features are aligned as `anchorprune calibrate` does it, fitted to the other half of the pictures.
Prints recall@1 with both sides pruned, the mean cosine to the unpruned feature, and how each gate goes together with
the oracle's (correlation).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import combinations

import target
import torch
from torch import Tensor
from torch.nn import functional as F

from anchorprune import Compute, DataSpec, ModelSpec, prune
from anchorprune.alignment import fit
from anchorprune.datasets import open_dataset
from anchorprune.datasets.sampling import choose, loader
from anchorprune.evaluation.runtime import Runtime
from anchorprune.models import load
from anchorprune.pruning.budget import solve
from anchorprune.pruning.cost import image_tower_flops
from anchorprune.pruning.grid import shrink
from anchorprune.strategies import parse
from anchorprune.tasks.fidelity import Fidelity, nearer

GRID = 10  # of the gate by detail


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--pretrained", required=True)
    parser.add_argument(
        "--strategy", metavar="SPEC", default="coarse", help="with flags, in quotes: 'coarse --late_share 1'"
    )
    parser.add_argument("--target_gmacs", type=float, nargs="+", default=[8.8, 7.0, 5.3, 4.0])
    parser.add_argument("--precision", default="amp")
    parser.add_argument("--aligned", action="store_true")
    parser.add_argument("--limit", type=int)
    args = parser.parse_args()

    features, detail = encoded(args)
    costs = sorted(features)
    unpruned = features[costs[-1]]
    if args.aligned:
        features = {cost: aligned(of, unpruned) if cost != costs[-1] else of for cost, of in features.items()}
    print(f"{len(unpruned) // 2} pictures\n\n{'GMACs':>6}  {'recall@1, both':>14}  {'cosine':>7}")
    for cost in costs:
        print(f"{cost:>6.2f}  {said(features[cost], unpruned)}")
    disagreement = 1 - (features[costs[0]] * features[costs[1]]).sum(dim=1)
    print(
        f"\n{'mean':>6}  {'of':>13}  {'gate':<12}  {'recall@1, both':>14}  {'cosine':>7}  correlation with the oracle"
    )
    for mean in costs[1:-2]:
        for low, high in combinations(costs, 2):
            if low < mean < high:
                lost = ((features[high] - features[low]) * unpruned).sum(dim=1)
                noise = torch.rand(len(lost), generator=torch.Generator().manual_seed(0))
                gates = {"random": noise, "detail": detail, "disagreement": disagreement, "oracle": lost}
                for name, gate in gates.items():
                    share = (mean - low) / (high - low)
                    chosen = gate.argsort(descending=True)[: round(share * len(gate))]
                    mixed = features[low].clone()
                    mixed[chosen] = features[high][chosen]
                    together = float(torch.corrcoef(torch.stack([gate, lost]))[0, 1])
                    of = f"{low:.2f}, {high:.2f}"
                    print(f"{mean:>6.2f}  {of:>13}  {name:<12}  {said(mixed, unpruned)}  {together:.2f}")


@torch.no_grad()
def encoded(args: argparse.Namespace) -> tuple[dict[float, Tensor], Tensor]:
    """Features `[2n, D]` by GMACs, each picture's and then its other view's; and what each loses in its pixels."""
    runtime = Runtime.of(Compute(precision=args.precision))
    loaded = load(ModelSpec(name=args.model, pretrained=args.pretrained), runtime.device, runtime.weights)
    strategy = parse(args.strategy).strategy
    ways = {target: solve(loaded.model, strategy, target) for target in args.target_gmacs}
    dense = image_tower_flops(loaded.model) / 2e9
    found: dict[float, list[Tensor]] = {cost: [] for cost in [*ways, dense]}
    detail = []
    for images in batches(args, loaded.transform):
        detail.append(pixels_lost(images))
        images = images.to(runtime.device, runtime.images)
        for cost, features in found.items():
            with runtime.autocast():
                if cost in ways:
                    with prune(loaded.model, ways[cost]):
                        out = loaded.model.encode_image(images)
                else:
                    out = loaded.model.encode_image(images)
            features.append(F.normalize(out.float(), dim=-1).cpu())
    return {cost: torch.cat(features) for cost, features in found.items()}, torch.cat(detail)


def batches(args: argparse.Namespace, transform: object) -> Iterator[Tensor]:
    task = Fidelity()
    data = open_dataset(DataSpec(name=f"folder:{args.images}"), task.transform(transform), task.name)
    chosen = choose(data.keys, args.limit, 0)
    for batch in loader(data, chosen, batch_size=16, num_workers=0):
        if batch.images is not None:
            yield batch.images.flatten(0, 1)


def pixels_lost(images: Tensor) -> Tensor:
    size = images.shape[-1] // 14 * GRID  # of the 14 × 14 patches of a ViT-B/16
    back = F.interpolate(shrink(images, size, size), size=images.shape[-2:], mode="bicubic", align_corners=False)
    return (back - images).square().mean(dim=(1, 2, 3))


def aligned(features: Tensor, unpruned: Tensor) -> Tensor:
    half = torch.arange(len(features)) // 2 % 2
    out = torch.empty_like(features)
    for part in (0, 1):
        alignment = fit(features[half != part], unpruned[half != part]).alignment
        out[half == part] = F.normalize(alignment(features[half == part]), dim=-1)
    return out


def said(features: Tensor, unpruned: Tensor) -> str:
    recall = float((nearer(features[1::2], features[::2]) < 1).double().mean())
    return f"{recall:>14.4f}  {float((features * unpruned).sum(dim=1).mean()):>7.4f}"


if __name__ == "__main__":
    target.run(main)
