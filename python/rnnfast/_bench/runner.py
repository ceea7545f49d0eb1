"""Starts the contestants, compares their results, and lets them take turns at each case."""

from __future__ import annotations

import json
import math
import os
import platform
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from . import limits
from .cases import Array, Case, Mixed, arrays
from .contestants import OURS
from .mixed import PARTNERS, PIPELINES
from .worker import BOOTSTRAP

SCHEMA = 1
TOLERANCE = 1e-3  # of the largest magnitude in an array; float32 results of different sums differ by about 1e-6
LIMITS_EVERY = 60.0  # seconds between two measurements of the machine's limits
STEADY = 1.1  # the median of a contestant's rounds over its best; beyond it something else may have had its cores
MORE_ROUNDS = 3  # times the rounds of the plan, until all contestants are steady
STARTING_SECONDS = 180.0
CALL_SECONDS = 300.0

Item = TypeVar("Item")
Progress = Callable[[Sequence[Item]], Iterable[Item]]


@dataclass(frozen=True)
class Plan:
    """How to measure."""

    threads: tuple[int, ...] = (1,)
    peers: tuple[str, ...] = ()
    pythons: dict[str, str] = field(default_factory=dict)  # by contestant, where it is not this one
    rounds: int = 7
    seconds: float = 0.06  # of one turn
    gap: float = 0.02  # idle seconds before each turn: until other pools' threads sleep
    most_seconds: float = 30.0  # of all turns of one case; slow cases have fewer rounds, but at least 3
    cold_calls: int = 100  # per turn
    quick: bool = False
    deadline: float | None = None  # seconds after which no further case is begun


class Failure(Exception):
    """What a contestant said, or that it said nothing."""


class Process:
    """One contestant with one number of threads."""

    def __init__(self, name: str, threads: int, python: str, log: Path) -> None:
        self.name, self.threads, self.python, self.log = name, threads, python, log
        self.start()

    def start(self) -> None:
        # Each library is told the number by its own means too; these are for the pools that have no other.
        number = str(self.threads)
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RNNFAST_NUM_THREADS")
        directory = str(Path(__file__).parent)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [self.python, "-c", BOOTSTRAP, directory, self.name, number],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | dict.fromkeys(names, number),
            )
        self.about: dict[str, Any] = {}

    def wait_until_ready(self) -> None:
        self.about = self.reply(STARTING_SECONDS)

    def ask(self, do: str, timeout: float = CALL_SECONDS, **arguments: Any) -> dict[str, Any]:
        if self.process.poll() is not None:  # it died at an earlier case
            self.start()
            self.wait_until_ready()
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise Failure(self.last_words()) from None
        return self.reply(timeout)

    def reply(self, timeout: float) -> dict[str, Any]:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], timeout)
        line = self.process.stdout.readline() if ready else b""
        if not line:
            self.close()
            raise Failure(self.last_words() if ready else f"no answer within {timeout:g} s")
        reply: dict[str, Any] = json.loads(line)
        for kind in ("failed", "missing"):
            if kind in reply:
                raise Failure(f"{'not installed: ' if kind == 'missing' else ''}{reply[kind]}")
        return reply

    def last_words(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return f"the process ended with status {self.process.poll()}: {lines[-1] if lines else 'it said nothing'}"

    def busy_seconds(self) -> float:
        """Processor time that it has spent so far."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


def busy_seconds() -> float:
    """Processor time that the whole machine has spent so far, where the system tells."""
    try:
        fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    except (OSError, ValueError):
        return 0.0
    return (sum(fields[:8]) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")  # without idle and waiting for disks


class Crew:
    """All processes of a run; names of contestants that cannot take part go to `absent`."""

    def __init__(self, plan: Plan, names: Iterable[str], directory: Path, stack: ExitStack) -> None:
        self.processes: list[Process] = []
        self.absent: dict[str, str] = {}
        started = []
        for name in names:
            for threads in plan.threads:
                python = plan.pythons.get(name, sys.executable)
                process = Process(name, threads, python, directory / f"{name}.{threads}.log")
                stack.callback(process.close)
                started.append(process)
        for process in started:
            try:
                process.wait_until_ready()
                self.processes.append(process)
            except Failure as failure:
                self.absent[process.name] = str(failure)

    def about(self) -> dict[str, Any]:
        return {process.name: {k: process.about[k] for k in ("version", "python")} for process in self.processes}

    def ours(self) -> list[Process]:
        return [process for process in self.processes if process.name == "rnnfast"]


def disagreement(got: dict[str, Array], want: dict[str, Array]) -> tuple[float, str]:
    """The largest error relative to the largest magnitude of its array, and in which array it is."""
    worst, where = 0.0, ""
    for name, array in want.items():
        if name not in got or got[name].shape != array.shape:
            return float("inf"), f"{name} has the wrong shape or is missing"
        error = np.abs(got[name] - array).max(initial=0.0) / max(float(np.abs(array).max(initial=0.0)), 1e-6)
        if not error <= worst:  # NaN is a disagreement
            worst, where = float(error), name
    return worst, where


@dataclass
class Run:
    """The measurement of one case with all numbers of threads."""

    plan: Plan
    case: Case
    directory: Path
    until: float = math.inf  # on the monotonic clock: then the round that has begun is the last
    failed: dict[tuple[str, int], str] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    bitwise: bool = True
    others: float = 0.0  # cores that other programs kept busy meanwhile
    samples: dict[tuple[str, int], list[list[float]]] = field(default_factory=dict)
    moments: dict[int, list[dict[str, Any]]] = field(default_factory=dict)  # the machine's rates beside our turns

    def prepare(self, processes: Sequence[Process]) -> list[Process]:
        """Returns those that agree with rnnfast's first process, which comes first."""
        shared, reference, agreeing = self.directory / "shared.npz", None, []
        np.savez(shared, **arrays(self.case))  # type: ignore[arg-type]
        for process in processes:
            path = self.directory / "results.npz"
            try:
                process.ask("prepare", case=self.case.to_json(), arrays=str(shared), results=str(path))
            except Failure as failure:
                self.failed[process.name, process.threads] = str(failure)
                continue
            with np.load(path) as file:
                results: dict[str, Array] = dict(file)
            if reference is None:
                reference = results
            if process.name in OURS:
                self.bitwise &= all(np.array_equal(results[name], reference[name]) for name in reference)
            error, where = disagreement(results, reference)
            self.errors[process.name] = max(error, self.errors.get(process.name, 0.0))
            if error <= TOLERANCE:
                agreeing.append(process)
            else:
                self.failed[process.name, process.threads] = f"disagrees: {where}, relative error {error:.2g}"
        return agreeing

    def take_turns(self, processes: Sequence[Process]) -> None:
        """Round robin. The first round only warms up. Beyond the plan there are more while times are unsteady."""
        processes, spent, rounds = list(processes), 0.0, self.plan.rounds
        crew, began = list(processes), time.perf_counter()
        ours, machine = sum(p.busy_seconds() for p in crew), busy_seconds()
        for number in range(1 + MORE_ROUNDS * rounds):
            start = time.perf_counter()
            enough = number > self.rounds_within(spent, rounds) and self.steady()
            if enough or number > self.rounds_within(spent, MORE_ROUNDS * rounds):
                break
            if number > 1 and time.monotonic() > self.until:
                break
            # Every other round runs backwards, so that nobody always follows the same neighbour.
            for process in list(processes if number % 2 else reversed(processes)):
                time.sleep(self.plan.gap)
                try:
                    samples = self.turn(process, warming=not number)
                    if number and process.name == "rnnfast":
                        self.moments.setdefault(process.threads, []).append(self.rates(process))
                except Failure as failure:
                    self.failed[process.name, process.threads] = str(failure)
                    self.samples.pop((process.name, process.threads), None)
                    processes.remove(process)
                    continue
                if number:
                    self.samples.setdefault((process.name, process.threads), []).append(samples)
            spent = max(spent, time.perf_counter() - start)
        others = busy_seconds() - machine - (sum(p.busy_seconds() for p in crew) - ours)
        self.others = max(0.0, others) / (time.perf_counter() - began)

    def rounds_within(self, round_seconds: float, rounds: int) -> int:
        return min(rounds, max(3, int(self.plan.most_seconds / max(round_seconds, 1e-9))))

    def steady(self) -> bool:
        """Whether most rounds of each contestant are close to its own best."""
        medians = [[statistics.median(r) for r in rounds] for rounds in self.samples.values()]
        return all(statistics.median(m) <= STEADY * min(m) for m in medians)

    def turn(self, process: Process, warming: bool) -> list[float]:
        if self.case.mode == "cold":
            reply = process.ask("cold", calls=3 if warming else self.plan.cold_calls)
        else:
            reply = process.ask("time", seconds=0.0 if warming else self.plan.seconds)
        samples: list[float] = reply["samples"]
        return samples

    def rates(self, process: Process) -> dict[str, Any]:
        sizes = limits.moment_sizes(self.case, process.threads)
        return process.ask("limits", seconds=limits.MOMENT_SECONDS, sizes=sizes)

    def entries(self) -> Iterable[dict[str, Any]]:
        for threads in self.plan.threads:
            yield {
                "case": self.case.to_json(),
                "threads": threads,
                "times": {name: aggregate(s) for (name, n), s in self.samples.items() if n == threads},
                "failed": {name: why for (name, n), why in self.failed.items() if n == threads},
                "errors": self.errors,
                "bitwise": self.bitwise,
                "others": self.others,
                "moments": self.moments.get(threads, []),
            }


def aggregate(rounds: list[list[float]]) -> dict[str, Any]:
    """Seconds. The spread is that of the middle 80 % of all samples, relative to their median."""
    samples = np.concatenate([np.asarray(r) for r in rounds])
    p10, p50, p90, p99 = (float(v) for v in np.percentile(samples, (10, 50, 90, 99)))
    return {
        "median": p50,
        "min": float(samples.min()),
        "spread": (p90 - p10) / p50,
        "p99": p99,
        "samples": len(samples),
        "rounds": [statistics.median(r) for r in rounds],
        "best": [min(r) for r in rounds],
    }


def measure_limits(crew: Crew, plan: Plan, found: dict[str, list[dict[str, Any]]]) -> None:
    seconds, sizes = (0.02, limits.QUICK_SIZES) if plan.quick else (0.05, limits.SIZES)
    for process in crew.ours():
        time.sleep(plan.gap)
        found.setdefault(str(process.threads), []).append(process.ask("limits", seconds=seconds, sizes=sizes))


def machine() -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        fields = {name.strip(): value.strip() for name, value in fields.items()}
        model = f"{fields['model name']} (family {fields['cpu family']}, model {fields['model']})"
    except (OSError, KeyError):
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": model,
        "cores": cores,
        "caches": limits.cache_sizes(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def new_document(command: str, plan: Plan, grid: str) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "command": command,
        "grid": grid,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "threads": list(plan.threads),
        "settings": {name: getattr(plan, name) for name in ("rounds", "seconds", "gap", "quick")},
        "contestants": {},
        "absent": {},
        "limits": {},
        "results": [],
        "mixed": [],
        "left_out": 0,
    }


def run_cases(plan: Plan, grid: Sequence[Case], document: dict[str, Any], progress: Progress[Case]) -> None:
    until = math.inf if plan.deadline is None else time.monotonic() + plan.deadline
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rnnfast-bench-")))
        modes = {case.mode for case in grid}
        crew = Crew(plan, wanted(plan.peers, modes), directory, stack)
        document["contestants"], document["absent"] = crew.about(), crew.absent
        if "rnnfast" in crew.absent:
            raise Failure(f"rnnfast: {crew.absent['rnnfast']}")
        measured = -LIMITS_EVERY
        for case in progress(grid):
            if time.monotonic() > until:
                document["left_out"] += 1
                continue
            if time.monotonic() - measured > LIMITS_EVERY:
                measure_limits(crew, plan, document["limits"])
                measured = time.monotonic()
            run = Run(plan, case, directory, until)
            run.take_turns(run.prepare([p for p in crew.processes if case.mode in p.about["modes"]]))
            document["results"] += run.entries()
        measure_limits(crew, plan, document["limits"])


def wanted(peers: Iterable[str], modes: set[str]) -> list[str]:
    from .contestants import CONTESTANTS

    names = ["rnnfast", *(peer for peer in peers if peer != "rnnfast")]
    return [name for name in names if modes & set(CONTESTANTS[name].modes)]


def run_mixed(
    plan: Plan, grid: Sequence[Mixed], document: dict[str, Any], progress: Progress[tuple[str, Mixed]]
) -> None:
    """Partner and backend by partner and backend, each in a fresh process; only one process exists at a time."""
    until = math.inf if plan.deadline is None else time.monotonic() + plan.deadline
    items = [
        (name, mixed)
        for name, (partner, _) in PIPELINES.items()
        if partner in {"numpy", *plan.peers} & set(PARTNERS)
        for mixed in grid
        if mixed.partner == partner
    ]
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rnnfast-bench-")))
        process: Process | None = None
        for name, mixed in progress(items):
            if time.monotonic() > until:
                document["left_out"] += 1
                continue
            if process is None or process.name != name:
                if process is not None:
                    process.close()
                process = start_pipeline(name, plan, directory, document)
            if process is None:
                continue
            entry = {**mixed.to_json(), "title": mixed.title, "threads": process.threads, "backend": name.split("+")[1]}
            entry["used"] = process.about["backend"]
            try:
                entry |= process.ask(
                    "mixed",
                    size=mixed.size,
                    case=mixed.case.to_json(),
                    seconds=2 * plan.seconds,
                    rounds=min(plan.rounds, 5),
                    gap=max(plan.gap, 0.05),
                )
            except Failure as failure:
                entry["failed"] = str(failure)
            document["mixed"].append(entry)
        if process is not None:
            process.close()


def start_pipeline(name: str, plan: Plan, directory: Path, document: dict[str, Any]) -> Process | None:
    process = Process(name, max(plan.threads), sys.executable, directory / f"{name}.log")
    try:
        process.wait_until_ready()
    except Failure as failure:
        document["absent"][name] = str(failure)
        process.close()
        return None
    document["contestants"][name] = {key: process.about[key] for key in ("version", "python")}
    return process
