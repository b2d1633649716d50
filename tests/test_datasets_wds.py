"""`wds/NAME`: the same samples as clip-benchmark's own loader, from a folder and from the web."""

import http.server
import io
import json
import random
import re
import tarfile
import threading
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.opened import opened as opened_by_name
from torchvision.transforms import CenterCrop, Compose, Resize, ToTensor

from anchorprune.datasets import DataSpec, default_task
from anchorprune.datasets.sampling import BadImage, choose, loader
from anchorprune.errors import UserError
from anchorprune.progress import Reporting, telling

TRANSFORM = Compose([Resize(8), CenterCrop(8), lambda image: image.convert("RGB"), ToTensor()])

# upstream's loader warns of its own use of webdataset, and Pillow of the palette image with alpha
UPSTREAM = pytest.mark.filterwarnings("ignore::UserWarning")


def encoded(seed: int, kind: str = "PNG", mode: str = "RGB") -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (14, 11, 4), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(out, kind)
    return out.getvalue()


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


SAMPLES = [
    [("a/s0.v1.x/0.png", encoded(0)), ("a/s0.v1.x/0.cls", b"2"), ("a/s0.v1.x/0.json", b"{}")],
    [("1.cls", b"0\n"), ("1.JPG", encoded(1, "JPEG"))],
    [("2.seg.png", encoded(9)), ("2.jpeg", encoded(2, "JPEG", "L")), ("2.cls", b"1")],
    [("3.webp", encoded(3, "WEBP", "RGBA")), ("3.cls", b" 1 ")],
    [("4.png", encoded(4, "PNG", "P")), ("4.cls", b"0")],
    [(f"{'long' * 40}.png", encoded(5, "PNG", "RGBA")), (f"{'long' * 40}.cls", b"2")],
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six samples of three classes, of every image type, in two tars."""
    root = tmp_path / "data"
    write_tar(root / "test" / "0.tar", [("__index__/x.png", b""), *chain(*SAMPLES[:3])])
    write_tar(root / "test" / "1.tar", chain(*SAMPLES[3:]))
    (root / "test" / "nshards.txt").write_text("2\n")
    (root / "classnames.txt").write_text("cat\ndog\nsea lion\n")
    (root / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\nthe {c}.\n")
    return root


def opened(root: Path | str, **options):
    return opened_by_name("wds/pets", root=str(root), transform=TRANSFORM, **options)


@UPSTREAM
def test_it_reads_what_clip_benchmarks_own_loader_reads_in_the_same_order(root: Path) -> None:
    from clip_benchmark.datasets.builder import build_dataset

    upstream = build_dataset("wds/pets", root=str(root), transform=TRANSFORM)
    dataset = opened(root)
    theirs = list(upstream)
    assert len(dataset) == len(theirs) == 6
    for i, (image, target) in enumerate(theirs):
        assert torch.equal(dataset.items[i][0], image), dataset.keys[i]
        assert dataset.items[i][1] == target
    assert dataset.classes == upstream.classes
    assert dataset.templates == upstream.templates
    assert dataset.targets == [2, 0, 1, 1, 0, 2]
    assert dataset.keys[:2] == ["0.tar/a/s0.v1.x/0", "0.tar/1"]


@pytest.mark.parametrize(
    "members",
    [
        ["v1.0003.png", "v1.0003.cls"],
        ["v1.0003.png", "v1.0003.cls", "v1.0004.png", "v1.0004.cls"],
        ["v1.png", "v1.cls", "v1.0003.png", "v1.0003.cls"],
        ["v1.0003.png", "v1.cls"],
        ["v1.0003.png", "v1.json"],
        ["v1.0003.cls", "v1.0003.tif"],
        ["a/b.c/v1.final.0003.PNG", "a/b.c/v1.final.0003.cls"],
    ],
)
def test_a_key_with_a_dot_is_refused_and_its_file_named(root: Path, members: list[str]) -> None:
    data = {".png": encoded(0), ".PNG": encoded(0), ".cls": b"0", "json": b"{}", ".tif": b""}
    write_tar(root / "test" / "1.tar", [(name, data[name[-4:]]) for name in members])
    image = next(name for name in members if "0003" in name)
    first_dot = r"1.tar: .*" + re.escape(image.lower().rpartition("/")[2]) + " is part .* keys end at the first dot"
    with pytest.raises(UserError, match=first_dot):
        opened(root)


def test_marks_and_windows_line_ends_are_no_part_of_what_files_say(root: Path) -> None:
    mark = "\ufeff".encode()
    for name in ("classnames.txt", "zeroshot_classification_templates.txt", "test/nshards.txt"):
        text = (root / name).read_bytes()
        (root / name).write_bytes(mark + text.replace(b"\n", b" \r\n"))
    (root / "dataset_type.txt").write_bytes(mark + b"classification \r\n")
    write_tar(root / "test" / "1.tar", [("x.png", encoded(0)), ("x.cls", mark + b"2 \r\n")])
    dataset = opened(root)
    assert dataset.classes == ["cat", "dog", "sea lion"]
    assert dataset.templates == ["a photo of a {c}.", "the {c}."]
    assert dataset.targets == [2, 0, 1, 2]


@UPSTREAM
def test_multilabel_targets_are_float_vectors_as_clip_benchmarks(root: Path) -> None:
    from clip_benchmark.datasets.builder import build_dataset

    labels = np.array([[1, 0, 1], [0, 0, 1]])
    members = [[(f"{i}.png", encoded(i)), (f"{i}.npy", npy(labels[i]))] for i in range(2)]
    write_tar(root / "test" / "0.tar", chain(*members))
    (root / "test" / "nshards.txt").write_text("1")
    (root / "dataset_type.txt").write_text("multilabel\n")
    dataset = opened(root)
    assert dataset.kind == "labels"
    theirs = [target for _, target in build_dataset("wds/pets", root=str(root), transform=TRANSFORM)]
    [batch] = loader(dataset, [0, 1], batch_size=4, num_workers=0)
    assert batch.targets.dtype == torch.float32
    assert np.array_equal(batch.targets, np.stack(theirs))


def test_two_workers_read_the_same_as_none(root: Path) -> None:
    runs = [list(loader(opened(root), range(6), batch_size=2, num_workers=n)) for n in (0, 2)]
    for here, there in zip(*runs, strict=True):
        assert torch.equal(here.images, there.images)
        assert torch.equal(here.targets, there.targets)


def test_the_chosen_samples_do_not_depend_on_their_order_in_the_tar(root: Path) -> None:
    keys = opened(root).keys
    samples = SAMPLES[:3]
    random.Random(0).shuffle(samples)
    write_tar(root / "test" / "0.tar", chain(*reversed(samples)))
    shuffled = opened(root).keys
    assert shuffled != keys
    assert {keys[i] for i in choose(keys, 3, 0)} == {shuffled[i] for i in choose(shuffled, 3, 0)}


def test_a_bad_image_names_its_tar_and_key(root: Path) -> None:
    write_tar(
        root / "test" / "1.tar", [("x/7.png", encoded(7)[:99]), ("x/7.cls", b"0"), ("8.jpg", b"?"), ("8.cls", b"1")]
    )
    dataset = opened(root)
    [batch] = loader(dataset, [0, 3, 4], batch_size=3, num_workers=0)
    assert [key for key, _ in batch.bad] == ["1.tar/x/7", "1.tar/8"]
    assert batch.bad[0][1].startswith(f"{root}/test/1.tar, x/7: ")
    assert "not an image" in batch.bad[1][1]
    assert batch.targets.tolist() == [2]
    (root / "test" / "0.tar").unlink()
    with pytest.raises(BadImage, match=re.escape(f"{root}/test/0.tar, 1: ")):
        dataset.items[1]


def test_class_names_and_templates_are_none_where_their_files_are_missing(root: Path) -> None:
    (root / "classnames.txt").unlink()
    (root / "zeroshot_classification_templates.txt").unlink()
    assert opened(root).classes is None
    assert opened(root).templates is None


def test_custom_names_override_the_data_sets_own_by_either_key(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "names.json"
    for key in ("wds/pets", "pets"):
        file.write_text(f'{{"{key}": ["a", "b", "c"]}}')
        assert opened(root, classnames=str(file)).classes == ["a", "b", "c"]


# --- bad data


def damage(data: bytes, how: str) -> bytes:
    end = data.rindex(b"ustar") - 257  # where the last member's header begins
    return {
        "cut inside the last member": data[: end + 512 + 0],
        "cut between members": data[:end],
        "a header overwritten": data[:end] + b"\xff" * 512 + data[end + 512 :],
        "no tar at all": b"<html>404</html>" * 100,
        "empty": b"",
    }[how]


@pytest.mark.parametrize(
    "how", ["cut inside the last member", "cut between members", "a header overwritten", "no tar at all", "empty"]
)
def test_a_damaged_tar_is_refused_by_name_not_read_as_a_shorter_one(root: Path, how: str) -> None:
    tar = root / "test" / "1.tar"
    tar.write_bytes(damage(tar.read_bytes(), how))
    with pytest.raises(UserError, match=re.escape(f"{tar}: is not a readable, uncompressed tar")):
        opened(root)


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("5.png", b"")], "sample '5' has no label (.cls), only .png."),
        ([("5.cls", b"0")], "sample '5' has no image (.webp, .png, .jpg, .jpeg), only .cls."),
        ([("5.png", b""), ("5.npy", b"")], "dataset_type.txt must say multilabel"),
        ([("5.png", b""), ("5.cls", b"cat")], "sample '5' has the label b'cat'"),
        ([("5.png", b""), ("5.png", b"")], "sample '5' has .png twice"),
        ([("5.png", b""), ("5.cls", b"3")], "sample 1.tar/5 has label 3, but there are 3 class names"),
        ([("5.png", b""), ("5.cls", b"-1")], "sample 1.tar/5 has label -1"),
    ],
)
def test_a_sample_that_is_no_pair_of_image_and_label_is_refused(root: Path, members: list, reason: str) -> None:
    write_tar(root / "test" / "1.tar", members)
    with pytest.raises(UserError, match=re.escape(reason)):
        opened(root)


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        (npy(np.array([{}], dtype=object)), "one number for each class"),
        (npy(np.zeros((1, 3))), "its shape is (1, 3)"),
        (npy(np.array([1, -1, 0])), "not all of them are 0 or 1"),
        (npy(np.array([1, 0.5, 0])), "not all of them are 0 or 1"),
        (b"", "one number for each class"),
        (npy(np.zeros(2)), "sample 0.tar/5 has 2 labels, but there are 3 class names"),
    ],
)
def test_a_bad_multilabel_vector_is_refused_and_never_unpickled(root: Path, label: bytes, reason: str) -> None:
    write_tar(root / "test" / "0.tar", [("5.png", b""), ("5.npy", label)])
    (root / "test" / "nshards.txt").write_text("1")
    (root / "dataset_type.txt").write_text("multilabel")
    with pytest.raises(UserError, match=re.escape(reason)):
        opened(root)


def test_captions_are_lines_of_a_text_file_without_the_blank_ones(root: Path) -> None:
    text = "\ufeffa Katze — cat\r\n\n  two of them \n".encode()
    write_tar(
        root / "test" / "0.tar", [("5.png", encoded(5)), ("5.txt", text), ("6.txt", b"one"), ("6.png", encoded(6))]
    )
    (root / "test" / "nshards.txt").write_text("1")
    (root / "dataset_type.txt").write_text("retrieval\n")
    (root / "classnames.txt").unlink()
    dataset = opened(root)
    assert (dataset.kind, dataset.keys, dataset.classes) == ("captions", ["0.tar/5", "0.tar/6"], None)
    assert dataset.targets == [["a Katze — cat", "two of them"], ["one"]]
    assert dataset.items[0][1] == dataset.targets[0]


@pytest.mark.parametrize(("text", "reason"), [(b" \n\n", "'5' has no caption"), (b"\xff", "'5': its .txt is no UTF-8")])
def test_an_image_without_a_caption_is_refused(root: Path, text: bytes, reason: str) -> None:
    write_tar(root / "test" / "0.tar", [("5.png", encoded(5)), ("5.txt", text)])
    (root / "test" / "nshards.txt").write_text("1")
    (root / "dataset_type.txt").write_text("retrieval")
    with pytest.raises(UserError, match=re.escape(reason)):
        opened(root)


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("test/nshards.txt", "two", "must hold the number of tars"),
        ("test/nshards.txt", "0", "must hold the number of tars"),
        ("test/nshards.txt", "3", "2.tar: no such file, but test/nshards.txt promises 3 tars"),
        ("dataset_type.txt", "retrieval", "for .cls dataset_type.txt must say classification"),
        ("dataset_type.txt", "multi-label", "Did you mean 'multilabel'"),
        ("classnames.txt", "cat\n\ndog\n", "line 2 is empty"),
        ("classnames.txt", "", "line 1 is empty"),
        ("zeroshot_classification_templates.txt", "a {}", "must hold {c}"),
        ("classnames.txt", b"\xff", "cannot be read as UTF-8"),
    ],
)
def test_bad_text_files_are_refused(root: Path, file: str, content: str | bytes, reason: str) -> None:
    (root / file).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=re.escape(reason)):
        opened(root)


def test_a_missing_root_split_or_every_sample_is_refused(root: Path) -> None:
    with pytest.raises(UserError, match=r"dataset_root=.*nowhere': no such folder"):
        opened(root / "nowhere")
    with pytest.raises(UserError, match=r"split='tests': there is no .*Did you mean 'test'"):
        opened(root, split="tests")
    for shard in range(2):
        write_tar(root / "test" / f"{shard}.tar", [("README.txt", b"")])
    with pytest.raises(UserError, match="hold no image with a label"):
        opened(root)


# --- from the web


class Handler(http.server.SimpleHTTPRequestHandler):
    requests: list[str] = []  # noqa: RUF012  (cleared by the fixture)

    def do_GET(self) -> None:
        self.requests.append(self.path)
        if self.path.startswith("/broken/"):
            self.send_error(503)
        elif self.path.startswith("/short/") and self.path.endswith(".tar"):
            self.send_response(200)
            self.send_header("Content-Length", "5000")
            self.end_headers()
            self.wfile.write(b"x" * 1000)
        else:
            self.path = self.path.removeprefix("/short").removeprefix("/mirror")
            super().do_GET()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def site(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The data set on a web server of this machine; the cache is in tmp_path."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    Handler.requests.clear()

    def handler(*args: object) -> Handler:
        return Handler(*args, directory=str(root))

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def test_a_url_gives_the_same_data_set_and_is_downloaded_once(site: str, root: Path, tmp_path: Path) -> None:
    local, remote = opened(root), opened(site)
    assert (remote.keys, remote.targets, remote.classes, remote.templates) == (
        local.keys,
        local.targets,
        local.classes,
        local.templates,
    )
    assert all(torch.equal(remote.items[i][0], local.items[i][0]) for i in range(6))
    asked = len(Handler.requests)
    assert opened(site + "/").keys == local.keys
    assert len(Handler.requests) == asked  # not even for the optional file that is not there
    stored = [path for path in (tmp_path / "cache" / "anchorprune" / "wds").rglob("*") if path.is_file()]
    assert len(stored) == 5 + 6  # and what the server said of each, the optional one included
    assert not [path for path in stored if path.suffix in (".part", ".tmp")]


def test_a_download_says_how_far_it_is_as_one_wants_to_be_told(site: str, capsys: pytest.CaptureFixture[str]) -> None:
    with telling(Reporting(log_format="json")):
        opened(site)
    told = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    tars = [each for each in told if each["what"].endswith(".tar")]
    assert tars
    assert all(each["unit"] == "byte" and each["done"] == each["total"] for each in tars)
    with telling(Reporting(log_format="json", quiet=True)):
        opened(f"{site}/mirror")
    assert not capsys.readouterr().err


def test_the_default_task_of_a_url_is_what_its_files_say(site: str, root: Path) -> None:
    (root / "dataset_type.txt").write_text("retrieval")
    assert default_task(DataSpec(name="wds/mine", root=site)) == "zeroshot_retrieval"
    assert not [path for path in Handler.requests if path.endswith(".tar")]


def test_a_cache_folder_is_used_where_one_is_given_and_keeps_data_sets_apart(site: str, tmp_path: Path) -> None:
    opened(site, cache_dir=str(tmp_path / "mine"))
    opened(f"{site}/mirror", cache_dir=str(tmp_path / "mine"))
    assert len(list((tmp_path / "mine").iterdir())) == 2
    assert not (tmp_path / "cache").exists()


def test_a_failing_download_is_refused_by_url_and_leaves_nothing_half_written(site: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(f"{site}/broken/test/nshards.txt: the server answered 503")):
        opened(f"{site}/broken")
    with pytest.raises(UserError, match=re.escape(f"{site}/short/test/0.tar: could not be downloaded")):
        opened(f"{site}/short")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.name.startswith("0.tar")]
    with pytest.raises(UserError, match=re.escape(f"split='val': there is no {site}/val/nshards.txt")):
        opened(site, split="val")
    with pytest.raises(UserError, match=r"http://127.0.0.1:1/test/nshards.txt: could not be downloaded \(\[Errno"):
        opened("http://127.0.0.1:1")


def test_a_cache_folder_that_cannot_be_written_is_refused(site: str, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UserError, match=r"wds_cache_dir=.*taken.* cannot be written"):
        opened(site, cache_dir=str(tmp_path / "taken"))
