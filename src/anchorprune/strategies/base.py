"""What every strategy is: a frozen dataclass of its fields, a schedule, and a pure `plan`.

The fields are the flags of the command line, the keys of the result's JSON and the columns of the CSV, so
adding a strategy is adding one file to this folder.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from anchorprune.errors import FieldError

if TYPE_CHECKING:
    from anchorprune.tokens import TokenPlan, Tokens


def option(default: Any, help: str, choices: Sequence[str] | None = None, kind: type | None = None) -> Any:
    """A dataclass field that is also a flag: `help` says what it is, `choices` what a string may be.

    A tuple is a flag that takes several values, each of `kind`.
    """
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "kind": kind})


def cls_substitute_option() -> Any:
    """The field of strategies that go by CLS attention."""
    return option(
        "received",
        "what stands in for CLS attention in a tower without CLS. received: the attention that a patch gets from all "
        "tokens; pool_query: from the query of the head that pools the patches",
        ["received", "pool_query"],
    )


@dataclasses.dataclass(frozen=True)
class Strategy(ABC):
    """Decides which tokens go on from some of the blocks.

    The first line of a subclass's docstring is what `--help` says of it.
    """

    name: ClassVar[str]
    # Where in a block it acts: at its input, or between its attention and its MLP, where the block's queries and keys
    # are there already.
    acts: ClassVar[Literal["input", "inside"]] = "input"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, choices = getattr(self, field.name), field.metadata.get("choices")
            if choices and value not in choices:
                raise FieldError(field.name, value, f"choose one of {', '.join(choices)}")
            if isinstance(field.default, tuple):
                values = value if isinstance(value, (tuple, list)) else (value,)
                one = field.metadata["kind"]
                object.__setattr__(self, field.name, tuple(_number(field.name, each, one) for each in values))
            elif isinstance(field.default, (int, float)):
                object.__setattr__(self, field.name, _number(field.name, value, type(field.default)))

    # Whether the MLP of the last block runs on the prefix alone, where nothing reads the patches after it.
    spares_last_mlp: ClassVar[bool] = False

    @property
    def size_weight(self) -> float:
        """γ: attention adds γ · log(size) to the logits of a token that stands for several; 0 adds nothing.

        1 counts a token as often as tokens are merged in it (proportional attention, ToMe section 3).
        """
        return 0.0

    @abstractmethod
    def schedule(self, num_patches: int, num_blocks: int) -> dict[int, int]:
        """How many patch tokens go on from each block that it acts in; block numbers ascend, counts fall.

        Empty, or `num_patches` everywhere, when nothing is dropped. Block 0 is the image itself: its number is how many
        patches a coarser grid has at least, which then enter block 1.

        Args:
            num_patches: of the image on the tower's own grid.
        """

    @abstractmethod
    def plan(self, tokens: Tokens, keep_patches: int) -> TokenPlan:
        """The tokens that go on: the prefix and `keep_patches` others. Called only when some are dropped."""

    @abstractmethod
    def budgets(self, num_patches: int, num_blocks: int) -> Sequence[Strategy]:
        """This strategy with every budget that it can have, the most expensive first; all else as it is."""

    def smaller_budget(self, num_patches: int, num_blocks: int) -> str:
        """Flags that would drop tokens, for the warning that this budget drops none."""
        budgets = self.budgets(num_patches, num_blocks)
        return budgets[2 * len(budgets) // 3].flags()

    def as_dict(self) -> dict[str, Any]:
        """`{"strategy": name, field: value, …}`, as it stands in a result's JSON."""
        fields = dataclasses.asdict(self).items()
        return {"strategy": self.name, **{key: list(v) if isinstance(v, tuple) else v for key, v in fields}}

    def flags(self) -> str:
        """What to type for this strategy where its fields are not the defaults."""
        changed = [
            (field.name, getattr(self, field.name))
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        ]
        return " ".join(
            f"--{name} {' '.join(map(str, value)) if isinstance(value, tuple) else value}" for name, value in changed
        )


def _number(name: str, value: Any, kind: type) -> int | float:
    """One kind of number whatever came in (a NumPy integer, 1 for 1.0), so that equal settings are equal."""
    whole = kind is int
    if not isinstance(value, Integral if whole else Real) or isinstance(value, bool):
        raise FieldError(name, value, f"must be a {'whole ' if whole else ''}number")
    number: Any = value
    return int(number) if whole else float(number)


@dataclasses.dataclass(frozen=True)
class StepwiseStrategy(Strategy):
    """A strategy that drops tokens at given blocks down to given numbers."""

    prune_layers: tuple[int, ...] = option((2,), "act in these blocks, counted from 1, ascending", kind=int)
    keep_patches: tuple[int, ...] = option(
        (),
        "patch tokens that go on from each of the prune_layers; one number: from the last, falling by equal shares "
        "from layer to layer (60 when keep_ratio is not given either)",
        kind=int,
    )
    keep_ratio: tuple[float, ...] = option((), "the same as shares of the image's patch tokens, 0 … 1", kind=float)

    def __post_init__(self) -> None:
        super().__post_init__()
        first = 2 if self.acts == "input" else 1
        if not self.prune_layers and type(self).prune_layers:
            raise FieldError("prune_layers", (), "give at least one block")
        if min(self.prune_layers, default=first) < first:
            reason = ": block 1 always sees every token" if first == 2 else ""
            raise FieldError("prune_layers", _shown(self.prune_layers), f"must be {first} or more{reason}")
        if list(self.prune_layers) != sorted(set(self.prune_layers)):
            raise FieldError("prune_layers", _shown(self.prune_layers), "must ascend")
        if self.keep_patches and self.keep_ratio:
            raise FieldError("keep_ratio", _shown(self.keep_ratio), "give it or keep_patches, not both")
        for name, low, high in (("keep_patches", 1, None), ("keep_ratio", 0, 1)):
            given = getattr(self, name)
            if len(given) > 1 and len(given) != len(self.prune_layers):
                fix = f"give one number, or one for each of {len(self.prune_layers)} prune_layers"
                raise FieldError(name, _shown(given), fix)
            for value in given:
                if not (value >= low and (high is None or 0 < value <= high)):
                    fix = "must be 1 or more" if high is None else "must be above 0 and at most 1"
                    raise FieldError(name, _shown(given), fix)
            if list(given) != sorted(given, reverse=True):
                raise FieldError(name, _shown(given), "must not rise: a dropped token does not come back")

    def layers(self, num_blocks: int) -> tuple[int, ...]:
        """The blocks that it acts in."""
        return self.prune_layers

    def counts(self, num_patches: int) -> tuple[int, ...]:
        """The budget as it was given, in patches: one number, or one for each block."""
        return self.keep_patches or tuple(max(1, round(share * num_patches)) for share in self.keep_ratio) or (60,)

    def steps(self, num_patches: int, counts: tuple[int, ...], num_blocks: int) -> dict[int, int]:
        """The schedule that takes `num_patches` to `counts`; to one number by equal shares from block to block."""
        layers = self.layers(num_blocks)
        if len(counts) < len(layers):
            return falling(num_patches, counts[0], layers)
        return {layer: min(num_patches, count) for layer, count in zip(layers, counts, strict=True)}

    def schedule(self, num_patches: int, num_blocks: int) -> dict[int, int]:
        return self.steps(num_patches, self.counts(num_patches), num_blocks)

    def budgets(self, num_patches: int, num_blocks: int) -> Sequence[Strategy]:
        return [dataclasses.replace(self, keep_patches=(count,), keep_ratio=()) for count in range(num_patches, 0, -1)]


def falling(start: int, end: int, layers: Sequence[int]) -> dict[int, int]:
    """From `start` patches to `end` by equal shares from block to block."""
    share, steps = min(1.0, end / start), len(layers)
    counts = [*(round(start * share ** (i / steps)) for i in range(1, steps)), min(start, end)]
    return dict(zip(layers, counts, strict=True))


def _shown(values: tuple[Any, ...]) -> Any:
    return values[0] if len(values) == 1 else values
