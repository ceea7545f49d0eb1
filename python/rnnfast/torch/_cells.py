"""RNNCell, LSTMCell and GRUCell as torch has them, run by rnnfast's kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _engine, _operators, _support
from ._engine import Options


class _Cell(torch.nn.RNNCellBase):
    """Before torch's class in the order of resolution, as `_Layer`. Where gradients are kept torch's own cell runs."""

    @property
    def _mode(self) -> str:
        raise NotImplementedError

    def forward(self, input: Any, hx: Any = None) -> Any:
        """As torch's, with its shapes and errors."""
        weights = _support.weights_of(self)
        states = _support.states_of(hx, self._mode == "LSTM")
        if states is None or weights is None or not self._runs_here(input, states, weights):
            return super().forward(input, hx)
        batched = input.dim() == 2
        x = input if batched else input.unsqueeze(0)
        h, c = states if batched else [None if s is None else s.unsqueeze(0) for s in states]
        new = self._run(x, h, c, weights)
        if not batched:
            new = [state.squeeze(0) for state in new]
        return tuple(new) if self._mode == "LSTM" else new[0]

    def _runs_here(self, x: Any, states: list[Tensor | None], weights: list[Tensor]) -> bool:
        if not isinstance(x, Tensor) or x.dtype not in _engine.DTYPES or not _support.sound([x, *states]):
            return False
        if x.dim() not in (1, 2) or x.shape[-1] != self.input_size:
            return False
        return (
            _support.states_fit(states, [(*x.shape[:-1], self.hidden_size)] * 2, x.dtype)
            # Packing the weights for one step costs more than torch's step: 2 to 3 times its training time.
            and not _support.need_gradients((x, *states), weights)
            and _support.weights_fit(weights, x.dtype, self, self._mode)
        )

    def _run(self, x: Tensor, h: Tensor | None, c: Tensor | None, weights: list[Tensor]) -> list[Any]:
        if not (torch.compiler.is_compiling() or _support.watched()):
            return [state for state in _engine.run_cell(x, h, c, weights, self._mode) if state is not None]
        h0, c0 = (None if state is None else state.unsqueeze(0) for state in (h, c))
        _, h_n, c_n = _operators.recurrent(x.unsqueeze(0), h0, c0, weights, None, None, *Options(self._mode))
        return [h_n.squeeze(0), c_n.squeeze(0)] if self._mode == "LSTM" else [h_n.squeeze(0)]

    def __prepare_scriptable__(self) -> torch.nn.Module:
        """torch.jit.script takes torch's own module, with these parameters."""
        from ._replace import as_torchs

        return as_torchs(self)


class RNNCell(_Cell, torch.nn.RNNCell):
    """`torch.nn.RNNCell`, run by rnnfast's kernels: same arguments, parameters, results and errors."""

    @property
    def _mode(self) -> str:
        return f"RNN_{self.nonlinearity.upper()}"


class LSTMCell(_Cell, torch.nn.LSTMCell):
    """`torch.nn.LSTMCell`, run by rnnfast's kernels: same arguments, parameters, results and errors."""

    _mode = "LSTM"


class GRUCell(_Cell, torch.nn.GRUCell):
    """`torch.nn.GRUCell`, run by rnnfast's kernels: same arguments, parameters, results and errors."""

    _mode = "GRU"
