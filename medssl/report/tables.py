"""One metric of a sweep, a table per evaluation: encoders down, shares of labels across.

A number is the mean over pretraining seeds, and ± their standard deviation (n - 1): how much one
more seed would differ, not how sure the mean is. Several subset seeds are averaged first, within
each pretraining seed. There is no ± where there is one seed, and none where all seeds agree to the
last digit, as those of one file do; a cell that was not measured is a dash; a number of fewer seeds
than the caption says is marked (n=...), and a method whose encoder collapsed says under how many
seeds. What all encoders of a table share is in its caption. Per label, each has lines of its own,
under which stands their mean, `macro`: the metric that the table is of.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import mean, stdev

from medssl.spec import NONE, SAME, SEARCHED, EncoderSpec, labels

RECIPE = ("views", "epochs", "batch_size", "optimizer", "learning_rate", "weight_decay")
RECIPE += ("warmup_epochs", "sampling", "early_stop", "train_images", "search")
AXES = (
    "target",
    "label",
    "source",
    "dataset",
    "backbone",
    "init",
    "image_size",
    *RECIPE,
    "method",
    "recipe",
)
NOTED = ("backbone", "init", "image_size", *RECIPE)  # in the caption, where all share them
QUIET = {
    axis: str(getattr(EncoderSpec, axis)) for axis in RECIPE[-4:-1]
}  # of which a default goes unsaid
CHOSEN = "chosen"  # in the place of what a search chose, for each line its own
MACRO = "macro"  # in the place of a label: the mean over all

Known = tuple[int, float]  # shots and label fraction: columns in this order, shots last
ALL_LABELS: Known = (0, 1.0)


@dataclass
class Summary:
    """Text throughout."""

    title: str
    header: list[str]
    rows: list[list[str]]
    caption: str


@dataclass
class Grid:
    """What a table is made of: line (its value on each of `shown`) -> labels known -> rows."""

    title: str
    shown: list[str]
    lines: dict[tuple[str, ...], dict[Known, list[dict]]]

    @property
    def rows(self) -> list[dict]:
        return [
            row for of_line in self.lines.values() for found in of_line.values() for row in found
        ]

    @property
    def columns(self) -> list[Known]:
        return sorted({known for of_line in self.lines.values() for known in of_line})

    @property
    def header(self) -> list[str]:
        return [*self.shown, *map(heading, self.columns)]


def summaries(
    rows: Iterable[dict], metric: str = "auroc", per_label: bool = False
) -> list[Summary]:
    """Of the results table's rows (as dicts) those of `metric`, a table per evaluation."""
    return [summary(grid) for grid in grids(rows, metric, per_label)]


def grids(rows: Iterable[dict], metric: str = "auroc", per_label: bool = False) -> list[Grid]:
    """The same, before anything is averaged; `per_label` those of `of_labels` too."""
    by_eval: dict[tuple[str, str], list[dict]] = defaultdict(list)
    label = {metric: ""}
    if per_label:
        rows = list(rows)
        metrics = of_labels({row["metric"] for row in rows}, metric)
        label = {name: name.rpartition("_")[2] for name in metrics} | {metric: MACRO}
    for row in rows:
        if row["metric"] in label:
            by_eval[row["eval"], row["settings"]].append({**row, "label": label[row["metric"]]})
    names = [name for name, _ in by_eval]
    of = f"{metric} per label" if per_label else metric
    return [
        _grid(f"{name} {of}" + (f" {settings}" if names.count(name) > 1 else ""), found)
        for (name, settings), found in by_eval.items()
    ]


def of_labels(metrics: Iterable[str], metric: str) -> list[str]:
    """Those of the metrics that are `metric` of a single label: auroc_0, auroc_1, ..."""
    return [name for name in metrics if re.fullmatch(rf"{re.escape(metric)}_\d+", name)]


def notes(rows: Iterable[dict]) -> list[str]:
    """What a reader should know of the encoders behind the rows, each with how many it concerns."""
    said: dict[str, set[str]] = defaultdict(set)
    seeds: dict[tuple[str, ...], set[int]] = defaultdict(set)
    of_sets: dict[str, None] = {}
    for row in rows:
        of_sets |= dict.fromkeys(filter(None, (row["contamination"] or "").split("; ")))
        if row["scarce"]:
            source = row["source"] or row["target"]
            of_sets[f"{row['shots']}-shot on {source}: {row['scarce']}, all known"] = None
        whole = row["init_sha256"] and not row["init_left_random"]  # nothing is left to a seed
        if row["method"] == NONE and whole:
            seeds[row["backbone"], row["init"], row["init_sha256"]].add(row["seed"])
        told = row["notes"].split("; ") if row["notes"] else []
        if row.get("search"):
            found = ", ".join(f"{axis} {row[axis]:g}" for axis in SEARCHED)
            told.append(f"{found} chosen on validation of {row['dataset']}")
        if row["init_left_random"]:
            told.append(f"init {row['init']} left random: {row['init_left_random']}")
        for note in told:
            said[f"{row['method']} on {row['backbone']}: {note}"].add(row["encoder"])
    return [
        *(f"{note} ({len(of)} encoder{'s' * (len(of) > 1)})" for note, of in said.items()),
        *(
            f"none on {backbone}: init {init} is one encoder for all {len(of)} seeds"
            for (backbone, init, _), of in seeds.items()
            if len(of) > 1
        ),
        *of_sets,
    ]


def summary(
    grid: Grid,
    beside: Callable[[tuple[str, ...], Known], str] = lambda line, known: "",
    said: str = "",
) -> Summary:
    """Means over seeds, each followed by what stands `beside` it, which the caption says."""
    rows, shown = grid.rows, grid.shown
    seeds = len({row["seed"] for row in rows})
    same = {axis: _shared(rows, axis) for axis in NOTED if axis not in shown}
    same = {axis: value for axis, value in same.items() if value not in ("", QUIET.get(axis))}
    spread = f", mean ± sd over {seeds} pretraining seeds" if seeds > 1 else ", 1 pretraining seed"
    if any(_agree(found) for of_line in grid.lines.values() for found in of_line.values()):
        spread += ", no ± where they agree to the last digit"
    split = "validation" if rows[0]["metric"].startswith("val_") else "test"
    return Summary(
        title=grid.title,
        header=grid.header,
        rows=[
            [
                *_flagged(line, grid),
                *(_number(found.get(k, []), seeds) + beside(line, k) for k in grid.columns),
            ]
            for line, found in grid.lines.items()
        ],
        caption=f"{split} split{spread}{said}; {', '.join(f'{k} {v}' for k, v in same.items())}",
    )


def matrix(table: Summary) -> list[Summary]:
    """The same numbers with targets across, a table for each share of the labels.

    A line is what was pretrained, and on what; * marks the target that this was. A table without
    targets stays as it is.
    """
    if "target" not in table.header:
        return [table]
    axes = [axis for axis in table.header if axis in AXES and axis != "target"]
    axes.sort(key=["dataset", "source"].__contains__)  # which are compared, so next to the numbers
    found: dict[str, dict[tuple[str, ...], dict[str, str]]] = {}
    for row in table.rows:
        entries = dict(zip(table.header, row, strict=True))
        target, line = entries.pop("target"), tuple(entries.pop(axis) for axis in axes)
        own = " *" * (dict(zip(axes, line, strict=True)).get("dataset") == target)
        for known, text in entries.items():
            found.setdefault(known, {}).setdefault(line, {})[target] = text + own * (text != "-")
    targets = list(dict.fromkeys(row[table.header.index("target")] for row in table.rows))
    said = "; * pretrained on this set's images" * ("dataset" in axes)
    return [
        Summary(
            title=f"{table.title}, {known} of the labels, by target",
            header=[*axes, *(target.rpartition("/")[2] for target in targets)],
            rows=[
                [*line, *(of_line.get(target, "-") for target in targets)]
                for line, of_line in sorted(lines.items(), key=_by_appearance(lines))
            ],
            caption=table.caption + said,
        )
        for known, lines in found.items()
    ]


def _by_appearance(lines: Iterable[tuple[str, ...]]) -> Callable:
    """A key that sorts lines by their first entry, then the next, as these first appeared."""
    orders = [list(dict.fromkeys(of_axis)) for of_axis in zip(*lines, strict=True)]
    return lambda item: [order.index(x) for order, x in zip(orders, item[0], strict=True)]


def value(rows: Iterable[dict]) -> float:
    """The number of a table: the mean over pretraining seeds, each the mean over its subsets."""
    return mean(_values(rows))


def by_seed(rows: Iterable[dict]) -> dict[int, list[dict]]:
    """The rows of a number, which differ in seeds alone: pretraining seed -> subset seeds."""
    found: dict[int, list[dict]] = defaultdict(list)
    for row in rows:
        found[row["seed"]].append(row)
    return found


def heading(known: Known) -> str:
    shots, fraction = known
    return labels(fraction, shots)


def markdown(tables: Iterable[Summary], notes: Iterable[str] = ()) -> str:
    def one(table: Summary) -> str:
        lines = [table.header, ["---"] * len(table.header), *table.rows]
        grid = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"**{table.title}**\n\n{grid}\n\n{table.caption}\n"

    told = ["note: " + re.sub(r"([][\\*_`<|~$])", r"\\\1", note) + "\n" for note in notes]
    return "\n".join([*map(one, tables), *told])


def latex(tables: Iterable[Summary], notes: Iterable[str] = ()) -> str:
    """A booktabs tabular per table, then a small line per note, every special character escaped."""
    special = {c: f"\\{c}" for c in "_%&#${}"} | {"±": r"$\pm$", "<": "$<$"}
    special |= {"†": r"$^\dagger$", "‡": r"$^\ddagger$"}
    special |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}

    def escaped(text: str) -> str:
        return "".join(special.get(c, c) for c in text)

    def line(entries: list[str]) -> str:
        return "  " + " & ".join(map(escaped, entries)) + r" \\"

    def one(table: Summary) -> str:
        columns = "".join("l" if name in AXES else "r" for name in table.header)
        body = "\n".join(map(line, table.rows))
        return (
            f"% {table.title}: {table.caption}\n\\begin{{tabular}}{{{columns}}}\n  \\toprule\n"
            f"{line(table.header)}\n  \\midrule\n{body}\n  \\bottomrule\n\\end{{tabular}}\n"
        )

    told = [f"{{\\footnotesize note: {escaped(note)}\\par}}\n" for note in notes]
    return "\n".join([*map(one, tables), *told])


def _grid(title: str, rows: list[dict]) -> Grid:
    shown = [axis for axis in AXES if axis in ("target", "method") or _varies(rows, axis)]
    lines: dict = defaultdict(lambda: defaultdict(list))
    targets = list(dict.fromkeys(row["target"] for row in rows))

    def place(row: dict) -> tuple[int, bool, int]:
        label = row["label"]
        return targets.index(row["target"]), label == MACRO, int(label) if label.isdecimal() else 0

    for row in sorted(rows, key=place):
        lines[tuple(text(row, axis) for axis in shown)][_known(row)].append(row)
    return Grid(title, shown, lines)


def _known(row: dict) -> Known:
    return row["shots"], row["label_fraction"]


def _flagged(line: tuple[str, ...], grid: Grid) -> list[str]:
    """A method whose features collapsed says so, and under how many seeds."""
    rows = [row for found in grid.lines[line].values() for row in found]
    collapsed = {row["seed"] for row in rows if row.get("collapsed")}
    flag = f" (collapsed: {len(collapsed)})" if collapsed else ""
    return [text + flag * (axis == "method") for text, axis in zip(line, grid.shown, strict=True)]


def _varies(rows: list[dict], axis: str) -> bool:
    """Whether the axis tells two rows of the table apart that nothing else does."""
    if axis == "dataset":
        return any(row["target"] != row["dataset"] and row["method"] != NONE for row in rows)
    if axis == "source":
        return any(text(row, axis) != SAME for row in rows)
    values = defaultdict(set)
    for row in rows:
        if not (axis in RECIPE and row["method"] == NONE):
            told = text(row, axis) if axis in (*SEARCHED, "search") else row[axis]
            values[row["method"] if axis == "recipe" else None].add(told)
    return any(len(of_one) > 1 for of_one in values.values())


def _shared(rows: list[dict], axis: str) -> str:
    of_pretrained = [row for row in rows if row["method"] != NONE or axis not in RECIPE]
    return text(of_pretrained[0], axis) if of_pretrained else ""


def text(row: dict, axis: str) -> str:
    """The row's value on an axis, as tables show it."""
    value = row.get(axis) or "" if axis == "search" else row[axis]
    if axis in SEARCHED and row.get("search"):
        return CHOSEN
    if axis == "source" and value in (None, row["target"]):  # None in a store of before
        return SAME
    if axis in ("dataset", *RECIPE) and row["method"] == NONE:
        return "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _number(rows: list[dict], seeds: int) -> str:
    if not rows:
        return "-"
    values = _values(rows)
    spread = len(values) > 1 and not _agree(rows)
    text = f"{value(rows):.3f}" + (f" ± {stdev(values):.3f}" if spread else "")
    return text + (f" (n={len(values)})" if len(values) < seeds else "")


def _values(rows: list[dict]) -> list[float]:
    """One of each pretraining seed."""
    return [mean(row["value"] for row in of_seed) for of_seed in by_seed(rows).values()]


def _agree(rows: list[dict]) -> bool:
    values = _values(rows)
    return len(values) > 1 and len(set(values)) == 1
