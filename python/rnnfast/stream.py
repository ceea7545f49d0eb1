"""Inference one step at a time, for input that arrives while it is processed."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _check, _core, _settings
from ._config import Config
from ._states import StateForm


class Stream(_core.Stream):
    """Made by `stream()` of a frozen layer. Holds the state of `batch_size` sequences.

    Steps equal one call over the whole sequence, bit for bit. A stream belongs to one thread at a time; any number of
    streams may share a frozen layer.
    """

    __slots__ = ("_arrays", "_config", "_form", "batch_size")

    def __init__(self, config: Config, spec: _core.Spec, packed: _core.Packed, batch_size: int) -> None:
        self._config = config
        self.batch_size = batch_size
        self._form = StateForm(config, batch_size)
        self._arrays = self._form.new(np.zeros)  # the engine writes to them
        h, c = self._arrays[0], self._arrays[1] if len(self._arrays) == 2 else None
        super().__init__(spec, packed, h, c, _check.as_array, _settings.context_threads)

    @property
    def state(self) -> Any:
        """A copy of the state, [layers, B, H], for an LSTM the tuple (h, c) of two, or tuples of one array for each
        layer, as a layer's call returns it; assign one to continue from it.

        Assigning raises ValueError for a wrong shape or form, TypeError for a wrong dtype or type.
        """
        return self._form.give([array.copy() for array in self._arrays])

    @state.setter
    def state(self, value: Any) -> None:
        _check.given("state", value)
        for array, part in zip(self._arrays, self._form.read("state", value), strict=True):
            array[...] = _check.given("state", part)

    def reset(self, rows: Any = None) -> None:
        """Sets the state to zeros: of all sequences, or of those that `rows` names.

        rows: an integer, integers, or a bool mask [B].

        Raises IndexError for a row that there is not, ValueError, TypeError for other mistakes.
        """
        index = slice(None) if rows is None else _check.stream_rows(rows, self.batch_size)
        for array, sizes in zip(self._arrays, self._config.state_sizes, strict=True):
            for block in self._form.blocks(array, sizes) if self._form.per_layer else (array,):
                block[:, index] = 0

    def __repr__(self) -> str:
        return f"Stream of {self._config}, batch_size={self.batch_size}"
