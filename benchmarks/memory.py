"""Whether memory grows with the images: the peak of eval, sweep and encode at 400, 4,000 and 40,000 of them.

    python benchmarks/memory.py
    python benchmarks/memory.py --images 400 4000      # two minutes less

Each command runs in a process of its own, on a tiny model with random weights and links to a few small images, on the
CPU with one thread and no worker processes; what is told is the most that was resident. Targets: 5 % between the fewest
images and the most, and of `--save_outcomes` 32 bytes an image, in its file and to write it (which is less than what is
resident varies by, so that it is what Python and NumPy say that they allocate). `sweep` keeps outcomes of every way, so
they are subtracted.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import target

NAME = "memory-tiny"
CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 4, "head_width": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
CLASSES = 4
WAYS = ("coarse --keep_patches 4", "tome --r 2")
OUTCOMES = 32  # bytes an image
MODEL = ["--model", NAME, "--pretrained", "tiny.pt", "--no_amp", "--device", "cpu", "--num_workers", "0", "--quiet"]


def commands(images: int) -> dict[str, list[str]]:
    """`{out}`: the folder, or the name, of what is written."""
    data = ["--dataset", f"folder:{images}", "--batch_size", "100"]
    return {
        "eval": ["eval", *MODEL, *data, "--output", "{out}.json"],
        "eval --save_outcomes": ["eval", *MODEL, *data, "--output", "{out}.json", "--save_outcomes"],
        "sweep": ["sweep", *MODEL, *data, "--out", "{out}", "--strategies", *WAYS],
        "encode": ["encode", *MODEL, "--batch_size", "100", "--input", str(images), "--out", "{out}"],
    }


def prepare(folder: Path, counts: list[int]) -> None:
    import open_clip
    import torch
    from PIL import Image

    (folder / f"{NAME}.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(folder / f"{NAME}.json")
    torch.manual_seed(0)
    torch.save(open_clip.create_model(NAME).state_dict(), folder / "tiny.pt")
    pixels = np.random.default_rng(0)
    for i in range(100):
        Image.fromarray(pixels.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    for count in counts:
        for label in range(CLASSES):
            (folder / str(count) / f"thing {label}").mkdir(parents=True)
        for i in range(count):
            place = folder / str(count) / f"thing {i % CLASSES}" / f"{i:08d}.png"
            os.symlink(folder / f"{i % 100}.png", place)


def run(argv: list[str]) -> int:
    """The command in this process; prints the most that was resident, in bytes."""
    import open_clip
    import torch

    from anchorprune.commands import main as anchorprune

    torch.set_num_threads(1)
    open_clip.add_model_config(Path(f"{NAME}.json"))
    code = anchorprune(argv)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)  # KiB, on Linux
    return code


def peak(argv: list[str], folder: Path) -> int:
    one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    words = [sys.executable, str(Path(__file__).resolve()), "--run", *argv]
    done = subprocess.run(words, cwd=folder, env={**os.environ, **one}, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout.split()[-1])


def to_write(images: int) -> float:
    """The most that is allocated beside the outcomes while their file is made, in bytes an image."""
    from anchorprune.evaluation import outcomes
    from anchorprune.tasks.base import Outcomes

    keys = tuple(f"thing {i % CLASSES}/{i:08d}.png" for i in range(images))
    labels = np.arange(images) % CLASSES
    found = Outcomes.of_classes(keys, labels, labels)
    tracemalloc.start()
    outcomes.as_bytes(found)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most / images


def main() -> None:
    if sys.argv[1:2] == ["--run"]:
        sys.exit(run(sys.argv[2:]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[400, 4_000, 40_000])
    args = parser.parse_args()
    counts = sorted(args.images)
    with tempfile.TemporaryDirectory(prefix="anchorprune-memory-") as name:
        folder = Path(name)
        prepare(folder, counts)
        peaks: dict[str, list[int]] = {}
        for count in counts:
            for i, (command, argv) in enumerate(commands(count).items()):
                found = peak([word.replace("{out}", f"out-{count}-{i}") for word in argv], folder)
                peaks.setdefault(command, []).append(found)
                print(f"{command}, {count:,} images: {found / 2**20:.0f} MiB", flush=True)
        outcomes = (folder / f"out-{counts[-1]}-1.outcomes.npz").stat().st_size
    more = counts[-1] - counts[0]
    kept = {"sweep": OUTCOMES * more * (1 + len(WAYS))}
    for command in ("eval", "sweep", "encode"):
        first, last = peaks[command][0], peaks[command][-1] - kept.get(command, 0)
        target.hold(
            f"{command}: memory of {counts[-1]:,} images over that of {counts[0]:,}", last / first, at_most=1.05
        )
    target.hold("outcomes: bytes an image, in their file", outcomes / counts[-1], at_most=OUTCOMES)
    target.hold("outcomes: bytes an image, allocated to write them", to_write(counts[-1]), at_most=OUTCOMES)
    target.leave()


if __name__ == "__main__":
    main()
