"""The report as one HTML page that needs no other file, and the plots as PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from . import plots
from .cases import CELLS, MODES
from .contestants import CONTESTANTS, OURS
from .goals import verdicts
from .summary import (
    BUSY,
    SLOWED,
    Mean,
    Row,
    busy,
    by_ratio,
    by_regime,
    failures_of,
    limits_of,
    losses,
    means,
    rows_of,
    scaling,
    slowed,
)
from .text import SHORT, duration, peers_of, ratio

CAPTIONS = {
    "heat-map": "Above 1 rnnfast is faster; red is a loss.",
    "random": "Every shape that was drawn; the table below lists them all.",
    "roofline": "Lines are limits measured in the same run; a step or a small batch is bound by reading the weights.",
    "hidden-step": "The dotted line is the least time for the matrix products on this machine.",
    "hidden-sequence": "The dotted line is the least time for the matrix products on this machine.",
    "hidden-train": "Forward and backward, with all gradients.",
    "hidden-train-batch": "Forward and backward, with all gradients.",
    "steps": "Cost of longer sequences.",
    "steps-train": "Cost of longer sequences.",
    "batch": "Cost of larger batches.",
    "batch-train": "Cost of larger batches.",
    "mixed": "Up to the dotted line (1.25) pools do not disturb each other.",
}


def svg(figure: Figure, name: str) -> str:
    """Without the lines before the element, which belong to a file of its own; ids are made unique by the name."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.id": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def write_png(document: dict[str, Any], directory: Path) -> list[Path]:
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in plots.all_plots(rows_of(document), limits_of(document), document["mixed"]):
        paths.append(directory / f"{name}.png")
        figure.savefig(paths[-1], dpi=130)
    return paths


def section_name(mean: Mean) -> str:
    return f"{mean.regime}, {mean.threads} thread{'s' if mean.threads > 1 else ''}"


def headline(found: Sequence[Mean]) -> list[dict[str, Any]]:
    """A line per regime and number of threads, with each cell's mean."""
    lines: dict[str, dict[str, Any]] = {}
    for mean in found:
        line = lines.setdefault(section_name(mean), {"name": section_name(mean), "cells": {}, "threads": mean.threads})
        line["cells"][mean.cell] = mean
    return list(lines.values())


def tables(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Random shapes apart, because they are listed by their ratio."""
    found = []
    fixed = [row for row in rows if "random" not in row.case.group]
    for (name, cell, threads), group in by_regime(fixed).items():
        title = f"{name}, {cell.upper()}, {threads} thread{'s' if threads > 1 else ''}"
        found.append({"title": title, "rows": group, "peers": peers_of(group), "cold": name.startswith("step on cold")})
    for threads in sorted({row.threads for row in rows}):
        group = by_ratio(row for row in rows if "random" in row.case.group and row.threads == threads)
        if group:
            title = f"{len(group)} random shapes, {threads} thread{'s' if threads > 1 else ''}, losses first"
            found.append({"title": title, "rows": group, "peers": peers_of(group), "cold": False})
    return found


def render(document: dict[str, Any]) -> str:
    rows = rows_of(document)
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"duration": duration, "ratio": ratio}
    template = environment.from_string(files(__package__).joinpath("page.html").read_text())
    limits = limits_of(document)
    figures = [
        {"svg": svg(figure, name), "name": name, "caption": CAPTIONS[name.rstrip("0123456789").rstrip("-")]}
        for name, figure in plots.all_plots(rows, limits, document["mixed"])
    ]
    found, compared = means(rows), [row for row in rows if row.ratios]
    html: str = template.render(
        document=document,
        commands=document.get("commands") or [document["command"]],
        cells=[cell for cell in CELLS if any(mean.cell == cell for mean in found)],
        headline=headline(found),
        peers=[name for name in CONTESTANTS if name not in OURS and any(name in mean.peers for mean in found)],
        losses=losses(compared),
        compared=len(compared),
        verdicts=verdicts(rows, document["mixed"]),
        scaling=[s for s in scaling(rows) if s.row.ours * s.speedup >= 1e-3],
        figures=figures,
        tables=tables(rows),
        mixed=sorted(document["mixed"], key=lambda entry: (entry["backend"], -entry.get("cost", 0.0))),
        failures=failures_of(document),
        busy=busy(rows),
        limit_of_busy=BUSY,
        slowed=slowed(rows),
        limit_of_slowed=SLOWED,
        measured=len(rows),
        limits=limits,
        modes=MODES,
        short=SHORT,
    )
    return html
