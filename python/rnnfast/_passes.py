"""One forward call and its backward: arguments are checked, outputs allocated, and the engine called once each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from . import _check, _core, _masks, _settings
from ._check import Array, SupportsArray
from ._config import GATES, Config
from ._layout import Layout
from ._masks import Masks
from ._states import StateForm
from .gradients import Gradients


class Model(NamedTuple):
    """What runs. `weights` is a packed layer or the parameters in the order of `Config.parameter_shapes`."""

    config: Config
    spec: _core.Spec
    weights: _core.Packed | Sequence[Array]


class Request(NamedTuple):
    """What a call asks for besides x and hx: see `Layer.__call__`."""

    lengths: Any = None
    mask: Any = None
    masked_output: str = "zero"
    reset: Any = None
    reset_to: str = "zero"
    return_cell: bool = False
    return_gates: bool = False

    def checked(self, config: Config) -> Request:
        carry = _check.choice("masked_output", self.masked_output, ("zero", "carry")) == "carry"
        initial = _check.choice("reset_to", self.reset_to, ("zero", "initial")) == "initial"
        _check.excluded("lengths", "mask", self.lengths is not None and self.mask is not None, "a mask says both")
        _check.needs("masked_output='carry'", "a mask", not carry or self.mask is not None)
        _check.needs("reset_to='initial'", "reset", not initial or self.reset is not None)
        return_cell, return_gates = (_check.flag(name, getattr(self, name)) for name in ("return_cell", "return_gates"))
        _check.needs("return_cell", "an LSTM: no other layer has c", not return_cell or config.cell == "lstm")
        _check.needs("return_gates", "an LSTM or GRU: an RNN has no gates", not return_gates or config.cell != "rnn")
        return self


class Training(NamedTuple):
    """What makes a call a training pass: the seed of its masks, and those that are given."""

    seed: int
    masks: Masks


class ForwardCall:
    """Runs forward when it is made; `output`, `state`, `cells` and `gates` are then there. Keeps what backward needs in
    a training pass."""

    def __init__(self, model: Model, x: SupportsArray, hx: Any, request: Request, training: Training | None) -> None:
        config = self.config = model.config
        x_array = _check.sequence("x", x, config.input_size, config.numpy_dtype, config.batch_first)
        self.layout = Layout(x_array.ndim == 3, config.batch_first)
        x_engine = self.layout.to_engine(_check.rows_dense(x_array))
        self.steps, self.batch = x_engine.shape[:2]
        _check.call_size("x", self.steps, self.batch * config.num_layers * config.directions, config.widest)
        self.states = StateForm(config, self.batch, self.layout.batched)
        self.ragged = request.lengths is not None or request.mask is not None
        self.seed = training.seed if training else 0
        self.masks: dict[str, list[Array]] = {}

        initial, final = self.states.read("hx", hx), self.states.new()
        options = self._options(request.checked(config), training)
        lengths = options.pop("lengths", None)
        self.output = self._new_sequence(config.output_size)
        self._pass = _core.Pass(
            model.spec,
            model.weights,
            x_engine,
            self.layout.to_engine(self.output),
            *_pair(initial),
            *_pair(final),
            lengths,
            config.dropout,
            self.seed,
            training is not None,
            _settings.context_isa.get(),
            _settings.context_threads.get(),
            config.recompute or 0,
            **options,
        )
        self._pass.forward()
        self.state = self.states.give(final)

    def _options(self, request: Request, training: Training | None) -> dict[str, Any]:
        """Keyword arguments of the engine; only those that are used, since most calls use none."""
        config = self.config
        options: dict[str, Any] = {}
        if request.lengths is not None:
            options["lengths"] = _check.lengths(request.lengths, self.steps, self.batch, self.layout.batched)
        for name in ("mask", "reset"):
            if (value := getattr(request, name)) is not None:
                shape = self.layout.shape(self.steps, self.batch)
                array = _check.bool_array(name, value, shape, "one for each step and row of x")
                options[name] = np.ascontiguousarray(self.layout.to_engine(array), np.uint8)
        if request.masked_output == "carry":
            options["carry"] = True
        if request.reset_to == "initial":
            options["reset_to_initial"] = True
        units = config.directions * config.hidden_sizes[-1]
        self.extras = []
        for name, wanted, width in (
            ("cells", request.return_cell, units),
            ("gates", request.return_gates, GATES[config.cell] * units),
        ):
            if wanted:
                self.extras.append(self._new_sequence(width))
                options[name] = self.layout.to_engine(self.extras[-1])
        if training:
            self.masks = _masks.resolved(config, self.layout, self.steps, self.batch, training.seed, training.masks)
            options |= {ENGINE_NAMES[kind]: masks for kind, masks in self.masks.items()}
        return options

    extras: Sequence[Array] = ()  # cells and gates, those that were asked for

    @property
    def results(self) -> tuple[Any, ...]:
        return self.output, self.state, *self.extras

    @property
    def tape_nbytes(self) -> int:
        return self._pass.tape_nbytes + sum(mask.nbytes for masks in self.masks.values() for mask in masks)

    def dropout_masks(self) -> list[Array]:
        config, masks = self.config, []
        for layer, width in enumerate(config.input_sizes[1:]):
            mask = _core.dropout_mask(self.seed, config.dropout, layer, self.steps, self.batch, width)
            masks.append(self.layout.from_engine(mask))
        return masks

    def all_masks(self) -> Masks:
        return _masks.told(self.masks, self.seed, self.layout)

    def backward(self, grad_output: Any, grad_state: Any, per_step: bool) -> Gradients:
        config, layout = self.config, self.layout
        grad_y = None
        if grad_output is not None:
            shape = layout.shape(self.steps, self.batch, config.output_size)
            grad_y = _check.gradient("grad_output", grad_output, shape, config.numpy_dtype)
            grad_y = layout.to_engine(_check.rows_dense(grad_y))
        grad_final = self.states.read("grad_state", grad_state)
        grad_x = self._new_sequence(config.input_size)
        grad_initial = self.states.new()
        parameters = {name: np.empty(shape, config.dtype) for name, shape in config.parameter_shapes().items()}
        steps = self._new_step_gradients() if per_step else None
        self._pass.backward(
            grad_y,
            *_pair(grad_final),
            layout.to_engine(grad_x),
            *_pair(grad_initial),
            list(parameters.values()),
            steps,
            _settings.context_threads.get(),
            config.grad_clip or 0.0,
        )
        return Gradients(
            input=grad_x,
            state=self.states.give(grad_initial),
            parameters=parameters,
            per_step=None if steps is None else [layout.from_engine(array) for array in steps],
        )

    def _new_sequence(self, features: int) -> Array:
        """In the user's layout. The engine leaves rows that take no part alone, and everything where there is no
        unit."""
        shape = self.layout.shape(self.steps, self.batch, features)
        blank = self.ragged or not max(self.config.hidden_sizes)
        return np.zeros(shape, self.config.dtype) if blank else np.empty(shape, self.config.dtype)

    def _new_step_gradients(self) -> list[Array]:
        return [
            np.zeros((self.steps, self.batch, width), self.config.dtype)
            for width in self.config.widths
            for _ in range(self.config.directions)
        ]


ENGINE_NAMES = {
    "input": "input_masks",
    "recurrent": "recurrent_masks",
    "zoneout_h": "zoneout_masks_h",
    "zoneout_c": "zoneout_masks_c",
}


def _pair(arrays: Sequence[Array | None]) -> tuple[Any, Any]:
    """h and c, or None where there is no c."""
    return arrays[0], arrays[1] if len(arrays) == 2 else None
