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
    return tensor.detach().contiguous().resolve_neg().numpy()


def _optional_array(tensor: Tensor | None) -> np.ndarray[Any, Any] | None:
    return None if tensor is None else array(tensor)


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


# --- the rows of a PackedSequence ---


def pad(rows: Tensor, batch_sizes: Tensor) -> tuple[Tensor, Tensor]:
    """[T, B, features] with undefined values beyond the lengths, and the lengths."""
    padded, lengths = torch._VF._pad_packed_sequence(rows.detach(), batch_sizes, False, 0.0, batch_sizes.shape[0])
    return padded, lengths


def lengths_of(batch_sizes: Tensor) -> Tensor:
    """[B], in the order of the rows: longest first."""
    return (batch_sizes[:, None] > torch.arange(int(batch_sizes[0]))).sum(0)


def unpad(padded: Tensor, lengths: Tensor) -> Tensor:
    rows, _ = torch._VF._pack_padded_sequence(padded, lengths, False)
    return rows


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
    if batch_sizes is not None:
        padded, lengths = pad(x, batch_sizes)
        y, h_n, c_n = _run(padded, h0, c0, weights, lengths, options._replace(batch_first=False))
        return unpad(y, lengths), h_n, c_n
    return _run(x, h0, c0, weights, None, options)


def _run(
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    options: Options,
) -> tuple[Tensor, Tensor, Tensor | None]:
    spec = spec_of(options, x.dtype, weights)
    packed = packed_weights(spec, weights)
    _, units, width = sizes_of(options.mode, weights)
    if x.stride(2) != 1:
        x = x.contiguous()
    first, second = x.shape[0], x.shape[1]
    y = _new((first, second, 2 * width if options.bidirectional else width), x)
    x_strides, y_strides = x.stride()[:2], y.stride()[:2]
    steps, batch = first, second
    if options.batch_first:
        steps, batch = second, first
        x_strides, y_strides = x_strides[::-1], y_strides[::-1]
    h_n = _new((options.cells, batch, width), x)
    c_n = _new((options.cells, batch, units), x) if options.mode == "LSTM" else None
    if h0 is not None and not h0.is_contiguous():
        h0 = h0.contiguous()
    if c0 is not None and not c0.is_contiguous():
        c0 = c0.contiguous()
    packed.run(
        steps,
        batch,
        x.data_ptr(),
        x_strides,
        y.data_ptr(),
        y_strides,
        0 if h0 is None else h0.data_ptr(),
        0 if c0 is None else c0.data_ptr(),
        h_n.data_ptr(),
        0 if c_n is None else c_n.data_ptr(),
        0 if lengths is None else lengths.data_ptr(),
        threads(),
    )
    return y, h_n, c_n


def run_cell(
    x: Tensor, h: Tensor | None, c: Tensor | None, weights: Sequence[Tensor], mode: str
) -> tuple[Tensor, Tensor | None]:
    """h and c after one step; x [B, I], states [B, H]. The step's output is the new h itself."""
    sizes = sizes_of(mode, weights)
    units = sizes.units
    packed = packed_weights(_spec(mode, x.dtype, sizes, 1, 1), weights)
    x = x if x.stride(1) == 1 else x.contiguous()
    h = h if h is None or h.is_contiguous() else h.contiguous()
    c = c if c is None or c.is_contiguous() else c.contiguous()
    h_n = _new((x.shape[0], units), x)
    c_n = torch.empty_like(h_n) if mode == "LSTM" else None
    packed.run(
        1,
        x.shape[0],
        x.data_ptr(),
        (0, x.stride(0)),
        h_n.data_ptr(),
        (0, units),
        0 if h is None else h.data_ptr(),
        0 if c is None else c.data_ptr(),
        h_n.data_ptr(),
        0 if c_n is None else c_n.data_ptr(),
        0,
        threads(),
    )
    return h_n, c_n


# --- with a tape ---


def tape_size(steps: Any, batch: Any, spec: _core.Spec, isa: str) -> Any:
    """Bytes of a tape, for any lengths: memory that is not touched costs nothing. The sizes may be symbolic."""
    return steps * batch * _core.tape_nbytes(spec, 1, 1, isa)


def _to_engine(tensor: Tensor, batch_first: bool) -> np.ndarray[Any, Any]:
    """Strides of T and B are free."""
    tensor = tensor.detach().resolve_neg()
    if tensor.stride(2) != 1 and tensor.shape[2] != 1:
        tensor = tensor.contiguous()
    return (tensor.transpose(0, 1) if batch_first else tensor).numpy()


def _aligned(tape: Tensor) -> np.ndarray[Any, Any]:
    """Hooks on saved tensors may have moved it."""
    if tape.data_ptr() % 64 == 0:
        return tape.numpy()
    copy = _core.new_tape(tape.numel())
    copy[:] = tape.numpy()
    return copy


def _pass(
    x: Tensor,
    y: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    h_n: Tensor,
    c_n: Tensor | None,
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    seed: Tensor | None,
    tape: Tensor,
    options: Options,
    isa: str,
) -> _core.Pass:
    return _core.Pass(
        spec_of(options, x.dtype, weights),
        [array(weight) for weight in weights],
        _to_engine(x, options.batch_first),
        _to_engine(y, options.batch_first),
        _optional_array(h0),
        _optional_array(c0),
        h_n.numpy(),
        None if c_n is None else c_n.numpy(),
        _optional_array(lengths),
        options.dropout,
        0 if seed is None else int(seed),
        True,
        isa,
        threads(),
        tape=_aligned(tape),
    )


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
    lengths = None
    if batch_sizes is not None:
        x, lengths = pad(x, batch_sizes)
        options = options._replace(batch_first=False)
    _, units, width = sizes_of(options.mode, weights)
    first, second = x.shape[:2]
    batch = first if options.batch_first else second
    y = _new((first, second, 2 * width if options.bidirectional else width), x)
    h_n = _new((options.cells, batch, width), x)
    c_n = _new((options.cells, batch, units), x) if options.mode == "LSTM" else None
    spec = spec_of(options, x.dtype, weights)
    tape = torch.from_numpy(_core.new_tape(tape_size(first, second, spec, isa)))
    _pass(x, y, h0, c0, h_n, c_n, weights, lengths, seed, tape, options, isa).forward()
    if lengths is not None:
        y = unpad(y, lengths)
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
    lengths = None
    if batch_sizes is not None:
        x, lengths = pad(x, batch_sizes)
        y, _ = pad(y, batch_sizes)
        grad_y = None if grad_y is None else pad(grad_y, batch_sizes)[0]
        options = options._replace(batch_first=False)
    batch = x.shape[0] if options.batch_first else x.shape[1]
    _, units, width = sizes_of(options.mode, weights)
    h_shape, c_shape = (options.cells, batch, width), (options.cells, batch, units)
    is_lstm = options.mode == "LSTM"
    # The engine asks where a last state would go; nobody reads or writes it here.
    unused_h, unused_c = _new(h_shape, x), _new(c_shape, x) if is_lstm else None
    grad_x = _new(tuple(x.shape), x) if wanted.x else None
    grad_h0 = _new(h_shape, x) if wanted.h0 else None
    grad_c0 = _new(c_shape, x) if wanted.c0 else None
    grad_weights = [_new(tuple(w.shape), x) if want else None for w, want in zip(weights, wanted.weights, strict=True)]
    forward = _pass(x, y, h0, c0, unused_h, unused_c, weights, lengths, seed, tape, options, isa)
    forward.backward(
        None if grad_y is None else _to_engine(grad_y, options.batch_first),
        _optional_array(grad_h_n),
        _optional_array(grad_c_n) if is_lstm else None,
        None if grad_x is None else _to_engine(grad_x, options.batch_first),
        None if grad_h0 is None else grad_h0.numpy(),
        None if grad_c0 is None else grad_c0.numpy(),
        [None if grad is None else grad.numpy() for grad in grad_weights],
        None,
        threads(),
    )
    if grad_x is not None and lengths is not None:
        grad_x = unpad(grad_x, lengths)
    return [grad for grad in (grad_x, grad_h0, grad_c0, *grad_weights) if grad is not None]
