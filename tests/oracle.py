"""Comparing a layer with ``rnnfast.reference``: every output and every gradient, by name.

Tolerances come from the dtype and the length of the sums, never from a bare constant. With ``eps`` of the dtype:

* output and h: ``4 * eps * sqrt(I + H)``, absolute, because these are bounded by 1 where the activation is tanh;
* c, which is not bounded: the same, relative to ``1 + max|c|``;
* gradients: ``4 * eps * sqrt(max(I + H, G*H, T*B))`` relative to the largest element of that gradient: a sum over
  columns (d_x, d_h) has G*H terms, and one over steps and rows (parameters) T*B.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from rnnfast import reference


@contextmanager
def exact_threads(n: int) -> Iterator[None]:
    """Calls made inside run on exactly ``n`` threads, however small they are. The public ``rf.threads`` sets a limit,
    and the sizes that tests can afford are below what the engine gives to a second thread."""
    from rnnfast import _settings  # here, because the reference and this module need no compiled part

    token = _settings.context_threads.set(-n)
    try:
        yield
    finally:
        _settings.context_threads.reset(token)


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


def assert_close(name: str, got: Any, want: Any, allowed: float) -> float:
    """Fail where any element is off by more than ``allowed``. NaN equals NaN, and an infinity equals itself.

    Returns the largest error as a fraction of ``allowed``.
    """
    got, want = np.asarray(got), np.asarray(want, dtype=np.float64)
    assert got.shape == want.shape, f"{name}: shape {list(got.shape)}, expected {list(want.shape)}"
    if want.size == 0:
        return 0.0
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
    return worst / allowed if worst else 0.0


def largest(want: Any) -> float:
    """The largest finite magnitude, 0 for an array that has none."""
    want = np.abs(np.asarray(want, dtype=np.float64))
    return float(np.max(want, initial=0.0, where=np.isfinite(want)))


def assert_close_output(name: str, got: Any, want: Any, tolerance: float, *, unbounded: bool = False) -> float:
    """An output or a state; ``unbounded`` (for c) makes the tolerance relative to ``1 + max|want|``."""
    return assert_close(name, got, want, tolerance * (1.0 + largest(want) if unbounded else 1.0))


def assert_close_gradient(name: str, got: Any, want: Any, tolerance: float) -> float:
    """A gradient; the tolerance is relative to its largest element, so a gradient that is 0 everywhere must be 0."""
    return assert_close(name, got, want, tolerance * largest(want))


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
    gates = reference.CELLS[type(layer).__name__.lower()].gates
    hidden_size = max(len(value) // gates for name, value in layer.parameters.items() if name.startswith("weight_hh"))
    return tolerances(dtype, widest, hidden_size, gates, shape[0], shape[1])


class Results(NamedTuple):
    """What forward and backward gave, by name, as [T, B, ...]."""

    outputs: dict[str, Any]
    gradients: dict[str, Any]


def named_results(
    cell: str, output: Any, state: Any, grads: Any, axes: Axes, extras: dict[str, Any] | None = None
) -> Results:
    def by_letter(prefix: str, value: Any) -> dict[str, Any]:
        letters = reference.CELLS[cell].states
        parts = (value,) if len(letters) == 1 else value
        return {f"{prefix} {letter}": joined(part) for letter, part in zip(letters, parts, strict=True)}

    def joined(part: Any) -> Any:
        """Layers of different sizes in one axis."""
        return np.concatenate([block.ravel() for block in part]) if isinstance(part, tuple) else part

    gradients = {"grads.input": axes.sequence(grads.input), **by_letter("grads.state", axes.states(grads.state))}
    gradients |= {f"grads.parameters {name}": value for name, value in grads.parameters.items()}
    gradients |= {
        f"grads.per_step[{k}]": axes.sequence(value) if value.shape[:-1] == grads.input.shape[:-1] else value
        for k, value in enumerate(grads.per_step)
    }
    outputs = {"output": axes.sequence(output), **by_letter("state", axes.states(state))}
    outputs |= {name: axes.sequence(value) for name, value in (extras or {}).items()}
    return Results(outputs, gradients)


def layer_results(
    layer: Any, x: Any, hx: Any, grad_output: Any, grad_state: Any, lengths: Any = None, **call: Any
) -> tuple[Results, dict[str, Any]]:
    """Runs ``layer`` forward and backward, with further arguments of the call. Also returns the masks that it drew, as
    arguments of the reference."""
    output, state, *extras, tape = layer.forward(x, hx, lengths=lengths, **call)
    grads = layer.backward(tape, grad_output, grad_state, per_step=True)
    axes = Axes(unbatched=np.ndim(x) == 2, batch_first=layer.batch_first)
    wanted = [name for name in ("cells", "gates") if call.get("return_" + name.replace("cells", "cell"))]
    named = dict(zip(wanted, extras, strict=True))
    cell = type(layer).__name__.lower()
    return named_results(cell, output, state, grads, axes, named), drawn_masks(layer, tape, axes)


def drawn_masks(layer: Any, tape: Any, axes: Axes) -> dict[str, Any]:
    """What dropout and zoneout of a pass were, as arguments of ``reference.forward``."""
    masks: dict[str, Any] = {}
    if getattr(layer, "dropout", 0.0) and layer.num_layers > 1:
        scale = 1.0 / (1.0 - layer.dropout) if layer.dropout < 1.0 else 0.0
        masks["dropout_masks"] = [axes.sequence(mask) * scale for mask in tape.dropout_masks()]
    drawn = tape.masks() if hasattr(tape, "masks") and hasattr(layer, "zoneout") else None
    for kind in ("input", "recurrent"):
        if factors := getattr(drawn, kind, None):
            masks[f"{kind}_masks"] = [np.atleast_2d(factor) for factor in factors]
    for kind in ("zoneout_h", "zoneout_c"):
        if kept := getattr(drawn, kind, None):
            masks[kind.replace("_", "_masks_")] = [axes.sequence(keep) for keep in kept]
    return masks


OPTIONS = ("activation", "recurrent_activation", "output_activation", "clip", "reset_after", "coupled_gates")


def reference_results(
    layer: Any,
    x: Any,
    hx: Any,
    grad_output: Any,
    grad_state: Any,
    lengths: Any = None,
    *,
    masks: dict[str, Any] | None = None,
    **call: Any,
) -> Results:
    """What the reference makes of a layer's parameters, options and arguments, and of what the layer drew."""
    cell = type(layer).__name__.lower()
    axes = Axes(unbatched=np.ndim(x) == 2, batch_first=layer.batch_first)
    wanted = [name for name in ("cells", "gates") if call.pop("return_" + name.replace("cells", "cell"), False)]
    call.pop("masks", None)
    for name in ("mask", "reset"):
        if call.get(name) is not None:
            call[name] = axes.sequence(call[name])
    output, state, tape = reference.forward(
        cell,
        layer.parameters,
        axes.sequence(x),
        axes.states(hx),
        num_layers=layer.num_layers,
        bidirectional=layer.bidirectional,
        lengths=lengths,
        **{name: getattr(layer, name) for name in OPTIONS if hasattr(layer, name)},
        **(masks or {}),
        **call,
    )
    grads = reference.backward(
        tape, axes.sequence(grad_output), axes.states(grad_state), grad_clip=getattr(layer, "grad_clip", None)
    )
    extras = {name: getattr(tape, name) for name in wanted}
    return named_results(cell, output, state, grads, Axes(unbatched=False, batch_first=False), extras)


def bounded(layer: Any) -> bool:
    """Whether h is within [-1, 1], as the tolerance of the output supposes."""
    given = (getattr(layer, "activation", None), getattr(layer, "output_activation", None))
    names = [a.name for value in given for a in (value if isinstance(value, tuple) else (value,)) if a is not None]
    return all(name in ("tanh", "sigmoid", "hard_sigmoid", "softsign", "relu") for name in names)


def compare_results(layer: Any, x: Any, got: Results, want: Results, slack: float = 1.0) -> dict[str, float]:
    """Asserts that both have the same names, the layer's dtype, and values within the tolerances; returns every error
    as a fraction of its tolerance. ``slack`` multiplies the tolerances."""
    if isinstance(getattr(layer, "hidden_size", None), tuple):  # the reference stacks layers that happen to be alike
        for values in (*want, *got):
            values.update({name: np.ravel(value) for name, value in values.items() if "state" in name})
    assert_same_names(x.dtype, got.outputs, want.outputs)
    assert_same_names(x.dtype, got.gradients, want.gradients)
    axes = Axes(unbatched=np.ndim(x) == 2, batch_first=layer.batch_first)
    allowed = Tolerances(*(slack * part for part in layer_tolerances(layer, x.dtype, axes.sequence(x).shape)))
    fractions = {
        name: assert_close_output(name, value, want.outputs[name], allowed.output, unbounded=unbounded(layer, name))
        for name, value in got.outputs.items()
    }
    for name, value in got.gradients.items():
        fractions[name] = assert_close_gradient(name, value, want.gradients[name], allowed.gradient)
    return fractions


def unbounded(layer: Any, name: str) -> bool:
    return name in ("state c", "cells") or not bounded(layer)


def compare_layer(
    layer: Any,
    x: np.ndarray,
    hx: Any,
    grad_output: np.ndarray | None,
    grad_state: Any,
    lengths: Any = None,
    **call: Any,
) -> dict[str, float]:
    """Run ``layer`` forward and backward and compare everything it returns with the reference.

    The arrays have the form that the layer takes: [T, B, ...], [B, T, ...] with ``batch_first``, or without a batch.
    ``per_step`` has the form of the input, or is [T, B, H]. The masks of dropout are taken from the tape.
    """
    arguments = (x, hx, grad_output, grad_state, lengths)
    got, masks = layer_results(layer, *arguments, **call)
    return compare_results(layer, x, got, reference_results(layer, *arguments, masks=masks, **call))


def assert_same_names(dtype: Any, got: dict[str, Any], want: dict[str, Any]) -> None:
    """That nothing is missing or unexpected, and that everything has the layer's dtype."""
    assert set(got) == set(want), f"missing {sorted(set(want) - set(got))}, unexpected {sorted(set(got) - set(want))}"
    for name, value in got.items():
        assert value.dtype == dtype, f"{name}: dtype {value.dtype}, expected {dtype}"
