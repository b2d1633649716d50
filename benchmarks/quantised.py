"""int8 and pruning, each alone and both together: accuracy and time of exported files.

    python benchmarks/quantised.py
    python benchmarks/quantised.py --model ViT-B-16-quickgelu --pretrained CHECKPOINT.pt --dataset wds/cifar8 \\
      --dataset_root 'DATA/wds_{dataset_cleaned}' --load_clfs cifar8.pt --limit 200

ONNX Runtime: matrices in int8 for each channel, activations quantised as they come (`quantize_dynamic`). OpenVINO,
where it is installed, runs the same two files. Times: the median of rounds in which all files take turns; the speed-ups
are medians of the rounds' ratios, over the first row.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import target
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process
from resized_once import add_flags, encode, labelled, preprocessed

from anchorprune import Coarse, ModelSpec, export, prune
from anchorprune.models import load
from anchorprune.pruning.cost import time_in_turns
from anchorprune.pruning.export import runner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_flags(parser)
    parser.add_argument("--keep_ratio", type=float, nargs="+", default=[0.5])
    parser.add_argument("--timed", type=int, default=8, help="images of a batch that is timed")
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    loaded = load(ModelSpec(name=args.model, pretrained=args.pretrained), torch.device("cpu"), "fp32")
    pictures, labels, classifier = labelled(args, loaded)
    print(
        f"{args.model}, {len(pictures)} images, batch {args.timed} timed, {args.repeats} alternating repeats, "
        f"{torch.get_num_threads()} threads\n"
    )
    rows: list[tuple[str, str, Any, Any, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        for strategy in (None, *(Coarse(keep_ratio=(ratio,)) for ratio in args.keep_ratio)):
            path = Path(folder) / f"{len(rows)}.onnx"
            export(loaded, strategy, path, check_images=0, speed=False)
            transform = loaded.transform
            if strategy:
                with prune(loaded.model, strategy, small_images=True) as pruning:
                    transform = pruning.transform(transform)
            images, _ = preprocessed(pictures, transform)
            small = path.with_suffix(".int8.onnx")
            quant_pre_process(str(path), str(small), skip_symbolic_shape=True)
            quantize_dynamic(str(small), str(small), weight_type=QuantType.QInt8, per_channel=True)
            name = f"coarse {strategy.flags()}" if strategy else "unpruned"
            for kind, file in (("float32", path), ("int8", small)):
                rows.append((name, f"ONNX Runtime, {kind}", runner(file, "onnx"), images, os.path.getsize(file) / 1e6))
                if (run := openvino_runner(file)) is not None:
                    rows.append((name, f"OpenVINO, {kind} file", run, images, os.path.getsize(file) / 1e6))
        works = [partial(run, images[: args.timed]) for _, _, run, images, _ in rows]
        for work in works:
            work()
        seconds = time_in_turns(works, torch.device("cpu"), args.repeats)
        first = None
        print("| pruning | runtime | MB | top-1 | other answers | cosine | ms | speed-up |")
        print("|---|---|---:|---:|---:|---:|---:|---:|")
        for (name, kind, run, images, size), own in zip(rows, seconds, strict=True):
            features = encode(run, images, args.batch_size)
            first = features if first is None else first
            answers, dense = (features @ classifier).argmax(1), (first @ classifier).argmax(1)
            print(
                f"| {name} | {kind} | {size:.1f} | {100 * (answers == labels).float().mean():.2f} % | "
                f"{int((answers != dense).sum())} | {(features * first).sum(1).mean():.4f} | "
                f"{1000 * statistics.median(own):.1f} | "
                f"{statistics.median(a / b for a, b in zip(seconds[0], own, strict=True)):.2f} × |",
                flush=True,
            )


def openvino_runner(path: Path) -> Any:
    """What runs a file in OpenVINO, in float32 where the file has that; None where it is not installed."""
    try:
        import openvino
    except ImportError:
        return None
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(str(path), "CPU", options)
    return lambda batch: torch.from_numpy(compiled([batch.numpy()])[0])


if __name__ == "__main__":
    target.run(main)
