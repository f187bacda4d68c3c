"""The live view of a sweep, from the store alone: the same for `run` and for `status` elsewhere.

On a terminal a table that is redrawn; elsewhere (a pod's log, a file) a line when something has
changed, at most every ten seconds and at least every minute.
"""

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import fields

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from medssl.spec import NONE, SEARCHED, EncoderSpec
from medssl.status import RUNNING, Status, Trial

SHOWN = 12  # running and failed trials listed; more would scroll off
HIDDEN = ("recipe", "version")  # of an encoder: what two trials may differ in without a column


def render(status: Status) -> Group:
    """A line of counts, the trials that run, and those that failed with their first line."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    axes = varying(status)
    for column in ("encoder", *axes, "now", "loss", "views/s", "of peak"):
        table.add_column(column, overflow="fold")
    before = [t for t in status.parents + status.points if t.state in RUNNING]
    running = before + status.of(*RUNNING)
    for trial in running[:SHOWN]:
        last = trial.curve[-1] if trial.curve else {}
        table.add_row(
            trial.spec.id,
            *(_value(trial.spec, axis) for axis in axes),
            _now(trial),
            f"{last['loss']:.3f}" if last else "",
            f"{last['views_per_s']:,.0f}" if last else "",
            f"{last['mfu']:.0%}" if "mfu" in last else "",
        )
    failed = [
        Text(f"failed {t.spec.id} {t.spec.method} on {t.spec.dataset}: {reason(t)}", style="red")
        for t in status.of("failed")[:SHOWN]
    ]
    parts = [Text(line(status), style="bold")]
    return Group(*parts, *([table] if running else []), *failed)


def _value(spec: EncoderSpec, axis: str) -> str:
    value = getattr(spec, axis)
    unknown = value is None or (spec.search and axis in SEARCHED)
    return "" if unknown else str(value)


def varying(status: Status) -> list[str]:
    """The method, and the axes on which the sweep's pretrained encoders differ."""
    specs = [t.spec for t in status.trials + status.points if t.spec.method != NONE]
    axes = (f.name for f in fields(EncoderSpec) if f.name not in HIDDEN)
    return [a for a in axes if a == "method" or len({getattr(s, a) for s in specs}) > 1]


def line(status: Status) -> str:
    """trials 3/8 done, 2 running, 1 failed; cells 18/48; about 4 min of pretraining left"""
    states = status.states
    running = sum(states[state] for state in RUNNING)
    running += sum(t.state in RUNNING for t in status.parents + status.points)
    text = f"trials {states['finished']}/{len(status.trials)} done, {running} running"
    text += f", {states['failed']} failed" if states["failed"] else ""
    if making := [t for t in status.parents if t.state != "finished"]:
        text += f", {len(making)} supervised init{'s' * (len(making) > 1)} to make first"
    if status.points:
        states = Counter(t.state for t in status.points)
        done = states["finished"] + states["diverged"]
        text += f"; points of searches {done}/{len(status.points) + status.later}"
        text += "".join(f", {states[of]} {of}" for of in ("diverged", "failed") if states[of])
    text += f"; cells {status.cells_done}/{status.cells}"
    eta_s = status.eta_s() if running else None
    return text + (f"; about {duration(eta_s)} of pretraining left" if eta_s is not None else "")


def reason(trial: Trial) -> str:
    return trial.said.get("reason", "").partition("\n")[0] or "no reason was recorded"


def duration(seconds: float) -> str:
    """95 -> "2 min"; rough on purpose."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def follow(read: Callable[[], Status], stop: threading.Event, console: Console) -> None:
    """Shows `read()` until `stop` is set."""
    if console.is_terminal:
        with Live(console=console, refresh_per_second=2, transient=True) as live:
            pause_s = 1.0
            while not stop.wait(pause_s):
                began = time.thread_time()
                with contextlib.suppress(OSError):  # a shared folder that is away for a moment
                    live.update(render(read()))
                pause_s = max(1.0, 9 * (time.thread_time() - began))  # a tenth of a core at most
        return
    said, at = None, 0.0
    while not stop.wait(2):
        try:
            status = read()
        except OSError:
            continue
        quiet_s = time.monotonic() - at
        if quiet_s > 60 or (status.states != said and quiet_s > 10):
            told = f"{time.strftime('%H:%M:%S')} {line(status)}"
            console.print(told, highlight=False, soft_wrap=True)
            said, at = status.states, time.monotonic()


def _now(trial: Trial) -> str:
    doing = trial.said.get("doing", "")  # of a fit, which may take hours
    if trial.state == "evaluating":
        return f"evaluating {trial.done}/{len(trial.cells)}" + (f", {doing}" if doing else "")
    if trial.state == "starting":
        return "starting"
    if not trial.spec.epochs:
        return "making the init" + (f", {doing}" if doing else "")
    return f"epoch {len(trial.curve)}/{trial.spec.epochs}"
