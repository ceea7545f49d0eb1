"""What a layer is, apart from its weights: the arguments it was made with and the shapes that follow from them."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from . import _check, _core, _options
from .activation import Activation

GATES = {"rnn": 1, "lstm": 4, "gru": 3}
CLASS_NAMES = {"rnn": "RNN", "lstm": "LSTM", "gru": "GRU"}
SUFFIXES = ("", "_reverse")
Activations = Activation | tuple[Activation, Activation]  # of both directions, or of each


@dataclass(frozen=True)
class Config:
    cell: str  # "rnn", "lstm", "gru"
    input_size: int
    hidden_size: int | tuple[int, ...]
    proj_size: int = 0
    num_layers: int = 1
    bias: bool = True
    batch_first: bool = False
    dropout: float = 0.0
    bidirectional: bool = False
    dtype: str = "float32"
    # of the candidate (an RNN's only one), of the gates, of c on its way to h (None: that of the candidate)
    activation: Activations = Activation("tanh")
    recurrent_activation: Activations = Activation("sigmoid")
    output_activation: Activations | None = None
    reset_after: bool = True
    peepholes: bool = False
    coupled_gates: bool = False
    forget_bias: float = 0.0
    clip: float | None = None
    layer_norm: bool = False
    zoneout: float | tuple[float, float] = 0.0
    recurrent_dropout: float = 0.0
    input_dropout: float = 0.0
    grad_clip: float | None = None
    recompute: int | None = None

    def checked(self) -> Config:
        """The same with Python's own types in every field; ValueError, TypeError for what no layer can have."""
        num_layers = _check.num_layers(self.num_layers)
        checked = dataclasses.replace(
            self,
            input_size=_check.size("input_size", self.input_size, 0),
            hidden_size=_check.hidden_size(self.hidden_size, num_layers),
            num_layers=num_layers,
            bias=_check.flag("bias", self.bias),
            batch_first=_check.flag("batch_first", self.batch_first),
            dropout=_check.probability("dropout", self.dropout),
            bidirectional=_check.flag("bidirectional", self.bidirectional),
            dtype=_check.float_dtype(self.dtype),
            **_options.checked(self),
        )
        _options.check_pairs(checked)
        _check.layer_size(checked.weight_elements())
        return checked

    # --- sizes ---

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @cached_property
    def hidden_sizes(self) -> tuple[int, ...]:
        """Of each layer."""
        size = self.hidden_size
        return size if isinstance(size, tuple) else (size,) * self.num_layers

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """Of h of each layer: its units, or the size they are projected to."""
        return (self.proj_size,) * self.num_layers if self.proj_size else self.hidden_sizes

    @property
    def output_size(self) -> int:
        return self.directions * self.widths[-1]

    @cached_property
    def input_sizes(self) -> tuple[int, ...]:
        """Of each layer."""
        return (self.input_size, *(self.directions * width for width in self.widths[:-1]))

    @property
    def gate_rows(self) -> int:
        """Of the widest layer."""
        return GATES[self.cell] * max(self.hidden_sizes)

    @property
    def widest(self) -> int:
        """The most values that one row has at one step, anywhere."""
        return max(*self.input_sizes, self.gate_rows, self.output_size)

    @property
    def class_name(self) -> str:
        return CLASS_NAMES[self.cell]

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        return np.dtype(self.dtype)

    @property
    def num_states(self) -> int:
        """Arrays in a state: an LSTM's is (h, c)."""
        return 2 if self.cell == "lstm" else 1

    @property
    def state_sizes(self) -> list[tuple[int, ...]]:
        """Of h, and of c, of each layer."""
        return [self.widths, self.hidden_sizes][: self.num_states]

    # --- parameters ---

    def weight_elements(self) -> int:
        """At least as many as there are; not 0 where there is no unit, as NumPy refuses a large axis even then."""
        rows = GATES[self.cell]
        return self.directions * sum(
            rows * max(hidden, 1) * (columns + width + 4) + hidden * (width + 5)
            for hidden, columns, width in zip(self.hidden_sizes, self.input_sizes, self.widths, strict=True)
        )

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by name, in PyTorch's order, which is also the order that the engine takes them in."""
        return {
            f"{kind}_l{layer}{suffix}": shape
            for layer in range(self.num_layers)
            for suffix in SUFFIXES[: self.directions]
            for kind, shape in self._layer_shapes(layer)
        }

    def _layer_shapes(self, layer: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        hidden, width, rows = self.hidden_sizes[layer], self.widths[layer], GATES[self.cell] * self.hidden_sizes[layer]
        yield "weight_ih", (rows, self.input_sizes[layer])
        yield "weight_hh", (rows, width)
        if self.bias:
            yield "bias_ih", (rows,)
            yield "bias_hh", (rows,)
        if self.proj_size:
            yield "weight_hr", (width, hidden)
        if self.peepholes:
            yield "weight_ch", (3, hidden)
        if self.layer_norm:
            yield "weight_ln_ih", (rows,)
            yield "weight_ln_hh", (rows,)
            if self.cell == "lstm":
                yield "weight_ln_c", (hidden,)
                yield "bias_ln_c", (hidden,)

    def initial_parameters(self, rng: np.random.Generator) -> dict[str, np.ndarray[Any, Any]]:
        """Uniform in +-1/sqrt(hidden_size), drawn in float64, so that layers of both dtypes start from the same
        numbers; layer normalisation starts with scales of 1 and shifts of 0."""
        arrays = {}
        for name, shape in self.parameter_shapes().items():
            hidden = self.hidden_sizes[layer_of(name)]
            bound = 1.0 / np.sqrt(max(hidden, 1))
            if "_ln_" in name:
                values = np.full(shape, 1.0 if name.startswith("weight") else 0.0)
            else:
                values = rng.uniform(-bound, bound, shape)
            if name.startswith("bias_ih") and self.forget_bias:
                values[hidden : 2 * hidden] += self.forget_bias
            arrays[name] = values.astype(self.dtype)
        return arrays

    # --- the engine's view ---

    def zoneout_rates(self) -> tuple[float, float]:
        """Of h and of c."""
        if isinstance(self.zoneout, tuple):
            return self.zoneout
        return self.zoneout, self.zoneout if self.cell == "lstm" else 0.0

    def direction_activations(self) -> list[tuple[Activation, ...]]:
        """Those that the cell has, by direction: of the gates, of the candidate, of c on its way to h."""
        output = self.activation if self.output_activation is None else self.output_activation
        roles = {
            "rnn": [self.activation],
            "gru": [self.recurrent_activation, self.activation],
            "lstm": [self.recurrent_activation, self.activation, output],
        }[self.cell]
        return [
            tuple(role[direction] if isinstance(role, tuple) else role for role in roles)
            for direction in range(self.directions)
        ]

    def spec(self) -> _core.Spec:
        by_direction = self.direction_activations()
        standard = Config(self.cell, 0, 0).direction_activations()
        zoneout_h, zoneout_c = self.zoneout_rates()
        return _core.Spec(
            self.cell,
            self.dtype,
            self.input_size,
            max(self.hidden_sizes),
            self.num_layers,
            self.directions,
            proj_size=self.proj_size,
            reset_after=self.reset_after,
            peepholes=self.peepholes,
            coupled_gates=self.coupled_gates,
            layer_norm=self.layer_norm,
            clip=self.clip or 0.0,
            zoneout_h=zoneout_h,
            zoneout_c=zoneout_c,
            activations=None
            if by_direction == standard * self.directions
            else [tuple((a.name, a.alpha or 0.0, a.beta or 0.0) for a in roles) for roles in by_direction],
            hidden_sizes=self.hidden_size if isinstance(self.hidden_size, tuple) else None,
        )

    # --- its arguments ---

    def arguments(self) -> dict[str, Any]:
        """What the layer's constructor takes to make this configuration again: sizes, and what is not the default."""
        arguments = {
            field.name: value
            for field in dataclasses.fields(self)
            if field.name != "cell" and (value := getattr(self, field.name)) != field.default
        }
        if self.cell == "rnn" and arguments.get("activation") == Activation("relu"):
            arguments["nonlinearity"] = arguments.pop("activation").name
        return arguments

    @classmethod
    def from_arguments(cls, cell: str, arguments: Mapping[str, Any]) -> Config:
        """What `arguments` came from, checked."""
        fields = dict(arguments)
        if "nonlinearity" in fields:
            fields["activation"] = Activation(fields.pop("nonlinearity"))
        return cls(cell, **fields).checked()

    def warn_of_unused_dropout(self) -> None:
        if self.dropout and self.num_layers == 1:
            warnings.warn(
                "dropout is applied between layers, so that it has no effect with num_layers=1 "
                f"(dropout={self.dropout:g})",
                stacklevel=4,  # the caller of RNN(), LSTM(), GRU()
            )

    def __str__(self) -> str:
        """`LSTM(10, 20, num_layers=2)`: as PyTorch writes it, with what differs from the defaults."""
        arguments = self.arguments()
        parts = [repr(arguments.pop(name)) for name in ("input_size", "hidden_size")]
        parts += [f"{name}={_options.shown(value)!r}" for name, value in arguments.items() if name != "dtype"]
        if "dtype" in arguments:
            parts.append(f"dtype={self.dtype!r}")
        return f"{self.class_name}({', '.join(parts)})"


def layer_of(name: str) -> int:
    """The number in a parameter's name."""
    return int(name.removesuffix("_reverse").rpartition("_l")[2])


class Configured:
    """The read-only attributes that a layer and its frozen form have in common. Options that a cell does not have are
    at their defaults."""

    __slots__ = ()
    _config: Config

    @property
    def input_size(self) -> int:
        """Features of x."""
        return self._config.input_size

    @property
    def hidden_size(self) -> int | tuple[int, ...]:
        """Units of each layer and direction, or a tuple of them, one number for each layer."""
        return self._config.hidden_size

    @property
    def num_layers(self) -> int:
        """Layers, each taking the output of the one below."""
        return self._config.num_layers

    @property
    def bias(self) -> bool:
        """Whether there are biases."""
        return self._config.bias

    @property
    def batch_first(self) -> bool:
        """Whether batched x and output are [B, T, features] instead of [T, B, features]."""
        return self._config.batch_first

    @property
    def dropout(self) -> float:
        """Probability that `forward` drops an element of the output of a layer below the last."""
        return self._config.dropout

    @property
    def bidirectional(self) -> bool:
        """Whether a second set of weights reads the sequence backwards."""
        return self._config.bidirectional

    @property
    def proj_size(self) -> int:
        """Of h, where an LSTM projects it; else 0."""
        return self._config.proj_size

    @property
    def activation(self) -> Activations:
        """Of the candidate (g, n; an RNN's h): of both directions, or a pair, one of each."""
        return self._config.activation

    @property
    def recurrent_activation(self) -> Activations:
        """Of the gates of an LSTM or GRU, likewise."""
        return self._config.recurrent_activation

    @property
    def output_activation(self) -> Activations | None:
        """Of an LSTM's c on its way to h, likewise; None: the same as `activation`."""
        return self._config.output_activation

    @property
    def reset_after(self) -> bool:
        """Whether a GRU's reset gate acts on U h, as in PyTorch, or on h."""
        return self._config.reset_after

    @property
    def peepholes(self) -> bool:
        """Whether an LSTM's gates see c."""
        return self._config.peepholes

    @property
    def coupled_gates(self) -> bool:
        """Whether an LSTM's forget gate is 1 - i."""
        return self._config.coupled_gates

    @property
    def forget_bias(self) -> float:
        """What was added to an LSTM's forget gate's bias when its parameters were drawn."""
        return self._config.forget_bias

    @property
    def clip(self) -> float | None:
        """Bound of the input of every activation; None: none."""
        return self._config.clip

    @property
    def layer_norm(self) -> bool:
        """Whether W x, U h, and an LSTM's c on its way to h are normalised."""
        return self._config.layer_norm

    @property
    def zoneout(self) -> float | tuple[float, float]:
        """Probability that a unit keeps its h, or (h, c), in `forward`; elsewhere its share."""
        return self._config.zoneout

    @property
    def recurrent_dropout(self) -> float:
        """Probability that `forward` drops an element of the h that enters U, for all steps."""
        return self._config.recurrent_dropout

    @property
    def input_dropout(self) -> float:
        """Probability that `forward` drops a feature of the input of a layer, for all steps."""
        return self._config.input_dropout

    @property
    def grad_clip(self) -> float | None:
        """Bound of d loss / d h_t at every step of `backward`; None: none."""
        return self._config.grad_clip

    @property
    def recompute(self) -> int | None:
        """In how many segments `backward` computes the gates again that `forward` did not keep; None: it keeps all."""
        return self._config.recompute

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64: of the parameters, and of every array that goes in or comes out."""
        return self._config.numpy_dtype
