"""Values and sizes at the edge: NaN, infinities, saturation, denormals, nothing at all."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
import pytest

import rnnfast as rf
from oracle import compare_layer, compare_results, exact_threads, layer_results

CELLS = {"RNN": rf.RNN, "LSTM": rf.LSTM, "GRU": rf.GRU}
DTYPES = ["float32", "float64"]
T, B, I, H = 6, 7, 5, 19

each_cell = pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def sample(*shape: int, dtype: str, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def parts(state: Any) -> tuple[np.ndarray, ...]:
    return state if isinstance(state, tuple) else (state,)


def states(layer: Any, batch: int, dtype: str, seed: int = 3) -> Any:
    shape = (layer.num_layers * (2 if layer.bidirectional else 1), batch, layer.hidden_size)
    h, c = sample(*shape, dtype=dtype, seed=seed), sample(*shape, dtype=dtype, seed=seed + 1)
    return (h, c) if isinstance(layer, rf.LSTM) else h


def by_row(layer: Any, x: Any, hx: Any, grad_output: Any, grad_state: Any) -> list[np.ndarray]:
    """Everything that belongs to single rows, the batch on axis 1."""
    output, state, tape = layer.forward(x, hx)
    grads = layer.backward(tape, grad_output, grad_state, per_step=True)
    return [output, *parts(state), grads.input, *parts(grads.state), *grads.per_step]


# --- NaN and infinities stay in their row ---


@pytest.mark.parametrize("where", ["x", "hx", "grad_output", "grad_state"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@each_dtype
@each_cell
def test_a_row_of_nan_or_inf_changes_no_other_row(isa: str, cell: Any, dtype: str, value: float, where: str) -> None:
    layer = cell(I, H, 2, bidirectional=True, dtype=dtype, seed=0)
    arguments: dict[str, Any] = {
        "x": sample(T, B, I, dtype=dtype),
        "hx": states(layer, B, dtype),
        "grad_output": sample(T, B, 2 * H, dtype=dtype, seed=1),
        "grad_state": states(layer, B, dtype, seed=5),
    }
    others = np.arange(B) != 3
    for threads in (1, 2):
        with exact_threads(threads):
            clean = by_row(layer, **arguments)
            spoilt = dict(arguments)
            spoilt[where] = tuple(part.copy() for part in parts(arguments[where]))
            for part in spoilt[where]:
                part[:, 3] = value
            if len(spoilt[where]) == 1:
                spoilt[where] = spoilt[where][0]
            dirty = by_row(layer, **spoilt)
        for a, b in zip(dirty, clean, strict=True):
            assert a[:, others].tobytes() == b[:, others].tobytes()
        # The value was there: the row itself is not what it was.
        assert any(a[:, 3].tobytes() != b[:, 3].tobytes() for a, b in zip(dirty, clean, strict=True))


@each_dtype
@each_cell
def test_rows_of_special_values_are_the_same_alone_and_among_others(isa: str, cell: Any, dtype: str) -> None:
    """With sizes whose last vector has few units, for which several rows have products of their own."""
    layer = cell(20, 35, 2, dtype=dtype, seed=0)
    x = sample(T, 6, 20, dtype=dtype)
    for row, value in enumerate((np.nan, np.inf, -np.inf, -0.0, 1e-42)):
        x[1, row, row] = value
    output, state = layer(x)
    for row in range(6):
        alone, alone_state = layer(x[:, row : row + 1])
        np.testing.assert_array_equal(output[:, row], alone[:, 0])
        for together, part in zip(parts(state), parts(alone_state), strict=True):
            np.testing.assert_array_equal(together[:, row], part[:, 0])


@each_dtype
@each_cell
def test_nan_in_a_row_comes_out_as_nan(isa: str, cell: Any, dtype: str) -> None:
    """No clamp may turn it into a number that looks right: from its step on, in every unit, in every gradient."""
    layer = cell(I, H, dtype=dtype, seed=0)
    x = sample(T, B, I, dtype=dtype)
    x[2, 3, 1] = np.nan
    output, state, tape = layer.forward(x)
    assert np.isfinite(output[:2]).all() and np.isnan(output[2:, 3]).all()
    assert all(np.isnan(part[:, 3]).all() for part in parts(state))
    grads = layer.backward(tape, np.ones_like(output))
    assert np.isnan(grads.input[:, 3]).all()
    assert all(np.isnan(value).any() for value in grads.parameters.values())


@each_dtype
def test_relu_passes_nan_and_inf_on(isa: str, dtype: str) -> None:
    layer = rf.RNN(1, H, nonlinearity="relu", dtype=dtype, seed=0)
    layer.weight_ih_l0 = np.ones((H, 1), dtype)
    layer.weight_hh_l0 = np.zeros((H, H), dtype)
    x = np.array([np.nan, np.inf, -np.inf, -0.0], dtype).reshape(1, 4, 1)
    output, _ = layer(x)
    assert np.isnan(output[0, 0]).all() and (output[0, 1] == np.inf).all() and (output[0, 2] == 0).all()
    assert (output[0, 3] == np.maximum(layer.bias_ih_l0 + layer.bias_hh_l0, 0)).all()


# --- saturation and denormals ---


@each_dtype
@each_cell
def test_huge_inputs_saturate_and_give_finite_values(isa: str, cell: Any, dtype: str) -> None:
    layer = cell(I, H, 2, bidirectional=True, dtype=dtype, seed=0)
    x = np.copysign(np.full((T, B, I), 1e20), sample(T, B, I, dtype="float64")).astype(dtype)
    output, state, tape = layer.forward(x, states(layer, B, dtype))
    grads = layer.backward(tape, np.ones_like(output), states(layer, B, dtype))
    arrays = {"output": output, "input": grads.input, **grads.parameters}
    arrays |= {f"state {n}": value for n, value in enumerate((*parts(state), *parts(grads.state)))}
    for name, value in arrays.items():
        assert np.isfinite(value).all(), name
    assert (np.abs(output) <= 1 + 1e-6).all() or cell is rf.GRU
    compare_layer(layer, x, states(layer, B, dtype), None, None)


@each_dtype
def test_saturated_gates_are_exact(isa: str, dtype: str) -> None:
    """An LSTM with its gates fully open adds up exactly, one that is shut stays what it was."""
    layer = rf.LSTM(1, H, dtype=dtype, seed=0)
    for value in layer.parameters.values():
        value[...] = 0
    c0 = sample(1, B, H, dtype=dtype)
    x = np.zeros((T, B, 1), dtype)
    layer.bias_ih_l0 = np.repeat([-1e5, 1e5, 0.0, 1e5], H).astype(dtype)  # forget nothing, take nothing
    _, (_, c) = layer(x, (np.zeros_like(c0), c0))
    np.testing.assert_array_equal(c, c0)
    layer.bias_ih_l0 = np.repeat([1e5, 1e5, 1e5, 1e5], H).astype(dtype)  # add one at each step
    _, (_, c) = layer(x)
    np.testing.assert_array_equal(c, np.full((1, B, H), T, dtype))


@each_dtype
@each_cell
def test_denormal_inputs_count_as_zeros(isa: str, cell: Any, dtype: str) -> None:
    """They are flushed inside a call, so that they never make it slow; that changes less than the tolerance allows."""
    layer = cell(I, H, dtype=dtype, seed=0)
    tiny = np.finfo(dtype).smallest_normal / 4
    x, hx = np.full((T, B, I), tiny, dtype), states(layer, B, dtype)
    with np.errstate(under="ignore"):
        small = tuple((part * tiny).astype(dtype) for part in parts(hx))
    assert all((np.abs(part) < np.finfo(dtype).smallest_normal).all() for part in small)
    hx = small if len(small) == 2 else small[0]
    grad_output = np.full((T, B, H), tiny, dtype)
    output, state, tape = layer.forward(x, hx)
    want, want_state, want_tape = layer.forward(np.zeros_like(x))
    np.testing.assert_array_equal(output, want)
    for a, b in zip(parts(state), parts(want_state), strict=True):
        np.testing.assert_array_equal(a, b)
    grads, want_grads = layer.backward(tape, grad_output), layer.backward(want_tape, np.zeros_like(output))
    for name, value in want_grads.parameters.items():
        np.testing.assert_array_equal(grads.parameters[name], value)


@each_dtype
@each_cell
def test_denormal_weights_count_as_zeros(isa: str, cell: Any, dtype: str) -> None:
    layers = [cell(I, H, 2, bidirectional=True, dtype=dtype, seed=0) for _ in range(2)]
    for layer, value in zip(layers, (np.finfo(dtype).smallest_normal / 4, 0), strict=True):
        for parameter in layer.parameters.values():
            parameter[...] = value
    arguments = (sample(T, B, I, dtype=dtype), states(layers[0], B, dtype), sample(T, B, 2 * H, dtype=dtype, seed=1))
    results = []
    for layer in layers:
        output, state, tape = layer.forward(*arguments[:2])
        grads = layer.backward(tape, arguments[2])
        np.testing.assert_array_equal(layer.freeze()(*arguments[:2])[0], output)
        results.append([output, *parts(state), grads.input, *parts(grads.state), *grads.parameters.values()])
    assert any(value.any() for value in results[0])
    for tiny, zero in zip(*results, strict=True):
        np.testing.assert_array_equal(tiny, zero)


@pytest.mark.parametrize("threads", [1, 2])
@each_dtype
@each_cell
def test_a_call_leaves_the_floating_point_state_alone(isa: str, cell: Any, dtype: str, threads: int) -> None:
    """Denormals work afterwards in the calling thread, which is the one where a call flushes them."""
    layer = cell(I, H, 2, bidirectional=True, dtype=dtype, seed=0)
    x = sample(T, B, I, dtype=dtype)
    stream = cell(I, H, dtype=dtype, seed=0).freeze().stream(B)

    def works() -> None:
        for number in (np.float32, np.float64):
            # Through arrays, whose loops use the vector unit; read at run time, so that nothing is folded.
            denormal = np.full(64, np.finfo(number).smallest_normal) / number(2)
            assert (denormal > 0).all() and (denormal + denormal == np.finfo(number).smallest_normal).all()
            assert float(number(1) / number(3)).hex() in ("0x1.5555560000000p-2", "0x1.5555555555555p-2")

    works()
    with exact_threads(threads):
        output, _, tape = layer.forward(x)
        works()
        layer.backward(tape, np.ones_like(output))
        works()
        layer.freeze()(x)
        works()
        stream.step(x[0])
        works()


@each_dtype
def test_no_call_raises_floating_point_warnings(isa: str, dtype: str) -> None:
    """What the kernels do on the way, overflow of exp for instance, is no business of NumPy's error state."""
    layer = rf.LSTM(I, H, dtype=dtype, seed=0)
    x = np.full((T, B, I), 1e20, dtype)
    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("error")
        output, _, tape = layer.forward(x)
        layer.backward(tape, np.full_like(output, np.inf))


# --- long and wide ---


@each_cell
def test_a_hundred_thousand_steps(cell: Any) -> None:
    """Kept or computed again, at once or in pieces: the same bits, close to those in float64."""
    steps = 100_000
    x, grad_output = sample(steps, 1, 2, dtype="float32"), sample(steps, 1, 4, dtype="float32", seed=1)
    plain, again = (cell(2, 4, recompute=segments, seed=0) for segments in (None, 300))
    output, state, tape = plain.forward(x)
    others = again.forward(x)
    assert others[0].tobytes() == output.tobytes()
    # 300 segments: the gates of one, and where each starts, which only an LSTM has to keep; h is the output.
    assert others[2].nbytes < tape.nbytes / 50 or cell is rf.RNN
    grads, others_grads = plain.backward(tape, grad_output), again.backward(others[2], grad_output)
    assert others_grads.input.tobytes() == grads.input.tobytes()
    for name, value in grads.parameters.items():
        assert others_grads.parameters[name].tobytes() == value.tobytes(), name
    hx = None
    for begin in range(0, steps, 30_000):
        piece, hx = plain(x[begin : begin + 30_000], hx)
        assert piece.tobytes() == output[begin : begin + 30_000].tobytes()
    for got, want in zip(parts(hx), parts(state), strict=True):
        assert got.tobytes() == want.tobytes()
    exact = cell(2, 4, dtype="float64", seed=0)
    exact.load_state_dict(plain.state_dict())
    got, _ = layer_results(again, x, None, grad_output, None)
    want, _ = layer_results(exact, x.astype("float64"), None, grad_output.astype("float64"), None)
    compare_results(again, x, got, want)


@each_cell
def test_ten_thousand_rows(cell: Any) -> None:
    batch = 10_000
    layer = cell(I, H, seed=0)
    x, hx = sample(3, batch, I, dtype="float32"), states(layer, batch, "float32")
    compare_layer(layer, x, hx, sample(3, batch, H, dtype="float32", seed=1), states(layer, batch, "float32", seed=5))
    whole = layer(x, hx)[0]
    for row in (0, 4_999, 9_999):
        alone, _ = layer(x[:, row : row + 1], one_row(hx, row))
        assert alone.tobytes() == whole[:, row : row + 1].tobytes()


def one_row(state: Any, row: int) -> Any:
    return tuple(one_row(part, row) for part in state) if isinstance(state, tuple) else state[:, row : row + 1]


# --- nothing at all ---

EMPTY = [
    sizes
    for sizes in itertools.product([0, 3], [0, 2], [0, 5], [0, 4])  # T, B, I, H
    if 0 in sizes
]


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("sizes", EMPTY, ids=lambda sizes: "T{}B{}I{}H{}".format(*sizes))
@each_cell
def test_empty_sizes_equal_the_reference(isa: str, cell: Any, sizes: tuple[int, ...], ragged: bool) -> None:
    t, b, i, h = sizes
    layer = cell(i, h, 2, bidirectional=True, seed=0)
    hx, grad_state = states(layer, b, "float32"), states(layer, b, "float32", seed=5)
    x, grad_output = sample(t, b, i, dtype="float32"), sample(t, b, 2 * h, dtype="float32", seed=1)
    lengths = np.arange(b) % (t + 1) if ragged else None
    for threads in (1, 2):
        with exact_threads(threads):
            compare_layer(layer, x, hx, grad_output, grad_state, lengths)
            compare_layer(layer, x, None, grad_output, None, lengths)
            output, state = layer.freeze()(x, hx, lengths=lengths)
    assert output.shape == (t, b, 2 * h)
    if t == 0:
        for got, initial in zip(parts(state), parts(hx), strict=True):
            np.testing.assert_array_equal(got, initial)


@each_cell
def test_all_lengths_zero_return_the_initial_state_and_its_gradient(isa: str, cell: Any) -> None:
    layer = cell(I, H, 2, bidirectional=True, seed=0)
    hx, grad_state = states(layer, B, "float32"), states(layer, B, "float32", seed=5)
    x = np.full((T, B, I), np.nan, np.float32)
    output, state, tape = layer.forward(x, hx, lengths=[0] * B)
    grads = layer.backward(tape, np.full_like(output, np.nan), grad_state)
    assert not output.any() and not grads.input.any()
    assert not any(value.any() for value in grads.parameters.values())
    for got, want in zip((*parts(state), *parts(grads.state)), (*parts(hx), *parts(grad_state)), strict=True):
        np.testing.assert_array_equal(got, want)


# --- what is handed in is not written to ---


def frozen_copy(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(frozen_copy(part) for part in value)
    value = value.copy()
    value.flags.writeable = False
    return value


@each_cell
def test_read_only_arguments_are_accepted_and_nothing_is_written(isa: str, cell: Any) -> None:
    layer = cell(I, H, 2, bidirectional=True, seed=0)
    x, grad_output = sample(T, B, I, dtype="float32"), sample(T, B, 2 * H, dtype="float32", seed=1)
    arguments = (x, states(layer, B, "float32"), grad_output, states(layer, B, "float32", seed=5))
    kept = [frozen_copy(value) for value in arguments]
    want = by_row(layer, *arguments)
    for value, before in zip(arguments, kept, strict=True):
        for a, b in zip(parts(value), parts(before), strict=True):
            assert a.tobytes() == b.tobytes()
    got = by_row(layer, *kept)
    for a, b in zip(got, want, strict=True):
        assert a.tobytes() == b.tobytes() and a.flags.writeable
        assert not any(np.shares_memory(a, part) for value in kept for part in parts(value))
