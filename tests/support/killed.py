"""Encodes a folder in processes that are killed at random moments, until one comes to its end.

python killed.py FOLDER OUT SEED [I/N …] kills some; for each I/N one process works on OUT at the same time. Prints how
many were killed while they worked. OUT-whole is what one process writes that nobody kills.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time

import torch
from torchvision import transforms as T

import anchorprune
from anchorprune import Compute, EncodeRequest, LoadedModel, ModelSpec
from support.models import make_clip

torch.set_num_threads(1)
TRANSFORM = T.Compose([T.Resize(32), T.CenterCrop(32), T.ToTensor()])


def request(folder: str) -> EncodeRequest:
    return EncodeRequest(
        input=folder,
        model=ModelSpec(name="tiny"),
        compute=Compute(device="cpu", precision="fp32", batch_size=3, num_workers=1),
        rows_per_shard=5,
        keep_columns=("txt",),
    )


def start(folder: str, out: str, shard: tuple[int, int], model: LoadedModel) -> int:
    if child := os.fork():
        return child
    os.setpgid(0, 0)  # its workers are killed with it
    anchorprune.encode(request(folder), out, shard=shard, model=model)
    os._exit(0)


def main() -> None:
    folder, out, seed, *shards = sys.argv[1:]
    chance = random.Random(int(seed))
    model = LoadedModel(make_clip(), TRANSFORM)
    os.waitpid(start(folder, f"{out}-whole", (0, 1), model), 0)
    killed = 0
    waiting = [tuple(map(int, shard.split("/"))) for shard in shards] or [(0, 1)]
    while waiting:
        children = {start(folder, out, shard, model): shard for shard in waiting}
        # Longer and longer, so that it comes to an end on a slow machine too.
        time.sleep(chance.uniform(0.05, 0.5) * (1 + killed / 4))
        for child in children:
            if os.waitpid(child, os.WNOHANG) == (0, 0):
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                killed += 1
            else:
                waiting.remove(children[child])
    print(killed)


if __name__ == "__main__":
    main()
