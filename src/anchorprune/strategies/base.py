"""What every strategy is: a frozen dataclass of its fields, a schedule, and a pure `plan`.

The fields are the flags of the command line, the keys of the result's JSON and the columns of the CSV, so
adding a strategy is adding one file to this folder.
"""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from anchorprune.errors import FieldError, UserError
from anchorprune.fields import Fields, option
from anchorprune.files import StrPath, unreadable, write_text
from anchorprune.reading import bytes_of, json_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from anchorprune.tokens import TokenPlan, Tokens

__all__ = ["CompositeStrategy", "StepwiseStrategy", "Strategy", "cls_substitute_option", "falling", "option"]

VERSION = 1  # of `to_dict`'s form


def cls_substitute_option() -> Any:
    """The field of strategies that go by CLS attention."""
    return option(
        "received",
        "what stands in for CLS attention in a tower without CLS. received: the attention that a patch gets from all "
        "tokens; pool_query: from the query of the head that pools the patches",
        ["received", "pool_query"],
    )


@dataclasses.dataclass(frozen=True)
class Strategy(Fields, ABC):
    """Decides which tokens go on from some of the blocks."""

    # Where in a block it acts: at its input, or between its attention and its MLP, where the block's queries and keys
    # are there already. `stages`: in none, but through other strategies, one after the other (`cascade`).
    acts: ClassVar[Literal["input", "inside", "stages"]] = "input"
    # The fields that say how much is kept, of which `target_gmacs` solves one.
    budget_fields: ClassVar[tuple[str, ...]] = ()
    # The field that says in which blocks it acts; None where none does.
    layer_field: ClassVar[str | None] = None
    # The field that seeds what it draws; None for one that draws nothing. Its accuracy is then the mean of several.
    seed_field: ClassVar[str | None] = None
    # Whether it asks for queries and keys, so that a strategy that acts at a block's input has them computed for it.
    scores: ClassVar[bool] = True
    # Whether it goes by the pixels of the patches. It then acts on the image's own tokens: at the input of block 1.
    reads_pixels: ClassVar[bool] = False
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

    def smaller_budget(self, num_patches: int, num_blocks: int) -> Strategy:
        """This strategy with a budget that drops tokens, for the warning that this budget drops none."""
        budgets = self.budgets(num_patches, num_blocks)
        return budgets[2 * len(budgets) // 3]

    def applied(self) -> tuple[Strategy, Callable[[Tensor], Tensor] | None]:
        """The strategy that chooses the tokens, and what becomes of the tower's features `[B, D]` then; None: nothing.

        Raises:
            UserError: a file that it needs cannot be read.
        """
        return self, None

    def check_fits(self, module: nn.Module) -> None:
        """Raise UserError for an image tower that it was not made for."""
        return

    @property
    def parts(self) -> tuple[Strategy, ...]:
        """The strategies that act in a tower: itself, or where it acts in stages those of its stages."""
        return (self,)

    @property
    def couples_batch(self) -> bool:
        """Whether what is kept of an image depends on which images are in its batch."""
        return False

    def as_dict(self) -> dict[str, Any]:
        """`{"strategy": name, field: value, …}`, as it stands in a result's JSON."""
        return {"strategy": self.name, **self.values()}

    def to_dict(self) -> dict[str, Any]:
        """`as_dict` with the version of its form, for a file of its own; `from_dict` reads both."""
        return {"version": VERSION, **self.as_dict()}

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> Strategy:
        """The strategy that `to_dict` or a result's JSON describes.

        Raises:
            UserError: an unknown strategy, version or field, or a value that a field cannot have.
        """
        from anchorprune.strategies import make_strategy  # which imports this file

        if not isinstance(content, Mapping) or not isinstance(content.get("strategy"), str):
            raise UserError('a strategy as JSON is {"strategy": NAME, FIELD: VALUE, …}')
        if (version := content.get("version", VERSION)) != VERSION:
            raise UserError(f"a strategy of version {version!r}: this anchorprune reads version {VERSION}; update it")
        fields = {key: value for key, value in content.items() if key not in ("version", "strategy", "measured")}
        return make_strategy(content["strategy"], **fields)

    def save(self, path: StrPath) -> None:
        """Write `to_dict` as a JSON file, all of it or nothing."""
        write_text(json.dumps(self.to_dict(), indent=2) + "\n", path)

    @staticmethod
    def load(path: StrPath) -> Strategy:
        """The strategy in a file that `save` wrote. UserError, naming the file, for anything else."""
        try:
            content = bytes_of(path)
        except (OSError, ValueError) as error:
            raise unreadable(path, error) from error
        try:
            described = json_of(content)
        except ValueError as error:
            raise UserError(f"{path}: not JSON ({error}); name a file that Strategy.save wrote") from error
        try:
            return Strategy.from_dict(described)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error


@dataclasses.dataclass(frozen=True)
class CompositeStrategy(Strategy, ABC):
    """A strategy that other strategies choose the tokens for."""


@dataclasses.dataclass(frozen=True)
class StepwiseStrategy(Strategy):
    """A strategy that drops tokens at given blocks down to given numbers."""

    budget_fields: ClassVar[tuple[str, ...]] = ("keep_patches", "keep_ratio")
    layer_field: ClassVar[str | None] = "prune_layers"

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
            raise FieldError("prune_layers", shown(self.prune_layers), f"must be {first} or more{reason}")
        if list(self.prune_layers) != sorted(set(self.prune_layers)):
            raise FieldError("prune_layers", shown(self.prune_layers), "must ascend")
        if self.keep_patches and self.keep_ratio:
            raise FieldError("keep_ratio", shown(self.keep_ratio), "give it or keep_patches, not both")
        for name, low, high in (("keep_patches", 1, None), ("keep_ratio", 0, 1)):
            given = getattr(self, name)
            if len(given) > 1 and len(given) != len(self.prune_layers):
                fix = f"give one number, or one for each of {len(self.prune_layers)} prune_layers"
                raise FieldError(name, shown(given), fix)
            for value in given:
                if not (value >= low and (high is None or 0 < value <= high)):
                    fix = "must be 1 or more" if high is None else "must be above 0 and at most 1"
                    raise FieldError(name, shown(given), fix)
            if list(given) != sorted(given, reverse=True):
                raise FieldError(name, shown(given), "must not rise: a dropped token does not come back")

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


def shown(values: tuple[Any, ...]) -> Any:
    """A field's values as they were typed: one alone, or all."""
    return values[0] if len(values) == 1 else values
