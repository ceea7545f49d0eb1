"""The trainable layers: RNN, LSTM, GRU, with PyTorch's arguments, parameter names, shapes and results.

Equations of both passes: docs/math.md.
"""

from __future__ import annotations

from typing import Any, Generic, Literal, NamedTuple, NoReturn, TypeVar, overload

import numpy as np

from . import _check, _masks, _options
from ._check import Array, SupportsArray
from ._config import Config, Configured
from ._masks import Masks
from ._passes import ForwardCall, Model, Request, Training
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

    def masks(self) -> Masks:
        """All that this pass left to chance; `forward(x, masks=tape.masks())` does the same again."""
        return self._call.all_masks()

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
        self._parameters = Parameters(config.class_name, config.initial_parameters(self._rng))

    # --- running ---

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
        masked_output: str = "zero",
        reset: Any = None,
        reset_to: str = "zero",
        return_cell: bool = False,
        return_gates: bool = False,
    ) -> tuple[Any, ...]:
        """Inference: returns output and final state, keeps nothing, applies no dropout.

        x: [T, B, I]; [B, T, I] with batch_first; [T, I] unbatched; of the layer's dtype. Read-only, strided and
            misaligned arrays and CPU tensors are fine. A copy is made only where the last axis is not contiguous.
        hx: initial state, zeros if None: [layers * directions, B, H] ([layers * directions, H] unbatched), with
            proj_size in the place of H for h; for an LSTM the tuple (h_0, c_0) of two such arrays. Where hidden_size
            is a tuple, each is a tuple of one array [directions, B, H_l] for each layer.
        lengths: integers [B], 0 to T, in any order: how many steps of each row count. Output beyond them is 0, the
            state is that after the last valid step.
        mask: instead of lengths, bool [T, B], laid out like x: False where a row takes no part in a step. Its state
            stays as it was.
        masked_output: what the output of such a step is: "zero", or "carry": the output of the step before it in the
            direction of the scan, 0 where there is none.
        reset: bool [T, B], laid out like x: True where the state starts anew between steps t-1 and t; the second
            direction crosses the same boundary from the other side. One call equals the split runs.
        reset_to: how it starts: "zero", or "initial": from hx.
        return_cell: of an LSTM: c_t of the last layer, [T, B, directions * H] laid out like x, follows the state.
        return_gates: of an LSTM or GRU: the last layer's gates, [T, B, directions * G * H] in the order of the weights'
            rows, follow these. No gradient comes from either.

        Returns (output, state): output [T, B, directions * H] laid out like x, state in the form of hx.

        Raises ValueError for wrong shapes and sizes, TypeError for wrong dtypes and types.
        """
        request = Request(lengths, mask, masked_output, reset, reset_to, return_cell, return_gates)
        return ForwardCall(self._model(), x, hx, request, None).results

    @overload
    def forward(
        self, x: SupportsArray, hx: Any = None, *, lengths: Any = None, mask: Any = None, masked_output: str = "zero",
        reset: Any = None, reset_to: str = "zero", return_cell: Literal[False] = False,
        return_gates: Literal[False] = False, masks: Masks | None = None,
    ) -> tuple[Array, State, Tape]: ...  # fmt: skip

    @overload
    def forward(
        self, x: SupportsArray, hx: Any = None, *, lengths: Any = None, mask: Any = None, masked_output: str = "zero",
        reset: Any = None, reset_to: str = "zero", return_cell: bool = False, return_gates: bool = False,
        masks: Masks | None = None,
    ) -> tuple[Any, ...]: ...  # fmt: skip

    def forward(
        self,
        x: SupportsArray,
        hx: Any = None,
        *,
        lengths: Any = None,
        mask: Any = None,
        masked_output: str = "zero",
        reset: Any = None,
        reset_to: str = "zero",
        return_cell: bool = False,
        return_gates: bool = False,
        masks: Masks | None = None,
    ) -> tuple[Any, ...]:
        """Training: as `__call__`, with dropout and zoneout, and returns (output, state, tape); the tape stays last.

        Each call draws other masks; a layer made with the same seed draws the same ones in the same order.

        masks: what is not to be left to chance, such as `tape.masks()` of an earlier call.
        """
        masks = _check.masks(masks, Masks)
        seed = _check.mask_seed(masks.seed) if masks.seed is not None else self._next_seed()
        request = Request(lengths, mask, masked_output, reset, reset_to, return_cell, return_gates)
        call = ForwardCall(self._model(), x, hx, request, Training(seed, masks))
        return *call.results, Tape(self, call)

    def _model(self) -> Model:
        return Model(self._config, self._spec, list(self._parameters.values()))

    def _next_seed(self) -> int:
        return int(self._rng.integers(2**64, dtype=np.uint64)) if _masks.random(self._config) else 0

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
    """h_t = act(W_ih x_t + b_ih + W_hh h_(t-1) + b_hh): Elman, Finding structure in time, 1990.

    input_size, hidden_size: features of x, units. hidden_size may be a tuple of one number for each layer.
    num_layers: layers, each on the output of the one below.
    nonlinearity: "tanh" (also if None) or "relu".
    bias: whether there are b_ih and b_hh.
    batch_first: x and output are [B, T, features] instead of [T, B, features]; states are not affected.
    dropout: probability of dropping elements of the output of every layer but the last, in `forward`.
    bidirectional: a second set of weights reads the sequence backwards; its output follows the first one's.
    activation: instead of nonlinearity: an `Activation` or its name, or a pair of these, one for each direction.
    clip: bound of the input of every activation.
    zoneout: probability that a unit keeps its h in a step of `forward`; elsewhere h keeps this share of its value.
    recurrent_dropout: probability of dropping elements of the h that enters W_hh, the same ones at every step of a
        call of `forward`.
    input_dropout: probability of dropping features of the input of every layer, likewise.
    grad_clip: bound of d loss / d h_t at every step of `backward`.
    recompute: None, or in how many segments of its steps a sequence is trained: `forward` then keeps only where each
        segment starts, and `backward` computes its gates again, as one product since h is known. Memory falls to a
        segment's, time grows by a fifth to two fifths, results have the same bits. A segment has whole blocks of
        ceil(192 / B) steps, so that short sequences have fewer.
    dtype: "float32" or "float64".
    seed: of the initial parameters, uniform in +-1/sqrt(hidden_size), and of dropout: None, an integer, or a
        numpy.random.Generator.

    Parameters by name: weight_ih_l0 [H, I], weight_hh_l0 [H, H], bias_ih_l0, bias_hh_l0 [H], then _l0_reverse with
    bidirectional, then _l1, whose weight_ih is [H, directions * H].

    Equations of the options: docs/options. Raises ValueError for sizes and values out of range and for options that
    exclude each other, TypeError for wrong types.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int | tuple[int, ...],
        num_layers: int = 1,
        nonlinearity: str | None = None,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        activation: Any = None,
        clip: float | None = None,
        zoneout: float = 0.0,
        recurrent_dropout: float = 0.0,
        input_dropout: float = 0.0,
        grad_clip: float | None = None,
        recompute: int | None = None,
        dtype: Any = "float32",
        seed: Any = None,
    ) -> None:
        config = Config(
            "rnn",
            input_size,
            hidden_size,
            num_layers=num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            dtype=dtype,
            activation=_options.rnn_activation(nonlinearity, activation),
            clip=clip,
            zoneout=zoneout,
            recurrent_dropout=recurrent_dropout,
            input_dropout=input_dropout,
            grad_clip=grad_clip,
            recompute=recompute,
        )
        super().__init__(config, seed)

    @property
    def nonlinearity(self) -> str:
        """The name of the activation; of a pair, of the first."""
        activation = self._config.activation
        return (activation[0] if isinstance(activation, tuple) else activation).name


class LSTM(Layer[tuple[Array, Array]]):
    """Long short-term memory with forget gate: Hochreiter and Schmidhuber 1997; Gers, Schmidhuber, Cummins 2000.

        i, f, g, o = sigmoid, sigmoid, tanh, sigmoid of W_ih x_t + b_ih + W_hh h_(t-1) + b_hh, in this order
        c_t = f * c_(t-1) + i * g
        h_t = o * tanh(c_t)

    The state is the tuple (h, c). Arguments as for `RNN`, without nonlinearity, and

    proj_size: h_t = W_hr (o * tanh(c_t)), of this size, less than hidden_size; parameters weight_hr_l0 [proj_size, H].
    activation: of g, and of c on its way to h; recurrent_activation: of i, f, o; output_activation: of c, where it is
        another one than g's.
    peepholes: c_(t-1) is seen by i and f, c_t by o: parameters weight_ch_l0 [3, H] of i, f, o.
    coupled_gates: f = 1 - i. The rows of f stay, and have gradients of 0.
    forget_bias: added to the rows of f of bias_ih when they are drawn.
    layer_norm: W_ih x, W_hh h and c on its way to h are normalised: parameters weight_ln_ih_l0 and weight_ln_hh_l0
        [4 * H], weight_ln_c_l0 and bias_ln_c_l0 [H].
    zoneout: one probability, or two for h and c.

    The first axis of the weights is 4 * H, in the order i, f, g, o.

    Raises ValueError for sizes and values out of range and for options that exclude each other, TypeError for wrong
    types.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int | tuple[int, ...],
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        *,
        activation: Any = "tanh",
        recurrent_activation: Any = "sigmoid",
        output_activation: Any = None,
        peepholes: bool = False,
        coupled_gates: bool = False,
        forget_bias: float = 0.0,
        clip: float | None = None,
        layer_norm: bool = False,
        zoneout: float | tuple[float, float] = 0.0,
        recurrent_dropout: float = 0.0,
        input_dropout: float = 0.0,
        grad_clip: float | None = None,
        recompute: int | None = None,
        dtype: Any = "float32",
        seed: Any = None,
    ) -> None:
        config = Config(
            "lstm",
            input_size,
            hidden_size,
            proj_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            dtype,
            activation=activation,
            recurrent_activation=recurrent_activation,
            output_activation=output_activation,
            peepholes=peepholes,
            coupled_gates=coupled_gates,
            forget_bias=forget_bias,
            clip=clip,
            layer_norm=layer_norm,
            zoneout=zoneout,
            recurrent_dropout=recurrent_dropout,
            input_dropout=input_dropout,
            grad_clip=grad_clip,
            recompute=recompute,
        )
        super().__init__(config, seed)


class GRU(Layer[Array]):
    """Gated recurrent unit: Cho et al. 2014, arXiv:1406.1078, with the reset gate after the product, as in PyTorch.

        r = sigmoid(W_ir x_t + b_ir + W_hr h_(t-1) + b_hr)
        z = sigmoid(W_iz x_t + b_iz + W_hz h_(t-1) + b_hz)
        n = tanh(W_in x_t + b_in + r * (W_hn h_(t-1) + b_hn))
        h_t = (1 - z) * n + z * h_(t-1)

    Arguments as for `RNN`, without nonlinearity, and

    reset_after: False: n = tanh(W_in x_t + b_in + W_hn (r * h_(t-1)) + b_hn), as in the paper and in ONNX.
    activation: of n; recurrent_activation: of r and z.
    layer_norm: W_ih x and W_hh h are normalised: parameters weight_ln_ih_l0, weight_ln_hh_l0 [3 * H].

    The first axis of the weights is 3 * H, in the order r, z, n.

    Raises ValueError for sizes and values out of range and for options that exclude each other, TypeError for wrong
    types.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int | tuple[int, ...],
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        reset_after: bool = True,
        activation: Any = "tanh",
        recurrent_activation: Any = "sigmoid",
        clip: float | None = None,
        layer_norm: bool = False,
        zoneout: float = 0.0,
        recurrent_dropout: float = 0.0,
        input_dropout: float = 0.0,
        grad_clip: float | None = None,
        recompute: int | None = None,
        dtype: Any = "float32",
        seed: Any = None,
    ) -> None:
        config = Config(
            "gru",
            input_size,
            hidden_size,
            0,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            dtype,
            activation=activation,
            recurrent_activation=recurrent_activation,
            reset_after=reset_after,
            clip=clip,
            layer_norm=layer_norm,
            zoneout=zoneout,
            recurrent_dropout=recurrent_dropout,
            input_dropout=input_dropout,
            grad_clip=grad_clip,
            recompute=recompute,
        )
        super().__init__(config, seed)
