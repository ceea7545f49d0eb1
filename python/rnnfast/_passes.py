"""One forward call and its backward: arguments are checked, outputs allocated, and the engine called once each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import _check, _core, _settings
from ._check import Array, SupportsArray
from ._config import Config
from .gradients import Gradients


@dataclass(frozen=True)
class Layout:
    """How the user's arrays lie: the engine takes [T, B, features] and [layers * directions, B, H], as views."""

    batched: bool
    batch_first: bool

    def to_engine(self, array: Array) -> Array:
        if not self.batched:
            return array[:, None]
        return array.transpose(1, 0, 2) if self.batch_first else array

    def from_engine(self, array: Array) -> Array:
        if not self.batched:
            return array[:, 0]
        return array.transpose(1, 0, 2) if self.batch_first else array

    def state_from_engine(self, array: Array) -> Array:
        return array if self.batched else array[:, 0]

    def shape(self, steps: int, batch: int, features: int) -> tuple[int, ...]:
        if not self.batched:
            return (steps, features)
        return (batch, steps, features) if self.batch_first else (steps, batch, features)

    def state_shape(self, config: Config, batch: int) -> tuple[int, ...]:
        count, _, hidden = config.state_shape(batch)
        return (count, batch, hidden) if self.batched else (count, hidden)


class ForwardCall:
    """Runs forward when it is made; `output` and `state` are then there. Keeps what backward needs if `train`.

    `weights` is a packed layer or the parameters in the order of `Config.parameter_shapes`.
    """

    def __init__(
        self,
        config: Config,
        spec: _core.Spec,
        weights: _core.Packed | Sequence[Array],
        x: SupportsArray,
        hx: Any,
        lengths: Any,
        *,
        train: bool = False,
        seed: int = 0,
    ) -> None:
        self.config = config
        self.seed = seed
        x_array = _check.sequence("x", x, config.input_size, config.numpy_dtype, config.batch_first)
        self.layout = Layout(x_array.ndim == 3, config.batch_first)
        x_engine = self.layout.to_engine(_check.rows_dense(x_array))
        self.steps, self.batch = x_engine.shape[:2]
        width = max(config.input_size, config.gate_rows, config.output_size)
        _check.call_size("x", self.steps, self.batch * config.num_layers * config.directions, width)
        self.ragged = lengths is not None
        valid = _check.lengths(lengths, self.steps, self.batch, self.layout.batched) if self.ragged else None

        initial = self._states("hx", hx)
        final = [np.empty(config.state_shape(self.batch), config.dtype) for _ in range(config.num_states)]
        self.output = self._new_sequence(config.output_size)
        self._pass = _core.Pass(
            spec,
            weights,
            x_engine,
            self.layout.to_engine(self.output),
            initial[0],
            initial[-1] if config.num_states == 2 else None,
            final[0],
            final[-1] if config.num_states == 2 else None,
            valid,
            config.dropout,
            seed,
            train,
            _settings.context_isa.get(),
            _settings.context_threads.get(),
            config.recompute or 0,
        )
        self._pass.forward()
        self.state = self._user_state(final)

    @property
    def tape_nbytes(self) -> int:
        return self._pass.tape_nbytes

    def dropout_masks(self) -> list[Array]:
        config, masks = self.config, []
        for layer in range(config.num_layers - 1):
            mask = _core.dropout_mask(self.seed, config.dropout, layer, self.steps, self.batch, config.output_size)
            masks.append(self.layout.from_engine(mask))
        return masks

    def backward(self, grad_output: Any, grad_state: Any, per_step: bool) -> Gradients:
        config, layout = self.config, self.layout
        grad_y = None
        if grad_output is not None:
            shape = layout.shape(self.steps, self.batch, config.output_size)
            grad_y = _check.gradient("grad_output", grad_output, shape, config.numpy_dtype)
            grad_y = layout.to_engine(_check.rows_dense(grad_y))
        grad_final = self._states("grad_state", grad_state)
        grad_x = self._new_sequence(config.input_size)
        grad_initial = [np.empty(config.state_shape(self.batch), config.dtype) for _ in range(config.num_states)]
        parameters = {name: np.empty(shape, config.dtype) for name, shape in config.parameter_shapes().items()}
        steps = self._new_step_gradients() if per_step else None
        self._pass.backward(
            grad_y,
            grad_final[0],
            grad_final[-1] if config.num_states == 2 else None,
            layout.to_engine(grad_x),
            grad_initial[0],
            grad_initial[-1] if config.num_states == 2 else None,
            list(parameters.values()),
            steps,
            _settings.context_threads.get(),
        )
        return Gradients(
            input=grad_x,
            state=self._user_state(grad_initial),
            parameters=parameters,
            per_step=None if steps is None else [layout.from_engine(array) for array in steps],
        )

    def _new_sequence(self, features: int) -> Array:
        """In the user's layout. The engine leaves rows beyond a length alone, and everything where there is no unit."""
        shape = self.layout.shape(self.steps, self.batch, features)
        blank = self.ragged or not self.config.hidden_size
        return np.zeros(shape, self.config.dtype) if blank else np.empty(shape, self.config.dtype)

    def _new_step_gradients(self) -> list[Array]:
        config = self.config
        count, batch, hidden = config.state_shape(self.batch)
        return [np.zeros((self.steps, batch, hidden), config.dtype) for _ in range(count)]

    def _states(self, name: str, value: Any) -> list[Array | None]:
        """The arrays of a state, [layers * directions, B, H] each; None for zeros."""
        config = self.config
        if value is None:
            return [None] * config.num_states
        shape = self.layout.state_shape(config, self.batch)
        labels = (f"{name}[0]", f"{name}[1]") if config.num_states == 2 else (name,)
        arrays: list[Array | None] = []
        for label, part in zip(labels, _check.states(name, value, config.num_states, config.class_name), strict=True):
            if part is None:
                arrays.append(None)
                continue
            array = _check.all_dense(_check.state_array(label, part, shape, config.numpy_dtype))
            arrays.append(array.reshape(config.state_shape(self.batch)))
        return arrays

    def _user_state(self, arrays: list[Array]) -> Any:
        parts = [self.layout.state_from_engine(array) for array in arrays]
        return tuple(parts) if self.config.num_states == 2 else parts[0]
