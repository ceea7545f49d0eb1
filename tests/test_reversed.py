"""Layers read backwards: the bits of a bidirectional layer's second direction, and its gradients."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

import rnnfast as rf

T, B, I, H = 7, 4, 3, 5
OPTIONS = [
    (rf.RNN, {"activation": "softsign"}),
    (rf.GRU, {"reset_after": False}),
    (rf.LSTM, {"peepholes": True, "batch_first": True}),
]


def pair(cell: Any, options: dict[str, Any]) -> tuple[Any, rf.Reversed]:
    """A bidirectional layer, and its second direction alone."""
    both = cell(I, H, bidirectional=True, seed=1, dtype="float64", **options)
    alone = cell(I, H, seed=2, dtype="float64", **options)
    for name in alone.parameters:
        alone.parameters[name] = both.parameters[name + "_reverse"]
    return both, rf.Reversed(alone)


def sequences(layer: Any, *shape: int) -> np.ndarray:
    array = np.random.default_rng(len(shape)).normal(size=shape)
    return array.swapaxes(0, 1) if layer.batch_first else array


def calls(layer: Any) -> dict[str, dict[str, Any]]:
    rng = np.random.default_rng(3)
    mask, reset = rng.random((T, B)) < 0.7, rng.random((T, B)) < 0.3
    if layer.batch_first:
        mask, reset = mask.T, reset.T
    return {
        "plain": {},
        "lengths": {"lengths": [7, 0, 3, 5]},
        "mask": {"mask": mask, "masked_output": "carry"},
        "reset": {"reset": reset, "mask": mask},
        "lengths and reset": {"lengths": [6, 2, 7, 1], "reset": reset, "reset_to": "initial"},
        "reset beyond a length": {"lengths": [6, 0, 3, 1], "reset": np.ones_like(reset), "reset_to": "zero"},
    }


def states(value: Any, direction: slice) -> Any:
    return tuple(part[direction] for part in value) if isinstance(value, tuple) else value[direction]


def assert_equal(got: Any, want: Any) -> None:
    if isinstance(want, tuple):
        for one, other in zip(got, want, strict=True):
            np.testing.assert_array_equal(one, other)
    else:
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(("cell", "options"), OPTIONS)
@pytest.mark.parametrize("call", ["plain", "lengths", "mask", "reset", "lengths and reset", "reset beyond a length"])
def test_it_computes_the_second_direction(isa: str, cell: Any, options: dict[str, Any], call: str) -> None:
    both, alone = pair(cell, options)
    layer = alone.layer
    x, grad = sequences(layer, T, B, I), sequences(layer, T, B, H)
    arguments = calls(layer)[call]
    hx = np.random.default_rng(5).normal(size=(2, B, H))
    hx = (hx, hx[::-1].copy()) if cell is rf.LSTM else hx

    output, state, tape = both.forward(x, hx, **arguments)
    want = both.backward(tape, np.concatenate([np.zeros_like(grad), grad], axis=2), per_step=True)
    got_output, got_state, got_tape = alone.forward(x, states(hx, slice(1, 2)), **arguments)
    got = alone.backward(got_tape, grad, per_step=True)

    np.testing.assert_array_equal(got_output, output[..., H:])
    assert_equal(got_state, states(state, slice(1, 2)))
    np.testing.assert_array_equal(got.input, want.input)
    assert_equal(got.state, states(want.state, slice(1, 2)))
    for name, value in got.parameters.items():
        np.testing.assert_array_equal(value, want.parameters[name + "_reverse"])
    np.testing.assert_array_equal(got.per_step[0], want.per_step[1])

    frozen = pickle.loads(pickle.dumps(alone.freeze()))
    for run in (alone, frozen):
        inferred, final = run(x, states(hx, slice(1, 2)), **arguments)
        np.testing.assert_array_equal(inferred, output[..., H:])
        assert_equal(final, states(state, slice(1, 2)))


def test_further_outputs_are_in_the_order_of_time() -> None:
    both, alone = pair(*OPTIONS[2])
    x = sequences(both, T, B, I)
    _, _, cells, gates = both(x, return_cell=True, return_gates=True)
    _, _, own_cells, own_gates = alone(x, return_cell=True, return_gates=True)
    np.testing.assert_array_equal(own_cells, cells[..., H:])
    np.testing.assert_array_equal(own_gates, gates[..., 4 * H :])


@pytest.mark.parametrize("batch_first", [False, True])
def test_an_unbatched_sequence_is_turned_too(batch_first: bool) -> None:
    layer = rf.GRU(I, H, seed=0, batch_first=batch_first)
    x = np.random.default_rng(0).normal(size=(T, I)).astype(np.float32)
    output, state = rf.Reversed(layer)(x)
    straight, final = layer(x[::-1])
    np.testing.assert_array_equal(output, straight[::-1])
    np.testing.assert_array_equal(state, final)
    with pytest.raises(ValueError, match="lengths needs a batched x"):
        rf.Reversed(layer)(x, lengths=[3])


def test_the_output_may_be_in_the_order_of_the_scan() -> None:
    layer = rf.GRU(I, H, seed=0, dtype="float64")
    x, grad = sequences(layer, T, B, I), sequences(layer, T, B, H)
    results = []
    for scan_order in (False, True):
        reversed_layer = rf.Reversed(layer, scan_order=scan_order)
        output, _, tape = reversed_layer.forward(x)
        grads = reversed_layer.backward(tape, grad[::-1] if scan_order else grad)
        results.append((output[::-1] if scan_order else output, grads.input))
    for first, second in zip(*results, strict=True):
        np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(rf.Reversed(layer, scan_order=True).freeze()(x)[0], layer(x[::-1])[0])


def test_what_cannot_be_read_backwards_is_refused() -> None:
    with pytest.raises(TypeError, match="layer must be an RNN, LSTM or GRU or a Frozen of one, got"):
        rf.Reversed("LSTM")
    with pytest.raises(ValueError, match="num_layers=2, bidirectional=False"):
        rf.Reversed(rf.GRU(I, H, 2))
    with pytest.raises(ValueError, match="num_layers=1, bidirectional=True"):
        rf.Reversed(rf.GRU(I, H, bidirectional=True))
    layer = rf.Reversed(rf.GRU(I, H))
    x = np.zeros((T, B, I), np.float32)
    with pytest.raises(ValueError, match="lengths and mask exclude each other"):
        layer(x, lengths=[1] * B, mask=np.ones((T, B), bool))
    with pytest.raises(ValueError, match="between 0 and the number of steps 7, got 8 in row 0"):
        layer(x, lengths=[8] * B)
    with pytest.raises(ValueError, match="mask"):
        layer(x, mask=np.ones((T, B + 1), bool))
