"""What a sweep would do, before it does it: cells done and missing, and what stands in the way.

Nothing here imports torch or Ray; everything a user can get wrong in a sweep file, and every file
that is not there, is a sentence with a remedy before any GPU time is spent.
"""

import hashlib
import importlib.util
import re
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path

import medssl
from medssl import datasets, registry, results, search, weights
from medssl.ranges import split
from medssl.spec import (
    NONE,
    SAME,
    SEARCHED,
    UNUSED,
    Cell,
    EncoderSpec,
    Scalar,
    Shard,
    Sweep,
    parent,
)
from medssl.store import Store

ALWAYS = ("method", "dataset", "backbone", "init", "views", "seed")  # axes that are shown


@dataclass
class Plan:
    sweep: Sweep
    cells: list[Cell]  # kept by the sweep's filters
    missing: list[Cell]  # of those, the ones without rows
    problems: list[str]  # wrong names and combinations: no sweep can start
    absent: list[str]  # files that are not there: fetched, if they can be
    points: list[Cell]  # of searches, that are to be measured first
    later: list[search.Later]  # points of which it is not known yet which

    @property
    def encoders(self) -> int:
        return len({cell.encoder.id for cell in self.cells})

    def to_pretrain(self, store: Store) -> int:
        """Encoders that are not in the store and that a missing cell needs, parents and points of
        searches included."""
        have = store.names("encoders", ".safetensors")
        return len(to_make([*self.missing, *self.points], have)) + len(self.later)

    @property
    def ahead(self) -> list[EncoderSpec]:
        """The points of searches that are to be measured, or for those of later rungs the like."""
        now = {cell.encoder.id: cell.encoder for cell in self.points}
        return [*now.values(), *(one.like[0].encoder for one in self.later)]


def load(path: Path) -> Sweep:
    """The `sweep()` of a Python file; ValueError where there is none."""
    if not path.is_file():
        raise ValueError(f"no sweep at {path}: name a Python file with a function sweep() -> Sweep")
    spec = importlib.util.spec_from_file_location(f"medssl_sweep_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickles look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as wrong:  # whatever a user's file may do
        raise ValueError(_where(path, wrong)) from None
    if not callable(getattr(module, "sweep", None)):
        raise ValueError(f"{path} has no function sweep() -> Sweep")
    try:
        found = module.sweep()
    except Exception as wrong:
        raise ValueError(_where(path, wrong)) from None
    if not isinstance(found, Sweep):
        raise ValueError(f"sweep() of {path} returned a {type(found).__name__}, not a Sweep")
    return found


def _where(path: Path, wrong: Exception) -> str:
    """The line of a sweep file that raised, and what."""

    def here(file: str | None) -> bool:  # Python may have made a relative path absolute
        return file is not None and Path(file).resolve() == path.resolve()

    lines = [f.lineno for f in traceback.extract_tb(wrong.__traceback__) if here(f.filename)]
    own = isinstance(wrong, SyntaxError) and here(wrong.filename)  # not of a file it imports
    line = wrong.lineno if own else lines[-1] if lines else 1
    what = wrong.msg if own else wrong
    return f"{path}, line {line}: {type(wrong).__name__}: {what}{_hint(str(wrong))}"


def _hint(wrong: str) -> str:
    """What a class of the spec takes, where it was given what it does not take."""
    pattern = r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'"
    for name, given in re.findall(pattern, wrong):
        if is_dataclass(of := getattr(medssl, name, None)):
            return f": {registry.choose(given, [f.name for f in fields(of)])}"
    return ""


def make(sweep: Sweep, store: Store, data: Path | None, shard: Shard | None = None) -> Plan:
    """Reads names in the store and looks for files; opens no images, and weights only to compare
    a file with the one that was meant."""
    cells = sweep.cells()
    if not cells:
        why = "; ".join(sweep.dropped()) or "an axis is empty"
        raise ValueError(f"sweep {sweep.name!r} has no cells: {why}")
    if shard:
        mine = {
            id: shard.holds(spec) for id, spec in {c.encoder.id: c.encoder for c in cells}.items()
        }
        if not (cells := [cell for cell in cells if mine[cell.encoder.id]]):
            raise ValueError(
                f"part {shard.part} of {shard.of} of sweep {sweep.name!r} has no encoders: it has "
                f"{len(mine)} in all, so ask for fewer parts"
            )
    missing, have = results.missing(cells, store), store.names("encoders", ".safetensors")
    specs = {cell.encoder.id: cell.encoder for cell in cells}.values()
    problems, absent = Counter(), Counter()
    searches, asked = search.Searches(store), search.asked([c.encoder for c in missing], have)
    for spec in asked:
        problems.update(search.wrong(spec))
    asked = [] if problems else asked
    points = [cell for spec in asked for cell in searches.missing(spec)]
    later = [one for spec in asked for one in searches.later(spec)]
    needed = missing + points
    presets = registry.keys("views", "PRESETS")
    for backbone, size in sorted({(s.backbone, s.image_size) for s in specs}):
        problems.update(_wrong(backbone, size))
    named, made = to_make(cells), to_make(needed, have)
    for name, size in needed_data(cells + points, named):
        problems.update(datasets.wrong(name, size))
    asked = {
        (c.eval, c.target, c.source, c.settings, c.shots, c.encoder.image_size): c
        for c in cells + points
    }
    for cell in asked.values():
        problems.update(_unfit(cell))
    for views in sorted({s.views for s in specs if s.method != NONE} - set(presets)):
        problems[f"no views {views!r}: {registry.choose(views, ['own', *presets])}"] += 1
    for axis, known in (
        ("optimizer", registry.keys("optimizers", "OPTIMIZERS")),
        ("sampling", ["proportional", "balanced"]),
        ("early_stop", ["never", "collapse"]),
    ):
        for value in sorted({getattr(s, axis) for s in specs if s.method != NONE} - set(known)):
            problems[f"no {axis} {value!r}: {registry.choose(value, known)}"] += 1
    for backbone, init in sorted({(s.backbone, s.init) for s in specs}):
        problems.update(weights.wrong(backbone, init))
    for backbone, init in needed_weights(made):
        problems.update(weights.changed(backbone, init, store.read))
    if any(map(_needs_solo, {s.method for s in specs})) and not importlib.util.find_spec("solo"):
        problems["solo-learn is missing: pip install --no-deps solo-learn==1.0.2"] += 1
    if not problems:
        for name, size in needed_data(needed, made):
            absent.update(datasets.check(name, size, data))
        for backbone, init in needed_weights(made):
            absent.update(weights.check(backbone, init, store.has))
    return Plan(sweep, cells, missing, list(problems), list(absent), points, later)


def _asked(cell: Cell) -> tuple:
    """What is asked of an encoder, and few cells ask what no other does."""
    labels = cell.shots, cell.label_fraction, cell.subset_seed
    return cell.eval, cell.settings, cell.target, cell.source, *labels


def axes(cells: Sequence[Cell]) -> dict[str, list[str]]:
    """The values of ALWAYS, and of every other axis or setting of which the cells have several.

    What has no effect is no value: the epochs of an init, the subset seed where all labels are
    known, a target that is the encoder's own set everywhere.
    """
    found: dict[str, dict[str, None]] = {axis: {} for axis in ALWAYS}

    def add(axis: str, value: Scalar) -> None:
        told = f"{value:g}" if isinstance(value, float) else str(value)
        found.setdefault(axis, {})[" and ".join(value) if isinstance(value, tuple) else told] = None

    specs = {cell.encoder.id: cell.encoder for cell in cells}.values()
    pretrained = any(spec.method != NONE for spec in specs)
    for spec in specs:
        unused = [*UNUSED, *["dataset"] * pretrained] if spec.method == NONE else ()
        for f in fields(spec):
            if f.name not in ("recipe", *unused, *(SEARCHED if spec.search else ())):
                add(f.name, getattr(spec, f.name))
        for name, value in spec.recipe:
            add(f"{spec.method} {name}", value)
    elsewhere = any(cell.target != cell.encoder.dataset for cell in cells)
    shifted = any(cell.source != cell.target for cell in cells)
    alike = {_asked(cell): cell for cell in reversed(cells)}  # the first of each
    for cell in reversed(alike.values()):
        add("eval", cell.eval)
        if elsewhere:
            add("target", cell.target)
        if shifted:
            add("source", SAME if cell.source == cell.target else cell.source)
        add(*(("shots", cell.shots) if cell.shots else ("label_fraction", cell.label_fraction)))
        if cell.shots or cell.label_fraction < 1:
            add("subset_seed", cell.subset_seed)
        for name, value in cell.settings:
            add(f"{cell.eval} {name}", value)
    both = {"shots", "label_fraction"} if "shots" in found else set()
    return {
        axis: list(values)
        for axis, values in found.items()
        if axis in ALWAYS or len(values) > 1 or (axis in both and both <= found.keys())
    }


def ready(plan: Plan, store: Store, data: Path | None) -> list[str]:
    """Fetches and verifies the files that missing cells need; a sentence for each that failed."""
    failed, needed = [], [*plan.missing, *plan.points]
    made = to_make(needed, store.names("encoders", ".safetensors"))
    for name, size in needed_data(needed, made):
        try:
            datasets.ready(name, size, data)
        except (ValueError, OSError) as problem:
            failed.append(str(problem))
    for backbone, init in needed_weights(made):
        try:
            weights.ready(backbone, init, store.has)
            failed += weights.changed(backbone, init, store.read)  # by what has just been fetched
        except (ValueError, OSError) as problem:
            failed.append(str(problem))
    return failed


def to_make(cells: Sequence[Cell], have: Collection[str] = ()) -> list[EncoderSpec]:
    """Encoders of the cells that are not in `have`, and the parents that those start from."""
    found, waiting = {}, [cell.encoder for cell in cells]
    while waiting:
        spec = waiting.pop()
        if spec.id not in found and spec.id not in have:
            found[spec.id] = spec
            waiting += [above] if (above := parent(spec)) else []
    return list(found.values())


def needed_data(cells: Sequence[Cell], made: Sequence[EncoderSpec]) -> list[tuple[str, int]]:
    """(dataset, image size) of every set that is learned from by `made`, or judged on."""
    learned = {(spec.dataset, spec.image_size) for spec in made}
    alike = {(*_asked(cell), cell.encoder.image_size): cell for cell in cells}
    judged = {(name, key[-1]) for key, cell in alike.items() for name in cell.datasets}
    return sorted(learned | judged)


def needed_weights(made: Sequence[EncoderSpec]) -> list[tuple[str, str]]:
    """(backbone, init) of every encoder that is to be made."""
    return sorted({(spec.backbone, spec.init) for spec in made})


def code_version() -> str:
    """medssl's version with the commit, "0.1.0+3f2a9c1.dirty"; else with a hash of its files.

    An image has no git: its commit stands in the file COMMIT, which deploy/image/build writes.
    """
    home = Path(medssl.__file__).parent
    if (baked := home / "COMMIT").is_file():
        return f"{medssl.__version__}+{baked.read_text().strip()}"
    content = b"".join(p.read_bytes() for p in sorted(home.rglob("*.py")))
    files = f"{medssl.__version__}+files.{hashlib.sha256(content).hexdigest()[:7]}"
    git = ["git", "-C", str(home), "describe", "--always", "--dirty=.dirty", "--exclude=*"]
    try:
        found = subprocess.run(git, capture_output=True, text=True, timeout=10)
        ours = subprocess.run(
            ["git", "-C", str(home), "ls-files", "--error-unmatch", "__init__.py"],
            capture_output=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return files
    commit = found.stdout.strip()
    checkout = found.returncode == 0 and ours.returncode == 0 and commit
    return f"{medssl.__version__}+{commit}" if checkout else files


def _needs_solo(method: str) -> bool:
    if method == NONE:
        return False
    text = (registry.ROOT / "methods" / f"{method}.py").read_text()
    lent = re.findall(r"^from medssl\.methods(?:\.| import )(\w+)", text, re.M)
    return "_solo" in lent or any(_needs_solo(other) for other in lent if other[0].islower())


def _unfit(cell: Cell) -> list[str]:
    """What the evaluation cannot ask of its target with these settings."""
    name, target, settings = cell.eval, cell.target, dict(cell.settings)
    told, groups = [], {k: v for k, v in settings.items() if isinstance(v, tuple)}
    own = datasets.members(target) | datasets.members(cell.source)
    if groups and all(own & datasets.members(of) for of in cell.datasets):
        both = " and ".join(dict.fromkeys([target, cell.source]))
        told.append(f"{name} has nothing to tell from {both}: name sets in {_sets(name)}")
    for twice in [n for n, times in Counter(sum(groups.values(), ())).items() if times > 1]:
        both = " and in ".join(group for group, names in groups.items() if twice in names)
        told.append(f"{name} has {twice} in {both}: leave it in one of them")
    if any(datasets.wrong(of, cell.encoder.image_size) for of in (target, cell.source)):
        return told
    known, scarce = datasets.about(target), datasets.about(cell.source).rarest
    if known.channels == 1 and "saturate" in str(settings.get("corruptions")).split("+"):
        told.append(f"saturate changes nothing on {target}, which is grey: leave it out")
    if scarce is not None and cell.shots > scarce:
        told.append(
            f"shots={cell.shots}: the rarest class of {cell.source} has at most {scarce} "
            f"training images: ask for fewer, or drop these cells"
        )
    return told


def _sets(name: str) -> str:
    """The settings of an evaluation that name sets, as words; "" where it has none."""
    config = registry.config("evals", name)
    return " or ".join(f.name for f in fields(config) if split(f.type)[0] is tuple)


def _wrong(backbone: str, size: int) -> list[str]:
    try:
        return registry.load("backbones", backbone).check(backbone.partition("/")[2], size)
    except ValueError as problem:
        return [str(problem)]
