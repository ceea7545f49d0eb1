"""From the recorded numbers to ratios, fractions of limits, means and losses; everything that reports are made of."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .cases import CELLS, REGIMES, Case, regime
from .contestants import OURS
from .limits import MOMENT_BYTES, Bound, Limits, sizes_read

NEAR_LIMIT = 0.9  # a fraction of the limit from which on the machine is the answer
BUSY = 0.1  # cores used by other programs, from which on a measurement is doubtful
SLOWED = 0.75  # a share of the run's best rate of multiply-adds, below which a measurement is doubtful
DRAWN = "drawn: "  # before the regime of a random shape


@dataclass(frozen=True, eq=False)
class Row:
    """One case with one number of threads. A ratio is another's time over ours: above 1 we are faster."""

    case: Case
    threads: int
    times: dict[str, dict[str, Any]]
    failed: dict[str, str]
    bound: Bound
    errors: dict[str, float]
    bitwise: bool
    others: float
    bounds: Sequence[Bound] = ()  # with the rates that were measured beside each of our turns

    @property
    def regime(self) -> str:
        """Random shapes are a kind of their own: no mean and no goal takes them together with those of a grid."""
        return DRAWN * ("random" in self.case.group) + regime(self.case)

    @property
    def ours(self) -> float:
        return float(self.times["rnnfast"]["median"])

    @property
    def at_best_rate(self) -> float:
        """What it would take at the run's best rate of multiply-adds: minutes lie between the cases of a curve."""
        if not self.bounds:
            return self.ours
        turns = zip(self.bounds, self.times["rnnfast"]["rounds"], strict=True)
        return float(statistics.median(s / bound.at_peak for bound, s in turns)) * self.bound.at_peak

    @property
    def rate_then(self) -> float:
        """The rate of multiply-adds beside its turns over the run's best: a half if two threads shared one core."""
        if not self.bounds:
            return 1.0
        return self.bound.at_peak / statistics.median(bound.at_peak for bound in self.bounds)

    def ratio(self, name: str) -> float:
        """The median over the rounds: in each, contestants run within a second, so that drift cancels."""
        mine, theirs = self.times["rnnfast"]["rounds"], self.times[name]["rounds"]
        return float(statistics.median(b / a for a, b in zip(mine, theirs, strict=False)))

    def tail_ratio(self, name: str) -> float:
        return float(self.times[name]["p99"] / self.times["rnnfast"]["p99"])

    @cached_property
    def ratios(self) -> dict[str, float]:
        """To each peer that took part."""
        return {name: self.ratio(name) for name in self.times if name not in OURS}

    @property
    def best(self) -> str | None:
        """The fastest peer."""
        return min(self.ratios, key=self.ratios.__getitem__) if self.ratios else None

    @property
    def best_ratio(self) -> float | None:
        return min(self.ratios.values()) if self.ratios else None

    @property
    def rate(self) -> float:
        """Operations per second."""
        return self.case.operations / self.ours

    @property
    def fraction(self) -> float:
        """Of the limit of the moment: the least time of a turn beside the best rates of then, the median of the turns.

        Older records, and reading more than was read then, have the best rates of the whole run alone, to which the
        least time of all belongs.
        """
        far = self.bound.name == "reading" and max(sizes_read(self.case, self.threads)) > MOMENT_BYTES
        if not self.bounds or far:
            return self.bound.seconds / float(self.times["rnnfast"]["min"])
        turns = zip(self.bounds, self.times["rnnfast"]["best"], strict=True)
        return float(statistics.median(bound.seconds / least for bound, least in turns))


def limits_of(document: dict[str, Any]) -> dict[int, Limits]:
    return {int(threads): Limits(int(threads), found) for threads, found in document["limits"].items()}


def rows_of(document: dict[str, Any]) -> list[Row]:
    limits = limits_of(document)
    rows = []
    for entry in document["results"]:
        if "rnnfast" not in entry["times"]:
            continue
        case, limit = Case.from_json(entry["case"]), limits[entry["threads"]]
        rows.append(
            Row(
                case,
                entry["threads"],
                entry["times"],
                entry["failed"],
                limit.bound(case),
                entry["errors"],
                entry["bitwise"],
                entry["others"],
                [limit.at(moment).bound(case) for moment in entry.get("moments", [])],
            )
        )
    return rows


def failures_of(document: dict[str, Any]) -> list[str]:
    """Who could not take part, in what, and why."""
    found = [f"{name}: {why}" for name, why in document["absent"].items()]
    for entry in document["results"]:
        case = Case.from_json(entry["case"])
        found += [f"{name}, {case.key}, {entry['threads']} threads: {why}" for name, why in entry["failed"].items()]
        if not entry["bitwise"]:
            found.append(f"rnnfast, {case.key}: results depend on the number of threads or on freezing")
    return found


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(statistics.fmean(math.log(value) for value in values))


@dataclass(frozen=True)
class Mean:
    """Geometric means over the cases of one regime and cell with one number of threads."""

    regime: str
    cell: str
    threads: int
    count: int
    best: float | None
    peers: dict[str, float]
    fraction: float
    worst: Row | None  # the case with the least ratio to its best peer


def by_regime(rows: Iterable[Row]) -> dict[tuple[str, str, int], list[Row]]:
    groups: dict[tuple[str, str, int], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.regime, row.case.cell, row.threads].append(row)
    order = {name: number for number, name in enumerate([*REGIMES, *(DRAWN + name for name in REGIMES)])}
    return dict(
        sorted(groups.items(), key=lambda item: (item[0][2], order.get(item[0][0], 99), CELLS.index(item[0][1])))
    )


def means(rows: Iterable[Row]) -> list[Mean]:
    found = []
    for (name, cell, threads), group in by_regime(rows).items():
        best = [row.best_ratio for row in group if row.best_ratio is not None]
        peers = {peer for row in group for peer in row.ratios}
        found.append(
            Mean(
                name,
                cell,
                threads,
                len(group),
                geometric_mean(best) if best else None,
                {p: geometric_mean([row.ratios[p] for row in group if p in row.ratios]) for p in sorted(peers)},
                geometric_mean([row.fraction for row in group]),
                min((row for row in group if row.ratios), key=lambda row: row.best_ratio or 0.0, default=None),
            )
        )
    return found


def losses(rows: Iterable[Row]) -> list[Row]:
    """Where a peer is faster, the worst first."""
    return by_ratio(row for row in rows if row.best_ratio is not None and row.best_ratio < 1)


def by_ratio(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: row.best_ratio or math.inf)


@dataclass(frozen=True)
class Scaling:
    """What more threads give, beside what they give to the limit itself."""

    row: Row  # with more threads
    speedup: float
    limit: float

    @property
    def share(self) -> float:
        return self.speedup / self.limit


def scaling(rows: Sequence[Row]) -> list[Scaling]:
    single = {row.case.key: row for row in rows if row.threads == 1}
    found = []
    for row in rows:
        if row.threads > 1 and row.case.key in single:
            one = single[row.case.key]
            pairs = zip(one.times["rnnfast"]["rounds"], row.times["rnnfast"]["rounds"], strict=False)
            speedup = statistics.median(a / b for a, b in pairs)
            bounds = list(zip(one.bounds, row.bounds, strict=False)) or [(one.bound, row.bound)]
            found.append(Scaling(row, speedup, statistics.median(a.seconds / b.seconds for a, b in bounds)))
    return sorted(found, key=lambda s: s.share)


@dataclass(frozen=True)
class Growth:
    """How much a call costs when T or B has doubled, along one curve."""

    curve: str
    threads: int
    worst: float
    at: str


def growth(rows: Iterable[Row]) -> list[Growth]:
    curves: dict[tuple[str, str, int], list[Row]] = defaultdict(list)
    for row in rows:
        for group in {"steps", "batch"} & set(row.case.group.split("+")):
            curves[f"{row.case.cell} {row.case.mode}", group, row.threads].append(row)
    found = []
    for (name, group, threads), curve in curves.items():
        sized = sorted(
            (row.case.steps if group == "steps" else row.case.batch, row.at_best_rate, row.case.shape) for row in curve
        )
        pairs = [
            (after / before, shape)
            for (small, before, _), (large, after, shape) in zip(sized, sized[1:], strict=False)
            if large == 2 * small
        ]
        if pairs:
            found.append(Growth(f"{name}, {'T' if group == 'steps' else 'B'} doubled", threads, *max(pairs)))
    return found


def busy(rows: Sequence[Row]) -> int:
    """How many cases were measured while other programs used the machine."""
    return sum(row.others > BUSY for row in rows)


def slowed(rows: Sequence[Row]) -> int:
    """How many cases were measured while the machine was much slower than at its best."""
    return sum(row.rate_then < SLOWED for row in rows)


def merged(documents: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Several runs of one machine as one document; what was measured twice counts once, as in the first."""
    first = documents[0]
    if any(document["machine"]["cpu"] != first["machine"]["cpu"] for document in documents):
        raise ValueError("the runs are of different machines")
    whole: dict[str, Any] = {**first, "commands": [document["command"] for document in documents]}
    whole |= {"contestants": {}, "absent": {}, "limits": {}, "mixed": [], "results": []}
    whole["left_out"] = sum(document["left_out"] for document in documents)
    seen: set[tuple[str, int]] = set()
    for document in documents:
        whole["contestants"] |= document["contestants"]
        whole["absent"] |= document["absent"]
        whole["mixed"] += document["mixed"]
        for threads, found in document["limits"].items():
            whole["limits"][threads] = whole["limits"].get(threads, []) + found
        for entry in document["results"]:
            key = (Case.from_json(entry["case"]).key, entry["threads"])
            if key not in seen:
                seen.add(key)
                whole["results"].append(entry)
    return whole
