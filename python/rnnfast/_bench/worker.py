"""The process of one contestant: reads commands as lines of JSON, answers each with one line.

It is started by path, as `python -c BOOTSTRAP directory name threads`, so that a library may live in an environment of
its own, which has NumPy but not rnnfast, and so that rnnfast's threads are in no process but its own.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, TextIO

import numpy as np

from . import limits, mixed
from .cases import Array, Case
from .contestants import CONTESTANTS, Contestant, Prepared, describe_process

BATCH_SECONDS = 2e-4  # calls are timed in batches that last about as long, so that the clock costs nothing
COLD_PERIOD = 0.010
COLD_BYTES = 64 << 20

BOOTSTRAP = """
import importlib.util, sys
directory = sys.argv[1]
spec = importlib.util.spec_from_file_location("rnnfast_bench", directory + "/__init__.py",
                                              submodule_search_locations=[directory])
sys.modules["rnnfast_bench"] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
from rnnfast_bench import worker
worker.main(sys.argv[2], int(sys.argv[3]))
"""


class Worker:
    def __init__(self, name: str, threads: int) -> None:
        self.threads = threads
        self.contestant: Contestant = CONTESTANTS[name](threads)
        self.prepared: Prepared | None = None
        self.batch = 1

    def about(self) -> dict[str, Any]:
        return {
            "version": self.contestant.version,
            "modes": self.contestant.modes,
            "python": describe_process(),
        }

    def prepare(self, case: dict[str, Any], arrays: str, results: str) -> dict[str, Any]:
        """Builds the case and writes its results, for comparison."""
        self.prepared = None  # its memory goes before the next one is built
        with np.load(arrays) as file:
            shared: dict[str, Array] = dict(file)
        self.prepared = self.contestant.prepare(Case.from_json(case), shared)
        self.batch = 1
        np.savez(results, **self.prepared.results())  # type: ignore[arg-type]
        return {}

    @property
    def run(self) -> Callable[[int], None]:
        if self.prepared is None:
            raise RuntimeError("nothing is prepared")
        return self.prepared.run

    def time(self, seconds: float) -> dict[str, Any]:
        """Seconds per call, of batches of calls, for about so long; at least one."""
        warm = self.calibrated(seconds)
        samples: list[float] = []
        end = time.perf_counter() + seconds - warm
        while not samples or time.perf_counter() < end:
            samples.append(self.once(self.batch))
        return {"samples": samples, "batch": self.batch}

    def calibrated(self, seconds: float) -> float:
        """Warms up what an idle gap has cooled down, and finds the size of a batch. Returns the seconds it took."""
        start = time.perf_counter()
        self.batch = max(1, self.batch // 4)
        while True:
            per_call = self.once(self.batch)
            spent = time.perf_counter() - start
            if per_call * self.batch >= BATCH_SECONDS:
                if spent >= seconds / 5:
                    return spent
            else:
                self.batch *= 2

    def once(self, n: int) -> float:
        run = self.run
        start = time.perf_counter()
        run(n)
        return (time.perf_counter() - start) / n

    def cold(self, calls: int) -> dict[str, Any]:
        """Seconds of single calls, one per period, with more memory read in between than the caches hold."""
        memory = np.ones(COLD_BYTES // 4, np.float32)
        samples = []
        tick = time.perf_counter()
        for _ in range(calls):
            memory.sum()
            tick += COLD_PERIOD
            time.sleep(max(0.0, tick - time.perf_counter()))
            samples.append(self.once(1))
        return {"samples": samples, "batch": 1}

    def limits(self, seconds: float, sizes: list[int]) -> dict[str, Any]:
        return limits.measure(self.threads, seconds, sizes)


def answer(worker: Any, line: str) -> dict[str, Any]:
    command = json.loads(line)
    try:
        reply: dict[str, Any] = getattr(worker, command.pop("do"))(**command)
    except Exception as error:  # a contestant that cannot do a case is reported, not fatal
        traceback.print_exc()
        return {"failed": f"{type(error).__name__}: {error}"}
    return reply


def serve(make: Callable[[], Any], channel: TextIO) -> None:
    def say(reply: dict[str, Any]) -> None:
        print(json.dumps(reply), file=channel, flush=True)

    try:
        worker = make()
        about = worker.about()
    except ImportError as error:
        say({"missing": str(error)})
        return
    except Exception as error:
        traceback.print_exc()
        say({"failed": f"{type(error).__name__}: {error}"})
        return
    say(about)
    gc.disable()
    for line in sys.stdin:
        gc.collect()
        say(answer(worker, line))


def main(name: str, threads: int) -> None:
    channel = os.fdopen(os.dup(1), "w")  # libraries print to stdout, which is therefore sent to stderr
    os.dup2(2, 1)
    serve(lambda: mixed.Pipeline(name, threads) if name in mixed.PIPELINES else Worker(name, threads), channel)
