"""For every task that there is, jobs with seven samples, which no number of ranks divides; of each kind of its data."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

from anchorprune import Compute, DataSpec, LoadedModel, ModelSpec, OwnDataset, Request, Result, bundled, tasks
from anchorprune.evaluation.engine import evaluate
from anchorprune.scale.jobs import Job
from anchorprune.strategies import make_strategy
from anchorprune.tasks import make_task
from support.material import CAPTIONS, make_captions, make_wds, picture
from support.models import make_clip

DEMO = ModelSpec(name="anchorprune-demo", pretrained="bundled")
MINE = ModelSpec(name="mine")  # objects: a model that writes, and data with texts to choose from
COMPUTE = Compute(device="cpu", precision="fp32", batch_size=2, num_workers=0)
PRUNINGS = [None, make_strategy("tome", r=2), make_strategy("coarse", keep_patches=6)]
FIELDS = {"captioning": {"spice": "no"}}  # whose models are a download
# Words that the bundled model tells apart; others are all the same to it, and of equals rounding chooses.
WORDS = (bundled.PHOTOS / "classnames.txt").read_text(encoding="utf-8").splitlines()
TOKENIZER = open_clip.get_tokenizer("ViT-B-32")


def jobs(folder: Path) -> list[Job]:
    """One for each task and each kind of data that it takes; the data is made in `folder`."""
    known = iter(WORDS)
    of_kind = {
        "classes": make_wds(folder / "classes", [0, 1, 2, 0, 1, 2, 0]),
        "labels": make_wds(
            folder / "labels", [[1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 1], [1, 0, 0], [0, 1, 1], [1, 1, 1]]
        ),
        "captions": make_captions(folder / "captions", [[next(known) for _ in own] for own in CAPTIONS]),
    }
    for kind in ("classes", "labels"):
        (of_kind[kind] / "classnames.txt").write_text("".join(f"{next(known)}\n" for _ in range(3)))
    shutil.copytree(of_kind["classes"] / "test", of_kind["classes"] / "train")
    pictures = folder / "pictures"
    pictures.mkdir()
    for i in range(7):
        picture(i, 64).save(pictures / f"{i}.png")
    made = []
    for name, cls in tasks.registry().items():
        for kind in cls.kinds[:1] if name == "fidelity" else cls.kinds:  # which looks at the images alone
            mine = name == "captioning" or kind == "choices"
            data = DataSpec(name="mine") if mine else DataSpec(name=f"wds/{kind}", root=str(of_kind.get(kind)))
            if kind == "images":
                data = DataSpec(name=f"folder:{pictures}")
            one = Request(
                model=MINE if mine else DEMO, data=data, task=make_task(name, **FIELDS.get(name, {})), compute=COMPUTE
            )
            requests = tuple(dataclasses.replace(one, pruning=pruning) for pruning in PRUNINGS)
            made.append(Job(requests, keep_scores=kind in (cls.scored_kinds or cls.kinds)))
    return made


def found(job: Job, shard: tuple[int, int] = (0, 1)) -> list[Result]:
    """What the job's requests find, of one shard."""
    own: dict[str, Any] = {}
    if job.requests[0].model == MINE:
        choices = "choices" in job.requests[0].task.kinds
        own = {
            "model": LoadedModel(Writer().eval(), lambda image: image, TOKENIZER),
            "dataset": chosen() if choices else captioned(),
        }
    return evaluate(job.requests, shard=shard, keep_scores=job.keep_scores, progress=False, **own)


class Writer(nn.Module):
    """Writes a caption of the data, chosen by the image's feature."""

    def __init__(self) -> None:
        super().__init__()
        clip = make_clip()
        self.visual, self.encode_image, self.encode_text = clip.visual, clip.encode_image, clip.encode_text

    def generate(self, images: Tensor) -> Tensor:
        texts = [text for own in CAPTIONS for text in own]
        picked = [texts[int(n)] for n in self.encode_image(images)[:, 0].mul(1e4).abs().long() % len(texts)]
        return TOKENIZER(picked)


def pixels(*shape: int) -> Tensor:
    return torch.randn(*shape, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def captioned() -> OwnDataset:
    return OwnDataset(list(zip(pixels(7), CAPTIONS, strict=True)), kind="captions")


def chosen() -> OwnDataset:
    """Two images and two texts each: which belongs to which."""
    pairs = [[own[0], CAPTIONS[i - 1][0]] for i, own in enumerate(CAPTIONS)]
    return OwnDataset(list(zip(pixels(7, 2), pairs, strict=True)), kind="choices")
