"""What `anchorprune eval` writes and where, what it skips, and `build` and `compare` on what it wrote."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from support.material import (
    PRUNED,
    TINY,
    World,
    checkpoint,
    command,
    evaluated,
    make_folder,
    read,
    register,
    slug,
    tree,
)

from anchorprune.models import open_clip as loading

pytest.importorskip("clip_benchmark")


pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The models that are loaded during the test."""
    loads, load = [], loading.load
    monkeypatch.setattr(loading, "load", lambda *args, **options: loads.append(args[:2]) or load(*args, **options))
    return loads


def named(world: World, *flags: object) -> list[object]:
    """A small evaluation without a name for its result."""
    return ["eval", *world.model, *world.three, "--num_workers", 0, *flags]


# --- names of files


def test_the_default_name_is_clip_benchmarks(world: World, here: Path) -> None:
    assert command(*named(world)).code == 0
    assert list(tree(here)) == [f"three_tiny.pt_{TINY}_en_zeroshot_classification.json"]


def test_a_pruned_run_has_a_default_name_of_its_own(world: World, here: Path) -> None:
    command(*named(world))
    command(*named(world, *PRUNED))
    command(*named(world, "--enable_pruning", "--strategy", "random", "--keep_patches", 4))
    name = f"three_tiny.pt_{TINY}_en_zeroshot_classification"
    assert sorted(tree(here)) == [f"{name}.json", f"{name}_anchor.json", f"{name}_random.json"]
    assert [read(f"{name}{end}.json")["pruning"] is None for end in ("", "_anchor", "_random")] == [True, False, False]


def test_attention_has_a_default_name_and_its_size_is_told_first(world: World, here: Path) -> None:
    outcome = command(*named(world, *PRUNED, "--extract_attention", "--output", "r.json"))
    assert sorted(tree(here)) == [f"attention_three_tiny.pt_{TINY}.pt", "r.json"]
    saved = torch.load(f"attention_three_tiny.pt_{TINY}.pt", weights_only=True)
    assert [list(w.shape) for w in saved["attention_weights"]] == [[7, 4, n, n] for n in (17, 8, 8, 8)]
    [said] = [i for i, line in enumerate(outcome.out) if line.startswith("Attention [7, 4, 17, 17] of block 1, 0.0 MB")]
    assert outcome.out[said].endswith(f"attention_three_tiny.pt_{TINY}.pt")
    assert outcome.out[-1] == "Dump results to: r.json"


def test_attention_of_as_many_images_as_wanted_unpruned_too(world: World) -> None:
    flags = ["--extract_attention", "--attention_images", 2, "--attention_output", "a_{dataset}.pt"]
    with_attention = evaluated(*world.model, *world.three, *flags, "--no_amp", "--output", "r.json")
    saved = torch.load("a_three.pt", weights_only=True)
    assert [list(w.shape) for w in saved["attention_weights"]] == [[2, 4, 17, 17]] * 4
    assert saved["kept_indices"].tolist() == [list(range(17))] * 2
    without = evaluated(*world.model, *world.three, "--no_amp", "--output", "r.json")
    assert with_attention["metrics"] == without["metrics"]


def test_every_combination_of_models_data_sets_and_languages_has_its_file(
    world: World, here: Path, loads: list[object]
) -> None:
    Path("out").mkdir()
    other = checkpoint(world.folder / "other.pt", register(world.folder, "cli-other", layers=2), seed=1)
    Path("models.txt").write_text(f"cli-other,{other}\n\n")
    Path("names.txt").write_text("wds/three\n")
    flags = ["--pretrained_model", f"{TINY},{world.weights}", "models.txt", *world.three[2:], "--language", "en", "jp"]
    template = "out/{model}_{pretrained}_{dataset}_{language}_{task}.json"
    outcome = command("eval", *flags, "--dataset", "names.txt", "wds/labels", "--num_workers", 0, "--output", template)
    assert outcome.code == 0, outcome.err
    runs = [(m, d, n) for m in (TINY, "cli-other") for d in ("three", "labels") for n in ("en", "jp")]
    pretrained = {TINY: "tiny.pt", "cli-other": "other.pt"}
    files = [f"out/{m}_{pretrained[m]}_{d}_{n}_zeroshot_classification.json" for m, d, n in runs]
    assert sorted(map(str, Path("out").iterdir())) == sorted(files)
    for (model, dataset, language), file in zip(runs, files, strict=True):
        result = read(file)
        assert (result["model"], result["dataset"], result["language"]) == (model, f"wds/{dataset}", language)
    assert loads == [(TINY, str(world.weights)), ("cli-other", str(other))]


def test_two_runs_with_one_name_are_refused_before_the_work(world: World, here: Path, loads: list[object]) -> None:
    outcome = command(*named(world, "--language", "en", "jp", "--output", "{dataset}.json"))
    assert outcome.code == 2
    said = "anchorprune: error: --output three.json: would be written 2 times; put {model}, {dataset}… in it"
    assert outcome.err == [said]
    for flags, said in (
        (["--extract_attention"], "--attention_output attention_three_tiny.pt_cli-tiny.pt: would be written 2 times"),
        (["--save_clf", "clf.pt"], "--save_clf clf.pt: would be written 2 times; evaluate one model and data set at"),
    ):
        [line] = command(*named(world, "--language", "en", "jp", "--output", "{language}.json", *flags)).err
        assert said in line
    [line] = command(*named(world, "--save_clf", "r.out", "--output", "./r.out")).err
    assert "--output ./r.out: would be written 2 times" in line
    assert (tree(here), loads) == ({}, [])


def test_the_full_path_of_the_weights_can_be_in_the_name(world: World, here: Path) -> None:
    command(*named(world, "--output", "{pretrained_full_path}.json"))
    assert list(tree(here)) == [str(world.weights).replace("/", "_") + ".json"]


# --- what is done already


def test_skip_existing_skips_what_is_done(world: World, loads: list[object]) -> None:
    flags = named(world, "--output", "r.json", "--skip_existing")
    assert command(*flags).code == 0
    written, loaded = Path("r.json").stat(), list(loads)
    again = command(*flags)
    assert (again.code, again.out, again.err) == (0, ["Skip r.json, exists already."], [])
    assert (Path("r.json").stat().st_mtime_ns, loads) == (written.st_mtime_ns, loaded)


def test_a_pruned_run_never_takes_the_unpruned_result_for_its_own(world: World) -> None:
    command(*named(world, "--output", "r.json"))
    again = command(*named(world, *PRUNED, "--output", "r.json", "--skip_existing"))
    assert again.out[0] == "r.json is not the result of these very settings: evaluating again."
    assert read("r.json")["pruning"]["measured"]["tokens_after"] == 8


@pytest.mark.parametrize(
    "change",
    [["--limit", 5], ["--no_amp"], ["--seed", 1, "--limit", 7], [*PRUNED, "--alpha", 1], ["--load_clfs", "clf.pt"]],
)
def test_other_settings_are_evaluated_again(world: World, change: list[object]) -> None:
    torch.save(torch.randn(16, 3), "clf.pt")
    first = [*PRUNED] if "--alpha" in change else ["--limit", 7] if "--seed" in change else []
    command(*named(world, *first, "--output", "r.json"))
    before = read("r.json")["config_hash"]
    assert command(*named(world, *change, "--output", "r.json", "--skip_existing")).code == 0
    assert read("r.json")["config_hash"] != before


@pytest.mark.parametrize(
    ("more", "path"),
    [
        (["--extract_attention", "--attention_output", "a.pt"], "a.pt"),
        (["--save_clf", "clf.pt"], "clf.pt"),
        (["--dump_classnames"], None),
        (["--dump_templates"], None),
    ],
)
def test_what_else_is_asked_for_must_be_there_too(world: World, more: list[str], path: str | None) -> None:
    flags = named(world, "--output", "r.json", "--skip_existing")
    command(*flags)
    assert not command(*flags, *more).out[0].startswith("Skip")
    assert path is None or Path(path).exists()
    assert command(*flags, *more).out == ["Skip r.json, exists already."]


def test_other_weights_under_the_same_name_are_evaluated_again(world: World) -> None:
    hashes = []
    for seed in (0, 1):
        checkpoint(Path("w.pt"), seed=seed)
        flags = ["--model", TINY, "--pretrained", "w.pt", *world.three]
        hashes.append(evaluated(*flags, "--output", "r.json", "--skip_existing")["config_hash"])
    assert hashes[0] != hashes[1]


def test_clip_benchmarks_result_counts_for_an_unpruned_run_only(world: World) -> None:
    theirs = dict.fromkeys(("dataset", "model", "pretrained", "task", "language"), "x") | {"metrics": {"acc1": 0.5}}
    Path("r.json").write_text(json.dumps(theirs))
    assert command(*named(world, "--output", "r.json", "--skip_existing")).out == ["Skip r.json, exists already."]
    assert read("r.json") == theirs
    command(*named(world, *PRUNED, "--output", "r.json", "--skip_existing"))
    assert read("r.json")["pruning"]["measured"]["effective"]


# --- quiet, distributed


def test_quiet_prints_nothing(world: World) -> None:
    outcome = command(*named(world, "--quiet", "--extract_attention", "--output", "r.json"))
    assert (outcome.code, outcome.out, outcome.err) == (0, [], [])
    assert read("r.json")["n_samples"] == 7


def test_a_run_says_what_it_does_in_a_few_lines(world: World) -> None:
    start, summary, end = command(*named(world, *PRUNED, "--output", "r.json")).out
    assert start == f"Running 'zeroshot_classification' on 'wds/three' with '{TINY} {world.weights}' (en)"
    assert "mean_per_class_recall" in summary
    assert "on 7 of 7 images; 8 of 17 tokens" in summary
    assert end == "Dump results to: r.json"


def test_ranks_share_the_runs_without_overlap(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"folder:{make_folder(Path(f'set{i}'), classes=2, per_class=1)}" for i in range(5)]
    flags = [*world.model, "--dataset", *names, "--num_workers", 0, "--distributed", "--output"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    written = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        Path(rank).mkdir()
        assert command("eval", *flags, f"{rank}/{{dataset}}.json").code == 0
        written.append({path.name for path in Path(rank).iterdir()})
    assert written[0] | written[1] == {f"{slug(name)}.json" for name in names}
    assert not written[0] & written[1]
    assert sorted(map(len, written)) == [2, 3]


# --- build and compare


def test_build_makes_a_table_with_sorted_columns(world: World) -> None:
    Path("out").mkdir()
    evaluated(*world.model, *world.three, "--output", "out/dense.json")
    evaluated(*world.model, *world.three, *PRUNED, "--output", "out/pruned.json")
    outcome = command("build", "out", "--output", "all.csv")
    assert (outcome.code, outcome.out, outcome.err) == (0, ["2 results: all.csv"], [])
    with open("all.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == sorted(rows[0])
    assert [row["pruning.strategy"] for row in rows] == ["", "anchor"]
    assert [row["pruning.measured.tokens_after"] for row in rows] == ["", "8"]
    for row, name in zip(rows, ("dense", "pruned"), strict=True):
        assert float(row["acc1"]) == read(f"out/{name}.json")["metrics"]["acc1"]
        assert row["model_fullname"] == f"{TINY} {world.weights}"


def test_compare_prints_metrics_tokens_and_cost(world: World) -> None:
    evaluated(*world.model, *world.three, "--output", "dense.json")
    evaluated(*world.model, *world.three, *PRUNED, "--output", "pruned.json")
    outcome = command("compare", "dense.json", "pruned.json")
    assert (outcome.code, outcome.err) == (0, [])
    rows = {line.split("  ")[0]: line.split() for line in outcome.out}
    assert rows["tokens"][1:] == ["17", "8", "of", "17"]
    assert rows["pruning"][1:] == ["none", "anchor"]
    assert {"acc1", "mean_per_class_recall", "GMACs an image", "images/s", "samples"} <= rows.keys()
    assert not any(line.startswith("Not comparable") for line in outcome.out)
