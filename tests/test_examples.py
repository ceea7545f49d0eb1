"""The examples, run as a user runs them, in a short form."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import programs

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SEVEN = ["input", "state", "next state", "output", "error", "gradient", "update"]


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    variables = {"RNNFAST_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **os.environ}
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    return programs.run(command, env=variables)


def test_hello_learns_with_each_cell() -> None:
    done = run("hello.py")
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^(\w+) predicts (\w+)$", done.stdout, re.MULTILINE) == [
        ("rnn", "ello"),
        ("lstm", "ello"),
        ("gru", "ello"),
    ]


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_hello_prints_the_seven_steps(cell: str) -> None:
    done = run("hello.py", "--cell", cell, "--steps", "2")
    assert done.returncode == 0, done.stderr
    steps = re.findall(r"^  (\d) (\w+(?: state)?) .*?((?: [+-]\d+\.\d+)+)", done.stdout, re.MULTILINE)
    assert [int(number) for number, _, _ in steps] == [1, 2, 3, 4, 5, 6, 7] * 2
    assert [name for _, name, _ in steps] == SEVEN * 2
    assert f"{cell} predicts" in done.stdout


def test_hello_refuses_no_steps() -> None:
    done = run("hello.py", "--steps", "0")
    assert done.returncode == 2
    assert "at least 1" in done.stderr


def test_vanishing_gradients_draws_and_prints(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "gradients.png"
    done = run("vanishing_gradients.py", "--out", str(path), "--updates", "120")
    assert done.returncode == 0, done.stderr
    picture = path.read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 30_000
    width, height = (int.from_bytes(picture[at : at + 4], "big") for at in (16, 20))
    assert width > 1000
    assert height > 700

    rows = [line.split() for line in done.stdout.splitlines()]
    first = {(row[0], float(row[1])): float(row[2]) for row in rows if row and row[0] in ("RNN", "LSTM", "GRU")}
    assert len(first) == 12
    assert first["RNN", 0.5] < 1e-12  # vanishes
    assert first["RNN", 3.0] > 1e5  # explodes
    assert all(1e-4 < norm < 1e3 for (cell, _), norm in first.items() if cell != "RNN")
    found = re.findall(r"^(clipped|not clipped) +(.*)$", done.stdout, re.MULTILINE)
    runs = {name: [float(value) for value in values.split()] for name, values in found}
    assert runs["clipped"][3] < 0.1 < 0.5 < runs["not clipped"][3]  # the last losses
    assert runs["clipped"][2] < 0.05 < 1 < runs["not clipped"][2]  # the largest steps


def test_vanishing_gradients_into_no_folder_is_told_in_one_line(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    done = run("vanishing_gradients.py", "--out", str(tmp_path / "no" / "a.png"), "--updates", "1", "--steps", "3")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
