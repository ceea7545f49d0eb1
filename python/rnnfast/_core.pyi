"""The compiled part: one call per pass. Arguments are checked and explained in Python (`_check.py`); the errors here
only keep memory safe. Arrays are C-contiguous unless said, aligned, of the dtype of the `Spec`. A layer with
`hidden_size` 0 computes and writes nothing."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

class Spec:
    def __init__(
        self,
        cell: str,  # "rnn", "lstm", "gru"
        activation: str,  # "tanh", "relu": of the RNN cell
        dtype: str,  # "float32", "float64"
        input_size: int,
        hidden_size: int,
        num_layers: int,
        num_directions: int,
    ) -> None: ...

class Packed:
    """Weights packed once for one instruction set; immutable."""

    def __init__(self, spec: Spec, weights: Sequence[Array], isa: str) -> None: ...
    @property
    def isa(self) -> str: ...
    @property
    def nbytes(self) -> int: ...
    # Inference on memory that the caller answers for: addresses, 0 for None; (stride of T, stride of B) in elements.
    def run(
        self,
        steps: int,
        batch: int,
        x: int,  # [T, B, I]
        x_strides: tuple[int, int],
        y: int,  # [T, B, D*H]; rows beyond a length are left alone
        y_strides: tuple[int, int],
        h0: int,  # [L*D, B, H]
        c0: int,
        hn: int,
        cn: int,
        lengths: int,  # [B] of int64
        threads: int,  # as in Pass
    ) -> None: ...

class Pass:
    """One forward call and, with a tape, what backward needs. Keeps its arrays alive."""

    def __init__(
        self,
        spec: Spec,
        weights: Sequence[Array] | Packed,  # per layer and direction: w_ih, w_hh[, b_ih, b_hh]
        x: Array,  # [T, B, I]; first two strides are free, multiples of the item size
        y: Array,  # [T, B, D*H]; strides as x; rows beyond a length are left alone
        h0: Array | None,  # [L*D, B, H]
        c0: Array | None,
        hn: Array,
        cn: Array | None,
        lengths: NDArray[np.int64] | None,  # [B], within 0..T
        dropout: float,
        seed: int,
        train: bool,  # allocate and fill a tape
        isa: str,  # "" = the default; ignored with Packed
        threads: int,  # 0 = the process's number; negative: exactly so many
        segments: int = 0,  # recomputed in backward; 0 = none
        tape: NDArray[np.uint8] | None = None,  # memory for it, aligned to 64; a later Pass may continue with backward
    ) -> None: ...
    def forward(self) -> None: ...
    def backward(
        self,
        grad_y: Array | None,  # [T, B, D*H], strides as x
        grad_hn: Array | None,
        grad_cn: Array | None,
        grad_x: Array | None,  # [T, B, I], strides as x; rows beyond a length are left alone
        grad_h0: Array | None,
        grad_c0: Array | None,
        grad_weights: Sequence[Array | None],  # as weights
        per_step: Sequence[Array] | None,  # per layer and direction, [T, B, H]; left alone as grad_x
        threads: int,
    ) -> None: ...
    @property
    def tape_nbytes(self) -> int: ...

class Stream:
    """One step at a time; h and c [L*D, B, H] are updated in place."""

    def __init__(self, spec: Spec, packed: Packed, h: Array, c: Array | None) -> None: ...
    # x [B, I], out [B, H], or [I] and [H] for B = 1; threads: 0 = the process's number. Words its own errors.
    def step(self, x: Array, out: Array | None, threads: int) -> Array: ...

def tape_nbytes(spec: Spec, steps: int, batch: int, isa: str) -> int: ...  # without lengths and segments
def new_tape(nbytes: int) -> NDArray[np.uint8]: ...  # for Pass
def available_isas() -> list[str]: ...
def default_isa() -> str: ...  # ValueError where RNNFAST_ISA names none

# For tests and measurements.
def apply(isa: str, function: str, x: Array, y: Array) -> None: ...  # "exp", "expm1", "sigmoid", "tanh"
def measure_peak(isa: str, dtype: str, threads: int, seconds: float) -> float: ...  # operations per second
def measure_read(isa: str, bytes: int, threads: int, seconds: float) -> float: ...  # bytes per second, a buffer each
def dropout_mask(seed: int, p: float, layer: int, steps: int, batch: int, width: int) -> NDArray[np.bool_]: ...

# Threads, for the process.
def set_num_threads(n: int) -> None: ...  # 0 = the default
def get_num_threads(otherwise: int = 0) -> int: ...  # otherwise: in place of OMP_NUM_THREADS and the cores; 0 = none
def set_backend(name: str) -> None: ...  # "openmp", "pool", or "" for the default
def get_backend() -> str: ...  # ValueError where RNNFAST_THREADING names none
def config() -> dict[str, Any]: ...  # version, compiler, numerics, openmp
