"""How calls are run: how many threads, which instruction set; and what this build is."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import numpy as np

from . import _check, _core

# Read by every call; 0 and "" stand for the process's choice. Context variables, so that neither another thread nor
# another asyncio task sees what a `with` block sets.
context_threads: ContextVar[int] = ContextVar("rnnfast_threads", default=0)
context_isa: ContextVar[str] = ContextVar("rnnfast_isa", default="")

Value = TypeVar("Value")


@contextmanager
def _during(variable: ContextVar[Value], value: Value) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def set_num_threads(n: int | None) -> None:
    """Sets for the whole process how many threads a call may use; None returns to the default.

    The default is `RNNFAST_NUM_THREADS`, else `OMP_NUM_THREADS`, else the cores that this process may use (affinity
    and cgroup quota included), read at each call. Results do not depend on the number of threads, bit for bit.

    Raises TypeError if `n` is no integer, ValueError if it is below 1 or above 1024.
    """
    _core.set_num_threads(0 if n is None else _check.num_threads(n))


def get_num_threads() -> int:
    """How many threads a call made here may use. Small calls use fewer."""
    return context_threads.get() or _core.get_num_threads()


def threads(n: int) -> AbstractContextManager[None]:
    """`with rf.threads(1): ...` sets the number of threads for calls made inside, in this thread or asyncio task only.

    Raises TypeError if `n` is no integer, ValueError if it is below 1 or above 1024.
    """
    return _during(context_threads, _check.num_threads(n))


def available_isas() -> list[str]:
    """Names of the instruction sets that this build and this CPU have, best first."""
    return _core.available_isas()


def isa() -> str:
    """Name of the instruction set that calls made here use: that of `use_isa`, else of the environment variable
    `RNNFAST_ISA`, else the best one; left to itself, a layer may take a narrower one that is faster for its size, with
    the same bits. A frozen layer stays with the one that it was frozen with (`isa`).

    Raises ValueError if `RNNFAST_ISA` names one that is not available.
    """
    return context_isa.get() or _core.default_isa()


def use_isa(name: str) -> AbstractContextManager[None]:
    """`with rf.use_isa("x86_64_v3"): ...` forces an instruction set for calls made inside, in this thread or asyncio
    task only.

    Raises ValueError, with a list of what there is, if the name is unknown or this CPU does not support it.
    """
    return _during(context_isa, _check.isa(name, available_isas()))


def show_config(mode: str = "stdout") -> dict[str, Any] | None:
    """Prints what this build is and how calls made here run; with `mode="dicts"` returns it as a dict instead.

    `numerics` is a number that is raised when the bits of any result change from one version to the next.

    Raises ValueError for another mode, or if `RNNFAST_ISA` or `RNNFAST_THREADING` names what there is not.
    """
    _check.choice("mode", mode, ("stdout", "dicts"))
    config = {
        **_core.config(),
        "isa": isa(),
        "available_isas": available_isas(),
        "threads": get_num_threads(),
        "threading": _core.get_backend(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": f"{sys.platform} {platform.machine()}",
    }
    if mode == "dicts":
        return config
    for name, value in config.items():
        print(f"{name:15} {', '.join(value) if isinstance(value, list) else value}")
    return None
