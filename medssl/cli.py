"""The front desk: verbs, and where things are. What is computed is in the sweep file alone."""

import contextlib
import functools
import os
import re
import shlex
import shutil
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from medssl.spec import SEARCHED

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Which self-supervised pretraining for my medical images? One sweep, one table.",
)
data_app = typer.Typer(
    no_args_is_help=True, help="The image files: which there are, fetch, verify, audit."
)
app.add_typer(data_app, name="data")

SweepFile = Annotated[
    Path, typer.Argument(metavar="SWEEP", help="Python file with sweep() -> Sweep.")
]
StoreOption = Annotated[
    str,
    typer.Option(
        "--store", envvar="MEDSSL_STORE", help="Folder, or s3://BUCKET/PREFIX, of all that is kept."
    ),
]
DataOption = Annotated[
    Path | None,
    typer.Option("--data", envvar="MEDMNIST_ROOT", help="Folder of the MedMNIST files."),
]
EvalOption = Annotated[
    str | None, typer.Option("--eval", help="This evaluation alone, by its name: finetune.")
]
STORE = "medssl-store"


ShardOption = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="PART/OF",
        help="This part of the sweep alone, as 1/4: see the README.",
    ),
]


def _version(asked: bool) -> None:
    if asked:
        from medssl import plan as planning

        typer.echo(f"medssl {planning.code_version()}")
        raise typer.Exit


@app.callback()
def _of_all(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Which this is.")
    ] = False,
) -> None: ...


class Across(StrEnum):
    labels = "labels"
    target = "target"


class Format(StrEnum):
    terminal = "terminal"
    markdown = "markdown"
    latex = "latex"
    csv = "csv"
    parquet = "parquet"


class Correction(StrEnum):
    holm = "holm"
    bh = "bh"


@app.command()
def run(
    sweep: SweepFile,
    store: StoreOption = STORE,
    data: DataOption = None,
    shard: ShardOption = None,
    budget_hours: Annotated[
        float | None,
        typer.Option(
            metavar="HOURS",
            min=0,
            help="GPU-hours, or hours of slots without one; what would exceed it is not begun.",
        ),
    ] = None,
    failed_is_done: Annotated[
        bool,
        typer.Option(
            "--failed-is-done",
            help="Exit code 0 where all that is missing has failed: a job would else be retried.",
        ),
    ] = False,
) -> None:
    """Measure every cell that has no result yet. Run it again to resume, or to add cells."""
    with _sentences():
        code = _run(sweep, store, data, shard, budget_hours)
        raise typer.Exit(0 if failed_is_done and code == 1 else code)


@app.command()
def plan(
    sweep: SweepFile,
    store: StoreOption = STORE,
    data: DataOption = None,
    price: Annotated[
        float | None, typer.Option(min=0, help="Of an hour of a GPU, or of a slot without one.")
    ] = None,
    shard: ShardOption = None,
) -> None:
    """What `run` would do: encoders, cells, what is missing, how long it may take, at what cost."""
    with _sentences():
        from medssl import plan as planning
        from medssl.spec import Shard
        from medssl.store import open_store

        kept, part = open_store(store), Shard.read(shard) if shard else None
        found = planning.make(planning.load(sweep), kept, data, part)
        _show_plan(found, kept)
        _show_cost(found, kept, price)
        raise typer.Exit(2 if found.problems else 0)


@app.command()
def status(sweep: SweepFile, store: StoreOption = STORE) -> None:
    """How far a sweep is, from any terminal or machine that sees the store."""
    with _sentences():
        from medssl import plan as planning
        from medssl import status as state
        from medssl import watch
        from medssl.store import open_store

        cells = planning.load(sweep).cells()
        _console().print(watch.render(state.read(cells, open_store(store))))


@app.command()
def logs(
    encoder: Annotated[str, typer.Argument(help="Its id, or how that begins.")],
    store: StoreOption = STORE,
) -> None:
    """What a trial has said, attempt by attempt: `status` and failures name the encoder."""
    with _sentences():
        from medssl.store import open_store

        kept = open_store(store)
        found = sorted(n for n in kept.names("logs", ".log") if n.startswith(encoder))
        if len(found) != 1:
            known = ", ".join(found[:5]) or "none: `medssl status` lists those that run or failed"
            raise ValueError(f"{len(found)} logs of {encoder!r} in {kept.root}: {known}")
        typer.echo((kept.read(f"logs/{found[0]}.log") or b"").decode(errors="replace"), nl=False)


@app.command()
def table(
    sweep: SweepFile,
    store: StoreOption = STORE,
    metric: Annotated[str, typer.Option(help="auroc, accuracy, balanced_accuracy, ...")] = "auroc",
    eval: EvalOption = None,
    format: Annotated[Format, typer.Option(help="csv and parquet hold every row and metric.")] = (
        Format.terminal
    ),
    out: Annotated[
        Path | None,
        typer.Option(help="File to write, which csv and parquet need; else to the terminal."),
    ] = None,
    across: Annotated[
        Across, typer.Option(help="target: a matrix, what was pretrained on down.")
    ] = Across.labels,
    bootstrap: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            help="Resamples of the test images, for intervals, p and ranks: 1000.",
        ),
    ] = 0,
    against: Annotated[
        str | None,
        typer.Option(help="With --bootstrap: method that the others differ from; default none."),
    ] = None,
    correct: Annotated[
        Correction | None,
        typer.Option(
            help="With --bootstrap: p of all differences of a table after Holm (the default) or "
            "Benjamini-Hochberg."
        ),
    ] = None,
    per_label: Annotated[
        bool, typer.Option("--per-label", help="The metric of every label, and their mean.")
    ] = False,
    at: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="One column alone: 100%, 5-shot.")
    ] = None,
) -> None:
    """The sweep's results as a table, or as a file to go on with."""
    with _sentences():
        from medssl import plan as planning
        from medssl.store import open_store

        cells = _judged(planning.load(sweep).cells(), eval)
        chosen = {"bootstrap": bootstrap, "against": against, "correct": correct}
        chosen |= {"per_label": per_label, "at": at, "across": across}
        _table(cells, open_store(store), metric, format, out, **chosen)


@app.command()
def compare(
    sweep: SweepFile,
    to: Annotated[Path, typer.Option(metavar="CSV", help="Columns dataset, ..., auc, acc, auc64.")],
    model: Annotated[
        str | None, typer.Option(help="Compare with the lines of this model, or scheme, alone.")
    ] = None,
    eval: EvalOption = None,
    store: StoreOption = STORE,
    format: Annotated[Format, typer.Option(help="terminal, markdown or latex.")] = Format.terminal,
) -> None:
    """The sweep's results with all labels beside published ones, and whether those are inside."""
    with _sentences():
        from medssl import plan as planning
        from medssl import results
        from medssl.report import published, tables
        from medssl.store import open_store

        _of_tables(format)
        kept, cells = open_store(store), _judged(planning.load(sweep).cells(), eval)
        theirs = published.read(to, model)
        rows = results.table(kept, cells).to_pylist()
        found, notes = published.compare(rows, theirs, _predictions(cells, kept))
        _show(found, list(dict.fromkeys([*tables.notes(rows), *notes])), format)


@app.command()
def needed(
    sweep: SweepFile,
    store: StoreOption = STORE,
    metric: Annotated[str, typer.Option(help="auroc, accuracy, balanced_accuracy.")] = "auroc",
    against: Annotated[
        str | None, typer.Option(help="Method of the baselines; default none.")
    ] = None,
    eval: EvalOption = None,
    bootstrap: Annotated[
        int, typer.Option(metavar="N", min=1, help="Resamples of the test images.")
    ] = 1000,
    format: Annotated[Format, typer.Option(help="terminal, markdown or latex.")] = Format.terminal,
) -> None:
    """With how few labels each encoder reaches the baseline that has them all."""
    with _sentences():
        from medssl import plan as planning
        from medssl import results
        from medssl.report import needed, tables
        from medssl.store import open_store

        _of_tables(format)
        kept, cells = open_store(store), _judged(planning.load(sweep).cells(), eval)
        if not (rows := _rows(results.table(kept, cells), cells, kept, metric)):
            return
        found, notes = needed.summaries(rows, metric, _predictions(cells, kept), bootstrap, against)
        _show(found, [*tables.notes(rows), *notes], format)


@app.command()
def choices(sweep: SweepFile, store: StoreOption = STORE) -> None:
    """What a sweep's searches have measured and chosen, rung by rung."""
    with _sentences():
        from rich.table import Table

        from medssl import plan as planning
        from medssl import search
        from medssl.store import open_store

        specs = search.asked([cell.encoder for cell in planning.load(sweep).cells()], ())
        if not specs:
            raise ValueError("this sweep has no Search: its learning rates are given")
        searches = search.Searches(open_store(store))
        for spec in specs:
            standing, all_rungs = searches.standing(spec), search.rungs(spec)
            title = f"{spec.method} on {spec.dataset} at {spec.image_size} px, {spec.backbone}, "
            title += f"{spec.init}, {spec.views} views, {spec.epochs} epochs: {spec.search}"
            shown = Table("rung", "epochs", *SEARCHED, spec.search.metric, "", box=None)
            scores = [*standing.rungs, searches.so_far(spec)]
            for rung, (at, found) in zip(all_rungs, enumerate(scores, 1), strict=False):
                for point, score in found.items():
                    told = "diverged" if score == -float("inf") else f"{score:.4f}"
                    last = at == len(all_rungs) and point == standing.chosen
                    numbers = f"{at}", f"{rung.epochs}", *(f"{value:g}" for value in point), told
                    shown.add_row(*numbers, "chosen" * last)
            console = _console()
            console.print(_plain(title), style="bold", highlight=False, soft_wrap=True)
            console.print(shown)
            if left := len(searches.missing(spec)) + len(searches.later(spec)):
                console.print(f"{left} points are not measured yet")


@app.command()
def methods(name: Annotated[str, typer.Argument(help="One, with its settings.")] = "") -> None:
    """Every pretraining method: its idea, its paper, its cost, its settings."""
    with _sentences():
        from rich.table import Table

        from medssl import registry
        from medssl.spec import NONE

        if name == NONE:
            typer.echo("none: the init itself, judged like any encoder. It has no settings.")
            return
        if name:
            about = registry.about("methods", name)
            typer.echo(about.told + "\n")
            shown = Table("setting", "default", "range", "", box=None, header_style="bold")
            for setting, default, allowed, effect in about.settings:
                shown.add_row(setting, f"{default}", allowed, effect)
        else:
            shown = Table("method", "idea", "paper", "cost", "trains", box=None)
            for each in registry.names("methods"):
                about = registry.about("methods", each)
                cost = registry.attribute("methods", each, "cost", 1.0)
                able = registry.attribute("methods", each, "backbones", ("all",))
                shown.add_row(each, about.idea, about.paper, f"{cost:g}", " ".join(able))
        _console().print(shown)
        if not name:
            typer.echo("\ncost: how often an image passes through an encoder, per view")
            typer.echo("none: the init itself, judged like any encoder")


@app.command()
def ui(
    store: StoreOption = STORE,
    port: Annotated[int, typer.Option(min=1, max=65535, help="On this machine alone.")] = 5000,
) -> None:
    """Open MLflow on the store: curves, parameters, figures."""
    with _sentences():
        from medssl import tracking
        from medssl.store import open_store

        kept = open_store(store)
        address = tracking.uri(kept)
        if address.startswith("http"):
            typer.echo(f"MLflow is at {address} (MLFLOW_TRACKING_URI)")
            return
        if not os.environ.get("MLFLOW_TRACKING_URI") and not (kept.beside / "mlflow.db").exists():
            raise ValueError(f"no MLflow data in {kept.beside}: run a sweep first")
        tracking.serve(address, port, f"MLflow on {kept.root}", typer.echo)


@app.command()
def doctor(store: StoreOption = STORE, data: DataOption = None) -> None:
    """What this machine can do, and what it lacks: packages, GPUs, folders, MLflow's server."""
    from medssl import doctor

    raise typer.Exit(_told(doctor.examine(store, data)))


@data_app.command("list")
def data_list(data: DataOption = None) -> None:
    """Every dataset, and at which sizes its file is here."""
    with _sentences():
        from rich.table import Table

        from medssl import datasets, registry

        shown = Table("dataset", "28", "64", "128", "224", box=None, header_style="bold")
        for family in registry.names("datasets"):
            for name in registry.load("datasets", family).names():
                sizes = (28, 64, 128, 224)
                here = [not datasets.check(f"{family}/{name}", s, data) for s in sizes]
                shown.add_row(f"{family}/{name}", *("here" if h else "-" for h in here))
        _console().print(shown)


@data_app.command("verify")
def data_verify(data: DataOption = None) -> None:
    """Hash every MedMNIST file that is here, and say which are not the published ones."""
    with _sentences():
        from medssl.datasets import medmnist

        wrong = checked = 0
        for name in medmnist.names():
            for size in medmnist.SIZES:
                if medmnist.check(name, size, data):
                    continue
                checked += 1
                try:
                    medmnist.verify(name, size, data)
                    typer.echo(f"ok    medmnist/{name} at {size} px")
                except ValueError as problem:
                    wrong += 1
                    typer.echo(f"WRONG {problem}")
        folder = medmnist.folder(data)
        if not checked:
            raise ValueError(f"no MedMNIST files in {folder}: name their folder with --data")
        typer.echo(f"{checked} files in {folder}, {wrong} wrong")
        raise typer.Exit(1 if wrong else 0)


@data_app.command("audit")
def data_audit(
    names: Annotated[list[str], typer.Argument(help="medmnist/breastmnist, ...")],
    size: Annotated[int, typer.Option(help="28, 64, 128 or 224 pixels.")] = 28,
    data: DataOption = None,
) -> None:
    """Count images of each split, and of each set's test split, that others hold, or nearly."""
    with _sentences():
        from rich.table import Table

        from medssl import audit, datasets

        pairs = [(n, split, n, known) for n in names for split, known in audit.SPLITS]
        pairs += [(n, "test", m, "train") for n in names for m in names if n != m]
        shown = Table("of", "images", "held by", "the same", "nearly", box=None)
        for asked, split, known, among in pairs:
            found = audit.overlap(
                *(datasets.load(n, s, size, data) for n, s in ((known, among), (asked, split)))
            )
            counts = found.images, f"{known} {among}", found.same, found.near
            shown.add_row(f"{asked} {split}", *map(str, counts))
        _console().print(shown)


@data_app.command("fetch")
def data_fetch(
    names: Annotated[list[str], typer.Argument(help="medmnist/pathmnist, ...")],
    size: Annotated[int, typer.Option(help="28, 64, 128 or 224 pixels.")] = 28,
    data: DataOption = None,
) -> None:
    """Download datasets from their official source, and verify them."""
    with _sentences():
        from medssl import datasets

        for name in names:
            datasets.ready(name, size, data)
            typer.echo(f"ok {name} at {size} px")


def main() -> None:
    from medssl import cli_cluster  # noqa: F401  its verbs

    app()


def script(file: str) -> None:
    """`python sweeps/X.py [--store ...]` is `medssl run sweeps/X.py [--store ...]`."""
    sys.argv = ["medssl", "run", file, *sys.argv[1:]]
    main()


def _run(
    sweep_file: Path, store: str, data: Path | None, shard: str | None, budget_hours: float | None
) -> int:
    from medssl import plan as planning
    from medssl.alone import alone
    from medssl.spec import Shard
    from medssl.store import AWAY_S, open_store

    console, kept, part = _console(), open_store(store), Shard.read(shard) if shard else None
    data = data.expanduser().resolve() if data else None  # workers have another current folder
    if weights := os.environ.get("MEDSSL_WEIGHTS"):
        os.environ["MEDSSL_WEIGHTS"] = str(Path(weights).expanduser().resolve())
    asked = planning.load(sweep_file)
    try:
        kept.write("probe", b"")
        kept.delete("probe")
    except OSError as no:
        raise ValueError(
            f"nothing can be written to the store {kept.root} ({no.strerror or no})"
        ) from no
    kept.patience_s = AWAY_S
    with alone(asked.name, part, kept, console.print):
        return _drive(asked, part, budget_hours, store, kept, data, console)


def _drive(asked, part, budget_hours, store: str, kept, data: Path | None, console) -> int:
    from medssl import cost, results, search, sweep, tracking, watch
    from medssl import plan as planning
    from medssl import status as state
    from medssl._work import beside, meanwhile

    broken = results.set_aside_broken(asked.cells(), kept)
    broken += search.set_aside_broken([cell.encoder for cell in asked.cells()], kept)
    for name in broken:
        console.print(f"{_plain(name)} cannot be read: it was set aside, and is measured anew")
    plan = planning.make(asked, kept, data, part)
    _show_plan(plan, kept, brief=True)
    if plan.problems:
        return 2
    if failed := planning.ready(plan, kept, data):
        for sentence in failed:
            console.print(f"[red]{_plain(sentence)}[/red]", soft_wrap=True)
        console.print("Nothing was started.")
        return 2
    code = planning.code_version()
    whole = _overview(asked.cells(), kept)
    mirror = tracking.Mirror(plan.sweep.name, kept, _figures(kept), whole, code)
    if part and tracking.uri(kept).startswith("sqlite:"):  # which has no room for several writers
        console.print(
            "no MLflow for parts of a sweep without MLFLOW_TRACKING_URI: their curves come when "
            "the whole sweep is run again, which then finds everything done",
            soft_wrap=True,
        )
        mirror = None
    read = state.Reader(plan.cells, kept).read
    lost: dict[str, str] = {}
    if plan.missing:
        for trial in [*(now := read()).trials, *now.points]:
            if trial.state == "failed":  # what it said last time is not news
                kept.delete(f"progress/{trial.spec.id}.json")
        with contextlib.ExitStack() as threads, contextlib.suppress(KeyboardInterrupt):
            threads.enter_context(beside(lambda stop: watch.follow(read, stop, console)))
            threads.enter_context(meanwhile(600, lambda: _gather(plan.cells, kept)))
            if mirror:
                threads.enter_context(meanwhile(5, lambda: _mirror(mirror, read)))
            threads.callback(setattr, kept, "patience_s", 10)  # none of them is awaited long
            costs, budget_s = cost.of_store(kept), cost.INF
            if budget_hours is not None:
                budget_s = 3600 * budget_hours
            told = code, plan.sweep.resources, console.print, costs, budget_s
            lost = sweep.run(plan.missing, kept, data, *told)
        state.stop(state.read(plan.missing, kept), kept)
    end = read()
    if mirror:
        mirror.sync(end, last=True)
    try:
        _table(plan.cells, kept, "auroc", Format.terminal, None)
    except (ValueError, OSError) as broken:  # what else happened must be told all the same
        console.print(f"[red]{_plain(str(broken))}[/red]", soft_wrap=True)
    return _farewell(console, end, lost, kept, store, mirror.trouble if mirror else "")


def _farewell(console, end, lost: dict[str, str], kept, store: str, trouble: str) -> int:
    """What failed and why, where everything is, and the exit code: 0 only if nothing is missing but
    what a budget left."""
    from medssl import watch
    from medssl.sweep import BUDGET

    left = [trial for trial in end.trials if trial.done < len(trial.cells)]
    unbegun = [trial for trial in left if lost.get(trial.spec.id) == BUDGET]
    stopped = False
    for trial in left:
        if trial in unbegun:
            continue
        why = watch.reason(trial) if trial.state == "failed" else lost.get(trial.spec.id)
        stopped = stopped or why is None
        if why is not None:
            console.print(
                f"[red]failed[/red] {trial.spec.method} on {trial.spec.dataset}, "
                f"{trial.spec.backbone}, seed {trial.spec.seed}: {_plain(why)}\n"
                f"       log: {_plain(str(kept.root))}/logs/{trial.spec.id}.log",
                soft_wrap=True,
                highlight=False,
            )
    console.print(f"\nstore   {_plain(str(kept.root))}", soft_wrap=True, highlight=False)
    ours = "medssl" if shutil.which("medssl") else str(Path(sys.executable).with_name("medssl"))
    command = f"{shlex.quote(ours)} ui --store {shlex.quote(str(store))}"
    console.print(_plain(f"curves  {command}"), soft_wrap=True, highlight=False)
    if trouble:
        console.print(
            f"[yellow]MLflow is behind[/yellow] ({_plain(trouble)}): it is brought up to date when "
            "the sweep is run again",
            soft_wrap=True,
        )
    missing = end.cells - end.cells_done
    if missing:
        console.print(f"[red]{missing} of {end.cells} cells have no result.[/red]")
    if unbegun:
        console.print(f"{len(unbegun)} trials were {BUDGET}; run the sweep again to go on.")
    if stopped:
        console.print("It was stopped; run the same again to go on.")
    return 130 if stopped else 1 if len(left) > len(unbegun) else 0


def _mirror(mirror, read) -> None:
    with contextlib.suppress(OSError):  # a shared folder that is away for a moment
        mirror.sync(read())


def _gather(cells: list, kept) -> None:
    """Keeps rows.parquet near to what is done, so that no table has thousands of files to open."""
    from medssl import results

    with contextlib.suppress(OSError, ValueError):  # what is broken is told at the end
        results.table(kept, cells)


def _figures(kept):
    from medssl import results
    from medssl.report import figures

    def of(trial):
        rows = results.table(kept, trial.cells).to_pylist()
        return figures.of_encoder(trial.curve, rows)

    return of


def _overview(cells: list, kept):
    from medssl import results
    from medssl import status as state
    from medssl.report import overview

    read = state.Reader(cells, kept).read

    def now():
        rows = results.only(results.table(kept, cells), overview.METRIC).to_pylist()
        return overview.overview(cells, read(), rows)

    return now


def _table(
    cells: list,
    kept,
    metric: str,
    format: Format,
    out: Path | None,
    bootstrap: int = 0,
    against: str | None = None,
    correct: Correction | None = None,
    per_label: bool = False,
    at: str | None = None,
    across: Across = Across.labels,
) -> None:
    from medssl import results
    from medssl.report import tables

    if against and not bootstrap:
        raise ValueError("--against compares on resamples: add --bootstrap 1000")
    if out and not out.parent.is_dir():
        raise ValueError(f"no folder {out.parent} for {out.name}: make it, or name another --out")
    if out and out.is_dir():
        raise ValueError(f"--out {out} is a folder: name a file in it")
    if correct and not bootstrap:
        raise ValueError("--correct is of p, which is of resamples: add --bootstrap 1000")
    found, file = results.table(kept, cells), format in (Format.csv, Format.parquet)
    if file and out is None:
        raise ValueError(f"--format {format} writes a file: name it with --out FILE")
    if file and out.suffix != f".{format}":
        raise ValueError(f"--out {out} does not end in .{format}")
    if file and not bootstrap:
        if per_label or at:
            raise ValueError(f"--format {format} holds every row: leave out --per-label and --at")
        results.export(found, out)
        typer.echo(f"{found.num_rows} rows in {out}")
        return
    if not (rows := _rows(found, cells, kept, metric, per_label, at)):
        return
    notes = tables.notes(rows)

    def placed(made: list) -> list:
        turned = across is Across.target
        return [matrix for one in made for matrix in tables.matrix(one)] if turned else made

    if not bootstrap:
        _show(placed(tables.summaries(rows, metric, per_label)), notes, format, out)
        return
    from medssl.report import intervals, tidy
    from medssl.spec import NONE

    correct = correct or Correction.holm
    asked = rows, metric, _predictions(cells, kept), bootstrap, against, correct, per_label
    if not file:
        made, more = intervals.summaries(*asked)
        _show(placed(made), notes + more, format, out)
        return
    compared, more = intervals.compare(*asked)
    made = tidy.rows(compared, against or NONE, correct)
    results.export(made, out)
    typer.echo(f"{len(made)} numbers in {out}")
    for note in notes + more:
        typer.echo(f"note: {note}", err=True)


def _rows(
    found, cells: list, kept, metric: str, per_label: bool = False, at: str | None = None
) -> list[dict]:
    """Those of the metric, or of it and of its labels; of one column alone if `at` says so.

    None, and said so, where nothing is measured yet.
    """
    from medssl import results
    from medssl.report import tables

    if not found.num_rows:
        typer.echo(f"no results yet in {kept.root}")
        return []
    if left := results.missing(cells, kept):
        typer.echo(f"{len(left)} of {len(cells)} cells have no result yet", err=True)
    known = sorted(found["metric"].unique().to_pylist())
    if metric not in known:
        few = [name for name in known if ":" not in name]
        more = [name for name in known if ":" in name]
        told = ", ".join(few) + (f"; or of one set or group, as {more[0]}" if more else "")
        raise ValueError(f"no metric {metric!r} in this sweep: choose from {told}")
    single = tables.of_labels(known, metric) if per_label else []
    if per_label and not single:
        some = [name for name in known if tables.of_labels(known, name)]
        raise ValueError(f"no {metric!r} of single labels: choose from {', '.join(some) or 'none'}")
    rows = results.only(found, metric, *single).to_pylist()

    def column(row: dict) -> tuple:
        return row["shots"], row["label_fraction"]

    columns = [tables.heading(known) for known in sorted(set(map(column, rows)))]
    if at and at not in columns:
        raise ValueError(f"no column {at!r}: choose from {', '.join(columns)}")
    return [row for row in rows if at in (None, tables.heading(column(row)))]


def _predictions(cells: list, kept):
    """What was kept of a cell's images, by its id."""
    from medssl import results

    by_id = {cell.id: cell for cell in cells}
    return lambda name: results.predictions(kept, by_id[name])


def _judged(cells: list, name: str | None) -> list:
    """The cells of one evaluation, or all; ValueError for one that the sweep has not."""
    if name and name not in (known := sorted({cell.eval for cell in cells})):
        raise ValueError(f"no {name!r} in this sweep: choose from {', '.join(known)}")
    return [cell for cell in cells if name in (None, cell.eval)]


def _of_tables(format: Format) -> None:
    if format in (Format.csv, Format.parquet):
        raise ValueError(f"--format {format}: choose from terminal, markdown, latex")


def _show(found: list, notes: list[str], format: Format, out: Path | None = None) -> None:
    """Tables of report/ and their notes, on the terminal or as text."""
    from medssl.report import tables

    if format is Format.terminal and out is None:
        for one in found:
            console = _console(wide=True)
            with console.capture() as drawn:
                console.print(_plain(one.title), style="bold", highlight=False)
                console.print(_grid(one, console.width))
            for line in drawn.get().splitlines():
                typer.echo(line.rstrip())
        console = _console(wide=True)
        whole_lines = not console.is_terminal  # for whoever searches them
        for caption in dict.fromkeys(one.caption for one in found):
            console.print(_plain(caption), style="dim", highlight=False, soft_wrap=whole_lines)
        for note in notes:
            console.print(f"note: {_plain(note)}", highlight=False, soft_wrap=whole_lines)
        return
    write = tables.latex if format is Format.latex else tables.markdown
    text = write(found, notes)
    if out is None:
        typer.echo(text)
    else:
        from medssl._files import whole

        with whole(out.resolve()) as file:
            file.write(text.encode())


def _grid(table, width: int = 1000):
    """A table of report/ as rich draws it; too wide, its intervals have lines of their own."""
    from rich import box
    from rich.table import Table

    shown = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0))
    columns = list(zip(table.header, *table.rows, strict=True))
    for name, *texts in columns:  # a number is never cut: names fold before it
        number = any(re.match(r"[+-]?\d+\.\d", text) for text in texts)
        shown.add_column(
            name, justify="right" if number else "left", no_wrap=number, overflow="fold"
        )
    wide = sum(max(map(len, column)) + 1 for column in columns) > width
    for row in table.rows:
        shown.add_row(*(_plain(text.replace(" [", "\n[") if wide else text) for text in row))
    return shown


def _show_plan(plan, kept, brief: bool = False) -> None:
    from medssl import plan as planning

    console = _console()
    pretrain = plan.to_pretrain(kept)
    done = len(plan.cells) - len(plan.missing)
    console.print(
        f"{plan.sweep.name}: {plan.encoders} encoders, {len(plan.cells)} cells, {done} done, "
        f"{len(plan.missing)} missing" + (f"; {pretrain} encoders to make" if pretrain else ""),
        highlight=False,
        soft_wrap=True,
    )
    if ahead := plan.ahead:
        epochs = sum(spec.epochs for spec in ahead)
        told = f"  searches: {len(ahead)} points to measure first, {epochs:,} epochs"
        console.print(told, highlight=False, soft_wrap=True)
    for problem in plan.problems:
        console.print(f"  [red]wrong[/red] {_plain(problem)}", soft_wrap=True, highlight=False)
    if not brief:
        shown = planning.axes(plan.cells)
        for axis, values in shown.items():
            line = f"  {axis:{max(map(len, shown))}}  {', '.join(values)}"
            console.print(_plain(line), highlight=False, soft_wrap=True)
    for why, count in plan.sweep.dropped().items():
        if not count:
            continue
        console.print(f"  dropped {count} cells: {_plain(why)}", soft_wrap=True)
    if not brief:
        for sentence in plan.absent:
            console.print(f"  [yellow]absent[/yellow] {_plain(sentence)}", soft_wrap=True)


def _show_cost(plan, kept, price: float | None) -> None:
    """What is missing, in hours, where the store has measured its like."""
    from medssl import cost
    from medssl import plan as planning

    if not plan.missing:
        return
    costs, resources = cost.of_store(kept), plan.sweep.resources
    cells = [*plan.missing, *plan.points, *(cell for one in plan.later for cell in one.like)]
    have = kept.names("encoders", ".safetensors")
    to_make = planning.to_make([*plan.missing, *plan.points], have)
    to_make += [one.like[0].encoder for one in plan.later]

    @functools.cache
    def share(spec) -> float:
        return resources.share(spec, any_gpu="(CPU)" not in costs.device)

    gpu = any(share(cell.encoder) for cell in cells)  # else slots are counted, as a budget does
    shares = {"share": share} if gpu else {}
    if told := cost.estimate(cells, to_make, costs, **shares).told(gpu, price):
        _console().print(_plain(f"  {told}"), highlight=False, soft_wrap=True)
    elif price is not None:
        _console().print("  no price: this store has measured nothing like it yet", soft_wrap=True)


def _told(findings) -> int:
    """Prints each with its remedy; the exit code, which is 1 where one is missing."""
    code = 0
    for found in findings:
        mark = {True: "ok", False: "missing", None: "?"}[found.ok]
        colour = {True: "green", False: "red", None: "yellow"}[found.ok]
        typer.echo(f"{typer.style(f'{mark:8}', fg=colour)}{found.what}")
        if found.remedy and not found.ok:
            typer.echo(f"{'':8}{found.remedy}")
        code = 1 if found.ok is False else code
    return code


def _console(wide: bool = False):
    """On a terminal as wide as that; elsewhere 120 columns, or as wide as a table needs."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 1000 if wide else 120)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


@contextlib.contextmanager
def _sentences():
    """What a user did wrong is a sentence and exit code 2, not a traceback."""
    try:
        yield
    except (ValueError, OSError) as problem:
        typer.echo(f"medssl: {problem}", err=True)
        raise typer.Exit(2) from None
