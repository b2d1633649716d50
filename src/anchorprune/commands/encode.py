"""`anchorprune encode`: embeddings of a great many images, in files that search engines read."""

from __future__ import annotations

import argparse
import dataclasses
import re
from functools import partial
from typing import Any

from anchorprune.commands import _flags as flags
from anchorprune.commands._flags import DEFAULT_PRETRAINED, given_fields, say
from anchorprune.commands._requests import compute_of, weights_of
from anchorprune.commands._scale import add_engine_flags, engine_of
from anchorprune.embeddings.request import DTYPES, FORMATS, INPUT_FORMATS, EncodeRequest
from anchorprune.errors import FieldError, UserError
from anchorprune.evaluation.request import PRECISIONS, ModelSpec
from anchorprune.strategies import known, make_strategy
from anchorprune.strategies.base import Strategy

HELP = "encode many images, pruned or not: embeddings in Parquet or .npy files"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What to read, with which model, how much of it, and what to write."""
    source = parser.add_argument_group("images").add_argument
    source(
        "--input",
        nargs="+",
        required=True,
        metavar="PATH",
        help="a folder, webdataset tars (also URLs), Parquet, CSV, TSV or JSON lines with paths or bytes, or a text "
        "file with a path a line; patterns such as 'shards/{00..99}.tar' in quotes",
    )
    source("--input_format", choices=INPUT_FORMATS, default="auto", help="what it is (default: told by the names)")
    source("--image_column", metavar="COLUMN", help="of a table: paths or bytes of the images (default: found)")
    source("--id_column", metavar="COLUMN", help="of a table: ids of the rows (default: the path, or FILE:ROW)")
    source(
        "--keep_columns",
        nargs="+",
        default=(),
        metavar="COLUMN",
        help="carry along: columns of a table; txt, json … beside an image, or keys of its json",
    )
    source("--texts", metavar="COLUMN", help="encode these texts too; rows without one are failures")
    source("--limit", type=int, metavar="N", help="only N images, chosen by --seed, whatever their order")
    source("--cache_dir", metavar="DIR", help="where tars from URLs are kept")
    of_model = parser.add_argument_group("model")
    model = of_model.add_argument
    model("--model", default="ViT-B-32-quickgelu", help="open_clip model, or a folder or hub's name of --model_type hf")
    model("--pretrained", default="laion400m_e32", help="open_clip tag or checkpoint file (default: %(default)s)")
    model("--model_type", default="open_clip", choices=["open_clip", "hf"], help="library of the model")
    model("--model_cache_dir", default=None, help="where downloaded weights are kept")
    flags.add_trust_flag(of_model)
    pruning = parser.add_argument_group("pruning")
    pruning.add_argument("--enable_pruning", action="store_true", help="as in eval; --strategy alone is enough")
    pruning.add_argument("--strategy", metavar="NAME", help=f"which tokens to keep: {', '.join(known())}; none: all")
    pruning.add_argument(
        "--target_gmacs", default=None, type=float, metavar="X", help="solve the strategy's budget for this"
    )
    flags.add_strategy_flags(pruning)
    pruning.add_argument(
        "--check",
        type=int,
        default=0,
        metavar="N",
        help="encode N of the images unpruned too, first, and say how near the embeddings are",
    )
    output = parser.add_argument_group("output").add_argument
    output("--out", required=True, metavar="DIR", help="folder for the embeddings; one that was begun is gone on with")
    output("--format", choices=FORMATS, default="parquet", help="npy: clip-retrieval's layout (default: %(default)s)")
    output("--dtype", choices=tuple(DTYPES), default="fp16", help="of the embeddings (default: %(default)s)")
    output("--no_normalize", action="store_false", dest="normalize", help="do not scale embeddings to length 1")
    output("--rows_per_shard", type=int, default=10_000, metavar="N", help="images in one file (default: %(default)s)")
    output(
        "--on_error",
        choices=["skip", "fail"],
        default="skip",
        help="skip: an image that cannot be encoded is a row of failures.parquet (default); fail: it stops. "
        + flags.IMAGE_LIMITS,
    )
    output("--max_failures", type=float, default=1.0, metavar="SHARE", help="stop when more than this share has failed")
    how = parser.add_argument_group("how")
    how.add_argument(
        "--shard",
        default=None,
        metavar="I/N",
        help="only every N-th file from the I-th on, counted from 0: N processes with one --out share the work",
    )
    how.add_argument(
        "--fast_decode",
        action="store_true",
        help="decode JPEG files at a reduced size, and resize straight to a coarser grid: faster, nearly the same",
    )
    how.add_argument("--batch_size", type=int, default=64, help="images encoded at once")
    how.add_argument("--num_workers", type=int, default=4, help="processes that decode images")
    how.add_argument("--seed", type=int, default=0, help="chooses the images of --limit and --check")
    how.add_argument("--device", default=None, help="cpu, cuda, cuda:1, mps … (default: cuda where there is one)")
    how.add_argument("--no_amp", action="store_false", dest="amp", default=True, help="no mixed precision: float32")
    how.add_argument("--precision", default=None, choices=PRECISIONS, help="as in eval")
    how.add_argument("--quiet", dest="verbose", action="store_false", help="print nothing but warnings and errors")
    flags.add_progress_flags(how)
    add_engine_flags(how, keep_going=False)


def run(args: argparse.Namespace) -> None:
    """Encode what the command line asks for, and say what came of it."""
    request, shard = request_of(args), _shard(args.shard or "0/1")
    reporting = flags.reporting(args)
    if args.engine == "ray" and args.shard:
        raise UserError("--engine ray: shares the work out by itself; leave --shard out")

    if request.pruning is not None:
        from anchorprune.evaluation.preflight import solved

        pruning = solved(request.model, request.pruning, args.target_gmacs)
        if args.target_gmacs is not None:
            say(args, f"{args.target_gmacs:g} GMACs: {pruning.name} {pruning.flags()}".rstrip())
        request = dataclasses.replace(request, pruning=pruning)
    with engine_of(args) as engine:
        if args.engine == "ray":
            from anchorprune.scale.encoding import encode_on
            from anchorprune.scale.ray import Cluster

            assert isinstance(engine, Cluster)
            found = encode_on(engine, request, args.out, check=args.check, start=lambda part: say(args, part.title))
        else:
            from anchorprune.embeddings.run import encode

            found = encode(
                request, args.out, shard=shard, check=args.check, reporting=reporting, say=partial(say, args)
            )
    say(args, summary(found, args.out))


def request_of(args: argparse.Namespace) -> EncodeRequest:
    """UserError for a value that cannot be."""
    same: dict[str, Any] = {
        field.name: getattr(args, field.name)
        for field in dataclasses.fields(EncodeRequest)
        if field.name not in ("model", "pruning", "compute")
    }
    given = [args.pretrained] != DEFAULT_PRETRAINED
    pretrained = args.pretrained if given else weights_of(args.model, args.model_type)
    return EncodeRequest(
        **same,
        model=ModelSpec(
            name=args.model,
            pretrained=pretrained,
            library=args.model_type,
            cache_dir=args.model_cache_dir,
            trust_remote_code=args.trust_remote_code,
        ),
        pruning=_strategy(args),
        compute=compute_of(args),
    )


def _strategy(args: argparse.Namespace) -> Strategy | None:
    """None where nothing is to be pruned."""
    fields = given_fields(args)
    budget = {**fields, **({} if args.target_gmacs is None else {"target_gmacs": args.target_gmacs})}
    if args.strategy in (None, "none"):
        if budget:
            name = next(iter(budget))
            raise FieldError(name, budget[name], "is a strategy's; name the strategy", typed="name the --strategy, too")
        if args.enable_pruning:
            raise UserError("--enable_pruning: name the --strategy, too")
        return None
    strategy = make_strategy(args.strategy, **fields)
    if args.target_gmacs is not None:
        from anchorprune.evaluation.preflight import check_no_budget

        check_no_budget(strategy, tuple(fields))
    return strategy


def _shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if found is None or int(found[1]) >= int(found[2]):
        raise UserError(f"--shard {text}: give I/N with I from 0 to N - 1, such as 0/4, 1/4, 2/4 and 3/4")
    return int(found[1]), int(found[2])


def summary(found: dict[str, Any], out: str) -> str:
    """What came of it, in a line or two."""
    line = f"{found['rows']:,} embeddings of {found['images']:,} images: {out}"
    if not found["finished"]:
        done = found["shards"]
        line += f" ({done['finished']:,} of {done['all']:,} files; other processes have the rest)"
    if found["failures"]:
        line += f"\n{found['failures']:,} could not be encoded: {out}/failures.parquet"
    if (gmacs := found.get("gmacs")) is not None:
        dense = found["gmacs_dense"]
        cost = f"{gmacs:.2f} GMACs" if gmacs == dense else f"{gmacs:.2f} of {dense:.2f} GMACs"
        line += f"\n{cost} an image"
    if found["images_per_second"]:
        line += f"; {found['images_per_second']:.1f} images/s in a process"
    return line
