"""The error of the elementary functions in ulp: over all 2^32 float32 inputs, or over many random float64 ones.

    python bench/accuracy.py --isa x86_64_v4                     # all of float32: a few minutes on one core
    python bench/accuracy.py --isa x86_64_v4 --dtype float64     # 10^8 random float64 inputs

Float32 is compared with NumPy's float64 functions, float64 with the C library's long double, where that has more bits
than a double. An ulp is that of the exact result. Inputs whose exact result is not a normal number, or which the
function clamps because e^x would overflow, are outside the domain: there the script says between which values the
results lie. The digest is that of all results in order, NaN of any payload counted as one: instruction sets with the
same digest agree on every input, bit for bit.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import rnnfast as rf
from rnnfast import _core

BLOCK = 1 << 15  # elements at a time: all arrays of a block fit a private cache
TASK = 1 << 24  # elements between two signs of progress


@dataclass(frozen=True)
class Function:
    name: str
    exact: Callable[[np.ndarray], np.ndarray]
    domain: dict[str, tuple[float, float]]  # by dtype: x outside is clamped, or gives a result that is not normal
    through_zero: bool  # f(x) ~ x near 0: a denormal x has a denormal result


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


# The bounds of exp are csrc/kernel/math.h's clamps.
EXP = {"float32": (-87.3, 88.3), "float64": (-708.3, 709.4)}
FUNCTIONS = [
    Function("exp", np.exp, EXP, False),
    Function("expm1", np.expm1, {dtype: (-np.inf, high) for dtype, (_, high) in EXP.items()}, True),
    Function("sigmoid", sigmoid, {dtype: (low, np.inf) for dtype, (low, _) in EXP.items()}, False),
    Function("tanh", np.tanh, {"float32": (-np.inf, np.inf), "float64": (-np.inf, np.inf)}, True),
]


@dataclass
class Report:
    """What was seen of one function over some inputs."""

    ulp: float = -1.0
    at: float = 0.0
    got: float = 0.0
    want: float = 0.0
    outside: dict[str, tuple[float, float]] = field(default_factory=dict)  # side of the domain: least, greatest result
    nan_kept: bool = True
    checksums: list[int] = field(default_factory=list)

    def add(self, other: Report) -> None:
        if other.ulp > self.ulp:
            self.ulp, self.at, self.got, self.want = other.ulp, other.at, other.got, other.want
        for side, (least, greatest) in other.outside.items():
            low, high = self.outside.get(side, (np.inf, -np.inf))
            self.outside[side] = min(low, least), max(high, greatest)
        self.nan_kept &= other.nan_kept
        self.checksums += other.checksums

    def digest(self) -> str:
        return hashlib.sha256(np.array(self.checksums, dtype="<u4").tobytes()).hexdigest()[:16]


def error_in_ulp(got: np.ndarray, want: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """``want`` has more bits than ``got``, which is of ``dtype``."""
    kind = np.finfo(dtype)
    if want.dtype == np.float64:  # the power of two at or below |want|, by clearing its mantissa
        power = (want.view(np.int64) & np.int64(0x7FF0000000000000)).view(np.float64)
    else:
        power = np.ldexp(np.ones_like(want), np.frexp(want)[1] - 1)
    return np.abs(got.astype(want.dtype) - want) / np.maximum(power, float(kind.smallest_normal)) / float(kind.eps)


def measure(isa: str, function: Function, x: np.ndarray) -> Report:
    """One block."""
    report = Report()
    got = np.empty_like(x)
    _core.apply(isa, function.name, x, got)
    x_wide = x.astype(np.float64 if x.dtype == np.float32 else np.longdouble)
    low, high = function.domain[x.dtype.name]
    # Zeros are looked at with what is outside, where one sees that the result is one.
    inside = (x_wide >= low) & (x_wide <= high) & np.isfinite(x)
    if function.through_zero:
        inside &= np.abs(x_wide) >= float(np.finfo(x.dtype).smallest_normal)
    if not inside.all():
        nan = np.isnan(x)
        report.nan_kept = bool((np.isnan(got) == nan).all())
        below, above = x_wide < low, x_wide > high
        sides = {"below": below, "above": above, "tiny, inf": ~(inside | below | above | nan)}
        for side, where in sides.items():
            if where.any():
                report.outside[side] = float(got[where].min()), float(got[where].max())
        got[nan] = np.nan  # one payload
    report.checksums.append(zlib.crc32(got))
    error = error_in_ulp(got, function.exact(x_wide), x.dtype)
    if not inside.all():
        error[~inside] = -1.0
    worst = int(np.argmax(error))
    report.ulp, report.at, report.got = float(error[worst]), float(x[worst]), float(got[worst])
    report.want = float(function.exact(x_wide[worst : worst + 1])[0])
    return report


def all_float32(task: int) -> Iterator[np.ndarray]:
    for start in range(task * TASK, (task + 1) * TASK, BLOCK):
        yield np.arange(start, start + BLOCK, dtype=np.uint32).view(np.float32)


def random_float64(task: int) -> Iterator[np.ndarray]:
    """Half of it uniform where the functions are curved, half of every magnitude that matters."""
    rng = np.random.default_rng(task)
    for _ in range(TASK // BLOCK):
        half = BLOCK // 2
        magnitudes = np.ldexp(rng.uniform(1, 2, half), rng.integers(-60, 11, half))
        yield np.concatenate([rng.uniform(-45, 45, half), np.copysign(magnitudes, rng.uniform(-1, 1, half))])


def run_task(arguments: tuple[str, str, str, int]) -> Report:
    isa, name, dtype, task = arguments
    function = next(f for f in FUNCTIONS if f.name == name)
    report = Report()
    # Overflow of what is outside the domain, and inf - inf there, mean nothing.
    with np.errstate(all="ignore"):
        for x in (all_float32 if dtype == "float32" else random_float64)(task):
            report.add(measure(isa, function, x))
    return report


def progress(reports: Iterator[Report], total: int, name: str) -> Iterator[Report]:
    try:
        from tqdm import tqdm
    except ImportError:
        return reports
    return iter(tqdm(reports, total=total, desc=name, leave=False, unit_scale=TASK, unit=" values"))


def main() -> None:
    names = [function.name for function in FUNCTIONS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", default=rf.isa(), choices=rf.available_isas(), help="default: %(default)s")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    parser.add_argument("--functions", nargs="+", default=names, choices=names)
    parser.add_argument("--samples", type=float, default=1e8, help="of float64; default: 1e8")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="default: %(default)s")
    options = parser.parse_args()
    if options.dtype == "float64" and np.finfo(np.longdouble).nmant <= 52:
        parser.error("long double has no more bits than a double here")
    tasks = 2**32 // TASK if options.dtype == "float32" else -(-int(options.samples) // TASK)

    print(f"{options.isa} {options.dtype}: {tasks * TASK:,} inputs of each function")
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for name in options.functions:
            start = time.perf_counter()
            arguments = [(options.isa, name, options.dtype, task) for task in range(tasks)]
            report = Report()
            for part in progress(pool.imap(run_task, arguments), tasks, name):
                report.add(part)
            print(
                f"{name:8} max {report.ulp:.4f} ulp at {report.at.hex()} = {report.at:.9g} "
                f"(got {report.got:.17g}, exact {report.want:.17g}); digest {report.digest()}; "
                f"NaN for NaN alone: {'yes' if report.nan_kept else 'NO'}; {time.perf_counter() - start:.0f} s"
            )
            for side, (least, greatest) in report.outside.items():
                print(f"{'':8} outside the domain ({side}): results from {least:.9g} to {greatest:.9g}", flush=True)


if __name__ == "__main__":
    main()
