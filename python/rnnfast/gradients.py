"""What a backward pass gives, and clipping it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import _check
from ._check import Array


@dataclass(eq=False, repr=False)
class Gradients:
    """Derivatives of the loss whose derivatives by output and final state went into `backward`.

    Equations: docs/math.md.
    """

    #: By x, in its shape.
    input: Array
    #: By the initial state, in the shape of `hx`: an array, for an LSTM the tuple (by h_0, by c_0).
    state: Any
    #: By each parameter, under its name, in its shape.
    parameters: dict[str, Array]
    #: With `per_step=True`: d loss / d h_t of every layer and direction, number `layer * directions + direction`,
    #: each [T, B, H] ([B, T, H] with batch_first, [T, H] unbatched); 0 where a row takes no part; within the layer's
    #: grad_clip. Else None.
    per_step: list[Array] | None = None

    def __repr__(self) -> str:
        return f"Gradients(input {list(self.input.shape)}, state, parameters {', '.join(self.parameters)})"


def clip_grad_norm(grads: Any, max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False) -> float:
    """Scales gradients of parameters in place so that their norm, taken over all of them, is at most `max_norm`.

    `grads` is what `backward` returned, a dict of arrays, or a list of these. Returns the norm before clipping.
    As in `torch.nn.utils.clip_grad_norm_`, the factor is max_norm / (norm + 1e-6), never more than 1.
    Source: Pascanu, Mikolov, Bengio, On the difficulty of training recurrent neural networks, 2013, arXiv:1211.5063.

    Raises TypeError, ValueError for wrong arguments; ValueError for a norm that is inf or NaN if `error_if_nonfinite`.
    """
    max_norm = _check.bound("max_norm", max_norm)
    arrays = _arrays(grads)
    norm = _norm(arrays, _check.norm_type(norm_type))
    if error_if_nonfinite and not math.isfinite(norm):
        raise ValueError(f"the norm of grads is {norm}")
    factor = max_norm / (norm + 1e-6)
    if not factor >= 1.0:  # a norm of NaN or inf makes the gradients NaN, as in PyTorch
        with np.errstate(invalid="ignore"):
            for array in arrays:
                array *= factor
    return norm


def clip_grad_value(grads: Any, clip_value: float) -> float:
    """Bounds each element of gradients of parameters, in place, to [-clip_value, clip_value].

    `grads` is what `backward` returned, a dict of arrays, or a list of these. Returns the 2-norm before clipping.

    Raises TypeError, ValueError for wrong arguments.
    """
    clip_value = _check.bound("clip_value", clip_value)
    arrays = _arrays(grads)
    norm = _norm(arrays, 2.0)
    for array in arrays:
        np.clip(array, -clip_value, clip_value, out=array)
    return norm


def _arrays(grads: Any) -> list[Array]:
    groups: Iterable[Any] = grads if isinstance(grads, (list, tuple)) else [grads]
    arrays: list[Array] = []
    for group in groups:
        named: Mapping[str, Array] = _check.named_arrays("grads", group)
        _check.changeable("grads", named)
        arrays += named.values()
    return arrays


def _norm(arrays: list[Array], order: float) -> float:
    """In float64: squares of large float32 gradients would overflow and turn them all into zeros."""
    sizes = [np.abs(array, dtype=np.float64) for array in arrays if array.size]
    if not sizes:
        return 0.0
    if math.isinf(order):
        return float(np.max([np.max(size) for size in sizes]))
    with np.errstate(over="ignore"):
        return float(sum(np.sum(size**order) for size in sizes) ** (1.0 / order))
