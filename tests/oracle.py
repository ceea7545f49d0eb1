"""Comparing a layer with ``rnnfast.reference``: every output and every gradient, by name.

Tolerances come from the dtype and the length of the sums, never from a bare constant. With ``eps`` of the dtype:

* output and h: ``4 * eps * sqrt(I + H)``, absolute, because these are bounded by 1 where the activation is tanh;
* c, which is not bounded: the same, relative to ``1 + max|c|``;
* gradients: ``4 * eps * sqrt(max(I + H, G*H, T*B))`` relative to the largest element of that gradient: a sum over
  columns (d_x, d_h) has G*H terms, and one over steps and rows (parameters) T*B.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from rnnfast import reference


class Tolerances(NamedTuple):
    output: float
    gradient: float


def tolerances(dtype: Any, I: int, H: int, G: int, T: int, B: int) -> Tolerances:
    """The two tolerances of a layer with these sizes that computes in ``dtype``."""
    eps = float(np.finfo(dtype).eps)
    return Tolerances(
        output=4 * eps * float(np.sqrt(max(I + H, 1))),
        gradient=4 * eps * float(np.sqrt(max(I + H, G * H, T * B, 1))),
    )


def assert_close(name: str, got: Any, want: Any, allowed: float) -> None:
    """Fail where any element is off by more than ``allowed``. NaN equals NaN, and an infinity equals itself."""
    got, want = np.asarray(got), np.asarray(want, dtype=np.float64)
    assert got.shape == want.shape, f"{name}: shape {list(got.shape)}, expected {list(want.shape)}"
    if want.size == 0:
        return
    got = got.astype(np.float64)
    with np.errstate(invalid="ignore"):
        error = np.abs(got - want)
    error = np.where((got == want) | (np.isnan(got) & np.isnan(want)), 0.0, error)
    error = np.where(np.isnan(error), np.inf, error)  # NaN on one side only
    index = tuple(int(i) for i in np.unravel_index(np.argmax(error), error.shape))
    worst = float(error[index])
    assert worst <= allowed, (
        f"{name}: max error {worst:.3e} at {list(index)} exceeds the tolerance {allowed:.3e} "
        f"(got {got[index]:.9g}, expected {want[index]:.9g}; {(error > allowed).sum()} of {error.size} exceed it)"
    )


def largest(want: Any) -> float:
    """The largest finite magnitude, 0 for an array that has none."""
    want = np.abs(np.asarray(want, dtype=np.float64))
    return float(np.max(want, initial=0.0, where=np.isfinite(want)))


def assert_close_output(name: str, got: Any, want: Any, tolerance: float, *, unbounded: bool = False) -> None:
    """An output or a state; ``unbounded`` (for c) makes the tolerance relative to ``1 + max|want|``."""
    assert_close(name, got, want, tolerance * (1.0 + largest(want) if unbounded else 1.0))


def assert_close_gradient(name: str, got: Any, want: Any, tolerance: float) -> None:
    """A gradient; the tolerance is relative to its largest element, so a gradient that is 0 everywhere must be 0."""
    assert_close(name, got, want, tolerance * largest(want))


@dataclass(frozen=True)
class Axes:
    """The form of a layer's arrays, and the way from it to the reference's [T, B, ...]."""

    unbatched: bool
    batch_first: bool

    def sequence(self, array: Any) -> Any:
        if array is None:
            return None
        if self.unbatched:
            return np.asarray(array)[:, None]
        return np.asarray(array).swapaxes(0, 1) if self.batch_first else np.asarray(array)

    def states(self, value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return tuple(self.states(part) for part in value)
        return np.asarray(value)[:, None] if self.unbatched and value is not None else value


def layer_tolerances(layer: Any, dtype: Any, shape: tuple[int, ...]) -> Tolerances:
    """Those of the widest layer of the stack; ``shape`` is that of the input as [T, B, I]."""
    widest = max(np.shape(value)[1] for name, value in layer.parameters.items() if name.startswith("weight_ih"))
    hidden_size = np.shape(layer.parameters["weight_hh_l0"])[1]
    gates = reference.CELLS[type(layer).__name__.lower()].gates
    return tolerances(dtype, widest, hidden_size, gates, shape[0], shape[1])


def compare_layer(
    layer: Any,
    x: np.ndarray,
    hx: Any,
    grad_output: np.ndarray | None,
    grad_state: Any,
    lengths: Any = None,
    *,
    dropout_masks: Any = None,
) -> None:
    """Run ``layer`` forward and backward and compare everything it returns with the reference.

    The arrays have the form that the layer takes: [T, B, ...], [B, T, ...] with ``batch_first``, or without a batch.
    ``per_step`` is [T, B, H] whatever the form of the input. A layer that applies dropout needs the masks it used.
    """
    output, state, tape = layer.forward(x, hx, lengths=lengths)
    grads = layer.backward(tape, grad_output, grad_state, per_step=True)

    cell = type(layer).__name__.lower()
    axes = Axes(unbatched=x.ndim == 2, batch_first=layer.batch_first)
    want_output, want_state, want_tape = reference.forward(
        cell,
        layer.parameters,
        axes.sequence(x),
        axes.states(hx),
        nonlinearity=getattr(layer, "nonlinearity", "tanh"),
        num_layers=layer.num_layers,
        bidirectional=layer.bidirectional,
        lengths=lengths,
        dropout_masks=dropout_masks,
    )
    want = reference.backward(want_tape, axes.sequence(grad_output), axes.states(grad_state))
    per_step = [value[:, None] if value.ndim == 2 else value for value in grads.per_step]

    def named(prefix: str, value: Any) -> dict[str, Any]:
        letters = reference.CELLS[cell].states
        return {f"{prefix} {s}": v for s, v in zip(letters, (value,) if len(letters) == 1 else value, strict=True)}

    def gradients(by_input: Any, by_state: Any, by_parameters: Any, by_step: Any) -> dict[str, Any]:
        everything = {"grads.input": by_input, **named("grads.state", by_state)}
        everything |= {f"grads.parameters {name}": value for name, value in by_parameters.items()}
        return everything | {f"grads.per_step[{k}]": value for k, value in enumerate(by_step)}

    allowed = layer_tolerances(layer, x.dtype, axes.sequence(x).shape)
    assert_same_names(
        x.dtype,
        got := {"output": axes.sequence(output), **named("state", axes.states(state))},
        expected := {"output": want_output, **named("state", want_state)},
    )
    for name, value in got.items():
        assert_close_output(name, value, expected[name], allowed.output, unbounded=name == "state c")
    assert_same_names(
        x.dtype,
        got := gradients(axes.sequence(grads.input), axes.states(grads.state), grads.parameters, per_step),
        expected := gradients(want.input, want.state, want.parameters, want.per_step),
    )
    for name, value in got.items():
        assert_close_gradient(name, value, expected[name], allowed.gradient)


def assert_same_names(dtype: Any, got: dict[str, Any], want: dict[str, Any]) -> None:
    """That nothing is missing or unexpected, and that everything has the layer's dtype."""
    assert set(got) == set(want), f"missing {sorted(set(want) - set(got))}, unexpected {sorted(set(got) - set(want))}"
    for name, value in got.items():
        assert value.dtype == dtype, f"{name}: dtype {value.dtype}, expected {dtype}"
