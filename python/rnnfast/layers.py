"""The trainable layers: RNN, LSTM, GRU, with PyTorch's arguments, parameter names, shapes and results.

Equations of both passes: docs/math.md.
"""

from __future__ import annotations

from typing import Any, Generic, NamedTuple, NoReturn, TypeVar

import numpy as np

from . import _check
from ._check import Array, SupportsArray
from ._config import Config, Configured
from ._passes import ForwardCall
from .frozen import Frozen
from .gradients import Gradients

State = TypeVar("State")


class IncompatibleKeys(NamedTuple):
    """What `load_state_dict(..., strict=False)` did not find, and did not use."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class Parameters(dict[str, Array]):
    """A layer's arrays by name. The set of names is fixed, and assigning to a name copies into the layer's array."""

    def __init__(self, class_name: str, arrays: dict[str, Array]) -> None:
        super().__init__(arrays)
        self._class_name = class_name

    def __setitem__(self, name: str, value: SupportsArray) -> None:
        if name not in self:
            raise KeyError(_check.unknown_parameter(self._class_name, name, self))
        array = self[name]
        if value is not array:  # as after `parameters[name] -= step`
            array[...] = _check.parameter_value(name, value, array.shape, array.dtype)

    def update(self, *args: Any, **kwargs: Any) -> None:
        for name, value in dict(*args, **kwargs).items():
            self[name] = value

    def __ior__(self, other: Any) -> Parameters:  # type: ignore[override, misc]
        self.update(other)
        return self

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(f"the parameters of {self._class_name} cannot be removed or added")

    __delitem__ = pop = popitem = clear = setdefault = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


class Tape:
    """What `forward` keeps for `backward`. It references input and output and does not copy them: do not change them,
    or the weights, in place before `backward`. It may be used any number of times."""

    __slots__ = ("_call", "_layer")

    def __init__(self, layer: Layer[Any], call: ForwardCall) -> None:
        self._layer = layer
        self._call = call

    @property
    def nbytes(self) -> int:
        """What training keeps in memory besides input, output and states."""
        return self._call.tape_nbytes

    def dropout_masks(self) -> list[Array]:
        """Which elements of the output of each layer but the last were kept, as bool arrays in the shape of output.
        What was kept was multiplied by 1 / (1 - dropout)."""
        return self._call.dropout_masks()

    def __repr__(self) -> str:
        return f"Tape of {self._layer!r}, {self.nbytes} bytes"


class Layer(Configured, Generic[State]):
    """What RNN, LSTM and GRU have in common."""

    def __init__(self, config: Config, seed: Any) -> None:
        config = config.checked()
        config.warn_of_unused_dropout()
        self._config = config
        self._spec = config.spec()
        self._rng = _check.generator(seed)
        bound = 1.0 / np.sqrt(max(config.hidden_size, 1))
        # Drawn in float64, so that layers of both dtypes start from the same numbers.
        arrays = {
            name: self._rng.uniform(-bound, bound, shape).astype(config.dtype)
            for name, shape in config.parameter_shapes().items()
        }
        self._parameters = Parameters(config.class_name, arrays)

    # --- running ---

    def __call__(self, x: SupportsArray, hx: Any = None, *, lengths: Any = None) -> tuple[Array, State]:
        """Inference: returns output and final state, keeps nothing, applies no dropout.

        x: [T, B, I]; [B, T, I] with batch_first; [T, I] unbatched; of the layer's dtype. Read-only, strided and
            misaligned arrays and CPU tensors are fine. A copy is made only where the last axis is not contiguous.
        hx: initial state, zeros if None: [layers * directions, B, H] ([layers * directions, H] unbatched); for an
            LSTM the tuple (h_0, c_0) of two such arrays.
        lengths: integers [B], 0 to T, in any order: how many steps of each row count. Output beyond them is 0, the
            state is that after the last valid step.

        Returns (output, state): output [T, B, directions * H] laid out like x, state in the form of hx.

        Raises ValueError for wrong shapes and sizes, TypeError for wrong dtypes and types.
        """
        call = ForwardCall(self._config, self._spec, list(self._parameters.values()), x, hx, lengths)
        return call.output, call.state

    def forward(self, x: SupportsArray, hx: Any = None, *, lengths: Any = None) -> tuple[Array, State, Tape]:
        """Training: as `__call__`, with dropout between layers, and returns (output, state, tape).

        Each call draws other dropout masks; a layer made with the same seed draws the same ones in the same order.
        """
        seed = 0
        if self.dropout and self.num_layers > 1:
            seed = int(self._rng.integers(2**64, dtype=np.uint64))
        weights = list(self._parameters.values())
        call = ForwardCall(self._config, self._spec, weights, x, hx, lengths, train=True, seed=seed)
        return call.output, call.state, Tape(self, call)

    def backward(
        self,
        tape: Tape,
        grad_output: SupportsArray | None,
        grad_state: Any = None,
        per_step: bool = False,
    ) -> Gradients:
        """Gradients of a loss by input, initial state and parameters, from those by output and final state.

        tape: the third thing that `forward` of this layer returned, in its last or an earlier call. x, output and
            weights must be as they were then: the tape refers to them.
        grad_output: d loss / d output, in the shape of output; None for zeros.
        grad_state: d loss / d state, in the form of the state; None for zeros, also inside an LSTM's tuple.
        per_step: also return d loss / d h_t for every layer, direction and step.

        Raises ValueError for a tape of another layer and for wrong shapes, TypeError for wrong dtypes and types.
        """
        _check.tape(tape, Tape)
        _check.same_layer(tape._layer, self)
        return tape._call.backward(grad_output, grad_state, _check.flag("per_step", per_step))

    def freeze(self) -> Frozen[State]:
        """A copy for inference: immutable, its weights packed once for the instruction set in use here."""
        return Frozen(self._config, self._parameters)

    # --- parameters ---

    @property
    def parameters(self) -> Parameters:
        """The layer's arrays by PyTorch's names, live and writable; they are also attributes of the layer."""
        return self._parameters

    def state_dict(self) -> dict[str, Array]:
        """Copies of the parameters, by name."""
        return {name: array.copy() for name, array in self._parameters.items()}

    def load_state_dict(self, state_dict: Any, strict: bool = True) -> IncompatibleKeys:
        """Copies parameters from a mapping of names to arrays or CPU tensors.

        Other floating-point types are converted. With `strict=False` missing and unexpected names are allowed; they
        are returned in any case.

        Raises ValueError that lists all missing and unexpected names, wrong shapes and dtypes (nothing is loaded
        then), TypeError if `state_dict` is no mapping.
        """
        config = self._config
        values, missing, unexpected = _check.state_dict(
            config.class_name, state_dict, config.parameter_shapes(), config.numpy_dtype, strict
        )
        for name, value in values.items():
            self._parameters[name] = value
        return IncompatibleKeys(missing, unexpected)

    def __getattr__(self, name: str) -> Array:
        parameters: dict[str, Array] = self.__dict__.get("_parameters", {})
        if name in parameters:
            return parameters[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        parameters = self.__dict__.get("_parameters", {})
        if name in parameters:
            parameters[name] = value
        elif name.startswith(("weight_", "bias_")):  # a misspelt parameter
            raise AttributeError(_check.unknown_parameter(self._config.class_name, name, parameters))
        else:
            object.__setattr__(self, name, value)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._parameters]

    # --- copies ---

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        del state["_spec"]  # made again from the configuration
        state["_parameters"] = dict(self._parameters)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        config: Config = state["_config"]
        # Arrays that pickle shares with its buffers may be read-only or misaligned.
        arrays = {name: np.require(array, requirements=["C", "A", "W"]) for name, array in state["_parameters"].items()}
        self.__dict__.update(state, _spec=config.spec(), _parameters=Parameters(config.class_name, arrays))

    def __repr__(self) -> str:
        return str(self._config)


class RNN(Layer[Array]):
    """h_t = act(W_ih x_t + b_ih + W_hh h_(t-1) + b_hh), with act tanh or relu: Elman, Finding structure in time, 1990.

    input_size, hidden_size: features of x, units.
    num_layers: layers, each on the output of the one below.
    nonlinearity: "tanh" or "relu".
    bias: whether there are b_ih and b_hh.
    batch_first: x and output are [B, T, features] instead of [T, B, features]; states are not affected.
    dropout: probability of dropping elements of the output of every layer but the last, in `forward`.
    bidirectional: a second set of weights reads the sequence backwards; its output follows the first one's.
    dtype: "float32" or "float64".
    seed: of the initial parameters, uniform in +-1/sqrt(hidden_size), and of dropout: None, an integer, or a
        numpy.random.Generator.
    recompute: None, or in how many segments of its steps a sequence is trained: `forward` then keeps only where each
        segment starts, and `backward` computes its gates again, as one product since h is known. Memory falls to a
        segment's, time grows by about a third, results have the same bits.

    Parameters by name: weight_ih_l0 [H, I], weight_hh_l0 [H, H], bias_ih_l0, bias_hh_l0 [H], then _l0_reverse with
    bidirectional, then _l1, whose weight_ih is [H, directions * H].

    Raises ValueError for sizes and values out of range, TypeError for wrong types.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        dtype: Any = "float32",
        seed: Any = None,
        recompute: int | None = None,
    ) -> None:
        config = Config(
            "rnn",
            input_size,
            hidden_size,
            num_layers,
            nonlinearity,
            bias,
            batch_first,
            dropout,
            bidirectional,
            dtype,
            recompute,
        )
        super().__init__(config, seed)

    @property
    def nonlinearity(self) -> str:
        """ "tanh" or "relu"."""
        return self._config.nonlinearity


class LSTM(Layer[tuple[Array, Array]]):
    """Long short-term memory with forget gate: Hochreiter and Schmidhuber 1997; Gers, Schmidhuber, Cummins 2000.

        i, f, g, o = sigmoid, sigmoid, tanh, sigmoid of W_ih x_t + b_ih + W_hh h_(t-1) + b_hh, in this order
        c_t = f * c_(t-1) + i * g
        h_t = o * tanh(c_t)

    The state is the tuple (h, c). Arguments as for `RNN`, without nonlinearity. The first axis of every parameter is
    4 * H, in the order i, f, g, o.

    Raises ValueError for sizes and values out of range, TypeError for wrong types.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        dtype: Any = "float32",
        seed: Any = None,
        recompute: int | None = None,
    ) -> None:
        config = Config(
            "lstm",
            input_size,
            hidden_size,
            num_layers,
            "tanh",
            bias,
            batch_first,
            dropout,
            bidirectional,
            dtype,
            recompute,
        )
        super().__init__(config, seed)


class GRU(Layer[Array]):
    """Gated recurrent unit: Cho et al. 2014, arXiv:1406.1078, with the reset gate after the product, as in PyTorch.

        r = sigmoid(W_ir x_t + b_ir + W_hr h_(t-1) + b_hr)
        z = sigmoid(W_iz x_t + b_iz + W_hz h_(t-1) + b_hz)
        n = tanh(W_in x_t + b_in + r * (W_hn h_(t-1) + b_hn))
        h_t = (1 - z) * n + z * h_(t-1)

    Arguments as for `RNN`, without nonlinearity. The first axis of every parameter is 3 * H, in the order r, z, n.

    Raises ValueError for sizes and values out of range, TypeError for wrong types.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        dtype: Any = "float32",
        seed: Any = None,
        recompute: int | None = None,
    ) -> None:
        config = Config(
            "gru",
            input_size,
            hidden_size,
            num_layers,
            "tanh",
            bias,
            batch_first,
            dropout,
            bidirectional,
            dtype,
            recompute,
        )
        super().__init__(config, seed)
