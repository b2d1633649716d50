"""What the demo says of its numbers. Every sentence follows from the data: nothing is known beforehand."""

from __future__ import annotations

from collections.abc import Sequence

from anchorprune.evaluation.statistics import Difference
from anchorprune.report.table import Row, percent


def headline(described: Row, unpruned: Row) -> str:
    """The result in one line."""
    lost = 100 * (unpruned.accuracy - described.accuracy)
    accuracy = (
        "just as accurate" if abs(lost) < 0.05 else f"{abs(lost):.1f} points {'less' if lost > 0 else 'more'} accurate"
    )
    return f"Keeping {described.tokens} of {described.all_tokens} tokens: {_speed(described.speed_up)}{accuracy}"


def _speed(speed_up: float | None) -> str:
    if speed_up is None:
        return ""
    if speed_up >= 1.05:
        return f"{speed_up:.1f} times as fast, "
    return "no faster, " if speed_up >= 0.95 else f"slower ({speed_up:.2f} times the speed), "


def against_random(described: Row, random: Row, difference: Difference) -> str:
    """Whether choosing tokens was worth it. `difference` is described minus random, on the same photos."""
    patches = described.tokens - 1
    mean = f" (mean of {len(random.draws)} draws)" if len(random.draws) > 1 else ""
    numbers = f"{percent(described.accuracy)} against {percent(random.accuracy)}{mean}"
    points = (
        f"{100 * abs(difference.value):.1f} points, 95 % interval {_interval(difference)}"
        if difference.sign
        else f"{100 * difference.value:+.1f} points, 95 % interval {100 * difference.low:+.1f} to "
        f"{100 * difference.high:+.1f}"
    )
    if difference.sign < 0:
        return (
            f"On this model the described method is worse than chance: {patches} patches drawn at random, the same "
            f"for every photo, do better than those it chooses. {numbers}: it is behind by {points}."
        )
    if difference.sign > 0:
        return (
            f"The described method is better than chance: {numbers} with {patches} patches drawn at random. "
            f"It is ahead by {points}."
        )
    return (
        f"These photos do not tell the described method from chance: {numbers} with {patches} patches drawn at "
        f"random (difference {points})."
    )


def _interval(difference: Difference) -> str:
    low, high = sorted((abs(difference.low), abs(difference.high)))
    return f"{100 * low:.1f} to {100 * high:.1f}"


def best(rows: Sequence[Row], unpruned: Row) -> str:
    """Which of the prunings kept most accuracy."""
    top = max((row for row in rows if row.tokens < row.all_tokens), key=lambda row: row.accuracy)
    speed = f", at {top.speed_up:.1f} times the speed" if top.speed_up else ""
    where = "" if top.block is None else f" before block {top.block}"
    return (
        f"Of the prunings below, most accuracy was kept by {_called(top)}{where}: "
        f"{percent(top.accuracy)} against {percent(unpruned.accuracy)} unpruned{speed}."
    )


def _called(row: Row) -> str:
    return row.name if len(row.draws) > 1 else row.title


def about_the_model(classes: int) -> str:
    """What these numbers are not."""
    return (
        f"The bundled model is a small CLIP trained for this demonstration: it knows the {classes} classes of the "
        "bundled photos and nothing else. For most of its training half of the patches were hidden at random, so it "
        "suffers less from dropped tokens than other models, above all when they are dropped at random. For real work "
        "name one of open_clip's models, such as ViT-B-16-quickgelu with the openai weights, and your own data."
    )


def busy_note(share: float) -> str:
    """That the speeds are not to be trusted: `share` of the time went by waiting for the processor."""
    return (
        "Other programs used the processor while speeds were measured (this one waited for it "
        f"{100 * share:.0f} % of the time): the speeds here are not reliable. Run it again when the machine is idle."
    )


def draws_note(rows: Sequence[Row]) -> str:
    """The single draws behind the means; empty where there was one of each."""
    drawn = [
        f"{_called(row)} before block {row.block}: {', '.join(percent(share) for share in row.draws)}"
        for row in rows
        if len(row.draws) > 1
    ]
    return f"Single draws: {'; '.join(drawn)}." if drawn else ""


def changes_note(truth: Sequence[int], before: Sequence[int], after: Sequence[int]) -> str:
    """How often pruning changed right and wrong, over all photos and not only those shown."""
    kinds = [kind_of(*one) for one in zip(truth, before, after, strict=True)]
    return (
        f"The photos shown were picked to show every kind. Of all {len(kinds)}, {kinds.count('kept')} were recognised "
        f"before and after pruning, {kinds.count('lost')} only before, {kinds.count('gained')} only after, "
        f"{kinds.count('neither')} neither time."
    )


KINDS = {
    "kept": "recognised before and after",
    "lost": "no longer recognised",
    "gained": "recognised only when pruned",
    "neither": "not recognised either time",
}


def kind_of(truth: int, before: int, after: int) -> str:
    """One of `KINDS`, of the class and the predictions without and with pruning."""
    if before == truth:
        return "kept" if after == truth else "lost"
    return "gained" if after == truth else "neither"
