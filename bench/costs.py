"""What odd sizes, unaligned arrays, denormal numbers and recomputation cost.

    python bench/costs.py

Each line is a ratio of two calls that take turns, the median over the rounds, on one thread: forward of a frozen layer
and training (forward and backward), batches of 1 and 16, 50 steps.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import rnnfast as rf

Call = Callable[[], Any]
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


def forward(layer: Any, x: np.ndarray[Any, Any], hx: Any = None) -> Call:
    frozen = layer.freeze()
    return lambda: frozen(x, hx)


def training(layer: Any, x: np.ndarray[Any, Any], hx: Any = None) -> Call:
    def call() -> None:
        output, _, tape = layer.forward(x, hx)
        layer.backward(tape, output)

    return call


def inputs(batch: int, size: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).standard_normal((50, batch, size), dtype=np.float32)


def unaligned(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
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


def main() -> None:
    rf.set_num_threads(1)
    for odd, even in ((33, 48), (65, 80), (127, 128)):
        found = {}
        for cell in CELLS:
            for batch in (1, 16):
                for mode in (forward, training):
                    key = f"{cell.__name__} {mode.__name__}, batch {batch}"
                    small, large = (mode(cell(size, size, seed=0), inputs(batch, size)) for size in (odd, even))
                    found[key] = ratio(small, large)
        show(f"{odd} units, over {even}", found)
    kinds = ("x unaligned", "x denormal", "x and state denormal", "recompute=1", "recompute=4")
    results: dict[str, dict[str, float]] = {kind: {} for kind in kinds}
    for cell in CELLS:
        for batch in (1, 16):
            x, layer = inputs(batch, 64), cell(64, 128, seed=0)
            tiny, h = np.full_like(x, 1e-40), np.full((1, batch, 128), 1e-40, np.float32)
            hx = (h, h) if cell is rf.LSTM else h
            for mode in (forward, training):
                key, plain = f"{cell.__name__} {mode.__name__}, batch {batch}", mode(layer, x)
                results["x unaligned"][key] = ratio(mode(layer, unaligned(x)), plain)
                results["x denormal"][key] = ratio(mode(layer, tiny), plain)
                results["x and state denormal"][key] = ratio(mode(layer, tiny, hx), plain)
            for segments in (1, 4):
                again = training(cell(64, 128, seed=0, recompute=segments), x)
                results[f"recompute={segments}"][f"{cell.__name__}, batch {batch}"] = ratio(again, training(layer, x))
    for kind in kinds:
        show(kind, results[kind])


if __name__ == "__main__":
    main()
