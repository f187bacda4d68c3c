"""The file name is the registry: method "simclr" is medssl/methods/simclr.py, and that is all.

A name may carry a variant: "medmnist/pathmnist" is datasets/medmnist.py, asked for "pathmnist".
"""

import ast
import difflib
import importlib
import re
from collections.abc import Collection
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from types import ModuleType

from medssl import ranges

ROOT = Path(__file__).parent


@cache
def names(kind: str) -> list[str]:
    """All of "methods", "datasets", "backbones" or "evals"; files like `_ema.py` are parts."""
    return sorted(p.stem for p in (ROOT / kind).glob("*.py") if not p.stem.startswith("_"))


def known(kind: str, name: str) -> str:
    """The file part of `name`; ValueError with the known names where there is no such file."""
    file = name.split("/")[0]
    if file not in names(kind):
        hint = f"; they are named FAMILY/NAME: medmnist/{file}?" if kind == "datasets" else ""
        choices = ["none"] * (kind == "methods") + names(kind)
        raise ValueError(f"no {file!r} among {kind}: {choose(file, choices)}{hint}")
    return file


def choose(given: str, known: Collection[str]) -> str:
    """How a sentence ends that is about a name that there is not: the nearest one, and all."""
    return f"{near(given, known)}choose from {', '.join(known)}"


def near(given: str, known: Collection[str]) -> str:
    """The name that may have been meant, as a question; or nothing."""
    return "".join(f"did you mean {n}? " for n in difflib.get_close_matches(given, known, 1))


def room(kind: str) -> ModuleType:
    """The package of a kind, for what its contract answers; imported when it is asked for."""
    return importlib.import_module(f"medssl.{kind}")


def load(kind: str, name: str) -> ModuleType:
    """`load("methods", "simclr").Method` is the class in medssl/methods/simclr.py."""
    return importlib.import_module(f"medssl.{kind}.{known(kind, name)}")


@cache
def config(kind: str, name: str) -> type:
    """The `Config` of a method or evaluation, read from its file without running the file.

    Ids need every default, and a plan should not wait for torch: only the class itself is executed,
    so its fields may use nothing but standard types, Literal and those of ranges.py. A test
    compares it with the imported one.
    """
    path = ROOT / kind / f"{known(kind, name)}.py"
    body = ast.parse(path.read_text()).body
    found = [node for node in body if isinstance(node, ast.ClassDef) and node.name == "Config"]
    scope = {"__name__": __name__, "dataclass": dataclass, "field": field, **vars(ranges)}
    exec(compile(ast.Module(found, []), str(path), "exec"), scope)
    return scope["Config"]


@cache
def attribute(kind: str, name: str, attribute: str, otherwise=None):
    """A literal of the class `Method` of a file, read without running it; else `otherwise`."""
    for node in ast.parse((ROOT / kind / f"{known(kind, name)}.py").read_text()).body:
        for line in node.body if isinstance(node, ast.ClassDef) and node.name == "Method" else []:
            if isinstance(line, ast.Assign) and line.targets[0].id == attribute:
                return ast.literal_eval(line.value)
    return otherwise


@dataclass(frozen=True)
class About:
    """What a file says of itself."""

    told: str  # its whole docstring
    idea: str  # the first line of it
    paper: str  # its first link
    settings: tuple[tuple[str, object, str, str], ...]  # name, default, range, what it does


def about(kind: str, name: str) -> About:
    """Of a method or evaluation, read from its text: the listing cannot differ from the file."""
    text = (ROOT / kind / f"{known(kind, name)}.py").read_text()
    told = ast.get_docstring(ast.parse(text))
    lines = text.partition("class Config:")[2].splitlines()
    comment = {line.split(":")[0].strip(): line.partition("#")[2].strip() for line in lines}
    return About(
        told=told,
        idea=told.partition("\n")[0].partition(": ")[2],
        paper=re.search(r"https?://[^\s,;)]+", told)[0],
        settings=tuple(
            (f.name, f.default, ranges.says(f.type), comment[f.name])
            for f in fields(config(kind, name))[1:]
        ),
    )


@cache
def keys(file: str, mapping: str) -> list[str]:
    """The keys of a dict written at the top of a file, read without running it: view presets."""
    for node in ast.parse((ROOT / f"{file}.py").read_text()).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == mapping:
            return sorted(ast.literal_eval(key) for key in node.value.keys)
    raise LookupError(f"{file}.py has no {mapping}")
