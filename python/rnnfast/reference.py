"""The equations of every cell and their gradients, in NumPy and float64.

This module defines what the compiled kernels have to compute; it is checked by finite differences and against
PyTorch, and it never imports the kernels. It is written to be read beside ``docs/math.md``, which derives it, with the
same names:

* ``T`` steps, ``B`` batch, ``I`` input size, ``H`` hidden size, ``G`` gates, ``L`` layers, ``D`` directions; a layer's
  input size is ``I`` for the first layer and ``D*H`` above it.
* ``d_x`` is the gradient of the loss by ``x``, and has the shape of ``x``.
* ``a`` are pre-activations: what goes into a sigmoid or tanh.

Each cell is a pair of functions, ``*_step`` and ``*_step_backward``, that know one time step of some rows. ``scan`` and
``scan_backward`` know time and which rows take part. ``forward`` and ``backward`` know layers and directions.

>>> import numpy as np
>>> rng = np.random.default_rng(0)
>>> parameters = {"weight_ih_l0": rng.normal(size=(4 * 3, 2)), "weight_hh_l0": rng.normal(size=(4 * 3, 3))}
>>> output, (h, c), tape = forward("lstm", parameters, rng.normal(size=(5, 1, 2)))
>>> output.shape, h.shape, bool((output[-1] == h[0]).all())
((5, 1, 3), (1, 1, 3), True)
>>> backward(tape, np.ones_like(output)).parameters["weight_hh_l0"].shape
(12, 3)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["CELLS", "Cell", "Gradients", "Layer", "Tape", "backward", "forward"]

Array: TypeAlias = NDArray[np.float64]
States: TypeAlias = tuple[Array, ...]
"""The state of a cell, h first: ``(h,)`` or ``(h, c)``."""
Saved: TypeAlias = tuple[Array, ...]
"""What one step's backward needs from its forward, in an order that only the two of them know."""


@dataclass(frozen=True)
class Layer:
    """The parameters of one layer in one direction, and whatever else its equations depend on."""

    weight_ih: Array  # [G*H, I_l]
    weight_hh: Array  # [G*H, H]
    bias_ih: Array  # [G*H], zeros where the layer has no bias
    bias_hh: Array  # [G*H], likewise
    nonlinearity: str = "tanh"  # of the RNN cell


Step: TypeAlias = Callable[[Layer, Array, States], tuple[States, Saved]]
StepBackward: TypeAlias = Callable[[Layer, Saved, States], tuple[Array, States, dict[str, Array]]]


@dataclass(frozen=True)
class Cell:
    """One kind of recurrent cell.

    ``step(layer, x, prev) -> state, saved`` takes ``x`` [rows, I_l] and the previous state, each [rows, H].
    ``step_backward(layer, saved, d_state) -> d_x, d_prev, d_parameters`` takes the gradient of the loss by the state
    the step made; ``d_parameters`` is this step's share of the parameters' gradients.
    """

    gates: int
    states: tuple[str, ...]
    step: Step
    step_backward: StepBackward


# ---- what the cells share ----


def sigmoid(a: Array) -> Array:
    """``1 / (1 + exp(-a))``, arranged so that exp never overflows and small results keep their relative precision."""
    e = np.exp(-np.abs(a))
    return np.where(a >= 0, 1.0, e) / (1.0 + e)


def products(layer: Layer, x: Array, h_prev: Array) -> tuple[Array, Array]:
    """The input's and the recurrent part of the pre-activations, each [rows, G*H]."""
    return x @ layer.weight_ih.T + layer.bias_ih, h_prev @ layer.weight_hh.T + layer.bias_hh


def products_backward(
    layer: Layer, x: Array, h_prev: Array, d_a_ih: Array, d_a_hh: Array
) -> tuple[Array, Array, dict[str, Array]]:
    """The gradients by ``x``, by ``h_prev`` (through the product only) and by the parameters."""
    d_x = d_a_ih @ layer.weight_ih
    d_h_prev = d_a_hh @ layer.weight_hh
    d_parameters = {
        "weight_ih": d_a_ih.T @ x,
        "weight_hh": d_a_hh.T @ h_prev,
        "bias_ih": d_a_ih.sum(axis=0),
        "bias_hh": d_a_hh.sum(axis=0),
    }
    return d_x, d_h_prev, d_parameters


# ---- RNN: Elman, "Finding structure in time", Cognitive Science 14 (1990) ----


def rnn_step(layer: Layer, x: Array, prev: States) -> tuple[States, Saved]:
    """``h = act(W x + b_ih + U h_prev + b_hh)`` with act tanh or relu."""
    (h_prev,) = prev
    a_ih, a_hh = products(layer, x, h_prev)
    a = a_ih + a_hh

    h = np.tanh(a) if layer.nonlinearity == "tanh" else np.maximum(a, 0.0)
    return (h,), (x, h_prev, h)


def rnn_step_backward(layer: Layer, saved: Saved, d_state: States) -> tuple[Array, States, dict[str, Array]]:
    """Both derivatives are functions of h alone; relu's is 0 at 0."""
    x, h_prev, h = saved
    (d_h,) = d_state

    d_a = d_h * (1.0 - h * h) if layer.nonlinearity == "tanh" else np.where(h > 0.0, d_h, 0.0)

    d_x, d_h_prev, d_parameters = products_backward(layer, x, h_prev, d_a, d_a)
    return d_x, (d_h_prev,), d_parameters


# ---- LSTM: Hochreiter & Schmidhuber, Neural Computation 9(8) (1997); forget gate: Gers, Schmidhuber & Cummins,
# ---- "Learning to forget", Neural Computation 12(10) (2000) ----


def lstm_step(layer: Layer, x: Array, prev: States) -> tuple[States, Saved]:
    """``c = f*c_prev + i*g``, ``h = o*tanh(c)``; the rows of the weights hold i, f, g, o in this order."""
    h_prev, c_prev = prev
    a_ih, a_hh = products(layer, x, h_prev)
    a_i, a_f, a_g, a_o = np.split(a_ih + a_hh, 4, axis=1)

    i = sigmoid(a_i)
    f = sigmoid(a_f)
    g = np.tanh(a_g)
    o = sigmoid(a_o)
    c = f * c_prev + i * g
    h = o * np.tanh(c)
    return (h, c), (x, h_prev, c_prev, i, f, g, o, c)


def lstm_step_backward(layer: Layer, saved: Saved, d_state: States) -> tuple[Array, States, dict[str, Array]]:
    """``d_c`` arrives with the future's share and gains what goes through this step's h."""
    x, h_prev, c_prev, i, f, g, o, c = saved
    d_h, d_c = d_state
    tanh_c = np.tanh(c)

    d_o = d_h * tanh_c
    d_c = d_c + d_h * o * (1.0 - tanh_c * tanh_c)
    d_i = d_c * g
    d_f = d_c * c_prev
    d_g = d_c * i
    d_c_prev = d_c * f

    d_a_i = d_i * i * (1.0 - i)
    d_a_f = d_f * f * (1.0 - f)
    d_a_g = d_g * (1.0 - g * g)
    d_a_o = d_o * o * (1.0 - o)
    d_a = np.concatenate([d_a_i, d_a_f, d_a_g, d_a_o], axis=1)

    d_x, d_h_prev, d_parameters = products_backward(layer, x, h_prev, d_a, d_a)
    return d_x, (d_h_prev, d_c_prev), d_parameters


# ---- GRU: Cho et al., "Learning phrase representations using RNN encoder-decoder", EMNLP 2014; here in the form of
# ---- cuDNN and PyTorch, which resets after the recurrent product ----


def gru_step(layer: Layer, x: Array, prev: States) -> tuple[States, Saved]:
    """``n = tanh(xn + r*hn)``, ``h = (1-z)*n + z*h_prev``; the rows of the weights hold r, z, n in this order."""
    (h_prev,) = prev
    a_ih, a_hh = products(layer, x, h_prev)
    # r acts on the recurrent part of n only, so n's two parts stay apart.
    xr, xz, xn = np.split(a_ih, 3, axis=1)
    hr, hz, hn = np.split(a_hh, 3, axis=1)

    r = sigmoid(xr + hr)
    z = sigmoid(xz + hz)
    n = np.tanh(xn + r * hn)
    h = (1.0 - z) * n + z * h_prev
    return (h,), (x, h_prev, r, z, n, hn)


def gru_step_backward(layer: Layer, saved: Saved, d_state: States) -> tuple[Array, States, dict[str, Array]]:
    """``h_prev`` is reached twice: through the recurrent product and directly through ``z*h_prev``."""
    x, h_prev, r, z, n, hn = saved
    (d_h,) = d_state

    d_z = d_h * (h_prev - n)
    d_n = d_h * (1.0 - z)
    d_xn = d_n * (1.0 - n * n)
    d_hn = d_xn * r
    d_r = d_xn * hn

    d_a_r = d_r * r * (1.0 - r)
    d_a_z = d_z * z * (1.0 - z)
    d_a_ih = np.concatenate([d_a_r, d_a_z, d_xn], axis=1)
    d_a_hh = np.concatenate([d_a_r, d_a_z, d_hn], axis=1)

    d_x, d_h_prev, d_parameters = products_backward(layer, x, h_prev, d_a_ih, d_a_hh)
    return d_x, (d_h_prev + d_h * z,), d_parameters


CELLS: dict[str, Cell] = {
    "rnn": Cell(gates=1, states=("h",), step=rnn_step, step_backward=rnn_step_backward),
    "lstm": Cell(gates=4, states=("h", "c"), step=lstm_step, step_backward=lstm_step_backward),
    "gru": Cell(gates=3, states=("h",), step=gru_step, step_backward=gru_step_backward),
}


# ---- time: one layer, one direction ----


@dataclass(frozen=True)
class Moment:
    """One step that was taken: when, by which rows of the batch, and what its backward needs."""

    t: int
    rows: NDArray[np.intp]
    saved: Saved


def scan(
    cell: Cell, layer: Layer, x: Array, initial: States, valid: NDArray[np.bool_], reverse: bool
) -> tuple[Array, States, list[Moment]]:
    """Run one layer in one direction over time.

    ``x`` is [T, B, I_l], each initial state [B, H], ``valid`` [T, B]. A row keeps its state while it is not valid, so
    in the reverse direction it starts from its initial state at its last valid step, and in either direction its final
    state is that after its last step. Rows that are not valid take no part in the step at all: whatever their input
    holds, NaN included, reaches neither values nor gradients.

    Returns the output [T, B, H] (0 where not valid), the final state, and the moments in the order they happened.
    """
    steps, batch, _ = x.shape
    state = tuple(s.copy() for s in initial)
    output = np.zeros((steps, batch, layer.weight_hh.shape[1]))
    moments = []
    for t in reversed(range(steps)) if reverse else range(steps):
        rows = np.flatnonzero(valid[t])
        new, saved = cell.step(layer, x[t, rows], tuple(s[rows] for s in state))
        for s, value in zip(state, new, strict=True):
            s[rows] = value
        output[t, rows] = new[0]
        moments.append(Moment(t, rows, saved))
    return output, state, moments


def scan_backward(
    cell: Cell, layer: Layer, moments: list[Moment], d_output: Array, d_final: States
) -> tuple[Array, States, dict[str, Array], Array]:
    """Walk the moments of ``scan`` back, last first.

    ``d_output`` is [T, B, H], each of ``d_final`` [B, H]. Returns ``d_x`` [T, B, I_l], the gradient by the initial
    state, the parameters' gradients (the sum of all steps' shares) and ``d_h`` [T, B, H], the total gradient by each
    h_t: what arrives from the output at t, from the steps after it, and from the final state.
    """
    steps, batch, _ = d_output.shape
    d_x = np.zeros((steps, batch, layer.weight_ih.shape[1]))
    d_h = np.zeros_like(d_output)
    d_state = tuple(s.copy() for s in d_final)
    d_parameters = {
        name: np.zeros_like(getattr(layer, name)) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    }
    for moment in reversed(moments):
        t, rows = moment.t, moment.rows
        d_state[0][rows] += d_output[t, rows]
        d_h[t, rows] = d_state[0][rows]
        d_x[t, rows], d_prev, shares = cell.step_backward(layer, moment.saved, tuple(s[rows] for s in d_state))
        for s, value in zip(d_state, d_prev, strict=True):
            s[rows] = value
        for name, share in shares.items():
            d_parameters[name] += share
    return d_x, d_state, d_parameters, d_h


# ---- layers and directions ----


@dataclass(frozen=True)
class Tape:
    """What ``backward`` needs from ``forward``; it is never changed, so it serves any number of times."""

    cell: Cell
    layers: list[Layer]  # [L*D], index layer * directions + direction, like everything below
    moments: list[list[Moment]]  # [L*D]
    names: list[str]  # of the parameters that were given
    directions: int
    steps: int
    batch: int
    dropout_masks: list[Array] | None  # L-1 of [T, B, D*H]


@dataclass(frozen=True)
class Gradients:
    """The gradients of a loss, all float64."""

    input: Array
    """[T, B, I], 0 beyond a row's length."""
    state: Array | tuple[Array, ...]
    """By the initial state: [L*D, B, H], or a pair of these for LSTM."""
    parameters: dict[str, Array]
    """By name; exactly the names that ``forward`` was given."""
    per_step: list[Array]
    """[L*D] of [T, B, H]: the total gradient by h_t of each layer and direction, 0 beyond a row's length."""


def forward(
    cell: str,
    parameters: Mapping[str, ArrayLike],
    x: ArrayLike,
    state: ArrayLike | Sequence[ArrayLike] | None = None,
    *,
    nonlinearity: str = "tanh",
    num_layers: int = 1,
    bidirectional: bool = False,
    lengths: ArrayLike | None = None,
    dropout_masks: Sequence[ArrayLike] | None = None,
) -> tuple[Array, Array | tuple[Array, ...], Tape]:
    """Run a stack of recurrent layers over a batch of sequences.

    Args:
        cell: ``"rnn"``, ``"lstm"`` or ``"gru"``.
        parameters: PyTorch's names and shapes: ``weight_ih_l0`` [G*H, I], ``weight_hh_l0`` [G*H, H], ``bias_ih_l0``
            and ``bias_hh_l0`` [G*H], ``..._l1`` with D*H in the place of I, ``..._reverse`` for the second direction.
            A bias that is absent is 0.
        x: [T, B, I].
        state: the initial state, [L*D, B, H], or a pair ``(h, c)`` of these for LSTM; zeros by default.
        nonlinearity: ``"tanh"`` or ``"relu"``, of the RNN cell.
        num_layers: L.
        bidirectional: whether D is 2.
        lengths: [B] integers from 0 to T in any order; all T by default. The output beyond a row's length is 0, its
            state is that after its last valid step (the initial one for length 0), and its reverse direction starts
            at its last valid step.
        dropout_masks: L-1 arrays [T, B, D*H] that multiply the output of each layer but the last on its way up.

    Returns:
        ``output`` [T, B, D*H], ``state`` like the argument, and the tape for ``backward``. Whatever the dtype of the
        arguments, all is computed and returned in float64.

    Raises:
        ValueError: an unknown cell or nonlinearity, a missing or unknown parameter, a shape that does not fit, or a
            length out of range.
    """
    if cell not in CELLS:
        raise ValueError(f"cell: expected one of {', '.join(CELLS)}, got {cell!r}")
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"nonlinearity: expected 'tanh' or 'relu', got {nonlinearity!r}")
    kind = CELLS[cell]
    y = np.array(x, dtype=np.float64)
    if y.ndim != 3:
        raise ValueError(f"x: expected shape [T, B, I], got {list(y.shape)}")
    steps, batch, input_size = y.shape
    directions = 2 if bidirectional else 1
    layers = read_parameters(kind, parameters, input_size, num_layers, directions, nonlinearity)
    hidden_size = layers[0].weight_hh.shape[1]
    initial = read_states("state", kind, state, (num_layers * directions, batch, hidden_size))
    valid = np.arange(steps)[:, None] < read_lengths(lengths, steps, batch)
    masks = read_masks(dropout_masks, num_layers, (steps, batch, directions * hidden_size))

    finals: list[States] = []
    moments: list[list[Moment]] = []
    for level in range(num_layers):
        if level > 0 and masks is not None:
            y = y * masks[level - 1]
        outputs = []
        for direction in range(directions):
            k = level * directions + direction
            output, final, happened = scan(
                kind, layers[k], y, tuple(s[k] for s in initial), valid, reverse=direction == 1
            )
            outputs.append(output)
            finals.append(final)
            moments.append(happened)
        y = np.concatenate(outputs, axis=2)

    tape = Tape(kind, layers, moments, list(parameters), directions, steps, batch, masks)
    return y, stack_states(finals), tape


def backward(
    tape: Tape,
    grad_output: ArrayLike | None = None,
    grad_state: ArrayLike | Sequence[ArrayLike | None] | None = None,
) -> Gradients:
    """The gradients of a loss by everything that ``forward`` took.

    Args:
        tape: from ``forward``.
        grad_output: the gradient of the loss by ``output``, [T, B, D*H]; zeros by default. What it holds beyond a
            row's length is ignored, because the output there is a constant.
        grad_state: the gradient of the loss by the returned state, of the same form (either of LSTM's two may be
            None); zeros by default.

    Raises:
        ValueError: a shape that does not fit.
    """
    directions, hidden_size = tape.directions, tape.layers[0].weight_hh.shape[1]
    output_shape = (tape.steps, tape.batch, directions * hidden_size)
    d_y = read_array("grad_output", np.zeros(output_shape) if grad_output is None else grad_output, output_shape)
    d_final = read_states("grad_state", tape.cell, grad_state, (len(tape.layers), tape.batch, hidden_size))

    # Filled from the top layer down, so these are indexed rather than appended to.
    d_initial: list[States] = [()] * len(tape.layers)
    per_step: list[Array] = [np.empty(0)] * len(tape.layers)
    d_parameters: dict[str, Array] = {}
    for level in reversed(range(len(tape.layers) // directions)):
        d_inputs = np.zeros((tape.steps, tape.batch, tape.layers[level * directions].weight_ih.shape[1]))
        for direction, d_output in enumerate(np.split(d_y, directions, axis=2)):
            k = level * directions + direction
            d_x, d_initial[k], shares, per_step[k] = scan_backward(
                tape.cell, tape.layers[k], tape.moments[k], d_output, tuple(s[k] for s in d_final)
            )
            d_inputs += d_x  # both directions read the same input
            for name, share in shares.items():
                d_parameters[name + suffix(level, direction)] = share
        d_y = d_inputs
        if level > 0 and tape.dropout_masks is not None:
            d_y = d_y * tape.dropout_masks[level - 1]

    return Gradients(
        input=d_y,
        state=stack_states(d_initial),
        parameters={name: d_parameters[name] for name in tape.names},
        per_step=per_step,
    )


# ---- arguments ----


def suffix(level: int, direction: int) -> str:
    """How the names of the parameters of a layer and direction end."""
    return f"_l{level}" + ("_reverse" if direction == 1 else "")


def read_array(name: str, value: ArrayLike, shape: tuple[int, ...]) -> Array:
    array = np.array(value, dtype=np.float64)  # a copy, so that a tape does not depend on what the caller does next
    if array.shape != shape:
        raise ValueError(f"{name}: expected shape {list(shape)}, got {list(array.shape)}")
    return array


def read_parameters(
    cell: Cell,
    parameters: Mapping[str, ArrayLike],
    input_size: int,
    num_layers: int,
    directions: int,
    nonlinearity: str,
) -> list[Layer]:
    if num_layers < 1:
        raise ValueError(f"num_layers: expected at least 1, got {num_layers}")
    suffixes = [suffix(level, direction) for level in range(num_layers) for direction in range(directions)]
    missing = {kind + end for kind in ("weight_ih", "weight_hh") for end in suffixes} - set(parameters)
    known = {kind + end for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh") for end in suffixes}
    unknown = set(parameters) - known  # refused, because a misspelt bias would otherwise count as absent
    if missing or unknown:
        raise ValueError(f"parameters: missing {sorted(missing)}, unknown {sorted(unknown)}")

    weight_hh = np.asarray(parameters["weight_hh_l0"])
    if weight_hh.ndim != 2:
        raise ValueError(f"weight_hh_l0: expected shape [G*H, H], got {list(weight_hh.shape)}")
    hidden_size = weight_hh.shape[1]
    rows = cell.gates * hidden_size

    def read(name: str, *shape: int) -> Array:
        return read_array(name, parameters[name], shape) if name in parameters else np.zeros(shape)

    return [
        Layer(
            weight_ih=read("weight_ih" + end, rows, input_size if k < directions else directions * hidden_size),
            weight_hh=read("weight_hh" + end, rows, hidden_size),
            bias_ih=read("bias_ih" + end, rows),
            bias_hh=read("bias_hh" + end, rows),
            nonlinearity=nonlinearity,
        )
        for k, end in enumerate(suffixes)
    ]


def read_states(
    name: str, cell: Cell, value: ArrayLike | Sequence[ArrayLike | None] | None, shape: tuple[int, int, int]
) -> States:
    """One array for a cell with one state, a sequence for a cell with more; None, whole or in part, is zeros."""
    parts: list[object]
    if value is None:
        parts = [None] * len(cell.states)
    elif len(cell.states) == 1:
        parts = [value]
    elif isinstance(value, (tuple, list)) and len(value) == len(cell.states):
        parts = list(value)
    else:
        raise ValueError(f"{name}: expected a tuple ({', '.join(cell.states)}), got {type(value).__name__}")
    return tuple(
        np.zeros(shape) if part is None else read_array(f"{name} {letter}", np.asarray(part), shape)
        for letter, part in zip(cell.states, parts, strict=True)
    )


def stack_states(states: list[States]) -> Array | tuple[Array, ...]:
    """From [L*D] tuples of [B, H] to PyTorch's form: [L*D, B, H], or a tuple of these."""
    stacked = tuple(np.stack(parts) for parts in zip(*states, strict=True))
    return stacked[0] if len(stacked) == 1 else stacked


def read_lengths(lengths: ArrayLike | None, steps: int, batch: int) -> NDArray[np.int64]:
    if lengths is None:
        return np.full(batch, steps, dtype=np.int64)
    array = np.asarray(lengths)
    if array.shape != (batch,) or (batch > 0 and not np.issubdtype(array.dtype, np.integer)):
        raise ValueError(f"lengths: expected integers of shape [{batch}], got {array.dtype} {list(array.shape)}")
    if batch > 0 and (array.min() < 0 or array.max() > steps):
        raise ValueError(f"lengths: expected values from 0 to T = {steps}, got {array.min()} to {array.max()}")
    return array.astype(np.int64)


def read_masks(masks: Sequence[ArrayLike] | None, num_layers: int, shape: tuple[int, int, int]) -> list[Array] | None:
    if masks is None:
        return None
    if len(masks) != num_layers - 1:
        raise ValueError(f"dropout_masks: expected num_layers - 1 = {num_layers - 1} arrays, got {len(masks)}")
    return [read_array(f"dropout_masks[{index}]", mask, shape) for index, mask in enumerate(masks)]
