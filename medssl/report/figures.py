"""Two pictures of one encoder: how it learned, and what its features are worth per label."""

import io
from collections.abc import Iterable, Iterator

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # told apart by colour-blind readers


def of_encoder(curve: list[dict[str, float]], rows: Iterable[dict]) -> Iterator[tuple[str, bytes]]:
    """(file name, PNG): learning_curve.png where there are epochs, label_efficiency.png."""
    if curve:
        yield "learning_curve.png", _png(_learning, curve)
    rows = [row for row in rows if row["metric"] == "auroc" and not row["shots"]]
    if rows:
        yield "label_efficiency.png", _png(_labels, rows)


def _learning(axes, curve: list[dict[str, float]]) -> None:
    epochs = range(1, len(curve) + 1)
    axes.plot(epochs, [c["loss"] for c in curve], "o-", ms=3, color=COLOURS[0])
    axes.set(xlabel="epoch", ylabel="loss", title="pretraining")
    axes.yaxis.label.set_color(COLOURS[0])
    if "spread" in curve[0]:
        other = axes.twinx()
        other.plot(epochs, [c["spread"] for c in curve], "s--", ms=3, color=COLOURS[1])
        other.set(ylim=(0, 1.1), ylabel="spread (0: collapsed)")
        other.yaxis.label.set_color(COLOURS[1])


def _labels(axes, rows: list[dict]) -> None:
    lines: dict[str, dict[float, list[float]]] = {}
    settings = {
        name: sorted({r["settings"] for r in rows if r["eval"] == name})
        for name in {r["eval"] for r in rows}
    }
    for row in rows:
        name = row["eval"] + (f" on {row['target']}" if row["target"] != row["dataset"] else "")
        if row["source"] not in (None, row["target"]):
            name += f" learned on {row['source']}"
        if len(settings[row["eval"]]) > 1:
            name += f" {row['settings']}"
        lines.setdefault(name, {}).setdefault(row["label_fraction"], []).append(row["value"])
    for colour, (name, points) in zip(COLOURS * len(lines), sorted(lines.items()), strict=False):
        x = sorted(points)
        axes.plot(x, [sum(points[f]) / len(points[f]) for f in x], "o-", color=colour, label=name)
    axes.axhline(0.5, lw=0.8, ls=":", color="grey")
    axes.set_ylim(min(0.45, *(row["value"] - 0.02 for row in rows)), 1.0)
    axes.set(xscale="log", xlabel="share of labels", ylabel="test AUROC", title="label efficiency")
    ticks = sorted({row["label_fraction"] for row in rows})
    axes.set_xticks(ticks, [f"{100 * t:g}%" for t in ticks])
    axes.minorticks_off()
    axes.legend(frameon=False)


def _png(draw, data) -> bytes:
    from matplotlib.figure import Figure  # not pyplot, whose state threads would share

    figure = Figure(figsize=(5, 3.4), layout="constrained")
    draw(figure.subplots(), data)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=130)
    return file.getvalue()
