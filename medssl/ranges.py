"""What a setting may be, said where it is declared: `momentum: Share = 0.99`.

A plan refuses what is outside, in the range's own words, before anything is made.
"""

import ast
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, get_args, get_origin


class Range(NamedTuple):
    holds: Callable[[object], bool]
    says: str  # "it must be ..."
    plain: Callable[[object], object] = lambda value: value  # one spelling of what is the same


Count = Annotated[int, Range(lambda value: value > 0, "1 or more")]
Whole = Annotated[int, Range(lambda value: value >= 0, "0 or more")]
Positive = Annotated[float, Range(lambda value: value > 0, "above 0")]
Weight = Annotated[float, Range(lambda value: value >= 0, "0 or more")]
Share = Annotated[float, Range(lambda value: 0 <= value <= 1, "from 0 to 1")]
Several = Annotated[int, Range(lambda value: value > 1, "2 or more")]
Pool = Annotated[str, Range(lambda value: value in ("test", "all"), "test or all")]  # of splits
Sets = Annotated[tuple, Range(lambda value: True, "dataset names")]  # beside the target; any order


@cache
def _families() -> set[str]:
    """The corruptions that there are, read from their file without running it."""
    body = ast.parse((Path(__file__).parent / "corruptions.py").read_text()).body
    named = [n for n in body if isinstance(n, ast.AnnAssign) and n.target.id == "FAMILIES"]
    return {ast.literal_eval(key) for key in named[0].value.keys}


Corruptions = Annotated[
    str,
    Range(
        lambda value: value == "own" or _families() >= set(value.split("+")),
        f"own, or of {', '.join(sorted(_families()))} with + between",
        lambda value: "+".join(sorted(set(value.split("+")))),
    ),
]


@cache
def split(kind: type) -> tuple[type, tuple[Range, ...]]:
    """The plain type of a declaration, and its ranges; of Literal["a", "b"] a str."""
    if get_origin(kind) is Literal:
        allowed = get_args(kind)
        return str, (Range(allowed.__contains__, f"one of {', '.join(allowed)}"),)
    return getattr(kind, "__origin__", kind), getattr(kind, "__metadata__", ())


def says(kind: type) -> str:
    """The ranges of a declaration in words; "" where it has none."""
    return ", ".join(allowed.says for allowed in split(kind)[1])
