"""Accuracy of the demonstration model, class by class, with all tokens and with tokens dropped at random.

    python tools/demo_model/accuracy.py --weights bundled/model.safetensors --photos src/anchorprune/bundled/photos

`--photos` is a folder in the webdataset layout; photographs of classes that `--classnames` does not list are skipped.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import material
import open_clip
import torch
from torch import Tensor
from train import CONFIG, NAME, PROMPTS, classifier, predict


def drop_at_random(visual: Any, keep: int, block: int, seed: int) -> Any:
    """Before `block` (counted from 1) keep CLS and `keep − 1` patches, the same for all photos; returns a handle."""
    generator = torch.Generator().manual_seed(seed)
    patches = visual.positional_embedding.shape[0] - 1
    chosen = torch.randperm(patches, generator=generator)[: keep - 1].sort().values + 1
    kept = torch.cat([torch.zeros(1, dtype=torch.long), chosen])

    def hook(module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0][:, kept], *inputs[1:])

    return visual.transformer.resblocks[block - 1].register_forward_pre_hook(hook)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True, help="folder with classnames.txt and test/")
    parser.add_argument("--classnames", type=Path, help="the classes to tell apart (default: all of --photos)")
    parser.add_argument("--keep", type=int, default=61, help="tokens kept when dropping")
    parser.add_argument("--block", type=int, default=2, help="drop before this block")
    parser.add_argument("--seeds", type=int, default=3, help="random choices of tokens to average over")
    args = parser.parse_args(arguments)

    open_clip.add_model_config(CONFIG)
    model, _, preprocess = open_clip.create_model_and_transforms(NAME, pretrained=str(args.weights))
    model.eval()
    tokenizer = open_clip.get_tokenizer(NAME)
    everything = material.read_classnames(args.photos)
    names = args.classnames.read_text().splitlines() if args.classnames else everything
    photos = material.read_split(args.photos, "test")
    photos = material.keep_classes(photos, [everything.index(name) for name in names], len(photos))
    labels = torch.tensor([photo.label for photo in photos])
    images = torch.stack([preprocess(photo.image()) for photo in photos])
    text = classifier(model, torch.stack([tokenizer([p.format(c=name) for name in names]) for p in PROMPTS]))

    right = predict(model, images, text) == labels
    recall = [float(right[labels == c].float().mean()) for c in range(len(names))]
    print("| class | photos | right | recall |\n|---|---|---|---|")
    for c, name in enumerate(names):
        print(f"| {name} | {int((labels == c).sum())} | {int(right[labels == c].sum())} | {recall[c]:.0%} |")
    print(f"{len(photos)} photos, {len(names)} classes, float32, {torch.get_num_threads()} threads")
    print(f"top-1 {right.float().mean():.2%}, mean recall {sum(recall) / len(recall):.2%}")
    for seed in range(args.seeds):
        handle = drop_at_random(model.visual, args.keep, args.block, seed)
        dropped = (predict(model, images, text) == labels).float().mean()
        handle.remove()
        print(f"top-1 {dropped:.2%} with {args.keep} tokens, kept at random (seed {seed}), from block {args.block} on")


if __name__ == "__main__":
    main()
