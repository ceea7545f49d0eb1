"""States in the form that users see and in that of the engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from . import _check
from ._check import Array, Shape
from ._config import Config


class StateForm(NamedTuple):
    """Of one call: h, and c for an LSTM.

    Users see [layers * directions, B, H] ([layers * directions, H] unbatched); where layers have sizes of their own, a
    tuple of one array [directions, B, H_l] for each layer. The engine takes the first, or the blocks of the second one
    after another in one axis.
    """

    config: Config
    batch: int
    batched: bool = True

    @property
    def per_layer(self) -> bool:
        return isinstance(self.config.hidden_size, tuple)

    def new(self, make: Callable[..., Array] = np.empty) -> list[Array]:
        """Arrays for the engine."""
        return [make(self._engine_shape(sizes), self.config.dtype) for sizes in self.config.state_sizes]

    def _engine_shape(self, sizes: tuple[int, ...]) -> Shape:
        if self.per_layer:
            return (self.config.directions * self.batch * sum(sizes),)
        return (self.config.num_layers * self.config.directions, self.batch, sizes[0])

    def read(self, name: str, value: Any) -> list[Array | None]:
        """Arrays for the engine from what a user gave; None for zeros."""
        config = self.config
        if value is None:
            return [None] * config.num_states
        labels = (f"{name}[0]", f"{name}[1]") if config.num_states == 2 else (name,)
        parts = _check.states(name, value, config.num_states, config.class_name, self.per_layer)
        return [
            None if part is None else self._read_part(label, part, sizes)
            for label, part, sizes in zip(labels, parts, config.state_sizes, strict=True)
        ]

    def _read_part(self, label: str, part: Any, sizes: tuple[int, ...]) -> Array:
        config = self.config
        if not self.per_layer:
            array = _check.state_array(label, part, self._shape(sizes[0], config.num_layers), config.numpy_dtype)
            return _check.all_dense(array).reshape(self._engine_shape(sizes))
        blocks = [
            _check.state_array(f"{label}[{layer}]", block, self._shape(size), config.numpy_dtype)
            for layer, (block, size) in enumerate(zip(_check.layer_states(label, part, len(sizes)), sizes, strict=True))
        ]
        return np.concatenate([block.ravel() for block in blocks])

    def _shape(self, size: int, layers: int = 1) -> Shape:
        count = layers * self.config.directions
        return (count, self.batch, size) if self.batched else (count, size)

    def give(self, arrays: list[Array]) -> Any:
        """What a user sees of the engine's arrays: views."""
        parts = [
            self.blocks(array, sizes)
            if self.per_layer
            else array.reshape(self._shape(sizes[0], self.config.num_layers))
            for array, sizes in zip(arrays, self.config.state_sizes, strict=True)
        ]
        return tuple(parts) if len(parts) == 2 else parts[0]

    def blocks(self, array: Array, sizes: tuple[int, ...]) -> tuple[Array, ...]:
        ends = np.cumsum([self.config.directions * self.batch * size for size in sizes])
        return tuple(
            block.reshape(self._shape(size)) for block, size in zip(np.split(array, ends[:-1]), sizes, strict=True)
        )
