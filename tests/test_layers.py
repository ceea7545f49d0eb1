"""Promises of the layers' Python side: shapes, layouts, parameters, copies, files, tapes. The numbers themselves are
compared with the oracle elsewhere."""

from __future__ import annotations

import ast
import copy
import importlib.resources
import inspect
import pickle
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import programs
import rnnfast as rf
import rnnfast.frozen
from rnnfast import _core

CELLS = {"RNN": rf.RNN, "LSTM": rf.LSTM, "GRU": rf.GRU}
I, H, T, B = 5, 7, 4, 3


@pytest.fixture(params=CELLS)
def cell(request: pytest.FixtureRequest) -> Any:
    return CELLS[request.param]


def sample(*shape: int, dtype: str = "float32", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def parts(state: Any) -> tuple[np.ndarray, ...]:
    return state if isinstance(state, tuple) else (state,)


def initial_state(layer: Any, *batch: int, seed: int = 1) -> Any:
    count = layer.num_layers * (2 if layer.bidirectional else 1)
    arrays = [sample(count, *batch, H, dtype=layer.dtype.name, seed=seed + n) for n in range(2)]
    return tuple(arrays) if isinstance(layer, rf.LSTM) else arrays[0]


def assert_same(a: Any, b: Any) -> None:
    assert len(parts(a)) == len(parts(b))
    for x, y in zip(parts(a), parts(b), strict=True):
        np.testing.assert_array_equal(x, y, strict=True)


def assert_same_gradients(a: rf.Gradients, b: rf.Gradients) -> None:
    assert_same(a.input, b.input)
    assert_same(a.state, b.state)
    assert a.parameters.keys() == b.parameters.keys()
    for name in a.parameters:
        np.testing.assert_array_equal(a.parameters[name], b.parameters[name], err_msg=name, strict=True)


# --- parameters ---


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_parameters_have_torchs_names_order_and_shapes(cell: Any, bidirectional: bool, bias: bool) -> None:
    torch = pytest.importorskip("torch", reason="compares with torch")
    ours = cell(I, H, 3, bias=bias, bidirectional=bidirectional)
    theirs = getattr(torch.nn, cell.__name__)(I, H, 3, bias=bias, bidirectional=bidirectional)
    expected = {name: tuple(array.shape) for name, array in theirs.named_parameters()}
    assert {name: array.shape for name, array in ours.parameters.items()} == expected
    assert list(ours.parameters) == list(expected)


def test_parameters_are_uniform_within_one_over_sqrt_hidden(cell: Any) -> None:
    layer = cell(40, 64, seed=3)
    for name, array in layer.parameters.items():
        assert array.dtype == np.float32 and array.flags.writeable and array.flags.c_contiguous
        assert np.abs(array).max() <= 1 / 8, name
    weights = layer.weight_hh_l0
    assert abs(weights.mean()) < 0.01 and abs(weights.std() - 1 / 8 / np.sqrt(3)) < 0.005


def test_same_seed_same_parameters(cell: Any) -> None:
    assert_same(tuple(cell(I, H, seed=5).parameters.values()), tuple(cell(I, H, seed=5).parameters.values()))
    assert not np.array_equal(cell(I, H, seed=5).weight_hh_l0, cell(I, H, seed=6).weight_hh_l0)
    assert not np.array_equal(cell(I, H).weight_hh_l0, cell(I, H).weight_hh_l0)


def test_both_dtypes_start_from_the_same_numbers(cell: Any) -> None:
    single, double = cell(I, H, seed=5), cell(I, H, seed=5, dtype=np.float64)
    for name in single.parameters:
        np.testing.assert_array_equal(single.parameters[name], double.parameters[name].astype(np.float32))


def test_a_generator_may_be_the_seed(cell: Any) -> None:
    first = cell(I, H, seed=np.random.default_rng(5))
    assert_same(first.weight_ih_l0, cell(I, H, seed=5).weight_ih_l0)


def test_parameters_are_live(cell: Any) -> None:
    layer = cell(I, H, seed=0)
    x = sample(T, B, I)
    before = layer(x)[0]
    layer.parameters["weight_ih_l0"] *= 2
    assert layer.weight_ih_l0 is layer.parameters["weight_ih_l0"]
    assert not np.array_equal(layer(x)[0], before)
    layer.parameters["weight_ih_l0"] /= 2
    assert_same(layer(x)[0], before)


def test_assigning_a_parameter_copies_into_its_array(cell: Any) -> None:
    layer = cell(I, H)
    array = layer.weight_hh_l0
    value = sample(*array.shape, dtype="float64")
    layer.weight_hh_l0 = value
    assert layer.weight_hh_l0 is array
    np.testing.assert_array_equal(array, value.astype(np.float32))
    layer.parameters["weight_hh_l0"] = value + 1
    layer.parameters.update(weight_hh_l0=value + 2)
    parameters = layer.parameters
    parameters |= {"weight_hh_l0": value + 3}
    assert layer.parameters["weight_hh_l0"] is array
    np.testing.assert_array_equal(array, (value + 3).astype(np.float32))
    layer.bias_ih_l0 = [0.5] * len(layer.bias_ih_l0)
    assert (layer.bias_ih_l0 == 0.5).all()


def test_parameters_appear_in_dir(cell: Any) -> None:
    assert {"weight_ih_l0", "bias_hh_l1_reverse", "forward"} <= set(dir(cell(I, H, 2, bidirectional=True)))


def test_state_dict_is_a_copy_and_loads_back(cell: Any) -> None:
    layer, other = cell(I, H, 2, seed=0), cell(I, H, 2, seed=1)
    saved = layer.state_dict()
    assert type(saved) is dict
    result = other.load_state_dict(saved)
    assert result == ([], []) and result.missing_keys == [] and result.unexpected_keys == []
    x = sample(T, B, I)
    assert_same(layer(x)[0], other(x)[0])
    saved["weight_ih_l0"][:] = 0
    assert layer.weight_ih_l0.any() and other.weight_ih_l0.any()


def test_load_state_dict_takes_tensors_and_gives_torchs_results(cell: Any) -> None:
    torch = pytest.importorskip("torch", reason="compares with torch")
    theirs = getattr(torch.nn, cell.__name__)(I, H, 2, bidirectional=True)
    ours = cell(I, H, 2, bidirectional=True)
    ours.load_state_dict(theirs.state_dict())
    x = sample(T, B, I)
    expected = theirs(torch.from_numpy(x))[0].detach().numpy()
    np.testing.assert_allclose(ours(x)[0], expected, rtol=0, atol=1e-6)
    ours.load_state_dict({name: parameter.double() for name, parameter in theirs.named_parameters()})
    np.testing.assert_allclose(ours(x)[0], expected, rtol=0, atol=1e-6)


def test_not_strict_loading_reports_names_and_loads_the_rest(cell: Any) -> None:
    layer, other = cell(I, H, seed=0), cell(I, H, seed=1)
    saved = {**layer.state_dict(), "extra": np.zeros(3)}
    del saved["bias_hh_l0"]
    kept = other.bias_hh_l0.copy()
    result = other.load_state_dict(saved, strict=False)
    assert result == (["bias_hh_l0"], ["extra"])
    assert_same(other.weight_ih_l0, layer.weight_ih_l0)
    assert_same(other.bias_hh_l0, kept)


# --- shapes and layouts ---


@pytest.mark.parametrize("dtype", ["float32", "float64", np.float64, np.dtype("float32")])
def test_shapes_and_dtypes_of_results(cell: Any, dtype: Any) -> None:
    layer = cell(I, H, 2, bidirectional=True, dtype=dtype)
    output, state, tape = layer.forward(sample(T, B, I, dtype=np.dtype(dtype).name))
    grads = layer.backward(tape, np.ones_like(output), per_step=True)
    assert layer.dtype == np.dtype(dtype)
    assert output.shape == (T, B, 2 * H) and grads.input.shape == (T, B, I)
    assert len(parts(state)) == len(parts(grads.state)) == (2 if cell is rf.LSTM else 1)
    assert all(array.shape == (4, B, H) for array in parts(state) + parts(grads.state))
    assert [array.shape for array in grads.per_step] == [(T, B, H)] * 4
    arrays = [output, *parts(state), grads.input, *parts(grads.state), *grads.per_step, *grads.parameters.values()]
    assert all(array.dtype == np.dtype(dtype) for array in arrays)
    assert {name: array.shape for name, array in grads.parameters.items()} == {
        name: array.shape for name, array in layer.parameters.items()
    }
    assert layer.backward(tape, None).per_step is None


@pytest.mark.parametrize("train", [False, True])
def test_batch_first_is_a_transposed_view_of_the_same_numbers(cell: Any, train: bool) -> None:
    plain = cell(I, H, 2, bidirectional=True, seed=0)
    first = cell(I, H, 2, bidirectional=True, batch_first=True, seed=0)
    x, hx = sample(T, B, I), initial_state(plain, B)
    x_first = np.ascontiguousarray(x.transpose(1, 0, 2))
    lengths = [4, 0, 2]
    if not train:
        output, state = first(x_first, hx, lengths=lengths)
        expected, expected_state = plain(x, hx, lengths=lengths)
    else:
        expected, expected_state, tape = plain.forward(x, hx, lengths=lengths)
        output, state, tape_first = first.forward(x_first, hx, lengths=lengths)
        d = sample(T, B, 2 * H, seed=2)
        grads = plain.backward(tape, d, hx, per_step=True)
        grads_first = first.backward(tape_first, np.ascontiguousarray(d.transpose(1, 0, 2)), hx, per_step=True)
        grads.input = np.ascontiguousarray(grads.input.transpose(1, 0, 2))
        assert_same_gradients(grads, grads_first)
        for a, b in zip(grads.per_step, grads_first.per_step, strict=True):
            assert_same(a.transpose(1, 0, 2), b)
    assert output.shape == (B, T, 2 * H) and output.flags.c_contiguous
    assert_same(output, expected.transpose(1, 0, 2))
    assert_same(state, expected_state)


@pytest.mark.parametrize("batch_first", [False, True])
def test_unbatched_is_a_batch_of_one_without_its_axis(cell: Any, batch_first: bool) -> None:
    layer = cell(I, H, 2, bidirectional=True, batch_first=batch_first, seed=0)
    plain = cell(I, H, 2, bidirectional=True, seed=0)
    x, hx = sample(T, I), initial_state(layer)
    output, state, tape = layer.forward(x, hx)
    batched = tuple(a[:, None] for a in parts(hx)) if cell is rf.LSTM else hx[:, None]
    expected, expected_state, expected_tape = plain.forward(x[:, None], batched)
    assert output.shape == (T, 2 * H) and parts(state)[0].shape == (4, H)
    assert_same(output, expected[:, 0])
    assert_same(state, tuple(a[:, 0] for a in parts(expected_state)))
    d = sample(T, 2 * H, seed=2)
    grads = layer.backward(tape, d, state, per_step=True)
    expected_grads = plain.backward(expected_tape, d[:, None], expected_state, per_step=True)
    assert_same(grads.input, expected_grads.input[:, 0])
    assert_same(grads.state, tuple(a[:, 0] for a in parts(expected_grads.state)))
    for a, b in zip(grads.per_step, expected_grads.per_step, strict=True):
        assert_same(a, b[:, 0])
    assert_same(layer(x)[0], plain(x[:, None])[0][:, 0])


def test_any_memory_layout_gives_the_same_bits(cell: Any) -> None:
    layer = cell(I, H, seed=0)
    x, hx = sample(T, B, I), initial_state(layer, B)
    expected, expected_state, tape = layer.forward(x, hx)
    d = sample(T, B, H, seed=3)
    expected_grads = layer.backward(tape, d, expected_state)

    def misaligned(a: np.ndarray) -> np.ndarray:
        raw = np.empty(a.nbytes + 1, np.uint8)
        view = raw[1:].view(a.dtype).reshape(a.shape)
        view[...] = a
        assert not view.flags.aligned
        return view

    def read_only(a: np.ndarray) -> np.ndarray:
        a = a.copy()
        a.flags.writeable = False
        return a

    def wide(a: np.ndarray) -> np.ndarray:  # rows of a larger array
        big = np.zeros((2 * a.shape[0], a.shape[1] + 1, a.shape[2] + 3), a.dtype)
        big[::2, 1:, 2:-1] = a
        return big[::2, 1:, 2:-1]

    layouts = {
        "fortran": np.asfortranarray,
        "misaligned": misaligned,
        "read-only": read_only,
        "rows of a larger array": wide,
        "reversed": lambda a: a[::-1].copy()[::-1],
        "every second element": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
        "subclass": lambda a: a.view(np.recarray).view(type("Sub", (np.ndarray,), {})),
    }
    for name, to_layout in layouts.items():
        moved = tuple(map(to_layout, hx)) if cell is rf.LSTM else to_layout(hx)
        output, state, tape = layer.forward(to_layout(x), moved)
        np.testing.assert_array_equal(output, expected, err_msg=name)
        assert_same(state, expected_state)
        moved = tuple(map(to_layout, parts(expected_state))) if cell is rf.LSTM else to_layout(expected_state)
        assert_same_gradients(layer.backward(tape, to_layout(d), moved), expected_grads)


def test_a_broadcast_input_is_taken_as_it_is(cell: Any) -> None:
    layer = cell(I, H, seed=0)
    row = sample(1, 1, I)
    assert_same(layer(np.broadcast_to(row, (T, B, I)))[0], layer(np.tile(row, (T, B, 1)))[0])


def test_tensors_are_taken_everywhere(cell: Any) -> None:
    torch = pytest.importorskip("torch", reason="passes tensors of torch")
    layer = cell(I, H, seed=0)
    x, hx, d = sample(T, B, I), initial_state(layer, B), sample(T, B, H, seed=4)

    def tensors(value: Any) -> Any:
        return tuple(map(tensors, value)) if isinstance(value, tuple) else torch.from_numpy(value).requires_grad_()

    expected, state, tape = layer.forward(x, hx, lengths=[4, 2, 0])
    output, tensor_state, tensor_tape = layer.forward(tensors(x), tensors(hx), lengths=torch.tensor([4, 2, 0]))
    assert_same(output, expected)
    assert_same(tensor_state, state)
    grads = layer.backward(tape, d, hx)
    assert_same_gradients(layer.backward(tensor_tape, tensors(d), tensors(hx)), grads)
    layer.weight_ih_l0 = torch.zeros(layer.weight_ih_l0.shape, dtype=torch.float64)
    assert not layer.weight_ih_l0.any()


@pytest.mark.parametrize("integers", [[4, 0, 2], (4, 0, 2), np.array([4, 0, 2], "u1"), np.array([4, 0, 2], ">i2")])
def test_lengths_may_be_integers_of_any_kind(cell: Any, integers: Any) -> None:
    layer = cell(I, H, bidirectional=True, seed=0)
    x, hx = sample(T, B, I), initial_state(layer, B)
    output, state = layer(x, hx, lengths=integers)
    for b, n in enumerate([4, 0, 2]):
        assert not output[n:, b].any()
        row = tuple(a[:, b : b + 1] for a in parts(hx)) if cell is rf.LSTM else hx[:, b : b + 1]
        expected, expected_state = layer(np.ascontiguousarray(x[:n, b : b + 1]), row)
        assert_same(output[:n, b : b + 1], expected)
        assert_same(tuple(a[:, b : b + 1] for a in parts(state)), expected_state)


def test_gradients_beyond_a_length_are_zero(cell: Any) -> None:
    layer = cell(I, H, 2, bidirectional=True, seed=0)
    output, _, tape = layer.forward(sample(T, B, I), lengths=[4, 0, 2])
    grads = layer.backward(tape, np.ones_like(output), per_step=True)
    for b, n in enumerate([4, 0, 2]):
        assert not grads.input[n:, b].any()
        assert all(not array[n:, b].any() for array in grads.per_step)


@pytest.mark.parametrize("sizes", [(0, 7, 4, 3), (5, 0, 4, 3), (5, 7, 0, 3), (5, 7, 4, 0), (0, 0, 0, 0)])
def test_any_size_may_be_zero(cell: Any, sizes: tuple[int, int, int, int]) -> None:
    features, hidden, steps, batch = sizes
    layer = cell(features, hidden, 2, bidirectional=True, seed=0)
    x = sample(steps, batch, features)
    hx = tuple(sample(4, batch, hidden, seed=n) for n in range(2)) if cell is rf.LSTM else sample(4, batch, hidden)
    output, state, tape = layer.forward(x, hx)
    assert output.shape == (steps, batch, 2 * hidden)
    if not steps:
        assert_same(state, hx)
    grads = layer.backward(tape, np.ones_like(output), state)
    assert grads.input.shape == x.shape
    if not batch or not hidden:
        assert not any(array.any() for array in grads.parameters.values()) and not grads.input.any()
    if not steps:
        assert_same(grads.state, state)
    assert_same(layer.freeze()(x, hx)[0], output)
    assert_same(layer(x, hx, lengths=[0] * batch)[1], hx)


# --- tapes ---


def test_a_tape_may_be_used_again_and_after_other_calls(cell: Any) -> None:
    layer = cell(I, H, 2, dropout=0.5, seed=0)
    output, state, tape = layer.forward(sample(T, B, I))
    d = sample(T, B, H, seed=1)
    first = layer.backward(tape, d, state)
    layer.forward(sample(T, B, I, seed=2))
    assert_same_gradients(layer.backward(tape, d, state), first)


def test_absent_gradients_are_zeros(cell: Any) -> None:
    layer = cell(I, H, seed=0)
    output, state, tape = layer.forward(sample(T, B, I))
    zeros = tuple(map(np.zeros_like, state)) if cell is rf.LSTM else np.zeros_like(state)
    assert_same_gradients(layer.backward(tape, None, state), layer.backward(tape, np.zeros_like(output), state))
    assert_same_gradients(layer.backward(tape, output), layer.backward(tape, output, zeros))
    nothing = layer.backward(tape, None)
    assert not any(array.any() for array in (nothing.input, *nothing.parameters.values()))
    if cell is rf.LSTM:
        assert_same_gradients(
            layer.backward(tape, None, (None, state[1])), layer.backward(tape, None, (zeros[0], state[1]))
        )


def test_tape_tells_its_size(cell: Any) -> None:
    layer = cell(I, H, 2)
    small, large = (layer.forward(sample(steps, B, I))[2].nbytes for steps in (10, 100))
    assert 0 < small < large <= 11 * small
    assert str(large) in repr(layer.forward(sample(100, B, I))[2])


def test_forward_equals_inference_where_nothing_is_dropped(cell: Any) -> None:
    layer = cell(I, H, 2, bidirectional=True, seed=0)
    x, hx = sample(T, B, I), initial_state(layer, B)
    output, state = layer(x, hx)
    trained = layer.forward(x, hx)
    assert_same(trained[0], output)
    assert_same(trained[1], state)


# --- dropout ---


def test_dropout_masks_differ_by_call_and_repeat_by_seed(cell: Any) -> None:
    x = sample(T, B, I)
    layer, again = (cell(I, H, 3, dropout=0.3, seed=9) for _ in range(2))
    outputs = [layer.forward(x)[0] for _ in range(3)]
    assert not np.array_equal(outputs[0], outputs[1]) and not np.array_equal(outputs[1], outputs[2])
    for output in outputs:
        assert_same(again.forward(x)[0], output)
    assert_same(layer(x)[0], again(x)[0])  # inference drops nothing


@pytest.mark.parametrize("batch_first", [False, True])
def test_dropout_is_what_the_masks_say(cell: Any, batch_first: bool) -> None:
    p = 0.4
    both = cell(I, H, 2, dropout=p, bidirectional=True, batch_first=batch_first, seed=0)
    lower = cell(I, H, bidirectional=True, batch_first=batch_first)
    upper = cell(2 * H, H, bidirectional=True, batch_first=batch_first)
    lower.load_state_dict(both.state_dict(), strict=False)
    upper.load_state_dict({k.replace("l1", "l0"): v for k, v in both.state_dict().items() if "l1" in k})
    x = sample(20, 10, I)
    output, _, tape = both.forward(x)
    (mask,) = tape.dropout_masks()
    below, _, lower_tape = lower.forward(x)
    assert mask.shape == below.shape and mask.dtype == np.bool_
    assert abs(mask.mean() - (1 - p)) < 0.05
    dropped = np.where(mask, below / np.float32(1 - p), np.float32(0))
    expected, _, upper_tape = upper.forward(dropped)
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-6)
    d = sample(*output.shape, seed=5)
    grads = both.backward(tape, d)
    d_dropped = upper.backward(upper_tape, d).input
    d_below = np.where(mask, d_dropped / np.float32(1 - p), np.float32(0))
    np.testing.assert_allclose(grads.input, lower.backward(lower_tape, d_below).input, rtol=0, atol=1e-5)


def test_dropout_of_one_drops_everything(cell: Any) -> None:
    layer = cell(I, H, 2, dropout=1.0, seed=0)
    output, _, tape = layer.forward(sample(T, B, I))
    assert not tape.dropout_masks()[0].any()
    assert_same(output, layer.forward(sample(T, B, I, seed=7))[0])
    assert not layer.backward(tape, np.ones_like(output)).input.any()


def test_no_dropout_no_mask(cell: Any) -> None:
    assert cell(I, H).forward(sample(T, B, I))[2].dropout_masks() == []
    assert all(mask.all() for mask in cell(I, H, 3).forward(sample(T, B, I))[2].dropout_masks())


def test_useless_dropout_warns_at_the_callers_line(cell: Any) -> None:
    with pytest.warns(UserWarning, match=r"no effect with num_layers=1 \(dropout=0.5\)") as caught:
        cell(I, H, dropout=0.5)
    assert caught[0].filename == __file__


# --- copies and files ---


def copies(layer: Any) -> dict[str, Any]:
    return {
        "deepcopy": copy.deepcopy(layer),
        **{f"pickle {n}": pickle.loads(pickle.dumps(layer, n)) for n in range(2, pickle.HIGHEST_PROTOCOL + 1)},
    }


def test_copies_are_equal_and_independent(cell: Any) -> None:
    layer = cell(I, H, 2, bias=False, batch_first=True, dropout=0.5, bidirectional=True, dtype="float64", seed=0)
    layer.forward(sample(B, T, I, dtype="float64"))
    x = sample(B, T, I, dtype="float64")
    made = copies(layer)
    expected = layer.forward(x)[0]
    for name, other in made.items():
        assert type(other) is cell and repr(other) == repr(layer)
        assert_same(other(x)[0], layer(x)[0])
        np.testing.assert_array_equal(other.forward(x)[0], expected, err_msg=name)  # the next mask, too
        other.weight_ih_l0 = np.zeros_like(other.weight_ih_l0)
        assert layer.weight_ih_l0.any()


def test_pickled_buffers_out_of_band_become_writable_again(cell: Any) -> None:
    layer = cell(I, H, seed=0)
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(layer, 5, buffer_callback=buffers.append)
    other = pickle.loads(data, buffers=[bytes(buffer) for buffer in buffers])
    assert all(array.flags.writeable for array in other.parameters.values())
    other.weight_ih_l0 += 1
    assert not np.array_equal(other.weight_ih_l0, layer.weight_ih_l0)


def test_parameters_copy_as_a_plain_dict(cell: Any) -> None:
    layer = cell(I, H)
    for other in (copy.deepcopy(layer.parameters), pickle.loads(pickle.dumps(layer.parameters))):
        assert type(other) is dict and other.keys() == layer.parameters.keys()
        assert other["weight_ih_l0"] is not layer.weight_ih_l0


def test_subclasses_may_have_attributes_and_copy(cell: Any) -> None:
    layer = MyLSTM(I, H)
    assert copy.deepcopy(layer).note == "mine"
    assert type(pickle.loads(pickle.dumps(layer))) is MyLSTM


class MyLSTM(rf.LSTM):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.note = "mine"


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_saved_layer_loads_equal(cell: Any, tmp_path: Path, suffix: str) -> None:
    if suffix == ".safetensors":
        pytest.importorskip("safetensors", reason="writes its format")
    layer = cell(I, H, 2, bias=False, dropout=0.25, bidirectional=True, dtype="float64", seed=0)
    path = tmp_path / f"layer{suffix}"
    rf.save(path, layer)
    for where in (path, str(path)):
        loaded = rf.load(where)
        assert type(loaded) is cell and repr(loaded) == repr(layer)
        for name, array in layer.parameters.items():
            np.testing.assert_array_equal(loaded.parameters[name], array, strict=True)


def test_saving_keeps_nonlinearity(tmp_path: Path) -> None:
    rf.save(tmp_path / "a.npz", rf.RNN(I, H, nonlinearity="relu"))
    loaded = rf.load(tmp_path / "a.npz")
    assert isinstance(loaded, rf.RNN) and loaded.nonlinearity == "relu"


def test_files_hold_torchs_names_and_no_pickle(cell: Any, tmp_path: Path) -> None:
    layer = cell(I, H)
    rf.save(tmp_path / "a.npz", layer)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        assert set(file.files) == {*layer.parameters, "rnnfast"}
        assert all(file[name].dtype != object for name in file.files)


# --- attributes, repr ---


def test_attributes_tell_the_arguments(cell: Any) -> None:
    layer = cell(I, H, 2, bias=False, batch_first=True, dropout=0.5, bidirectional=True, dtype="float64")
    for thing in (layer, layer.freeze()):
        assert (thing.input_size, thing.hidden_size, thing.num_layers) == (I, H, 2)
        assert (thing.bias, thing.batch_first, thing.dropout, thing.bidirectional) == (False, True, 0.5, True)
        assert thing.dtype == np.float64


def test_arguments_have_torchs_order() -> None:
    torch = pytest.importorskip("torch", reason="compares with torch")
    for name, arguments in {
        "RNN": (I, H, 2, "relu", False, True, 0.5, True),
        "LSTM": (I, H, 2, False, True, 0.5, True),
        "GRU": (I, H, 2, False, True, 0.5, True),
    }.items():
        ours, theirs = CELLS[name](*arguments), getattr(torch.nn, name)(*arguments)
        for attribute in ("bias", "batch_first", "dropout", "bidirectional", "num_layers"):
            assert getattr(ours, attribute) == getattr(theirs, attribute)


def test_repr_is_torchs(cell: Any) -> None:
    torch = pytest.importorskip("torch", reason="compares with torch")
    for options in ({}, {"num_layers": 2, "dropout": 0.5}, {"bias": False, "batch_first": True, "bidirectional": True}):
        assert repr(cell(I, H, **options)) == repr(getattr(torch.nn, cell.__name__)(I, H, **options))


def test_repr_shows_what_torchs_does_not() -> None:
    assert repr(rf.RNN(3, 4, nonlinearity="relu", dtype="float64")) == "RNN(3, 4, nonlinearity='relu', dtype='float64')"
    frozen = rf.GRU(3, 4).freeze()
    assert repr(frozen) == f"Frozen(GRU(3, 4), isa='{frozen.isa}')"
    assert repr(rf.GRU(3, 4).freeze().stream(2)) == "Stream of GRU(3, 4), batch_size=2"


# --- frozen ---


@pytest.mark.parametrize("batch_first", [False, True])
def test_frozen_equals_trainable(cell: Any, isa: str, batch_first: bool) -> None:
    layer = cell(I, H, 2, bidirectional=True, batch_first=batch_first, seed=0)
    frozen = layer.freeze()
    x = sample(B, T, I) if batch_first else sample(T, B, I)
    hx = initial_state(layer, B)
    for arguments in ({}, {"hx": hx}, {"hx": hx, "lengths": [1, 4, 2]}):
        expected, state = layer(x, **arguments)
        output, frozen_state = frozen(x, **arguments)
        assert_same(output, expected)
        assert_same(frozen_state, state)
    assert frozen.isa == isa and frozen.nbytes > 0


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_an_ordinary_call_of_a_frozen_layer_does_nothing_in_python(
    cell: Any, batch_first: bool, bidirectional: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = cell(I, H, 2, batch_first=batch_first, bidirectional=bidirectional, seed=0)
    frozen, x = layer.freeze(), sample(T, B, I)
    hx = layer(x)[1]
    inputs = [(x,), (x, None), (x[:, ::2],), (x[::-1],), (x, hx)]
    by_python = [frozen(*arguments, masked_output="".join(("ze", "ro"))) for arguments in inputs]  # no default
    monkeypatch.setattr(rnnfast.frozen, "ForwardCall", None)
    for arguments, (output, state) in zip(inputs, by_python, strict=True):
        found, found_state = frozen(*arguments)
        assert_same(found, output)
        assert_same(found_state, state)
        assert found.flags.c_contiguous and found.flags.owndata


@pytest.mark.parametrize(
    "unusual",
    [
        lambda x: x[:, 0],
        lambda x: x.T.copy().T,
        lambda x: x[:0],
        lambda x: x[:, :0],
        lambda x: x.view(type("Mine", (np.ndarray,), {})),
        lambda x: np.frombuffer(b"." + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(x.shape),
    ],
    ids=["unbatched", "features apart", "no steps", "no rows", "subclass", "not aligned"],
)
def test_what_is_out_of_the_ordinary_is_taken_all_the_same(cell: Any, unusual: Any) -> None:
    layer, x = cell(I, H, seed=0), sample(T, B, I)
    assert_same(layer.freeze()(unusual(x))[0], layer(unusual(x))[0])


def test_frozen_does_not_follow_the_layer(cell: Any) -> None:
    layer = cell(I, H, seed=0)
    frozen, x = layer.freeze(), sample(T, B, I)
    before = frozen(x)[0]
    layer.weight_ih_l0 *= 2
    assert_same(frozen(x)[0], before)
    assert all(not array.flags.writeable for array in frozen.state_dict().values())


def test_frozen_copies(cell: Any) -> None:
    frozen, x = cell(I, H, 2, seed=0).freeze(), sample(T, B, I)
    assert copy.copy(frozen) is frozen and copy.deepcopy(frozen) is frozen
    other = pickle.loads(pickle.dumps(frozen))
    assert_same(other(x)[0], frozen(x)[0])
    assert_same(other.state_dict()["weight_ih_l0"], frozen.state_dict()["weight_ih_l0"])


def test_frozen_stays_with_its_instruction_set(cell: Any) -> None:
    *_, last = rf.available_isas()
    with rf.use_isa(last):
        frozen = cell(I, H).freeze()
    assert frozen.isa == last
    frozen(sample(T, B, I))


# --- settings ---


def test_use_isa_is_for_the_block() -> None:
    before = rf.isa()
    for name in rf.available_isas():
        with rf.use_isa(name):
            assert rf.isa() == name
            with rf.use_isa(before):
                assert rf.isa() == before
            assert rf.isa() == name
    assert rf.isa() == before


def test_threads_is_for_the_block_and_this_thread() -> None:
    from threading import Thread

    before, seen = rf.get_num_threads(), []
    with rf.threads(3):
        assert rf.get_num_threads() == 3
        thread = Thread(target=lambda: seen.append(rf.get_num_threads()))
        thread.start()
        thread.join()
    assert seen == [before] and rf.get_num_threads() == before


def test_set_num_threads_is_for_the_process() -> None:
    before = rf.get_num_threads()
    try:
        rf.set_num_threads(2)
        assert rf.get_num_threads() == 2
        with rf.threads(1):
            assert rf.get_num_threads() == 1
    finally:
        rf.set_num_threads(None)
    assert rf.get_num_threads() == before


def test_show_config(capsys: pytest.CaptureFixture[str]) -> None:
    config = rf.show_config(mode="dicts")
    assert config is not None and config["version"] == rf.__version__ and config["isa"] == rf.isa()
    assert isinstance(config["numerics"], int) and config["threads"] == rf.get_num_threads()
    assert rf.show_config() is None
    shown = capsys.readouterr().out
    assert all(name in shown for name in config)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_long_call_answers_signals(threads: int, train: bool) -> None:
    """As Ctrl-C does, a signal handler's exception ends the call, which would otherwise take many seconds."""

    class Enough(Exception): ...

    def handler(*_: object) -> None:
        raise Enough

    layer = rf.LSTM(256, 256, seed=0)
    x = np.broadcast_to(sample(256), (20_000 if train else 100_000, 8, 256))
    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with rf.threads(threads), pytest.raises(Enough):
            started = time.perf_counter()
            layer.forward(x) if train else layer(x)
        assert time.perf_counter() - started < 2
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert_same(layer(x[:3])[0], rf.LSTM(256, 256, seed=0)(x[:3])[0])  # nothing is left behind


# --- the package ---


def functions_of(body: list[ast.stmt]) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in body if isinstance(node, ast.FunctionDef)}


def assert_signature_of_stub(compiled: Any, stub: ast.FunctionDef) -> None:
    """pybind11 writes a function's signature into its docstring. It says less than the stub about arrays, which are
    objects to it; names, defaults and plain types have to be the same. Where Python itself knows the signature, as of
    Stream.step, there are no types."""
    if getattr(compiled, "__text_signature__", None):
        have = inspect.signature(compiled).parameters.values()
        assert [parameter.name for parameter in have] == [argument.arg for argument in stub.args.args], stub.name
        defaults = [repr(parameter.default) for parameter in have if parameter.default is not parameter.empty]
        assert defaults == list(map(ast.unparse, stub.args.defaults)), stub.name
        return
    plain = {name: name for name in ("bool", "float", "int", "str", "None")} | {
        f"typing.Supports{name.title()} | typing.SupportsIndex": name for name in ("int", "float")
    }
    (node,) = ast.parse(f"def {compiled.__doc__.strip()}: ...").body
    assert isinstance(node, ast.FunctionDef)
    assert [argument.arg for argument in node.args.args] == [argument.arg for argument in stub.args.args], stub.name
    assert list(map(ast.unparse, node.args.defaults)) == list(map(ast.unparse, stub.args.defaults)), stub.name
    for have, want in zip([*node.args.args, node.returns], [*stub.args.args, stub.returns], strict=True):
        types = [getattr(part, "annotation", part) for part in (have, want)]
        have_type, want_type = (ast.unparse(part) if part else "" for part in types)
        assert plain.get(have_type, want_type) == want_type, (stub.name, want)


def test_the_stub_says_what_the_compiled_module_has() -> None:
    stub = ast.parse((importlib.resources.files("rnnfast") / "_core.pyi").read_text())
    functions = functions_of(stub.body)
    classes = {node.name: functions_of(node.body) for node in stub.body if isinstance(node, ast.ClassDef)}
    assert {name for name in dir(_core) if not name.startswith("_")} == set(functions) | set(classes)
    for name, function in functions.items():
        assert_signature_of_stub(getattr(_core, name), function)
    for name, members in classes.items():
        compiled = getattr(_core, name)
        public = {member for member in vars(compiled) if not member.startswith("_")}
        assert public == set(members) - {"__init__"}, name
        for member, function in members.items():
            if isinstance(getattr(compiled, member), property):
                assert [ast.unparse(decorator) for decorator in function.decorator_list] == ["property"], member
            else:
                assert_signature_of_stub(getattr(compiled, member), function)


def test_every_public_name_is_there_and_documented() -> None:
    for name in rf.__all__:
        assert (getattr(rf, name).__doc__ or "").strip(), name
    for kind in (rf.RNN, rf.LSTM, rf.GRU, rf.Frozen, rf.Stream, rf.Tape, rf.Gradients, rf.optim.SGD, rf.optim.Adam):
        for name, member in inspect.getmembers(kind):
            if not name.startswith("_") and (callable(member) or isinstance(member, property)):
                assert inspect.getdoc(member), f"{kind.__name__}.{name}"


def test_import_brings_no_other_library() -> None:
    code = (
        "import sys, rnnfast\n"
        "extra = {'torch', 'safetensors', 'tqdm', 'matplotlib', 'onnx', 'h5py'} & set(sys.modules)\n"
        "sys.exit(f'imported {extra}' if extra else 0)"
    )
    done = programs.run_code(code)
    assert done.returncode == 0, done.stderr


# --- recomputation ---


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("segments", [1, 2, 3, 100])
def test_recomputation_gives_the_same_bits_from_a_smaller_tape(cell: Any, bidirectional: bool, segments: int) -> None:
    x = sample(12, B, I)
    results = []
    for recompute in (None, segments):
        layer = cell(I, H, 2, bidirectional=bidirectional, recompute=recompute, seed=0)
        output, _, tape = layer.forward(x, lengths=[12, 0, 5][:B])
        grads = layer.backward(tape, output)
        results.append((tape.nbytes, grads))
    (kept, want), (less, got) = results
    assert np.array_equal(got.input, want.input)
    assert all(np.array_equal(got.parameters[name], want.parameters[name]) for name in want.parameters)
    # An RNN's output is all it needs; the others drop gates, and only an LSTM keeps a boundary for each segment.
    assert less < kept or cell is rf.RNN or segments > 3


@pytest.mark.parametrize("value", [0, -1, 1.5, "2"])
def test_recompute_must_be_a_positive_number_of_segments(cell: Any, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="recompute"):
        cell(I, H, recompute=value)


@pytest.mark.parametrize("shape", [(0, B), (T, 0), (0, 0)])
def test_recomputation_of_nothing(cell: Any, shape: tuple[int, int]) -> None:
    layer = cell(I, H, 2, recompute=2, seed=0)
    output, _, tape = layer.forward(np.zeros((*shape, I), np.float32))
    assert all(not gradient.any() for gradient in layer.backward(tape, output).parameters.values())


def test_frozen_biases_that_are_denormal_have_the_bits_of_the_layer() -> None:
    layer = rf.RNN(1, 1, nonlinearity="relu", seed=0)
    layer.weight_hh_l0 = np.full((1, 1), 1e20, np.float32)
    layer.bias_ih_l0 = layer.bias_hh_l0 = np.full(1, 0.99e-38, np.float32)  # their sum is a normal number
    x = np.zeros((3, 1, 1), np.float32)
    assert np.array_equal(layer(x)[0], layer.freeze()(x)[0])
