"""What odd sizes, unaligned arrays, denormal numbers and recomputation cost.

    python bench/costs.py

Each line is a ratio of two calls that take turns, the median over the rounds: forward of a frozen layer, training
(forward and backward) and steps of a stream, batches of 1 and 16, with one thread and with two. RNNFAST_ISA chooses the
instruction set.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import rnnfast as rf
from rnnfast._bench.runner import machine

Call = Callable[[], Any]
Array = np.ndarray[Any, Any]
CELLS = (rf.RNN, rf.LSTM, rf.GRU)
ROUNDS, SECONDS = 15, 0.01


def ratio(a: Call, b: Call) -> float:
    """The time of a over that of b."""
    counts = []
    for call in (a, b):
        call()
        start = time.perf_counter()
        call()
        counts.append(max(1, int(SECONDS / (time.perf_counter() - start))))

    def timed(call: Call, count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            call()
        return (time.perf_counter() - start) / count

    return statistics.median(timed(a, counts[0]) / timed(b, counts[1]) for _ in range(ROUNDS))


def forward(layer: Any, x: Array, hx: Any = None, out: Array | None = None, d: Array | None = None) -> Call:
    frozen = layer.freeze()
    return lambda: frozen(x, hx)


def training(layer: Any, x: Array, hx: Any = None, out: Array | None = None, d: Array | None = None) -> Call:
    def call() -> None:
        output, _, tape = layer.forward(x, hx)
        layer.backward(tape, output if d is None else d)

    return call


def steps(layer: Any, x: Array, hx: Any = None, out: Array | None = None, d: Array | None = None) -> Call:
    """Of all of x, from hx on."""
    stream = layer.freeze().stream(x.shape[1])
    rows = list(x)
    to = None if out is None else out[0]

    def call() -> None:
        if hx is not None:
            stream.state = hx
        for row in rows:
            stream.step(row, out=to)

    return call


MODES = (forward, training, steps)


def inputs(batch: int, size: int, count: int = 50) -> Array:
    return np.random.default_rng(0).standard_normal((count, batch, size), dtype=np.float32)


def unaligned(array: Array) -> Array:
    """A copy four bytes beyond a multiple of 64."""
    memory = np.empty(array.nbytes + 128, np.uint8)
    start = -memory.ctypes.data % 64 + 4
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def show(name: str, found: dict[str, float]) -> None:
    worst = max(found, key=lambda key: found[key])
    mean = statistics.geometric_mean(found.values())
    print(f"{name:<22} {mean:5.2f}   worst {found[worst]:.2f}, {worst}", flush=True)


def odd_sizes() -> None:
    for odd, even in ((33, 48), (65, 80), (127, 128)):
        found = {}
        for cell, batch, mode in itertools.product(CELLS, (1, 16), MODES):
            small, large = (mode(cell(size, size, seed=0), inputs(batch, size)) for size in (odd, even))
            found[f"{cell.__name__} {mode.__name__}, batch {batch}"] = ratio(small, large)
        show(f"{odd} units, over {even}", found)


def values_and_places() -> None:
    kinds = ("x unaligned", "all arrays unaligned", "x denormal", "x and state denormal", "d output denormal too")
    results: dict[str, dict[str, float]] = {kind: {} for kind in kinds}
    for cell, batch in itertools.product(CELLS, (1, 16)):
        x, layer = inputs(batch, 64), cell(64, 128, seed=0)
        output, state, _ = layer.forward(x)
        tiny, h, d = (np.full_like(a, 1e-40) for a in (x, output[:1], output))
        odd_h, odd = unaligned(np.zeros_like(h)), [unaligned(a) for a in (x, output, output)]
        hx, odd_hx = ((h, h), (odd_h, odd_h)) if isinstance(state, tuple) else (h, odd_h)
        for mode in MODES:
            key, plain = f"{cell.__name__} {mode.__name__}, batch {batch}", mode(layer, x)
            results["x unaligned"][key] = ratio(mode(layer, odd[0]), plain)
            results["all arrays unaligned"][key] = ratio(
                mode(layer, odd[0], odd_hx, *odd[1:]), mode(layer, x, None, output, output)
            )
            results["x denormal"][key] = ratio(mode(layer, tiny), plain)
            results["x and state denormal"][key] = ratio(mode(layer, tiny, hx), plain)
            if mode is training:
                results["d output denormal too"][key] = ratio(mode(layer, tiny, hx, None, d), plain)
    for kind in kinds:
        show(kind, results[kind])


def recomputation() -> None:
    for segments in (1, 4):
        found = {}
        for cell, (count, batch) in itertools.product(CELLS, ((768, 1), (48, 16), (48, 64))):
            x = inputs(batch, 64, count)  # of 4 or more blocks of 192 rows, so that there are as many segments
            again, once = (training(cell(64, 128, seed=0, recompute=n), x) for n in (segments, None))
            found[f"{cell.__name__} {count} steps, batch {batch}"] = ratio(again, once)
        show(f"recompute={segments}", found)


def main() -> None:
    print(f"{machine()['cpu']}, {rf.isa()}")
    for threads in (1, 2):
        rf.set_num_threads(threads)
        print(f"{threads} thread{'s' if threads > 1 else ''}")
        odd_sizes()
        values_and_places()
        recomputation()


if __name__ == "__main__":
    main()
