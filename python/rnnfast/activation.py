"""The activations of ONNX's recurrent operators, by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from . import _check

REQUIRED = object()
#: The parameters that each takes, with ONNX's defaults. Hard sigmoid has none here: two forms of it are in use, and a
#: bare name would hide which.
PARAMETERS: dict[str, dict[str, Any]] = {
    "tanh": {},
    "sigmoid": {},
    "relu": {},
    "affine": {"alpha": 1.0, "beta": 0.0},
    "leaky_relu": {"alpha": 0.01},
    "thresholded_relu": {"alpha": 1.0},
    "scaled_tanh": {"alpha": 1.0, "beta": 1.0},
    "hard_sigmoid": {"alpha": REQUIRED, "beta": REQUIRED},
    "elu": {"alpha": 1.0},
    "softsign": {},
    "softplus": {},
}


@dataclass(frozen=True)
class Activation:
    """A function of one number, elementwise; the equations of the ONNX operators RNN, GRU and LSTM.

        tanh                tanh(a)
        sigmoid             1 / (1 + exp(-a))
        relu                max(a, 0)
        affine              alpha * a + beta                        (1, 0)
        leaky_relu          a, or alpha * a where a < 0             (0.01)
        thresholded_relu    a, or 0 where a < alpha                 (1)
        scaled_tanh         alpha * tanh(beta * a)                  (1, 1)
        hard_sigmoid        alpha * a + beta, within [0, 1]
        elu                 a, or alpha * (exp(a) - 1) where a < 0  (1)
        softsign            a / (1 + |a|)
        softplus            log(1 + exp(a))

    In parentheses: the defaults of alpha and beta. A hard sigmoid has to be given both: 0.2 and 0.5 in ONNX's default
    and Keras 2, 1/6 and 0.5 in PyTorch and Keras 3.

    Raises ValueError for an unknown name, and for an alpha or beta that the function does not have or lacks;
    TypeError for wrong types.
    """

    name: str
    alpha: float | None = field(default=None, kw_only=True)
    beta: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        takes = PARAMETERS[_check.choice("the name of an activation", self.name, tuple(PARAMETERS))]
        for letter in ("alpha", "beta"):
            value = _check.activation_parameter(self.name, letter, getattr(self, letter), takes, REQUIRED)
            object.__setattr__(self, letter, value)

    def __repr__(self) -> str:
        parts = [
            f", {letter}={value!r}" for letter in ("alpha", "beta") if (value := getattr(self, letter)) is not None
        ]
        return f"Activation({self.name!r}{''.join(parts)})"


def activation(name: str, value: Any) -> Activation:
    """An argument of a layer: an Activation, or the name of one."""
    if isinstance(value, Activation):
        return value
    if isinstance(value, str):
        return Activation(value)
    raise TypeError(_check.not_an_activation(name, value))
