"""The compiled part: one call per pass. Arguments are checked and explained in Python (`_check.py`); the errors here
only keep memory safe. Arrays are C-contiguous unless said, aligned, of the dtype of the `Spec`. A layer with
`hidden_size` 0 computes and writes nothing."""

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._check import SupportsArray

Array = NDArray[Any]

# Memory of tensors, for those that run there: an address, 0 for None; that of a [T, B, features] array with its strides
# of T and B in elements; those of h and c. Packed: the address of a PackedSequence's batch_sizes, [T] int64, and how
# many rows it has; the arrays then have these rows, with the second stride. (0, 0): nothing is packed.
Address = int
Packing = tuple[int, int]
Rows = tuple[int, int, int]
States = tuple[int, int]

class Spec:
    def __init__(
        self,
        cell: str,  # "rnn", "lstm", "gru"
        dtype: str,  # "float32", "float64"
        input_size: int,
        hidden_size: int,
        num_layers: int,
        num_directions: int,
        *,
        proj_size: int = 0,
        reset_after: bool = True,
        peepholes: bool = False,
        coupled_gates: bool = False,
        layer_norm: bool = False,
        clip: float = 0.0,  # 0 = none
        zoneout_h: float = 0.0,
        zoneout_c: float = 0.0,
        # per direction, those that the cell has: of the gates, of the candidate, of c on its way to h;
        # each (name, alpha, beta); None = the cell's own
        activations: Sequence[Sequence[tuple[str, float, float]]] | None = None,
        hidden_sizes: Sequence[int] | None = None,  # [L]; hidden_size is then the largest
    ) -> None: ...

class Packed:
    """Weights packed once for one instruction set; immutable."""

    def __init__(self, spec: Spec, weights: Sequence[Array], isa: str) -> None: ...
    @property
    def isa(self) -> str: ...
    @property
    def nbytes(self) -> int: ...
    # (output, state) of an ordinary call, as `Frozen.__call__` gives them; None where anything is out of the ordinary.
    def forward(self, x: object, hx: object, batch_first: bool, threads: int) -> tuple[Any, ...] | None: ...
    def run(
        self,
        steps: int,
        batch: int,
        packed: Packing,
        x: Rows,  # [T, B, I]
        y: Rows,  # [T, B, D*H]; rows beyond a length are left alone
        start: States,  # h [L*D, B, S] and c [L*D, B, H]
        last: States,
        threads: int,  # as in Pass
    ) -> None:
        """Inference on memory that the caller answers for."""

class Pass:
    """One forward call and, with a tape, what backward needs. Keeps its arrays alive."""

    def __init__(
        self,
        spec: Spec,
        # per layer and direction: w_ih, w_hh[, b_ih, b_hh][, w_hr][, w_ch][, w_ln_ih, w_ln_hh[, w_ln_c, b_ln_c]]
        weights: Sequence[Array] | Packed,
        x: Array,  # [T, B, I]; first two strides are free, multiples of the item size
        y: Array,  # [T, B, D*S], S = H or proj_size; strides as x; rows that take no part are left alone
        h0: Array | None,  # [L*D, B, S], c0 [L*D, B, H]; with hidden_sizes: 1-D, the layers' blocks [D, B, H_l]
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
        *,
        mask: NDArray[np.uint8] | None = None,  # [T, B], instead of lengths: 1 = takes part
        reset: NDArray[np.uint8] | None = None,  # [T, B]
        reset_to_initial: bool = False,
        carry: bool = False,  # rows of y that take no part repeat the output before
        input_masks: Sequence[Array | None] | None = None,  # L factors [B, I_l]
        recurrent_masks: Sequence[Array] | None = None,  # L*D factors [B, S]
        zoneout_masks_h: Sequence[NDArray[np.uint8]] | None = None,  # L*D, [T, B, H]: 1 = keeps its value
        zoneout_masks_c: Sequence[NDArray[np.uint8]] | None = None,
        cells: Array | None = None,  # [T, B, D*H], of the last layer; strides as x; rows are left alone as y's
        gates: Array | None = None,  # [T, B, D*G*H]
    ) -> None: ...
    def forward(self) -> None: ...
    def backward(
        self,
        grad_y: Array | None,  # [T, B, D*S], strides as x
        grad_hn: Array | None,
        grad_cn: Array | None,
        grad_x: Array | None,  # [T, B, I], strides as x; rows that take no part are left alone
        grad_h0: Array | None,
        grad_c0: Array | None,
        grad_weights: Sequence[Array | None],  # as weights
        per_step: Sequence[Array] | None,  # per layer and direction, [T, B, S]; left alone as grad_x
        threads: int,
        grad_clip: float = 0.0,  # 0 = none
    ) -> None: ...
    @property
    def tape_nbytes(self) -> int: ...

class TensorPass:
    """Forward or backward of a training pass on memory that the caller answers for, as `Packed.run`. Both are of one
    pass, whose tape goes from one to the other."""

    def __init__(
        self,
        spec: Spec,
        steps: int,
        batch: int,
        packed: Packing,
        x: Rows,
        y: Rows,
        start: States,
        last: States,
        weights: Sequence[Address],  # as in Pass
        dropout: float,
        seed: int,
        tape: tuple[Address, int],  # aligned to 64, and its bytes
        isa: str,
        threads: int,
    ) -> None: ...
    def forward(self) -> None: ...
    def backward(
        self, grad_y: Rows, grad_last: States, grad_x: Rows, grad_start: States, grad_weights: Sequence[Address]
    ) -> None: ...

class Stream:
    """One step at a time; h and c, in the form of `Pass`, are updated in place. The base of `rnnfast.Stream`."""

    # as_array(name, value): for an x_t that is no array. threads: 0 = the process's number.
    def __init__(
        self,
        spec: Spec,
        packed: Packed,
        h: Array,
        c: Array | None,
        as_array: Callable[[str, Any], Array],
        threads: ContextVar[int],
    ) -> None: ...
    # x_t [B, I], out [B, S], or [I] and [S] for B = 1. Words its own errors.
    def step(self, x_t: SupportsArray, out: Array | None = None) -> Array: ...

def tape_nbytes(spec: Spec, steps: int, batch: int, isa: str) -> int: ...  # without lengths and segments
def new_tape(nbytes: int) -> NDArray[np.uint8]: ...  # for TensorPass
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
def shares_openmp(library: str) -> bool: ...  # whether a loaded library, by its soname, has the same OpenMP runtime
def config() -> dict[str, Any]: ...  # version, compiler, numerics, openmp
