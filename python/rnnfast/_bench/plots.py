"""The plots, each a matplotlib figure made from the rows of a report."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from .cases import CLASS_NAMES, REGIMES
from .contestants import CONTESTANTS, OURS
from .limits import Limits, parts
from .summary import Row
from .text import SHORT, cells_of, duration, peers_of, ratio

# Okabe and Ito's colours, which people with any kind of colour vision can tell apart.
COLOURS = {
    "rnnfast": "#0072B2",
    "rnnfast-layer": "#56B4E9",
    "torch": "#D55E00",
    "torch-grad": "#E69F00",
    "torch-compile": "#8C564B",
    "onnxruntime": "#009E73",
    "openvino": "#CC79A7",
    "paddle": "#555555",
}
MARKERS = {"rnn": "o", "lstm": "s", "gru": "^"}
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "svg.fonttype": "none",
    "font.family": ["DejaVu Sans", "sans-serif"],
}


def with_threads(rows: Sequence[Row], threads: int) -> list[Row]:
    return [row for row in rows if row.threads == threads]


def thread_words(threads: int) -> str:
    return f"{threads} thread{'s' if threads > 1 else ''}"


def heat_map(rows: Sequence[Row], threads: int) -> Figure | None:
    """Ratio of each peer's time to ours: a line per shape, a column per cell and peer."""
    rows = [row for row in with_threads(rows, threads) if row.ratios and "random" not in row.case.group]
    if not rows:
        return None
    peers = [peer for peer in peers_of(rows) if peer not in (*OURS, "torch-grad")]
    columns = [(cell, peer) for cell in cells_of(rows) for peer in peers]
    lines = sorted(
        {(REGIMES.index(row.regime), row.case.operations / CELL_WORK[row.case.cell], row.case.title) for row in rows}
    )
    names = list(dict.fromkeys((regime, title) for regime, _, title in lines))
    values = np.full((len(names), len(columns)), np.nan)
    for row in rows:
        line = names.index((REGIMES.index(row.regime), row.case.title))
        for peer, value in row.ratios.items():
            if peer not in peers:
                continue
            values[line, columns.index((row.case.cell, peer))] = value
    kept = [j for j in range(len(columns)) if not np.isnan(values[:, j]).all()]
    return drawn_heat_map(values[:, kept], [columns[j] for j in kept], names, threads)


# Operations of a cell in units of an RNN's: cases of one shape stand in one line.
CELL_WORK = {"rnn": 1, "lstm": 4, "gru": 3}


def drawn_heat_map(
    values: np.ndarray[Any, np.dtype[np.float64]],
    columns: Sequence[tuple[str, str]],
    names: Sequence[tuple[int, str]],
    threads: int,
) -> Figure:
    figure = Figure(figsize=(3.2 + 0.62 * len(columns), 1.4 + 0.21 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    # One is white; what is slower than a peer is red at once, what is faster turns blue by and by.
    norm = TwoSlopeNorm(0, -1, math.log2(32))
    axes.set_facecolor("#f2f2f2")
    axes.imshow(np.log2(values), cmap="RdBu", norm=norm, aspect="auto", interpolation="nearest")
    for line, column in np.argwhere(~np.isnan(values)):
        value = values[line, column]
        colour = "white" if value >= 9 or value < 0.7 else "black"
        weight = "bold" if value < 1 else "normal"
        axes.text(column, line, ratio(value), ha="center", va="center", fontsize=7, color=colour, weight=weight)
    axes.set_xticks(
        range(len(columns)), [SHORT.get(peer, peer) for _, peer in columns], rotation=40, ha="left", fontsize=8
    )
    axes.set_yticks(range(len(names)), [title for _, title in names], fontsize=7.5)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.grid(False)
    for side in axes.spines.values():
        side.set_visible(False)
    for line, (regime, _) in enumerate(names):
        if line == 0 or names[line - 1][0] != regime:
            axes.axhline(line - 0.5, color="black", linewidth=0.8)
            axes.text(len(columns) - 0.4, line, REGIMES[regime], fontsize=8, va="center", weight="bold")
    cells = [cell for cell, _ in columns]
    for cell in dict.fromkeys(cells):
        first, count = cells.index(cell), cells.count(cell)
        axes.axvline(first - 0.5, color="black", linewidth=0.8)
        axes.text(first + (count - 1) / 2, len(names) - 0.3, CLASS_NAMES[cell], ha="center", va="top", weight="bold")
    axes.set_title(f"Time of each library over rnnfast's, {thread_words(threads)} (T,B,I,H)", fontsize=10)
    return figure


def roofline(rows: Sequence[Row], limits: Limits) -> Figure | None:
    """Operations per second over operations per byte of weights that are read."""
    rows = with_threads(rows, limits.threads)
    if not rows:
        return None
    figure = Figure(figsize=(8.4, 5), layout="constrained")
    axes = figure.add_subplot()
    intensities = np.geomspace(0.1, 4096, 200)
    levels = limits.levels()
    for number, (level, rate) in enumerate(levels.items()):
        roof = np.minimum(limits.peak, intensities * rate) / 1e9
        axes.plot(intensities, roof, color="#888888", linewidth=1, zorder=1)
        # Neighbours are often close together, so every other name stands below its line.
        angle, side = math.degrees(math.atan(rate / 1e9)), "bottom" if number % 2 else "top"
        label = f"{level} {rate / 1e9:.0f} GB/s"
        turned: dict[str, Any] = {"rotation": angle, "rotation_mode": "anchor", "transform_rotates_text": True}
        axes.text(0.12, 0.12 * rate / 1e9, label, fontsize=7, color="#555555", va=side, **turned)
    axes.text(
        4096, limits.peak / 1e9 * 1.05, f"FMA {limits.peak / 1e9:.0f} GFLOP/s", ha="right", fontsize=8, color="#555555"
    )
    for cell, marker in MARKERS.items():
        mine = [row for row in rows if row.case.cell == cell]
        points = [(row.case.operations / sum(p.repeats * p.bytes for p in parts(row.case)), row) for row in mine]
        for ours in (False, True):
            colour = COLOURS["rnnfast"] if ours else "#D55E00"
            shown = [(x, row) for x, row in points if ours or row.best]
            rates = [row.rate / (1 if ours else (row.best_ratio or 1)) / 1e9 for _, row in shown]
            name = f"{CLASS_NAMES[cell]}, {'rnnfast' if ours else 'best peer'}"
            face = colour if ours else "none"
            xs = [min(x, 4096) for x, _ in shown]
            axes.scatter(
                xs, rates, s=20, marker=marker, facecolors=face, edgecolors=colour, linewidths=0.8, label=name, zorder=2
            )
    axes.set(xscale="log", yscale="log", xlim=(0.1, 4600))
    axes.set_ylim(bottom=max(0.05, axes.get_ylim()[0]))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("floating-point operations per byte of weights read")
    axes.set_ylabel("GFLOP/s")
    axes.set_title(f"Roofline, {thread_words(limits.threads)}")
    axes.legend(fontsize=7, ncols=3, loc="lower right")
    return figure


@dataclass(frozen=True)
class Curve:
    """Cases of one group and mode, by one of their sizes."""

    group: str
    mode: str
    size: str  # a field of Case
    label: str  # of the axis
    title: str
    batches: tuple[int, ...] = ()  # all, if none is named


CURVES = {
    "hidden-step": Curve("hidden", "step", "hidden_size", "H = I", "One step, batch 1"),
    "hidden-sequence": Curve("hidden", "forward", "hidden_size", "H = I", "50 steps, batch 1"),
    "hidden-train": Curve("hidden", "train", "hidden_size", "H = I", "Training, 100 steps, batch 1", (1,)),
    "hidden-train-batch": Curve("hidden", "train", "hidden_size", "H = I", "Training, 50 steps, batch 32", (32,)),
    "steps": Curve("steps", "forward", "steps", "T", "Longer sequences: B 8, I 64, H 128"),
    "steps-train": Curve("steps", "train", "steps", "T", "Training with longer sequences: B 8, I 64, H 128"),
    "batch": Curve("batch", "forward", "batch", "B", "Larger batches: T 20, I 64, H 128"),
    "batch-train": Curve("batch", "train", "batch", "B", "Training with larger batches: T 20, I 64, H 128"),
}


def curves(rows: Sequence[Row], threads: int, curve: Curve) -> Figure | None:
    """Time against one size, a panel per cell, a line per contestant."""
    rows = [row for row in with_threads(rows, threads) if curve.group in row.case.group.split("+")]
    rows = [
        row for row in rows if row.case.mode == curve.mode and row.case.batch in (curve.batches or (row.case.batch,))
    ]

    def size(row: Row) -> int:
        return int(getattr(row.case, curve.size))

    cells = [cell for cell in cells_of(rows) if len({size(row) for row in rows if row.case.cell == cell}) > 2]
    if not cells:
        return None
    figure = Figure(figsize=(3.1 * len(cells) + 0.6, 3.3), layout="constrained")
    panels = figure.subplots(1, len(cells), sharey=True, squeeze=False)[0]
    for axes, cell in zip(panels, cells, strict=True):
        mine = sorted((row for row in rows if row.case.cell == cell), key=size)
        for name in [name for name in CONTESTANTS if any(name in row.times for row in mine)]:
            points = [(size(row), row.times[name]["median"]) for row in mine if name in row.times]
            width, order = (2.2, 3) if name == "rnnfast" else (1.2, 2)
            axes.plot(
                *zip(*points, strict=True),
                "o-",
                markersize=3,
                linewidth=width,
                zorder=order,
                color=COLOURS[name],
                label=SHORT.get(name, name),
            )
        axes.plot([size(row) for row in mine], [row.bound.seconds for row in mine], ":", color="#555555", label="limit")
        axes.set(xscale="log", yscale="log", title=CLASS_NAMES[cell], xlabel=curve.label)
        ticks = sorted({size(row) for row in mine})
        axes.xaxis.set_major_locator(FixedLocator(ticks[:: 1 + len(ticks) // 9]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_minor_locator(FixedLocator([]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
    figure.suptitle(f"{curve.title}, {thread_words(threads)}", x=0.01, ha="left", fontsize=10)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)
    return figure


def compact(seconds: float) -> str:
    """A power of ten: "10 us"."""
    text = duration(seconds)
    value, unit = text.split()
    return f"{float(value):g} {unit}"


def drawn_shapes(rows: Sequence[Row], threads: int) -> Figure | None:
    """All random shapes: ratio to the best peer over the work."""
    rows = [row for row in with_threads(rows, threads) if "random" in row.case.group and row.ratios]
    if not rows:
        return None
    figure = Figure(figsize=(7.6, 4.2), layout="constrained")
    axes = figure.add_subplot()
    colours = {"rnn": "#009E73", "lstm": "#0072B2", "gru": "#D55E00"}
    for cell in cells_of(rows):
        for mode, face in (("forward", True), ("train", False)):
            mine = [row for row in rows if row.case.cell == cell and row.case.mode == mode]
            face_colour = colours[cell] if face else "none"
            axes.scatter(
                [row.case.operations for row in mine],
                [row.best_ratio or 1 for row in mine],
                s=18,
                linewidths=0.8,
                marker=MARKERS[cell],
                facecolors=face_colour,
                edgecolors=colours[cell],
                label=f"{CLASS_NAMES[cell]}, {'inference' if face else 'training'}",
            )
    axes.axhline(1, color="black", linewidth=1)
    axes.set(xscale="log", yscale="log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:g}"[0] in "25" else ""))
    axes.set_xlabel("floating-point operations in a call")
    axes.set_ylabel("time of the best peer / ours")
    axes.set_title(f"{len(rows)} random shapes, {thread_words(threads)}: above the line rnnfast is faster")
    figure.legend(fontsize=7.5, ncols=6, loc="outside lower center")
    return figure


def pipelines(entries: Sequence[dict[str, Any]]) -> Figure | None:
    """What a pair costs relative to its parts alone."""
    entries = [entry for entry in entries if "cost" in entry]
    if not entries:
        return None
    titles = list(dict.fromkeys(entry["title"] for entry in entries))
    backends = list(dict.fromkeys(entry["backend"] for entry in entries))
    figure = Figure(figsize=(7.6, 1.2 + 0.32 * len(titles)), layout="constrained")
    axes = figure.add_subplot()
    height = 0.8 / len(backends)
    palette = ("#0072B2", "#D55E00", "#009E73")
    for number, backend in enumerate(backends):
        mine = [entry for entry in entries if entry["backend"] == backend]
        places = [titles.index(entry["title"]) + (number - (len(backends) - 1) / 2) * height for entry in mine]
        used = " or ".join(dict.fromkeys(entry["used"] for entry in mine))
        name = backend if backend == used else f"{backend} ({used})"
        axes.barh(places, [entry["cost"] for entry in mine], height, label=name, color=palette[number])
    axes.axvline(1, color="black", linewidth=1)
    axes.axvline(1.25, color="black", linewidth=1, linestyle=":")
    axes.set_yticks(range(len(titles)), titles, fontsize=7.5)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="time of the pair / sum of its parts alone")
    for formatter in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        formatter(FuncFormatter(lambda value, _: f"{value:g}" if value >= 1 else ""))
    axes.set_title("A matrix product and a call of rnnfast, alternating in one process")
    axes.legend(fontsize=8)
    return figure


def all_plots(
    rows: Sequence[Row], limits: dict[int, Limits], mixed: Sequence[dict[str, Any]]
) -> Iterator[tuple[str, Figure]]:
    """Those that the rows suffice for, by name."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        for threads in sorted({row.threads for row in rows}):
            figures = {
                "heat-map": heat_map(rows, threads),
                "random": drawn_shapes(rows, threads),
                "roofline": roofline(rows, limits[threads]),
            }
            figures |= {name: curves(rows, threads, curve) for name, curve in CURVES.items()}
            for name, figure in figures.items():
                if figure is not None:
                    yield f"{name}-{threads}", figure
        figure = pipelines(mixed)
        if figure is not None:
            yield "mixed", figure
