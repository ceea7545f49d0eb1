"""Time: one layer in one direction, and which rows take part in which step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .activations import Array
from .cells import Cell, Layer, Saved, States


@dataclass(frozen=True)
class Rows:
    """Which rows take part in which step, and where they start anew."""

    valid: NDArray[np.bool_]  # [T, B]
    reset: NDArray[np.bool_]  # [T, B]: the row's state starts anew at the boundary between steps t-1 and t
    to_initial: bool  # it then is the initial state, else zeros

    def anew(self, t: int, reverse: bool) -> NDArray[np.bool_]:
        """The rows that start anew before step t. Both directions cross the same boundary, from its two sides."""
        boundary = t + 1 if reverse else t
        if boundary == len(self.reset):
            return np.zeros(self.reset.shape[1], dtype=np.bool_)
        rows: NDArray[np.bool_] = self.reset[boundary]
        return rows


@dataclass(frozen=True)
class Noise:
    """The regularisers inside the recurrence of one layer and direction."""

    recurrent: Array | None = None  # [B, S]: multiplies the h that enters U
    keep: tuple[Any, ...] = (None, None)  # zoneout of h and c: bool [T, B, H], True keeps the value; or the share kept


@dataclass(frozen=True)
class Moment:
    """One step that was taken: when, by which rows of the batch, and what its backward needs."""

    t: int
    rows: NDArray[np.intp]
    anew: NDArray[np.bool_]  # [B]
    saved: Saved


@dataclass(frozen=True)
class Scanned:
    output: Array  # [T, B, S], like the next two 0 where a row takes no part
    gates: Array  # [T, B, G*H]
    cells: Array | None  # [T, B, H]
    final: States
    moments: list[Moment]  # in the order they happened


def scan(cell: Cell, layer: Layer, x: Array, initial: States, rows: Rows, noise: Noise, reverse: bool) -> Scanned:
    """Run one layer in one direction over time.

    ``x`` is [T, B, I_l], each initial state [B, S] or [B, H]. A row keeps its state while it is not valid, so in the
    reverse direction it starts from its initial state at its last valid step, and in either direction its final state
    is that after its last step. Rows that are not valid take no part in the step at all: whatever their input holds,
    NaN included, reaches neither values nor gradients.
    """
    steps, batch, _ = x.shape
    state = tuple(s.copy() for s in initial)
    output = np.zeros((steps, batch, state[0].shape[1]))
    gates = np.zeros((steps, batch, layer.weight_hh.shape[0]))
    cells = np.zeros((steps, batch, state[1].shape[1])) if len(state) == 2 else None
    moments = []
    for t in reversed(range(steps)) if reverse else range(steps):
        anew = rows.anew(t, reverse)
        for s, first in zip(state, initial, strict=True):
            s[anew] = first[anew] if rows.to_initial else 0.0
        now = np.flatnonzero(rows.valid[t])
        prev = tuple(s[now] for s in state)
        h_in = prev[0] if noise.recurrent is None else prev[0] * noise.recurrent[now]
        new, gates[t, now], saved = cell.step(layer, x[t, now], h_in, prev)
        for s, keep, old, value in zip(state, noise.keep, prev, new, strict=False):
            s[now] = kept(at(keep, t, now), old, value)
        output[t, now] = state[0][now]
        if cells is not None:
            cells[t, now] = state[1][now]
        moments.append(Moment(t, now, anew, saved))
    return Scanned(output, gates, cells, state, moments)


def at(keep: Any, t: int, rows: NDArray[np.intp]) -> Any:
    return keep[t, rows] if isinstance(keep, np.ndarray) else keep


def kept(keep: Any, old: Array, new: Array) -> Array:
    """Zoneout: Krueger et al., arXiv:1606.01305. In training a unit keeps its value or not, in inference a share."""
    if keep is None:
        return new
    return np.where(keep, old, new) if isinstance(keep, np.ndarray) else keep * old + (1.0 - keep) * new


def kept_backward(keep: Any, d: Array) -> tuple[Array, Array]:
    """The gradients by ``old`` and by ``new``."""
    return kept(keep, d, np.zeros_like(d)), kept(keep, np.zeros_like(d), d)


def scan_backward(
    cell: Cell,
    layer: Layer,
    moments: list[Moment],
    rows: Rows,
    noise: Noise,
    d_output: Array,
    d_final: States,
    grad_clip: float,
) -> tuple[Array, States, dict[str, Array], Array]:
    """Walk the moments of ``scan`` back, last first.

    ``d_output`` is [T, B, S], each of ``d_final`` like the state. Returns ``d_x`` [T, B, I_l], the gradient by the
    initial state, the parameters' gradients (the sum of all steps' shares) and ``d_h`` [T, B, S], the total gradient by
    each h_t: what arrives from the output at t, from the steps after it, and from the final state, within
    [-grad_clip, grad_clip].
    """
    steps, batch, _ = d_output.shape
    d_x = np.zeros((steps, batch, layer.weight_ih.shape[1]))
    d_h = np.zeros_like(d_output)
    d_state = tuple(s.copy() for s in d_final)
    d_initial = tuple(np.zeros_like(s) for s in d_final)
    d_parameters = {name: np.zeros_like(value) for name, value in layer.parameters().items()}
    for moment in reversed(moments):
        t, now = moment.t, moment.rows
        d_state[0][now] += d_output[t, now]
        d_state[0][now] = np.clip(d_state[0][now], -grad_clip, grad_clip)
        d_h[t, now] = d_state[0][now]

        parts = [kept_backward(at(keep, t, now), s[now]) for s, keep in zip(d_state, noise.keep, strict=False)]
        d_kept, d_new = zip(*parts, strict=True)
        d_x[t, now], d_h_in, d_prev, shares = cell.step_backward(layer, moment.saved, d_new)
        for s, value, through in zip(d_state, d_prev, d_kept, strict=True):
            s[now] = value + through
        d_state[0][now] += d_h_in if noise.recurrent is None else d_h_in * noise.recurrent[now]
        for name, share in shares.items():
            d_parameters[name] += share

        for s, first in zip(d_state, d_initial, strict=True):  # the gradient stops where a row started anew
            if rows.to_initial:
                first[moment.anew] += s[moment.anew]
            s[moment.anew] = 0.0
    return d_x, tuple(s + first for s, first in zip(d_state, d_initial, strict=True)), d_parameters, d_h


# ---- masked steps that repeat the output before them ----


def carried_from(valid: NDArray[np.bool_], reverse: bool) -> NDArray[np.intp]:
    """[T, B]: at which step the output was made that is there at step t; -1 before the first, in scan order."""
    steps = len(valid)
    order = np.where(valid[::-1] if reverse else valid, np.arange(steps)[:, None], -1)
    latest = np.maximum.accumulate(order, axis=0)
    return np.where(latest < 0, -1, steps - 1 - latest)[::-1] if reverse else latest


def carried(output: Array, valid: NDArray[np.bool_], reverse: bool) -> Array:
    source = carried_from(valid, reverse)
    there = source >= 0
    result = np.zeros_like(output)
    result[there] = output[source[there], np.nonzero(there)[1]]
    return result


def carried_backward(d_output: Array, valid: NDArray[np.bool_], reverse: bool) -> Array:
    """An output gets the gradients of all its copies."""
    source = carried_from(valid, reverse)
    there = source >= 0
    result = np.zeros_like(d_output)
    np.add.at(result, (source[there], np.nonzero(there)[1]), d_output[there])
    return result
