"""What every strategy is: a frozen dataclass of its fields and a pure `plan`.

The fields are the flags of the command line, the keys of the result's JSON and the columns of the CSV, so
adding a strategy is adding one file to this folder.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar

from anchorprune.errors import FieldError

if TYPE_CHECKING:
    from anchorprune.tokens import TokenPlan, Tokens


def option(default: Any, help: str, choices: Sequence[str] | None = None) -> Any:
    """A dataclass field that is also a flag: `help` says what it is, `choices` what a string may be."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


@dataclasses.dataclass(frozen=True)
class Strategy(ABC):
    """Decides which tokens go on from the input of block `prune_layer`.

    The first line of a subclass's docstring is what `--help` says of it.
    """

    name: ClassVar[str]

    prune_layer: int = option(2, "prune at the input of this block, counted from 1 (2 … number of blocks)")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, choices = getattr(self, field.name), field.metadata.get("choices")
            if choices and value not in choices:
                raise FieldError(field.name, value, f"choose one of {', '.join(choices)}")
            if isinstance(field.default, (int, float)):
                whole = isinstance(field.default, int)
                if not isinstance(value, Integral if whole else Real) or isinstance(value, bool):
                    raise FieldError(field.name, value, f"must be a {'whole ' if whole else ''}number")
                # One kind of number whatever came in (a NumPy integer, 1 for 1.0), so that equal settings are equal.
                number: Any = value
                object.__setattr__(self, field.name, int(number) if whole else float(number))
        if self.prune_layer < 2:
            raise FieldError("prune_layer", self.prune_layer, "must be 2 or more: block 1 always sees every token")

    @abstractmethod
    def keep_count(self, num_tokens: int, num_prefix_tokens: int) -> int:
        """K, the tokens that go on out of `num_tokens` (prefix included); `num_tokens` when nothing is dropped."""

    @abstractmethod
    def plan(self, tokens: Tokens) -> TokenPlan:
        """The tokens to keep. Called only when `keep_count` says that some are dropped."""

    @abstractmethod
    def smaller_budget(self, num_patches: int) -> str:
        """Flags that would drop tokens out of `num_patches`, for the warning that this budget drops none."""

    def as_dict(self) -> dict[str, Any]:
        """`{"strategy": name, field: value, …}`, as it stands in a result's JSON."""
        return {"strategy": self.name, **dataclasses.asdict(self)}
