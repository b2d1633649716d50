"""The zero-shot classifier of 50 classes × 80 prompts: clip-benchmark's own function against ours, on one model.

    python benchmarks/classifier_speed.py --model ViT-B-16-quickgelu

ImageNet's first 50 classes and its prompts, float32, random weights (the time depends on none). Targets: at least 3
times as fast, equal within 1e-5. Needs clip-benchmark, as the tests do.
"""

from __future__ import annotations

import argparse
import importlib.resources
import json
import statistics
import time
from collections.abc import Callable

import open_clip
import target
import torch
from clip_benchmark.metrics.zeroshot_classification import zero_shot_classifier
from torch import Tensor

from anchorprune.tasks.zeroshot_classification import build_classifier


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-16-quickgelu")
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = open_clip.create_model(args.model, device=device).eval()
    tokenizer = open_clip.get_tokenizer(args.model)
    folder = importlib.resources.files("clip_benchmark") / "datasets"
    classes = json.loads((folder / "en_classnames.json").read_text())["imagenet1k"][: args.classes]
    prompts = json.loads((folder / "en_zeroshot_classification_templates.json").read_text())["imagenet1k"]

    def upstream() -> Tensor:
        return zero_shot_classifier(model, tokenizer, classes, prompts, device.type, amp=False)

    def ours() -> Tensor:
        return build_classifier(model, tokenizer, classes, prompts, device)

    print(
        f"{args.model}, {device}, {torch.get_num_threads()} threads, float32, {len(classes)} × {len(prompts)} prompts"
    )
    ratios, difference = [], 0.0
    for _ in range(args.repeats):
        (theirs, slow), (own, fast) = timed(upstream), timed(ours)
        ratios.append(slow / fast)
        difference = max(difference, float((theirs.float() - own).abs().max()))
        print(f"{slow:.1f} s upstream, {fast:.1f} s ours", flush=True)
    target.hold("times as fast as clip-benchmark", statistics.median(ratios), at_least=3)
    target.hold("largest difference, in 1e-5", difference / 1e-5, at_most=1)
    target.leave()


def timed(build: Callable[[], Tensor]) -> tuple[Tensor, float]:
    start = time.perf_counter()
    built = build().cpu()
    return built, time.perf_counter() - start


if __name__ == "__main__":
    main()
