"""The bundled model and photos, and `anchorprune demo` from end to end."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from support import browser
from support.opened import opened
from support.pages import check_in_browser, check_offline, elements, embedded

from anchorprune import RECOMMENDED, UserError, bundled
from anchorprune.commands import main
from anchorprune.evaluation import result as results
from anchorprune.evaluation.statistics import Difference, wilson
from anchorprune.models import open_clip as tower_file
from anchorprune.report.table import Row
from anchorprune.studies import demo as run
from anchorprune.studies import demo_words as words
from anchorprune.towers import find_tower

pytestmark = pytest.mark.skipif(not bundled.PHOTOS.is_dir(), reason="the bundled photos are not there")

LIMIT = 20
# The tokens that reach the tower's end where they are not the described method's 61.
GRADUAL = {"coarse_66.json": 67, "coarse_124.json": 125, "tome_37.json": 13, "tome_20.json": 77}


@pytest.fixture(scope="module", autouse=True)
def weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The bundled weights, or random ones in their place where they are not there yet."""
    with pytest.MonkeyPatch.context() as patch:
        if not bundled.WEIGHTS.is_file():
            bundled.register()
            torch.manual_seed(0)
            state = open_clip.create_model(bundled.MODEL).state_dict()
            path = tmp_path_factory.mktemp("weights") / "model.safetensors"
            save_file({name: value.half().contiguous() for name, value in state.items()}, path)
            patch.setattr(bundled, "WEIGHTS", path)
        yield bundled.WEIGHTS


def command(*argv: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `anchorprune ARGV`, run in this process."""
    out, err = io.StringIO(), io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(arg) for arg in argv])
        except SystemExit as error:  # argparse
            code = int(error.code or 0)
    return code, out.getvalue(), err.getvalue()


# --- --model anchorprune-demo --pretrained bundled


def test_the_model_is_an_open_clip_model_with_as_many_tokens_as_vit_b_16() -> None:
    loaded = tower_file.load(bundled.MODEL, bundled.TAG, cache_dir=None, device=torch.device("cpu"), precision="fp32")
    tower = find_tower(loaded.model)
    assert type(loaded.model) is open_clip.CLIP
    assert (tower.num_tokens, tower.grid, tower.image_size) == (197, (14, 14), (112, 112))
    assert len(tower.blocks) >= 6
    assert not loaded.model.training
    for name, value in load_file(bundled.WEIGHTS).items():
        assert torch.equal(loaded.model.state_dict()[name], value.float()), name
    assert loaded.tokenizer(["a photo of a ketch."]).shape[0] == 1


def test_bundled_weights_fit_their_own_model_alone() -> None:
    with pytest.raises(
        UserError, match=r"pretrained='bundled': these are weights of the model anchorprune-demo, not of ViT"
    ):
        tower_file.check("ViT-B-32", "bundled")
    with pytest.raises(UserError, match=r"model='anchorprune-dem': .* Did you mean 'anchorprune-demo'\?"):
        tower_file.check("anchorprune-dem", "bundled")
    with pytest.raises(UserError, match=r"Did you mean 'bundled'\? \(its tags are bundled\)"):
        tower_file.check("anchorprune-demo", "bundeld")
    with pytest.raises(UserError, match="its tags are bundled"):
        tower_file.check("anchorprune-demo", "openai")


def test_a_file_called_bundled_is_a_checkpoint_of_another_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bundled").touch()
    tower_file.check("ViT-B-32", "bundled")
    tower_file.check("anchorprune-demo", "bundled")


def test_missing_and_damaged_weights_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundled, "WEIGHTS", tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"model.safetensors is missing from this installation"):
        tower_file.check("anchorprune-demo", "bundled")
    code, out, err = command("demo", "--out", tmp_path / "out")
    assert (code, out, (tmp_path / "out").exists()) == (2, "", False)
    assert "is missing from this installation" in err
    (tmp_path / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    with pytest.raises(UserError, match="is damaged"):
        tower_file.load("anchorprune-demo", "bundled", cache_dir=None, device=torch.device("cpu"), precision="fp32")


# --- --dataset bundled


def test_the_photos_are_a_balanced_test_split_with_names_prompts_and_attribution() -> None:
    dataset = opened("bundled", transform=lambda image: image.size)
    assert dataset.classes is not None
    assert dataset.targets is not None
    assert 300 <= len(dataset) <= 500
    counts = [list(dataset.targets).count(label) for label in range(len(dataset.classes))]
    assert min(counts) > 0
    assert dataset.templates
    assert min(dataset.items[0][0]) >= 112
    text = (bundled.PHOTOS / "ATTRIBUTION.txt").read_text()
    assert "CC BY 4.0" in text
    assert "10.22002/D1.20086" in text
    assert sum(file.stat().st_size for file in bundled.PHOTOS.rglob("*") if file.is_file()) < 6e6


def test_the_photos_have_one_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"split='train': .* Splits here: test"):
        opened("bundled", split="train", transform=str)
    with pytest.raises(UserError, match=r"Did you mean 'bundled'\?"):
        opened("bundeld", transform=str)
    monkeypatch.setattr(bundled, "PHOTOS", tmp_path / "photos")
    with pytest.raises(UserError, match="is missing from this installation"):
        opened("bundled", transform=str)


# --- anchorprune demo


@pytest.fixture(scope="module")
def outcome(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """The folder that the demo left, what it printed, and its page."""
    folder = tmp_path_factory.mktemp("demo") / "a {folder} & <more>"
    code, out, err = command("demo", "--limit", LIMIT, "--out", folder)
    assert (code, err) == (0, "")
    return folder, out, (folder / "report.html").read_text(encoding="utf-8")


def test_the_demo_leaves_a_page_and_the_results_and_nothing_else(outcome: tuple[Path, str, str]) -> None:
    folder, _, text = outcome
    expected = {file for way in run.WAYS for file in way.files()}
    assert {file.name for file in folder.iterdir()} == expected | {"report.html"}
    assert len(text) < 3e6
    for way in run.WAYS:
        for file, strategy in zip(way.files(), way.strategies(), strict=True):
            result = results.read(folder / file)
            assert (result["dataset"], result["model"], result["pretrained"]) == ("bundled", bundled.MODEL, "bundled")
            assert result["n_samples"] == LIMIT
            measured = (result["pruning"] or {}).get("measured", {})
            assert measured.get("tokens_after") == (GRADUAL.get(file, 61) if strategy else None)
            assert result["pruning"] == ({**strategy.as_dict(), "measured": measured} if strategy else None)


def test_a_result_of_the_demo_is_that_of_eval(outcome: tuple[Path, str, str], tmp_path: Path) -> None:
    folder, _, _ = outcome
    flags = [*run.EVAL, "--num_workers", 0, "--limit", LIMIT, "--quiet", "--enable_pruning", "--prune_layer", 4]
    assert command(*flags, "--output", tmp_path / "eval.json") == (0, "", "")
    ours, evals = results.read(folder / "anchor_block4.json"), results.read(tmp_path / "eval.json")
    assert ours["metrics"] == pytest.approx(evals["metrics"])
    differ = {key for key in evals if evals[key] != ours.get(key)}
    assert differ <= {"metrics", "cost", "batch_size", "request"}
    del ours["request"]["compute"], evals["request"]["compute"]  # other batches
    assert ours["request"] == evals["request"]
    assert set(ours) == set(evals)


def test_the_table_is_printed_once_with_every_row(outcome: tuple[Path, str, str]) -> None:
    folder, out, text = outcome
    assert out.count("tokens kept by") == 1
    assert str(folder / "report.html") in out
    acc1 = results.read(folder / "unpruned.json")["metrics"]["acc1"]
    low, high = wilson(acc1, LIMIT)
    row = next(line for line in out.splitlines() if line.startswith("everything (unpruned)"))
    assert row.split()[3:7] == [f"{100 * acc1:.1f}", "%", f"{100 * low:.1f}", "to"]
    assert f"{100 * high:.1f}" in row
    assert row.split()[-1] == "1.00×"
    assert f"{100 * low:.1f} to {100 * high:.1f}" in text
    pruned = tuple({f"{way.name} (" for way in run.WAYS if way.strategy})
    assert sum(line.startswith(pruned) for line in out.splitlines()) == len(run.WAYS) - 1


def test_the_gradual_ways_cost_no_more_than_the_described_method_that_they_stand_beside(
    outcome: tuple[Path, str, str],
) -> None:
    def gmacs(file: str) -> float:
        return float(results.read(outcome[0] / file)["cost"]["gmacs"])

    cheap, dear = gmacs("anchor.json"), gmacs("anchor_block4.json")
    for name in (RECOMMENDED, "tome"):
        low, high = sorted(gmacs(file) for way in run.GRADUAL if way.name == name for file in way.files())
        assert 0.95 * cheap < low <= cheap
        assert 0.95 * dear < high <= dear


def test_the_page_is_offline_escaped_and_attributed(outcome: tuple[Path, str, str]) -> None:
    _, _, text = outcome
    check_offline(text)
    assert "<more>" not in text
    found = elements(text)
    assert "a {folder} & <more>" in found.text  # in the command
    assert "--limit 20" in found.text
    assert "Caltech-101" in found.text
    links = {attributes.get("href") for tag, attributes in found.found if tag == "a"}
    assert links == {"https://doi.org/10.22002/D1.20086", "https://creativecommons.org/licenses/by/4.0/"}
    assert len(embedded(text)) == 3 + 2 * 12
    assert {image.size for image in embedded(text)[3:]} == {(336, 336)}


@pytest.mark.skipif(browser.executable() is None, reason="no chromium, chromium-browser or google-chrome in PATH")
@pytest.mark.parametrize("width", [1280, 375])
def test_the_demos_page_in_a_real_browser(outcome: tuple[Path, str, str], tmp_path: Path, width: int) -> None:
    found = browser.look(outcome[0] / "report.html", tmp_path, width)
    check_in_browser(found, width)
    assert found["heading"].startswith("Keeping 61 of 197 tokens: ")


def test_quiet_says_nothing_and_one_photo_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "BUSY", -1.0)  # whatever else the machine does, it is too much
    assert command("demo", "--limit", 1, "--quiet", "--out", tmp_path) == (0, "", "")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert len(embedded(text)) == 3 + 2
    assert "the speeds here are not reliable" in text
    told = text[text.index("<header>") : text.index("</header>")]
    assert "times" not in told  # as fast


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--out", "file"], "--out file: is a file; name a folder"),
        (["--out", "file/in/it"], "--out file/in/it: cannot write there (Not a directory)"),
        (["--out", "/proc/demo"], "--out /proc/demo: cannot write there"),
        (["--out", "taken"], "--out taken: report.html in it is a folder"),
        (["--limit", "0"], "--limit 0: give a number of photos from 1 up"),
        (["--limti", "3"], "unrecognized arguments: --limti 3. Did you mean '--limit'?"),
    ],
)
def test_bad_input_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("taken/report.html").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    code, out, err = command("demo", *argv)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert says in err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_made_for_nothing_does_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise UserError("no")

    monkeypatch.setattr(run, "_measure", fail)
    assert command("demo", "--out", tmp_path / "out")[0] == 2
    assert os.listdir(tmp_path) == []


# --- which photos are shown, and what is said of them


def test_photos_of_every_kind_and_of_different_classes_are_shown() -> None:
    truth = [i % 40 for i in range(400)]
    wrong = [(label + 1) % 40 for label in truth]
    before = [wrong[i] if i % 7 in (0, 1) else truth[i] for i in range(400)]
    after = [wrong[i] if i % 7 in (1, 2, 3) else truth[i] for i in range(400)]
    shown = run.pick(truth, before, after)
    assert shown == run.pick(truth, before, after)
    assert len({truth[i] for i, _ in shown}) == len(shown) == 12
    assert {kind: [k for _, k in shown].count(kind) for kind in words.KINDS} == run.PICTURES
    assert all(words.kind_of(truth[i], before[i], after[i]) == kind for i, kind in shown)


def test_other_photos_take_the_places_of_kinds_that_do_not_occur() -> None:
    truth = [0, 0, 1, 2] * 5
    assert len({i for i, _ in run.pick(truth, truth, truth)}) == 12
    assert run.pick([3], [3], [1]) == [(0, "lost")]


def a_row(accuracy: float, speed_up: float | None = 2.0, name: str = "anchor", draws: int = 1) -> Row:
    low, high = wilson(accuracy, 400)
    block = None if name == "everything" else 2
    return Row(name, "", block, accuracy, low, high, (accuracy,) * draws, 400, 61, 197, 0.4, 100.0, speed_up)


@pytest.mark.parametrize(
    ("accuracy", "speed_up", "says"),
    [
        (0.6, 2.04, "Keeping 61 of 197 tokens: 2.0 times as fast, 20.0 points less accurate"),
        (0.85, 1.0, "Keeping 61 of 197 tokens: no faster, 5.0 points more accurate"),
        (0.8, 0.5, "Keeping 61 of 197 tokens: slower (0.50 times the speed), just as accurate"),
        (0.8, None, "Keeping 61 of 197 tokens: just as accurate"),
    ],
)
def test_the_headline_says_what_the_numbers_say(accuracy: float, speed_up: float | None, says: str) -> None:
    assert words.headline(a_row(accuracy, speed_up), a_row(0.8, 1.0, "everything")) == says


@pytest.mark.parametrize(
    ("difference", "says", "never"),
    [
        (Difference(-0.1, -0.15, -0.05), "worse than chance", "better than chance"),
        (Difference(0.1, 0.05, 0.15), "better than chance", "worse"),
        (Difference(-0.01, -0.05, 0.03), "do not tell", "worse"),
    ],
)
def test_the_verdict_is_that_of_the_interval(difference: Difference, says: str, never: str) -> None:
    sentence = words.against_random(a_row(0.5), a_row(0.5 - difference.value, draws=3, name="random"), difference)
    assert says in sentence
    assert never not in sentence
    assert "mean of 3 draws" in sentence
    if difference.sign:
        assert "95 % interval 5.0 to 15.0" in sentence
    else:
        assert "-1.0 points, 95 % interval -5.0 to +3.0" in sentence


def test_the_best_pruning_is_named_with_its_block_where_it_has_one() -> None:
    unpruned = dataclasses.replace(a_row(0.8, 1.0, "everything"), tokens=197)
    early, gradual = a_row(0.5), dataclasses.replace(a_row(0.7, name="coarse"), block=None)
    assert "kept by coarse: 70.0 %" in words.best([unpruned, early, gradual], unpruned)
    assert "kept by anchor before block 2: 50.0 %" in words.best([unpruned, early], unpruned)


def test_all_changes_are_counted_not_only_those_shown() -> None:
    note = words.changes_note([0, 0, 0, 0, 1], [0, 0, 1, 1, 1], [0, 1, 0, 1, 1])
    assert "Of all 5, 2 were recognised before and after pruning, 1 only before, 1 only after, 1 neither time" in note


def test_the_config_is_the_one_that_is_packaged() -> None:
    assert json.loads(bundled.CONFIG.read_text())["vision_cfg"]["image_size"] == 112
