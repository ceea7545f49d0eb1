"""Any arguments: a documented exception, or a result that equals the reference.

To search for longer: RNNFAST_EXAMPLES=100000 pytest tests/test_arguments.py
"""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

import rnnfast as rf
from oracle import compare_layer, exact_threads

EXAMPLES = int(os.environ.get("RNNFAST_EXAMPLES", "150"))
many = settings(max_examples=EXAMPLES, derandomize=EXAMPLES <= 150, suppress_health_check=list(HealthCheck))

JUNK = st.sampled_from(
    [None, "", "x", b"x", -1, 0, 2**40, 2**70, 1.5, np.nan, np.inf, True, [], [1], (), {}, object(), np.float32(2),
     np.ones(3)]
)  # fmt: skip
DTYPES = ["float32", "float64"]


def mostly(strategy: Any) -> Any:
    """What is right, and now and then anything else."""
    return st.integers(0, 40).flatmap(lambda n: strategy if n else JUNK)


@st.composite
def layers(draw: Any) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    cell = draw(st.sampled_from([rf.RNN, rf.LSTM, rf.GRU]))
    positional = (draw(mostly(st.integers(0, 9))), draw(mostly(st.integers(0, 20))))
    options = {
        "num_layers": st.integers(1, 3),
        "bias": st.booleans(),
        "batch_first": st.booleans(),
        "dropout": st.sampled_from([0.0, 0.0, 0.5, 1.0]),
        "bidirectional": st.booleans(),
        "dtype": st.sampled_from(DTYPES),
        "recompute": st.none() | st.integers(1, 5),
    }
    if cell is rf.RNN:
        options["nonlinearity"] = st.sampled_from(["tanh", "relu"])
    chosen = {name: draw(mostly(strategy)) for name, strategy in options.items() if draw(st.booleans())}
    return cell, positional, {**chosen, "seed": 0}


@st.composite
def arrays(draw: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """Of that shape and dtype, laid out in any way; seldom of another."""
    if not draw(st.integers(0, 30)):
        return draw(JUNK)
    if not draw(st.integers(0, 30)):
        dtype = draw(st.sampled_from([*DTYPES, "int32", "float16", "complex64", "object", ">f4", "bool"]))
    if not draw(st.integers(0, 30)):
        shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    steps = draw(st.tuples(*[st.sampled_from([1, 1, 1, 2, -1])] * len(shape)))
    numbers = np.random.default_rng(draw(st.integers(0, 99)))
    base = numbers.standard_normal([n * abs(step) for n, step in zip(shape, steps, strict=True)]).astype(dtype)
    array = base[tuple(slice(None, None, step) for step in steps)]
    layout = draw(st.integers(0, 4))
    if layout == 1:
        array = np.asfortranarray(array)
    elif layout == 2:  # misaligned
        room = np.zeros(array.nbytes + 1, np.uint8)
        if not array.dtype.hasobject:
            array = np.ndarray(array.shape, array.dtype, room.data, 1)
            array[...] = 0.25
    elif layout == 3:
        array.flags.writeable = False
    return array


@st.composite
def states(draw: Any, layer: Any, batch: int | None) -> Any:
    if draw(st.integers(0, 2)) == 0:
        return None
    count = layer.num_layers * (2 if layer.bidirectional else 1)
    shape = (count, layer.hidden_size) if batch is None else (count, batch, layer.hidden_size)
    if isinstance(layer, rf.LSTM):
        return (draw(arrays(shape, layer.dtype)), draw(arrays(shape, layer.dtype)))
    return draw(arrays(shape, layer.dtype))


@st.composite
def calls(draw: Any, layer: Any) -> dict[str, Any]:
    steps, batch = draw(st.integers(0, 6)), draw(st.none() | st.integers(0, 6))
    directions = 2 if layer.bidirectional else 1
    lead = (steps,) if batch is None else (batch, steps) if layer.batch_first else (steps, batch)
    lengths = None
    if draw(st.integers(0, 3)) == 0:
        lengths = draw(mostly(st.lists(st.integers(0, steps), min_size=batch or 0, max_size=batch or 0)))
    return {
        "x": draw(arrays((*lead, layer.input_size), layer.dtype)),
        "hx": draw(states(layer, batch)),
        "grad_output": draw(st.none() | arrays((*lead, directions * layer.hidden_size), layer.dtype)),
        "grad_state": draw(states(layer, batch)),
        "lengths": lengths,
    }


@many
@given(st.data())
def test_any_arguments_are_refused_with_a_message_or_give_the_reference_s_result(data: Any) -> None:
    cell, positional, options = data.draw(layers())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # dropout of a single layer has no effect
            layer = cell(*positional, **options)
    except (TypeError, ValueError, MemoryError) as error:
        assert str(error)
        event("layer refused")
        return
    call = data.draw(calls(layer))
    with (
        exact_threads(data.draw(st.sampled_from([1, 1, 2]))),
        rf.use_isa(data.draw(st.sampled_from(rf.available_isas()))),
    ):
        try:
            output, _ = layer(call["x"], call["hx"], lengths=call["lengths"])
            *_, tape = layer.forward(call["x"], call["hx"], lengths=call["lengths"])
            layer.backward(tape, call["grad_output"], call["grad_state"])
        except (TypeError, ValueError) as error:
            assert str(error)
            event("call refused")
            return
        np.testing.assert_array_equal(layer.freeze()(call["x"], call["hx"], lengths=call["lengths"])[0], output)
        compare_layer(layer, *call.values())
        event("equal to the reference")
