"""The report for a terminal: tables first, what matters most last, where it is seen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from .cases import CELLS
from .contestants import CONTESTANTS, OURS
from .goals import verdicts
from .limits import Limits
from .summary import (
    BUSY,
    SLOWED,
    Mean,
    Row,
    busy,
    by_regime,
    failures_of,
    limits_of,
    losses,
    means,
    rows_of,
    scaling,
    slowed,
)

SHORT = {"rnnfast-layer": "unfrozen", "onnxruntime": "ORT", "openvino": "OpenVINO", "torch-grad": "torch+grad"}
WORST = 15  # lines of a list


def duration(seconds: float) -> str:
    """Three digits: "0.55 us", "12.3 ms"."""
    for factor, unit in ((1e6, "us"), (1e3, "ms"), (1.0, "s")):
        if seconds * factor < 1000 or unit == "s":
            value = seconds * factor
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"
    raise AssertionError


def ratio(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def peers_of(rows: Iterable[Row]) -> list[str]:
    taking_part = {name for row in rows for name in row.times}
    return [name for name in CONTESTANTS if name in taking_part and name != "rnnfast"]


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> Iterator[str]:
    """The first column to the left, the others to the right."""
    everything = [list(header), *(list(line) for line in lines)]
    widths = [max(len(line[i]) for line in everything) for i in range(len(header))]
    for line in everything:
        cells = [line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))]
        yield "  ".join(cells).rstrip()


def case_tables(rows: Sequence[Row]) -> Iterator[str]:
    for (name, cell, threads), group in by_regime(rows).items():
        peers = peers_of(group)
        header = [f"{name}, {cell}, {threads} thread{'s' if threads > 1 else ''}  (T,B,I,H)", "rnnfast", "spread"]
        header += [SHORT.get(peer, peer) for peer in peers] + ["best/ours", "torch/ours", "GFLOP/s", "of limit"]
        lines = []
        for row in group:
            times = [duration(row.times[peer]["median"]) if peer in row.times else "-" for peer in peers]
            line = [row.case.title, duration(row.ours), f"{row.times['rnnfast']['spread']:.0%}", *times]
            line += [
                ratio(row.best_ratio),
                ratio(row.ratios.get("torch")),
                f"{row.rate / 1e9:.1f}",
                f"{row.fraction:.0%}",
            ]
            lines.append(line)
        yield from table(header, lines)
        if name.startswith("step on cold"):
            yield from tails(group, peers)
        yield ""


def tails(group: Sequence[Row], peers: Sequence[str]) -> Iterator[str]:
    for row in group:
        names = ["rnnfast", *(peer for peer in peers if peer in row.times)]
        parts = [f"{SHORT.get(name, name)} {duration(row.times[name]['p99'])}" for name in names]
        yield f"    p99 of {row.case.title}: {', '.join(parts)}"


def mean_lines(found: Sequence[Mean]) -> Iterator[str]:
    peers = [name for name in CONTESTANTS if name not in OURS and any(name in mean.peers for mean in found)]
    header = ["geometric means: ratio to", "cases", "best", *(SHORT.get(p, p) for p in peers), "of limit", "worst case"]
    lines = []
    for mean in found:
        worst = f"{ratio(mean.worst.best_ratio)} {mean.worst.case.shape} {mean.worst.best}" if mean.worst else "-"
        line = [f"{mean.regime}, {mean.cell}, {mean.threads}", str(mean.count), ratio(mean.best)]
        line += [ratio(mean.peers.get(peer)) for peer in peers]
        lines.append([*line, f"{mean.fraction:.0%}", worst])
    yield from table(header, lines)


def limit_lines(limits: dict[int, Limits]) -> Iterator[str]:
    for threads, limit in limits.items():
        levels = ", ".join(f"{level} {rate / 1e9:.0f}" for level, rate in limit.levels().items())
        peak = f"FMA {limit.peak / 1e9:.0f} GFLOP/s"
        yield f"limits, {threads} thread{'s' if threads > 1 else ''}: {peak}; reading, GB/s: {levels}"


def goal_lines(rows: Sequence[Row], mixed: Sequence[dict[str, Any]]) -> Iterator[str]:
    found = verdicts(rows, mixed)
    if not found:
        return
    missed = [verdict for verdict in found if not verdict.met]
    yield f"goals: {len(found) - len(missed)} of {len(found)} reached; missed, furthest first"
    yield from table(
        ["goal", "threads", "is", "wanted", "cases", ""],
        [[v.goal, str(v.threads), ratio(v.value), ratio(v.wanted), str(v.count), v.note] for v in missed],
    )
    below = [
        [v.goal, str(v.threads), row.case.key, ratio(value), ratio(v.wanted), f"{row.fraction:.0%}"]
        for v in found
        for row, value in v.below
    ]
    if below:
        yield ""
        yield "cases below a goal, whether or not their mean reaches it"
        yield from table(["goal", "threads", "case", "is", "wanted", "of limit"], below)


def loss_lines(rows: Sequence[Row]) -> Iterator[str]:
    compared = [row for row in rows if row.ratios]
    found = losses(compared)
    yield f"losses: {len(found)} of {len(compared)}"
    lines = []
    for row in found[:WORST]:
        kept = f"{row.best} {ratio(row.best_ratio)}, spread {row.times['rnnfast']['spread']:.0%}"
        kept += f", at {row.fraction:.0%} of the limit, others used {row.others:.1f} cores"
        kept += f", machine at {row.rate_then:.0%} of its rate" if row.rate_then < SLOWED else ""
        lines.append(f"  {row.case.key}, {row.threads} threads: {kept}")
    yield from lines
    if len(found) > WORST:
        yield f"  and {len(found) - WORST} more"


def scaling_lines(rows: Sequence[Row]) -> Iterator[str]:
    found = [s for s in scaling(rows) if s.row.ours * s.speedup >= 1e-3]
    if found:
        yield "more threads, calls of 1 ms and more, the worst first: gain (the limit's gain)"
        for s in found[:WORST]:
            yield f"  {s.row.case.key}, {s.row.threads} threads: {s.speedup:.2f} ({s.limit:.2f})"


def mixed_lines(document: dict[str, Any]) -> Iterator[str]:
    entries = document["mixed"]
    if not entries:
        return
    header = ["pipelines in one process: product + call", "backend", "product", "call", "pair", "cost"]
    lines = []
    for entry in sorted(entries, key=lambda e: (e["backend"], -e.get("cost", 0.0))):
        used = entry["backend"] if entry["backend"] == entry["used"] else f"{entry['backend']} ({entry['used']})"
        if "failed" in entry:
            lines.append([entry["title"], used, entry["failed"], "", "", ""])
        else:
            times = [duration(entry[name]) for name in ("product", "ours", "pair")]
            lines.append([entry["title"], used, *times, f"{entry['cost']:.2f}"])
    yield from table(header, lines)
    yield "cost: time of the pair over the sum of its parts alone"
    yield ""


def notes(document: dict[str, Any], rows: Sequence[Row]) -> Iterator[str]:
    if document["left_out"]:
        yield f"{document['left_out']} cases were left out, for lack of time"
    disturbed = busy(rows)
    if disturbed:
        yield f"{disturbed} of {len(rows)} measurements while other programs used more than {BUSY:g} cores: repeat them"
    slow = slowed(rows)
    if slow:
        yield f"{slow} of {len(rows)} measurements with less than {SLOWED:.0%} of the run's rate of multiply-adds"
    if any(row.fraction > 1.05 for row in rows):
        yield "some cases seem to exceed the limit: its measurement was disturbed; fractions of it mean little"
    for failure in failures_of(document):
        yield f"not timed: {failure}"


def report(document: dict[str, Any]) -> str:
    rows = rows_of(document)
    machine = document["machine"]
    lines = [f"{machine['cpu']}, {machine['cores']} cores, {document['date']}"]
    lines += document.get("commands") or [document["command"]]
    lines += [f"{name} {about['version']}" for name, about in document["contestants"].items()]
    if document["limits"]:
        lines += limit_lines(limits_of(document))
    lines += ["", *case_tables(rows), *mixed_lines(document)]
    if rows:
        lines += [
            *mean_lines(means(rows)),
            "",
            *scaling_lines(rows),
            "",
            *goal_lines(rows, document["mixed"]),
            "",
            *loss_lines(rows),
        ]
    lines += notes(document, rows)
    return "\n".join(lines)


def cells_of(rows: Iterable[Row]) -> list[str]:
    present = {row.case.cell for row in rows}
    return [cell for cell in CELLS if cell in present]
