"""Optimisers for training with NumPy alone: the update rules, defaults and names of torch.optim.

    optimizer = rf.optim.Adam({"head": head, **layer.parameters}, lr=1e-3)
    ...
    optimizer.step({"head": d_head, **grads.parameters})

Parameters are NumPy arrays by name, and are updated in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from . import _check
from ._check import Array

__all__ = ["SGD", "Adam"]


class Optimizer:
    """What SGD and Adam have in common: parameters, options, and arrays of state that the first step makes."""

    _options: tuple[str, ...] = ()
    _buffers: tuple[str, ...] = ()
    lr: float
    weight_decay: float

    def __init__(self, params: Any, lr: float, weight_decay: float) -> None:
        self.lr = _check.at_least("lr", lr, 0.0)
        self.weight_decay = _check.at_least("weight_decay", weight_decay, 0.0)
        self._params = _check.named_arrays("params", params)
        _check.changeable("params", self._params)
        self._steps = dict.fromkeys(self._params, 0)
        self._state: dict[str, dict[str, Array]] = {name: {} for name in self._params}

    def step(self, grads: Any) -> None:
        """Updates every parameter in place by its gradient.

        grads: a mapping from names to arrays of the parameters' shapes, or what `backward` returned. A gradient of
            None leaves its parameter alone. Names that are no parameter's are ignored.

        Raises ValueError for a missing gradient or a wrong shape, TypeError for what is no array; nothing has been
        updated then.
        """
        arrays = _check.gradients_for(self._params, grads)
        for name, gradient in arrays.items():
            parameter = self._params[name]
            self._steps[name] += 1
            gradient = gradient.astype(parameter.dtype, copy=False)
            if self.weight_decay:
                gradient = gradient + self.weight_decay * parameter
            parameter -= self._change(gradient, self._state[name], self._steps[name])

    def _change(self, gradient: Array, buffers: dict[str, Array], step: int) -> Array:
        """What to subtract. Makes and changes the buffers, not the gradient."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Options, and for each parameter the number of its steps and copies of its state arrays."""
        state = {
            name: {"step": self._steps[name], **{key: array.copy() for key, array in buffers.items()}}
            for name, buffers in self._state.items()
        }
        return {"options": {option: getattr(self, option) for option in self._options}, "state": state}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continues from what `state_dict` of an optimiser of the same class, for the same names, returned.

        Raises ValueError for other names, options or shapes, TypeError for other types; nothing has been loaded then.
        """
        shapes = {name: parameter.shape for name, parameter in self._params.items()}
        options, state = _check.optimizer_state(state_dict, self._options, self._buffers, shapes)
        fresh = type(self)(self._params, **options)  # checks the options
        for option in self._options:
            setattr(self, option, getattr(fresh, option))
        for name, entry in state.items():
            self._steps[name] = entry["step"]
            dtype = self._params[name].dtype
            self._state[name] = {key: np.array(entry[key], dtype) for key in self._buffers if key in entry}

    def __repr__(self) -> str:
        options = ", ".join(f"{option}={getattr(self, option)!r}" for option in self._options)
        return f"{type(self).__name__}({len(self._params)} parameters, {options})"


class SGD(Optimizer):
    """Stochastic gradient descent, as `torch.optim.SGD`.

        g = gradient + weight_decay * p
        v = momentum * v + (1 - dampening) * g      (v = g at the first step)
        p = p - lr * (g + momentum * v if nesterov else v)

    params: a mapping from names to writable floating-point arrays, or a layer. `lr` may be assigned at any time.
    Source: Sutskever, Martens, Dahl, Hinton, On the importance of initialization and momentum in deep learning, 2013.

    Raises ValueError for options out of range and read-only arrays, TypeError for wrong types.
    """

    _options = ("lr", "momentum", "dampening", "weight_decay", "nesterov")
    _buffers = ("momentum_buffer",)

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(params, lr, weight_decay)
        self.momentum = _check.at_least("momentum", momentum, 0.0)
        self.dampening = _check.real("dampening", dampening)
        self.nesterov = _check.flag("nesterov", nesterov)
        if self.nesterov and (not self.momentum or self.dampening):
            raise ValueError("nesterov needs a momentum above 0 and a dampening of 0")

    def _change(self, gradient: Array, buffers: dict[str, Array], step: int) -> Array:
        if not self.momentum:
            return self.lr * gradient
        if "momentum_buffer" in buffers:
            velocity = buffers["momentum_buffer"]
            velocity *= self.momentum
            velocity += (1.0 - self.dampening) * gradient
        else:
            velocity = buffers["momentum_buffer"] = np.array(gradient)
        return self.lr * (gradient + self.momentum * velocity) if self.nesterov else self.lr * velocity


class Adam(Optimizer):
    """Adam, as `torch.optim.Adam`.

        g = gradient + weight_decay * p
        m = m + (1 - beta1) * (g - m)
        v = beta2 * v + (1 - beta2) * g * g
        p = p - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)

    params: a mapping from names to writable floating-point arrays, or a layer. `lr` may be assigned at any time.
    Source: Kingma, Ba, Adam: a method for stochastic optimization, 2015, arXiv:1412.6980.

    Raises ValueError for options out of range and read-only arrays, TypeError for wrong types.
    """

    _options = ("lr", "betas", "eps", "weight_decay")
    _buffers = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr, weight_decay)
        self.betas = _check.betas(betas)
        self.eps = _check.at_least("eps", eps, 0.0)

    def _change(self, gradient: Array, buffers: dict[str, Array], step: int) -> Array:
        beta1, beta2 = self.betas
        if not buffers:
            buffers.update({name: np.zeros_like(gradient) for name in self._buffers})
        mean, square = buffers["exp_avg"], buffers["exp_avg_sq"]
        mean += (1.0 - beta1) * (gradient - mean)
        square *= beta2
        square += (1.0 - beta2) * gradient * gradient
        change = np.sqrt(square, out=np.empty_like(square))  # without out= a 0-d array would become a scalar
        change /= (1.0 - beta2**step) ** 0.5
        change += self.eps
        np.divide(mean, change, out=change)
        change *= self.lr / (1.0 - beta1**step)
        return change
