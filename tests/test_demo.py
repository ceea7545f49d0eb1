"""The command line: `python -m rnnfast info | demo`, and the demo's model, text and baselines."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import programs
import rnnfast as rf
from rnnfast import _demo

SMALL = ["--hidden", "16", "--batch", "4", "--sample", "40"]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rnnfast", *arguments]
    # One thread: the test should not depend on what else the machine does.
    variables = {"RNNFAST_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **os.environ, **environment}
    return programs.run(command, env=variables)


def held_out(output: str) -> dict[str, float]:
    return {name: float(bits) for name, bits in re.findall(r"^  (\w+) +([0-9.]+)$", output, re.MULTILINE)}


@pytest.fixture
def text(tmp_path: Path) -> str:
    """A text that is learnt soon, and whose pairs of characters tell little: what follows depends on the one before."""
    path = tmp_path / "text.txt"
    path.write_text("abacbbccaabbc" * 300 + "\n", encoding="utf-8")
    return str(path)


def assert_one_line(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 2, done
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stdout == ""
    for part in parts:
        assert part in done.stderr


# --- info, help ---


def test_info_says_what_this_build_is_and_how_it_runs() -> None:
    done = run("info")
    assert done.returncode == 0, done.stderr
    rows = dict(re.split(r"  +", line, maxsplit=1) for line in done.stdout.splitlines())
    assert rows["rnnfast"].startswith(rf.__version__)
    assert rows["available"].split(", ") == rf.available_isas()
    assert rows["instruction set"] in rf.available_isas()
    assert rows["thread backend"] in ("openmp", "pool")
    assert int(rows["threads"]) >= 1
    assert rows["compiler"]


def test_an_unknown_instruction_set_is_told_in_one_line() -> None:
    assert_one_line(run("info", RNNFAST_ISA="mmx"), "mmx", *rf.available_isas())


@pytest.mark.parametrize("command", [[], ["info"], ["demo"], ["bench"]])
def test_help(command: list[str]) -> None:
    done = run(*command, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: " + " ".join(["python -m rnnfast", *command]))


# --- the demo, in a short form ---


@pytest.mark.parametrize("cell", _demo.CELLS)
def test_demo_learns(cell: str, text: str) -> None:
    done = run("demo", "--cell", cell, "--steps", "80", "--text", text, "--seed", "3", *SMALL)
    assert done.returncode == 0, done.stderr
    bits = held_out(done.stdout)
    assert bits[cell] < bits["bigram"] < bits["unigram"], bits
    sample = done.stdout.split(":\n\n")[-1]
    assert len(sample) == 40 + 1


def test_demo_on_its_own_text() -> None:
    done = run("demo", "--steps", "1", *SMALL)
    assert done.returncode == 0, done.stderr
    bits = held_out(done.stdout)
    assert set(bits) == {"unigram", "bigram", "lstm"}
    assert 3 < bits["bigram"] < 4 < bits["unigram"] < 5.5  # of the documentation of any Python
    assert 4 < bits["lstm"] < 8


def test_demo_depends_on_nothing_but_its_seed(text: str) -> None:
    def words(seed: str, threads: str) -> str:
        done = run("demo", "--steps", "5", "--text", text, "--seed", seed, *SMALL, RNNFAST_NUM_THREADS=threads)
        return re.sub(r" in [0-9.]+ s", "", done.stdout)

    assert words("1", "1") == words("1", "2") != words("2", "1")


def test_demo_without_tqdm_writes_lines(text: str, tmp_path: Path) -> None:
    (tmp_path / "tqdm.py").write_text("raise ImportError\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = run("demo", "--steps", "20", "--text", text, *SMALL, PYTHONPATH=path)
    lines = done.stderr.splitlines()
    assert len(lines) == 10
    assert re.fullmatch(r"step 20/20  [0-9.]+ bits/char  \d+ s", lines[-1])


def test_demo_saves_and_loads(text: str, tmp_path: Path) -> None:
    path = str(tmp_path / "model.npz")
    first = run("demo", "--cell", "gru", "--steps", "30", "--text", text, "--save", path, *SMALL)
    second = run("demo", "--load", path, "--text", text, "--sample", "40")
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert held_out(first.stdout) == held_out(second.stdout)
    assert first.stdout.split(":\n\n")[1] == second.stdout.split(":\n\n")[1]
    further = run("demo", "--load", path, "--text", text, "--steps", "30", *SMALL)
    assert held_out(further.stdout)["gru"] < held_out(first.stdout)["gru"]
    assert_one_line(run("demo", "--load", path, "--cell", "rnn", "--text", text), "--cell rnn", "gru")
    assert_one_line(run("demo", "--load", path, "--hidden", "17", "--text", text), "--hidden 17", "16")


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_ends_the_training_and_not_the_demo(text: str) -> None:
    command = [sys.executable, "-m", "rnnfast", "demo", "--steps", "1000000", "--text", text, *SMALL]
    # `python` started in the background by a shell would ignore the signal; here it must not.
    set_default = (
        "import signal, os, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", set_default, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        while not process.stdout.readline().startswith("model"):
            assert process.poll() is None
        time.sleep(0.7)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert re.search(r"^stopped +\d+ steps", output, re.MULTILINE)
    assert "lstm" in held_out(output)


# --- mistakes ---


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 characters"),
        (b"too short", "9 characters"),
        (b"\xff\xfe\xfa" * 1000, "not text in UTF-8"),
        (None, "No such file"),
    ],
)
def test_a_bad_text_is_told_in_one_line(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    assert_one_line(run("demo", "--steps", "1", "--text", str(path)), message)


def npz(path: Path, **changes: Any) -> Path:
    """What --save writes for a small model, with members changed, or removed where the change is None."""
    _demo.save(str(path), _demo.CharModel("rnn", "ab" + _demo.OTHER, 4))
    with np.load(path) as file:
        arrays = {**dict(file), **changes}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"W": np.zeros((2, 2), np.float32)}, r"W has to be float32 \[3, 4\], and is float32 \[2, 2\]"),
        ({"W": np.zeros((3, 4))}, "and is float64"),
        ({"bias_hh_l0": None}, "bias_hh_l0 .* and is missing"),
        ({"b": np.full(3, np.nan, np.float32)}, "b has elements that are no finite numbers"),
        ({"rnnfast": None}, "not written by this demo"),
        ({"rnnfast": np.array("[1, 2]")}, "not written by this demo"),
        (
            {"rnnfast": np.array('{"demo": 1, "cell": "rnn", "hidden": -4, "symbols": "ab"}')},
            "not written by this demo",
        ),
        ({"rnnfast": np.array(["x"], dtype=object)}, "not a readable .npz file"),
    ],
)
def test_a_file_of_another_shape_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = npz(tmp_path / "model.npz", **changes)
    with pytest.raises(_demo.DemoError, match=message):
        _demo.load(str(path))


def test_a_damaged_file_is_told_in_one_line(tmp_path: Path) -> None:
    whole = npz(tmp_path / "model.npz").read_bytes()
    cut = tmp_path / "cut.npz"
    cut.write_bytes(whole[: len(whole) // 2])
    assert_one_line(run("demo", "--load", str(cut)), "cut.npz", "not a readable .npz file")
    assert_one_line(run("demo", "--load", str(tmp_path / "none.npz")), "No such file")
    for change in range(0, len(whole), 97):  # any byte: an error of ours, or a file that still can be read
        cut.write_bytes(whole[:change] + bytes([whole[change] ^ 0x55]) + whole[change + 1 :])
        with suppress(_demo.DemoError):
            _demo.load(str(cut))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--save", "model.txt"], ".npz"),
        (["demo", "--save", "no/such/folder/model.npz"], "no folder"),
        (["demo", "--steps", "-1"], "--steps"),
        (["demo", "--hidden", "0"], "--hidden"),
        (["demo", "--temperature", "nan"], "--temperature"),
        (["demo", "--cell", "cnn"], "--cell"),
        ([], "required"),
        (["train"], "train"),
    ],
)
def test_a_bad_argument_is_told_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from rnnfast.__main__ import main

    try:
        code = main(arguments)
    except SystemExit as error:  # argparse leaves in this way
        code = int(error.code or 0)
    told = capsys.readouterr()
    assert (code, told.out, told.err.count("\n")) == (2, "", 1)
    assert message in told.err


# --- the model ---


@pytest.mark.parametrize("cell", _demo.CELLS)
def test_gradients_of_the_model_by_central_differences(cell: str) -> None:
    model = _demo.CharModel(cell, "abcd" + _demo.OTHER, 3, seed=1, dtype="float64")
    rng = np.random.default_rng(0)
    text = rng.integers(0, 5, (6, 2))
    x, y = text[:-1], text[1:]
    start = model.forward(rng.integers(0, 5, (2, 2))).state
    gradients = model.backward(model.forward(x, start), y)
    assert list(gradients) == list(model.parameters)
    step = 1e-6
    for name, array in model.parameters.items():
        numeric = np.empty_like(array)
        for index in np.ndindex(array.shape):
            value = array[index]
            losses = []
            for moved in (value + step, value - step):
                array[index] = moved
                losses.append(model.loss(model.forward(x, start), y))
            array[index] = value
            numeric[index] = (losses[0] - losses[1]) / (2 * step)
        np.testing.assert_allclose(gradients[name], numeric, rtol=1e-6, atol=1e-9, err_msg=name)


def test_bits_are_the_loss_read_from_the_beginning() -> None:
    model = _demo.CharModel("lstm", "abcd" + _demo.OTHER, 3, dtype="float64")
    text = np.random.default_rng(0).integers(0, 5, 50)
    loss = model.loss(model.forward(text[:-1, None]), text[1:, None])
    assert model.bits(text, chunk=7) == pytest.approx(loss / math.log(2), rel=1e-12)


def test_temperature_0_writes_the_likeliest() -> None:
    model = _demo.CharModel("gru", "a\nb" + _demo.OTHER, 3, dtype="float64")
    written = "".join(model.write(20, 0.0, np.random.default_rng()))
    model.b[-1] = 100  # a symbol without a character is never written
    assert written == "".join(model.write(20, 0.0, np.random.default_rng()))
    state, x = None, np.array([[1]])
    for character in written:
        done = model.forward(x, state)
        state, x = done.state, done.log_p[0, :, :-1].argmax(axis=-1)[:, None]
        assert model.symbols[int(x[0, 0])] == character


# --- the text and the baselines ---


def test_corpus_numbers_the_characters_of_the_training_text() -> None:
    corpus = _demo.Corpus.of("aab" * 400 + "x" * 10)
    assert corpus.symbols == "ab" + _demo.OTHER
    assert len(corpus.train) + len(corpus.held_out) == 1210
    assert corpus.train[:3].tolist() == [0, 0, 1]
    assert corpus.held_out[-10:].tolist() == [2] * 10  # not in the training text


def test_baselines_are_probabilities() -> None:
    rng = np.random.default_rng(0)
    text = "".join(rng.choice(list("abcdefgh"), 4000, p=[0.3, 0.2, 0.15, 0.1, 0.1, 0.05, 0.05, 0.05]))
    corpus = _demo.Corpus.of(text)
    assert _demo.unigram(corpus).sum() == pytest.approx(1)
    entropy = 2.72  # of these shares; letters do not depend on each other, so pairs tell nothing more
    assert _demo.unigram_bits(corpus) == pytest.approx(entropy, abs=0.1)
    assert _demo.bigram_bits(corpus) == pytest.approx(entropy, abs=0.15)
    for before in range(len(corpus.symbols)):  # the bigram model's shares after each symbol sum to 1
        pairs = [np.array([before, after]) for after in range(len(corpus.symbols))]
        bits = [_demo.bigram_bits(_demo.Corpus(corpus.symbols, corpus.train, pair)) for pair in pairs]
        assert sum(2.0**-bit for bit in bits) == pytest.approx(1)


def test_own_text_repeats_no_paragraph() -> None:
    paragraphs = _demo.own_text().split("\n\n")
    assert len(set(paragraphs)) == len(paragraphs)


@pytest.mark.parametrize("length", [5, 64, 65, 200])
def test_chunks_follow_each_other(length: int) -> None:
    numbers = np.arange(3 * length + 2)
    source = _demo.chunks(numbers, 3, np.random.default_rng(0))
    before = None
    for _ in range(20):
        x, y, start = next(source)
        assert x.shape == y.shape == (min(length, _demo.CHUNK), 3)
        np.testing.assert_array_equal(y, x + 1)
        if start:
            assert x.min() >= 0
        else:
            assert before is not None
            np.testing.assert_array_equal(x[0], before)
        before = y[-1]
