"""ONNX's operators RNN, GRU and LSTM, opsets 7 to 22, on rnnfast's layers. Needs onnx: pip install 'rnnfast[onnx]'.

    from rnnfast.onnx import Backend, from_node

    rep = Backend.prepare(model)                        # a model made of a single such node
    Y, Y_h = rep.run([X, ...])                          # the graph's outputs
    layer = from_node(node, model.graph.initializer)    # a layer to train, freeze or save

Source of the equations and of the defaults: the text of the operators, https://onnx.ai/onnx/operators. What is decided
here where that text is silent: docs/onnx.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.backend.base
import onnx.checker
import onnx.defs
import onnx.helper
import onnx.numpy_helper

from ._check import Array
from .activation import PARAMETERS, Activation
from .layers import GRU, LSTM, RNN, Layer
from .reversed import Reversed

__all__ = ["Backend", "BackendRep", "from_node"]

#: ONNX's blocks of rows in the order of ours: i o f c -> i f g o, z r h -> r z n.
BLOCKS = {"RNN": (0,), "GRU": (1, 0, 2), "LSTM": (0, 2, 3, 1)}
CLASSES: dict[str, type[Layer[Any]]] = {"RNN": RNN, "GRU": GRU, "LSTM": LSTM}
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

Arrays = Mapping[str, Array]


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
    arrays = _arrays(initializers)
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


def _arrays(initializers: Any) -> dict[str, Array]:
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
            raise ValueError(f"node must be an RNN, GRU or LSTM of ONNX, got {node.domain}{'.' * bool(node.domain)}{operator}")
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
            values = {"weight_ih": self._in_order(weights["W"][number]), "weight_hh": self._in_order(weights["R"][number])}
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
        return {name: array.astype(_computed_in(name, array), copy=False) for name, array in weights.items()}

    def _in_order(self, array: Array) -> Array:
        blocks = np.split(array, len(BLOCKS[self.operator]))
        return np.concatenate([blocks[number] for number in BLOCKS[self.operator]])


def _computed_in(name: str, array: Array) -> Any:
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


# --- running a node ---


class Operator:
    """A node with ONNX's shapes of inputs and outputs. Weights that never change are packed once."""

    def __init__(self, node: onnx.NodeProto, constants: Arrays) -> None:
        self._description = Description.read(node)
        if len(node.input) > len(INPUTS) or len(node.output) > 3:
            raise ValueError(f"{node.op_type} has too many inputs or outputs: {node.input}, {node.output}")
        self._names = {kind: name for kind, name in zip(INPUTS, node.input, strict=False) if name}
        self._outputs = list(node.output)
        self._constants = constants
        self._frozen: Any = None
        weights = [self._names.get(kind) for kind in ("W", "R", "B", "P")]
        if all(name is None or name in constants for name in weights):
            self._frozen = self._layer(constants).freeze()

    def run(self, values: Arrays) -> dict[str, Array]:
        """The node's outputs by name, from its inputs, constants apart, by name."""
        values = {**self._constants, **values}
        given = {kind: self._value(kind, values) for kind in self._names}
        x = given["X"]
        layer = self._frozen or self._layer(values)
        lengths = None if "sequence_lens" not in given else np.asarray(given["sequence_lens"])
        output, state = layer(_floating("X", x), self._initial(given, x), lengths=lengths)
        states = state if isinstance(state, tuple) else (state,)
        if lengths is not None:  # as other runtimes have it; a layer of rnnfast would give the initial state
            states = tuple(np.where((lengths == 0)[:, None], part.dtype.type(0), part) for part in states)
        results = (self._directions_apart(output), *(self._turned(part) for part in states))
        return {
            name: np.ascontiguousarray(result.astype(x.dtype, copy=False))
            for name, result in zip(self._outputs, results, strict=False)
            if name
        }

    def _value(self, kind: str, values: Arrays) -> Array:
        name = self._names[kind]
        if name not in values:
            raise ValueError(f"the input {kind} of the node, {name!r}, was not given")
        return values[name]

    def _layer(self, values: Arrays) -> Any:
        return self._description.layer({kind: self._value(kind, values) for kind in "WRBP" if kind in self._names})

    def _initial(self, given: Arrays, x: Array) -> Any:
        """A layer's hx."""
        parts = [
            self._turned(_floating(kind, given[kind])) if kind in given else None for kind in ("initial_h", "initial_c")
        ]
        return tuple(parts) if self._description.operator == "LSTM" else parts[0]

    def _turned(self, state: Array) -> Array:
        """[D, B, H] from a node's [B, D, H] with layout 1, and back."""
        return state.swapaxes(0, 1) if self._description.layout == 1 and state.ndim == 3 else state

    def _directions_apart(self, output: Array) -> Array:
        """[T, D, B, H] from [T, B, D * H]; with layout 1, [B, T, D, H] from [B, T, D * H]."""
        apart = output.reshape(*output.shape[:2], self._description.directions, -1)
        return apart if self._description.layout == 1 else apart.swapaxes(1, 2)


def _floating(name: str, array: Array) -> Array:
    return array.astype(_computed_in(name, array), copy=False)


class BackendRep(onnx.backend.base.BackendRep):
    """A model ready to run; made by `Backend.prepare`."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        constants = _arrays(graph.initializer)
        self._operator = Operator(graph.node[0], constants)
        self._inputs = [value.name for value in graph.input if value.name not in constants]
        self._outputs = [value.name for value in graph.output]

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Array, ...]:
        """The graph's outputs, in its order.

        inputs: arrays in the order of the graph's inputs without its initializers, or a mapping of names to arrays.

        Raises ValueError for missing, unknown and too many inputs and for wrong shapes; TypeError for wrong dtypes.
        """
        results = self._operator.run(_by_name(inputs, self._inputs))
        return tuple(results[name] for name in self._outputs)


class Backend(onnx.backend.base.Backend):
    """Runs models made of a single RNN, GRU or LSTM node, opsets 7 to 22, on the CPU.

    float32 and float64 are computed in their own precision; float16 and bfloat16 in float32, and rounded at the end.
    """

    @classmethod
    def is_compatible(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> bool:
        """Whether `prepare` would take the model."""
        return cls.supports_device(device) and _refusal(model) is None

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> BackendRep:
        """Checks the model and packs the weights that are initializers.

        Raises ValueError for other models and devices, onnx.checker.ValidationError for models that are not valid.
        """
        _require_cpu(device)
        onnx.checker.check_model(model)
        reason = _refusal(model)
        if reason is not None:
            raise ValueError(reason)
        return BackendRep(model)

    @classmethod
    def run_node(
        cls, node: onnx.NodeProto, inputs: Any, device: str = "CPU", outputs_info: Any = None, **kwargs: Any
    ) -> tuple[Array, ...]:
        """The outputs of one node, without those whose name is empty.

        inputs: arrays in the order of the node's inputs without those whose name is empty, or a mapping of names to
            arrays.
        """
        _require_cpu(device)
        return tuple(Operator(node, {}).run(_by_name(inputs, [name for name in node.input if name])).values())

    @classmethod
    def supports_device(cls, device: str) -> bool:
        return device.split(":")[0] == "CPU"


def _by_name(inputs: Any, names: list[str]) -> dict[str, Array]:
    if not isinstance(inputs, Mapping):
        if len(inputs) != len(names):
            raise ValueError(f"inputs must be {len(names)} arrays, {names}, got {len(inputs)}")
        inputs = dict(zip(names, inputs, strict=True))
    if set(inputs) != set(names):
        raise ValueError(f"inputs must be named {names}, got {list(inputs)}")
    return {name: np.asarray(value) for name, value in inputs.items()}


def _require_cpu(device: str) -> None:
    if not Backend.supports_device(device):
        raise ValueError(f"device must be CPU, got {device!r}")


def _refusal(model: onnx.ModelProto) -> str | None:
    """Why a model is none of ours."""
    nodes = model.graph.node
    if len(nodes) != 1 or nodes[0].op_type not in CLASSES or nodes[0].domain not in ("", "ai.onnx"):
        got = [node.op_type for node in nodes]
        return f"model must consist of a single RNN, GRU or LSTM node, got {got[:10]}"
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=1)
    version = onnx.defs.get_schema(nodes[0].op_type, opset).since_version if opset >= 1 else 0
    if version not in VERSIONS:
        return f"model must use version {', '.join(map(str, VERSIONS))} of {nodes[0].op_type}, got {version} (opset {opset})"
    inputs = {value.name for value in model.graph.input} | {tensor.name for tensor in model.graph.initializer}
    missing = [name for name in nodes[0].input if name and name not in inputs]
    missing += [value.name for value in model.graph.output if value.name not in nodes[0].output]
    return f"model must be one node between the graph's inputs and outputs, got {missing} apart from it" if missing else None
