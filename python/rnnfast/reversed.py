"""A layer that reads its input from the last step to the first: ONNX's direction "reverse", Keras's go_backwards."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from . import _check
from ._check import Array
from .frozen import Frozen
from .gradients import Gradients
from .layers import Layer, Tape


class Reversed:
    """`layer`, or what its `freeze` gave, read from the end of the sequence to its beginning.

    Input, output, lengths, masks, resets and gradients are in the order of time; only the scan is not. What it computes
    is what the second direction of a bidirectional layer computes, bit for bit. The state that it returns is the one
    after the first step of time.

    layer: an RNN, LSTM or GRU, or a Frozen of one, of one layer and one direction.
    scan_order: the output is in the order of the scan instead, as Keras returns it: the last step of time comes first.

    No copies: time is turned by strides, and `lengths` become a mask (rows still cost what their lengths are).

    Raises TypeError for another layer, ValueError for one with several layers or directions.
    """

    def __init__(self, layer: Any, *, scan_order: bool = False) -> None:
        _check.reversible(layer, (Layer, Frozen))
        self.layer = layer
        self.scan_order = _check.flag("scan_order", scan_order)

    def __call__(
        self, x: Any, hx: Any = None, *, lengths: Any = None, mask: Any = None, reset: Any = None, **call: Any
    ) -> tuple[Any, ...]:
        """Inference, with the arguments and results of the layer's own `__call__`."""
        x, arguments = self._arguments(x, lengths, mask, reset)
        output, state, *extras = self.layer(x, hx, **arguments, **call)
        return self._result(output, x), state, *(self._result(extra, x) for extra in extras)

    def forward(
        self, x: Any, hx: Any = None, *, lengths: Any = None, mask: Any = None, reset: Any = None, **call: Any
    ) -> tuple[Any, ...]:
        """Training: returns (output, state, tape) as the layer's `forward` does. What is given in `masks` is in the
        order of the scan, and so is what `tape.masks()` returns."""
        x, arguments = self._arguments(x, lengths, mask, reset)
        output, state, *extras, tape = self.layer.forward(x, hx, **arguments, **call)
        return self._result(output, x), state, *(self._result(extra, x) for extra in extras), tape

    def backward(self, tape: Tape, grad_output: Any, grad_state: Any = None, per_step: bool = False) -> Gradients:
        """As the layer's `backward`; grad_output is in the order of the output, what comes back in that of time."""
        if grad_output is not None:
            grad_output = _check.as_array("grad_output", grad_output)
            grad_output = grad_output if self.scan_order else self._turned(grad_output, grad_output.ndim)
        grads: Gradients = self.layer.backward(tape, grad_output, grad_state, per_step)
        dims = grads.input.ndim
        steps = None if grads.per_step is None else [self._turned(step, dims) for step in grads.per_step]
        return replace(grads, input=self._turned(grads.input, dims), per_step=steps)

    def freeze(self) -> Reversed:
        """For inference, as the layer's own."""
        return Reversed(self.layer.freeze(), scan_order=self.scan_order)

    def _arguments(self, x: Any, lengths: Any, mask: Any, reset: Any) -> tuple[Array, dict[str, Any]]:
        x = _check.as_array("x", x)
        dims = x.ndim
        if lengths is not None:
            _check.excluded("lengths", "mask", mask is not None, "both say which steps count")
            mask = self._mask(lengths, x)
        arguments: dict[str, Any] = {}
        if mask is not None:
            arguments["mask"] = self._turned(np.asarray(mask), dims)
        if reset is not None:
            if lengths is not None:  # what is beyond a length resets nothing
                reset = _check.bool_array("reset", reset, mask.shape, "one for each step and row of x") & mask
            # The boundary between steps t-1 and t lies between the steps T-1-t and T-t of the scan.
            turned = np.roll(self._turned(np.asarray(reset), dims), 1, axis=self._axis(dims)).copy()
            turned[(slice(None),) * self._axis(dims) + (slice(0, 1),)] = False
            arguments["reset"] = turned
        return self._turned(x, dims), arguments

    def _mask(self, lengths: Any, x: Array) -> Array:
        axis = self._axis(x.ndim)
        steps, batch = (x.shape[axis], x.shape[1 - axis]) if x.ndim == 3 else (0, 0)
        mask: Array = np.arange(steps)[:, None] < _check.lengths(lengths, steps, batch, x.ndim == 3)
        return mask.T if axis == 1 else mask

    def _result(self, array: Array, x: Array) -> Array:
        return array if self.scan_order else self._turned(array, x.ndim)

    def _turned(self, array: Array, dims: int) -> Array:
        """`dims`: those of x, which tell whether there is a batch."""
        axis = self._axis(dims)
        return np.flip(array, axis) if array.ndim > axis else array

    def _axis(self, dims: int) -> int:
        """Of time."""
        return 1 if self.layer.batch_first and dims == 3 else 0

    def __repr__(self) -> str:
        return f"Reversed({self.layer!r}{', scan_order=True' if self.scan_order else ''})"
