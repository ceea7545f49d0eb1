"""Promises of step-by-step inference: equal to the whole sequence, no surprises with memory, clear errors."""

from __future__ import annotations

import copy
import inspect
import re
import threading
import tracemalloc
from typing import Any

import numpy as np
import pytest

import rnnfast as rf
from rnnfast import _core

CELLS = {"RNN": rf.RNN, "LSTM": rf.LSTM, "GRU": rf.GRU}
I, H, T, B = 5, 7, 6, 3


@pytest.fixture(params=CELLS)
def cell(request: pytest.FixtureRequest) -> Any:
    return CELLS[request.param]


def sample(*shape: int, dtype: str = "float32", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def assert_same(a: Any, b: Any) -> None:
    if isinstance(a, tuple):
        assert isinstance(b, tuple) and len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y, strict=True)
    else:
        np.testing.assert_array_equal(a, b, strict=True)


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("batch", [1, 3])
def test_steps_equal_the_whole_sequence(cell: Any, isa: str, batch: int, dtype: str, num_layers: int) -> None:
    frozen = cell(I, H, num_layers, dtype=dtype, seed=0).freeze()
    x = sample(T, batch, I, dtype=dtype)
    expected, state = frozen(x)
    stream = frozen.stream(batch)
    assert_same(np.stack([stream.step(x_t) for x_t in x]), expected)
    assert_same(stream.state, state)


@pytest.mark.parametrize("size", [1, 33, 64])
def test_steps_equal_the_whole_sequence_with_threads(cell: Any, size: int) -> None:
    """`size` crosses the limit below which a step asks for no second thread, and the one that keeps the GIL."""
    frozen = cell(4 * size, 4 * size, seed=0).freeze()
    x = sample(T, 2, 4 * size)
    expected, state = frozen(x)
    for threads in (1, 2, 3):
        stream = frozen.stream(2)
        with rf.threads(threads):
            assert_same(np.stack([stream.step(x_t) for x_t in x]), expected)
        assert_same(stream.state, state)
    stream = frozen.stream(2)
    for t, x_t in enumerate(x):
        with rf.threads(1 + t % 3):
            assert_same(stream.step(x_t), expected[t])
    assert_same(stream.state, state)


def test_out_receives_the_result(cell: Any) -> None:
    frozen = cell(I, H, seed=0).freeze()
    x = sample(T, B, I)
    stream, out = frozen.stream(B), np.empty((B, H), np.float32)
    for x_t, expected in zip(x, frozen(x)[0], strict=True):
        assert stream.step(x_t, out) is out
        assert_same(out, expected)
    stream.reset()
    assert stream.step(x[0], out=out) is out


def test_one_stream_takes_vectors(cell: Any) -> None:
    frozen = cell(I, H, seed=0).freeze()
    x = sample(T, I)
    expected, _ = frozen(x)
    stream, out = frozen.stream(), np.empty(H, np.float32)
    assert_same(stream.step(x[0]), expected[0])
    assert_same(stream.step(x[1], out), expected[1])
    assert_same(stream.step(x[2:3]), expected[2:3])
    assert stream.batch_size == 1


def test_results_of_earlier_steps_stay(cell: Any) -> None:
    stream = cell(I, H, seed=0).freeze().stream(B)
    first = stream.step(sample(B, I))
    kept = first.copy()
    stream.step(sample(B, I, seed=1))
    assert_same(first, kept)


def test_any_memory_layout_gives_the_same_bits(cell: Any) -> None:
    frozen = cell(I, H, seed=0).freeze()
    x_t = sample(B, I)
    expected = frozen.stream(B).step(x_t)
    raw = np.empty(x_t.nbytes + 1, np.uint8)
    misaligned = raw[1:].view(np.float32).reshape(x_t.shape)
    misaligned[...] = x_t
    read_only = x_t.copy()
    read_only.flags.writeable = False
    columns = np.repeat(x_t, 2, axis=1)[:, ::2]
    for given in (np.asfortranarray(x_t), misaligned, read_only, columns, x_t[::-1].copy()[::-1]):
        assert_same(frozen.stream(B).step(given), expected)
    assert_same(frozen.stream(1).step(columns[1]), expected[1])
    row = np.broadcast_to(x_t[:1], (B, I))
    assert_same(frozen.stream(B).step(row), np.repeat(expected[:1], B, axis=0))


def test_tensors_are_taken(cell: Any) -> None:
    torch = pytest.importorskip("torch", reason="passes tensors of torch")
    frozen = cell(I, H, seed=0).freeze()
    x_t = sample(B, I)
    given = torch.from_numpy(x_t).requires_grad_()
    assert_same(frozen.stream(B).step(given), frozen.stream(B).step(x_t))


def test_out_may_be_the_input(cell: Any) -> None:
    frozen = cell(H, H, 2, seed=0).freeze()
    x = sample(T, B, H)
    expected, _ = frozen(x)
    stream = frozen.stream(B)
    for x_t, y in zip(x, expected, strict=True):
        assert_same(stream.step(x_t, out=x_t), y)
    both = np.zeros((B + 1, H), np.float32)  # overlapping, but shifted by a row
    both[:B] = sample(B, H)
    expected_t = frozen.stream(B).step(both[:B].copy())
    assert_same(frozen.stream(B).step(both[:B], out=both[1:]), expected_t)


def test_state_can_be_read_and_assigned(cell: Any) -> None:
    frozen = cell(I, H, 2, seed=0).freeze()
    x = sample(T, B, I)
    expected, final = frozen(x)
    _, middle = frozen(x[:3])
    stream = frozen.stream(B)
    stream.state = middle
    assert_same(stream.state, middle)
    assert_same(np.stack([stream.step(x_t) for x_t in x[3:]]), expected[3:])
    assert_same(stream.state, final)
    read = stream.state
    (read[0] if isinstance(read, tuple) else read)[...] = 0  # a copy
    assert_same(stream.state, final)


@pytest.mark.parametrize(
    ("rows", "cleared"),
    [
        (None, [0, 1, 2]),
        (1, [1]),
        (-1, [2]),
        ([0, 2], [0, 2]),
        ((), []),
        (np.array([2]), [2]),
        (np.array([True, False, True]), [0, 2]),
        ([True, True, False], [0, 1]),
        (np.zeros(3, bool), []),
    ],
)
def test_reset_clears_rows(cell: Any, rows: Any, cleared: list[int]) -> None:
    stream = cell(I, H, 2, seed=0).freeze().stream(B)
    stream.step(sample(B, I))
    before = stream.state if isinstance(stream.state, tuple) else (stream.state,)
    stream.reset(rows)
    after = stream.state if isinstance(stream.state, tuple) else (stream.state,)
    for old, new in zip(before, after, strict=True):
        for b in range(B):
            assert_same(new[:, b], np.zeros_like(old[:, b]) if b in cleared else old[:, b])


def test_a_row_resets_to_what_a_new_stream_gives(cell: Any) -> None:
    frozen = cell(I, H, seed=0).freeze()
    stream = frozen.stream(B)
    stream.step(sample(B, I))
    stream.reset([1])
    x_t = sample(B, I, seed=1)
    assert_same(stream.step(x_t)[1:2], frozen.stream(1).step(x_t[1:2]))


def test_streams_of_one_layer_are_independent(cell: Any) -> None:
    frozen = cell(I, H, seed=0).freeze()
    x = sample(2, T, I)
    streams = [frozen.stream(), frozen.stream()]
    mixed = [[stream.step(row[t]) for stream, row in zip(streams, x, strict=True)] for t in range(T)]
    for n in range(2):
        assert_same(np.stack([step[n] for step in mixed]), frozen(x[n])[0])


def test_stream_outlives_its_layer(cell: Any) -> None:
    stream = cell(I, H, seed=0).freeze().stream()
    assert_same(stream.step(sample(I)), cell(I, H, seed=0)(sample(1, I))[0][0])


def test_a_step_with_out_allocates_nothing() -> None:
    stream = rf.LSTM(64, 64, seed=0).freeze().stream(4)
    x_t, out = sample(4, 64), np.empty((4, 64), np.float32)
    stream.step(x_t, out)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(1000):
            stream.step(x_t, out)
        assert tracemalloc.get_traced_memory()[0] - before < 1000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("features", "hidden"), [(0, 7), (5, 0), (0, 0)])
def test_sizes_may_be_zero(cell: Any, features: int, hidden: int) -> None:
    frozen = cell(features, hidden, seed=0).freeze()
    x = sample(T, B, features)
    stream = frozen.stream(B)
    assert_same(np.stack([stream.step(x_t) for x_t in x]), frozen(x)[0])


def test_threads_with_streams_of_their_own(cell: Any) -> None:
    frozen = cell(48, 48, 2, seed=0).freeze()
    x = sample(50, 2, 48)
    expected, _ = frozen(x)
    failures: list[str] = []

    def work() -> None:
        for _ in range(5):
            stream = frozen.stream(2)
            for x_t, y in zip(x, expected, strict=True):
                if not np.array_equal(stream.step(x_t), y):
                    failures.append("differs")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_two_threads_in_one_stream_is_an_error_and_no_crash() -> None:
    stream = rf.LSTM(512, 512, seed=0).freeze().stream(8)
    x_t = sample(8, 512)
    errors: list[BaseException] = []
    stop = threading.Event()

    def work() -> None:
        out = np.empty((8, 512), np.float32)
        while not stop.is_set():
            try:
                stream.step(x_t, out)
            except BaseException as error:
                errors.append(error)
                stop.set()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    stop.wait(20)
    stop.set()
    for thread in threads:
        thread.join()
    assert errors and all(isinstance(error, RuntimeError) for error in errors)
    assert "another thread; give each thread a stream of its own" in str(errors[0])
    stream.step(x_t)  # it goes on working


# --- errors ---

x_ok, out_ok = sample(B, I), np.zeros((B, H), np.float32)
read_only = np.zeros((B, H), np.float32)
read_only.flags.writeable = False

STEP_ERRORS = {
    "too few features": ((x_ok[:, 1:],), ValueError, "x_t must have shape (3, 5), got (3, 4)"),
    "other batch": ((x_ok[1:],), ValueError, "x_t must have shape (3, 5), got (2, 5)"),
    "one vector for three": ((x_ok[0],), ValueError, "x_t must have shape (3, 5), got (5,)"),
    "three axes": ((x_ok[None],), ValueError, "x_t must have shape (3, 5), got (1, 3, 5)"),
    "no axis": ((np.float32(3),), ValueError, "x_t must have shape (3, 5), got ()"),
    "float64": (
        (x_ok.astype("f8"),),
        TypeError,
        'x_t must be float32, got float64; convert it with astype("float32")',
    ),
    "byte-swapped": ((x_ok.astype(">f4"),), TypeError, "x_t must be float32, got >f4"),
    "objects": ((x_ok.astype(object),), TypeError, "x_t must be float32, got object"),
    "list": ((x_ok.tolist(),), TypeError, "x_t must be a NumPy array, got a list"),
    "none": ((None,), TypeError, "x_t must be a NumPy array, got None"),
    "out shape": ((x_ok, out_ok[:, 1:]), ValueError, "out must have shape (3, 7), got (3, 6)"),
    "out of another rank": ((x_ok, out_ok[0]), ValueError, "out must have shape (3, 7), got (7,)"),
    "out float64": ((x_ok, out_ok.astype("f8")), TypeError, "out must be float32, got float64"),
    "out list": ((x_ok, []), TypeError, "out must be a NumPy array, got list"),
    "out read-only": ((x_ok, read_only), ValueError, "out is read-only"),
    "out strided": ((x_ok, np.asfortranarray(out_ok)), ValueError, "out must be C-contiguous and aligned"),
}


@pytest.mark.parametrize("case", STEP_ERRORS)
def test_a_wrong_step_is_refused_and_changes_nothing(cell: Any, case: str) -> None:
    arguments, error, message = STEP_ERRORS[case]
    stream = cell(I, H, seed=0).freeze().stream(B)
    stream.step(x_ok)
    before = stream.state
    with pytest.raises(error, match=re.escape(message)):
        stream.step(*arguments)
    assert_same(stream.state, before)
    stream.step(x_ok)


CALL_ERRORS = {
    "nothing": (lambda step: step(), "missing its argument 'x_t'"),
    "out alone": (lambda step: step(out=out_ok), "missing its argument 'x_t'"),
    "three": (lambda step: step(x_ok, out_ok, 1), "takes x_t and out, got 3 arguments"),
    "another name": (lambda step: step(x=x_ok), "unexpected keyword argument 'x'"),
    "one too many names": (lambda step: step(x_ok, out_ok, threads=1), "unexpected keyword argument 'threads'"),
    "x_t twice": (lambda step: step(x_ok, x_t=x_ok), "multiple values for argument 'x_t'"),
    "out twice": (lambda step: step(x_ok, out_ok, out=out_ok), "multiple values for argument 'out'"),
}


@pytest.mark.parametrize("case", CALL_ERRORS)
def test_step_is_called_as_its_signature_says(cell: Any, case: str) -> None:
    call, message = CALL_ERRORS[case]
    stream = cell(I, H, seed=0).freeze().stream(B)
    with pytest.raises(TypeError, match=re.escape(message)):
        call(stream.step)
    assert str(inspect.signature(stream.step)) == "(x_t, out=None)"
    expected = cell(I, H, seed=0).freeze().stream(B).step(x_ok)
    assert_same(stream.step(out=out_ok, x_t=x_ok), expected)
    assert_same(out_ok, expected)


def test_what_is_no_stream_is_refused_and_no_crash(cell: Any) -> None:
    class Unready(rf.Stream):
        def __init__(self) -> None:  # without the base's
            pass

    class Two(_core.Spec, rf.Stream):
        def __init__(self, frozen: rf.Frozen) -> None:
            _core.Spec.__init__(self, "lstm", "float32", I, H, 1, 1)
            rf.Stream.__init__(self, frozen._config, frozen._spec, frozen._packed, B)

    with pytest.raises(TypeError, match="__init__"):
        Unready()
    with pytest.raises(TypeError, match="not initialized"):  # what a step would find first is a Spec
        Two(cell(I, H).freeze()).step(x_ok)
    with pytest.raises(TypeError, match="not initialized"):
        rf.Stream.__new__(rf.Stream).step(x_ok)
    with pytest.raises(TypeError, match="doesn't apply"):
        rf.Stream.step(cell(I, H).freeze(), x_ok)
    with pytest.raises(TypeError, match="cannot pickle"):
        copy.copy(cell(I, H).freeze().stream())


def test_out_has_as_many_axes_as_the_input(cell: Any) -> None:
    stream = cell(I, H).freeze().stream()
    with pytest.raises(ValueError, match=r"x_t must have shape \(1, 5\) or \(5,\), got \(4,\)"):
        stream.step(x_ok[0, 1:])
    with pytest.raises(ValueError, match=r"out must have as many axes as x_t \(1\), got shape \(1, 7\)"):
        stream.step(x_ok[0], out_ok[:1])
    with pytest.raises(ValueError, match=r"out must have as many axes as x_t \(2\), got shape \(7,\)"):
        stream.step(x_ok[:1], out_ok[0])


def test_wrong_rows_and_states_are_refused(cell: Any) -> None:
    stream = cell(I, H).freeze().stream(B)
    for rows, error, message in (
        (3, IndexError, "rows must be within the batch of 3 streams, got 3"),
        ([0, -4], IndexError, "rows must be within the batch of 3 streams"),
        (0.5, TypeError, "rows must be integers or a mask of bools, got 0.5"),
        ("all", TypeError, "rows must be integers or a mask of bools, got 'all'"),
        ([[0]], ValueError, "rows must have at most one axis, got shape (1, 1)"),
        ([True], ValueError, "rows must have shape (3,) (one for each stream), got (1,)"),
    ):
        with pytest.raises(error, match=re.escape(message)):
            stream.reset(rows)
    good = stream.state
    bad = np.zeros((1, 2, H), np.float32)
    label = "state[1]" if isinstance(good, tuple) else "state"
    message = f"{label} must have shape (1, 3, 7) (layers * directions, batch, hidden), got (1, 2, 7)"
    with pytest.raises(ValueError, match=re.escape(message)):
        stream.state = (good[0] + 1, bad) if isinstance(good, tuple) else bad
    assert_same(stream.state, good)
    with pytest.raises(TypeError, match="must be"):
        stream.state = good[0] if isinstance(good, tuple) else (good,)


def test_wrong_streams_are_refused(cell: Any) -> None:
    with pytest.raises(ValueError, match="a bidirectional .* has no stream"):
        cell(I, H, bidirectional=True).freeze().stream()
    frozen = cell(I, H).freeze()
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        frozen.stream(0)
    with pytest.raises(TypeError, match="batch_size must be an integer, got 1.5"):
        frozen.stream(1.5)
    with pytest.raises(ValueError, match="batch_size is too large"):
        frozen.stream(2**60)
