"""What a layer is, apart from its weights: the arguments it was made with and the shapes that follow from them."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from . import _check, _core

GATES = {"rnn": 1, "lstm": 4, "gru": 3}
CLASS_NAMES = {"rnn": "RNN", "lstm": "LSTM", "gru": "GRU"}


@dataclass(frozen=True)
class Config:
    cell: str  # "rnn", "lstm", "gru"
    input_size: int
    hidden_size: int
    num_layers: int = 1
    nonlinearity: str = "tanh"
    bias: bool = True
    batch_first: bool = False
    dropout: float = 0.0
    bidirectional: bool = False
    dtype: str = "float32"
    recompute: int | None = None

    def checked(self) -> Config:
        """The same with Python's own types in every field; ValueError, TypeError for what no layer can have."""
        checked = replace(
            self,
            input_size=_check.size("input_size", self.input_size, 0),
            hidden_size=_check.size("hidden_size", self.hidden_size, 0),
            num_layers=_check.size("num_layers", self.num_layers, 1),
            nonlinearity=_check.choice("nonlinearity", self.nonlinearity, ("tanh", "relu")),
            bias=_check.flag("bias", self.bias),
            batch_first=_check.flag("batch_first", self.batch_first),
            dropout=_check.probability("dropout", self.dropout),
            bidirectional=_check.flag("bidirectional", self.bidirectional),
            dtype=_check.float_dtype(self.dtype),
            recompute=None if self.recompute is None else _check.size("recompute", self.recompute, 1),
        )
        _check.layer_size(checked.num_layers, checked.weight_elements())
        return checked

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def output_size(self) -> int:
        return self.directions * self.hidden_size

    @property
    def gate_rows(self) -> int:
        return GATES[self.cell] * self.hidden_size

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

    def state_shape(self, batch: int) -> tuple[int, int, int]:
        return (self.num_layers * self.directions, batch, self.hidden_size)

    def weight_elements(self) -> int:
        """At least as many as there are; not 0 where there is no unit, as NumPy refuses a large axis even then."""
        wide = max(self.input_size, self.output_size)
        return self.num_layers * self.directions * max(self.gate_rows, 1) * (wide + self.hidden_size + 2)

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by name, in PyTorch's order, which is also the order that the engine takes them in."""
        shapes: dict[str, tuple[int, ...]] = {}
        rows, hidden = self.gate_rows, self.hidden_size
        for layer in range(self.num_layers):
            width = self.output_size if layer else self.input_size
            for suffix in ("", "_reverse")[: self.directions]:
                shapes[f"weight_ih_l{layer}{suffix}"] = (rows, width)
                shapes[f"weight_hh_l{layer}{suffix}"] = (rows, hidden)
                if self.bias:
                    shapes[f"bias_ih_l{layer}{suffix}"] = (rows,)
                    shapes[f"bias_hh_l{layer}{suffix}"] = (rows,)
        return shapes

    def spec(self) -> _core.Spec:
        return _core.Spec(
            self.cell,
            self.nonlinearity,
            self.dtype,
            self.input_size,
            self.hidden_size,
            self.num_layers,
            self.directions,
        )

    def arguments(self) -> dict[str, Any]:
        """What the layer's constructor takes to make this configuration again."""
        arguments = asdict(self)
        del arguments["cell"]
        if self.cell != "rnn":
            del arguments["nonlinearity"]
        return arguments

    def warn_of_unused_dropout(self) -> None:
        if self.dropout and self.num_layers == 1:
            warnings.warn(
                "dropout is applied between layers, so that it has no effect with num_layers=1 "
                f"(dropout={self.dropout:g})",
                stacklevel=4,  # the caller of RNN(), LSTM(), GRU()
            )

    def __str__(self) -> str:
        """`LSTM(10, 20, num_layers=2)`: as PyTorch writes it, with what differs from the defaults."""
        parts = [str(self.input_size), str(self.hidden_size)]
        default = Config(self.cell, 0, 0)
        for name in (
            "num_layers",
            "nonlinearity",
            "bias",
            "batch_first",
            "dropout",
            "bidirectional",
            "dtype",
            "recompute",
        ):
            if getattr(self, name) != getattr(default, name):
                parts.append(f"{name}={getattr(self, name)!r}")
        return f"{self.class_name}({', '.join(parts)})"


class Configured:
    """The read-only attributes that a layer and its frozen form have in common."""

    __slots__ = ()
    _config: Config

    @property
    def input_size(self) -> int:
        """Features of x."""
        return self._config.input_size

    @property
    def hidden_size(self) -> int:
        """Units of each layer and direction."""
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
    def recompute(self) -> int | None:
        """In how many segments `backward` computes the gates again that `forward` did not keep; None: it keeps all."""
        return self._config.recompute

    @property
    def bidirectional(self) -> bool:
        """Whether a second set of weights reads the sequence backwards."""
        return self._config.bidirectional

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64: of the parameters, and of every array that goes in or comes out."""
        return self._config.numpy_dtype
