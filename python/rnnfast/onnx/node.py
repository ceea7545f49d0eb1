"""A node RNN, GRU or LSTM as a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper

from .._check import Array
from ..activation import PARAMETERS, Activation
from ..layers import GRU, LSTM, RNN, Layer
from ..reversed import Reversed

#: ONNX's blocks of rows in the order of ours: i o f c -> i f g o, z r h -> r z n.
BLOCKS = {"RNN": (0,), "GRU": (1, 0, 2), "LSTM": (0, 2, 3, 1)}
CLASSES: dict[str, Callable[..., Layer[Any]]] = {"RNN": RNN, "GRU": GRU, "LSTM": LSTM}
INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
ACTIVATIONS = {"RNN": ("Tanh",), "GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}
DIRECTIONS = ("forward", "reverse", "bidirectional")
ATTRIBUTES = {
    "activation_alpha", "activation_beta", "activations", "clip", "direction", "hidden_size", "layout",
    "input_forget", "linear_before_reset",
}  # fmt: skip
#: Versions of the operators that this module knows; each is the opset that introduced it.
VERSIONS = (7, 14, 22)

NAMES = {name.replace("_", ""): name for name in PARAMETERS}  # ONNX's, in lower case
HARD_SIGMOID = {"alpha": 0.2, "beta": 0.5}  # the operator HardSigmoid's defaults

Arrays: TypeAlias = Mapping[str, Array]


def from_node(node: onnx.NodeProto, initializers: Any) -> Layer[Any] | Reversed:
    """The layer that a node RNN, GRU or LSTM describes, with its weights.

    node: with any of the attributes of opsets 7 to 22.
    initializers: the node's W, R, and B and P where it has them, by the names of its inputs: a mapping of names to
        arrays or TensorProtos, or the TensorProtos of `graph.initializer`.

    Returns an RNN, GRU or LSTM of one layer, in float64 for float64 weights, else in float32 (float16 and bfloat16 are
    converted); with `layout=1` it is batch_first. A node with direction "reverse" gives a `Reversed` of it. Its output
    is [T, B, directions * H], its states are [directions, B, H].

    Raises ValueError for another operator, for attributes and shapes that ONNX does not allow, and for missing weights;
    TypeError for other dtypes.
    """
    description = Description.read(node)
    arrays = arrays_by_name(initializers)
    names = [name or None for name in [*node.input, *[""] * len(INPUTS)][: len(INPUTS)]]
    given = dict(zip(INPUTS, names, strict=True))
    weights = {}
    for kind in ("W", "R", "B", "P"):
        name = given[kind]
        if name in arrays:
            weights[kind] = arrays[name]
        elif name is not None or kind in "WR":
            raise ValueError(f"initializers must have the {kind} of the node, {name!r}; got {sorted(arrays)}")
    return description.layer(weights)


def arrays_by_name(initializers: Any) -> dict[str, Array]:
    items: Iterable[tuple[str, Any]]
    if isinstance(initializers, Mapping):
        items = initializers.items()
    else:
        items = ((tensor.name, tensor) for tensor in initializers)
    return {
        name: onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)
        for name, value in items
    }


# --- what a node says ---


@dataclass(frozen=True)
class Description:
    """The attributes of a node."""

    operator: str
    direction: str
    activations: tuple[tuple[Activation, ...], ...]  # of each direction: f, or f g, or f g h of the operator's text
    hidden_size: int | None
    clip: float | None
    layout: int
    input_forget: bool
    linear_before_reset: bool

    @staticmethod
    def read(node: onnx.NodeProto) -> Description:
        operator = node.op_type
        if operator not in CLASSES or node.domain not in ("", "ai.onnx"):
            raise ValueError(
                f"node must be an RNN, GRU or LSTM of ONNX, got {node.domain}{'.' * bool(node.domain)}{operator}"
            )
        given = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        unknown = set(given) - ATTRIBUTES
        if unknown:
            raise ValueError(f"{operator} has no attributes {sorted(unknown)} in opsets 7 to 22")
        direction = bytes(given.get("direction", b"forward")).decode()
        if direction not in DIRECTIONS:
            raise ValueError(f"direction must be one of {', '.join(DIRECTIONS)}, got {direction!r}")
        layout = given.get("layout", 0)
        if layout not in (0, 1):
            raise ValueError(f"layout must be 0 or 1, got {layout}")
        clip = given.get("clip")
        if clip is not None and not clip > 0:
            raise ValueError(f"clip must be positive, got {clip}")
        return Description(
            operator,
            direction,
            _activations(operator, 2 if direction == "bidirectional" else 1, given),
            given.get("hidden_size"),
            clip,
            layout,
            bool(given.get("input_forget", 0)),
            bool(given.get("linear_before_reset", 0)),
        )

    @property
    def directions(self) -> int:
        return len(self.activations)

    def layer(self, weights: Arrays) -> Layer[Any] | Reversed:
        """`weights`: W, R, and B and P where the node has them."""
        weights = self._checked(weights)
        hidden_size, input_size = weights["R"].shape[2], weights["W"].shape[2]
        layer = CLASSES[self.operator](
            input_size, hidden_size, bias="B" in weights, bidirectional=self.direction == "bidirectional",
            batch_first=self.layout == 1, dtype=weights["W"].dtype, clip=self.clip, seed=0,
            **self._options("P" in weights),
        )  # fmt: skip
        for number, suffix in enumerate(("_l0", "_l0_reverse")[: self.directions]):
            values = {
                "weight_ih": self._in_order(weights["W"][number]),
                "weight_hh": self._in_order(weights["R"][number]),
            }
            if "B" in weights:
                values["bias_ih"], values["bias_hh"] = map(self._in_order, np.split(weights["B"][number], 2))
            if "P" in weights:  # i o f
                values["weight_ch"] = weights["P"][number].reshape(3, hidden_size)[[0, 2, 1]]
            layer.parameters.update({kind + suffix: value for kind, value in values.items()})
        return Reversed(layer) if self.direction == "reverse" else layer

    def _options(self, peepholes: bool) -> dict[str, Any]:
        columns = list(zip(*self.activations, strict=True))  # f, g, h: each of all directions
        functions = [column if self.directions == 2 else column[0] for column in columns]
        if self.operator == "RNN":
            return {"activation": functions[0]}
        options = {"recurrent_activation": functions[0], "activation": functions[1]}
        if self.operator == "GRU":
            return options | {"reset_after": self.linear_before_reset}
        return options | {
            "output_activation": functions[2], "peepholes": peepholes, "coupled_gates": self.input_forget,
        }  # fmt: skip

    def _checked(self, weights: Arrays) -> dict[str, Array]:
        """In the dtype that they are computed in, and of the right shapes."""
        gates, W, R = len(BLOCKS[self.operator]), weights["W"], weights["R"]
        if W.ndim != 3 or R.ndim != 3:
            raise ValueError(
                "W must be [directions, gates * hidden, input] and R [directions, gates * hidden, hidden], "
                f"got {list(W.shape)} and {list(R.shape)}"
            )
        H = R.shape[2] if self.hidden_size is None else self.hidden_size
        shapes = {"W": (gates * H, W.shape[2]), "R": (gates * H, H), "B": (2 * gates * H,), "P": (3 * H,)}
        if "P" in weights and self.operator != "LSTM":
            raise ValueError(f"{self.operator} has no input P")
        for name, array in weights.items():
            expected = (self.directions, *shapes[name])
            if array.shape != expected:
                raise ValueError(
                    f"{name} of this {self.operator} must have shape {list(expected)} "
                    f"(direction {self.direction}, hidden_size {H}), got {list(array.shape)}"
                )
        return {name: array.astype(computed_in(name, array), copy=False) for name, array in weights.items()}

    def _in_order(self, array: Array) -> Array:
        blocks = np.split(array, len(BLOCKS[self.operator]))
        return np.concatenate([blocks[number] for number in BLOCKS[self.operator]])


def computed_in(name: str, array: Array) -> Any:
    if array.dtype.name not in ("float64", "float32", "float16", "bfloat16"):
        raise TypeError(f"{name} must be of float16, bfloat16, float32 or float64, got {array.dtype}")
    return np.float64 if array.dtype == np.float64 else np.float32


def _activations(operator: str, directions: int, given: Mapping[str, Any]) -> tuple[tuple[Activation, ...], ...]:
    """By direction. alpha and beta are consumed in order by the functions that take one; lists with one value for each
    function, whether it takes one or not, are also understood."""
    per_direction = len(ACTIVATIONS[operator])
    names = [bytes(name).decode() for name in given.get("activations", ())]
    if not names:
        names = [*ACTIVATIONS[operator] * directions]
    if len(names) != per_direction * directions:
        raise ValueError(f"activations of this {operator} must be {per_direction * directions} names, got {names}")
    for name in names:
        if name.lower() not in NAMES:
            raise ValueError(f"activations must be names of ONNX's {', '.join(NAMES)} (in any case), got {name!r}")
    known = [NAMES[name.lower()] for name in names]
    values = {letter: _consumed(letter, known, given.get(f"activation_{letter}", ())) for letter in ("alpha", "beta")}
    functions = [
        Activation(name, **{letter: values[letter][k] for letter in PARAMETERS[name]}) for k, name in enumerate(known)
    ]
    return tuple(tuple(functions[k : k + per_direction]) for k in range(0, len(functions), per_direction))


def _consumed(letter: str, names: Sequence[str], given: Sequence[float]) -> list[float | None]:
    """The alpha or the beta of each of `names`; None for those that take none."""
    takers = [k for k, name in enumerate(names) if letter in PARAMETERS[name]]
    if len(given) > len(takers):
        if len(given) != len(names):
            raise ValueError(
                f"activation_{letter} must have at most one value for each of {len(takers)} activations that take one, "
                f"or one for each of {len(names)}, got {len(given)}"
            )
        given = [given[k] for k in takers]
    values: list[float | None] = [None] * len(names)
    for number, k in enumerate(takers):
        defaults = HARD_SIGMOID if names[k] == "hard_sigmoid" else PARAMETERS[names[k]]
        values[k] = float(given[number]) if number < len(given) else float(defaults[letter])
    return values
