"""The command line: python -m rnnfast info | demo | bench."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np

import rnnfast as rf

from . import _demo

# --- info ---


def info(options: argparse.Namespace) -> int:
    config: dict[str, Any] | None = rf.show_config("dicts")
    assert config is not None
    rows = {
        "rnnfast": f"{config['version']} (numerics {config['numerics']})",
        "compiler": config["compiler"],
        "instruction set": config["isa"],
        "available": ", ".join(config["available_isas"]),
        "threads": config["threads"],
        "thread backend": config["threading"],
        "built with openmp": "yes" if config["openmp"] else "no",
        "python": config["python"],
        "numpy": config["numpy"],
        "platform": config["platform"],
    }
    for name, value in rows.items():
        print(f"{name:18} {value}")
    return 0


# --- bench ---


class Job(NamedTuple):
    """What is timed; input_size and hidden_size are both `size`."""

    cell: str
    kind: str  # "forward", "training": forward and backward, "stream": one step with the state kept
    steps: int
    batch: int
    size: int

    @property
    def operations(self) -> int:
        """Multiplications and additions of the matrix products."""
        gates = {"rnn": 1, "gru": 3, "lstm": 4}[self.cell]
        passes = 3 if self.kind == "training" else 1  # backward has two products for each one of forward
        return 2 * passes * gates * self.size * 2 * self.size * self.steps * self.batch


SHAPES = [("forward", 50, 1, 256), ("forward", 50, 64, 256), ("training", 50, 32, 256), ("stream", 1, 1, 256)]
JOBS = [Job(cell, *shape) for cell in _demo.CELLS for shape in SHAPES]


def our_call(job: Job, x: Any) -> Callable[[], object]:
    layer = _demo.CELLS[job.cell](job.size, job.size, seed=0)
    if job.kind == "training":
        ones = np.ones_like(x)
        return lambda: layer.backward(layer.forward(x)[2], ones)
    frozen = layer.freeze()
    if job.kind == "forward":
        return lambda: frozen(x)
    stream, out = frozen.stream(job.batch), np.empty_like(x[0])
    return lambda: stream.step(x[0], out=out)


def torch_call(job: Job, x: Any) -> Callable[[], object]:
    import torch

    torch.set_num_threads(rf.get_num_threads())
    module = getattr(torch.nn, job.cell.upper())(job.size, job.size)
    sequence = torch.from_numpy(x)
    if job.kind == "training":
        sequence.requires_grad_()  # the gradient by x is computed on both sides

        def train() -> None:
            module.zero_grad()
            module(sequence)[0].sum().backward()

        return train
    state = module(sequence)[1]

    def infer() -> None:
        nonlocal state
        with torch.inference_mode():
            final = module(sequence, state)[1]
            state = final if job.kind == "stream" else state

    with torch.inference_mode():
        state = module(sequence)[1]
    return infer


CONTESTANTS: dict[str, Callable[[Job, Any], Callable[[], object]]] = {"rnnfast": our_call, "torch": torch_call}


def median_seconds(call: Callable[[], object], seconds: float) -> float:
    """Of single calls, after some to warm up; at least 3, for about so many seconds."""
    for _ in range(3):
        call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def contest(name: str, seconds: float) -> None:
    """In a process of its own, since thread pools of two libraries in one process slow each other down."""
    rng = np.random.default_rng(0)
    for job in JOBS:
        x = rng.standard_normal((job.steps, job.batch, job.size), dtype=np.float32)
        print(json.dumps(median_seconds(CONTESTANTS[name](job, x), seconds)), flush=True)


def bench(options: argparse.Namespace) -> int:
    if options.contestant is not None:
        contest(options.contestant, options.seconds)
        return 0
    wanted = [options.only] if options.only else CONTESTANTS
    installed = [name for name in wanted if importlib.util.find_spec(name)]
    if not installed:
        print(f"python -m rnnfast bench: {options.only} is not installed", file=sys.stderr)
        return 2
    print(f"float32, {rf.isa()}, at most {rf.get_num_threads()} threads; medians of single calls", flush=True)
    found: dict[str, list[float]] = {}
    for name in installed:
        print(f"timing {name} ...", file=sys.stderr)
        command = [sys.executable, "-m", "rnnfast", "bench", "--contestant", name, "--seconds", str(options.seconds)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            print(f"python -m rnnfast bench: {name} failed, exit code {done.returncode}", file=sys.stderr)
            return 1
        found[name] = [json.loads(line) for line in done.stdout.splitlines()]
    header = "".join(f"{name + ' us':>14}{'GFLOP/s':>9}" for name in installed)
    print(f"{'cell':5}{'job':9}{'steps':>6}{'batch':>6}{'size':>6}{header}")
    for number, job in enumerate(JOBS):
        times = [found[name][number] for name in installed]
        columns = "".join(f"{seconds * 1e6:14.1f}{job.operations / seconds / 1e9:9.1f}" for seconds in times)
        print(f"{job.cell:5}{job.kind:9}{job.steps:6}{job.batch:6}{job.size:6}{columns}")
    return 0


# --- the command line ---

BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Parser(argparse.ArgumentParser):
    """Tells a mistake in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def parser() -> argparse.ArgumentParser:
    top = Parser(prog="python -m rnnfast", description="Recurrent layers for CPUs.")
    top.add_argument("--version", action="version", version=rf.__version__)
    commands = top.add_subparsers(dest="command", required=True, metavar="info | demo | bench")
    about = "print version, compiler, instruction sets and threads"
    commands.add_parser("info", help=about, description=about).set_defaults(run=info)
    about = "train a character model for about a minute, compare it with baselines, let it write"
    command = commands.add_parser("demo", help=about, description=about)
    _demo.add_arguments(command)
    command.set_defaults(run=_demo.run)
    about = "time a few shapes, also of PyTorch if it is installed, each in its own process"
    command = commands.add_parser("bench", help=about, description=about)
    command.add_argument("--seconds", type=_demo.number, default=0.5, metavar="X", help="per row (%(default)s)")
    command.add_argument("--only", choices=CONTESTANTS, help="time one library")
    command.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)  # in the processes it starts
    command.set_defaults(run=bench)
    return top


def restart_with_one_blas_thread() -> None:
    """The threads of NumPy's BLAS keep spinning for milliseconds after each product and take the cores from the
    layer's own, which costs far more than they give. Their number is read when NumPy is imported: too late here."""
    if not any(name in os.environ for name in BLAS_THREADS) and sys.executable and os.name == "posix":
        os.environ.update(dict.fromkeys(BLAS_THREADS, "1"))
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    options = parser().parse_args(arguments)
    try:
        rf.show_config("dicts")  # reads RNNFAST_ISA and RNNFAST_THREADING
    except ValueError as error:
        print(f"python -m rnnfast: {error}", file=sys.stderr)
        return 2
    try:
        code: int = options.run(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # as by `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130


if __name__ == "__main__":
    if sys.argv[1:2] == ["demo"]:
        restart_with_one_blas_thread()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    sys.exit(main())
