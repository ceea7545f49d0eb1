"""Gradients that have gradients themselves: the layers once more, by torch's own operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _core
from . import _engine
from ._engine import Options

_FUNCTIONS = {"RNN_TANH": "rnn_tanh", "RNN_RELU": "rnn_relu", "LSTM": "lstm", "GRU": "gru"}


def gradients(
    grad_y: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    seed: Tensor | None,
    options: Options,
    wanted: Sequence[bool],
) -> Sequence[Tensor]:
    """The wanted gradients by x, h0, c0 and the weights, as functions of all that went in."""
    tensors = [x, h0, c0, *weights]
    # A view of each, so that a tensor that comes twice (tied weights) gets each of its two gradients once.
    views = [None if tensor is None else tensor.view_as(tensor) for tensor in tensors]
    outputs = _layers(views[0], views[1], views[2], views[3:], batch_sizes, seed, options)
    pairs = [(y, g) for y, g in zip(outputs, (grad_y, grad_h_n, grad_c_n), strict=True) if g is not None]
    return torch.autograd.grad(
        [y for y, _ in pairs],
        [view for view, want in zip(views, wanted, strict=True) if want],
        [g for _, g in pairs],
        create_graph=True,
        materialize_grads=True,
    )


def _layers(
    x: Any, h0: Any, c0: Any, weights: list[Any], batch_sizes: Any, seed: Any, options: Options
) -> tuple[Any, Any, Any]:
    """Layer by layer, because the masks between them are the engine's."""
    directions = 2 if options.bidirectional else 1
    each = len(weights) // options.num_layers
    batch_axis = 0 if options.batch_first and batch_sizes is None else 1
    batch = int(batch_sizes[0]) if batch_sizes is not None else x.shape[batch_axis]
    _, units, width = _engine.sizes_of(options.mode, weights)
    h0 = x.new_zeros(options.cells, batch, width) if h0 is None else h0
    c0 = x.new_zeros(options.cells, batch, units) if c0 is None else c0
    last: tuple[list[Any], list[Any]] = ([], [])
    for layer in range(options.num_layers):
        rows = slice(layer * directions, (layer + 1) * directions)
        hx = (h0[rows], c0[rows]) if options.mode == "LSTM" else h0[rows]
        own = weights[layer * each : (layer + 1) * each]
        rest = (own, each // directions >= 4, 1, 0.0, False, options.bidirectional)
        function = getattr(torch._VF, _FUNCTIONS[options.mode])
        if batch_sizes is None:
            x, *state = function(x, hx, *rest, options.batch_first)
        else:
            x, *state = function(x, batch_sizes, hx, *rest)
        for kept, part in zip(last, state, strict=False):
            kept.append(part)
        if options.dropout > 0 and layer + 1 < options.num_layers:
            x = x * _mask(x, batch_sizes, int(seed), layer, options)
    return x, torch.cat(last[0]), torch.cat(last[1]) if last[1] else None


def _mask(x: Tensor, batch_sizes: Tensor | None, seed: int, layer: int, options: Options) -> Tensor:
    if batch_sizes is not None:
        steps, batch = batch_sizes.shape[0], int(batch_sizes[0])
    else:
        steps, batch = (x.shape[1], x.shape[0]) if options.batch_first else (x.shape[0], x.shape[1])
    keep = torch.from_numpy(_core.dropout_mask(seed, options.dropout, layer, steps, batch, x.shape[-1]))
    mask = keep.to(x.dtype) * (1 / (1 - options.dropout) if options.dropout < 1 else 0.0)
    if batch_sizes is not None:
        lengths = (batch_sizes[:, None] > torch.arange(batch)).sum(0)
        return torch._VF._pack_padded_sequence(mask, lengths, False)[0]
    return mask.transpose(0, 1) if options.batch_first else mask
