"""`anchorprune speed`: the time that pruning saves, in alternating repeats, beside what the FLOPs promise."""

from __future__ import annotations

import argparse
from functools import partial

from anchorprune.commands import _flags as flags
from anchorprune.commands._flags import parse_strategies, say
from anchorprune.commands._requests import compute_of
from anchorprune.commands._results import kept
from anchorprune.evaluation.request import PRECISIONS, ModelSpec
from anchorprune.files import output_folder
from anchorprune.outputs import check_names

FILES = ("speed.json", "speed.png")
HELP = "time the image tower, dense and pruned in turns, beside its FLOPs"


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", default="ViT-B-32-quickgelu", help="open_clip model, or what --model_type has")
    add("--model_type", default="open_clip", choices=["open_clip", "hf", "timm"], help="library of the model")
    add("--pretrained", default="", help="tag or checkpoint file (default: random weights, time depends on none)")
    add("--model_cache_dir", default=None, type=str, help="where downloaded weights are kept")
    flags.add_trust_flag(parser)
    add(
        "--strategies",
        nargs="+",
        metavar="SPEC",
        default=None,
        help="names, or names with flags in quotes such as 'anchor --prune_layer 6' (default: the recommended one, "
        "tome, anchor)",
    )
    flags.add_targets(parser)
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


def run(args: argparse.Namespace) -> None:
    """Time what the command line asks for; write speed.json and speed.png to `--out`."""
    compute = compute_of(args)
    strategies = parse_strategies(args.strategies)
    model = ModelSpec(
        name=args.model,
        pretrained=args.pretrained,
        library=args.model_type,
        cache_dir=args.model_cache_dir,
        trust_remote_code=args.trust_remote_code,
    )
    from anchorprune.evaluation.inputs import model_reads, strategy_reads

    check_names("out", args.out, FILES, [*model_reads(model), *strategy_reads(strategies)])
    with output_folder("out", args.out, *FILES) as folder:
        from anchorprune.studies.speed import speed

        found = speed(
            model,
            strategies,
            target_gmacs=args.targets,
            batch_sizes=args.batch_sizes,
            repeats=args.repeats,
            compile_mode=args.compile,
            compute=compute,
            seed=args.seed,
            say=partial(say, args),
        )
        kept(args, f"\n{found.to_text()}", partial(found.save, folder))
        say(args, f"\nspeed.json and speed.png: {folder}")
