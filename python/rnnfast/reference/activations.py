"""Activations and their derivatives: the text of the ONNX operators RNN, GRU and LSTM, opset 22."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..activation import Activation

Array: TypeAlias = NDArray[np.float64]
Equation: TypeAlias = Callable[[Array, float, float], Array]


def sigmoid(a: Array) -> Array:
    """``1 / (1 + exp(-a))``, arranged so that exp never overflows and small results keep their relative precision."""
    e = np.exp(-np.abs(a))
    return np.where(a >= 0, 1.0, e) / (1.0 + e)


def passing(a: Array) -> Array:
    """1 where a is positive, else 0: NaN, which is neither, passes nothing on."""
    return np.where(a > 0.0, 1.0, 0.0)


#: By name: the function and its derivative, both of (a, alpha, beta). At a kink the derivative is that from below.
EQUATIONS: dict[str, tuple[Equation, Equation]] = {
    "tanh": (
        lambda a, alpha, beta: np.tanh(a),
        lambda a, alpha, beta: 1.0 - np.tanh(a) ** 2,
    ),
    "sigmoid": (
        lambda a, alpha, beta: sigmoid(a),
        lambda a, alpha, beta: sigmoid(a) * (1.0 - sigmoid(a)),
    ),
    "relu": (
        lambda a, alpha, beta: np.maximum(a, 0.0),
        lambda a, alpha, beta: passing(a),
    ),
    "affine": (
        lambda a, alpha, beta: alpha * a + beta,
        lambda a, alpha, beta: np.full_like(a, alpha),
    ),
    "leaky_relu": (
        lambda a, alpha, beta: np.where(a >= 0.0, a, alpha * a),
        lambda a, alpha, beta: np.where(a > 0.0, 1.0, alpha),
    ),
    "thresholded_relu": (
        lambda a, alpha, beta: np.where(a < alpha, 0.0, a),
        lambda a, alpha, beta: passing(a - alpha),
    ),
    "scaled_tanh": (
        lambda a, alpha, beta: alpha * np.tanh(beta * a),
        lambda a, alpha, beta: alpha * beta * (1.0 - np.tanh(beta * a) ** 2),
    ),
    "hard_sigmoid": (
        lambda a, alpha, beta: np.clip(alpha * a + beta, 0.0, 1.0),
        lambda a, alpha, beta: alpha * passing(alpha * a + beta) * passing(1.0 - (alpha * a + beta)),
    ),
    "elu": (
        lambda a, alpha, beta: np.where(a >= 0.0, a, alpha * np.expm1(np.minimum(a, 0.0))),
        lambda a, alpha, beta: np.where(a > 0.0, 1.0, alpha * np.exp(np.minimum(a, 0.0))),
    ),
    "softsign": (
        lambda a, alpha, beta: a / (1.0 + np.abs(a)),
        lambda a, alpha, beta: 1.0 / (1.0 + np.abs(a)) ** 2,
    ),
    "softplus": (
        lambda a, alpha, beta: np.logaddexp(0.0, a),
        lambda a, alpha, beta: sigmoid(a),
    ),
}


@dataclass(frozen=True)
class Function:
    """An activation behind its clip: ``f(max(-clip, min(a, clip)))``, whose derivative is 0 where the clip acts."""

    activation: Activation
    clip: float = np.inf

    def __call__(self, a: Array) -> Array:
        return self._evaluate(0, np.clip(a, -self.clip, self.clip))

    def derivative(self, a: Array) -> Array:
        slope = self._evaluate(1, np.clip(a, -self.clip, self.clip))
        return np.where(np.abs(a) > self.clip, 0.0, slope)

    def _evaluate(self, which: int, a: Array) -> Array:
        equation = EQUATIONS[self.activation.name][which]
        return equation(a, self.activation.alpha or 0.0, self.activation.beta or 0.0)
