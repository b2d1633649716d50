"""Train the bundled demonstration model from Caltech-101 photographs, on a CPU, in about an hour.

    python tools/demo_model/train.py --data wds_caltech --teacher clip_b16.pt --out run --minutes 75

`--data` is a folder in the webdataset layout (classnames.txt, train/nshards.txt, train/0.tar, …); only its train
split is read. `--teacher` is an open_clip checkpoint of ViT-B-16-quickgelu, or `openai` to download it; without it
the model starts from random weights and learns from the labels alone. docs/demo-model.md tells the whole recipe.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from pathlib import Path
from typing import Any

import material
import open_clip
import teacher
import torch
import torch.nn.functional as F
from open_clip.transformer import PatchDropout
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

NAME = "anchorprune-demo"
CONFIG = Path(__file__).with_name(f"{NAME}.json")
PROMPTS = ("a photo of a {c}.", "a picture of a {c}.", "the {c}.")  # the ones to classify with
MORE_PROMPTS = ("{c}", "a photo of the {c}.", "an image of a {c}.", "a good photo of a {c}.", "one {c}.")


class Bf16Twin:
    """A bfloat16 copy of a float32 model: the copy computes, the original keeps the weights and is stepped."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.twin: Any = copy.deepcopy(model).bfloat16()

    def pull(self) -> None:
        """Copy the original's weights into the twin."""
        with torch.no_grad():
            torch._foreach_copy_(list(self.twin.parameters()), list(self.model.parameters()))

    def push_gradients(self) -> None:
        """Hand the twin's gradients to the original, in float32, and clear them."""
        for kept, computed in zip(self.model.parameters(), self.twin.parameters(), strict=True):
            kept.grad = None if computed.grad is None else computed.grad.float()
            computed.grad = None


def parameter_groups(model: nn.Module, lr: float, text_lr: float, decay: float) -> list[dict[str, Any]]:
    """AdamW groups: weight decay on the image tower's matrices alone, a rate of its own for the text tower."""
    image = [p for n, p in model.named_parameters() if n.startswith("visual.")]
    matrices = [p for n, p in model.named_parameters() if n.startswith("visual.") and "embedding" not in n]
    matrices = [p for p in matrices if p.ndim > 1]
    plain = [p for p in image if all(p is not m for m in matrices)]
    text = [p for n, p in model.named_parameters() if not n.startswith("visual.")]
    return [
        {"params": matrices, "lr": lr, "peak": lr, "weight_decay": decay},
        {"params": plain, "lr": lr, "peak": lr, "weight_decay": 0.0},
        {"params": text, "lr": text_lr, "peak": text_lr, "weight_decay": 0.0},
    ]


def fit_text(model: Any, tokens: Tensor, centres: Tensor, steps: int, lr: float) -> float:
    """Teach the text tower where the teacher sees each class, before the image tower learns; returns the cosine."""
    optimizer = torch.optim.AdamW([p for n, p in model.named_parameters() if not n.startswith("visual.")], lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    cosine = torch.tensor(0.0)
    for step in range(steps):
        text = model.encode_text(tokens[step % len(tokens)], normalize=True)
        cosine = (text * centres).sum(1).mean()
        optimizer.zero_grad()
        (-cosine).backward()
        optimizer.step()
        schedule.step()
    return float(cosine.detach())


@torch.inference_mode()
def classifier(model: Any, tokens: Tensor) -> Tensor:
    """`[classes, width]` unit text embeddings, the mean over prompts; `tokens` is `[prompts, classes, length]`."""
    each = torch.stack([model.encode_text(prompt, normalize=True) for prompt in tokens])
    return F.normalize(each.mean(0), dim=-1)


@torch.inference_mode()
def predict(model: Any, images: Tensor, text: Tensor, batch: int = 64) -> Tensor:
    """The index of the best class for every image, in float32."""
    return torch.cat([(model.encode_image(part) @ text.T).argmax(1) for part in images.split(batch)])


def save(model: nn.Module, seen: Tensor, path: Path) -> None:
    """float16 safetensors; embeddings of words that no prompt used are zero: the model does not know them."""
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    known = torch.zeros(len(state["token_embedding.weight"]), 1)
    known[seen] = 1
    state["token_embedding.weight"] *= known
    save_file({name: value.half().contiguous() for name, value in state.items()}, path)


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    generator = torch.Generator().manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    open_clip.add_model_config(CONFIG)
    model, _, preprocess = open_clip.create_model_and_transforms(NAME)
    tokenizer = open_clip.get_tokenizer(NAME)

    names = material.read_classnames(args.data)
    photos = material.read_split(args.data, "train")
    excluded = frozenset(names.index(name) for name in args.exclude)
    classes = material.choose_classes(photos, args.classes, excluded)
    photos = material.keep_classes(photos, classes, args.at_most)
    names = [names[label] for label in classes]
    (args.out / "classnames.txt").write_text("\n".join(names) + "\n")
    held_out = set(material.validation_indices(torch.tensor([photo.label for photo in photos])).tolist())
    validation = [photo for i, photo in enumerate(photos) if i in held_out]
    photos = [photo for i, photo in enumerate(photos) if i not in held_out]
    labels = torch.tensor([photo.label for photo in photos])
    check = torch.stack([preprocess(photo.image()) for photo in validation])
    check_labels = torch.tensor([photo.label for photo in validation])
    augment = material.Augmenter(photos, model.visual.image_size[0], generator)

    tokens = torch.stack([tokenizer([p.format(c=name) for name in names]) for p in PROMPTS + MORE_PROMPTS])
    targets = centres = torch.zeros(len(photos), 0)
    if args.teacher:
        known, _, known_preprocess = open_clip.create_model_and_transforms(
            "ViT-B-16-quickgelu", pretrained=args.teacher
        )
        visual = known.visual.eval()
        features = teacher.teacher_features(visual, photos, known_preprocess, args.out / "teacher.pt")
        targets = teacher.principal_targets(features, model.visual.output_dim)
        centres = torch.stack([targets[labels == c].mean(0) for c in range(len(names))])
        centres = F.normalize(centres, dim=1)
        print(f"text tower: cosine {fit_text(model, tokens, centres, 320, 3e-3):.3f} with the class centres")
        some = torch.randperm(len(photos), generator=generator)[: args.graft]
        start = args.out / "start.safetensors"
        if start.exists():
            model.visual.load_state_dict(load_file(start))
        elif len(some):
            small = torch.stack([preprocess(photos[i].image()) for i in some])
            large = torch.stack([known_preprocess(photos[i].image()) for i in some])
            explained = teacher.graft(model.visual, visual, small, large, targets[some])
            print("explained by each block:", " ".join(f"{share:.2f}" for share in explained), flush=True)
            save_file(model.visual.state_dict(), start)
        del known, visual

    model.train()
    average = copy.deepcopy(model).requires_grad_(False).eval()
    twin = Bf16Twin(model)
    groups = parameter_groups(model, args.lr, args.text_lr, args.decay)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-6, fused=True)
    weights = labels.bincount().float()[labels].rsqrt()  # between "as they come" and "all classes alike"
    log: list[dict[str, float | None]] = []
    began, step, reported = time.monotonic(), 0, 0.0

    def report(progress: float) -> None:
        recognised = predict(average, check, classifier(average, tokens[: len(PROMPTS)])) == check_labels
        right = float(recognised.float().mean())
        per_class = [float(recognised[check_labels == c].float().mean()) for c in range(len(names))]
        entry: dict[str, float | None] = {
            "minutes": round((time.monotonic() - began) / 60, 1),
            "step": step,
            "epochs": round(step * args.batch / len(photos), 1),
            "loss": round(float(loss.detach()), 3) if step else None,
            "imitation": round(float(imitation.detach()), 3) if step else None,
            "validation_top1": round(right, 4),
            "validation_mean_recall": round(sum(per_class) / len(per_class), 4),
        }
        log.append(entry)
        print(json.dumps(entry), flush=True)
        save(average, tokens.unique(), args.out / "model.safetensors")
        (args.out / "log.json").write_text(json.dumps(log, indent=1))

    loss = imitation = apart = torch.tensor(0.0)
    while (progress := (time.monotonic() - began) / 60 / args.minutes) < 1:
        if progress - reported >= args.report / args.minutes or (step == 0 and args.graft and args.teacher):
            reported = progress
            report(progress)
        rate = min(1.0, (step + 1) / args.warmup) * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        # Half-blind at first, as in FLIP: cheaper, and a tower that has learnt to do with part of its tokens.
        dropped = args.patch_dropout if progress < args.full_from else args.late_dropout
        twin.twin.visual.patch_dropout = PatchDropout(dropped) if dropped else nn.Identity()

        index = torch.multinomial(weights, args.batch, replacement=True, generator=generator)
        prompt = tokens[int(torch.randint(len(tokens), (1,), generator=generator))]
        seen = twin.twin.encode_image(augment.batch(index).bfloat16()).float()
        seen = F.normalize(seen, dim=-1)
        text = F.normalize(twin.twin.encode_text(prompt).float(), dim=-1)
        logits = twin.twin.logit_scale.float().exp() * seen @ text.T
        loss = F.cross_entropy(logits, labels[index], label_smoothing=0.1)
        if args.teacher:
            imitation = 1 - (seen * targets[index]).sum(1).mean()
            apart = 1 - (text * centres).sum(1).mean()
        (loss + args.imitation * imitation + apart).backward()
        twin.push_gradients()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(50))
            keep = min(args.ema, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - keep)
        twin.pull()
        step += 1
    report(1.0)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Caltech-101 in the webdataset layout")
    parser.add_argument("--teacher", help="checkpoint of ViT-B-16-quickgelu, or 'openai'")
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights, the log and the cache")
    parser.add_argument("--minutes", type=float, default=75, help="wall-clock time of the training itself")
    parser.add_argument("--report", type=float, default=8, help="minutes between checks on the validation photos")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--classes", type=int, default=40, help="the classes with most training photos")
    parser.add_argument("--exclude", nargs="*", default=["face"], help="classes to leave out")
    parser.add_argument("--at_most", type=int, default=150, help="training photos of a class")
    parser.add_argument("--graft", type=int, default=160, help="photos to fit the first weights on; 0: random")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--text_lr", type=float, default=1e-3)
    parser.add_argument("--decay", type=float, default=0.05)
    parser.add_argument("--warmup", type=int, default=100, help="steps")
    parser.add_argument("--patch_dropout", type=float, default=0.5)
    parser.add_argument("--late_dropout", type=float, default=0.0)
    parser.add_argument("--full_from", type=float, default=0.8, help="share of the time with --patch_dropout")
    parser.add_argument("--imitation", type=float, default=3.0, help="weight of the distance to the teacher")
    parser.add_argument("--ema", type=float, default=0.998)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    train(parse())
