"""The flags that several commands share: which model, which data, how to run, and the strategies' own.

clip-benchmark 1.6.2's come first, by its names, defaults and meanings.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from anchorprune.errors import UserError
from anchorprune.strategies import registry
from anchorprune.tasks import TASKS

PRECISIONS = ("amp", "amp_bf16", "fp32", "bf16", "fp16")
# clip-benchmark's; a pruned run under this name gets the strategy's name at its end (`planning.plan_runs`).
DEFAULT_OUTPUT = "{dataset}_{pretrained}_{model}_{language}_{task}.json"


def add_source_flags(parser: argparse._ActionsContainer) -> None:
    """Which model, on which data."""
    add = parser.add_argument
    add(
        "--dataset",
        type=str,
        default="cifar10",
        nargs="+",
        help="data set(s): a name, wds/NAME (webdataset layout under --dataset_root), folder:PATH (class-named "
        "subfolders), a collection (vtab, vtab+, imagenet_robustness, retrieval), or a text file with a name a line",
    )
    add(
        "--dataset_root",
        default="root",
        type=str,
        help="folder or URL of the data; may hold {dataset} and {dataset_cleaned}",
    )
    add("--split", type=str, default="test", help="split to use")
    add("--test_split", dest="split", action="store", type=str, default="test", help="split to use")
    add("--model", type=str, nargs="+", default=["ViT-B-32-quickgelu"], help="open_clip model(s)")
    add("--pretrained", type=str, nargs="+", default=["laion400m_e32"], help="open_clip tag(s) or checkpoint file(s)")
    add(
        "--pretrained_model",
        type=str,
        default="",
        nargs="+",
        help="'model,pretrained' pair(s), a collection (openai, openclip_base, openclip_multilingual, openclip_all) or "
        "a text file with a pair a line; --model and --pretrained are ignored then",
    )
    add("--task", type=str, default="auto", choices=[*TASKS, "auto"], help="auto: the data set's own")
    add("--model_cache_dir", default=None, type=str, help="where downloaded weights are kept")
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
        choices=["open_clip", "hf", "ja_clip"],
        help="kind of model; hf: --model is a folder or a hub's name",
    )
    add("--wds_cache_dir", default=None, type=str, help="where webdataset URLs are kept")


def add_running_flags(parser: argparse._ActionsContainer) -> None:
    """How to run it."""
    add = parser.add_argument
    add("--no_amp", action="store_false", dest="amp", default=True, help="no mixed precision: float32")
    add("--num_workers", default=4, type=int, help="processes that decode images")
    add("--seed", default=0, type=int, help="random seed; also chooses the images of --limit")
    add("--batch_size", default=64, type=int, help="images encoded at once")
    add("--quiet", dest="verbose", action="store_false", help="print nothing but warnings and errors")
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
    add("--skip_bad_images", action="store_true", help="count images that cannot be read, and go on")


def add_eval_flags(parser: argparse._ActionsContainer) -> None:
    """What only `eval` has of clip-benchmark's."""
    add = parser.add_argument
    add("--train_split", type=str, nargs="+", default="train", help="train split(s), for the linear probe")
    add("--recall_k", default=[5], type=int, nargs="+", help="k of Recall@k, for retrieval")
    add("--fewshot_k", default=-1, type=int, help="shots of the linear probe; -1 = all")
    add("--fewshot_epochs", default=10, type=int, help="epochs of the linear probe")
    add("--fewshot_lr", default=0.1, type=float, help="learning rate of the linear probe")
    add("--skip_load", action="store_true", help="for linear probes whose features are all cached")
    add("--distributed", action="store_true", help="share the evaluations out over the ranks of torchrun or slurm")
    add("--normalize", default=True, type=bool, help="normalize features, for the linear probe")
    add("--feature_root", default="features", type=str, help="where the linear probe keeps features")
    add("--dump_classnames", default=False, action="store_true", help="put the class names into the result")
    add("--dump_templates", default=False, action="store_true", help="put the prompts into the result")
    add(
        "--output",
        default=DEFAULT_OUTPUT,
        type=str,
        help="result file, may hold placeholders (default: %(default)s, with the strategy's name at the end when "
        "pruning)",
    )
    add(
        "--save_outcomes",
        action="store_true",
        help="save what each image was taken for, beside the result as NAME.outcomes.npz; `compare` reads it",
    )
    add("--save_clf", default=None, type=str, help="save the classifier made of the texts")
    add(
        "--skip_existing",
        default=False,
        action="store_true",
        help="skip what the output file already holds the result of, with these very settings",
    )
    validation = parser.add_mutually_exclusive_group()
    validation.add_argument(
        "--val_split", default=None, type=str, nargs="+", help="validation split(s), for the linear probe"
    )
    validation.add_argument(
        "--val_proportion",
        default=None,
        type=float,
        nargs="+",
        help="share of the train split used for validation, for the linear probe",
    )


# What `planning` and `runs` read of `eval`'s command line, for commands that have no such flags.
NOT_ASKED = {
    "distributed": False,
    "enable_pruning": False,
    "strategy": None,
    "target_gmacs": None,
    "extract_attention": False,
    "attention_output": None,
    "attention_images": 8,
    "output": DEFAULT_OUTPUT,
    "save_clf": None,
}


def _add_targets(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--target_gmacs",
        dest="targets",
        nargs="+",
        type=float,
        metavar="X",
        default=None,
        help="solve each strategy's budget for each of these; without it the budgets are taken as they are",
    )


def add_sweep_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `sweep`."""
    own = parser.add_argument_group("what to try")
    own.add_argument(
        "--strategies",
        nargs="+",
        metavar="SPEC",
        default=None,
        help="names, or names with flags in quotes such as 'anchor --prune_layer 6' (default: every strategy)",
    )
    _add_targets(own)
    own.add_argument("--out", metavar="DIR", default="anchorprune-sweep", help="folder for the results (%(default)s)")
    add_source_flags(parser)
    add_running_flags(parser)


def add_speed_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `speed`."""
    add = parser.add_argument
    add("--model", default="ViT-B-32-quickgelu", help="open_clip model, or what --model_type has")
    add("--model_type", default="open_clip", choices=["open_clip", "hf", "timm"], help="library of the model")
    add("--pretrained", default="", help="tag or checkpoint file (default: random weights, time depends on none)")
    add("--model_cache_dir", default=None, type=str, help="where downloaded weights are kept")
    add(
        "--strategies",
        nargs="+",
        metavar="SPEC",
        default=None,
        help="names, or names with flags in quotes such as 'anchor --prune_layer 6' (default: the recommended one, "
        "tome, anchor)",
    )
    _add_targets(parser)
    add("--batch_size", dest="batch_sizes", nargs="+", type=int, default=[1, 16], help="default: 1 16")
    add("--repeats", type=int, default=20, help="times that each is run, all in turns (default: %(default)s)")
    add(
        "--compile",
        nargs="?",
        const="default",
        default=None,
        choices=["default", "reduce-overhead", "max-autotune"],
        help="time the tower under torch.compile, in one full graph; reduce-overhead: CUDA graphs",
    )
    add("--out", metavar="DIR", default="anchorprune-speed", help="folder for speed.json and speed.png (%(default)s)")
    add("--no_amp", action="store_false", dest="amp", default=True, help="no mixed precision: float32")
    add("--seed", default=0, type=int, help="of the random images")
    add("--device", default=None, help="cpu, cuda, cuda:1, mps … (default: cuda where there is one)")
    add("--precision", default=None, choices=PRECISIONS, help="as in eval")
    add("--quiet", dest="verbose", action="store_false", help="print nothing but warnings and errors")


def add_tune_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `tune`."""
    own = parser.add_argument_group("what to look for")
    goal = own.add_mutually_exclusive_group(required=True)
    goal.add_argument("--max_drop", type=float, metavar="POINTS", help="the cheapest that loses at most that much acc1")
    goal.add_argument(
        "--target_speedup", type=float, metavar="TIMES", help="the most accurate that is that much faster here"
    )
    own.add_argument(
        "--strategies",
        nargs="+",
        metavar="SPEC",
        default=None,
        help="which to search, as in sweep (default: coarse, coarse --grid_share 0.25 and tome)",
    )
    own.add_argument(
        "--calibration",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="share of the images to search on, 0 … 1; the expectation is for the rest (default: %(default)s)",
    )
    add_source_flags(parser)
    add_running_flags(parser)


def add_pruning_flags(ours: argparse._ActionsContainer) -> None:
    """What `eval` prunes, and what it saves of the attention."""
    ours.add_argument("--enable_pruning", action="store_true", help="prune tokens")
    ours.add_argument(
        "--strategy",
        choices=None,
        default=None,
        metavar="NAME",
        help=f"which tokens to keep: {', '.join(registry())} (default: anchor, the described method)",
    )
    add_strategy_flags(ours)
    ours.add_argument(
        "--target_gmacs",
        default=None,
        type=float,
        metavar="X",
        help="instead of a budget: the largest under which the image tower, selection included, costs at most X "
        "billion multiply-adds for an image",
    )
    ours.add_argument("--extract_attention", action="store_true", help="save the attention of a few images")
    ours.add_argument(
        "--attention_output",
        default=None,
        type=str,
        help="its file, a template like --output (default: attention_{dataset}_{pretrained}_{model}.pt)",
    )
    ours.add_argument("--attention_images", default=8, type=int, help="of how many images (default: 8)")


def add_strategy_flags(parser: argparse._ActionsContainer) -> None:
    """A flag for each field of each strategy; None where it was not given."""
    for name, field in strategy_options().items():
        several = isinstance(field.default, tuple)
        kind = field.metadata["kind"] if several else type(field.default)
        try:
            parser.add_argument(
                f"--{name}",
                type=kind,
                nargs="+" if several else None,
                default=None,
                metavar=kind.__name__.upper(),
                help=f"{field.metadata['help']} ({_owners(name)})",
            )
        except argparse.ArgumentError as error:
            raise UserError(f"strategy {_owners(name)}: --{name} is another flag already; rename the field") from error


def strategy_options() -> dict[str, dataclasses.Field[Any]]:
    """The fields of all strategies, which are flags of `eval`."""
    return {field.name: field for cls in registry().values() for field in dataclasses.fields(cls)}


def _owners(name: str) -> str:
    """The strategies that have the field, by what it is in them when it is not given."""
    owners: dict[str, list[str]] = {}
    for cls in registry().values():
        for field in dataclasses.fields(cls):
            if field.name == name:
                values = field.default if isinstance(field.default, tuple) else (field.default,)
                owners.setdefault(" ".join(map(str, values)), []).append(cls.name)
    return "; ".join(f"{', '.join(names)}" + (f": {value}" if value else "") for value, names in owners.items())


def given_fields(args: argparse.Namespace) -> dict[str, Any]:
    """The strategies' fields that were given as flags."""
    given = {name: getattr(args, name) for name in strategy_options()}
    return {name: value for name, value in given.items() if value is not None}
