"""Models of a single node, with ONNX's shapes of inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx.backend.base
import onnx.checker
import onnx.defs

from .._check import Array
from .node import CLASSES, INPUTS, VERSIONS, Arrays, Description, arrays_by_name, computed_in


class Operator:
    """A node with ONNX's shapes of inputs and outputs. Weights that never change are packed once."""

    def __init__(self, node: onnx.NodeProto, constants: Arrays) -> None:
        self._description = Description.read(node)
        if len(node.input) > len(INPUTS) or len(node.output) > 3:
            raise ValueError(f"{node.op_type} has too many inputs or outputs: {node.input}, {node.output}")
        self._names = {kind: name for kind, name in zip(INPUTS, node.input, strict=False) if name}
        missing = [kind for kind in ("X", "W", "R") if kind not in self._names]
        if missing:
            raise ValueError(f"{node.op_type} must have the inputs {missing}, got {list(node.input)}")
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
        output, state = layer(_floating("X", x), self._initial(given), lengths=lengths)
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

    def _initial(self, given: Arrays) -> Any:
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
        directions = self._description.directions
        apart = output.reshape(*output.shape[:2], directions, output.shape[2] // directions)
        return apart if self._description.layout == 1 else apart.swapaxes(1, 2)


def _floating(name: str, array: Array) -> Array:
    return array.astype(computed_in(name, array), copy=False)


class BackendRep(onnx.backend.base.BackendRep):
    """A model ready to run; made by `Backend.prepare`."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        constants = arrays_by_name(graph.initializer)
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
    version = onnx.defs.get_schema(nodes[0].op_type, opset).since_version
    if version not in VERSIONS:
        known = ", ".join(map(str, VERSIONS))
        return f"model must use version {known} of {nodes[0].op_type}, got {version} (opset {opset})"
    inputs = {value.name for value in model.graph.input} | {tensor.name for tensor in model.graph.initializer}
    missing = [name for name in nodes[0].input if name and name not in inputs]
    missing += [value.name for value in model.graph.output if value.name not in nodes[0].output]
    return (
        f"model must be one node between the graph's inputs and outputs, got {missing} apart from it"
        if missing
        else None
    )
