"""What may stand in for CLS attention (`--cls_substitute`): a CLIP without its CLS token, pruned by either substitute.

    python benchmarks/without_cls.py --model ViT-B-16-quickgelu --pretrained CHECKPOINT.pt \\
      --dataset wds/caltech96 wds/cifar8 --load_clfs caltech96.pt cifar8.pt --limit 400 \\
      --fit_on wds/caltech96 --dataset_root 'DATA/wds_{dataset_cleaned}'

The tower is built as SigLIP's is: timm's `VisionTransformer`, no CLS token, a head whose query pools the patches. Its
blocks are those of an open_clip model, unchanged; only the head is fitted, on images without their labels, to give the
features that the model gives with its CLS token. One classifier a data set; takes the flags of `anchorprune eval`.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import target
import timm
import torch
from held_out import subcommand
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor
from torch.nn import functional as F

from anchorprune.commands import build_parser
from anchorprune.commands._requests import requests_of
from anchorprune.datasets import dataset_root, open_dataset
from anchorprune.datasets.sampling import choose, loader
from anchorprune.evaluation import statistics
from anchorprune.evaluation.engine import evaluate
from anchorprune.evaluation.request import Compute, Request
from anchorprune.evaluation.result import Result
from anchorprune.evaluation.runtime import Runtime
from anchorprune.models import load
from anchorprune.strategies import make_strategy
from anchorprune.tasks import make_task

# Each in three blocks, down to 60 patches: title, name, the field that says in which block, other fields.
STRATEGIES: list[tuple[str, str, str, dict[str, Any]]] = [
    ("`anchor`", "anchor", "prune_layer", {}),
    ("`anchor`, minmax, from_anchors", "anchor", "prune_layer", {"score_norm": "minmax", "importance": "from_anchors"}),
    ("`cls_attention`", "cls_attention", "prune_layers", {"keep_patches": 60}),
    ("`evit`", "evit", "prune_layers", {"keep_patches": 60}),
]
LAYERS = (2, 6, 8)


def main() -> None:
    parser = build_parser()
    parse_eval = subcommand(parser, "eval")
    parse_eval.add_argument("--tower", default="vit_base_patch16_clip_quickgelu_224", help="the model's name in timm")
    parse_eval.add_argument("--fit_on", required=True, help="data set whose images the head is fitted on")
    parse_eval.add_argument("--fit_split", default="train")
    parse_eval.add_argument("--fit_images", type=int, default=2000)
    parse_eval.add_argument("--fit_epochs", type=int, default=8)
    args = parser.parse_args(["eval", *sys.argv[1:]])
    requests = requests_of(args)
    compute, runtime = requests[0].compute, Runtime.of(requests[0].compute)
    loaded = load(requests[0].model, runtime.device, runtime.weights, args.seed)
    ways = [
        make_strategy(name, **{**fields, where: block, "cls_substitute": by})
        for _, name, where, fields in STRATEGIES
        for block in LAYERS
        for by in ("received", "pool_query")
    ]

    root = dataset_root(args.dataset_root, args.fit_on)
    spec = dataclasses.replace(requests[0].data, name=args.fit_on, root=root, split=args.fit_split)
    images = open_dataset(spec, loaded.transform)
    torch.manual_seed(args.seed)
    clip, tower = loaded.model.visual, without_cls(args.tower, loaded.model.visual).to(runtime.device)
    tokens = cached(tower, clip, images, args.fit_images, args.seed, compute, runtime)
    cosine = fit(tower, *tokens, args.fit_epochs, args.seed, runtime)
    print(f"cosine to the features with CLS, on images that the head was not fitted on: {cosine:.3f}", flush=True)

    head, rows = "| strategy | block |", [f"| {one[0]} | {block} |" for one in STRATEGIES for block in LAYERS]
    for asked, classifier in zip(requests, args.load_clfs, strict=True):
        request: Request = dataclasses.replace(asked, task=make_task(asked.task.name, load_clfs=(classifier,)))
        loaded.model.visual = clip
        with_cls = evaluate(request, model=loaded)
        loaded.model.visual = tower
        all_ways = [dataclasses.replace(request, pruning=way) for way in [None, *ways]]
        unpruned, *found = evaluate(all_ways, model=loaded, keep_scores=True)
        print(f"{request.data.name}, {unpruned.n_samples} images, unpruned: {top(with_cls)} with CLS, ", end="")
        print(f"{top(unpruned)} without", flush=True)
        head += f" {request.data.name}, received | pool_query | difference |"
        for i, (received, pool_query) in enumerate(zip(found[::2], found[1::2], strict=True)):
            by = statistics.difference(received.outcomes.scores, pool_query.outcomes.scores)
            difference = f"{100 * by.value:+.1f} ({100 * by.low:+.1f} to {100 * by.high:+.1f})".replace("-", "−")
            rows[i] += f" {top(received)} | {top(pool_query)} | {difference} |"
    print("", head, "|---|---:|" + "---:|---:|---|" * len(requests), *rows, "", sep="\n")
    of = runtime.environment()
    print(f"{of['device_name']} ({of['device']}, {of['threads']} threads), {of['dtype']}, ", end="")
    print(f"batch {compute.batch_size}, torch {of['torch']}, open_clip {of['open_clip']}; differences with 95 %.")


def top(found: Result) -> str:
    return f"{100 * found.metrics['acc1']:.1f}"


def without_cls(name: str, visual: Any) -> Any:
    """The blocks of an open_clip tower in timm's model of this name, with a pooling head in place of the CLS token."""
    tower = timm.create_model(name, class_token=False, global_pool="map", num_classes=visual.proj.shape[1])
    weights = {f"visual.{name}": value for name, value in visual.state_dict().items()}
    weights["visual.positional_embedding"] = weights["visual.positional_embedding"][1:]  # CLS has the first place
    weights = checkpoint_filter_fn(weights, tower)
    del weights["cls_token"]
    tower.load_state_dict({**tower.state_dict(), **weights})  # the head is all that has none
    return tower.eval()


@torch.no_grad()
def cached(
    tower: Any, visual: Any, dataset: Any, count: int, seed: int, compute: Compute, runtime: Runtime
) -> tuple[Tensor, Tensor]:
    """For some images, in random order, what the head gets `[n, N, D]` and what it shall give `[n, F]`."""
    indices = choose(dataset.keys, count, seed)
    order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(seed))
    indices, tokens, features = [indices[i] for i in order], [], []
    for batch in loader(dataset, indices, batch_size=compute.batch_size, num_workers=compute.num_workers):
        images = batch.images.to(runtime.device)
        with runtime.autocast():
            tokens.append(tower.forward_features(images).bfloat16())
            features.append(F.normalize(visual(images).float(), dim=-1))
    return torch.cat(tokens), torch.cat(features)


def fit(tower: Any, tokens: Tensor, features: Tensor, epochs: int, seed: int, runtime: Runtime) -> float:
    """Fit the head by cosine; returns the mean cosine on the last tenth, which it was not fitted on."""
    head = [*tower.attn_pool.parameters(), *tower.head.parameters()]
    optimizer = torch.optim.Adam(head)
    size, train = 50, len(tokens) * 9 // 10
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=epochs * -(-train // size))
    generator = torch.Generator().manual_seed(seed)

    def cosine(some: Any) -> Tensor:
        with runtime.autocast():
            return F.cosine_similarity(tower.forward_head(tokens[some].float()).float(), features[some], dim=-1)

    for _ in range(epochs):
        for some in torch.randperm(train, generator=generator).split(size):
            optimizer.zero_grad()
            (1 - cosine(some).mean()).backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        return torch.cat([cosine(some) for some in torch.arange(train, len(tokens)).split(size)]).mean().item()


if __name__ == "__main__":
    target.run(main)
