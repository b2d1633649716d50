"""The commands of clip-benchmark's own test suite and README, on files of ours that look like the data they name.

Its two tests call `run(args)`; here they are the command lines that make these args. Weights are random instead of
downloaded ones, and a small model stands for ViT-B-32 in the README's commands.
"""

from __future__ import annotations

import json
import pickle
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support import upstream as given
from support.material import command, make_cifar10, read
from torchvision.transforms.functional import to_tensor

from anchorprune.commands import build_parser
from anchorprune.commands._requests import plan_runs
from anchorprune.datasets import open_dataset
from anchorprune.datasets.base import DataSpec

builder = pytest.importorskip("clip_benchmark.datasets.builder")

ROOT = Path(__file__).resolve().parents[1]
MODEL = "--pretrained=laion400m_e32 --model=ViT-B-32-quickgelu"
PROBE = f"--dataset=cifar10 --task=linear_probe {MODEL} --output=result.json --batch_size=64 --fewshot_lr 0.1"

# tests/test_clip_benchmark.py, base_args and linear_probe_args; the latter's model is ViT-L-14.
SUITE = {
    "base": (
        "--dataset dummy --split test --model ViT-B-32-quickgelu --pretrained '' --task zeroshot_classification "
        "--no_amp --num_workers 4 --batch_size 64 --dataset_root root --output result.json --seed 0 --language en "
        "--model_type open_clip"
    ),
    "linear probe": (
        "--dataset dummy --split test --train_split split --val_split val --model ViT-B-32-quickgelu --pretrained '' "
        "--task linear_probe --no_amp --num_workers 4 --batch_size 256 --dataset_root root --output result.json "
        "--seed 0 --feature_root ./ --fewshot_k -1 --fewshot_epochs 1 --fewshot_lr 0.5 --language en "
        "--model_type open_clip"
    ),
}

# README.md, in its order, as far as the data can be made up here; the metrics that the result has to have.
README = {
    f"--dataset=cifar10 --task=zeroshot_classification {MODEL} --output=result.json --batch_size=64": "acc1",
    f"--dataset=mscoco_captions --task=zeroshot_retrieval {MODEL} --output=result.json --batch_size=64": (
        "image_retrieval_recall@5"
    ),
    f"{PROBE} --fewshot_epochs 20 --batch_size 512 --train_split train --test_split test": "lp_acc1",
    f"{PROBE} --fewshot_k 5 --fewshot_epochs 20 --batch_size 512 --train_split train --test_split test": "lp_acc5",
    f"{PROBE} --fewshot_epochs 20 --batch_size 512 --train_split train --val_proportion 0.1 --test_split test": (
        "lp_mean_per_class_recall"
    ),
    f"{MODEL} --dataset=flickr8k --output=result.json --batch_size=64 --language=en": "text_retrieval_recall@5",
    f"{MODEL} --dataset=flickr8k --output=result.json --batch_size=64 --language=zh": "text_retrieval_recall@5",
    f"{MODEL} --dataset=sugar_crepe/add_att --output=result.json": "text_acc",
    f"{MODEL} --dataset wds/vtab/cifar10 --dataset_root ROOT_DIR/wds_vtab-cifar10/": "acc1",
    f"{MODEL} --dataset=wds/mscoco_captions --dataset_root ROOT_DIR/wds_mscoco/ --task=zeroshot_retrieval": (
        "image_retrieval_recall@5"
    ),
}


@pytest.mark.parametrize("line", SUITE.values(), ids=SUITE)
def test_the_suite_passes(line: str, tmp_path: Path) -> None:
    words = [sys.executable, str(ROOT / "clip_benchmark" / "cli.py"), "eval", *shlex.split(line)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    result = read(tmp_path / "result.json")
    assert result.keys() >= {"dataset", "model", "pretrained", "task", "metrics", "language"}
    assert (result["dataset"], result["n_samples"]) == ("dummy", 1)


def test_the_dummy_image_has_the_size_that_the_model_takes(here: Path) -> None:
    """Upstream's has 224 px, and this model 112; where that is the model's own size it is the same image."""
    model = ["--model", given.DEMO, "--pretrained", "bundled", "--no_amp", "--num_workers", 0]
    outcome = command("eval", *model, "--dataset", "dummy", "--output", "result.json")
    assert outcome.code == 0, outcome.err
    image, target = open_dataset(
        DataSpec(name="dummy"), lambda picture: to_tensor(picture) + 1, "zeroshot_classification"
    ).items[0]
    assert torch.equal(image, builder.Dummy()[0][0])
    assert target == builder.Dummy()[0][1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder: what clip-benchmark would have downloaded into `root/`."""
    folder = tmp_path_factory.mktemp("readme")
    given.register(folder, given.TINY)
    given.weights(folder, given.TINY)
    samples = given.retrieval()[:8]
    with pytest.MonkeyPatch.context() as patch:
        make_cifar10(folder / "root", patch)
        test = pickle.loads((folder / "root" / "cifar-10-batches-py" / "test_batch").read_bytes())
        for number in range(1, 6):
            (folder / "root" / "cifar-10-batches-py" / f"data_batch_{number}").write_bytes(pickle.dumps(test))
        coco(folder / "root", samples)
        flickr(folder / "root", samples)
        crepe = folder / "crepe"
        given.write_sugar_crepe(crepe, "add_att", given.selection(1)[:8])
        for path in crepe.iterdir():
            path.rename(folder / "root" / path.name)
        given.write_wds(folder / "ROOT_DIR" / "wds_vtab-cifar10", {"test": given.classification()["test"][:20]})
        given.write_wds(folder / "ROOT_DIR" / "wds_mscoco", {"test": samples}, "retrieval")
        patch.chdir(folder)
        yield folder


def coco(root: Path, samples: list[given.Sample]) -> None:
    """MS-COCO's captions, as Karpathy split them."""
    (root / "val2014").mkdir()
    images, captions = [], []
    for i, sample in enumerate(samples):
        (root / "val2014" / f"{i}.png").write_bytes(sample.images[0])
        images.append({"id": i, "file_name": f"{i}.png"})
        captions += [{"image_id": i, "id": 10 * i + j, "caption": text} for j, text in enumerate(sample.target)]
    (root / "coco_test_karpathy.json").write_text(json.dumps({"images": images, "annotations": captions}))


def flickr(root: Path, samples: list[given.Sample]) -> None:
    lines = ["image,caption"]
    for i, sample in enumerate(samples):
        (root / f"{i}.jpg").write_bytes(sample.images[0])
        lines += [f"{i}.jpg,{text}" for text in sample.target]
    for name in ("karpathy", "zh"):
        (root / f"flickr8k_test_{name}.txt").write_text("\n".join(lines))


@pytest.mark.parametrize("line", README)
def test_the_readmes_commands_work(line: str, folder: Path) -> None:
    small = line.replace(MODEL, f"--pretrained={given.TINY}.pt --model={given.TINY}")
    for path in folder.glob("*.json"):
        path.unlink()
    outcome = command("eval", *shlex.split(small), "--num_workers", 0, "--feature_root", folder / "features")
    assert outcome.code == 0, outcome.err
    [written] = [path for path in folder.glob("*.json") if path.stem != given.TINY]
    assert README[line] in read(written)["metrics"]


# Commands of README.md and benchmark/README.md that need the hub, and how many evaluations of which tasks each one is.
NAMES = '--output "{dataset}_{pretrained}_{model}_{language}_{task}.json"'
PLANS = {
    "--pretrained_model ViT-B-32-quickgelu,laion400m_e32 ViT-L-14,laion400m_e32 --dataset cifar10 cifar100 "
    f'--dataset_root "clip_benchmark_datasets/{{dataset}}" --language en jp {NAMES}': {"zeroshot_classification": 8},
    f'--pretrained_model models.txt --dataset datasets.txt --dataset_root "datasets/{{dataset}}" {NAMES}': {
        "zeroshot_classification": 2,
        "zeroshot_retrieval": 1,
    },
    f"--pretrained_model openai openclip_base --dataset vtab+ retrieval {NAMES}": {
        "zeroshot_classification": 13 * 36,
        "zeroshot_retrieval": 13 * 3,
    },
    "--pretrained_model openclip_multilingual openclip_base openai --dataset multilingual_mscoco_captions "
    f"--language es it ko pl ru tr zh en {NAMES}": {"zeroshot_retrieval": 15 * 8},
    f"--model ViT-B-32 --pretrained laion400m_e32 --dataset=sugar_crepe {NAMES}": {"image_caption_selection": 7},
    "--model ViT-B-32 --pretrained laion400m_e32 --dataset=winoground --output=result.json": {
        "image_caption_selection": 1
    },
    "--dataset=mscoco_captions --task=captioning --model=coca_ViT-L-14 --output=result.json "
    "--pretrained mscoco_finetuned_laion2b_s13b_b90k": {"captioning": 1},
    "--dataset=fgvc_aircraft --task=linear_probe --pretrained=laion400m_e32 --model=ViT-B-32-quickgelu "
    "--output=result.json --batch_size=64 --fewshot_lr 0.1 --fewshot_epochs 20 --batch_size 512 --train_split train "
    "--val_split val --test_split test": {"linear_probe": 1},
    "--dataset imagenet1k --model ViT-B-32 --pretrained laion400m_e32 --custom_template_file cupl_prompts.json": {
        "zeroshot_classification": 1
    },
}


@pytest.mark.parametrize("line", PLANS)
def test_the_readmes_larger_commands_mean_as_many_evaluations(line: str, here: Path) -> None:
    (here / "models.txt").write_text("ViT-B-32,openai\n")
    (here / "datasets.txt").write_text("vtab/dtd\ncars\nflickr30k\n")
    args = build_parser().parse_args(["eval", *shlex.split(line)])
    assert Counter(run.request.task.name for run in plan_runs(args)) == PLANS[line]


@pytest.mark.parametrize(
    ("line", "idle"),
    [
        ("", []),
        ("--recall_k 5 --train_split train --normalize True", []),  # their defaults
        ("--recall_k 1 5", ["--recall_k has"]),
        ("--val_split val --fewshot_k 3 --normalize False", ["--val_split, --fewshot_k, --normalize have"]),
    ],
)
def test_a_setting_of_another_task_is_said_to_have_no_effect(line: str, idle: list[str], here: Path) -> None:
    model = ["--model", given.DEMO, "--pretrained", "bundled", "--dataset", "bundled", "--limit", 1, "--num_workers", 0]
    outcome = command("eval", *model, "--no_amp", "--output", "result.json", *line.split())
    assert outcome.code == 0
    said = [f"anchorprune: warning: with --task zeroshot_classification, {which} no effect" for which in idle]
    assert outcome.err == said
