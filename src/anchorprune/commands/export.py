"""`anchorprune export`: the pruned image tower as one file for another runtime, run and held against the model."""

from __future__ import annotations

import argparse
import json
from functools import partial

from anchorprune.commands import _flags as flags
from anchorprune.commands._flags import given_fields, say
from anchorprune.commands._results import kept
from anchorprune.errors import FieldError, UserError
from anchorprune.files import write_text
from anchorprune.outputs import check_outputs
from anchorprune.strategies import RECOMMENDED, make_strategy

HELP = "write the pruned image tower as ONNX or a torch.export program, and check it"


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", default="ViT-B-32-quickgelu", help="open_clip model, or what --model_type has")
    add("--model_type", default="open_clip", choices=["open_clip", "hf", "timm"], help="library of the model")
    add("--pretrained", default="", help="tag or checkpoint file")
    add("--model_cache_dir", default=None, type=str, help="where downloaded weights are kept")
    flags.add_trust_flag(parser)
    add("--format", default="onnx", choices=["onnx", "torch"], help="onnx, or torch: a torch.export program, .pt2")
    add("--output", required=True, metavar="FILE", help="the image tower's file")
    add("--text_output", default=None, metavar="FILE", help="write the text tower, too")
    add("--normalize", action="store_true", help="features of length 1")
    add(
        "--check_images",
        default=32,
        type=int,
        metavar="N",
        help="bundled photographs to hold the file against the model on; 0: none (default: %(default)s)",
    )
    add("--no_speed", dest="speed", action="store_false", help="do not time it beside an unpruned one")
    add("--report", default=None, metavar="FILE", help="write what was found as JSON")
    add("--quiet", dest="verbose", action="store_false", help="print nothing but warnings and errors")
    ours = parser.add_argument_group("pruning")
    ours.add_argument(
        "--strategy", default=RECOMMENDED, help="which tokens are kept, or none: unpruned (default: %(default)s)"
    )
    ours.add_argument(
        "--target_gmacs", default=None, type=float, metavar="X", help="solve the strategy's budget for this"
    )
    flags.add_strategy_flags(ours)


def run(args: argparse.Namespace) -> None:
    """Write what the command line asks for, and print what the file is worth."""
    fields = given_fields(args)
    if args.strategy == "none" and fields:
        name = next(iter(fields))
        raise FieldError(name, fields[name], "nothing is pruned with --strategy none; leave it out")
    strategy = None if args.strategy == "none" else make_strategy(args.strategy, **fields)
    if strategy is not None and args.target_gmacs is not None:
        from anchorprune.evaluation.preflight import check_no_budget

        check_no_budget(strategy, tuple(fields))
    if not args.pretrained and args.model_type == "open_clip" and ":" not in args.model:
        raise UserError("--pretrained: name a tag or a checkpoint file; a file of random weights serves nobody")
    from anchorprune.evaluation.inputs import field_reads, model_reads
    from anchorprune.evaluation.request import ModelSpec

    model = ModelSpec(
        name=args.model,
        pretrained=args.pretrained,
        library=args.model_type,
        cache_dir=args.model_cache_dir,
        trust_remote_code=args.trust_remote_code,
    )
    named = [(flag, getattr(args, flag)) for flag in ("output", "text_output", "report")]
    reads = [*model_reads(model), *(field_reads(strategy) if strategy else ())]
    check_outputs([(flag, path) for flag, path in named if path is not None], reads)

    from anchorprune.studies.export import export

    found = export(
        model,
        strategy,
        args.output,
        format=args.format,
        target_gmacs=args.target_gmacs,
        normalize=args.normalize,
        text_path=args.text_output,
        check_images=args.check_images,
        speed=args.speed,
        say=partial(say, args),
    )
    report = json.dumps(found.to_dict(), indent=2) + "\n"
    save = partial(write_text, report, args.report) if args.report is not None else lambda: None
    kept(args, f"\n{found.to_text()}", save)
