"""The flags that several commands share: which model, which data, how to run, and the strategies' own.

clip-benchmark 1.6.2's come first, by its names, defaults and meanings.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any, NoReturn

from anchorprune import tasks
from anchorprune.datasets.images import MAX_PIXELS, MAX_RATIO
from anchorprune.datasets.reading import MAX_BYTES
from anchorprune.errors import FieldError, UserError
from anchorprune.evaluation.request import PRECISIONS
from anchorprune.fields import LARGEST, add_flag, typed
from anchorprune.progress import FORMATS, Reporting
from anchorprune.strategies import Wanted, known, parse, strategy_options
from anchorprune.terminal import printable

# clip-benchmark's; a pruned run under this name gets the strategy's name at its end (`_requests.plan_runs`).
DEFAULT_OUTPUT = "{dataset}_{pretrained}_{model}_{language}_{task}.json"
DEFAULT_PRETRAINED = ["laion400m_e32"]


IMAGE_LIMITS = (
    f"None is read that has more than {MAX_PIXELS:,} pixels or {MAX_BYTES:,} bytes, or one side more than {MAX_RATIO} "
    "times the other"
)
SKIP_BAD_IMAGES = f"count images that cannot be read, and go on. {IMAGE_LIMITS}"


class Help(argparse.HelpFormatter):
    """Each flag's help ends with what it is when it is not given, where it is anything and is not said already."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        said, value = action.help, action.default
        nothing = value is None or isinstance(value, bool) or value in ("", [], argparse.SUPPRESS)
        if not said or said is argparse.SUPPRESS or nothing or "default" in said:
            return said
        shown = " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        return f"{said} (default: {shown.replace('%', '%%')})"


class Parser(argparse.ArgumentParser):
    """argparse with one line for a mistake instead of the whole usage."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"formatter_class": Help, **options})
        self.register("type", int, _whole)

    def error(self, message: str) -> NoReturn:
        said = message if len(message) <= 1000 else f"{message[:1000]}…"
        self.exit(2, printable(f"{self.prog}: error: {said} (see {self.prog} --help)\n"))


def _whole(text: str) -> int:
    """The whole number that a flag was given."""
    if len(text) > 40 or not -LARGEST <= (number := int(text)) <= LARGEST:
        raise argparse.ArgumentTypeError(f"{text[:20]}… is no whole number of 64 bits")
    return number


def add_source_flags(parser: argparse._ActionsContainer) -> None:
    """Which model, on which data."""
    add = parser.add_argument
    add(
        "--dataset",
        type=str,
        default="cifar10",
        nargs="+",
        help="data set(s): a name, wds/NAME (webdataset layout under --dataset_root), folder:PATH (class-named "
        "subfolders), table:FILE (CSV, TSV, JSON lines or Parquet), a collection (vtab, vtab+, imagenet_robustness, "
        "retrieval), or a text file with a name a line",
    )
    add(
        "--dataset_root",
        default="root",
        type=str,
        help="folder or URL of the data; may hold {dataset} and {dataset_cleaned}",
    )
    add("--split", type=str, default="test", help="split to use")
    add("--test_split", dest="split", action="store", type=str, default="test", help="the same as --split")
    add(
        "--model",
        type=str,
        nargs="+",
        default=["ViT-B-32-quickgelu"],
        help="model(s) of open_clip, or of what --model_type names",
    )
    add("--pretrained", type=str, nargs="+", default=DEFAULT_PRETRAINED, help="open_clip tag(s) or checkpoint file(s)")
    add(
        "--pretrained_model",
        type=str,
        default="",
        nargs="+",
        help="'model,pretrained' pair(s), a collection (openai, openclip_base, openclip_multilingual, openclip_all) or "
        "a text file with a pair a line; --model and --pretrained are ignored then",
    )
    add(
        "--task",
        type=str,
        default="auto",
        choices=task_choices(),
        metavar="TASK",
        help=f"what is measured: {', '.join(tasks.registry())}; auto: the data set's own",
    )
    add("--model_cache_dir", default=None, type=str, help="where downloaded weights are kept")
    add_trust_flag(parser)
    add("--annotation_file", default="", type=str, help="captions, for retrieval")
    add("--custom_classname_file", default=None, type=str, help="JSON: data set -> class names")
    add(
        "--custom_template_file",
        default=None,
        type=str,
        help="JSON: data set -> prompts with {c}, or -> class name -> its own prompts",
    )
    add("--language", default="en", type=str, nargs="+", help="language(s) of class names and prompts")
    add("--load_clfs", nargs="+", default=[], type=str, help="use saved classifiers, averaged")
    add(
        "--model_type",
        default="open_clip",
        type=str,
        choices=["open_clip", "hf", "timm", "ja_clip"],
        help="kind of model; hf: --model is a folder or a hub's name; timm: image towers alone, for the linear probe",
    )
    add("--wds_cache_dir", default=None, type=str, help="where webdataset URLs are kept")
    add_column_flags(parser)


def add_trust_flag(parser: argparse._ActionsContainer) -> None:
    """Of whatever loads a model by its name."""
    said = "run Python code that lies in the folder of the model (default: refuse a model that needs it)"
    parser.add_argument("--trust_remote_code", action="store_true", help=said)


def add_column_flags(parser: argparse._ActionsContainer) -> None:
    """Which columns of a table are read."""
    for what in ("image", "caption", "label"):
        parser.add_argument(
            f"--{what}_column", default=None, metavar="NAME", help=f"of table:FILE, the column of {what}s"
        )


def add_running_flags(parser: argparse._ActionsContainer, result: str = "") -> None:
    """How to run it; `result` is what `--quiet` does not keep quiet beside what went wrong."""
    add = parser.add_argument
    add("--no_amp", action="store_false", dest="amp", default=True, help="no mixed precision: float32")
    add("--num_workers", default=4, type=int, help="processes that decode images")
    add("--seed", default=0, type=int, help="random seed; also chooses the images of --limit")
    add("--batch_size", default=64, type=int, help="images encoded at once")
    add("--quiet", dest="verbose", action="store_false", help=f"print nothing but {result}warnings and errors")
    add(
        "--limit",
        default=None,
        type=int,
        metavar="N",
        help="only N images, chosen by --seed, whatever the order of the data set",
    )
    add("--device", default=None, help="cpu, cuda, cuda:1, mps … (default: cuda where there is one)")
    add(
        "--precision",
        default=None,
        choices=PRECISIONS,
        help="amp: autocast, bfloat16 on a CPU and float16 on CUDA (the default); bf16, fp16: weights too",
    )
    add(
        "--clf_cache",
        default=None,
        metavar="DIR",
        help="where classifiers made of texts are kept for the next run; '' for nowhere (default: anchorprune in the "
        "user's cache folder)",
    )
    add(
        "--feature_root",
        default="features",
        type=str,
        help="where the linear probe keeps features for the next run; '' for nowhere (default: %(default)s)",
    )
    add("--skip_bad_images", action="store_true", help=SKIP_BAD_IMAGES)


def add_progress_flags(parser: argparse._ActionsContainer) -> None:
    """How one is told how far it is."""
    parser.add_argument(
        "--log_every",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="say so often how far it is, where there is no terminal for a bar; 0: never (default: %(default)g)",
    )
    parser.add_argument(
        "--log_format", choices=FORMATS, default="text", help="json: an object a line, on a terminal too"
    )


def reporting(args: argparse.Namespace) -> Reporting:
    """What `add_progress_flags` and `--quiet` ask for."""
    return Reporting(log_every=args.log_every, log_format=args.log_format, quiet=not args.verbose)


def add_targets(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--target_gmacs",
        dest="targets",
        nargs="+",
        type=float,
        metavar="X",
        default=None,
        help="solve each strategy's budget for each of these; without it the budgets are taken as they are",
    )


def add_strategy_flags(parser: argparse._ActionsContainer) -> None:
    """A flag for each field of each strategy; None where it was not given."""
    for name, field in strategy_options().items():
        try:
            add_flag(parser, field, None, _owners(name))
        except argparse.ArgumentError as error:
            raise UserError(f"strategy {_owners(name)}: --{name} is another flag already; rename the field") from error


def task_choices() -> list[str]:
    return [*tasks.registry(), "auto"]


def add_task_flags(parser: argparse.ArgumentParser) -> None:
    """A flag for each field of each task, but for those that are flags already, of clip-benchmark's."""
    for task in tasks.registry().values():
        group = None
        for field in dataclasses.fields(task):
            if f"--{field.name}" in parser._option_string_actions:
                continue
            group = group or parser.add_argument_group(f"task {task.name}")
            value = field.default
            add_flag(group, field, value, None if value is None else f"default: {typed(value)}")


def parse_strategies(specs: Sequence[str] | None) -> list[Wanted] | None:
    """Each of `--strategies`, a name or a name with flags in quotes, with the fields that were given; None for none."""
    try:
        return None if specs is None else list(map(parse, specs))
    except FieldError:
        raise
    except UserError as error:
        raise UserError(f"--strategies: {error}") from error


def say(args: argparse.Namespace, text: str) -> None:
    """Print it, unless `--quiet` was given."""
    if args.verbose:
        print(text, flush=True)


def _owners(name: str) -> str:
    """The strategies that have the field, by what it is in them when it is not given."""
    owners: dict[str, list[str]] = {}
    for cls in known().values():
        for field in dataclasses.fields(cls):
            if field.name == name:
                owners.setdefault(typed(field.default), []).append(cls.name)
    return "; ".join(f"{', '.join(names)}" + (f": {value}" if value else "") for value, names in owners.items())


def given_fields(args: argparse.Namespace) -> dict[str, Any]:
    """The strategies' fields that were given as flags."""
    given = {name: getattr(args, name) for name in strategy_options()}
    return {name: value for name, value in given.items() if value is not None}
