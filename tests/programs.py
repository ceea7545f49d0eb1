"""Programs that tests start. One that hangs is a failure that tells where, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any


def signal_session(leader: int, number: int) -> None:
    """To all processes of a session, also those that have a group of their own, as compilers under ninja."""
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            if os.getsid(int(entry.name)) == leader:
                os.kill(int(entry.name), number)


def run(
    command: Sequence[str | Path],
    *,
    timeout: float = 120,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Like `subprocess.run` with its output captured, but a timeout ends the program's children too.

    They hold the pipes that the output is read from: `subprocess.run` would wait for them for ever.
    """
    process = subprocess.Popen(
        command,
        env={**(os.environ if env is None else env), "PYTHONFAULTHANDLER": "1"},
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        signal_session(process.pid, signal.SIGABRT)  # at which each Python process says what its threads were doing
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=5)
        signal_session(process.pid, signal.SIGKILL)
        output, errors = process.communicate(timeout=60)
        raise AssertionError(f"no end within {timeout:g} s: {command}\n{output}\n{errors}") from None
    except BaseException:
        signal_session(process.pid, signal.SIGKILL)
        process.wait()
        raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def run_code(code: str, *arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs Python code in a process of its own."""
    return run([sys.executable, "-c", code, *arguments], **options)
