"""Write what clip-benchmark 1.6.2's own functions give on the data of `tests/support/upstream.py`, in float32 on a CPU.

    python3.11 -m venv upstream
    upstream/bin/pip install clip-benchmark==1.6.2 requests 'numpy<2.4' 'transformers<4.56'
    upstream/bin/python tools/upstream_goldens/make.py

It writes `tests/goldens/upstream_metrics.json` and one result of clip-benchmark's command line for each task
(`upstream_result_TASK.json`); anchorprune need not be installed. Java has to be there, for the scores of captions.
`--spice` adds SPICE, whose models (some 400 MB) pycocoevalcap then downloads. Look at the difference before you
commit it.

What keeps upstream's functions from running on a CPU is patched in `on_a_cpu`, and SPICE is taken out in
`without_spice`; the mathematics is left as it is. Beside the metrics stands, where it can be told, `margin`: how close
the closest score comes to the rival that would change a metric (of the probe's logits: relative to the largest). Other
processors round otherwise, by some 1e-6.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import numpy as np
import open_clip
import torch
from clip_benchmark.datasets.builder import image_captions_collate_fn
from clip_benchmark.metrics import captioning, image_caption_selection, linear_probe, zeroshot_retrieval
from PIL import Image
from support import upstream as given
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from clip_benchmark import cli


class Images(Dataset):
    """Samples, decoded and preprocessed; of several images the stack, as clip-benchmark's Winoground gives it."""

    def __init__(self, samples: Sequence[given.Sample], transform: Any) -> None:
        self.samples, self.transform = samples, transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Any]:
        sample = self.samples[index]
        images = [self.transform(Image.open(io.BytesIO(data), formats=["JPEG", "PNG"])) for data in sample.images]
        return images[0] if len(images) == 1 else torch.stack(images), sample.target


class Model:
    """One of the models, loaded as clip-benchmark's `load_clip` does."""

    def __init__(self, name: str) -> None:
        self.name, self.weights = name, given.weights(Path(), name)
        self.clip, self.transform, self.tokenizer = cli.load_clip("open_clip", name, str(self.weights), "", "cpu")
        self.clip.eval()

    def batches(self, samples: Sequence[given.Sample], size: int = 16, captions: bool = False) -> DataLoader:
        collate = image_captions_collate_fn if captions else None
        return DataLoader(Images(samples, self.transform), batch_size=size, collate_fn=collate)

    def flags(self) -> list[str]:
        return ["--model", self.name, "--pretrained", str(self.weights)]


# --- what a CPU needs


class CalledCuda(str):
    """The device "cpu", which says that it is "cuda" when `linear_probe.evaluate` asserts that."""

    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return other == "cuda" or str.__eq__(self, other)  # type: ignore[operator]


@contextlib.contextmanager
def on_a_cpu() -> Iterator[None]:
    """`x.cuda()` leaves tensors and modules where they are; `nn.DataParallel` without GPUs is the module alone."""
    of_module, of_tensor = torch.nn.Module.cuda, torch.Tensor.cuda
    torch.nn.Module.cuda = torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        torch.nn.Module.cuda, torch.Tensor.cuda = of_module, of_tensor  # type: ignore[method-assign]


class WithoutSpice(captioning.COCOEvalCap):
    """SPICE's place is taken by a scorer that gives nothing, which is then taken out: its models are a download."""

    class Nothing:
        def compute_score(self, truth: dict, given: dict) -> tuple[float, list[float]]:
            return 0.0, [0.0] * len(truth)

        def method(self) -> str:
            return "no SPICE"

    def evaluate(self) -> None:
        super().evaluate()
        self.eval = {name: float(score) for name, score in self.eval.items() if name != "SPICE"}


def without_spice() -> None:
    captioning.Spice = WithoutSpice.Nothing
    captioning.COCOEvalCap = WithoutSpice


# --- the tasks


def command_line(output: str, *flags: str) -> dict[str, Any]:
    """`clip_benchmark eval FLAGS` in this process; its result file."""
    common = ["--no_amp", "--num_workers", "0", "--batch_size", "16", "--output", output]
    with arguments(["clip_benchmark", "eval", *flags, *common]):
        cli.main()
    return json.loads(Path(output).read_text())


@contextlib.contextmanager
def arguments(argv: list[str]) -> Iterator[None]:
    before, sys.argv = sys.argv, argv
    try:
        yield
    finally:
        sys.argv = before


def probe(model: Model, splits: dict[str, list[given.Sample]], settings: dict[str, Any]) -> dict[str, Any]:
    """`linear_probe.evaluate` as it is when the features are cached already and the seed is set right before it.

    When they are not, upstream's permutation of the train split depends on how many batches of which splits went
    before it, and on what the model drew when it was built.
    """
    use = given.PROBE_DEFAULTS | settings
    size, seed = use["batch_size"], use["seed"]
    train, val = Images(splits["train"], model.transform), None
    if use["val_split"]:
        val = Images(splits[use["val_split"]], model.transform)
    elif use["val_proportion"]:
        torch.manual_seed(seed)
        share = use["val_proportion"]
        train, val = torch.utils.data.random_split(train, [1 - share, share])  # as the command line does
    loaders = [None if d is None else DataLoader(d, batch_size=size) for d in (train, val)]

    margins: list[float] = []
    infer = linear_probe.infer

    def watched(*args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        logits, target = infer(*args)
        own = F.one_hot(target, logits.shape[1]).bool()
        gap = (logits[own] - logits.masked_fill(own, -torch.inf).max(1).values) / logits.abs().max()
        margins.extend(gap[gap.isfinite()].abs().tolist())  # a large weight decay times the rate overflows
        return logits, target

    with tempfile.TemporaryDirectory() as cache, on_a_cpu():

        def evaluate() -> dict[str, Any]:
            torch.manual_seed(seed)
            return linear_probe.evaluate(
                model.clip,
                loaders[0],
                model.batches(splits["test"], size),
                fewshot_k=use["fewshot_k"],
                batch_size=size,
                num_workers=0,
                lr=use["fewshot_lr"],
                epochs=use["fewshot_epochs"],
                model_id="model",
                seed=seed,
                feature_root=cache,
                device=CalledCuda("cpu"),
                val_dataloader=loaders[1],
                normalize=use["normalize"],
                amp=False,
            )

        evaluate()  # which fills the cache
        linear_probe.infer = watched
        try:
            metrics = evaluate()
        finally:
            linear_probe.infer = infer
    return {"metrics": metrics, "margin": min(margins)}


def retrieval(model: Model, samples: list[given.Sample], recall_k: list[int]) -> dict[str, Any]:
    loader = model.batches(samples, captions=True)
    metrics = zeroshot_retrieval.evaluate(model.clip, loader, model.tokenizer, "cpu", False, recall_k)
    image, text, owner = features(model, samples)
    scores = text @ image.T  # [texts, images]
    own = F.one_hot(owner, len(image)).bool()
    margin = min(margin_of(scores, own, recall_k), margin_of(scores.T, own.T, recall_k))
    return {"metrics": metrics, "margin": margin}


def margin_of(scores: torch.Tensor, own: torch.Tensor, recall_k: list[int]) -> float:
    """The smallest distance between a query's best own score and the one that it has to beat for each k."""
    best = scores.masked_fill(~own, -9).max(1).values
    others = scores.masked_fill(own, -9).sort(1, descending=True).values
    return min(float((best - others[:, k - 1]).abs().min()) for k in recall_k)


def selection(model: Model, samples: list[given.Sample]) -> dict[str, Any]:
    loader = model.batches(samples, captions=True)
    metrics = image_caption_selection.evaluate(model.clip, loader, model.tokenizer, "cpu", False)
    image, text, _ = features(model, samples)
    n = len(samples[0].images)
    scores = image.view(-1, n, image.shape[1]) @ text.view(len(samples), -1, text.shape[1]).mT  # [B, images, captions]
    own = torch.eye(n, scores.shape[2]).bool()
    by_text = [margin_of(s, own, [1]) for s in scores]
    by_image = [margin_of(s.T[:n], own.T[:n], [1]) for s in scores] if n > 1 else []
    return {"metrics": metrics, "margin": min(by_text + by_image)}


@torch.no_grad()
def features(model: Model, samples: list[given.Sample]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    images = torch.cat([x.flatten(0, -4) for x, _ in model.batches(samples, captions=True)])
    texts = [text for sample in samples for text in sample.target]
    owner = torch.tensor([i for i, sample in enumerate(samples) for _ in sample.target])
    image, text = model.clip.encode_image(images), model.clip.encode_text(model.tokenizer(texts))
    return F.normalize(image, dim=1), F.normalize(text, dim=1), owner


def judged_captions() -> dict[str, Any]:
    """`captioning.evaluate` of a model that "generates" given captions, as tokens."""
    references, judged = given.captions()

    class Says:
        at = 0

        def generate(self, images: torch.Tensor) -> torch.Tensor:
            tokens = open_clip.tokenize(judged[self.at : self.at + len(images)])
            self.at += len(images)
            return tokens

    pixels = torch.zeros(len(judged), 3, 2, 2)
    loader = DataLoader(list(zip(pixels, references, strict=True)), batch_size=2, collate_fn=image_captions_collate_fn)
    return {"metrics": captioning.evaluate(Says(), loader, 2, "cpu", None)}


def generated_captions(model: Model, samples: list[given.Sample]) -> dict[str, Any]:
    """Of a CoCa: what it says, and how that is scored."""
    said: list[str] = []

    class Watched(captioning.COCOEvalCap):  # type: ignore[valid-type,misc]
        def __init__(self, results: list[dict[str, Any]]) -> None:
            said.extend(result["gen"][0]["caption"] for result in results)
            super().__init__(results)

    judge, captioning.COCOEvalCap = captioning.COCOEvalCap, Watched
    try:
        loader = model.batches(samples, captions=True)
        metrics = captioning.evaluate(model.clip, loader, 16, "cpu", model.transform)
    finally:
        captioning.COCOEvalCap = judge
    return {"metrics": metrics, "captions": said}


def results_of_each_task(tiny: Model, coca: Model) -> dict[str, dict[str, Any]]:
    """What the command line writes, file name by task. The probe's device is called "cuda"; see above."""
    given.write_wds(Path("wds_seven"), given.classification())
    given.write_wds(Path("wds_captions"), {"test": given.retrieval()}, "retrieval")
    given.write_sugar_crepe(Path("crepe"), "add_att", given.selection(1))
    seven = ["--dataset", "wds/seven", "--dataset_root", "wds_{dataset}"]
    pairs = ["--dataset", "wds/captions", "--dataset_root", "wds_{dataset}"]
    evaluate = linear_probe.evaluate

    def probe_on_a_cpu(*args: Any, device: str, **options: Any) -> dict[str, Any]:
        with on_a_cpu():
            return evaluate(*args, device=CalledCuda("cpu"), **options)

    few = [dataclasses.replace(s, target=s.target % 3) for s in given.classification()["test"]]
    given.write_wds(Path("wds_three"), {"test": few}, classes=given.CLASSES[:3])
    three = ["--dataset", "wds/three", "--dataset_root", "wds_{dataset}", "--task", "zeroshot_classification"]
    runs = {
        "zeroshot_classification": [*tiny.flags(), *seven],
        "zeroshot_retrieval": [*tiny.flags(), *pairs, "--recall_k", "1", "5"],
        "linear_probe": [*tiny.flags(), *seven, "--train_split", "train"],
        "image_caption_selection": [*tiny.flags(), "--dataset", "sugar_crepe/add_att", "--dataset_root", "crepe"],
        "captioning": [*coca.flags(), *pairs],
    }
    linear_probe.evaluate = probe_on_a_cpu
    try:
        results = {task: command_line(f"{task}.json", "--task", task, *flags) for task, flags in runs.items()}
        return results | {"few_classes": command_line("three.json", *tiny.flags(), *three)}  # whose acc5 is NaN
    finally:
        linear_probe.evaluate = evaluate


def every_case(tiny: Model, coca: Model, demo: Model) -> dict[str, Any]:
    cases: dict[str, Any] = {}
    given.write_wds(Path("wds_labels"), {"test": given.multilabel()}, "multilabel")
    labels = ["--dataset", "wds/labels", "--dataset_root", "wds_{dataset}", "--task", "zeroshot_classification"]
    cases["labels"] = {"metrics": command_line("labels.json", *tiny.flags(), *labels)["metrics"]}
    seven = ["--dataset", "wds/seven", "--dataset_root", "wds_{dataset}", "--task", "zeroshot_classification"]
    cases["classes"] = {"metrics": command_line("seven.json", *tiny.flags(), *seven)["metrics"]}
    for name, settings in given.PROBES.items():
        cases[f"probe, {name}"] = probe(tiny, given.classification(), settings)
    cases["captions"] = retrieval(tiny, given.retrieval(), given.RECALL_K)
    cases["two images, two captions"] = selection(tiny, given.selection(2))
    cases["one image, two captions"] = selection(tiny, given.selection(1))
    cases["judged captions"] = judged_captions()
    cases["generated captions"] = generated_captions(coca, given.retrieval()[:6])

    names, prompts = given.class_names()[:20], given.photograph_prompts()
    given.write_wds(Path("wds_photos"), given.photographs(), "classification", names, prompts)
    photos = ["--dataset", "wds/photos", "--dataset_root", "wds_{dataset}", "--task", "zeroshot_classification"]
    cases["photographs"] = {"metrics": command_line("photos.json", *demo.flags(), *photos)["metrics"]}
    cases["photographs, probe"] = probe(demo, given.photographs(), {})
    cases["photographs, captions"] = retrieval(demo, given.photographs_with_captions(), given.RECALL_K)
    for images, name in ((1, "one image"), (2, "two images")):
        cases[f"photographs, {name}"] = selection(demo, given.photographs_to_tell_apart(images))
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spice", action="store_true", help="score captions by SPICE too; a download")
    if not parser.parse_args().spice:
        without_spice()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # so that the results name relative paths
        for name in (given.TINY, given.COCA, given.DEMO):
            given.register(Path(folder), name)
        tiny, coca, demo = Model(given.TINY), Model(given.COCA), Model(given.DEMO)
        results = results_of_each_task(tiny, coca)
        cases = every_case(tiny, coca, demo)
    versions = {"clip-benchmark": "1.6.2", "torch": torch.__version__, "open_clip": open_clip.__version__}
    versions["numpy"] = np.__version__
    for task, result in results.items():
        (given.GOLDENS / f"upstream_result_{task}.json").write_text(json.dumps(result))
    written = json.dumps({"versions": versions, "cases": cases}, indent=1)
    (given.GOLDENS / "upstream_metrics.json").write_text(written + "\n")
    for name, case in cases.items():
        print(f"{name}: {case}")


if __name__ == "__main__":
    main()
