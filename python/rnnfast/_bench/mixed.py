"""Living with another thread pool: a loop that alternates a library's matrix product with a call of rnnfast, on arrays
beside NumPy and on tensors beside PyTorch.

Both pools have the same number of threads. The loop is compared with the sum of its parts, each run alone in the same
process, with idle gaps before each, in which all pools go to sleep.
"""

from __future__ import annotations

import gc
import importlib
import statistics
import time
from collections.abc import Callable
from itertools import repeat
from typing import Any

import numpy as np

from . import cases
from .cases import Case
from .contestants import RnnFast, RnnFastTorch, describe_process

BACKENDS = ("", "openmp", "pool")  # "" is the default
PARTNERS = ("numpy", "torch")
PIPELINES = {f"{partner}+{backend or 'default'}": (partner, backend) for partner in PARTNERS for backend in BACKENDS}

Run = Callable[[int], None]


class Pipeline:
    """The worker of one pair of partner and backend."""

    def __init__(self, name: str, threads: int) -> None:
        self.partner, backend = PIPELINES[name]
        self.ours = RnnFastTorch(threads) if self.partner == "torch" else RnnFast(threads)
        self.torch: Any = importlib.import_module("torch") if self.partner == "torch" else None
        core: Any = importlib.import_module("rnnfast._core")
        core.set_backend(backend)
        shared = not backend and self.torch is not None and core.shares_openmp("libtorch_cpu.so")
        self.backend = "openmp" if shared else core.get_backend()

    def about(self) -> dict[str, Any]:
        version = np.__version__ if self.torch is None else self.torch.__version__
        return {"version": str(version), "backend": self.backend, "python": describe_process()}

    def product(self, size: int) -> Callable[[], object]:
        if self.torch is None:
            a, out = np.ones((size, size), np.float32), np.empty((size, size), np.float32)
            return lambda: np.matmul(a, a, out=out)
        t = self.torch.ones(size, size)
        return lambda: self.torch.mm(t, t)

    def mixed(self, size: int, case: dict[str, Any], seconds: float, rounds: int, gap: float) -> dict[str, Any]:
        """Medians over the rounds, in seconds: of the product alone, of rnnfast's call alone, and of the pair."""
        layer = Case.from_json(case)
        ours, product = self.ours.prepare(layer, cases.arrays(layer)).run, self.product(size)

        def run_product(n: int) -> None:
            for _ in repeat(None, n):
                product()

        def run_pair(n: int) -> None:
            for _ in repeat(None, n):
                product()
                ours(1)

        runs: dict[str, Run] = {"product": run_product, "ours": ours, "pair": run_pair}
        found: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(rounds):
            for name, run in runs.items():
                gc.collect()
                time.sleep(gap)
                found[name].append(median_call(run, seconds))
        result: dict[str, Any] = {name: statistics.median(times) for name, times in found.items()}
        result["cost"] = statistics.median(
            pair / (a + b) for a, b, pair in zip(found["product"], found["ours"], found["pair"], strict=True)
        )
        return result


def median_call(run: Run, seconds: float) -> float:
    """Of single calls for about so long, without the first fifth, in which pools wake."""
    samples: list[float] = []
    start = time.perf_counter()
    while not samples or time.perf_counter() < start + seconds:
        before = time.perf_counter()
        run(1)
        samples.append(time.perf_counter() - before)
    return statistics.median(samples[len(samples) // 5 :])
