"""Files for other runtimes: what ONNX Runtime, OpenVINO and a loaded program give is what the pruned model gives."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.libraries import LIBRARIES, encode, timm_vit
from support.models import IMAGE_SIZE, make_clip, make_visual
from support.strategies import SMALL
from torch import Tensor
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor
from torchvision.transforms.v2.functional import resize

import anchorprune
from anchorprune import ModelSpec, UserError
from anchorprune.models import load
from anchorprune.models.huggingface import Preprocess
from anchorprune.pruning.cost import image_tower_flops
from anchorprune.pruning.export import ImageTower, check_format, image_tower_alone, read_about, runner
from anchorprune.pruning.preprocessing import ResizeStraight, mean_and_std
from anchorprune.strategies import standalone
from anchorprune.studies import export as exports

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

BUNDLED = ModelSpec(name="anchorprune-demo", pretrained="bundled")
# Every strategy in open_clip's tower, and strategies that need most of a tower in one of each kind of the others. All
# of them in all towers take half an hour: ANCHORPRUNE_EXPORT_ALL=1.
OPEN_CLIP = "open_clip"
ALL = [(library, strategy) for library in (OPEN_CLIP, *LIBRARIES) for strategy in sorted(standalone())]
SUBSET = [(OPEN_CLIP, strategy) for strategy in sorted(standalone())] + [
    ("transformers CLIP", "coarse"),
    ("transformers SigLIP", "tome"),
    ("transformers DINOv2", "coarse"),
    ("OpenAI's clip", "thin"),
    ("timm ViT, mean pooling", "pitome"),
    ("timm ViT, registers, LayerScale, q/k norm", "coarse"),
    ("timm Eva, rotary", "coarse"),
]
COMBINATIONS = ALL if os.environ.get("ANCHORPRUNE_EXPORT_ALL") else SUBSET


def model_of(library: str) -> Any:
    return make_visual() if library == OPEN_CLIP else LIBRARIES[library]()


def quick(model: Any, strategy: Any, path: Path, **options: Any) -> Any:
    """An export without photographs and timing, which the tests do themselves."""
    return anchorprune.export(model, strategy, path, **({"check_images": 0, "speed": False} | options))


def pruned_features(model: Any, strategy: str, count: int, **fields: Any) -> tuple[Tensor, Tensor]:
    """Images that the file takes, and what the pruned model itself makes of them."""
    with anchorprune.prune(model, strategy, small_images=True, **fields) as pruning, torch.no_grad():
        images = torch.randn(count, 3, *pruning.image_size, generator=torch.Generator().manual_seed(3))
        return images, encode(model, images)


# What is written.


@pytest.mark.parametrize(("library", "strategy"), COMBINATIONS)
def test_onnx_runtime_gives_the_features_of_the_pruned_model(library: str, strategy: str, tmp_path: Path) -> None:
    model, fields = model_of(library), SMALL[strategy]
    images, expected = pruned_features(model, strategy, 5, **fields)
    quick(model, strategy, tmp_path / "tower.onnx", **fields)
    onnx.checker.check_model(str(tmp_path / "tower.onnx"), full_check=True)
    run = runner(tmp_path / "tower.onnx", "onnx")
    for count in (5, 1):
        torch.testing.assert_close(run(images[:count]), expected[:count], rtol=2e-4, atol=2e-4)
    check_graph(onnx.load(tmp_path / "tower.onnx").graph)
    if library == OPEN_CLIP:
        run = in_openvino(tmp_path / "tower.onnx")
        for count in (5, 1):
            torch.testing.assert_close(run(images[:count]), expected[:count], rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(
    ("strategy", "fields"),
    [
        ("anchor", {**SMALL["anchor"], "score_input": "raw"}),
        ("evit", {**SMALL["evit"], "fusion": "sum"}),
        ("pitome", {"ratio": 0.8, "metric": "tokens", "prop_attn": "on"}),
        ("tome", {"r": (5, 0, 3), "prop_attn": "off"}),
    ],
)
def test_onnx_runtime_gives_them_with_fields_that_change_what_is_computed(
    strategy: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    model = make_visual()
    images, expected = pruned_features(model, strategy, 3, **fields)
    quick(model, strategy, tmp_path / "tower.onnx", **fields)
    torch.testing.assert_close(runner(tmp_path / "tower.onnx", "onnx")(images), expected, rtol=2e-4, atol=2e-4)


def check_graph(graph: Any) -> None:
    """Nothing that runtimes refuse or do otherwise (docs/deploying.md), and a batch of any size."""
    assert not {node.op_type for node in graph.node} & {"Resize", "Loop", "If", "Scan", "NonZero"}
    for node in graph.node:
        attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        assert attributes.get("reduction", b"none") == b"none"
    constants = {each.name for each in graph.initializer}
    constants |= {name for node in graph.node if node.op_type == "Constant" for name in node.output}
    assert {node.input[1] for node in graph.node if node.op_type == "TopK"} <= constants
    batch, *rest = (d.dim_param or d.dim_value for d in graph.input[0].type.tensor_type.shape.dim)
    assert isinstance(batch, str)
    assert all(isinstance(size, int) for size in rest)


def in_openvino(path: Path) -> Any:
    """What runs a file in OpenVINO, in float32."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own
        openvino = pytest.importorskip("openvino")
        compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: torch.from_numpy(compiled([images.numpy()])[0])


@pytest.mark.parametrize("strategy", ["coarse", "pitome", "random"])
def test_a_loaded_program_gives_them_too(strategy: str, tmp_path: Path) -> None:
    model = make_visual()
    images, expected = pruned_features(model, strategy, 5, **SMALL[strategy])
    quick(model, strategy, tmp_path / "tower.pt2", format="torch", **SMALL[strategy])
    with open(tmp_path / "tower.pt2", "rb") as file:
        program = torch.export.load(file).module()
    with torch.no_grad():
        for count in (5, 1):
            torch.testing.assert_close(program(images[:count]), expected[:count], rtol=1e-5, atol=1e-5)
    assert read_about(tmp_path / "tower.pt2", "torch")["strategy"]["strategy"] == strategy


def test_the_unpruned_tower_is_exported_too(tmp_path: Path, images: Tensor) -> None:
    clip = make_clip()
    found = quick(clip, None, tmp_path / "tower.onnx")
    with torch.no_grad():
        expected = clip.encode_image(images)
    torch.testing.assert_close(runner(tmp_path / "tower.onnx", "onnx")(images), expected, rtol=1e-4, atol=1e-4)
    assert found.about["strategy"] is None
    assert found.about["image_size"] == [IMAGE_SIZE, IMAGE_SIZE]


def test_the_model_itself_stays_as_it_was(tmp_path: Path, images: Tensor) -> None:
    clip = make_clip()
    with torch.no_grad():
        before = clip.encode_image(images)
        quick(clip, "coarse", tmp_path / "tower.pt2", format="torch", keep_patches=6)
        assert torch.equal(clip.encode_image(images), before)
    assert hasattr(clip, "token_embedding")
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_file_holds_the_image_tower_alone(tmp_path: Path) -> None:
    clip = make_clip()
    quick(clip, "coarse", tmp_path / "tower.pt2", format="torch", keep_patches=6)
    text = clip.token_embedding.weight.numel() * 4
    assert os.path.getsize(tmp_path / "tower.pt2") < text < sum(p.numel() * 4 for p in clip.parameters())


@torch.no_grad()
@pytest.mark.parametrize("library", ["transformers CLIP", "OpenAI's clip", "timm ViT", "transformers SigLIP"])
def test_a_model_without_what_its_features_do_not_need_gives_the_same(library: str, images: Tensor) -> None:
    model = LIBRARIES[library]()
    expected = encode(model, images)
    before = sum(p.numel() for p in model.parameters())
    assert torch.equal(ImageTower(image_tower_alone(model))(images), expected)
    assert (sum(p.numel() for p in model.parameters()) < before) == (library != "timm ViT")


# The whole way, with photographs.


def test_export_reports_what_the_file_is_worth(tmp_path: Path) -> None:
    found = anchorprune.export(
        BUNDLED, "coarse", tmp_path / "tower.onnx", keep_patches=66, check_images=9, text_path=tmp_path / "text.onnx",
        normalize=True,
    )  # fmt: skip
    assert found.check.samples == 9
    assert found.check.largest_difference < 1e-4
    assert found.check.least_cosine > 0.9999
    assert found.check.differing == 0
    assert found.text_check.least_cosine > 0.9999
    assert found.speed.speed_up > 0
    assert found.megabytes == os.path.getsize(tmp_path / "tower.onnx") / 1e6
    about = read_about(tmp_path / "tower.onnx", "onnx")
    assert about == found.about
    strategy = anchorprune.Strategy.from_dict(about["strategy"])
    assert strategy == anchorprune.Coarse(keep_patches=66)
    assert (about["model"], about["pretrained"]) == ("anchorprune-demo", "bundled")
    assert about["image_size"] == [88, 88]
    assert about["own_image_size"] == [112, 112]
    assert about["mean"] == pytest.approx([0.48145466, 0.4578275, 0.40821073])
    assert about["gmacs"] < about["gmacs_dense"]
    assert "88 × 88 pixels" in found.to_text()
    assert json.loads(json.dumps(found.to_dict()))["speed_up"] == found.speed.speed_up

    # As a service would use it: no anchorprune but for the preprocessing.
    loaded = load(BUNDLED, torch.device("cpu"), "fp32")
    photo = Image.new("RGB", (300, 200), (90, 120, 30))
    with anchorprune.prune(loaded.model, strategy, small_images=True) as pruning, torch.no_grad():
        batch = pruning.transform(loaded.transform)(photo).unsqueeze(0)
        expected = torch.nn.functional.normalize(loaded.model.encode_image(batch), dim=-1)
    session = onnxruntime.InferenceSession(str(tmp_path / "tower.onnx"), providers=["CPUExecutionProvider"])
    features = session.run(["features"], {"images": batch.numpy()})[0]
    np.testing.assert_allclose(features, expected.numpy(), atol=1e-5)


def test_another_model_in_the_file_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = exports.runner
    monkeypatch.setattr(exports, "runner", lambda *given: lambda images: right(*given)(images.flip(3)))
    with pytest.warns(UserWarning, match=r"features are others than the model's for 100 % of the samples"):
        found = anchorprune.export(BUNDLED, None, tmp_path / "tower.pt2", format="torch", check_images=3, speed=False)
    assert found.check.differing == 1


def test_the_command_writes_the_file_and_says_what_it_is_worth(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "anchorprune", "export", "--model", "anchorprune-demo", "--pretrained", "bundled"]
    words += ["--strategy", "thin", "--target_gmacs", "0.7", "--format", "torch", "--output", "tower.pt2"]
    words += ["--check_images", "2", "--no_speed", "--report", "report.json"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "held against the model on 2 photographs" in done.stdout
    assert done.stderr == ""
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["about"]["strategy"]["strategy"] == "thin"
    assert 0.6 < report["about"]["gmacs"] <= 0.7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "tower.pt2"]


# What is refused, in one sentence and before anything is written.


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"format": "tflite"}, r"format='tflite': choose one of onnx, torch"),
        ({"strategy": anchorprune.Anchor(selection="first_image")}, r"cannot export .*selection='per_image'"),
        ({"strategy": None, "target_gmacs": 1.0}, r"target_gmacs=1.0: nothing is pruned"),
        ({"strategy": anchorprune.Tome(r=3), "r": 3}, r"give fields \(r\) with a strategy's name"),
        ({"check_images": -1}, r"check_images=-1: must be 0 \(none\) or more"),
        ({"path": "no/such/folder/x.onnx"}, r"output=.*there is no folder"),
        ({"text_path": "tower.onnx"}, r"text_output='tower.onnx': is the image tower's file"),
        ({"model": make_visual().half()}, r"weights in float16 on cpu; export a model in float32"),
        ({"model": make_visual().train()}, r"in training mode; call model.eval"),
        ({"model": LIBRARIES["timm ViT"](), "text_path": "t.onnx"}, r"text_output='t.onnx'.*no text tower"),
    ],
)
def test_what_cannot_be_exported_is_refused(options: dict, sentence: str, here: Path) -> None:
    wanted = {"model": make_visual(), "strategy": "coarse", "path": "tower.onnx", "keep_patches": 6} | options
    if not isinstance(wanted["strategy"], str):
        del wanted["keep_patches"]
    with pytest.raises(UserError, match=sentence):
        quick(wanted.pop("model"), wanted.pop("strategy"), wanted.pop("path"), **wanted)
    assert not list(here.iterdir())


def test_a_missing_package_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(UserError, match=r"format='onnx': needs onnxscript: pip install 'anchorprune\[export\]'"):
        check_format("onnx", run=True)
    check_format("torch", run=True)


def test_a_failure_leaves_an_earlier_file_as_it_was(here: Path) -> None:
    class Counting(torch.nn.Module):
        """A block's own activation that looks at the values, which no graph can."""

        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if x.device.type != "meta" and float(x.sum()) > 0 else x

    (here / "tower.onnx").write_text("earlier")
    visual = make_visual()
    visual.ln_post = Counting()
    with pytest.raises(UserError, match=r"cannot be exported: torch.export has no way to say it"):
        quick(visual, "coarse", here / "tower.onnx", keep_patches=6)
    assert (here / "tower.onnx").read_text() == "earlier"
    assert len(list(here.iterdir())) == 1


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--strategy", "none", "--keep_patches", "5"], "--keep_patches 5: nothing is pruned with --strategy none"),
        (["--keep_patches", "5", "--target_gmacs", "0.5"], "--keep_patches 5: is what --target_gmacs solves"),
        (["--strategy", "anchor", "--selection", "first_image"], "cannot export"),
        (["--target_gmacs", "9"], "--target_gmacs 9"),
        (["--pretrained", ""], "--pretrained: name a tag or a checkpoint file"),
    ],
)
def test_the_command_refuses_in_one_line(flags: list[str], sentence: str, here: Path, capsys: Any) -> None:
    from anchorprune.commands import main

    words = ["export", "--model", "anchorprune-demo", "--pretrained", "bundled", "--output", "x.onnx", *flags]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not list(here.iterdir())


# Smaller images go in small.


@pytest.mark.parametrize("library", [OPEN_CLIP, "transformers CLIP", "timm ViT", "timm Eva, rotary", "OpenAI's clip"])
@torch.no_grad()
def test_images_that_were_shrunk_before_give_what_the_tower_makes_of_them(library: str, images: Tensor) -> None:
    model = model_of(library)
    with anchorprune.prune(model, "coarse", keep_patches=6) as pruning:
        size, expected, kept, counts = pruning.image_size, encode(model, images), pruning.kept, pruning.tokens_by_block
        dense_cost = image_tower_flops(model)
    assert size == (32, 24)
    small = resize(images, list(size), InterpolationMode.BICUBIC, antialias=True)
    with anchorprune.prune(model, "coarse", keep_patches=6, small_images=True) as pruning:
        torch.testing.assert_close(encode(model, small), expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(pruning.kept, kept)
        assert pruning.tokens_by_block == counts
        assert pruning.tokens_before == 17
        assert image_tower_flops(model) == dense_cost
        with pytest.raises(
            UserError, match=r"images of 32 × 32 pixels: this pruning, with small_images, takes 32 × 24"
        ):
            encode(model, images)


def test_a_strategy_without_a_coarser_grid_takes_images_as_they_are(images: Tensor) -> None:
    visual, preprocess = make_visual(), ToTensor()
    with anchorprune.prune(visual, "thin", keep_patches=6, small_images=True) as pruning:
        assert pruning.image_size == (32, 32)
        assert pruning.transform(preprocess) is preprocess
        visual(images)


def photo(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("size", [(320, 200), (200, 320), (256, 256), (45, 60)])
def test_resizing_straight_shows_the_same_region(size: tuple[int, int]) -> None:
    """As resizing to the tower's size, cropping, and resizing that: once the same region, up to the second filter."""
    image = photo(*size)
    twice = Compose([Resize(224, InterpolationMode.BICUBIC), CenterCrop(224)])(image)
    twice = twice.resize((128, 144), Image.Resampling.BICUBIC)
    once = ResizeStraight(224, (224, 224), (144, 128), Image.Resampling.BICUBIC)(image)
    assert once.size == (128, 144)
    off = ResizeStraight(224, (224, 224), (144, 128), Image.Resampling.BICUBIC)(
        image.transform(image.size, Image.Transform.AFFINE, (1, 0, size[0] / 50, 0, 1, 0))  # shifted by 2 %
    )
    difference = np.abs(np.asarray(once, float) - np.asarray(twice, float)).mean()
    shifted = np.abs(np.asarray(off, float) - np.asarray(twice, float)).mean()
    assert difference < 3
    assert difference < shifted / 3


def test_without_a_change_of_size_it_is_what_torchvision_does() -> None:
    for size in ((320, 200), (200, 320), (256, 256)):
        image = photo(*size)
        expected = Compose([Resize(64, InterpolationMode.BICUBIC), CenterCrop(64)])(image)
        found = ResizeStraight(64, (64, 64), (64, 64), Image.Resampling.BICUBIC)(image)
        assert np.abs(np.asarray(found, float) - np.asarray(expected, float)).max() <= 2  # its own rounding


def test_every_librarys_preprocessing_can_be_had_at_another_size() -> None:
    import timm
    import transformers
    from open_clip.transform import image_transform

    visual, image = make_visual(), photo(80, 60)
    ours = {
        "open_clip": image_transform((32, 32), is_train=False, mean=None, std=None),
        "open_clip, squash": image_transform((32, 32), is_train=False, mean=None, std=None, resize_mode="squash"),
        "timm": timm.data.create_transform(input_size=(3, 32, 32), is_training=False, crop_pct=0.9),
        "transformers CLIP": Preprocess(
            transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
        ),
        "transformers SigLIP": Preprocess(transformers.SiglipImageProcessor(size={"height": 32, "width": 32})),
    }
    with anchorprune.prune(visual, "coarse", keep_patches=6, small_images=True) as pruning:
        for name, preprocess in ours.items():
            small, whole = pruning.transform(preprocess)(image), preprocess(image)
            assert small.shape == (3, *pruning.image_size), name
            again = resize(whole.unsqueeze(0), list(pruning.image_size), InterpolationMode.BICUBIC, antialias=True)[0]
            assert (small - again).abs().mean() < 0.1, name
            assert mean_and_std(pruning.transform(preprocess)) == mean_and_std(preprocess), name
            assert mean_and_std(preprocess) is not None


def test_preprocessing_that_cannot_be_told_apart_is_refused() -> None:
    steps = [ToTensor(), Normalize([0.5] * 3, [0.5] * 3)]
    with anchorprune.prune(make_visual(), "coarse", keep_patches=6, small_images=True) as pruning:
        with pytest.raises(UserError, match=r"cannot tell the resizing .* apart \(ToTensor, Normalize\)"):
            pruning.transform(Compose(steps))
        with pytest.raises(UserError, match=r"makes images of 64 × 64 pixels, and the tower takes 32 × 32"):
            pruning.transform(Compose([Resize(64), CenterCrop(64), *steps]))
    with (
        anchorprune.prune(make_visual(), "coarse", keep_patches=6) as pruning,
        pytest.raises(UserError, match=r"prune with small_images=True"),
    ):
        pruning.transform(Compose([Resize(32), CenterCrop(32), *steps]))


def test_a_bare_module_is_checked_on_photographs_too(tmp_path: Path) -> None:
    found = anchorprune.export(
        timm_vit(), "coarse", tmp_path / "t.pt2", format="torch", keep_patches=6, check_images=3, speed=False
    )
    assert found.check.samples == 3
    assert dataclasses.asdict(found)["about"]["model"] == "VisionTransformer"
