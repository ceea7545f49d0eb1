"""The figures that the project wants to reach, and whether a run reaches them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .summary import NEAR_LIMIT, Row, geometric_mean, growth, scaling

Choice = Callable[[Row], bool]


@dataclass(frozen=True)
class Verdict:
    goal: str
    threads: int
    value: float
    wanted: float
    count: int
    met: bool
    note: str = ""
    below: tuple[tuple[Row, float], ...] = ()  # the cases that miss it, and by themselves, even if the mean reaches it


@dataclass(frozen=True)
class Goal:
    """A least geometric mean over the chosen cases of one cell, with each number of threads."""

    name: str
    cell: str
    chosen: Choice
    against: str  # a peer, "best", or "limit"
    at_least: float
    threads: tuple[int, ...] = (1, 2)

    def value(self, row: Row) -> float | None:
        if self.against == "limit":
            return row.fraction
        return row.best_ratio if self.against == "best" else row.ratios.get(self.against)

    def verdict(self, rows: Iterable[Row], threads: int) -> Verdict | None:
        mine = [row for row in rows if row.threads == threads and row.case.cell == self.cell and self.chosen(row)]
        values = [(row, value) for row in mine if (value := self.value(row)) is not None]
        if not values:
            return None
        mean = geometric_mean([value for _, value in values])
        met = mean >= self.at_least
        below = tuple(
            sorted(((row, value) for row, value in values if value < self.at_least), key=lambda case: case[1])
        )
        near = sum(row.fraction >= NEAR_LIMIT for row, _ in below)
        note = f"{near} of {len(below)} below it are at {NEAR_LIMIT:g} of the limit or more" if near and not met else ""
        against = {"limit": "of the limit", "best": "best peer"}.get(self.against, self.against)
        name = f"{self.name}, {self.cell}: {against}"
        listed = () if self.against == "limit" else below  # every table has fractions of the limit
        return Verdict(name, threads, mean, self.at_least, len(values), met, note, listed)


def in_regime(name: str, low: int = 0, high: int = 1 << 30) -> Choice:
    return lambda row: row.regime == name and low <= row.case.hidden_size <= high and row.case.num_layers == 1


def shaped(mode: str, shape: str) -> Choice:
    return lambda row: row.case.mode == mode and row.case.shape == shape


def all_goals() -> list[Goal]:
    goals = []
    step: dict[str, dict[str, tuple[float, float, float]]] = {
        "torch": {"lstm": (70, 22, 14), "gru": (60, 20, 3.2), "rnn": (25, 20, 4)},
        "onnxruntime": {"lstm": (8, 3, 1.2), "gru": (9, 4.5, 1.5), "rnn": (6, 8, 1)},
    }
    for peer, cells in step.items():
        for cell, ratios in cells.items():
            for h, ratio in zip((32, 128, 512), ratios, strict=True):
                goals.append(Goal(f"step, H {h}", cell, in_regime("step", h, h), peer, ratio))

    def add(
        name: str, chosen: Choice, against: str, wanted: dict[str, float], threads: tuple[int, ...] = (1, 2)
    ) -> None:
        goals.extend(Goal(name, cell, chosen, against, ratio, threads) for cell, ratio in wanted.items())

    every = ("lstm", "gru", "rnn")
    sequence = in_regime("sequence, batch 1", 64, 1024)
    add("sequence, batch 1, H 64..1024", sequence, "torch", {"lstm": 1.9, "gru": 2.8, "rnn": 3})
    add("sequence, batch 1, H 64..1024", sequence, "best", dict.fromkeys(every, 1.15))
    reading = in_regime("sequence, batch 1", 256, 1024)
    add("sequence, batch 1, H 256..1024", reading, "limit", dict.fromkeys(every, 0.9))
    batch, large = in_regime("forward, large batch"), in_regime("training, large")
    add("forward, large batch", batch, "best", {"lstm": 1.04, "gru": 1.06, "rnn": 1.12})
    add("forward, large batch", batch, "limit", dict.fromkeys(every, 0.92), (1,))
    add("training, large", large, "torch", {"lstm": 1.03, "gru": 1.35, "rnn": 1.25})
    add("training, large", large, "limit", dict.fromkeys(every, 0.88))
    small, single = shaped("train", "50,32,64,128"), shaped("train", "100,1,32,64")
    add("training 50,32,64,128", small, "torch", {"lstm": 1.25, "gru": 2.8, "rnn": 3})
    add("training 100,1,32,64", single, "torch", {"lstm": 2.2, "gru": 25, "rnn": 13})
    add("training 100,1,32,64", single, "best", {"gru": 2.5, "rnn": 2.5})
    return goals


def verdicts(rows: Sequence[Row], mixed: Sequence[dict[str, Any]] = ()) -> list[Verdict]:
    """What was missed first, the furthest first."""
    found = []
    for goal in all_goals():
        for threads in sorted({row.threads for row in rows} & set(goal.threads)):
            verdict = goal.verdict(rows, threads)
            if verdict is not None:
                found.append(verdict)
    found += never_slower(rows) + on_cold_caches(rows) + of_threads(rows) + of_growth(rows)
    found += of_overhead(rows) + of_arithmetic(rows) + of_mixed(mixed)
    return sorted(found, key=lambda v: (v.met, v.value / v.wanted if v.wanted else 0.0))


def never_slower(rows: Sequence[Row]) -> list[Verdict]:
    found = []
    for threads in sorted({row.threads for row in rows}):
        mine = [row for row in rows if row.threads == threads and row.ratios]
        ratios = [min(row.ratios.values()) for row in mine]
        if ratios:
            worst = min(ratios)
            row, slower = mine[ratios.index(worst)], sum(ratio < 1 for ratio in ratios)
            note = f"{slower} slower; worst {row.case.key}, {row.best}"
            found.append(Verdict("every case: best peer", threads, worst, 1.0, len(ratios), worst >= 1, note))
    return found


def on_cold_caches(rows: Sequence[Row]) -> list[Verdict]:
    found = []
    for row in rows:
        if row.case.mode == "cold":
            for quantile, ratio in (("p50", row.ratio), ("p99", row.tail_ratio)):
                for peer in sorted({"torch", "onnxruntime"} & set(row.times)):
                    name = f"{row.case.key}, {quantile}: {peer}"
                    found.append(Verdict(name, row.threads, ratio(peer), 1.0, 1, ratio(peer) >= 1))
    return found


def of_threads(rows: Sequence[Row]) -> list[Verdict]:
    found = []
    all_scaling = scaling(rows)
    for threads in sorted({s.row.threads for s in all_scaling}):
        mine = [s for s in all_scaling if s.row.threads == threads]
        slowest = min(mine, key=lambda s: s.speedup)
        # Two runs of the same code differ by a few percent.
        name, met = "more threads, every case: one thread", slowest.speedup >= 0.97
        found.append(Verdict(name, threads, slowest.speedup, 1, len(mine), met, slowest.row.case.key))
        long = [s for s in mine if s.row.ours * s.speedup >= 1e-3]
        if long:
            mean, worst = geometric_mean([s.share for s in long]), min(long, key=lambda s: s.share)
            name = "more threads, calls of 1 ms and more: the limit's gain"
            note = f"worst {worst.share:.2f}, {worst.row.case.key}"
            found.append(Verdict(name, threads, mean, 0.9, len(long), mean >= 0.9, note))
    return found


def of_growth(rows: Sequence[Row]) -> list[Verdict]:
    """Turned round, so that a value below what is wanted is a miss here too: 2.1 over the cost of doubling."""
    return [
        Verdict(f"{g.curve}: 2.1 / cost", g.threads, 2.1 / g.worst, 1.0, 1, g.worst <= 2.1, f"{g.worst:.2f} at {g.at}")
        for g in growth(rows)
    ]


def of_overhead(rows: Sequence[Row]) -> list[Verdict]:
    found = []
    for row in rows:
        if row.case.group.startswith("overhead"):
            name, value = f"a step of {row.case.cell} with H 1: 0.7 us / time", 0.7e-6 / row.ours
            found.append(Verdict(name, row.threads, value, 1.0, 1, value >= 1, f"{row.ours * 1e6:.2f} us"))
    return found


def of_mixed(entries: Sequence[dict[str, Any]]) -> list[Verdict]:
    """Of loops beside another pool, with the backend that is used where nobody chooses."""
    found = []
    for partner in dict.fromkeys(entry["partner"] for entry in entries):
        mine = [e for e in entries if e["partner"] == partner and e["backend"] == "default" and "cost" in e]
        if mine:
            worst = max(mine, key=lambda e: float(e["cost"]))
            name, value = f"beside {partner}'s threads: 1.25 / cost", 1.25 / worst["cost"]
            note = f"{worst['cost']:.2f} at {worst['title']}"
            found.append(Verdict(name, worst["threads"], value, 1.0, len(mine), value >= 1, note))
    return found


def of_arithmetic(rows: Sequence[Row]) -> list[Verdict]:
    """What a small LSTM's step takes beyond one with H 1, beside its multiply-adds at the peak rate of one thread."""
    steps = [row for row in rows if row.threads == 1 and row.regime == "step" and row.case.cell == "lstm"]
    calls = [row.at_best_rate for row in steps if row.case.hidden_size == 1]
    wanted = {16: 0.33, 32: 0.5, 64: 0.44} if calls else {}
    found = []
    for row in steps:
        h, least = row.case.hidden_size, row.bound.at_peak
        if row.case.input_size == h in wanted:
            value = least / max(row.at_best_rate - min(calls), least)
            name = f"step, H {h}, lstm: of the FMA peak, without what a call costs"
            note = f"{row.fraction:.2f} of the limit, {row.bound.name}"
            found.append(Verdict(name, 1, value, wanted[h], 1, value >= wanted[h], note))
    return found
