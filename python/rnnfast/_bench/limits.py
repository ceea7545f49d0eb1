"""What the machine allows: arithmetic in registers, reading from each level of memory, and what follows for a case."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .cases import GATES, Case

SIZES = [1 << k for k in range(14, 29)]  # bytes: 16 KiB to 256 MiB
QUICK_SIZES = SIZES[::2]
FLOAT = 4
BURSTS = 5
LARGE, LARGE_BURSTS = 32 << 20, 2  # bytes; filling such buffers takes longer than reading them
MOMENT_SECONDS = 2e-3  # beside a turn: for one rate, with one instruction set
MOMENT_BYTES = 4 << 20  # of the largest buffer then


def cache_sizes() -> dict[str, int]:
    """Bytes of the data caches that one core sees, where the system tells."""
    sizes: dict[str, int] = {}
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            level, kind = (index / "level").read_text().strip(), (index / "type").read_text().strip()
            size = (index / "size").read_text().strip()
        except OSError:
            continue
        if kind != "Instruction":
            unit = {"K": 1 << 10, "M": 1 << 20}.get(size[-1], 1)
            sizes[f"L{level}"] = int(size.rstrip("KM")) * unit
    return dict(sorted(sizes.items()))


def measure(threads: int, seconds: float, sizes: list[int]) -> dict[str, Any]:
    """Runs in a process of rnnfast's: {"peak": operations per second, "read": {bytes per thread: bytes per second}}."""
    from rnnfast import _core

    # The widest instruction set is not always the one that reads a cache fastest, and the limit is the machine's.
    isas = _core.available_isas()[:2]

    # Short bursts: another program that is given the core in between spoils one of them, not all.
    def best(rate: Callable[[str, float], float], large: bool = False) -> float:
        chosen, bursts = (isas[:1], LARGE_BURSTS) if large else (isas, BURSTS)
        return max(rate(isa, seconds / BURSTS) for isa in chosen for _ in range(bursts))

    peak = best(lambda isa, burst: _core.measure_peak(isa, "float32", threads, burst))
    read = {}
    for size in sizes:
        rate = best(lambda isa, burst, n=size: _core.measure_read(isa, n, threads, burst), size >= LARGE)  # type: ignore[misc]
        read[str(size)] = rate
    return {"peak": peak, "read": read}


@dataclass(frozen=True)
class Bound:
    """The least time that a case can take: `seconds`, of which `products` are bound by arithmetic.

    If weights were read in no time it would be `at_peak`.
    """

    seconds: float
    products: float
    at_peak: float

    @property
    def name(self) -> str:
        return "FMA" if self.products > 0.5 * self.seconds else "reading"


@dataclass(frozen=True)
class Part:
    """A matrix product that is done so many times, and the weights that it reads each time."""

    repeats: int
    operations: float
    bytes: float
    resident: float  # the size of what is read again and again, which says from where


def parts(case: Case) -> Iterator[Part]:
    """The matrix products of a case, and nothing else.

    The input's products take all steps at once, so they read their weights once. The recurrent ones read theirs at
    every step, and backward has one more of that kind. One step alone reads all its weights, of all layers.
    """
    rows, steps, batch, hidden = GATES[case.cell] * case.hidden_size, case.steps, case.batch, case.hidden_size
    for width in case.widths():
        recurrent, given = float(FLOAT * rows * hidden), float(FLOAT * rows * width)
        if steps == 1:
            yield Part(1, 2.0 * batch * rows * (width + hidden), given + recurrent, case.weight_bytes)
        else:
            yield Part(1, 2.0 * steps * batch * rows * width, given, given)
            yield Part(steps, 2.0 * batch * rows * hidden, recurrent, recurrent)
        if case.mode == "train":
            yield Part(steps, 2.0 * batch * rows * hidden, recurrent, recurrent)
            yield Part(1, 2.0 * steps * batch * rows * (2 * width + hidden), 0.0, 0.0)


def moment_sizes(case: Case, threads: int) -> list[int]:
    """What each thread reads again and again, as far as a buffer of that size is filled in little time."""
    return sorted(size for size in sizes_read(case, threads) if size <= MOMENT_BYTES)


def sizes_read(case: Case, threads: int) -> set[int]:
    return {int(part.resident / threads) for part in parts(case) if part.bytes}


class Limits:
    """The best of all measurements of one run with one number of threads.

    Others who use the machine can only make a measurement worse, so the best is nearest to the truth.
    """

    def __init__(self, threads: int, measurements: list[dict[str, Any]]) -> None:
        self.threads = threads
        self.peak = max(m["peak"] for m in measurements)
        self.read: dict[int, float] = {}
        for size, rate in itertools.chain.from_iterable(m["read"].items() for m in measurements):
            self.read[int(size)] = max(rate, self.read.get(int(size), 0.0))

    def rate(self, size: float) -> float:
        """Bytes per second of all threads together, reading `size` bytes in equal shares again and again."""
        known = sorted(self.read)
        share = max(size / self.threads, 1.0)
        rates = np.log([self.read[k] for k in known])
        return float(np.exp(np.interp(np.log(share), np.log(known), rates)))

    def levels(self) -> dict[str, float]:
        """Rates in the middle of each cache, and of memory; "L1", "L2", "L3", "memory"."""
        sizes = cache_sizes() or {"L1": 32 << 10, "L2": 1 << 20, "L3": 32 << 20}
        below = 0
        found: dict[str, float] = {}
        for level, size in sizes.items():
            found[level] = self.rate(self.threads * max(size // 2, 2 * below))
            below = size
        found["memory"] = self.read[max(self.read)]
        return found

    def at(self, moment: dict[str, Any]) -> Limits:
        """The same with the rates of one moment, as far as they were measured then."""
        then = {int(size): rate for size, rate in moment["read"].items()}
        return Limits(self.threads, [{"peak": moment["peak"], "read": {**self.read, **then}}])

    def bound(self, case: Case) -> Bound:
        total = arithmetic = at_peak = 0.0
        for part in parts(case):
            compute = part.operations / self.peak
            reading = part.bytes / self.rate(part.resident) if part.bytes else 0.0
            total += part.repeats * max(compute, reading)
            at_peak += part.repeats * compute
            arithmetic += part.repeats * compute if compute >= reading else 0.0
        return Bound(total, arithmetic, at_peak)
