"""The command line: `anchorprune eval | build | compare | demo`. Importing it, and `--help`, import no torch."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import warnings
from typing import Any, NoReturn

import anchorprune
from anchorprune.errors import FieldError, UserError, did_you_mean
from anchorprune.strategies import registry
from anchorprune.tasks import TASKS

# clip-benchmark's; a pruned run under this name gets the strategy's name at its end (`runs.plan_runs`).
DEFAULT_OUTPUT = "{dataset}_{pretrained}_{model}_{language}_{task}.json"


class Parser(argparse.ArgumentParser):
    """argparse with one line for a mistake instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 2 after one line on stderr for bad input."""
    parser = build_parser()
    args, unknown = parser.parse_known_args(argv)
    if "which" not in args and not unknown:
        parser.print_help()
        return 0
    try:
        if unknown:
            actions = getattr(args, "parser", parser)._actions
            known = [option for action in actions for option in action.option_strings]
            hint = did_you_mean(unknown[0].split("=")[0], known)
            raise UserError(f"unrecognized arguments: {' '.join(unknown)}.{hint}")
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            warnings.filterwarnings("always", category=UserWarning, module="anchorprune")
            # Torch's advice on --num_workers, whose default is clip-benchmark's: two lines in every run on a small
            # machine.
            warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
            COMMANDS[args.which](args)
    except FieldError as error:
        return _complain(error.as_flag())
    except UserError as error:
        return _complain(str(error))
    except KeyboardInterrupt:
        print("anchorprune: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


def _complain(sentence: str) -> int:
    print(f"anchorprune: error: {' '.join(sentence.split())}", file=sys.stderr)
    return 2


def _show_warning(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
    print(f"anchorprune: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _eval(args: argparse.Namespace) -> None:
    from anchorprune.runs import run_eval

    given = {name: getattr(args, name) for name in strategy_options()}
    run_eval(args, {name: value for name, value in given.items() if value is not None})


def _build(args: argparse.Namespace) -> None:
    from anchorprune import results

    rows = results.build(args.files, args.output)
    print(f"{rows} results: {args.output}")


def _compare(args: argparse.Namespace) -> None:
    from anchorprune import results
    from anchorprune.compare import compare

    print(compare(results.read(args.a), results.read(args.b), (args.a, args.b)))


def _demo(args: argparse.Namespace) -> None:
    from anchorprune.demo.run import run_demo

    run_demo(args.out, args.limit, args.verbose)


COMMANDS = {"eval": _eval, "build": _build, "compare": _compare, "demo": _demo}


def build_parser() -> Parser:
    """The parser of the whole command line."""
    parser = Parser(prog="anchorprune", description="Token pruning for CLIP image encoders, measured.")
    parser.add_argument("--version", action="version", version=f"anchorprune {anchorprune.__version__}")
    commands = parser.add_subparsers(title="commands")
    _add_eval(commands.add_parser("eval", help="evaluate models on data sets, pruned or not"))

    build = commands.add_parser("build", help="build a CSV from result files")
    build.add_argument("files", type=str, nargs="+", help="path(s) of JSON result files, or folders of them")
    build.add_argument("--output", type=str, default="benchmark.csv", help="CSV output file")
    build.set_defaults(which="build", parser=build)

    compare = commands.add_parser("compare", help="print the differences of two results")
    compare.add_argument("a", metavar="A.json", help="the result to compare with, usually the unpruned one")
    compare.add_argument("b", metavar="B.json", help="the other result")
    compare.set_defaults(which="compare", parser=compare)

    demo = commands.add_parser("demo", help="prune the bundled model on the bundled photos; leaves a page to look at")
    demo.add_argument(
        "--out", metavar="DIR", default="anchorprune-demo", help="folder for report.html and the results (%(default)s)"
    )
    demo.add_argument("--limit", type=int, default=None, metavar="N", help="only N photos, as in eval")
    demo.add_argument("--quiet", dest="verbose", action="store_false", help="print nothing but warnings and errors")
    demo.set_defaults(which="demo", parser=demo)
    return parser


def _add_eval(parser: argparse.ArgumentParser) -> None:
    """The flags of `eval`: clip-benchmark 1.6.2's, by its names, defaults and meanings, then ours."""
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
    add("--train_split", type=str, nargs="+", default="train", help="train split(s), for the linear probe")
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
    add("--no_amp", action="store_false", dest="amp", default=True, help="no mixed precision: float32")
    add("--num_workers", default=4, type=int, help="processes that decode images")
    add("--recall_k", default=[5], type=int, nargs="+", help="k of Recall@k, for retrieval")
    add("--fewshot_k", default=-1, type=int, help="shots of the linear probe; -1 = all")
    add("--fewshot_epochs", default=10, type=int, help="epochs of the linear probe")
    add("--fewshot_lr", default=0.1, type=float, help="learning rate of the linear probe")
    add("--skip_load", action="store_true", help="for linear probes whose features are all cached")
    add("--distributed", action="store_true", help="share the evaluations out over the ranks of torchrun or slurm")
    add("--seed", default=0, type=int, help="random seed; also chooses the images of --limit")
    add("--batch_size", default=64, type=int, help="images encoded at once")
    add("--normalize", default=True, type=bool, help="normalize features, for the linear probe")
    add("--model_cache_dir", default=None, type=str, help="where downloaded weights are kept")
    add("--feature_root", default="features", type=str, help="where the linear probe keeps features")
    add("--annotation_file", default="", type=str, help="captions, for retrieval")
    add("--custom_classname_file", default=None, type=str, help="JSON: data set -> class names")
    add(
        "--custom_template_file",
        default=None,
        type=str,
        help="JSON: data set -> prompts with {c}, or -> class name -> its own prompts",
    )
    add("--dump_classnames", default=False, action="store_true", help="put the class names into the result")
    add("--dump_templates", default=False, action="store_true", help="put the prompts into the result")
    add("--language", default="en", type=str, nargs="+", help="language(s) of class names and prompts")
    add(
        "--output",
        default=DEFAULT_OUTPUT,
        type=str,
        help="result file, may hold placeholders (default: %(default)s, with the strategy's name at the end when "
        "pruning)",
    )
    add("--quiet", dest="verbose", action="store_false", help="print nothing but warnings and errors")
    add("--save_clf", default=None, type=str, help="save the classifier made of the texts")
    add("--load_clfs", nargs="+", default=[], type=str, help="use saved classifiers, averaged")
    add(
        "--skip_existing",
        default=False,
        action="store_true",
        help="skip what the output file already holds the result of, with these very settings",
    )
    add("--model_type", default="open_clip", type=str, choices=["open_clip", "ja_clip"], help="kind of model")
    add("--wds_cache_dir", default=None, type=str, help="where webdataset URLs are kept")

    ours = parser.add_argument_group("pruning")
    ours.add_argument("--enable_pruning", action="store_true", help="prune tokens")
    ours.add_argument(
        "--strategy",
        choices=None,
        default=None,
        metavar="NAME",
        help=f"which tokens to keep: {', '.join(registry())} (default: anchor, the described method)",
    )
    add_strategy_flags(ours)
    ours.add_argument("--extract_attention", action="store_true", help="save the attention of a few images")
    ours.add_argument(
        "--attention_output",
        default=None,
        type=str,
        help="its file, a template like --output (default: attention_{dataset}_{pretrained}_{model}.pt)",
    )
    ours.add_argument("--attention_images", default=8, type=int, help="of how many images (default: 8)")

    more = parser.add_argument_group("more than clip-benchmark")
    more.add_argument(
        "--limit",
        default=None,
        type=int,
        metavar="N",
        help="only N images, chosen by --seed, whatever the order of the data set",
    )
    more.add_argument("--device", default=None, help="cpu, cuda, cuda:1, mps … (default: cuda where there is one)")
    more.add_argument(
        "--precision",
        default=None,
        choices=["amp", "amp_bf16", "fp32", "bf16", "fp16"],
        help="amp: autocast, bfloat16 on a CPU and float16 on CUDA (the default); bf16, fp16: weights too",
    )
    more.add_argument("--skip_bad_images", action="store_true", help="count images that cannot be read, and go on")
    parser.set_defaults(which="eval", parser=parser)


def add_strategy_flags(parser: argparse._ActionsContainer) -> None:
    """A flag for each field of each strategy; None where it was not given."""
    for name, field in strategy_options().items():
        several = isinstance(field.default, tuple)
        kind = field.metadata["kind"] if several else type(field.default)
        parser.add_argument(
            f"--{name}",
            type=kind,
            nargs="+" if several else None,
            default=None,
            metavar=kind.__name__.upper(),
            help=f"{field.metadata['help']} ({_owners(name)})",
        )


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
