"""Layers and directions: what is called from outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .activations import Array
from .arguments import Functions, Given, Masks, read_array, read_noise, read_parameters, read_rows, read_states, suffix
from .cells import CELLS, Cell, Layer, States
from .scan import Moment, Noise, Rows, carried, carried_backward, scan, scan_backward

State = Any
"""[L*D, B, H] where all layers are alike, else a tuple of L arrays [D, B, H_l]; for an LSTM a pair ``(h, c)``."""


@dataclass(frozen=True)
class Tape:
    """What ``backward`` needs from ``forward``; it is never changed, so it serves any number of times."""

    cell: Cell
    layers: list[Layer]  # [L*D], index layer * directions + direction, like everything below
    moments: list[list[Moment]]  # [L*D]
    noise: list[Noise]  # [L*D]
    names: list[str]  # of the parameters that were given
    directions: int
    rows: Rows
    carry: bool
    masks: Masks
    cells: Array | None
    """[T, B, D*H], an LSTM's: the last layer's c_t, 0 where a row takes no part."""
    gates: Array
    """[T, B, D*G*H]: the last layer's gates, likewise."""


@dataclass(frozen=True)
class Gradients:
    """The gradients of a loss, all float64."""

    input: Array
    """[T, B, I], 0 where a row takes no part."""
    state: State
    """By the initial state, in the form of the state."""
    parameters: dict[str, Array]
    """By name; exactly the names that ``forward`` was given."""
    per_step: list[Array]
    """[L*D] of [T, B, S]: the total gradient by h_t of each layer and direction, 0 where a row takes no part."""


def forward(
    cell: str,
    parameters: Mapping[str, ArrayLike],
    x: ArrayLike,
    state: State = None,
    *,
    nonlinearity: str | None = None,
    activation: Given = None,
    recurrent_activation: Given = None,
    output_activation: Given = None,
    clip: float | None = None,
    reset_after: bool = True,
    coupled_gates: bool = False,
    zoneout: float | tuple[float, float] = 0.0,
    num_layers: int = 1,
    bidirectional: bool = False,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    masked_output: str = "zero",
    reset: ArrayLike | None = None,
    reset_to: str = "zero",
    dropout_masks: Sequence[ArrayLike] | None = None,
    input_masks: Sequence[ArrayLike] | None = None,
    recurrent_masks: Sequence[ArrayLike] | None = None,
    zoneout_masks_h: Sequence[ArrayLike] | None = None,
    zoneout_masks_c: Sequence[ArrayLike] | None = None,
) -> tuple[Array, State, Tape]:
    """Run a stack of recurrent layers over a batch of sequences.

    Args:
        cell: ``"rnn"``, ``"lstm"`` or ``"gru"``.
        parameters: PyTorch's names and shapes: ``weight_ih_l0`` [G*H, I], ``weight_hh_l0`` [G*H, S], ``bias_ih_l0``
            and ``bias_hh_l0`` [G*H], ``..._l1`` with D*S in the place of I, ``..._reverse`` for the second direction.
            A bias that is absent is 0. An LSTM with ``weight_hr`` [S, H] projects h, else S is H; with ``weight_ch``
            [3, H] it has peepholes. ``weight_ln_ih``, ``weight_ln_hh`` [G*H], and an LSTM's ``weight_ln_c`` and
            ``bias_ln_c`` [H], make a layer normalised. Layers may differ in H.
        x: [T, B, I].
        state: the initial state, [L*D, B, S], or a tuple of L arrays [D, B, S_l]; for LSTM a pair ``(h, c)`` of these,
            with c's as wide as H; zeros by default.
        nonlinearity: ``"tanh"`` or ``"relu"``: the other name of an RNN's ``activation``.
        activation, recurrent_activation, output_activation: of the candidate (g, n; of an RNN's h), of the gates, and
            of an LSTM's c on its way to h (default: ``activation``): a name, an ``Activation``, or a pair of these, one
            for each direction.
        clip: bounds the input of every activation to [-clip, clip].
        reset_after: False: a GRU's reset gate acts on h instead of U h.
        coupled_gates: an LSTM's f is 1 - i.
        zoneout: the share of h, or of (h, c), that stays as it was at every step: the expected value of a run with
            ``zoneout_masks``.
        num_layers: L.
        bidirectional: whether D is 2.
        lengths: [B] integers from 0 to T in any order; all T by default. The output beyond a row's length is 0, its
            state is that after its last valid step (the initial one for length 0), and its reverse direction starts
            at its last valid step.
        mask: [T, B] instead of lengths: False where a row takes no part in a step and keeps its state.
        masked_output: ``"zero"``, or ``"carry"``: such a step's output is that of the step before, in scan order.
        reset: [T, B]: True where the state starts anew between steps t-1 and t.
        reset_to: ``"zero"``, or ``"initial"``.
        dropout_masks: L-1 arrays [T, B, D*S] that multiply the output of each layer but the last on its way up.
        input_masks: L arrays [B, I_l] that multiply the input of each layer at every step.
        recurrent_masks: L*D arrays [B, S] that multiply the h that enters U at every step.
        zoneout_masks_h, zoneout_masks_c: L*D arrays [T, B, H], True where h, c keep the value they had.

    Returns:
        ``output`` [T, B, D*S], ``state`` like the argument, and the tape for ``backward``, which also has the last
        layer's ``cells`` and ``gates``. Whatever the dtype of the arguments, all is computed and returned in float64.

    Raises:
        ValueError: an unknown cell or activation, a missing or unknown parameter, a shape that does not fit, or a
            length out of range.
    """
    if cell not in ("rnn", "lstm", "gru"):
        raise ValueError(f"cell: expected one of rnn, lstm, gru, got {cell!r}")
    if nonlinearity not in (None, "tanh", "relu"):
        raise ValueError(f"nonlinearity: expected 'tanh' or 'relu', got {nonlinearity!r}")
    kind = CELLS[cell if reset_after or cell != "gru" else "gru reset before"]
    y = np.array(x, dtype=np.float64)
    if y.ndim != 3:
        raise ValueError(f"x: expected shape [T, B, I], got {list(y.shape)}")
    directions = 2 if bidirectional else 1
    functions = Functions.read(cell, nonlinearity or activation, recurrent_activation, output_activation, clip)
    layers = read_parameters(kind, parameters, y.shape[2], num_layers, directions, functions, coupled_gates)
    initial = read_states("state", layers, directions, kind, state, y.shape[1])
    rows = read_rows(y.shape[0], y.shape[1], lengths, mask, reset, reset_to == "initial")
    masks = Masks.read(layers, directions, rows.valid.shape, dropout_masks, input_masks)
    noise = read_noise(layers, rows.valid.shape, recurrent_masks, zoneout, zoneout_masks_h, zoneout_masks_c)

    finals: list[States] = []
    moments: list[list[Moment]] = []
    for level in range(num_layers):
        y = masks.applied(level, y)
        runs = []
        for direction in range(directions):
            k = level * directions + direction
            runs.append(scan(kind, layers[k], y, initial[k], rows, noise[k], reverse=direction == 1))
            finals.append(runs[-1].final)
            moments.append(runs[-1].moments)
        y = np.concatenate([run.output for run in runs], axis=2)

    carry = masked_output == "carry"
    if carry:
        y = np.concatenate([carried(run.output, rows.valid, d == 1) for d, run in enumerate(runs)], axis=2)
    cells = [run.cells for run in runs if run.cells is not None]
    tape = Tape(
        kind, layers, moments, noise, list(parameters), directions, rows, carry, masks,
        cells=np.concatenate(cells, axis=2) if cells else None,
        gates=np.concatenate([run.gates for run in runs], axis=2),
    )  # fmt: skip
    return y, stack_states(finals, directions), tape


def backward(
    tape: Tape, grad_output: ArrayLike | None = None, grad_state: State = None, *, grad_clip: float | None = None
) -> Gradients:
    """The gradients of a loss by everything that ``forward`` took.

    Args:
        tape: from ``forward``.
        grad_output: the gradient of the loss by ``output``, [T, B, D*S]; zeros by default. What it holds where a row
            takes no part is ignored, because the output there is a constant (with "carry" it is not).
        grad_state: the gradient of the loss by the returned state, of the same form (either of LSTM's two may be
            None); zeros by default.
        grad_clip: bounds the gradient by every h_t, as it goes back from step to step.

    Raises:
        ValueError: a shape that does not fit.
    """
    directions, layers = tape.directions, tape.layers
    steps, batch = tape.rows.valid.shape
    output_shape = (steps, batch, directions * layers[-1].weight_hh.shape[1])
    d_y = read_array("grad_output", np.zeros(output_shape) if grad_output is None else grad_output, output_shape)
    d_final = read_states("grad_state", layers, directions, tape.cell, grad_state, batch)
    bound = np.inf if grad_clip is None else grad_clip

    # Filled from the top layer down, so these are indexed rather than appended to.
    d_initial: list[States] = [()] * len(layers)
    per_step: list[Array] = [np.empty(0)] * len(layers)
    d_parameters: dict[str, Array] = {}
    for level in reversed(range(len(layers) // directions)):
        d_inputs = np.zeros((steps, batch, layers[level * directions].weight_ih.shape[1]))
        for direction, d_output in enumerate(np.split(d_y, directions, axis=2)):
            k = level * directions + direction
            if tape.carry and k // directions == len(layers) // directions - 1:
                d_output = carried_backward(d_output, tape.rows.valid, direction == 1)
            d_x, d_initial[k], shares, per_step[k] = scan_backward(
                tape.cell, layers[k], tape.moments[k], tape.rows, tape.noise[k], d_output, d_final[k], bound
            )
            d_inputs += d_x  # both directions read the same input
            for name, share in shares.items():
                d_parameters[name + suffix(level, direction)] = share
        d_y = tape.masks.applied(level, d_inputs)

    return Gradients(
        input=d_y,
        state=stack_states(d_initial, directions),
        parameters={name: d_parameters[name] for name in tape.names},
        per_step=per_step,
    )


def stack_states(states: list[States], directions: int) -> State:
    """From [L*D] tuples of [B, H] to PyTorch's form: [L*D, B, H], or a tuple of these."""
    parts: list[Any] = []
    for arrays in zip(*states, strict=True):
        if len({array.shape for array in arrays}) == 1:
            parts.append(np.stack(arrays))
        else:
            parts.append(tuple(np.stack(arrays[k : k + directions]) for k in range(0, len(arrays), directions)))
    return parts[0] if len(parts) == 1 else tuple(parts)
