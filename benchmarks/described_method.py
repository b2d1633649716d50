"""The described method against no pruning and random selection on a real CLIP: the first table of docs/results.md.

    python benchmarks/described_method.py --model ViT-B-16-quickgelu --pretrained CHECKPOINT.pt \\
        --dataset wds/NAME --dataset_root DATA --load_clfs CLASSIFIER.pt --limit 2000 --out results/

Every row is one `anchorprune eval`; flags that this script does not know go to all of them. Rows whose result is
in --out already are not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

from anchorprune.commands import main as anchorprune

DESCRIBED = ["--enable_pruning", "--k_anchors", "10", "--top_m", "50", "--alpha", "0.5"]
BETTER = ["--score_norm", "minmax", "--importance", "from_anchors"]
RANDOM = ["--enable_pruning", "--strategy", "random", "--keep_patches", "60"]
ROWS: list[tuple[str, str, list[str]]] = [
    ("unpruned", "no pruning", []),
    ("anchor", "the described defaults", DESCRIBED),
    ("anchor_minmax_from", "`--score_norm minmax --importance from_anchors`", [*DESCRIBED, *BETTER]),
    ("anchor_block6", "`--prune_layer 6`", [*DESCRIBED, "--prune_layer", "6"]),
    (
        "anchor_minmax_from_block6",
        "`--score_norm minmax --importance from_anchors --prune_layer 6`",
        [*DESCRIBED, *BETTER, "--prune_layer", "6"],
    ),
    *[(f"random_{seed}", "random", [*RANDOM, "--draw_seed", str(seed)]) for seed in range(3)],
    ("random_block6_0", "random, `--prune_layers 6` (one draw)", [*RANDOM, "--prune_layers", "6"]),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    args, flags = parser.parse_known_args()
    args.out.mkdir(parents=True, exist_ok=True)

    by_name: dict[str, list[dict]] = {}
    for file, name, pruning in ROWS:
        path = args.out / f"{file}.json"
        code = anchorprune(["eval", *flags, *pruning, "--output", str(path), "--skip_existing"])
        if code:
            return code
        by_name.setdefault(name, []).append(json.loads(path.read_text()))

    print("| pruning | tokens | GMACs | acc1, % | images |")
    print("|---|---|---|---|---|")
    for name, results in by_name.items():
        accuracies = [100 * result["metrics"]["acc1"] for result in results]
        mean, n = sum(accuracies) / len(accuracies), results[0]["n_samples"]
        margin = 196 * math.sqrt(mean / 100 * (1 - mean / 100) / n)
        tokens = (results[0]["pruning"] or {}).get("measured", {}).get("tokens_after", "all")
        label = name if len(results) == 1 else f"{name} (mean of {len(results)} draws)"
        print(f"| {label} | {tokens} | {results[0]['cost']['gmacs']:.1f} | {mean:.1f} ± {margin:.1f} | {n:,} |")
    where = results[0]["environment"]
    print(f"\n{where['device_name']} ({where['device']}, {where['threads']} threads), {where['dtype']}, ", end="")
    print(f"batch {results[0]['batch_size']}, torch {where['torch']}, open_clip {where['open_clip']}; ± is 95 %.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
