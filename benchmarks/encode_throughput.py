"""`anchorprune encode` end to end against decoding alone and encoding alone, and against clip-retrieval's inference.

    python benchmarks/encode_throughput.py --num_workers 1 --threads 1
    python benchmarks/encode_throughput.py --num_workers 1 --encoder_ms 40
    python -m venv upstream && upstream/bin/pip install clip-retrieval     # Python 3.10
    python benchmarks/encode_throughput.py --upstream upstream/bin/clip-retrieval --num_workers 1 --threads 1

The bundled photos, or those in a folder, in alternating repeats. Target: at least 0.95 of the slower of the two alone;
decoding and encoding must have processors of their own for that (workers + threads ≤ processors). `--encoder_ms` puts
an encoder in the place of the model that takes so long for each image and leaves the processors alone, as a GPU does.
Of few batches the first, which nothing overlaps with, is a large part: take many images. clip-retrieval
encodes the same files with the same weights (random ones, written to a file) in float32, as it does on a CPU; whole
processes are timed, from the command to its end, and the embeddings compared.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import open_clip
import target
import torch

import anchorprune
from anchorprune import Compute, EncodeRequest, ModelSpec, bundled
from anchorprune.datasets.workers import in_batches
from anchorprune.embeddings.inputs import open_input
from anchorprune.embeddings.loading import Reader
from anchorprune.embeddings.tower import PrunedTower
from anchorprune.evaluation.runtime import Runtime
from anchorprune.models import load
from anchorprune.strategies import make_strategy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", help="folder (default: the bundled photos)")
    parser.add_argument("--model", default="ViT-B-32-quickgelu")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--strategy", help="name; its default budget")
    parser.add_argument("--fast_decode", action="store_true")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--num_workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--encoder_ms", type=float, help="an encoder that waits so long for each image")
    parser.add_argument("--upstream", help="clip-retrieval's command")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    with tempfile.TemporaryDirectory() as folder:
        images = Path(args.images) if args.images else extracted(Path(folder) / "photos")
        weights = Path(folder) / "weights.pt"
        torch.manual_seed(0)
        torch.save(open_clip.create_model(args.model).state_dict(), weights)
        request = EncodeRequest(
            input=str(images),
            model=ModelSpec(name=args.model, pretrained=str(weights)),
            pruning=make_strategy(args.strategy) if args.strategy else None,
            fast_decode=args.fast_decode,
            compute=Compute(precision=args.precision, batch_size=args.batch_size, num_workers=args.num_workers),
            format="npy",
        )
        alone(request, folder, args.repeats, args.encoder_ms)
        if args.upstream:
            against_upstream(request, folder, args)
    target.leave()


def extracted(folder: Path) -> Path:
    for tar in bundled.PHOTOS.glob("test/*.tar"):
        with tarfile.open(tar) as archive:
            archive.extractall(folder, [m for m in archive if m.name.endswith(".jpg")], filter="data")
    return folder


class Waiting(torch.nn.Module):
    """An image tower that takes its time on another device."""

    def __init__(self, milliseconds: float) -> None:
        super().__init__()
        self.milliseconds, self.weight = milliseconds, torch.nn.Parameter(torch.ones(1))

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        time.sleep(len(images) * self.milliseconds / 1000)
        return images[:, :, 0, :100].flatten(1) + 1


def alone(request: EncodeRequest, folder: str, repeats: int, encoder_ms: float | None) -> None:
    """Decoding, encoding and both, in turns."""
    runtime = Runtime.of(request.compute)
    model = load(request.model, runtime.device, runtime.weights)
    if encoder_ms:
        model.model = Waiting(encoder_ms)
    listing = open_input(request)
    size = request.compute.batch_size
    found: dict[str, list[float]] = {"decoding": [], "encoding": [], "end to end": []}
    for repeat in range(repeats):
        tower = PrunedTower(model, request, runtime, pruning=request.pruning, fast_decode=request.fast_decode)
        reader = Reader(listing, tower.transform, least=tower.least)
        batches = [range(i, min(i + size, len(listing))) for i in range(0, len(listing), size)]
        start = time.perf_counter()
        read = list(in_batches(reader, batches, num_workers=request.compute.num_workers))
        found["decoding"].append(len(listing) / (time.perf_counter() - start))
        start = time.perf_counter()
        for _ in tower.encode(iter(read)):
            pass
        found["encoding"].append(len(listing) / (time.perf_counter() - start))
        tower.restore()
        summary = anchorprune.encode(request, Path(folder) / f"out{repeat}", model=model)
        found["end to end"].append(summary["images_per_second"])
        print("images/s:", ", ".join(f"{name} {rates[-1]:.1f}" for name, rates in found.items()), flush=True)
    print(f"{len(listing)} images, {runtime.device}, {runtime.dtype}, {torch.get_num_threads()} threads,", end=" ")
    print(f"{request.compute.num_workers} workers, {os.cpu_count()} processors")
    ratios = [both / min(d, e) for d, e, both in zip(*found.values(), strict=True)]
    target.hold("end to end over the slower of the two alone", statistics.median(ratios), at_least=0.95)


def against_upstream(request: EncodeRequest, folder: str, args: argparse.Namespace) -> None:
    """Whole processes, in turns."""
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads), "WANDB_MODE": "disabled"}
    weights, source = request.model.pretrained, request.input[0]
    own = [sys.executable, "-m", "anchorprune", "encode", "--input", source, "--model", args.model, "--no_amp"]
    own += ["--pretrained", weights, "--format", "npy", "--num_workers", str(args.num_workers)]
    own += ["--batch_size", str(args.batch_size), "--out"]
    theirs = [args.upstream, "inference", f"--input_dataset={source}", f"--clip_model=open_clip:{args.model}/{weights}"]
    theirs += ["--enable_text=False", f"--batch_size={args.batch_size}", f"--num_prepro_workers={args.num_workers}"]
    theirs += ["--use_jit=False"]
    seconds: dict[str, list[float]] = {"anchorprune": [], "clip-retrieval": []}
    for repeat in range(args.repeats):
        for name in seconds if repeat % 2 == 0 else reversed(seconds):
            out = f"{folder}/{name}{repeat}"
            command = [*own, out] if name == "anchorprune" else [*theirs, f"--output_folder={out}"]
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True, env=environment)
            seconds[name].append(time.perf_counter() - start)
            print(f"{name}: {seconds[name][-1]:.1f} s", flush=True)
    ours, upstream = (np.load(f"{folder}/{name}0/img_emb/img_emb_0.npy").astype(np.float32) for name in seconds)
    print(f"least cosine of the two embeddings of an image: {(ours * upstream).sum(axis=1).min():.6f}")
    ratio = statistics.median(a / b for a, b in zip(*seconds.values(), strict=True))
    target.hold("whole command, time over clip-retrieval's", ratio, at_most=1)


if __name__ == "__main__":
    target.run(main)
