"""What a result is a result of. A field belongs to a spec if changing it can change a number.

    Sweep -> Cell(encoder: EncoderSpec, eval, source, target, label_fraction | shots, subset_seed)

Ids are hashes of content, so equal specs have equal names on any machine, running again is
resuming, and an edited default renames exactly what it changes. Where a trial runs is `Resources`,
and is in no id.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache, cached_property
from itertools import product
from numbers import Number
from typing import Literal

from medssl import registry
from medssl.ranges import Positive, Weight, Whole, split

Scalar = float | int | str | bool | tuple[str, ...]
Settings = tuple[tuple[str, Scalar], ...]  # a resolved Config, as sorted pairs
Named = str | tuple[str, Mapping[str, Scalar]]  # "simclr", or ("simclr", {"temperature": 0.1})

INF = float("inf")
_JSON = json.JSONEncoder(sort_keys=True)
NONE = "none"  # the method of zero epochs: the init itself, judged like any encoder
SAME = "same"  # the target that is the encoder's own dataset; the source that is the target
SUPERVISED = "supervised"  # an encoder that learned from labels, as the init of others
OWN = "own"  # the view preset that is the method's default
SEARCHED = "learning_rate", "weight_decay"
VALIDATED = "linear_probe", "sgd_probe", "knn", "finetune"  # evaluations that tell of validation
UNUSED = {  # of an encoder that no method pretrains
    **{"views": NONE, "epochs": 0, "batch_size": 0, "learning_rate": 0, "weight_decay": 0},
    **{"warmup_epochs": 0, "optimizer": NONE, "sampling": NONE, "early_stop": "never"},
    **{"train_images": 0, "search": None},
}


def settings(kind: str, named: Named) -> Settings:
    """Every field of the `Config` of a method or evaluation, its defaults overridden by `named`."""
    name, changes = (named, {}) if isinstance(named, str) else named
    if (kind, name) == ("methods", NONE):
        if changes:
            raise ValueError(f"method 'none' has no settings, and was given {dict(changes)}")
        return ()
    config = registry.config(kind, name)
    if unknown := sorted(set(changes) - {f.name for f in fields(config)}):
        known = [f.name for f in fields(config) if f.name != "version"]
        raise ValueError(
            f"{name} has no setting {', '.join(map(repr, unknown))}: "
            f"{registry.choose(unknown[0], known)}"
        )
    types = {f.name: f.type for f in fields(config)}
    values = asdict(config(**changes))
    return tuple(sorted((k, _one(types[k], f"{name} {k}", v)) for k, v in values.items()))


def _one(declared: type, name: str, value: object) -> Scalar:
    """`value` as its declared type: 1, 1.0 and numpy's 1 are one number, and must be one id."""
    kind, ranges = split(declared)
    if kind is tuple:
        return _names(name, value)
    if hasattr(value, "dtype") and kind is float:
        value = float(str(value))  # numpy's float32 0.1 is meant as 0.1
    try:
        found = kind(value)
    except (TypeError, ValueError, OverflowError):
        found = None
    same = found is value if kind is str else found == value
    if not same or (isinstance(value, bool) and kind is not bool) or found in (INF, -INF):
        raise ValueError(f"{name}={value!r}: it must be of type {kind.__name__}")
    for allowed in ranges:
        if not allowed.holds(found):
            raise ValueError(f"{name}={value!r}: it must be {allowed.says}")
        found = allowed.plain(found)
    return found


def _names(name: str, value: object) -> tuple[str, ...]:
    """Names in one order, once each: "b", ["b"] and ("b", "b") are one setting."""
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list | tuple | set) or not all(isinstance(n, str) for n in found):
        raise ValueError(f"{name}={value!r}: it must be a name or a list of names")
    return tuple(sorted(set(found)))


@cache
def _plain(spec: type) -> list[tuple[str, type]]:
    """The fields that hold one number or word, as they are declared."""
    return [(f.name, f.type) for f in fields(spec) if split(f.type)[0] in (int, float, str)]


class _Content:
    """What the two specs share: numbers of one kind, and an id made of every field."""

    def __post_init__(self):
        for name, declared in _plain(type(self)):
            given = getattr(self, name)
            if (found := _one(declared, name, given)) is not given:
                object.__setattr__(self, name, found)

    @cached_property
    def id(self) -> str:
        """Twelve hex digits: equal specs, equal ids; a nested spec counts by its own id."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        flat = {k: v.id if isinstance(v, _Content) else v for k, v in values.items()}
        if isinstance(self, EncoderSpec) and (above := parent(self)):
            flat["init"] = f"{SUPERVISED}:{above.id}"  # whose own recipe is a part of this one's
        if isinstance(self, EncoderSpec) and self.search is None:
            del flat["search"]  # as ever: encoders keep the names they had before there was one
        if isinstance(self, Cell) and self.source == self.target:
            del flat["source"]  # as ever: a cell keeps the name it had before there were sources
        if isinstance(self, Cell) and self.shots:
            flat["shots"] = [self.shots, 2]  # 2: images without any label are a class too
        text = _JSON.encode({type(self).__name__: flat})
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class Search(_Content):
    """Learning rate and weight decay chosen on validation, once for all seeds of an encoder.

    A point of the grid is an encoder like any other, pretrained for `epochs`, judged by `by` with
    all labels of its own dataset (of a union: the mean over its members). "halving" pretrains all
    points briefly and the best third for longer, until one is left: a third of the epochs at most.
    """

    how: Literal["grid", "halving"] = "grid"
    learning_rate: Sequence[float] = (0.3, 0.03, 0.003, 0.0003)  # the paper's, for AdamW
    weight_decay: Sequence[float] = (1e-3, 1e-4, 1e-5)
    epochs: Whole = 0  # of a point; 0: a quarter of the encoder's own, as the paper's
    seed: Whole = 0  # of every point
    by: Named = "linear_probe"
    metric: Literal["val_auroc", "val_accuracy", "val_balanced_accuracy"] = "val_auroc"
    version: int = 1  # of how is chosen; raise it if a fix changes choices

    def __post_init__(self):
        super().__post_init__()
        for name, declared in (("learning_rate", Positive), ("weight_decay", Weight)):
            given = _several(getattr(self, name))
            values = tuple(dict.fromkeys(_one(declared, name, value) for value in given))
            if not values:
                raise ValueError(f"Search {name} is empty: name the values to choose from")
            object.__setattr__(self, name, values)
        if len(self.points) < 2:
            raise ValueError("Search has one point: name several, or write it without a Search")
        name = _name(self.by)
        if name not in VALIDATED:
            raise ValueError(f"Search by={name!r}: choose from {', '.join(VALIDATED)}")
        changes = {} if isinstance(self.by, str) else dict(self.by[1])
        object.__setattr__(self, "by", (name, settings("evals", (name, changes))))

    @property
    def points(self) -> list[tuple[float, float]]:
        """(learning_rate, weight_decay)."""
        return list(product(self.learning_rate, self.weight_decay))

    def __str__(self) -> str:
        """ "halving", or "grid learning_rate 0.1 0.01": what is not the default."""
        usual = Search()
        text = self.how
        for name in ("learning_rate", "weight_decay", "epochs", "seed", "metric"):
            if (value := getattr(self, name)) != getattr(usual, name):
                many = value if isinstance(value, tuple) else [value]
                text += f" {name} " + " ".join(map(str, many))
        if self.by != usual.by:
            name, chosen = self.by
            changed = set(chosen) - set(settings("evals", name))
            text += f" by {name}" + "".join(f" {k} {v}" for k, v in sorted(changed))
        return text


@dataclass(frozen=True, kw_only=True)
class EncoderSpec(_Content):
    """One pretraining run. It sees no labels, so every label fraction shares it.

    But for an init "supervised:X", which has seen all labels of X, as its rows say; such an init is
    itself an encoder, of method "supervised".
    """

    method: str  # "simclr", or "none" for the init itself
    dataset: str  # "medmnist/pathmnist", pretrained on its training split
    backbone: str  # "resnet/18-3x3": the stem and the patch size are part of the name
    init: str = "random"  # or "imagenet", "dinov2", "file:PATH", ...: see weights.py
    views: str = "asymmetric"  # augmentation preset, see views.py
    sampling: str = "proportional"  # of a union's members; "balanced": the same share of each
    train_images: Whole = 0  # of the training split, drawn by the seed, nested; 0 takes all
    image_size: int = 64  # pixels, square: 28, 64, 128 or 224
    epochs: Whole = 400  # passes over the training split
    batch_size: int = 256  # images, before views; a smaller set is one batch
    optimizer: str = "adamw"  # or "sgd", "lars", see optimizers.py
    learning_rate: float = 3e-4  # at the end of the warm-up
    weight_decay: Weight = 0.05  # on weights alone: not on norms, biases, tokens and positions
    warmup_epochs: Weight = 10  # learning rate from 1/10 to full, then a half cosine to 0
    early_stop: str = "never"  # or "collapse": when two looks in a row find features on a line
    search: Search | None = None  # of learning_rate and weight_decay, which then are 0 here
    seed: Whole = 0  # of the init, the order of images and the views
    recipe: Settings = ()  # the method's whole Config: editing a default renames the encoder
    version: int = 3  # of loop, view presets, backbones, inits; raise it if a fix outdates encoders

    def __post_init__(self):
        super().__post_init__()
        if self.init.startswith("file:") and "@" in self.init:
            path, _, digits = self.init.rpartition("@")
            if re.fullmatch("[0-9a-fA-F]{12,64}", digits):  # in either case one file
                object.__setattr__(self, "init", f"{path}@{digits.lower()}")
        if self.method in (NONE, SUPERVISED):
            return
        if self.batch_size < 2:
            raise ValueError(f"batch_size={self.batch_size}: contrast needs at least 2 images")
        if self.epochs < 1:
            raise ValueError(f"epochs={self.epochs}: pretrain for 1 or more, or use method='none'")
        if self.learning_rate <= 0 and not self.search:
            raise ValueError(f"learning_rate={self.learning_rate}: it must be above 0")


def supervised(init: str) -> tuple[str, str] | None:
    """(DATASET, INIT) of an init "supervised:DATASET" or "supervised:DATASET@INIT"; else None."""
    match = re.fullmatch(f"{SUPERVISED}:([^@]+)(?:@(.+))?", init)
    return (match[1], match[2] or "random") if match else None


@dataclass(frozen=True)
class Shard:
    """One part of `of`: what is in it is a matter of ids alone, so that parts need not talk."""

    part: int  # from 1
    of: int

    @classmethod
    def read(cls, text: str) -> "Shard":
        """ "2/3"; ValueError for what is no such part."""
        part, _, of = text.partition("/")
        if not (part.isdigit() and of.isdigit() and 1 <= int(part) <= int(of)):
            raise ValueError(
                f"shard {text!r}: it is PART/OF, with parts from 1: 1/4, 2/4, 3/4, 4/4"
            )
        return cls(int(part), int(of))

    def holds(self, spec: EncoderSpec) -> bool:
        """Encoders of one search, and those that start from a supervised one of whatever seed, are
        in one part."""
        if spec.search:
            spec = replace(spec, seed=spec.search.seed)
        if parent(spec):
            spec = replace(spec, seed=0)
        while above := parent(spec):
            spec = above
        return int(spec.id, 16) % self.of == self.part - 1


def parent(spec: EncoderSpec) -> EncoderSpec | None:
    """The encoder that a supervised init goes on from; None for any other init.

    Fine-tuned on all labels of DATASET from INIT, chosen on its validation split; one for each
    (backbone, image size, seed), whatever is pretrained from it.
    """
    if not (named := supervised(spec.init)):
        return None
    dataset, init = named
    changes = {"seed": spec.seed} | ({"learning_rate": 1e-3} if init == "random" else {})
    return EncoderSpec(
        method=SUPERVISED,
        dataset=dataset,
        backbone=spec.backbone,
        image_size=spec.image_size,
        init=init,
        seed=spec.seed,
        recipe=settings("evals", ("finetune", changes)),
        **UNUSED,
    )


@dataclass(frozen=True, kw_only=True)
class Cell(_Content):
    """One square of the grid: this encoder, judged this way, with this share of the labels."""

    encoder: EncoderSpec
    eval: str
    target: str  # the dataset it is judged on; the encoder's own, or another
    source: str = SAME  # whose labels are learned, and whose images' mean and spread normalise
    label_fraction: float = 1.0  # of the source's training split, stratified and nested, in (0, 1]
    shots: Whole = 0  # labelled images of each class instead; 0: label_fraction says
    subset_seed: Whole = 0  # draws which images those are; of no effect at 1.0
    settings: Settings = ()  # the evaluation's whole Config
    eval_version: int = 1  # of features and metrics; raise it when a fix outdates rows

    def __post_init__(self):
        super().__post_init__()
        if self.source == SAME:
            object.__setattr__(self, "source", self.target)
        if not 0 < self.label_fraction <= 1:
            raise ValueError(
                f"label_fraction={self.label_fraction}: a share of the labels in (0, 1], "
                f"write 0.01 for 1%"
            )
        if self.shots and self.label_fraction != 1:
            raise ValueError(f"shots={self.shots}: with them, label_fraction is 1")

    @property
    def labels(self) -> str:
        """How many labels are known: "1%", "5-shot"."""
        return labels(self.label_fraction, self.shots)

    @property
    def datasets(self) -> tuple[str, ...]:
        """All that it reads: the target, the source, and the sets that its settings name."""
        named = [n for _, value in self.settings if isinstance(value, tuple) for n in value]
        return tuple(dict.fromkeys([self.target, self.source, *named]))


def labels(fraction: float, shots: int) -> str:
    return f"{shots}-shot" if shots else f"{100 * fraction:g}%"


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Where a trial runs. None of this can change what is measured, so none of it is in an id."""

    cpu: int = 1  # cores per trial; torch uses exactly these
    gpu: float | Callable[[EncoderSpec], float] | None = None  # GPUs per trial, or of an encoder's;
    # None: 1 where the cluster has any, else 0. Of 0.25 a trial may take a quarter of the memory
    retries: int = 3  # per trial, for what can pass: a lost worker, a preempted pod
    concurrent: int | None = None  # trials at a time; None: what fits, so an autoscaler adds none
    checkpoint_s: float = 120  # seconds between checkpoints; the most work that a kill costs

    def __post_init__(self):
        if self.cpu < 1:
            raise ValueError(f"cpu={self.cpu}: a trial takes 1 core or more")

    def share(self, spec: EncoderSpec, any_gpu: bool) -> float:
        """GPUs of the encoder's trial; ValueError for what no trial can have."""
        if self.gpu is None:
            return float(any_gpu)
        try:
            share = self.gpu(spec) if callable(self.gpu) else self.gpu
        except Exception as wrong:  # whatever a user's function may do
            raise ValueError(
                f"Resources gpu failed on {spec.method}, {spec.backbone}: "
                f"{type(wrong).__name__}: {wrong}"
            ) from None
        if not isinstance(share, Number) or not (0 <= share <= 1 or share in range(2, 1025)):
            raise ValueError(
                f"gpu={share!r} for {spec.method} on {spec.backbone} at {spec.image_size} px: it "
                f"must be a share in (0, 1], a whole number, or 0"
            )
        return float(share)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A grid. Every axis takes one value or several; nothing is computed until it is run.

    `drop` names combinations that make no sense: {"why": lambda cell: True where it is dropped};
    `medssl plan` lists them with their reason. A method that cannot train a backbone (MAE on a
    ResNet), and a source whose classes are not the target's, are dropped by themselves.
    """

    name: str  # of the MLflow experiment and the exported table
    method: Named | Sequence[Named]
    dataset: str | Sequence[str]
    backbone: str | Sequence[str]
    init: str | Sequence[str] = "random"
    views: str | Sequence[str] = OWN  # each method's own preset
    sampling: str | Sequence[str] = "proportional"
    train_images: int | Sequence[int] = 0  # all
    image_size: int | Sequence[int] = 64
    epochs: int | Sequence[int] = 400
    batch_size: int | Sequence[int] = 256
    optimizer: str | Sequence[str] = "adamw"
    learning_rate: float | Sequence[float] = 3e-4
    weight_decay: float | Sequence[float] = 0.05
    warmup_epochs: float | Sequence[float] = 10
    early_stop: str | Sequence[str] = "never"
    search: Search | Sequence[Search | None] | None = None  # of learning_rate and weight_decay
    seed: int | Sequence[int] = 0
    eval: Named | Sequence[Named] = ("knn", "linear_probe")
    target: str | Sequence[str] = SAME
    source: str | Sequence[str] = SAME  # of labels; another set's: judged on the target untrained
    label_fraction: float | Sequence[float] = (0.01, 0.1, 1.0)
    shots: int | Sequence[int] = ()  # cells beside those of the fractions: 5 labels of each class
    subset_seed: int | Sequence[int] = 0
    drop: Mapping[str, Callable[[Cell], bool]] = field(default_factory=dict)
    resources: Resources = field(default_factory=Resources)

    def __post_init__(self):
        for f in fields(self):
            if isinstance(value := getattr(self, f.name), Iterator):  # which is empty once read
                object.__setattr__(self, f.name, list(value))
        for axis in SEARCHED if all(_several(self.search)) else ():
            if _several(getattr(self, axis)) != [getattr(Sweep, axis)]:
                raise ValueError(f"{axis} is chosen by the Search: name its values there")

    def cells(self) -> list[Cell]:
        """Every cell that is kept, once each, those of one encoder side by side."""
        return [cell for cell, why in self._all if why is None]

    def dropped(self) -> dict[str, int]:
        """How many cells each reason dropped."""
        reasons = Counter(why for _, why in self._all if why is not None)
        return {why: reasons[why] for why in dict.fromkeys([*self.drop, *reasons])}

    @cached_property
    def _all(self) -> list[tuple[Cell, str | None]]:
        """Every cell once, and why it is dropped."""
        every = {c.id: c for encoder in self._encoders() for c in self._cells_of(encoder)}
        return [(cell, _unfit(cell) or self._why(cell)) for cell in every.values()]

    def _why(self, cell: Cell) -> str | None:
        """The first reason of `drop` that holds for the cell, or None."""
        for why, drops in self.drop.items():
            try:
                if drops(cell):
                    return why
            except Exception as wrong:  # whatever a user's lambda may do
                raise ValueError(
                    f"drop {why!r} failed on a cell: {type(wrong).__name__}: {wrong}; a cell has "
                    f"{', '.join(f.name for f in fields(Cell))}, the other axes are of cell.encoder"
                ) from None
        return None

    def _encoders(self) -> Iterator[EncoderSpec]:
        axes = [
            f.name for f in fields(EncoderSpec) if f.name not in ("method", "recipe", "version")
        ]
        values = [_several(getattr(self, axis)) for axis in axes]
        for named in _several(self.method):
            name, recipe = _name(named), settings("methods", named)
            for chosen in product(*values):
                spec = dict(zip(axes, chosen, strict=True))
                if name == NONE:  # what pretraining would use has no effect, so it has no value
                    spec |= UNUSED
                elif spec["views"] == OWN:
                    spec["views"] = registry.attribute("methods", name, "preset", "asymmetric")
                if spec["search"]:
                    spec |= dict.fromkeys(SEARCHED, 0)
                if spec["sampling"] == "balanced" and "+" not in spec["dataset"]:
                    spec["sampling"] = "proportional"  # the same order of images, so the same id
                yield EncoderSpec(method=name, recipe=recipe, **spec)

    def _cells_of(self, encoder: EncoderSpec) -> Iterator[Cell]:
        evals = [(_name(named), settings("evals", named)) for named in _several(self.eval)]
        sets = product(_several(self.target), _several(self.source))
        for (target, source), (name, chosen) in product(sets, evals):
            target = encoder.dataset if target == SAME else target
            unseen = encoder.method == NONE  # it has seen no images: its dataset is the source's
            learned = target if source == SAME else source
            judged = replace(encoder, dataset=learned) if unseen else encoder
            known = [(fraction, 0) for fraction in _several(self.label_fraction)]
            known += [(1.0, shots) for shots in _several(self.shots)]
            for (fraction, shots), subset in product(known, _several(self.subset_seed)):
                yield Cell(
                    encoder=judged,
                    eval=name,
                    target=target,
                    source=source,
                    label_fraction=fraction,
                    shots=shots,
                    subset_seed=0 if (fraction, shots) == (1, 0) else subset,
                    settings=chosen,
                )


def _unfit(cell: Cell) -> str | None:
    """Why the method cannot train the backbone, or the source not serve the target; or None."""
    method, family = cell.encoder.method, cell.encoder.backbone.partition("/")[0]
    able = method != NONE and registry.attribute("methods", method, "backbones")
    if able and family not in able:
        return f"{method} trains {' and '.join(able)} alone"
    return _unlike(cell.source, cell.target)


@cache
def _unlike(source: str, target: str) -> str | None:
    """Why a head of the one says nothing of the other; None for equal classes, and for a name that
    there is not, which is for the plan to say."""
    if source == target:
        return None
    try:
        about = registry.room("datasets").about
        known = [about(name).labels for name in (source, target)]
    except ValueError:
        return None
    if None in known:
        return f"the classes of {source} are not known to be those of {target}"
    return None if known[0] == known[1] else f"the classes of {source} are not those of {target}"


def _several(axis) -> list:
    """One value as a list of one; `("simclr", {...})` is one value."""
    alone = isinstance(axis, str | Number | Search | None) or (
        isinstance(axis, tuple) and len(axis) == 2 and isinstance(axis[1], Mapping)
    )
    return [axis] if alone else list(axis)


def _name(named: Named) -> str:
    return named if isinstance(named, str) else named[0]
