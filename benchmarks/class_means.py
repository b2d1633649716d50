"""A classifier from images: for each class the mean of the unpruned model's normalised train features, normalised.

    python benchmarks/class_means.py --model ViT-B-16-quickgelu --pretrained CHECKPOINT.pt --dataset wds/caltech96 \\
      --dataset_root 'DATA/wds_{dataset_cleaned}' --split train --output caltech96.pt

For data sets whose class names nobody has encoded: the file goes to `--load_clfs`. It holds `[D, classes]`, float32.
`--part search` takes the images of one half alone (`held_out.py` deals them), so that the other can be measured on.
"""

from __future__ import annotations

import sys

import target
import torch
from held_out import half_of, subcommand
from torch.nn import functional as F

from anchorprune.commands import build_parser
from anchorprune.commands._requests import single_request
from anchorprune.datasets import open_dataset
from anchorprune.datasets.sampling import choose, loader
from anchorprune.evaluation.runtime import Runtime
from anchorprune.models import load


@torch.no_grad()
def main() -> None:
    parser = build_parser()
    subcommand(parser, "eval").add_argument(
        "--part", choices=["search", "held_out"], help="one half alone; both without it"
    )
    args = parser.parse_args(["eval", *sys.argv[1:]])
    request = single_request(args)
    data, compute, runtime = request.data, request.compute, Runtime.of(request.compute)
    loaded = load(request.model, runtime.device, runtime.weights, data.seed)
    dataset = open_dataset(data, loaded.transform)
    assert dataset.classes is not None
    sums = torch.zeros(len(dataset.classes), 0)
    part = half_of(dataset.keys, args.part) if args.part else range(len(dataset.keys))
    indices = [part[i] for i in choose([dataset.keys[i] for i in part], data.limit, data.seed)]
    for batch in loader(dataset, indices, batch_size=compute.batch_size, num_workers=compute.num_workers):
        with runtime.autocast():
            features = F.normalize(loaded.model.encode_image(batch.images.to(runtime.device)).float(), dim=-1).cpu()
        sums = sums if sums.shape[1] else torch.zeros(len(dataset.classes), features.shape[1])
        sums.index_add_(0, batch.targets, features)
    torch.save(F.normalize(sums, dim=1).T.contiguous(), args.output)
    print(f"{args.output}: {tuple(sums.T.shape)} from {len(indices)} images")


if __name__ == "__main__":
    target.run(main)
