"""The memory and the time of retrieval's metrics: random features of many images and five times as many captions.

    python benchmarks/retrieval_memory.py
    python benchmarks/retrieval_memory.py --images 100000   # and 500,000 captions: a quarter of an hour on one core

Features of width 512 go through the task's own meter, batch by batch, as an evaluation hands them over. Target: the
whole process stays below 4 GB. clip-benchmark's matrix of similarities alone would take 200 GB for the second command.
"""

from __future__ import annotations

import argparse
import resource
import time

import target
import torch
from torch import Tensor
from torch.nn import functional as F

from anchorprune.datasets.sampling import Batch
from anchorprune.tasks.zeroshot_retrieval import Prepared, Recall

CAPTIONS = 5  # of each image, as in COCO and Flickr30k
BATCH = 1000


class RandomCaptions:
    """Features that resemble those of the image a little, in the place of a text tower's."""

    def __init__(self) -> None:
        self.images = torch.empty(0)

    def of(self, batch: Batch) -> Tensor:
        noise = torch.randn(len(self.images), CAPTIONS, self.images.shape[1]) / self.images.shape[1] ** 0.5
        return F.normalize(0.15 * self.images[:, None] + noise, dim=-1).flatten(0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--width", type=int, default=512)
    args = parser.parse_args()

    torch.manual_seed(0)
    captions = RandomCaptions()
    meter = Recall(Prepared(captions, (1, 5, 10), torch.device("cpu"), keep_scores=True))  # type: ignore[arg-type]
    for start in range(0, args.images, BATCH):
        indices = torch.arange(start, min(start + BATCH, args.images))
        captions.images = F.normalize(torch.randn(len(indices), args.width), dim=-1)
        texts = [[""] * CAPTIONS] * len(indices)
        meter.update(captions.images, Batch(None, texts, indices, [f"{i}.jpg" for i in indices.tolist()], []))
    begin = time.perf_counter()
    metrics = meter.compute()
    seconds = time.perf_counter() - begin
    outcomes = meter.scores()
    assert outcomes is not None
    assert len(outcomes.keys) == CAPTIONS * args.images

    multiplied = CAPTIONS * args.images**2 * args.width
    print(
        f"{args.images} images × {CAPTIONS * args.images} captions, width {args.width}, float32, cpu, "
        f"{torch.get_num_threads()} threads: {seconds:.0f} s, {multiplied / seconds / 1e9:.1f} GMACs/s"
    )
    print(", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # KiB, on Linux
    target.hold("peak memory of the process, GB", peak / 1e9, at_most=4)
    target.leave()


if __name__ == "__main__":
    main()
