"""The same weights give the same kept tokens and features on every release of open_clip that is supported.

    python benchmarks/open_clip_versions.py [--pretrained CHECKPOINT.pt] [--checkout FOLDER]

Each release is installed without its dependencies into a folder of its own and run in a process of its own; all share
this environment's torch. `--checkout` compares a clone of its repository too. Exits with 1 when a release
disagrees. Needs a package index.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

RELEASES = ("2.24.0", "2.26.1", "current")
TOLERANCE = 1e-4  # of features of length 1; attention kernels round differently for the two layouts


def encode(model_name: str, checkpoint: str, out: str) -> None:
    """In the child process: features and kept tokens of seeded images, for the settings below."""
    import open_clip.version

    import anchorprune

    model = open_clip.create_model(model_name, pretrained=checkpoint).eval()
    images = torch.randn(4, 3, *model.visual.image_size, generator=torch.Generator().manual_seed(1))
    found = {}
    with torch.no_grad():
        found["unpruned"] = (torch.nn.functional.normalize(model.encode_image(images), dim=-1), torch.zeros(0))
        for name, fields in {
            "anchor": {},
            "anchor, minmax, from_anchors": {"score_norm": "minmax", "importance": "from_anchors"},
            "anchor, block 6": {"prune_layer": 6},
            "coarse": {"strategy": "coarse"},
            "tome": {"strategy": "tome"},
        }.items():
            with anchorprune.prune(model, **{"strategy": "anchor", **fields}) as pruning:
                found[name] = (torch.nn.functional.normalize(model.encode_image(images), dim=-1), pruning.kept)
    batch_first = getattr(model.visual.transformer.resblocks[0].attn, "batch_first", True)
    torch.save({"found": found, "version": open_clip.version.__version__, "batch_first": batch_first}, out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-16-quickgelu")
    parser.add_argument("--pretrained", default=None, help="a checkpoint (.pt); random weights if left out")
    parser.add_argument("--checkout", default=None, help="a folder with src/open_clip in it")
    parser.add_argument("--encode", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.encode:
        encode(*args.encode)
        return 0

    releases = (*RELEASES, args.checkout) if args.checkout else RELEASES
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = args.pretrained
        if checkpoint is None:
            import open_clip

            checkpoint = f"{folder}/random.pt"
            torch.manual_seed(0)
            torch.save(open_clip.create_model(args.model).state_dict(), checkpoint)
        results = {release: run(release, args.model, os.path.abspath(checkpoint), folder) for release in releases}

    reference, failed = results["current"], False
    for result in results.values():
        layout = "batch-first" if result["batch_first"] else "tokens-first"
        print(f"open_clip {result['version']} ({layout})")
        for name, (features, kept) in result["found"].items():
            expected, expected_kept = reference["found"][name]
            difference, same = (features - expected).abs().max().item(), torch.equal(kept, expected_kept)
            ok = same and difference <= TOLERANCE
            failed |= not ok
            print(f"  {name:30} kept tokens {'equal' if same else 'DIFFER'}, features differ by {difference:.1e}")
    return int(failed)


def run(release: str, model: str, checkpoint: str, folder: str) -> dict:
    """`encode` in a process that imports this release of open_clip."""
    environment = dict(os.environ)
    if os.path.isdir(release):
        environment["PYTHONPATH"] = os.path.join(os.path.abspath(release), "src")
    elif release != "current":
        target = f"{folder}/{release}"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target]
        subprocess.run([*pip, f"open_clip_torch=={release}"], check=True, stderr=subprocess.DEVNULL)
        environment["PYTHONPATH"] = target
    out = f"{folder}/{os.path.basename(release)}.pt"
    subprocess.run(
        [sys.executable, "-W", "ignore", str(Path(__file__).resolve()), "--encode", model, checkpoint, out],
        check=True,
        env=environment,
    )
    return torch.load(out, weights_only=True)


if __name__ == "__main__":
    sys.exit(main())
