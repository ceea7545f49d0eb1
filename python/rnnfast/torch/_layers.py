"""RNN, LSTM and GRU as torch has them, run by rnnfast's kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from . import _engine, _operators, _support
from ._engine import Options


class _Layer(torch.nn.RNNBase):
    """Before torch's class in the order of resolution. Whatever is not as expected goes to torch's own forward, which
    runs it or says what is wrong with it."""

    def forward(self, input: Any, hx: Any = None) -> Any:
        """As torch's, with its shapes and errors."""
        is_packed = isinstance(input, PackedSequence)
        x = input.data if is_packed else input
        batch_sizes = input.batch_sizes if is_packed else None
        states = _support.states_of(hx, self.mode == "LSTM")
        weights = _support.weights_of(self)
        if states is None or weights is None or not self._runs_here(x, states, weights):
            return super().forward(input, hx)
        if is_packed:
            states = [None if h is None else self._permuted(h, input.sorted_indices) for h in states]
        batched = is_packed or x.dim() == 3
        if not batched:
            x = x.unsqueeze(0 if self.batch_first else 1)
            states = [None if h is None else h.unsqueeze(1) for h in states]
        batch = int(batch_sizes[0]) if batch_sizes is not None else x.shape[0] if self.batch_first else x.shape[1]
        if not self._fits(x, states, batch_sizes, batch):
            return super().forward(input, hx)
        y, h_n, c_n = self._run(x, states, weights, batch_sizes, batch)
        return self._result(input, batched, y, [h_n, c_n] if self.mode == "LSTM" else [h_n])

    # --- whether ---

    def _runs_here(self, x: Any, states: list[Tensor | None], weights: list[Tensor]) -> bool:
        if not isinstance(x, Tensor) or x.dtype not in _engine.DTYPES:
            return False
        return _support.sound([x, *states]) and _support.weights_fit(weights, x.dtype, self, self.mode)

    def _fits(self, x: Tensor, states: list[Tensor | None], batch_sizes: Tensor | None, batch: Any) -> bool:
        if x.dim() != (3 if batch_sizes is None else 2) or x.shape[-1] != self.input_size:
            return False
        if batch_sizes is None and x.shape[1 if self.batch_first else 0] == 0:
            return False
        if batch_sizes is not None and not (batch_sizes.dtype == torch.int64 and batch_sizes.is_contiguous()):
            return False
        cells = self.num_layers * (2 if self.bidirectional else 1)
        shapes = [(cells, batch, self.proj_size or self.hidden_size), (cells, batch, self.hidden_size)]
        return _support.states_fit(states, shapes, x.dtype)

    # --- how ---

    def _run(
        self, x: Tensor, states: list[Tensor | None], weights: list[Tensor], batch_sizes: Tensor | None, batch: Any
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        h0, c0 = states
        drops = self.training and self.dropout > 0 and self.num_layers > 1
        options = Options(
            self.mode, self.num_layers, self.bidirectional, self.batch_first, self.dropout if drops else 0.0
        )
        seed = torch.randint(2**63 - 1, (), device="cpu") if drops else None
        needed = _support.need_gradients((x, h0, c0), weights)
        if not torch.compiler.is_compiling() and _support.direct(weights):
            if needed:
                return _operators.with_gradients(x, h0, c0, weights, batch_sizes, seed, options)
            if not drops:
                return _engine.run(x, h0, c0, weights, batch_sizes, options)
        if batch_sizes is not None and h0 is None:  # the operator's shapes follow from h0
            h0 = x.new_zeros((options.cells, batch, self.proj_size or self.hidden_size))
        return _operators.recurrent(x, h0, c0, weights, batch_sizes, seed, *options)

    @staticmethod
    def _permuted(state: Tensor, order: Tensor | None) -> Tensor:
        return state if order is None else state.index_select(1, order)

    def _result(self, input: Any, batched: bool, y: Tensor, last: list[Any]) -> Any:
        output: Any = y
        if isinstance(input, PackedSequence):
            output = PackedSequence(y, input.batch_sizes, input.sorted_indices, input.unsorted_indices)
            last = [self._permuted(state, input.unsorted_indices) for state in last]
        elif not batched:
            output = y.squeeze(0 if self.batch_first else 1)
            last = [state.squeeze(1) for state in last]
        return output, tuple(last) if self.mode == "LSTM" else last[0]

    # --- the rest of a module ---

    def flatten_parameters(self) -> None:
        """Drops the packed weights. Of use after writes that no tensor's version tells, such as through `.data`."""
        super().flatten_parameters()
        _engine.forget_packed(self._flat_weights)

    def __prepare_scriptable__(self) -> torch.nn.Module:
        """torch.jit.script takes torch's own module, with these parameters."""
        from ._replace import as_torchs

        return as_torchs(self)


class RNN(_Layer, torch.nn.RNN):
    """`torch.nn.RNN`, run by rnnfast's kernels: same arguments, parameters, results and errors."""


class LSTM(_Layer, torch.nn.LSTM):
    """`torch.nn.LSTM`, run by rnnfast's kernels: same arguments, parameters, results and errors."""


class GRU(_Layer, torch.nn.GRU):
    """`torch.nn.GRU`, run by rnnfast's kernels: same arguments, parameters, results and errors."""
