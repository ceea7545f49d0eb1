"""One step of each cell, and its gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from ..activation import Activation
from .activations import Array, Function

States: TypeAlias = tuple[Array, ...]
"""The state of a cell, h first: ``(h,)`` or ``(h, c)``."""
Saved: TypeAlias = tuple[Array, ...]
"""What one step's backward needs from its forward, in an order that only the two of them know."""

TANH, SIGMOID = Function(Activation("tanh")), Function(Activation("sigmoid"))
EPSILON = 1e-5  # of layer normalisation


@dataclass(frozen=True)
class Layer:
    """The parameters of one layer in one direction, and whatever else its equations depend on.

    ``S`` is the size of h: H, or that of the projection.
    """

    weight_ih: Array  # [G*H, I_l]
    weight_hh: Array  # [G*H, S]
    bias_ih: Array  # [G*H], zeros where the layer has no bias
    bias_hh: Array  # [G*H], likewise
    weight_hr: Array | None = None  # [S, H]: projects h
    weight_ch: Array | None = None  # [3, H]: peepholes of i, f, o
    weight_ln_ih: Array | None = None  # [G*H]: scale of the normalised W x; with it the other three, c's for an LSTM
    weight_ln_hh: Array | None = None  # [G*H]: scale of the normalised U h
    weight_ln_c: Array | None = None  # [H]
    bias_ln_c: Array | None = None  # [H]
    gate: Function = SIGMOID  # of every gate; RNN has only this one
    candidate: Function = TANH  # of g, n
    output: Function = TANH  # of c on its way to h
    coupled_gates: bool = False

    def parameters(self) -> dict[str, Array]:
        return {name: value for name in PARAMETERS if (value := getattr(self, name)) is not None}


PARAMETERS = (
    "weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr", "weight_ch",
    "weight_ln_ih", "weight_ln_hh", "weight_ln_c", "bias_ln_c",
)  # fmt: skip

Step: TypeAlias = Callable[[Layer, Array, Array, States], tuple[States, Array, Saved]]
StepBackward: TypeAlias = Callable[[Layer, Saved, States], tuple[Array, Array, States, dict[str, Array]]]


@dataclass(frozen=True)
class Cell:
    """One kind of recurrent cell.

    ``step(layer, x, h_in, prev) -> state, gates, saved`` takes ``x`` [rows, I_l], the h that enters the recurrent
    product [rows, S] (``prev``'s own, unless dropout has changed it), and the previous state. ``gates`` [rows, G*H] are
    in the order of the weights' rows.
    ``step_backward(layer, saved, d_state) -> d_x, d_h_in, d_prev, d_parameters`` takes the gradient of the loss by the
    state that the step made; ``d_prev`` leaves out what comes through ``h_in``, and ``d_parameters`` is this step's
    share of the parameters' gradients.
    """

    gates: int
    states: tuple[str, ...]
    step: Step
    step_backward: StepBackward


# ---- what the cells share ----


def products(layer: Layer, x: Array, h_in: Array) -> tuple[Array, Array]:
    """The input's and the recurrent part of the pre-activations, each [rows, G*H]."""
    wx, uh = x @ layer.weight_ih.T, h_in @ layer.weight_hh.T
    if layer.weight_ln_ih is not None and layer.weight_ln_hh is not None:
        wx, uh = layer.weight_ln_ih * normalised(wx), layer.weight_ln_hh * normalised(uh)
    return wx + layer.bias_ih, uh + layer.bias_hh


def products_backward(
    layer: Layer, x: Array, h_in: Array, d_a_ih: Array, d_a_hh: Array
) -> tuple[Array, Array, dict[str, Array]]:
    """The gradients by ``x``, by ``h_in`` and by the parameters."""
    d_parameters = {"bias_ih": d_a_ih.sum(axis=0), "bias_hh": d_a_hh.sum(axis=0)}
    d_wx, d_uh = d_a_ih, d_a_hh
    if layer.weight_ln_ih is not None and layer.weight_ln_hh is not None:
        wx, uh = x @ layer.weight_ih.T, h_in @ layer.weight_hh.T
        d_parameters["weight_ln_ih"] = (d_a_ih * normalised(wx)).sum(axis=0)
        d_parameters["weight_ln_hh"] = (d_a_hh * normalised(uh)).sum(axis=0)
        d_wx = normalised_backward(wx, d_a_ih * layer.weight_ln_ih)
        d_uh = normalised_backward(uh, d_a_hh * layer.weight_ln_hh)
    d_parameters["weight_ih"] = d_wx.T @ x
    d_parameters["weight_hh"] = d_uh.T @ h_in
    return d_wx @ layer.weight_ih, d_uh @ layer.weight_hh, d_parameters


def normalised(v: Array) -> Array:
    """``(v - mean) / sqrt(var + eps)`` of each row: Ba, Kiros & Hinton, arXiv:1607.06450."""
    if v.shape[1] == 0:
        return v
    centred: Array = v - v.mean(axis=1, keepdims=True)
    return centred * reciprocal_deviation(v)


def reciprocal_deviation(v: Array) -> Array:
    """``1 / sqrt(var + eps)`` of each row, [rows, 1]."""
    reciprocal: Array = 1.0 / np.sqrt(v.var(axis=1, keepdims=True) + EPSILON)
    return reciprocal


def normalised_backward(v: Array, d: Array) -> Array:
    """Mean and variance depend on v too: what of ``d`` lies along 1 and along the normalised row has no effect."""
    if v.shape[1] == 0:
        return d
    n = normalised(v)
    effective: Array = d - d.mean(axis=1, keepdims=True) - n * (d * n).mean(axis=1, keepdims=True)
    return effective * reciprocal_deviation(v)


# ---- RNN: Elman, "Finding structure in time", Cognitive Science 14 (1990) ----


def rnn_step(layer: Layer, x: Array, h_in: Array, prev: States) -> tuple[States, Array, Saved]:
    """``h = act(W x + b_ih + U h_in + b_hh)``."""
    a_ih, a_hh = products(layer, x, h_in)
    a = a_ih + a_hh
    h = layer.gate(a)
    return (h,), h, (x, h_in, a)


def rnn_step_backward(layer: Layer, saved: Saved, d_state: States) -> tuple[Array, Array, States, dict[str, Array]]:
    x, h_in, a = saved
    (d_h,) = d_state
    d_a = d_h * layer.gate.derivative(a)
    d_x, d_h_in, d_parameters = products_backward(layer, x, h_in, d_a, d_a)
    return d_x, d_h_in, (np.zeros_like(d_h),), d_parameters


# ---- LSTM: Hochreiter & Schmidhuber, Neural Computation 9(8) (1997); forget gate: Gers, Schmidhuber & Cummins,
# ---- "Learning to forget", Neural Computation 12(10) (2000); peepholes: Gers & Schmidhuber, "Recurrent nets that time
# ---- and count", IJCNN 2000; projection: Sak, Senior & Beaufays, arXiv:1402.1128; coupled gates: Greff et al.,
# ---- arXiv:1503.04069 ----


def lstm_step(layer: Layer, x: Array, h_in: Array, prev: States) -> tuple[States, Array, Saved]:
    """``c = f*c_prev + i*g``, ``h = o*tanh(c)``; the rows of the weights hold i, f, g, o in this order."""
    _, c_prev = prev
    a_ih, a_hh = products(layer, x, h_in)
    a_i, a_f, a_g, a_o = np.split(a_ih + a_hh, 4, axis=1)
    peep_i, peep_f, peep_o = layer.weight_ch if layer.weight_ch is not None else (0.0, 0.0, 0.0)

    a_i = a_i + peep_i * c_prev
    a_f = a_f + peep_f * c_prev
    i = layer.gate(a_i)
    f = 1.0 - i if layer.coupled_gates else layer.gate(a_f)
    g = layer.candidate(a_g)
    c = f * c_prev + i * g
    a_o = a_o + peep_o * c
    o = layer.gate(a_o)
    a_c = c
    if layer.weight_ln_c is not None and layer.bias_ln_c is not None:
        a_c = layer.weight_ln_c * normalised(c) + layer.bias_ln_c
    m = o * layer.output(a_c)
    h = m if layer.weight_hr is None else m @ layer.weight_hr.T
    gates = np.concatenate([i, f, g, o], axis=1)
    return (h, c), gates, (x, h_in, c_prev, a_i, a_f, a_g, a_o, gates, c, a_c, m)


def lstm_step_backward(layer: Layer, saved: Saved, d_state: States) -> tuple[Array, Array, States, dict[str, Array]]:
    """``d_c`` arrives with the future's share and gains what goes through this step's h and through o's peephole."""
    x, h_in, c_prev, a_i, a_f, a_g, a_o, gates, c, a_c, m = saved
    d_h, d_c = d_state
    i, f, g, o = np.split(gates, 4, axis=1)
    peep_i, peep_f, peep_o = layer.weight_ch if layer.weight_ch is not None else (0.0, 0.0, 0.0)
    extra: dict[str, Array] = {}

    d_m = d_h
    if layer.weight_hr is not None:
        extra["weight_hr"] = d_h.T @ m
        d_m = d_h @ layer.weight_hr
    d_a_o = d_m * layer.output(a_c) * layer.gate.derivative(a_o)
    d_a_c = d_m * o * layer.output.derivative(a_c)
    if layer.weight_ln_c is not None:
        extra["weight_ln_c"] = (d_a_c * normalised(c)).sum(axis=0)
        extra["bias_ln_c"] = d_a_c.sum(axis=0)
        d_a_c = normalised_backward(c, d_a_c * layer.weight_ln_c)
    d_c = d_c + d_a_c + peep_o * d_a_o

    d_i, d_f, d_g = d_c * g, d_c * c_prev, d_c * i
    if layer.coupled_gates:  # f = 1 - i
        d_i, d_f = d_i - d_f, np.zeros_like(d_f)
    d_a_i = d_i * layer.gate.derivative(a_i)
    d_a_f = d_f * layer.gate.derivative(a_f)
    d_a_g = d_g * layer.candidate.derivative(a_g)
    d_c_prev = d_c * f + peep_i * d_a_i + peep_f * d_a_f
    if layer.weight_ch is not None:
        shares = [(d_a_i * c_prev), (d_a_f * c_prev), (d_a_o * c)]
        extra["weight_ch"] = np.stack([share.sum(axis=0) for share in shares])

    d_a = np.concatenate([d_a_i, d_a_f, d_a_g, d_a_o], axis=1)
    d_x, d_h_in, d_parameters = products_backward(layer, x, h_in, d_a, d_a)
    return d_x, d_h_in, (np.zeros_like(d_h), d_c_prev), d_parameters | extra


# ---- GRU: Cho et al., "Learning phrase representations using RNN encoder-decoder", EMNLP 2014; here in the form of
# ---- cuDNN and PyTorch, which resets after the recurrent product ----


def gru_step(layer: Layer, x: Array, h_in: Array, prev: States) -> tuple[States, Array, Saved]:
    """``n = tanh(xn + r*hn)``, ``h = (1-z)*n + z*h_prev``; the rows of the weights hold r, z, n in this order."""
    (h_prev,) = prev
    a_ih, a_hh = products(layer, x, h_in)
    # r acts on the recurrent part of n only, so n's two parts stay apart.
    xr, xz, xn = np.split(a_ih, 3, axis=1)
    hr, hz, hn = np.split(a_hh, 3, axis=1)

    a_r, a_z = xr + hr, xz + hz
    r, z = layer.gate(a_r), layer.gate(a_z)
    a_n = xn + r * hn
    n = layer.candidate(a_n)
    h = (1.0 - z) * n + z * h_prev
    return (h,), np.concatenate([r, z, n], axis=1), (x, h_in, h_prev, a_r, a_z, a_n, hn)


def gru_step_backward(layer: Layer, saved: Saved, d_state: States) -> tuple[Array, Array, States, dict[str, Array]]:
    """``h_prev`` is reached twice: through the recurrent product and directly through ``z*h_prev``."""
    x, h_in, h_prev, a_r, a_z, a_n, hn = saved
    (d_h,) = d_state
    r, z, n = layer.gate(a_r), layer.gate(a_z), layer.candidate(a_n)

    d_a_z = d_h * (h_prev - n) * layer.gate.derivative(a_z)
    d_a_n = d_h * (1.0 - z) * layer.candidate.derivative(a_n)
    d_hn = d_a_n * r
    d_a_r = d_a_n * hn * layer.gate.derivative(a_r)
    d_a_ih = np.concatenate([d_a_r, d_a_z, d_a_n], axis=1)
    d_a_hh = np.concatenate([d_a_r, d_a_z, d_hn], axis=1)

    d_x, d_h_in, d_parameters = products_backward(layer, x, h_in, d_a_ih, d_a_hh)
    return d_x, d_h_in, (d_h * z,), d_parameters


# ---- GRU as first published: the reset gate acts on h, before the product ----


def gru_reset_before_step(layer: Layer, x: Array, h_in: Array, prev: States) -> tuple[States, Array, Saved]:
    """``n = tanh(xn + Un (r*h_in) + b_hn)``; r and z as above."""
    (h_prev,) = prev
    rz_rows = 2 * h_prev.shape[1]
    a_ih = x @ layer.weight_ih.T + layer.bias_ih + layer.bias_hh
    a_rz = a_ih[:, :rz_rows] + h_in @ layer.weight_hh[:rz_rows].T

    r, z = np.split(layer.gate(a_rz), 2, axis=1)
    a_n = a_ih[:, rz_rows:] + (r * h_in) @ layer.weight_hh[rz_rows:].T
    n = layer.candidate(a_n)
    h = (1.0 - z) * n + z * h_prev
    return (h,), np.concatenate([r, z, n], axis=1), (x, h_in, h_prev, a_rz, a_n)


def gru_reset_before_step_backward(
    layer: Layer, saved: Saved, d_state: States
) -> tuple[Array, Array, States, dict[str, Array]]:
    """``h_in`` is reached twice more: through r and through what r multiplies."""
    x, h_in, h_prev, a_rz, a_n = saved
    (d_h,) = d_state
    rz_rows = 2 * h_prev.shape[1]
    u_rz, u_n = layer.weight_hh[:rz_rows], layer.weight_hh[rz_rows:]
    r, z = np.split(layer.gate(a_rz), 2, axis=1)
    n = layer.candidate(a_n)

    d_z = d_h * (h_prev - n)
    d_a_n = d_h * (1.0 - z) * layer.candidate.derivative(a_n)
    d_rh = d_a_n @ u_n
    d_r = d_rh * h_in
    d_a_rz = np.concatenate([d_r, d_z], axis=1) * layer.gate.derivative(a_rz)

    d_a = np.concatenate([d_a_rz, d_a_n], axis=1)
    d_parameters = {
        "weight_ih": d_a.T @ x,
        "weight_hh": np.concatenate([d_a_rz.T @ h_in, d_a_n.T @ (r * h_in)]),
        "bias_ih": d_a.sum(axis=0),
        "bias_hh": d_a.sum(axis=0),
    }
    return d_a @ layer.weight_ih, d_a_rz @ u_rz + d_rh * r, (d_h * z,), d_parameters


CELLS: dict[str, Cell] = {
    "rnn": Cell(gates=1, states=("h",), step=rnn_step, step_backward=rnn_step_backward),
    "lstm": Cell(gates=4, states=("h", "c"), step=lstm_step, step_backward=lstm_step_backward),
    "gru": Cell(gates=3, states=("h",), step=gru_step, step_backward=gru_step_backward),
    "gru reset before": Cell(
        gates=3, states=("h",), step=gru_reset_before_step, step_backward=gru_reset_before_step_backward
    ),
}
