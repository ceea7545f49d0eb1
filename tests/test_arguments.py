"""Any arguments: a documented exception, or a result that equals the reference.

To search for longer:
RNNFAST_EXAMPLES=100000 pytest -n 0 --timeout 0 tests/test_arguments.py --hypothesis-show-statistics
"""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st

import rnnfast as rf
from oracle import compare_results, exact_threads, layer_results, reference_results
from test_oracle_grid import sensitivity

EXAMPLES = int(os.environ.get("RNNFAST_EXAMPLES", "200"))
many = settings(max_examples=EXAMPLES, derandomize=EXAMPLES <= 200, suppress_health_check=list(HealthCheck))

# An array with an axis of 2**46 has more bytes than a process can address: refused, however little a system refuses.
JUNK = st.sampled_from(
    [None, "", "x", b"x", -1, 0, 2**46, 2**70, 1.5, np.nan, np.inf, True, [], [1], (), {}, object(), np.float32(2),
     np.ones(3)]
)  # fmt: skip
DTYPES = ["float32", "float64"]
CELLS = [rf.RNN, rf.LSTM, rf.GRU]
# Not ranges, of which small numbers are drawn most of the time.
SIZES = st.sampled_from([3, 5, 1, 2, 4, 6, 0])
UNITS = st.sampled_from([4, 7, 1, 2, 16, 5, 9, 20, 0])


def seldom(draw: Any, n: int) -> bool:
    """About once in n times. (The bounds of a range are drawn more often.)"""
    return bool(draw(st.integers(0, n)) == n // 2 + 1)


class Wrong:
    """Whether anything was drawn that need not be accepted. What need not may be, if it happens to be right."""

    drawn = False


@st.composite
def anything(draw: Any, strategy: Any) -> Any:
    Wrong.drawn = True
    return draw(strategy)


@st.composite
def mostly(draw: Any, strategy: Any) -> Any:
    """What is right, and now and then anything else."""
    return draw(anything(JUNK) if seldom(draw, 40) else strategy)


def activations() -> Any:
    parameter = st.none() | st.sampled_from([0.0, -0.2, 0.2, 0.5, 1.0, 1.3])
    one = st.sampled_from(["tanh", "sigmoid", "relu", "softsign", "softplus"]) | st.builds(
        lambda name, alpha, beta: activation(name, alpha, beta),
        st.sampled_from(["affine", "leaky_relu", "thresholded_relu", "scaled_tanh", "hard_sigmoid", "elu"]),
        parameter,
        parameter,
    )
    return one | st.tuples(one, one)


def activation(name: str, alpha: float | None, beta: float | None) -> Any:
    """The name alone where it does not take these."""
    try:
        return rf.Activation(name, alpha=alpha, beta=beta)
    except ValueError:
        return name


PROBABILITY = st.sampled_from([0.0, 0.3, 0.5, 1.0])
PLAIN: dict[str, Any] = {
    "num_layers": st.integers(1, 3),
    "bias": st.booleans(),
    "batch_first": st.booleans(),
    "dropout": st.sampled_from([0.0, 0.0, 0.5, 1.0]),
    "bidirectional": st.booleans(),
    "dtype": st.sampled_from(DTYPES),
    "recompute": st.none() | st.integers(1, 5),
}
SPECIAL: dict[str, Any] = {
    "activation": activations(),
    "clip": st.sampled_from([0.1, 1.0, 50.0]),
    "zoneout": PROBABILITY | st.tuples(PROBABILITY, PROBABILITY),
    "recurrent_dropout": PROBABILITY,
    "input_dropout": PROBABILITY,
    "grad_clip": st.sampled_from([1e-3, 0.1, 10.0]),
    "recurrent_activation": activations(),
    "layer_norm": st.booleans(),
    "output_activation": activations(),
    "peepholes": st.booleans(),
    "coupled_gates": st.booleans(),
    "forget_bias": st.sampled_from([0.0, 1.0]),
    "proj_size": st.integers(0, 9),
    "reset_after": st.booleans(),
    "nonlinearity": st.sampled_from(["tanh", "relu"]),
}
OF_CELL: dict[Any, list[str]] = {
    rf.RNN: [*list(SPECIAL)[:6], "nonlinearity"],
    rf.LSTM: list(SPECIAL)[:13],
    rf.GRU: [*list(SPECIAL)[:8], "reset_after"],
}


@st.composite
def layers(draw: Any) -> Any:
    """A layer, or the exception that its arguments gave: few options at a time, so that most are compatible."""
    cell = draw(st.sampled_from(CELLS))
    chosen = {name: draw(mostly(strategy)) for name, strategy in PLAIN.items() if draw(st.booleans())}
    for name in draw(st.lists(st.sampled_from(OF_CELL[cell]), max_size=3, unique=True)):
        chosen[name] = draw(mostly(SPECIAL[name]))
    if seldom(draw, 40):  # another cell's
        chosen["peepholes" if cell is not rf.LSTM else "reset_after"] = True
    hidden: Any = UNITS
    if seldom(draw, 7):
        chosen["num_layers"] = draw(st.integers(1, 3))
        hidden = st.tuples(*[st.integers(1, 9)] * chosen["num_layers"])
    positional = (draw(mostly(SIZES)), draw(mostly(hidden)))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # dropout of a single layer has no effect
            layer = cell(*positional, **chosen, seed=0)
    except (TypeError, ValueError, MemoryError) as error:
        return error
    assume(layer.input_size < 100)  # without units it may be any number, of which nobody has arrays
    return layer


@st.composite
def arrays(draw: Any, shape: tuple[int, ...], dtype: Any, special: tuple[float, ...] = ()) -> Any:
    """Of that shape and dtype, laid out in any way; seldom of another. `special`: numbers to appear now and then."""
    if seldom(draw, 30):
        return draw(anything(JUNK))
    if seldom(draw, 30):
        dtype = draw(anything(st.sampled_from([*DTYPES, "int32", "float16", "complex64", "object", ">f4", "bool"])))
    if seldom(draw, 30):
        shape = tuple(draw(anything(st.lists(st.integers(0, 4), max_size=4))))
    steps = draw(st.tuples(*[st.sampled_from([1, 1, 1, 2, -1])] * len(shape)))
    numbers = np.random.default_rng(draw(st.integers(0, 99)))
    base = numbers.standard_normal([n * abs(step) for n, step in zip(shape, steps, strict=True)]).astype(dtype)
    array = np.asarray(base[tuple(slice(None, None, step) for step in steps)])
    layout = draw(st.integers(0, 4))
    if layout == 1:
        array = np.asfortranarray(array)
    elif layout == 2:  # misaligned
        room = np.zeros(array.nbytes + 1, np.uint8)
        if not array.dtype.hasobject:
            array = np.ndarray(array.shape, array.dtype, room.data, 1)
            array[...] = 0.25
    if special and array.size and str(array.dtype) in DTYPES and seldom(draw, 5):
        array[tuple(draw(st.integers(0, n - 1)) for n in array.shape)] = draw(st.sampled_from(special))
    if layout == 3:
        array.flags.writeable = False
    return array


@st.composite
def flags(draw: Any, shape: tuple[int, ...]) -> Any:
    """A mask or resets."""
    if seldom(draw, 20):
        return draw(arrays(shape, "bool"))
    return np.random.default_rng(draw(st.integers(0, 99))).random(shape) < draw(st.sampled_from([0.0, 0.3, 0.8, 1.0]))


def sizes(layer: Any) -> tuple[int, ...]:
    """Units of each layer."""
    per_layer = isinstance(layer.hidden_size, tuple)
    return layer.hidden_size if per_layer else (layer.hidden_size,) * layer.num_layers


def specials(layer: Any) -> tuple[float, ...]:
    """NaN only where the reference gives it back: not at kinks, on which side of it is nobody says, and not where
    dropout takes an element out, which the kernels set to 0 and the reference multiplies by 0."""
    smooth = {layer.activation, layer.recurrent_activation, layer.output_activation} <= {
        rf.Activation("tanh"), rf.Activation("sigmoid"), None
    }  # fmt: skip
    options = (layer.clip, layer.dropout, layer.zoneout, layer.recurrent_dropout, layer.input_dropout, layer.grad_clip)
    return -0.0, float(np.finfo(layer.dtype).smallest_subnormal), *((np.nan,) if smooth and not any(options) else ())


@st.composite
def states(draw: Any, layer: Any, batch: int | None) -> Any:
    if draw(st.booleans()):
        return None
    directions, lead = 2 if layer.bidirectional else 1, () if batch is None else (batch,)

    def part(size: Any) -> Any:
        if isinstance(layer.hidden_size, tuple):
            return tuple(draw(arrays((directions, *lead, units), layer.dtype)) for units in sizes(layer))
        return draw(arrays((directions * layer.num_layers, *lead, size), layer.dtype))

    h = part(layer.proj_size or layer.hidden_size)
    return (h, part(layer.hidden_size)) if isinstance(layer, rf.LSTM) else h


@st.composite
def calls(draw: Any, layer: Any) -> tuple[list[Any], dict[str, Any]]:
    """x, hx, grad_output, grad_state, lengths; and what else a call takes."""
    steps, batch = draw(SIZES), draw(st.sampled_from([True, True, False]).flatmap(lambda b: SIZES if b else st.none()))
    directions = 2 if layer.bidirectional else 1
    lead = (steps,) if batch is None else (batch, steps) if layer.batch_first else (steps, batch)
    lengths, keywords = None, {}
    if seldom(draw, 2):
        right = st.lists(SIZES.map(lambda n: min(n, steps)), min_size=batch or 0, max_size=batch or 0)
        lengths = draw(anything(right) if batch is None else mostly(right))
    if seldom(draw, 4) and lengths is None:
        keywords["mask"] = draw(mostly(flags(lead)))
        keywords["masked_output"] = draw(mostly(st.sampled_from(["zero", "carry"])))
    if seldom(draw, 4):
        keywords["reset"], keywords["reset_to"] = draw(flags(lead)), draw(mostly(st.sampled_from(["zero", "initial"])))
    for name in ("return_cell", "return_gates"):
        if not isinstance(layer, rf.RNN) and seldom(draw, 4):
            keywords[name] = draw(mostly(st.just(isinstance(layer, rf.LSTM) or name == "return_gates")))
    width = directions * (layer.proj_size or sizes(layer)[-1])
    positional = [
        draw(arrays((*lead, layer.input_size), layer.dtype, specials(layer))),
        draw(states(layer, batch)),
        draw(st.none() | arrays((*lead, width), layer.dtype)),
        draw(states(layer, batch)),
        lengths,
    ]
    return positional, keywords


@many
@given(st.data())
def test_any_arguments_are_refused_with_a_message_or_give_the_reference_s_result(data: Any) -> None:
    layer = data.draw(layers())
    if isinstance(layer, Exception):
        assert str(layer)
        event("layer refused")
        return
    Wrong.drawn = False
    (x, hx, grad_output, grad_state, lengths), keywords = data.draw(calls(layer))
    per_step = data.draw(mostly(st.booleans()))
    with (
        exact_threads(data.draw(st.sampled_from([1, 1, 2]))),
        rf.use_isa(data.draw(st.sampled_from(rf.available_isas()))),
    ):
        try:
            output, *_ = layer(x, hx, lengths=lengths, **keywords)
            *_, tape = layer.forward(x, hx, lengths=lengths, **keywords)
            layer.backward(tape, grad_output, grad_state, per_step=per_step)
        except (TypeError, ValueError) as error:
            assert str(error) and Wrong.drawn, error
            event("call refused")
            return
        np.testing.assert_array_equal(layer.freeze()(x, hx, lengths=lengths, **keywords)[0], output)
        arguments = [x, hx, grad_output, grad_state, lengths]
        got, masks = layer_results(layer, *arguments, **keywords)
    arguments[0] = np.where(np.abs(x) < np.finfo(x.dtype).smallest_normal, 0, x)  # inside a call denormals are zeros
    try:
        with np.errstate(over="raise"):
            want = reference_results(layer, *arguments, masks=masks, **keywords)
            moved = sensitivity(layer, arguments, masks, want, **keywords)
    except FloatingPointError:  # unbounded gates can square the state at each step
        event("overflows")
        return
    if moved > 1:  # a sum that cancels, or a kink: rounding alone decides
        event("not well posed")
        return
    # Of thousands of cases some are beyond a tolerance that is meant for a few; a mistake is beyond it by far more.
    compare_results(layer, x, got, want, slack=max(12.0, moved / 0.05))
    event("equal to the reference")


@many
@given(st.data())
def test_any_steps_are_refused_with_a_message_or_equal_the_whole_sequence(data: Any) -> None:
    layer = data.draw(layers())
    if isinstance(layer, Exception):
        return
    try:
        stream = layer.freeze().stream(batch := data.draw(mostly(st.integers(1, 4))))
    except (TypeError, ValueError, MemoryError) as error:
        assert str(error)
        event("stream refused")
        return
    taken, outputs, shape = [], [], (batch, layer.proj_size or sizes(layer)[-1])
    for _ in range(data.draw(SIZES)):
        x_t = data.draw(arrays((batch, layer.input_size), layer.dtype))
        out = data.draw(arrays(shape, layer.dtype)) if data.draw(st.booleans()) else None
        try:
            outputs.append(stream.step(x_t, out).reshape(shape).copy())
            taken.append(np.reshape(x_t, (batch, layer.input_size)))  # of a single row both forms are right
        except (TypeError, ValueError) as error:
            assert str(error)
            event("step refused")
        try:  # whatever is wrong with it, the state is what it was; what is right would change it
            stream.state = data.draw(JUNK)
        except (TypeError, ValueError) as error:
            assert str(error)
    if not taken:
        return
    x = np.stack(taken)
    want, state = layer(x.swapaxes(0, 1) if layer.batch_first else x)
    want = want.swapaxes(0, 1) if layer.batch_first else want
    np.testing.assert_array_equal(outputs, want)
    np.testing.assert_equal(stream.state, state)
    try:
        stream.reset(data.draw(JUNK | st.lists(st.integers(-2, 5), max_size=3)))
    except (TypeError, ValueError, IndexError) as error:
        assert str(error)
    event("steps equal the sequence")


@many
@given(st.data())
def test_any_state_dict_is_refused_with_a_message_or_loaded(data: Any) -> None:
    layer = data.draw(layers())
    if isinstance(layer, Exception):
        return
    before = layer.state_dict()
    wanted = {
        name: data.draw(arrays(array.shape, layer.dtype)) for name, array in before.items() if data.draw(st.booleans())
    }
    try:
        layer.load_state_dict(data.draw(mostly(st.just(wanted))), strict=data.draw(mostly(st.booleans())))
    except (TypeError, ValueError) as error:
        assert str(error)
        for name, array in layer.parameters.items():  # nothing half-done
            np.testing.assert_array_equal(array, before[name])
        event("state_dict refused")
        return
    event("loaded")
