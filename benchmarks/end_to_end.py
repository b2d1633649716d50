"""`anchorprune eval` against upstream's `clip_benchmark eval`: whole commands, in turns, on the bundled photos.

    python -m venv upstream
    upstream/bin/pip install clip-benchmark==1.6.2 'numpy<2.4' requests
    python benchmarks/end_to_end.py --upstream upstream/bin/clip_benchmark

ViT-B/32 with random weights written to a file, the 400 bundled photos, float32 (upstream's autocast is for CUDA alone),
equal batch size and workers, no cached classifier. Targets: unpruned at most upstream's time, and the same accuracy;
pruned by what the encoder saves (the time outside the encoder may be 1.1 times what it is unpruned).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import open_clip
import target
import torch

from anchorprune import bundled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream", required=True, help="upstream's clip_benchmark command")
    parser.add_argument("--model", default="ViT-B-32-quickgelu")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--num_workers", type=int, default=1, help="upstream takes no more than shards: 1")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        weights = Path(folder) / "weights.pt"
        torch.save(open_clip.create_model(args.model).state_dict(), weights)
        shared = ["--model", args.model, "--pretrained", str(weights), "--no_amp"]
        shared += ["--dataset", "wds/photos", "--dataset_root", str(bundled.PHOTOS)]
        shared += ["--batch_size", str(args.batch_size), "--num_workers", str(args.num_workers)]
        commands = {
            "upstream": [args.upstream, "eval", *shared],
            "unpruned": [sys.executable, "-m", "anchorprune", "eval", *shared, "--clf_cache", ""],
        }
        commands["pruned"] = [*commands["unpruned"], "--enable_pruning", "--strategy", "thin", "--keep_ratio", "0.3"]
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        encoding: dict[str, list[float]] = {name: [] for name in commands}
        results = {}
        for _ in range(args.repeats):
            for name, command in commands.items():
                output = Path(folder) / f"{name}.json"
                start = time.perf_counter()
                subprocess.run([*command, "--output", str(output)], check=True, capture_output=True, cwd=folder)
                seconds[name].append(time.perf_counter() - start)
                results[name] = json.loads(output.read_text())
                encoding[name].append(results[name].get("cost", {}).get("seconds", {}).get("encoding", 0.0))
                print(f"{name}: {seconds[name][-1]:.1f} s", flush=True)

    def ratio(a: str, b: str) -> float:
        return statistics.median(x / y for x, y in zip(seconds[a], seconds[b], strict=True))

    target.hold("unpruned over upstream, wall time", ratio("unpruned", "upstream"), at_most=1)
    drift = abs(results["unpruned"]["metrics"]["acc1"] - results["upstream"]["metrics"]["acc1"])
    target.hold("difference in acc1", drift, at_most=0.0026)  # one of 400 photos: other batches, other rounding
    pairs = list(
        zip(*(zip(seconds[name], encoding[name], strict=True) for name in ("pruned", "unpruned")), strict=True)
    )
    outside = statistics.median((wall - own) / (wall0 - own0) for (wall, own), (wall0, own0) in pairs)
    spent = {name: statistics.median(encoding[name]) for name in ("unpruned", "pruned")}
    print(f"encoding {spent['unpruned']:.1f} s unpruned, {spent['pruned']:.1f} s pruned")
    target.hold("time outside the encoder, pruned over unpruned", outside, at_most=1.1)
    target.leave()


if __name__ == "__main__":
    main()
