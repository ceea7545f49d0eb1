"""The command line: python -m rnnfast info | demo | bench."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import rnnfast as rf

from . import _demo
from ._bench import cli as bench

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
    about = "compare with other libraries and with the limits of this machine"
    command = commands.add_parser("bench", help=about)
    bench.add_arguments(command)
    command.set_defaults(run=bench.run)
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
