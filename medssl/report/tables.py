"""One metric of a sweep, a table per evaluation: encoders down, shares of labels across.

A number is the mean over pretraining seeds, and ± their standard deviation (n - 1): how much one
more seed would differ, not how sure the mean is. Several subset seeds are averaged first, within
each pretraining seed. There is no ± where there is one seed, and none where all seeds agree to the
last digit, as those of one file do; a cell that was not measured is a dash; a number of fewer seeds
than the caption says is marked (n=...), and a method whose encoder collapsed says under how many
seeds. What all encoders of a table share is in its caption.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import mean, stdev

from medssl.spec import NONE, EncoderSpec, labels

RECIPE = ("views", "epochs", "batch_size", "optimizer", "learning_rate", "weight_decay")
RECIPE += ("warmup_epochs", "sampling", "early_stop", "train_images")
AXES = ("target", "dataset", "backbone", "init", "image_size", *RECIPE, "method", "recipe")
NOTED = ("backbone", "init", "image_size", *RECIPE)  # in the caption, where all share them
QUIET = {
    axis: str(getattr(EncoderSpec, axis)) for axis in RECIPE[-3:]
}  # of which a default goes unsaid


@dataclass
class Summary:
    """Text throughout."""

    title: str
    header: list[str]
    rows: list[list[str]]
    caption: str


def summaries(rows: Iterable[dict], metric: str = "auroc") -> list[Summary]:
    """Of the results table's rows (as dicts) those of `metric`, a table per evaluation."""
    by_eval: dict[tuple[str, str], list[dict]] = defaultdict(list)
    for row in rows:
        if row["metric"] == metric:
            by_eval[row["eval"], row["settings"]].append(row)
    names = [name for name, _ in by_eval]
    return [
        _summary(f"{name} {metric}" + (f" {settings}" if names.count(name) > 1 else ""), found)
        for (name, settings), found in by_eval.items()
    ]


def notes(rows: Iterable[dict]) -> list[str]:
    """What a reader should know of the encoders behind the rows, each with how many it concerns."""
    said: dict[str, set[str]] = defaultdict(set)
    seeds: dict[tuple[str, ...], set[int]] = defaultdict(set)
    leaks: dict[str, None] = {}
    for row in rows:
        leaks |= dict.fromkeys(filter(None, (row["contamination"] or "").split("; ")))
        whole = row["init_sha256"] and not row["init_left_random"]  # nothing is left to a seed
        if row["method"] == NONE and whole:
            seeds[row["backbone"], row["init"], row["init_sha256"]].add(row["seed"])
        told = row["notes"].split("; ") if row["notes"] else []
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
        *leaks,
    ]


def markdown(tables: Iterable[Summary], notes: Iterable[str] = ()) -> str:
    def one(table: Summary) -> str:
        lines = [table.header, ["---"] * len(table.header), *table.rows]
        grid = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"**{table.title}**\n\n{grid}\n\n{table.caption}\n"

    told = ["note: " + re.sub(r"([][\\*_`<|~$])", r"\\\1", note) + "\n" for note in notes]
    return "\n".join([*map(one, tables), *told])


def latex(tables: Iterable[Summary], notes: Iterable[str] = ()) -> str:
    """A booktabs tabular per table, then a small line per note, every special character escaped."""
    special = {c: f"\\{c}" for c in "_%&#${}"} | {"±": r"$\pm$", "\\": r"\textbackslash{}"}
    special |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}

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


def _summary(title: str, rows: list[dict]) -> Summary:
    shown = [axis for axis in AXES if axis in ("target", "method") or _varies(rows, axis)]
    found: dict = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    collapsed: dict = defaultdict(set)
    targets = list(dict.fromkeys(row["target"] for row in rows))
    for row in sorted(rows, key=lambda row: targets.index(row["target"])):
        line = tuple(_text(row, axis) for axis in shown)
        found[line][_known(row)][row["seed"]].append(row["value"])
        if row.get("collapsed"):
            collapsed[line].add(row["seed"])
    columns = sorted({_known(row) for row in rows})
    seeds = len({row["seed"] for row in rows})
    same = {axis: _shared(rows, axis) for axis in NOTED if axis not in shown}
    same = {axis: value for axis, value in same.items() if value not in ("", QUIET.get(axis))}
    spread = f", mean ± sd over {seeds} pretraining seeds" if seeds > 1 else ", 1 pretraining seed"
    numbers = [of_line[known] for of_line in found.values() for known in columns]
    if any(_agree(by_seed) for by_seed in numbers):
        spread += ", no ± where they agree to the last digit"
    split = "validation" if rows[0]["metric"].startswith("val_") else "test"
    return Summary(
        title=title,
        header=[*shown, *(labels(fraction, shots) for shots, fraction in columns)],
        rows=[
            [
                *_flagged(line, shown, collapsed[line]),
                *(_number(cells[known], seeds) for known in columns),
            ]
            for line, cells in found.items()
        ],
        caption=f"{split} split{spread}; {', '.join(f'{k} {v}' for k, v in same.items())}",
    )


def _known(row: dict) -> tuple[int, float]:
    """How many labels are known, in the order of the columns: shots follow shares."""
    return row["shots"], row["label_fraction"]


def _flagged(line: tuple[str, ...], shown: list[str], collapsed: set[int]) -> list[str]:
    """A method whose features collapsed says so, and under how many seeds."""
    flag = f" (collapsed: {len(collapsed)})" if collapsed else ""
    return [text + flag * (axis == "method") for text, axis in zip(line, shown, strict=True)]


def _varies(rows: list[dict], axis: str) -> bool:
    """Whether the axis tells two rows of the table apart that nothing else does."""
    if axis == "dataset":
        return any(row["target"] != row["dataset"] for row in rows)
    values = defaultdict(set)
    for row in rows:
        if not (axis in RECIPE and row["method"] == NONE):
            values[row["method"] if axis == "recipe" else None].add(row[axis])
    return any(len(of_one) > 1 for of_one in values.values())


def _shared(rows: list[dict], axis: str) -> str:
    of_pretrained = [row for row in rows if row["method"] != NONE or axis not in RECIPE]
    return _text(of_pretrained[0], axis) if of_pretrained else ""


def _text(row: dict, axis: str) -> str:
    value = row[axis]
    if axis in RECIPE and row["method"] == NONE:
        return "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _number(by_seed: dict[int, list[float]], seeds: int) -> str:
    if not by_seed:
        return "-"
    values = [mean(of_one) for of_one in by_seed.values()]
    spread = len(values) > 1 and not _agree(by_seed)
    text = f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if spread else "")
    return text + (f" (n={len(values)})" if len(values) < seeds else "")


def _agree(by_seed: dict[int, list[float]]) -> bool:
    return len(by_seed) > 1 and len({mean(of_one) for of_one in by_seed.values()}) == 1
