import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from anchorprune.evaluation import result as results
from anchorprune.studies.compare import Side, beside

ROOT = Path(__file__).parent.parent
UPSTREAM: dict[str, Any] = {
    "dataset": "cifar10",
    "model": "ViT-B-16",
    "pretrained": "openai",
    "task": "zeroshot_classification",
    "metrics": {"acc1": 0.825, "acc5": None, "mean_per_class_recall": 0.8125},
    "language": "en",
}
UNPRUNED: dict[str, Any] = {
    **UPSTREAM,
    "schema_version": 2,
    "pruning": None,
    "cost": {"gmacs_dense": 17.58, "gmacs": 17.58, "images_per_second": 9.9, "peak_memory_mb": 1200.0},
    "n_samples": 2000,
    "n_total": 8000,
    "n_bad_images": 0,
    "limit": 2000,
    "seed": 0,
    "model_options": {},
    "environment": {"device": "cpu", "dtype": "float32"},
}
PRUNED: dict[str, Any] = {
    **UNPRUNED,
    "metrics": {"acc1": 0.439, "acc5": None, "mean_per_class_recall": 0.4375},
    "pruning": {
        "strategy": "anchor",
        "k_anchors": 10,
        "measured": {"effective": True, "tokens_before": 197, "tokens_after": 61},
    },
    "cost": {"gmacs_dense": 17.58, "gmacs": 6.7, "images_per_second": 23.9, "peak_memory_mb": 900.0},
}


def compare(a: dict[str, Any], b: dict[str, Any], names: tuple[str, str] = ("A", "B")) -> str:
    return beside(*(Side(name, of) for name, of in zip(names, (a, b), strict=True))).to_text()


def row(text: str, name: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(name + " ")]
    return line.removeprefix(name).split()


def remarks(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    lines = compare(a, b).splitlines()
    after = next(i for i, line in enumerate(lines) if line.startswith("samples"))
    return lines[after + 2 :]


def test_the_table_is_aligned_plain_text_of_at_most_80_columns() -> None:
    assert (
        compare(UNPRUNED, PRUNED, ("dense.json", "pruned.json"))
        == """\
A: dense.json
B: pruned.json

                                  A             B    B against A
acc1                        82.50 %       43.90 %  -38.60 points
acc5                              –             –
mean_per_class_recall       81.25 %       43.75 %  -37.50 points
pruning                        none        anchor
tokens                          197     61 of 197
GMACs an image                17.58          6.70         0.38 x
images/s                        9.9          23.9         2.41 x
peak memory, MiB               1200           900         0.75 x
samples                2000 of 8000  2000 of 8000"""
    )


def test_a_result_of_schema_version_1_gives_the_same_table(tmp_path: Path) -> None:
    """There what was measured stood among the strategy's fields."""
    measured = PRUNED["pruning"]["measured"]
    old = {**PRUNED, "schema_version": 1, "pruning": {"strategy": "anchor", "k_anchors": 10, **measured}}
    (tmp_path / "old.json").write_text(json.dumps(old))
    assert compare(UNPRUNED, results.read(tmp_path / "old.json")) == compare(UNPRUNED, PRUNED)


def test_the_longest_metric_of_upstream_fits_80_columns() -> None:
    a = {**PRUNED, "metrics": {"image_retrieval_recall@10": 1.0, "lp_mean_per_class_recall": 1.0}}
    b = {**PRUNED, "metrics": {"image_retrieval_recall@10": 0.0, "lp_mean_per_class_recall": 0.0}}
    assert max(map(len, compare(a, b).splitlines())) <= 80


def test_upstreams_results_are_compared_and_what_they_lack_is_a_dash() -> None:
    text = compare(UPSTREAM, PRUNED)
    assert row(text, "acc1") == ["82.50", "%", "43.90", "%", "-38.60", "points"]
    assert row(text, "tokens") == ["197", "61", "of", "197"]
    assert row(text, "images/s") == ["–", "23.9"]
    assert row(text, "samples") == ["–", "2000", "of", "8000"]
    assert remarks(UPSTREAM, PRUNED) == ["A: not written by anchorprune; its seed, samples and timing are not known."]
    assert "GMACs" in compare(UPSTREAM, UPSTREAM)


def test_only_shares_are_in_percent() -> None:
    metrics = {"lp_acc1": 0.5, "mean_average_precision": 0.5, "CIDEr": 1.25, "epochs": 10, "normalized": True}
    text = compare({**UPSTREAM, "metrics": metrics}, {**UPSTREAM, "metrics": {**metrics, "CIDEr": 1.0}})
    assert row(text, "lp_acc1")[:2] == ["50.00", "%"]
    assert row(text, "mean_average_precision")[:2] == ["50.00", "%"]
    assert row(text, "CIDEr") == ["1.25", "1", "-0.25"]
    assert row(text, "epochs") == ["10", "10", "+0"]
    assert row(text, "normalized") == ["True", "True"]


def test_a_metric_that_only_one_has_is_shown() -> None:
    text = compare(UPSTREAM, {**UPSTREAM, "metrics": {"lp_acc1": 0.5}})
    assert row(text, "lp_acc1") == ["–", "50.00", "%"]
    assert row(text, "acc1") == ["82.50", "%", "–"]


def test_two_prunings_are_told_apart_by_their_settings() -> None:
    other = {**PRUNED, "pruning": {**PRUNED["pruning"], "k_anchors": 20}}
    assert row(compare(PRUNED, other), "k_anchors") == ["10", "20"]
    assert "k_anchors" not in compare(PRUNED, PRUNED)


def test_the_tokens_of_another_model_are_not_guessed() -> None:
    assert row(compare({**UNPRUNED, "model": "ViT-B-32"}, PRUNED), "tokens") == ["–", "61", "of", "197"]
    bigger = {**UNPRUNED, "model_options": {"force_image_size": 384}}
    assert row(compare(bigger, PRUNED), "tokens") == ["–", "61", "of", "197"]


def test_two_runs_of_the_same_thing_are_comparable() -> None:
    assert remarks(UNPRUNED, PRUNED) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dataset", "cifar100"),
        ("task", "linear_probe"),
        ("split", "train"),
        ("model", "ViT-B-32"),
        ("pretrained", "laion2b"),
        ("seed", 1),
        ("n_samples", 1000),
        ("n_bad_images", 3),
    ],
)
def test_each_difference_that_matters_is_a_line(key: str, value: object) -> None:
    a = {"split": "test", **UNPRUNED}
    b = {"split": "test", **PRUNED, key: value}
    assert remarks(a, b) == [f"Not comparable: {key} is {a[key]} in A, {value} in B."]


def test_a_limit_matters_where_the_samples_are_not_counted() -> None:
    whole = {**PRUNED, "limit": None}
    assert remarks(UNPRUNED, whole) == []
    a = {key: value for key, value in UNPRUNED.items() if key != "n_samples"}
    assert remarks(a, whole) == ["Not comparable: limit is 2000 in A, – in B."]


def test_another_device_or_precision_makes_the_timings_not_comparable() -> None:
    gpu = {**PRUNED, "environment": {"device": "cuda", "dtype": "bfloat16"}}
    assert remarks(UNPRUNED, gpu) == [
        "Timings not comparable: device is cpu in A, cuda in B.",
        "Timings not comparable: dtype is float32 in A, bfloat16 in B.",
    ]


def test_remarks_fit_80_columns() -> None:
    def on(name: str) -> dict[str, Any]:
        return {**PRUNED, "environment": {"device_name": name}}

    lines = remarks(on("Intel(R) Xeon(R) Processor @ 2.90GHz"), on("AMD EPYC 9654 96-Core Processor, 2 sockets"))
    assert max(map(len, lines)) <= 80
    assert " ".join(line.strip() for line in lines) == (
        "Timings not comparable: device_name is Intel(R) Xeon(R) Processor @ 2.90GHz in A, "
        "AMD EPYC 9654 96-Core Processor, 2 sockets in B."
    )


def test_a_run_that_dropped_nothing_says_so() -> None:
    pruning = {**PRUNED["pruning"], "measured": {"effective": False, "tokens_before": 50, "tokens_after": 50}}
    result = {**PRUNED, "pruning": pruning}
    assert remarks(UNPRUNED, result) == ["B: nothing was dropped, the budget covers all 50 tokens."]
    assert row(compare(UNPRUNED, result), "tokens") == ["50", "50"]


def test_pruning_that_costs_more_than_it_saves_is_reported() -> None:
    result = {**PRUNED, "cost": {**PRUNED["cost"], "gmacs": 18.0}}
    assert remarks(UNPRUNED, result) == ["B: pruning costs more than it saves: 17.58 GMACs without it."]
    same = {**PRUNED, "cost": {**PRUNED["cost"], "gmacs": 17.58}}
    assert remarks(UNPRUNED, same) == []


# --- prune_compare.sh and prune_test.sh, with a stand-in for the evaluation

STUB = """#!{python}
import json, pathlib, subprocess, sys
here = pathlib.Path(__file__).resolve().parent
args = sys.argv[1:]
if not args or args[0] == "-":
    sys.exit(subprocess.run([sys.executable, *args]).returncode)
if args[1] == "compare":
    from anchorprune.studies.compare import compare
    print(compare(*args[2:]).to_text())
    sys.exit()
with open(here / "calls.jsonl", "a") as file:
    file.write(json.dumps(args) + "\\n")
code = int((here / "code").read_text()) if (here / "code").exists() else 0
if code and (here / "fails").read_text() in args:
    sys.exit(code)
if (here / "silent").exists():
    sys.exit()
result = json.loads((here / ("pruned" if "--enable_pruning" in args else "unpruned")).read_text())
output = args[len(args) - 1 - args[::-1].index("--output") + 1]
names = args[args.index("--dataset") + 1 :]
for name in names[: next((i for i, word in enumerate(names) if word[:1] == "-"), len(names))]:
    path = pathlib.Path(output.format(dataset=name, pretrained="p", model="m", language="en", task="t"))
    if not ("--skip_existing" in args and path.exists()):
        path.write_text(json.dumps({{**result, "dataset": name}}))
"""


class Checkout:
    """A copy of the two scripts beside a python that records its calls, and a folder to work in."""

    def __init__(self, folder: Path) -> None:
        self.root, self.cwd = folder / "check out", folder / "somewhere else"
        self.bin = self.root / ".venv" / "bin"
        self.bin.mkdir(parents=True)
        self.cwd.mkdir()
        for script in ("prune_compare.sh", "prune_test.sh"):
            shutil.copy(ROOT / script, self.root)
        (self.bin / "python").write_text(STUB.format(python=sys.executable))
        (self.bin / "python").chmod(0o755)
        (self.bin / "unpruned").write_text(json.dumps(UNPRUNED))
        (self.bin / "pruned").write_text(json.dumps(PRUNED))

    def run(self, script: str, *flags: str, script_from_here: bool = False) -> subprocess.CompletedProcess[str]:
        (self.bin / "calls.jsonl").unlink(missing_ok=True)
        path = self.root / script
        return subprocess.run(
            ["bash", path.relative_to(self.root.parent) if script_from_here else path, *flags],
            cwd=self.root.parent if script_from_here else self.cwd,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "CDPATH": str(self.cwd.parent), "PYTHONUTF8": "1"},
        )

    def calls(self) -> list[list[str]]:
        calls = self.bin / "calls.jsonl"
        return [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []

    def fail(self, code: int, on: str) -> None:
        (self.bin / "code").write_text(str(code))
        (self.bin / "fails").write_text(on)


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    if shutil.which("bash") is None:
        pytest.skip("the scripts need bash")
    return Checkout(tmp_path)


TEMPLATE = "{dataset}_{pretrained}_{model}_{language}_{task}.json"
DEMO = ["--model", "anchorprune-demo", "--pretrained", "bundled", "--dataset", "bundled"]


def test_prune_compare_without_flags_runs_the_demo_twice_and_compares(checkout: Checkout) -> None:
    done = checkout.run("prune_compare.sh")
    assert (done.returncode, done.stderr) == (0, "")
    cli = str(checkout.root / "clip_benchmark" / "cli.py")
    assert checkout.calls() == [
        [cli, "eval", *DEMO, "--output", f"prune_compare/unpruned/{TEMPLATE}"],
        [cli, "eval", *DEMO, "--enable_pruning", "--output", f"prune_compare/pruned/{TEMPLATE}"],
    ]
    assert "A: prune_compare/unpruned/bundled_p_m_en_t.json" in done.stdout
    assert row(done.stdout, "tokens") == ["197", "61", "of", "197"]
    folder = checkout.cwd / "prune_compare"
    assert sorted(path.name for path in folder.iterdir()) == ["pruned", "unpruned"]


def test_pruning_flags_alone_act_on_the_demo(checkout: Checkout) -> None:
    assert checkout.run("prune_compare.sh", "--enable_pruning", "--k_anchors", "20").returncode == 0
    unpruned, pruned = checkout.calls()
    assert unpruned[2:10] == [*DEMO, "--k_anchors", "20"]
    assert pruned[2:11] == [*DEMO, "--enable_pruning", "--k_anchors", "20"]


@pytest.mark.parametrize("flag", ["--enable_pruning", "--enable"])
def test_the_unpruned_run_is_never_told_to_prune(checkout: Checkout, flag: str) -> None:
    assert checkout.run("prune_compare.sh", "--dataset", "d", flag, "--k_anchors", "20").returncode == 0
    unpruned, pruned = checkout.calls()
    assert unpruned[2:6] == ["--dataset", "d", "--k_anchors", "20"]
    assert pruned[2:7] == ["--dataset", "d", flag, "--k_anchors", "20"]


def test_flags_with_spaces_and_stars_reach_both_runs_unchanged(checkout: Checkout) -> None:
    flags = ["--dataset", "d", "--dataset_root", "my data/*/{dataset}", "--model", ""]
    assert checkout.run("prune_compare.sh", *flags).returncode == 0
    assert [call[2:8] for call in checkout.calls()] == [flags, flags]


def test_each_run_keeps_its_own_attention(checkout: Checkout) -> None:
    assert checkout.run("prune_compare.sh", "--dataset", "d", "--extract_attention").returncode == 0
    files = [call[call.index("--attention_output") + 1] for call in checkout.calls()]
    assert [Path(file).parent.name for file in files] == ["unpruned", "pruned"]
    assert len({Path(file).name for file in files}) == 1


@pytest.mark.parametrize(
    "flags",
    [["--output", "x.json"], ["--output=x.json"], ["--out", "x.json"], ["--attention_output", "x.pt"]],
)
def test_an_output_of_the_users_own_is_refused_in_one_line(checkout: Checkout, flags: list[str]) -> None:
    done = checkout.run("prune_compare.sh", "--dataset", "d", *flags)
    assert done.returncode == 2
    assert done.stderr.startswith(f"prune_compare.sh: {flags[0]}: ")
    assert done.stderr.count("\n") == 1
    assert checkout.calls() == []
    assert list(checkout.cwd.iterdir()) == []


def test_every_pair_of_this_run_is_compared_and_no_earlier_one(checkout: Checkout) -> None:
    checkout.run("prune_compare.sh", "--dataset", "old")
    for path in checkout.cwd.rglob("old_*.json"):
        os.utime(path, (1, 1))
    done = checkout.run("prune_compare.sh", "--dataset", "one", "two")
    compared = [line for line in done.stdout.splitlines() if line.startswith("B: prune_compare")]
    assert compared == [f"B: prune_compare/pruned/{name}_p_m_en_t.json" for name in ("one", "two")]


def test_results_that_are_skipped_are_compared(checkout: Checkout) -> None:
    flags = ["--dataset", "one", "two", "--skip_existing"]
    checkout.run("prune_compare.sh", *flags)
    for path in checkout.cwd.rglob("*.json"):
        os.utime(path, (1, 1))
    skipped = checkout.run("prune_compare.sh", *flags)
    assert skipped.stdout.count("B: prune_compare/pruned/") == 2
    (checkout.cwd / "prune_compare/pruned/two_p_m_en_t.json").unlink()
    half = checkout.run("prune_compare.sh", *flags)
    assert half.stdout.count("B: prune_compare/pruned/") == 1
    assert "B: prune_compare/pruned/two_" in half.stdout


def test_an_earlier_result_never_stands_in_for_one_that_was_not_written(checkout: Checkout) -> None:
    checkout.run("prune_compare.sh", "--dataset", "one")
    for path in checkout.cwd.rglob("*.json"):
        os.utime(path, (1, 1))
    (checkout.bin / "silent").touch()
    done = checkout.run("prune_compare.sh", "--dataset", "one")
    assert done.returncode == 1
    assert "no pair of results" in done.stderr
    assert "B: prune_compare" not in done.stdout


def test_the_scripts_are_found_by_a_relative_path_too(checkout: Checkout) -> None:
    done = checkout.run("prune_compare.sh", script_from_here=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("on", "calls"), [("eval", 1), ("--enable_pruning", 2)])
@pytest.mark.parametrize("code", [1, 2])
@pytest.mark.parametrize("script", ["prune_compare.sh", "prune_test.sh"])
def test_the_exit_code_of_a_run_that_fails_passes_through(
    checkout: Checkout, script: str, code: int, on: str, calls: int
) -> None:
    checkout.fail(code, on)
    done = checkout.run(script, "--dataset", "d")
    assert done.returncode == code
    assert len(checkout.calls()) == calls
    assert "OK" not in done.stdout
    if calls == 1:
        assert list(checkout.cwd.iterdir()) == []


def test_help_says_what_the_scripts_do_and_runs_nothing(checkout: Checkout) -> None:
    for script in ("prune_compare.sh", "prune_test.sh"):
        done = checkout.run(script, "--help")
        assert done.returncode == 0
        assert f"bash {script} [flags of 'anchorprune eval']" in done.stdout
    assert checkout.calls() == []


def test_prune_test_says_ok_and_the_tokens(checkout: Checkout) -> None:
    done = checkout.run("prune_test.sh")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("\nOK ViT-B-16 openai, bundled: 197 tokens before, 61 after\n")
    small = ["--limit", "64", "--batch_size", "16", "--num_workers", "0"]
    assert [call[2:14] for call in checkout.calls()] == [[*DEMO, *small]] * 2


def test_a_flag_given_to_prune_test_overrides_its_default(checkout: Checkout) -> None:
    assert checkout.run("prune_test.sh", "--dataset", "d", "--limit", "8").returncode == 0
    for call in checkout.calls():
        # argparse takes the last one
        assert call.index("64") < call.index("8")


def test_prune_test_says_when_nothing_was_dropped(checkout: Checkout) -> None:
    pruning = {**PRUNED["pruning"], "measured": {"effective": False, "tokens_before": 197, "tokens_after": 197}}
    (checkout.bin / "pruned").write_text(json.dumps({**PRUNED, "pruning": pruning}))
    done = checkout.run("prune_test.sh")
    assert done.returncode == 0
    assert "197 after (nothing was dropped: the budget covers all tokens)" in done.stdout


def test_prune_test_fails_if_the_pruned_run_did_not_prune(checkout: Checkout) -> None:
    (checkout.bin / "pruned").write_text(json.dumps(UNPRUNED))
    done = checkout.run("prune_test.sh")
    assert done.returncode == 1
    assert "did not prune" in done.stderr
    assert "OK" not in done.stdout
