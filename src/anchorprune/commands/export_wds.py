"""`anchorprune export-wds`: any data set as a webdataset, as clip-benchmark's `clip_benchmark_export_wds`."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from anchorprune.commands._data import add_data_flags, data_spec, task_name
from anchorprune.commands._flags import SKIP_BAD_IMAGES, reporting, say
from anchorprune.datasets.base import DataSpec
from anchorprune.datasets.export import FORMATS, RECORD, Layout
from anchorprune.errors import FieldError, UserError
from anchorprune.files import real_path
from anchorprune.outputs import check_names
from anchorprune.progress import telling

RETRIEVAL = "zeroshot_retrieval"
HELP = "write a data set as a webdataset in clip-benchmark's layout"


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--dataset", "-d", required=True, help="a data set, as --dataset of eval takes it")
    add(
        "--output",
        "-o",
        required=True,
        metavar="DIR",
        help="folder that the split's folder is made in; an export of the same that was cut off there goes on",
    )
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--retrieval", action="store_true", help=f"captions, not classes: --task {RETRIEVAL}")
    kinds.add_argument("--multilabel", action="store_true", help="refuse data without several labels an image")
    add(
        "--image_format",
        "--image-format",
        choices=list(FORMATS),
        default=None,
        help="encode the images anew, webp and png without loss (default: their own bytes, where the data has files of "
        "these formats, else webp)",
    )
    add("--max_count", "--max-count", type=int, default=Layout.max_count, help="samples a tar (default: %(default)s)")
    add("--max_size", "--max-size", type=int, default=Layout.max_size, help="bytes a tar (default: %(default)s)")
    add("--skip_bad_images", action="store_true", help=SKIP_BAD_IMAGES)
    add_data_flags(parser)


def run(args: argparse.Namespace) -> None:
    """Write the tars, and say what to type to evaluate on them."""
    layout = Layout(args.image_format, args.max_count, args.max_size)
    if args.num_workers < 0:
        raise FieldError("num_workers", args.num_workers, "must be 0 (no worker processes) or more")
    spec = data_spec(args, args.dataset, args.language)
    if args.retrieval and args.task not in ("auto", RETRIEVAL):
        raise UserError(f"--task {args.task}: contradicts --retrieval, which means {RETRIEVAL}; give one of them")
    task = RETRIEVAL if args.retrieval else task_name(args, spec)

    from anchorprune.datasets import open_dataset
    from anchorprune.datasets.export import export_wds, unchanged

    _check_apart(args.output, spec)
    with telling(how := reporting(args)):
        dataset = open_dataset(spec, unchanged, task)
    for flag, kind in (("retrieval", "captions"), ("multilabel", "labels")):
        if getattr(args, flag) and dataset.kind != kind:
            raise FieldError("dataset", spec.name, f"has {dataset.kind}, and --{flag} asks for {kind}; leave it out")
    if isinstance(dataset.templates, dict):
        say(args, "Prompts of single classes have no place in the layout; give --custom_template_file to eval.")
    done = export_wds(dataset, spec, args.output, layout, num_workers=args.num_workers, progress=how)
    for key, reason in done.bad:
        say(args, f"passed over: {key}: {reason}")
    said = f"{done.tars} tar{'s' if done.tars > 1 else ''} of {spec.name} ({spec.split}) in {args.output}"
    if done.found:
        said += f", {done.found} of them from before"
    if done.bad:
        said += f"; {len(done.bad)} of its {done.samples} images cannot be read"
    root, split = shlex.quote(args.output), "" if spec.split == "test" else f" --split {shlex.quote(spec.split)}"
    say(args, f"{said}\nanchorprune eval --dataset wds/NAME --dataset_root {root}{split} reads them")


def _check_apart(output: str, spec: DataSpec) -> None:
    """FieldError where it would be written into what is read."""
    from anchorprune.evaluation.inputs import data_reads

    reads, root = list(data_reads(spec)), Path(output).expanduser()
    names = ["classnames.txt", "dataset_type.txt", "zeroshot_classification_templates.txt"]
    names += [f"{spec.split}/{name}" for name in (RECORD, "nshards.txt", "0.tar")]
    check_names("output", root, names, reads)
    for read in reads:
        if read.name == "dataset" and not read.endings and real_path(root) == real_path(read.path):
            raise FieldError("output", output, "is the folder that is read; name another")
