"""Names, roots, which samples are chosen, how they come in batches, and `folder:PATH`."""

import json
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.opened import opened as opened_by_name
from torchvision.transforms import CenterCrop, Compose, Resize, ToTensor

from anchorprune.datasets import DataSpec, dataset_root, default_task, expand_names
from anchorprune.datasets.images import EXTENSIONS
from anchorprune.datasets.sampling import BadImage, choose, loader
from anchorprune.errors import UserError

TRANSFORM = Compose([Resize(8), CenterCrop(8), ToTensor()])


def picture(path: Path, shade: int, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (10, 12), shade).convert(mode).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three classes of four pictures, every picture of another shade."""
    for label, folder in enumerate(["sea_lion", "cat", "dog"]):
        for i in range(4):
            picture(tmp_path / "photos" / folder / f"{i}.png", 20 * (4 * label + i))
    return tmp_path / "photos"


def opened(path: Path | str, **options):
    return opened_by_name(f"folder:{path}", transform=TRANSFORM, **options)


# --- names and roots


def test_names_are_looked_up_without_torch() -> None:
    code = (
        "import sys, anchorprune.datasets as d; d.expand_names(['vtab']); d.default_task(d.DataSpec(name='x')); "
        "assert not {'torch', 'clip_benchmark', 'PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names_expand_collections_and_list_files_in_order(tmp_path: Path) -> None:
    listing = tmp_path / "sets.txt"
    listing.write_text("cifar10\n\n  wds/food \nretrieval\n")
    names = expand_names(["mnist", str(listing), "imagenet_robustness", "mnist"])
    assert names[:3] == ["mnist", "cifar10", "wds/food"]
    assert names[3:6] == ["mscoco_captions", "flickr8k", "flickr30k"]
    assert names[6:] == ["imagenetv2", "imagenet_sketch", "imagenet-a", "imagenet-r", "objectnet", "mnist"]


@pytest.mark.parametrize(("content", "reason"), [(b" \n\n", "is empty"), (b"\xff\xfe", "cannot be read")])
def test_a_list_file_that_lists_nothing_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "sets.txt").write_bytes(content)
    with pytest.raises(UserError, match=reason):
        expand_names([str(tmp_path / "sets.txt")])


def default(name: str, **fields: str) -> str:
    return default_task(DataSpec(name=name, **fields))


def test_the_default_task_is_that_of_the_name_where_no_file_says_it(tmp_path: Path) -> None:
    assert default("wds/flickr8k", root=str(tmp_path)) == "zeroshot_retrieval"
    assert default("sugar_crepe/add_att") == "image_caption_selection"
    assert default("folder:photos") == "zeroshot_classification"


@pytest.mark.parametrize(
    ("kind", "task"), [("retrieval\n", "zeroshot_retrieval"), ("multilabel", "zeroshot_classification")]
)
def test_the_default_task_of_a_webdataset_is_what_its_files_say_whatever_its_name(
    tmp_path: Path, kind: str, task: str
) -> None:
    (tmp_path / "dataset_type.txt").write_text(kind)
    assert default("wds/mine", root=str(tmp_path)) == task
    assert default("wds/flickr8k", root=str(tmp_path)) == task


def test_a_root_template_takes_the_name_without_its_prefix() -> None:
    assert dataset_root("data/{dataset}", "wds/vtab/dtd") == "data/vtab/dtd"
    assert dataset_root("data/wds_{dataset_cleaned}", "wds/vtab/dtd") == "data/wds_vtab-dtd"
    assert dataset_root("root", "cifar10") == "root"


@pytest.mark.parametrize("template", ["{data}", "{}", "{dataset", "{dataset.x}"])
def test_a_root_template_with_another_placeholder_is_refused(template: str) -> None:
    with pytest.raises(UserError, match="dataset_cleaned"):
        dataset_root(template, "cifar10")


# --- which samples

KEYS = st.lists(st.text(st.characters(codec="utf-8"), max_size=8), unique=True, max_size=30)


@settings(deadline=None)  # the machine may be busy
@given(KEYS, st.integers(1, 30), st.integers(0, 5), st.randoms(use_true_random=False))
def test_the_order_of_a_data_set_does_not_change_which_samples_are_chosen(keys, limit, seed, random) -> None:
    chosen = choose(keys, limit, seed)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(limit, len(keys))
    shuffled = random.sample(keys, len(keys))
    assert {shuffled[i] for i in choose(shuffled, limit, seed)} == {keys[i] for i in chosen}


@settings(deadline=None)
@given(KEYS, st.integers(1, 30))
def test_a_larger_limit_keeps_the_samples_of_a_smaller_one(keys, limit) -> None:
    assert set(choose(keys, limit, 0)) <= set(choose(keys, limit + 1, 0))


def test_another_seed_chooses_other_samples_and_no_limit_all() -> None:
    keys = [str(i) for i in range(100)]
    assert choose(keys, 10, 0) != choose(keys, 10, 1)
    assert choose(keys, None, 0) == choose(keys, 1000, 0) == list(range(100))


def test_the_choice_stays_the_same_over_versions_ties_go_to_the_lower_index() -> None:
    assert choose([f"0.tar/{i:06}" for i in range(20)], 4, 0) == [1, 6, 10, 15]
    assert choose(["same"] * 5, 2, 0) == [0, 1]
    assert len(choose(["caf\udce9.png", "b"], 1, 0)) == 1  # a file name that is not UTF-8


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_below_one_is_refused(limit: int) -> None:
    with pytest.raises(UserError, match=f"limit=.*{limit}"):
        choose(["a"], limit, 0)


def test_a_few_samples_of_a_class_sorted_folder_come_from_several_classes(photos: Path) -> None:
    dataset = opened(photos)
    assert dataset.targets == sorted(dataset.targets)
    assert len({dataset.targets[i] for i in choose(dataset.keys, 4, 0)}) > 1


# --- batches


def test_batches_are_the_same_for_any_number_of_workers_and_come_in_order(photos: Path) -> None:
    (photos / "cat" / "2.png").write_bytes(b"not a picture")
    dataset = opened(photos)
    state = torch.get_rng_state()
    runs = [list(loader(dataset, [0, 2, 3, 5, 7, 8, 11], batch_size=3, num_workers=n)) for n in (0, 2)]
    assert torch.equal(torch.get_rng_state(), state)
    for here, there in zip(*runs, strict=True):
        assert torch.equal(here.images, there.images)
        assert torch.equal(here.targets, there.targets)
        assert here.bad == there.bad
    assert torch.cat([batch.targets for batch in runs[0]]).tolist() == [0, 0, 1, 1, 2, 2]
    assert [batch.images.shape for batch in runs[0]] == [(2, 3, 8, 8), (3, 3, 8, 8), (1, 3, 8, 8)]


def test_a_data_set_can_be_sent_to_a_worker_that_is_not_forked(photos: Path) -> None:
    dataset = opened(photos)
    assert torch.equal(pickle.loads(pickle.dumps(dataset)).items[3][0], dataset.items[3][0])


def test_a_bad_image_is_reported_and_the_rest_of_its_batch_goes_on(photos: Path) -> None:
    whole = (photos / "cat" / "0.png").read_bytes()
    (photos / "cat" / "0.png").write_bytes(b"")
    (photos / "cat" / "1.png").write_bytes(whole[: len(whole) // 2])
    dataset = opened(photos)
    (photos / "dog" / "0.png").unlink()
    batches = list(loader(dataset, range(12), batch_size=2, num_workers=0))
    assert len(batches) == 6
    assert batches[0].images is None
    assert batches[0].targets.shape == (0,)
    assert [key for batch in batches for key, _ in batch.bad] == ["cat/0.png", "cat/1.png", "dog/0.png"]
    for key, reason in [entry for batch in batches for entry in batch.bad]:
        assert str(photos / key) in reason
        assert "\n" not in reason
        assert "0x" not in reason
    assert sum(len(batch.targets) for batch in batches) == 9


def test_an_image_too_large_to_be_safe_is_a_bad_image(photos: Path, monkeypatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(BadImage, match="decompression bomb"):
        opened(photos).items[0]


def test_a_fault_in_the_transform_is_not_taken_for_a_bad_image(photos: Path) -> None:
    def broken(image: Image.Image) -> None:
        raise OSError("a bug")

    dataset = opened_by_name(f"folder:{photos}", transform=broken)
    with pytest.raises(OSError, match="a bug"):
        list(loader(dataset, [0], batch_size=1, num_workers=0))


@pytest.mark.parametrize("sizes", [{"batch_size": 0, "num_workers": 0}, {"batch_size": 1, "num_workers": -1}])
def test_impossible_batches_are_refused(photos: Path, sizes: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"batch_size=0|num_workers=-1"):
        loader(opened(photos), [0], **sizes)


# --- folder:PATH


def test_a_folder_has_a_class_a_subfolder_named_after_it(photos: Path) -> None:
    dataset = opened(photos)
    assert dataset.classes == ["cat", "dog", "sea lion"]
    assert dataset.templates == ["a photo of a {c}."]
    assert dataset.keys[:2] == ["cat/0.png", "cat/1.png"]
    assert len(dataset) == 12
    image, target = dataset.items[9]  # sea_lion/1.png, of shade 20
    assert target == 2
    assert torch.allclose(image, torch.full((3, 8, 8), 20 / 255))


def test_images_may_be_nested_in_any_case_and_mode_and_other_files_are_counted(photos: Path) -> None:
    for name, mode in [
        ("A.JPG", "L"),
        ("deep/er/b.Webp", "RGBA"),
        ("c.png", "P"),
        ("d.bmp", "RGB"),
        ("e.jpeg", "CMYK"),
    ]:
        picture(photos / "ant" / name, 128, mode)
    (photos / "ant" / "._A.JPG").write_bytes(b"")
    (photos / "ant" / "notes.txt").write_text("")
    (photos / ".cache").mkdir()
    with pytest.warns(UserWarning, match=r"passed over 1 \.txt, 1 hidden file$"):
        dataset = opened(photos)
    assert [key for key in dataset.keys if key.startswith("ant")] == [
        "ant/A.JPG",
        "ant/c.png",
        "ant/d.bmp",
        "ant/deep/er/b.Webp",
        "ant/e.jpeg",
    ]
    assert all(dataset.items[i][0].shape == (3, 8, 8) for i in range(5))


def test_a_subfolder_of_the_splits_name_is_used_where_there_is_one(photos: Path) -> None:
    photos.rename(photos.parent / "test")
    picture(photos.parent / "train" / "cat" / "0.png", 0)
    assert len(opened(photos.parent)) == 12
    assert len(opened(photos.parent, split="train")) == 1
    with pytest.raises(UserError, match=r"split=.*trian.*Did you mean 'train'"):
        opened(photos.parent, split="trian")


def test_a_folder_may_bring_class_names_and_templates(photos: Path) -> None:
    (photos / "zeroshot_classification_templates.txt").write_text("a {c}.\n\nthe {c}.\n")
    (photos / "classnames.txt").write_text("house cat\npuppy\nseal\n")
    assert opened(photos).classes == ["house cat", "puppy", "seal"]
    assert opened(photos).templates == ["a {c}.", "the {c}."]
    (photos / "classnames.txt").write_text("sea_lion\tseal\ncat\thouse cat\ndog\tpuppy\n")
    assert opened(photos).classes == ["house cat", "puppy", "seal"]


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("classnames.txt", "cat\ndog\n", "2 class names for 3 class folders"),
        ("classnames.txt", "cta\ta cat\n", "no class folder 'cta'. Did you mean 'cat'"),
        ("classnames.txt", "cat\tx\ncat\ty\n", "exactly one line"),
        ("classnames.txt", "cat\tx\ndog\ty\n", "no line for the class folder 'sea_lion'"),
        ("zeroshot_classification_templates.txt", "a photo of a {}.\n", "must hold {c}"),
        ("zeroshot_classification_templates.txt", "a photo\n", "must hold {c}"),
        ("zeroshot_classification_templates.txt", "\n", "is empty"),
    ],
)
def test_bad_text_files_of_a_folder_are_refused(photos: Path, file: str, content: str, reason: str) -> None:
    (photos / file).write_text(content)
    with pytest.raises(UserError) as caught:
        opened(photos)
    assert reason in str(caught.value)
    assert str(photos / file) in str(caught.value)


def test_folders_without_pictures_are_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        opened(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no such folder"):
        opened("")
    with pytest.raises(UserError, match="has no subfolders"):
        opened(photos / "cat")
    (photos / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty holds no image"):
        opened(photos)


def test_a_hidden_folder_is_no_part_of_its_class(photos: Path) -> None:
    picture(photos / "cat" / ".ipynb_checkpoints" / "0.png", 0)
    with pytest.warns(UserWarning, match=r"passed over 1 hidden folder$"):
        assert len(opened(photos)) == 12


def test_a_link_back_is_not_followed_and_one_to_another_folder_is(photos: Path, tmp_path: Path) -> None:
    picture(tmp_path / "more" / "deep" / "0.png", 0)
    (photos / "cat" / "more").symlink_to(tmp_path / "more")
    (tmp_path / "more" / "deep" / "up").symlink_to(tmp_path / "more")
    (photos / "cat" / "all").symlink_to(photos)
    (photos / "cat" / "self").symlink_to(".")
    (photos / "again").symlink_to(".")
    with pytest.warns(UserWarning, match=r"passed over 4 link back to a folder above$"):
        dataset = opened(photos)
    assert dataset.classes == ["cat", "dog", "sea lion"]
    assert [key for key in dataset.keys if "more" in key] == ["cat/more/deep/0.png"]
    assert len(dataset) == 13


def test_every_format_of_photographs_is_read_and_what_is_none_is_counted(photos: Path) -> None:
    for i, ending in enumerate(EXTENSIONS):
        shutil.copy(photos / "cat" / "0.png", photos / "dog" / f"x{i}.{ending}")
    for name in ("a.heic", "b.HEIC", "c.psd", "d"):
        (photos / "dog" / name).write_bytes(b"")
    shutil.copy(photos / "cat" / "0.png", photos / "stray.png")
    said = "passed over 2 .heic, 1 .psd, 1 file without an ending, 1 image outside of the class folders"
    with pytest.warns(UserWarning, match=f"{re.escape(said)}$"):
        assert len(opened(photos)) == 12 + len(EXTENSIONS)


def test_a_folder_of_nothing_but_other_formats_says_which(photos: Path) -> None:
    (photos / "ant").mkdir()
    (photos / "ant" / "0.heic").write_bytes(b"")
    with pytest.raises(UserError, match=r"ant holds no image \(.*\), only 1 \.heic; add some"):
        opened(photos)


# --- which name a class folder has


@pytest.mark.parametrize("where", ["classnames.txt", "custom file"])
def test_a_folder_that_lacks_a_class_gets_its_names_by_what_folders_are_called(
    photos: Path, tmp_path: Path, where: str
) -> None:
    names = ["Cat", "cow", "dog", "sea lion"]  # without the cow, the dog would be second
    if where == "classnames.txt":
        (photos / "classnames.txt").write_text("\n".join(names))
        dataset = opened(photos)
    else:
        dataset = opened(photos, classnames=custom(tmp_path, {"photos": names}))
    assert dataset.classes == names
    assert [dataset.items[i][1] for i in (0, 4, 8)] == [0, 2, 3]
    assert dataset.targets == [0] * 4 + [2] * 4 + [3] * 4


def test_names_in_another_order_than_the_folders_are_matched_too(photos: Path, tmp_path: Path) -> None:
    dataset = opened(photos, classnames=custom(tmp_path, {"photos": ["sea_lion", "dog", "cat"]}))
    assert [dataset.classes[dataset.targets[i]] for i in (0, 4, 8)] == ["cat", "dog", "sea_lion"]


def test_as_many_other_names_go_by_position(photos: Path, tmp_path: Path) -> None:
    dataset = opened(photos, classnames=custom(tmp_path, {"photos": ["house cat", "dog", "seal"]}))
    assert [dataset.classes[dataset.targets[i]] for i in (0, 4, 8)] == ["house cat", "dog", "seal"]


@pytest.mark.parametrize("names", [["house cat", "cow", "dog", "seal"], ["cat", "dog", "sea lion", "Cat"]])
def test_more_names_than_folders_that_cannot_be_matched_are_refused(
    photos: Path, tmp_path: Path, names: list[str]
) -> None:
    with pytest.raises(UserError, match=r"custom_classname_file=.*: 4 class names for 3 class folders, and none for"):
        opened(photos, classnames=custom(tmp_path, {"photos": names}))
    (photos / "classnames.txt").write_text("\n".join(names))
    with pytest.raises(UserError, match=r"classnames\.txt: 4 class names for 3 class folders, and none for"):
        opened(photos)


# --- text as editors and scripts leave it


def test_marks_line_ends_and_trailing_blanks_are_no_part_of_a_text(photos: Path, tmp_path: Path) -> None:
    def typed(*lines: str) -> bytes:
        return "".join(f"\ufeff{line} \t\r\n" for line in lines).encode()

    (photos / "classnames.txt").write_bytes(typed("a", "b", "c"))
    (photos / "zeroshot_classification_templates.txt").write_bytes(typed("the {c}.", "a {c}."))
    assert opened(photos).classes == ["a", "b", "c"]
    assert opened(photos).templates == ["the {c}.", "a {c}."]
    (photos / "classnames.txt").write_bytes("\ufeffcat\ta\r\ndog\tb \r\nsea_lion\tc\r\n\r\n".encode())
    assert opened(photos).classes == ["a", "b", "c"]
    names = tmp_path / "custom.json"
    names.write_bytes("\ufeff".encode() + json.dumps({"photos ": ["a\r", " b", "c\n"]}).encode())
    assert opened(photos, classnames=str(names)).classes == ["a", "b", "c"]
    names.write_bytes(
        "\ufeff".encode() + json.dumps({"photos": {"cat ": ["x "], "dog": ["y"], "sea lion": ["z"]}}).encode()
    )
    (photos / "classnames.txt").unlink()
    assert opened(photos, templates=str(names)).templates == {"cat": ["x"], "dog": ["y"], "sea lion": ["z"]}
    (tmp_path / "sets.txt").write_bytes(typed("cifar10", "wds/food"))
    assert expand_names([str(tmp_path / "sets.txt")]) == ["cifar10", "wds/food"]


def test_text_in_utf_16_is_refused_with_what_to_do(photos: Path) -> None:
    (photos / "classnames.txt").write_text("a\nb\nc\n", encoding="utf-16")
    with pytest.raises(UserError, match=r"classnames\.txt: cannot be read .* \(it is UTF-16: save it as UTF-8"):
        opened(photos)


# --- custom class names and templates


def custom(tmp_path: Path, content: object) -> str:
    (tmp_path / "custom.json").write_text(json.dumps(content))
    return str(tmp_path / "custom.json")


def test_custom_files_override_a_folders_own_by_full_name_then_by_short_name(photos: Path, tmp_path: Path) -> None:
    names = custom(tmp_path, {"photos": ["a", "b", "c"]})
    assert opened(photos, classnames=names).classes == ["a", "b", "c"]
    names = custom(tmp_path, {"photos": ["a", "b", "c"], f"folder:{photos}": ["x", "y", "z"]})
    assert opened(photos, classnames=names).classes == ["x", "y", "z"]


def test_custom_templates_fall_back_to_imagenet_and_may_be_prompts_by_class(photos: Path, tmp_path: Path) -> None:
    file = custom(tmp_path, {"imagenet1k": ["my {c}"]})
    assert opened(photos, templates=file).templates == ["my {c}"]
    by_class = {"cat": ["a cat"], "dog": ["a dog"], "sea lion": ["a seal", "a sea lion"]}
    file = custom(tmp_path, {"photos": by_class})
    assert opened(photos, templates=file).templates == by_class
    del by_class["sea lion"]
    file = custom(tmp_path, {"photos": {**by_class, "sea lions": ["x"]}})
    with pytest.raises(UserError, match=r"class 'sea lion'.*Did you mean 'sea lions'"):
        opened(photos, templates=file)


def test_a_custom_file_that_is_not_there_is_looked_up_in_clip_benchmark(photos: Path) -> None:
    with pytest.raises(UserError, match=r"no prompts for the class '(cat|dog)'"):
        opened(photos, templates="cupl_prompts.json")


@pytest.mark.parametrize(
    ("flag", "content", "reason"),
    [
        ("classnames", {"photo": ["a"]}, "no class names for .* Did you mean 'photo'"),
        ("classnames", {"photos": "abc"}, "list of class names"),
        ("classnames", {"photos": []}, "list of class names"),
        ("classnames", {"photos": ["a", ""]}, "list of class names"),
        ("classnames", ["a", "b"], "one JSON object"),
        ("classnames", {"photos": ["a", "b"]}, "2 class names for 3 class folders, and none for 'cat' by its name"),
        ("templates", {"other": ["a {c}"]}, "no templates for"),
        ("templates", {"photos": ["a {}"]}, "must hold {c}"),
        ("templates", {"photos": {"cat": "a cat"}}, "list of templates"),
        ("templates", 3, "one JSON object"),
    ],
)
def test_bad_custom_files_are_refused(photos: Path, tmp_path: Path, flag: str, content: object, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        opened(photos, **{flag: custom(tmp_path, content)})


def test_a_custom_file_that_is_missing_or_no_json_is_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"custom_classname_file=.*nope.json.*: no such file"):
        opened(photos, classnames="nope.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        opened(photos, templates=str(tmp_path / "broken.json"))


def test_what_a_system_puts_beside_class_folders_is_no_class(photos: Path) -> None:
    classes = opened(photos).classes
    for name in ("__MACOSX", "@eaDir", ".cache"):
        picture(photos / name / "0.png", 1)
    assert opened(photos).classes == classes
