"""The engine on tensors: weights packed and cached, the pass that keeps nothing, and the pair that keeps a tape.

The functions here know nothing of autograd. They take CPU tensors of one dtype, float32 or float64; who calls them has
checked shapes. x and y are [T, B, features], or [B, T, features] with `batch_first`, or, with `batch_sizes`, the rows
of a PackedSequence [sum of lengths, features]. States are [L*D, B, H]; c is None unless the mode is LSTM.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import _core, _settings

CELLS = {"RNN_TANH": "rnn", "RNN_RELU": "rnn", "LSTM": "lstm", "GRU": "gru"}
GATES = {"RNN_TANH": 1, "RNN_RELU": 1, "LSTM": 4, "GRU": 3}
DTYPES = {torch.float32: "float32", torch.float64: "float64"}


class Options(NamedTuple):
    """What a stack of layers is, apart from its weights."""

    mode: str  # as torch.nn.RNNBase.mode
    num_layers: int = 1
    bidirectional: bool = False
    batch_first: bool = False
    dropout: float = 0.0  # applied wherever it is not 0: the caller knows whether the module is training

    @property
    def cells(self) -> int:
        return self.num_layers * (2 if self.bidirectional else 1)


class Sizes(NamedTuple):
    """Of the first layer."""

    inputs: int
    units: int
    width: int  # of h: the units, or what they are projected to


def sizes_of(mode: str, weights: Sequence[Tensor]) -> Sizes:
    rows, inputs = weights[0].shape
    return Sizes(inputs, rows // GATES[mode], weights[1].shape[1])


@functools.cache
def _spec(mode: str, dtype: torch.dtype, sizes: Sizes, layers: int, directions: int) -> _core.Spec:
    activations = [(("relu", 0.0, 0.0),)] * directions if mode == "RNN_RELU" else None
    return _core.Spec(
        CELLS[mode],
        DTYPES[dtype],
        sizes.inputs,
        sizes.units,
        layers,
        directions,
        activations=activations,
        proj_size=sizes.width if sizes.width != sizes.units else 0,  # torch's is smaller than the units
    )


def spec_of(options: Options, dtype: torch.dtype, weights: Sequence[Tensor]) -> _core.Spec:
    directions = 2 if options.bidirectional else 1
    sizes = Sizes(*(int(size) for size in sizes_of(options.mode, weights)))
    return _spec(options.mode, dtype, sizes, options.num_layers, directions)


def threads() -> int:
    """As many as torch's operations use, unless rnnfast itself was told a number."""
    return _settings.context_threads.get() or _core.get_num_threads(torch.get_num_threads())


def current_isa() -> str:
    """By name: a tape is read with the instruction set that wrote it."""
    return _settings.context_isa.get() or _core.default_isa()


def array(tensor: Tensor) -> np.ndarray[Any, Any]:
    """The tensor's own memory, or that of a dense copy."""
    return dense(tensor).detach().numpy()


def dense(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_contiguous() and not tensor.is_neg() else tensor.contiguous().resolve_neg()


def _new(shape: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device="cpu")


# --- packed weights, for calls that keep nothing ---


class _Entry(NamedTuple):
    packed: _core.Packed
    seen: list[tuple[int, int]]  # address and version of each weight
    storages: list[Tensor]  # keep the addresses from being used again
    references: list[weakref.ref[Tensor]]  # their ends are the entry's end


_entries: dict[tuple[Any, ...], _Entry] = {}


def packed_weights(spec: _core.Spec, weights: Sequence[Tensor]) -> _core.Packed:
    """From the cache, where these tensors were packed before and neither address nor version of one has changed."""
    isa = _settings.context_isa.get()
    key = (spec, isa, *map(id, weights))
    try:
        seen = [(weight.data_ptr(), weight._version) for weight in weights]
    except RuntimeError:  # made in inference mode: they have no version
        return _core.Packed(spec, [array(weight) for weight in weights], isa)
    entry = _entries.get(key)
    if entry is not None and entry.seen == seen:
        return entry.packed
    packed = _core.Packed(spec, [array(weight) for weight in weights], isa)
    if any(weight.is_shared() for weight in weights):  # another process may write them, which no version tells
        return packed

    def forget(_: object) -> None:
        _entries.pop(key, None)

    references = [weakref.ref(weight, forget) for weight in weights]
    _entries[key] = _Entry(packed, seen, [weight.detach() for weight in weights], references)
    return packed


def forget_packed(weights: Sequence[Any]) -> None:
    """Drops what was packed from any of these tensors."""
    if not _entries:
        return
    ids = {id(weight) for weight in weights}
    for key in list(_entries):
        if not ids.isdisjoint(key[2:]):
            _entries.pop(key, None)


# --- memory ---


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else dense(tensor)


def _with_dense_rows(tensor: Tensor) -> Tensor:
    """Strides of the other axes are free."""
    return tensor if tensor.stride(-1) == 1 and not tensor.is_neg() else tensor.contiguous().resolve_neg()


def _rows(tensor: Tensor | None, batch_first: bool) -> _core.Rows:
    """[T, B, features], or the rows of a PackedSequence, which must have dense rows."""
    if tensor is None:
        return 0, 0, 0
    if tensor.dim() == 2:
        return tensor.data_ptr(), 0, tensor.stride(0)
    first, second, _ = tensor.stride()
    return (tensor.data_ptr(), second, first) if batch_first else (tensor.data_ptr(), first, second)


def _packing(x: Tensor, batch_sizes: Tensor | None) -> tuple[int, int]:
    return (0, 0) if batch_sizes is None else (batch_sizes.data_ptr(), x.shape[0])


def _extent(x: Tensor, batch_sizes: Tensor | None, batch_first: bool) -> tuple[int, int]:
    """Steps and batch."""
    if batch_sizes is not None:
        return batch_sizes.shape[0], int(batch_sizes[0])
    return (x.shape[1], x.shape[0]) if batch_first else (x.shape[0], x.shape[1])


# --- without gradients ---


def run(
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    options: Options,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """y, h_n, c_n; without dropout."""
    spec = spec_of(options, x.dtype, weights)
    packed = packed_weights(spec, weights)
    x, h0, c0 = _with_dense_rows(x), _dense(h0), _dense(c0)
    steps, batch = _extent(x, batch_sizes, options.batch_first)
    y, h_n, c_n = _outputs(x, batch, weights, options)
    packed.run(
        steps,
        batch,
        _packing(x, batch_sizes),
        _rows(x, options.batch_first),
        _rows(y, options.batch_first),
        (_address(h0), _address(c0)),
        (h_n.data_ptr(), _address(c_n)),
        threads(),
    )
    return y, h_n, c_n


def _outputs(
    x: Tensor, batch: int, weights: Sequence[Tensor], options: Options
) -> tuple[Tensor, Tensor, Tensor | None]:
    _, units, width = sizes_of(options.mode, weights)
    y = _new((*x.shape[:-1], 2 * width if options.bidirectional else width), x)
    h_n = _new((options.cells, batch, width), x)
    return y, h_n, _new((options.cells, batch, units), x) if options.mode == "LSTM" else None


def run_cell(
    x: Tensor, h: Tensor | None, c: Tensor | None, weights: Sequence[Tensor], mode: str
) -> tuple[Tensor, Tensor | None]:
    """h and c after one step; x [B, I], states [B, H]. The step's output is the new h itself."""
    sizes = sizes_of(mode, weights)
    units = sizes.units
    packed = packed_weights(_spec(mode, x.dtype, sizes, 1, 1), weights)
    x, h, c = _with_dense_rows(x), _dense(h), _dense(c)
    h_n = _new((x.shape[0], units), x)
    c_n = torch.empty_like(h_n) if mode == "LSTM" else None
    packed.run(
        1,
        x.shape[0],
        (0, 0),
        (x.data_ptr(), 0, x.stride(0)),
        (h_n.data_ptr(), 0, units),
        (_address(h), _address(c)),
        (h_n.data_ptr(), _address(c_n)),
        threads(),
    )
    return h_n, c_n


# --- with a tape ---


def tape_size(steps: Any, batch: Any, spec: _core.Spec, isa: str) -> Any:
    """Bytes of a tape, for any lengths: memory that is not touched costs nothing. The sizes may be symbolic."""
    return steps * batch * _core.tape_nbytes(spec, 1, 1, isa)


def _unchanged(tape: Tensor, others: Sequence[Tensor | None], dtype: torch.dtype) -> None:
    """Hooks on saved tensors may have returned anything."""
    if tape.dtype != torch.uint8 or not tape.is_contiguous():
        raise ValueError(f"a hook on saved tensors returned a tape of {tape.dtype}, and it has to be what was saved")
    for tensor in others:
        if tensor is not None and (tensor.dtype != dtype or not tensor.is_cpu):
            raise ValueError(
                f"a saved tensor or gradient is {tensor.dtype} on {tensor.device}, and should be {dtype} on cpu"
            )


def _aligned(tape: Tensor) -> Tensor:
    """Hooks on saved tensors may have moved it."""
    if tape.data_ptr() % 64 == 0:
        return tape
    return torch.from_numpy(_core.new_tape(tape.numel())).copy_(tape)


def run_taped(
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    seed: Tensor | None,
    options: Options,
    isa: str,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """y, h_n, c_n, tape."""
    forget_packed(weights)  # fused optimizers change weights without a new version, and training comes before them
    x, h0, c0 = _with_dense_rows(x), _dense(h0), _dense(c0)
    weights = [dense(weight) for weight in weights]
    steps, batch = _extent(x, batch_sizes, options.batch_first)
    y, h_n, c_n = _outputs(x, batch, weights, options)
    spec = spec_of(options, x.dtype, weights)
    tape = torch.from_numpy(_core.new_tape(tape_size(steps, batch, spec, isa)))
    _core.TensorPass(
        spec,
        steps,
        batch,
        _packing(x, batch_sizes),
        _rows(x, options.batch_first),
        _rows(y, options.batch_first),
        (_address(h0), _address(c0)),
        (h_n.data_ptr(), _address(c_n)),
        [weight.data_ptr() for weight in weights],
        options.dropout,
        0 if seed is None else int(seed),
        (tape.data_ptr(), tape.numel()),
        isa,
        threads(),
    ).forward()
    return y, h_n, c_n, tape


class Wanted(NamedTuple):
    """Which gradients somebody asks for."""

    x: bool
    h0: bool
    c0: bool
    weights: Sequence[bool]


def run_backward(
    grad_y: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    seed: Tensor | None,
    y: Tensor,
    tape: Tensor,
    options: Options,
    isa: str,
    wanted: Wanted,
) -> list[Tensor]:
    """The wanted gradients by x, h0, c0 and the weights."""
    forget_packed(weights)
    _unchanged(tape, [grad_y, grad_h_n, grad_c_n, x, y, h0, c0, *weights], weights[0].dtype)
    x, y, h0, c0 = _with_dense_rows(x), _with_dense_rows(y), _dense(h0), _dense(c0)
    grad_y = None if grad_y is None else _with_dense_rows(grad_y)
    grad_h_n, grad_c_n = _dense(grad_h_n), _dense(grad_c_n) if options.mode == "LSTM" else None
    weights, tape = [dense(weight) for weight in weights], _aligned(tape)
    steps, batch = _extent(x, batch_sizes, options.batch_first)
    _, units, width = sizes_of(options.mode, weights)
    grad_x = _new(tuple(x.shape), x) if wanted.x else None
    grad_h0 = _new((options.cells, batch, width), x) if wanted.h0 else None
    grad_c0 = _new((options.cells, batch, units), x) if wanted.c0 else None
    grad_weights = [_new(tuple(w.shape), x) if want else None for w, want in zip(weights, wanted.weights, strict=True)]
    _core.TensorPass(
        spec_of(options, x.dtype, weights),
        steps,
        batch,
        _packing(x, batch_sizes),
        _rows(x, options.batch_first),
        _rows(y, options.batch_first),
        (_address(h0), _address(c0)),
        (0, 0),
        [weight.data_ptr() for weight in weights],
        options.dropout,
        0 if seed is None else int(seed),
        (tape.data_ptr(), tape.numel()),
        isa,
        threads(),
    ).backward(
        _rows(grad_y, options.batch_first),
        (_address(grad_h_n), _address(grad_c_n)),
        _rows(grad_x, options.batch_first),
        (_address(grad_h0), _address(grad_c0)),
        [_address(grad) for grad in grad_weights],
    )
    return [grad for grad in (grad_x, grad_h0, grad_c0, *grad_weights) if grad is not None]
