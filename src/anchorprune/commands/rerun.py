"""`anchorprune rerun`: an evaluation once more, from the request that its result holds."""

from __future__ import annotations

import argparse
import dataclasses
import math
from typing import Any

from anchorprune.commands._flags import add_progress_flags, add_trust_flag, reporting, say
from anchorprune.commands._results import all_of, noted, summary
from anchorprune.errors import Unwritten, UserError
from anchorprune.outputs import Read, check_outputs

HELP = "repeat the evaluation of a result file, and say whether the metrics are the same"


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("result", metavar="RESULT.json", help="a result file of eval, sweep or demo")
    parser.add_argument("--output", default=None, metavar="FILE", help="write the new result there")
    parser.add_argument("--device", default=None, help="another device than the result's")
    parser.add_argument("--num_workers", default=None, type=int, help="another number of processes that decode images")
    add_trust_flag(parser)
    parser.add_argument("--quiet", dest="verbose", action="store_false", help="print only what differs")
    add_progress_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Returns the exit code: 0 where the metrics are the same, 1 where they differ."""
    from anchorprune.evaluation import outcomes
    from anchorprune.evaluation import result as results
    from anchorprune.evaluation.request import Request

    before = results.read(args.result)
    if "request" not in before:
        raise UserError(
            f"{args.result}: does not hold its request (an older result, or clip-benchmark's); run its eval"
        )
    try:
        request = Request.from_dict(before["request"])
    except UserError as error:
        raise UserError(f"{args.result}: {error}") from error
    if before.get("config_hash") is None:
        raise UserError(f"{args.result}: its model or data were objects in Python, which no name finds again")
    if request.model.trust_remote_code and not args.trust_remote_code:
        raise UserError(f"{args.result}: wants the model's own code to be run; read it, and give --trust_remote_code")
    given = {name: value for name in ("device", "num_workers") if (value := getattr(args, name)) is not None}
    request = dataclasses.replace(request, compute=dataclasses.replace(request.compute, **given))

    from anchorprune.evaluation import preflight
    from anchorprune.evaluation.engine import evaluate
    from anchorprune.evaluation.inputs import reads_of

    if args.output:
        reads = [Read("the result to be repeated", args.result), *reads_of(request)]
        reads.append(Read("the outcomes of the result to be repeated", outcomes.path_for(args.result)))
        check_outputs([("output", args.output)], reads)
    preflight.check([request])
    say(args, f"anchorprune eval {' '.join(request.flags())}")
    after = evaluate(request, keep_scores=False, progress=reporting(args))
    lost: list[Unwritten] = []
    if args.output:
        with noted(lost):
            after.save(args.output)
    if (now := request.hash()) != before["config_hash"]:
        what = "The files that the request names are not what they were"
        if before["request"].get("pruning") != (request.pruning and request.pruning.as_dict()):
            what = "The strategy has other fields than it had when this was measured"
        print(f"{what} (hash {before['config_hash']}, now {now}).")
    differ = list(_differences(before["metrics"], after.to_dict()["metrics"]))
    for line in differ:
        print(line)
    say(args, "The metrics differ." if differ else "The metrics are the same.")
    if lost:
        print(summary(after.to_dict()), flush=True)
        raise all_of(lost)
    return 1 if differ else 0


def _differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    lines = []
    for name in dict.fromkeys([*before, *after]):
        then, now = (None if _is_nan(of.get(name)) else of.get(name) for of in (before, after))
        if then != now:
            lines.append(f"{name}: {then} before, {now} now")
    return lines


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
