"""A layer for inference: weights packed once, immutable, safe to share between threads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, Literal, NoReturn, TypeVar, overload

from . import _check, _core, _settings
from ._check import Array, SupportsArray
from ._config import Config, Configured
from ._passes import ForwardCall, Model, Request
from .stream import Stream

State = TypeVar("State")
ZERO = "zero"  # one object: a default is recognized by that


class Frozen(Configured, Generic[State]):
    """Made by `freeze()` of a layer. Results equal the layer's, bit for bit.

    It keeps a plain copy of the weights, by which it pickles, beside the packed ones, which are for one instruction
    set: the one in use where it was frozen or unpickled.
    """

    __slots__ = ("_config", "_packed", "_spec", "_weights")
    _weights: dict[str, Array]
    _spec: _core.Spec
    _packed: _core.Packed

    def __init__(self, config: Config, parameters: Mapping[str, Array]) -> None:
        weights = {name: array.copy() for name, array in parameters.items()}
        for array in weights.values():
            array.flags.writeable = False
        spec = config.spec()
        packed = _core.Packed(spec, list(weights.values()), _settings.context_isa.get())
        for name, value in (("_config", config), ("_weights", weights), ("_spec", spec), ("_packed", packed)):
            object.__setattr__(self, name, value)

    @overload
    def __call__(
        self, x: SupportsArray, hx: Any = None, *, lengths: Any = None, mask: Any = None, masked_output: str = "zero",
        reset: Any = None, reset_to: str = "zero", return_cell: Literal[False] = False,
        return_gates: Literal[False] = False,
    ) -> tuple[Array, State]: ...  # fmt: skip

    @overload
    def __call__(
        self, x: SupportsArray, hx: Any = None, *, lengths: Any = None, mask: Any = None, masked_output: str = "zero",
        reset: Any = None, reset_to: str = "zero", return_cell: bool = False, return_gates: bool = False,
    ) -> tuple[Any, ...]: ...  # fmt: skip

    def __call__(
        self,
        x: SupportsArray,
        hx: Any = None,
        *,
        lengths: Any = None,
        mask: Any = None,
        masked_output: str = ZERO,
        reset: Any = None,
        reset_to: str = ZERO,
        return_cell: bool = False,
        return_gates: bool = False,
    ) -> tuple[Any, ...]:
        """Returns (output, state). Arguments, results and errors are those of the layer's own `__call__`."""
        # Small layers take less time than a call's arguments do in Python.
        if (
            lengths is mask is reset is None
            and masked_output is reset_to is ZERO
            and return_cell is return_gates is False
        ):
            threads = _settings.context_threads.get()
            ordinary = self._packed.forward(x, hx, self._config.batch_first, threads)
            if ordinary is not None:
                return ordinary
        request = Request(lengths, mask, masked_output, reset, reset_to, return_cell, return_gates)
        return ForwardCall(Model(self._config, self._spec, self._packed), x, hx, request, None).results

    def stream(self, batch_size: int = 1) -> Stream:
        """Step-by-step inference for `batch_size` sequences that advance together, starting from a state of zeros.

        Raises ValueError for a bidirectional layer, which would need the future, and for `batch_size` below 1.
        """
        _check.can_stream(self._config.class_name, self._config.bidirectional)
        batch_size = _check.size("batch_size", batch_size, 1)
        _check.call_size("batch_size", 1, batch_size * self._config.num_layers, self._config.widest)
        return Stream(self._config, self._spec, self._packed, batch_size)

    @property
    def isa(self) -> str:
        """Name of the instruction set that the weights are packed for."""
        return self._packed.isa

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weights."""
        return self._packed.nbytes

    def state_dict(self) -> dict[str, Array]:
        """The weights by PyTorch's names; read-only."""
        return dict(self._weights)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a frozen layer cannot be changed ({name}); change the layer and freeze it again")

    __delattr__ = __setattr__  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return Frozen, (self._config, self._weights)

    def __copy__(self) -> Frozen[State]:
        return self  # immutable

    def __deepcopy__(self, memo: dict[int, Any]) -> Frozen[State]:
        return self

    def __repr__(self) -> str:
        return f"Frozen({self._config}, isa={self.isa!r})"
