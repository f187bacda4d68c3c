"""What a setting may be, said where it is declared: `momentum: Share = 0.99`.

A plan refuses what is outside, in the range's own words, before anything is made.
"""

from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple, get_args, get_origin


class Range(NamedTuple):
    holds: Callable[[object], bool]
    says: str  # "it must be ..."


Count = Annotated[int, Range(lambda value: value > 0, "1 or more")]
Whole = Annotated[int, Range(lambda value: value >= 0, "0 or more")]
Positive = Annotated[float, Range(lambda value: value > 0, "above 0")]
Weight = Annotated[float, Range(lambda value: value >= 0, "0 or more")]
Share = Annotated[float, Range(lambda value: 0 <= value <= 1, "from 0 to 1")]
Pool = Annotated[str, Range(lambda value: value in ("test", "all"), "test or all")]  # of splits
Sets = Annotated[tuple, Range(lambda value: True, "dataset names")]  # beside the target; any order


def split(kind: type) -> tuple[type, tuple[Range, ...]]:
    """The plain type of a declaration, and its ranges; of Literal["a", "b"] a str."""
    if get_origin(kind) is Literal:
        allowed = get_args(kind)
        return str, (Range(allowed.__contains__, f"one of {', '.join(allowed)}"),)
    return getattr(kind, "__origin__", kind), getattr(kind, "__metadata__", ())


def says(kind: type) -> str:
    """The ranges of a declaration in words; "" where it has none."""
    return ", ".join(allowed.says for allowed in split(kind)[1])
