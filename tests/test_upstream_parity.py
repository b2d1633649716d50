"""Every task gives clip-benchmark's own numbers, in float32, on random weights and on the bundled model.

The numbers come from `tools/upstream_goldens/make.py`, which runs upstream's functions in upstream's environment on the
data of `support/upstream.py`.
"""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip import coca_model
from PIL import Image
from support import upstream as given
from support.material import command, read

from anchorprune import DataSpec, ModelSpec, Request
from anchorprune.datasets.own import OwnDataset
from anchorprune.evaluation.engine import evaluate
from anchorprune.evaluation.request import Compute
from anchorprune.models import load
from anchorprune.models.base import LoadedModel
from anchorprune.tasks import make_task

GOLDEN = json.loads((given.GOLDENS / "upstream_metrics.json").read_text())["cases"]
CPU = torch.device("cpu")
FLOAT32 = Compute(device="cpu", precision="fp32", batch_size=16, num_workers=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data sets as files, and the models known to open_clip."""
    folder = tmp_path_factory.mktemp("upstream")
    for name in given.CONFIGS:
        given.register(folder, name)
        given.weights(folder, name)
    given.write_wds(folder / "wds_seven", given.classification())
    given.write_wds(folder / "wds_labels", {"test": given.multilabel()}, "multilabel")
    given.write_wds(folder / "wds_captions", {"test": given.retrieval()}, "retrieval")
    given.write_sugar_crepe(folder / "crepe", "add_att", given.selection(1))
    names, prompts = given.class_names(), given.photograph_prompts()
    given.write_wds(folder / "wds_photos", given.photographs(), "classification", names[:20], prompts)
    given.write_wds(folder / "wds_photo-captions", {"test": given.photographs_with_captions()}, "retrieval")
    return folder


def run(folder: Path, name: str, *flags: object, output: str = "result.json") -> dict[str, Any]:
    """`eval FLAGS` with the model `name`, in float32; its result file."""
    weights = "bundled" if name == given.DEMO else folder / f"{name}.pt"
    model = ["--model", name, "--pretrained", weights, "--no_amp", "--num_workers", 0]
    root = [] if "--dataset_root" in flags else ["--dataset_root", folder / "wds_{dataset}"]
    outcome = command("eval", *model, *root, *flags, "--output", folder / output)
    assert outcome.code == 0, outcome.err
    return read(folder / output)


def check(metrics: dict[str, Any], case: str) -> None:
    """`metrics` are those of the golden `case`: the same names, each within 1e-6."""
    theirs = GOLDEN[case]["metrics"]
    assert metrics.keys() == theirs.keys()
    assert metrics == {name: pytest.approx(value, abs=1e-6) for name, value in theirs.items()}


def test_no_golden_hangs_on_a_rounding_error() -> None:
    """Processors differ by some 1e-6 in what they add up."""
    margins = {name: case["margin"] for name, case in GOLDEN.items() if "margin" in case}
    assert len(margins) > 10
    assert min(margins.values()) > 1e-4


# --- the tasks


@pytest.mark.parametrize(
    ("model", "dataset", "case"),
    [(given.TINY, "seven", "classes"), (given.TINY, "labels", "labels"), (given.DEMO, "photos", "photographs")],
)
def test_zero_shot_classification(folder: Path, model: str, dataset: str, case: str) -> None:
    check(run(folder, model, "--dataset", f"wds/{dataset}")["metrics"], case)


@pytest.mark.parametrize(
    ("model", "dataset", "case"),
    [(given.TINY, "captions", "captions"), (given.DEMO, "photo-captions", "photographs, captions")],
)
def test_retrieval(folder: Path, model: str, dataset: str, case: str) -> None:
    recall = ["--recall_k", *given.RECALL_K]
    check(run(folder, model, "--dataset", f"wds/{dataset}", "--task", "zeroshot_retrieval", *recall)["metrics"], case)


def probe(folder: Path, model: str, dataset: str, settings: dict[str, Any]) -> dict[str, Any]:
    use = {name: value for name, value in (given.PROBE_DEFAULTS | settings).items() if value is not None}
    flags = [word for name, value in use.items() for word in (f"--{name}", value)]
    kept = ["--feature_root", folder / "features"]
    return run(folder, model, "--dataset", f"wds/{dataset}", "--task", "linear_probe", *kept, *flags)["metrics"]


@pytest.mark.parametrize("case", given.PROBES)
def test_the_linear_probe(folder: Path, case: str) -> None:
    check(probe(folder, given.TINY, "seven", given.PROBES[case]), f"probe, {case}")


def test_the_linear_probe_on_photographs(folder: Path) -> None:
    check(probe(folder, given.DEMO, "photos", {}), "photographs, probe")


def test_five_classes_have_an_acc5(folder: Path) -> None:
    """Upstream asks for a target of 5, which is the sixth class."""
    five = {split: [s for s in samples if s.target < 5] for split, samples in given.classification().items()}
    given.write_wds(folder / "wds_five", five, classes=given.CLASSES[:5])
    metrics = probe(folder, given.TINY, "five", {})
    assert metrics["lp_acc5"] == 1
    assert metrics["lp_acc1"] < 1


def test_caption_selection_with_one_image_each(folder: Path) -> None:
    crepe = ["--dataset", "sugar_crepe/add_att", "--dataset_root", folder / "crepe"]
    check(run(folder, given.TINY, *crepe)["metrics"], "one image, two captions")


class Samples:
    """Samples of `support/upstream.py` as a data set of one's own: (image or stack of images, target)."""

    def __init__(self, samples: list[given.Sample], transform: Any) -> None:
        self.samples, self.transform = samples, transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        sample = self.samples[index]
        images = [self.transform(Image.open(io.BytesIO(data))) for data in sample.images]
        return images[0] if len(images) == 1 else torch.stack(images), sample.target


def evaluated(folder: Path, name: str, task: str, samples: list[given.Sample], kind: str) -> dict[str, Any]:
    """The metrics of data from Python."""
    weights = "bundled" if name == given.DEMO else str(folder / f"{name}.pt")
    loaded = load(ModelSpec(name=name, pretrained=weights), CPU, torch.float32, 0)
    own = OwnDataset(Samples(samples, loaded.transform), kind=kind)
    return measure(loaded, task, own).metrics


def measure(loaded: LoadedModel, task: str, own: OwnDataset, **fields: Any) -> Any:
    request = Request(model=loaded.spec, data=DataSpec(name="own"), task=make_task(task, **fields), compute=FLOAT32)
    return evaluate(request, model=loaded, dataset=own, progress=False)


@pytest.mark.parametrize(
    ("model", "samples", "case"),
    [
        (given.TINY, given.selection(2), "two images, two captions"),
        (given.DEMO, given.photographs_to_tell_apart(1), "photographs, one image"),
        (given.DEMO, given.photographs_to_tell_apart(2), "photographs, two images"),
    ],
)
def test_caption_selection(folder: Path, model: str, samples: list[given.Sample], case: str) -> None:
    check(evaluated(folder, model, "image_caption_selection", samples, "choices"), case)


def captioned(loaded: LoadedModel, own: OwnDataset) -> dict[str, Any]:
    return measure(loaded, "captioning", own, spice="no").metrics


def test_the_scores_of_captions(folder: Path) -> None:
    """Of given captions: the model "generates" their tokens."""
    loaded = load(ModelSpec(name=given.COCA, pretrained=str(folder / "coca-upstream-tiny.pt")), CPU, torch.float32, 0)
    references, judged = given.captions()
    tokens = iter(open_clip.tokenize(judged))
    loaded.model.generate = lambda images: torch.stack([next(tokens) for _ in images])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("open_clip.coca_model._has_transformers", True)
        samples = list(zip([torch.zeros(3, 32, 32)] * len(judged), references, strict=True))
        check(captioned(loaded, OwnDataset(samples, kind="captions")), "judged captions")


@pytest.mark.skipif(not coca_model._has_transformers, reason="open_clip's CoCa needs transformers below 4.56")
def test_what_a_coca_writes(folder: Path) -> None:
    loaded = load(ModelSpec(name=given.COCA, pretrained=str(folder / "coca-upstream-tiny.pt")), CPU, torch.float32, 0)
    own = OwnDataset(Samples(given.retrieval()[:6], loaded.transform), kind="captions")
    written = []
    generate = loaded.model.generate
    loaded.model.generate = lambda images: written.append(generate(images)) or written[-1]
    check(captioned(loaded, own), "generated captions")
    said = [open_clip.decode(ids).split("<end_of_text>")[0] for ids in torch.cat(written)]
    assert [text.replace("<start_of_text>", "").strip() for text in said] == GOLDEN["generated captions"]["captions"]


# --- the results


TASKS = ("zeroshot_classification", "zeroshot_retrieval", "linear_probe", "image_caption_selection")


def theirs(task: str) -> Path:
    """A result that clip-benchmark wrote."""
    return given.GOLDENS / f"upstream_result_{task}.json"


@pytest.fixture(scope="module")
def ours(folder: Path) -> dict[str, Path]:
    """Our results of the same evaluations, pruned and not."""
    crepe = ["--dataset", "sugar_crepe/add_att", "--dataset_root", folder / "crepe"]
    flags = {
        "zeroshot_classification": ["--dataset", "wds/seven"],
        "zeroshot_retrieval": ["--dataset", "wds/captions", "--recall_k", 1, 5],
        "linear_probe": ["--dataset", "wds/seven", "--feature_root", folder / "features", "--batch_size", 16],
        "image_caption_selection": crepe,
    }
    pruned = ["--enable_pruning", "--k_anchors", 3, "--top_m", 4]
    for task in TASKS:
        for name, more in ((task, []), (f"{task}_pruned", pruned)):
            run(folder, given.TINY, *flags[task], "--task", task, *more, output=f"ours_{name}.json")
    return {path.stem.removeprefix("ours_"): path for path in folder.glob("ours_*.json")}


@pytest.mark.parametrize("task", TASKS)
def test_a_result_has_upstreams_keys_and_values(ours: dict[str, Path], task: str) -> None:
    expected, found = read(theirs(task)), read(ours[task])
    for key in ("dataset", "model", "task", "language"):
        assert found[key] == expected[key]
    assert found["metrics"].keys() == expected["metrics"].keys()
    assert Path(found["pretrained"]).name == expected["pretrained"]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_build_reads_upstreams_results_of_every_task_beside_ours(ours: dict[str, Path], tmp_path: Path) -> None:
    samples = sorted(given.GOLDENS.glob("upstream_result_*.json"))
    files = [*samples, *sorted(ours.values())]
    outcome = command("build", *files, "--output", tmp_path / "all.csv")
    assert outcome.code == 0, outcome.err
    rows = table(tmp_path / "all.csv")
    assert len(rows) == len(files) == 6 + 2 * len(TASKS)
    for path, row in zip(files, rows, strict=True):
        result = read(path)
        assert row["task"] == result["task"]
        for name, value in result["metrics"].items():
            assert row[name] == ("" if value is None or value != value else str(value))
    assert {row["pruning.strategy"] for row in rows} == {"", "anchor"}


def test_upstreams_build_reads_our_results_of_every_task(ours: dict[str, Path], tmp_path: Path) -> None:
    files = sorted(ours.values())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        upstream_build([*files, theirs("captioning")], Path("all.csv"))
        rows = table(Path("all.csv"))
    assert len(rows) == len(files) + 1
    for path, row in zip(files, rows, strict=False):
        result = read(path)
        assert row["model_fullname"] == f"{result['model']} {result['pretrained']}"
        assert {name: row[name] for name in result["metrics"]} == {
            name: "" if value is None else str(value) for name, value in result["metrics"].items()
        }


def upstream_build(files: list[Path], output: Path) -> None:
    """`clip_benchmark build`, in a process of its own: importing it warns."""
    code = "import json, sys; from argparse import Namespace; from clip_benchmark.cli import main_build; "
    code += "main_build(Namespace(files=sys.argv[2:], output=sys.argv[1]))"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, output, *files], check=True)


def test_every_repair_that_the_documents_name_has_its_test() -> None:
    text = (given.ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", text)
    assert len(named) > 15
    for file, name in named:
        assert f"def {name}(" in (given.ROOT / "tests" / file).read_text(encoding="utf-8"), name
