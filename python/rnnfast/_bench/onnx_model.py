"""A case as an ONNX model, for the libraries that run those.

Layer l has the states h_l and c_l, [D, B, H]. A stream's model takes them as h_l_before, c_l_before.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from .cases import CLASS_NAMES, Array, Case

# PyTorch's blocks in ONNX's order: i f g o -> i o f c, r z n -> z r h.
BLOCKS = {"rnn": (0,), "lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}


def state_names(case: Case) -> list[str]:
    kinds = "hc" if case.cell == "lstm" else "h"
    return [f"{kind}_{layer}" for kind in kinds for layer in range(case.num_layers)]


def state_shape(case: Case) -> tuple[int, int, int]:
    return (case.directions, case.batch, case.hidden_size)


def joined_states(case: Case, states: dict[str, Array]) -> list[Array]:
    """[h_n] or [h_n, c_n] of PyTorch."""
    names = state_names(case)
    kinds = [names[i : i + case.num_layers] for i in range(0, len(names), case.num_layers)]
    return [np.concatenate([states[name] for name in kind]) for kind in kinds]


def reordered(case: Case, array: Array) -> Array:
    blocks = np.split(array, len(BLOCKS[case.cell]))
    return np.concatenate([blocks[number] for number in BLOCKS[case.cell]])


def layer_weights(case: Case, shared: dict[str, Array], layer: int) -> dict[str, Array]:
    suffixes = [f"_l{layer}", f"_l{layer}_reverse"][: case.directions]

    def stacked(*names: str) -> Array:
        return np.stack([np.concatenate([reordered(case, shared[name + s]) for name in names]) for s in suffixes])

    return {
        f"W{layer}": stacked("weight_ih"),
        f"R{layer}": stacked("weight_hh"),
        f"B{layer}": stacked("bias_ih", "bias_hh"),
    }


def build(case: Case, shared: dict[str, Array]) -> bytes:
    onnx: Any = importlib.import_module("onnx")
    helper, to_array = onnx.helper, onnx.numpy_helper.from_array
    lstm, width = case.cell == "lstm", case.directions * case.hidden_size
    nodes, constants, given = [], {"one": np.array([1]), "joined": np.array([case.steps, case.batch, width])}, "x"
    for layer in range(case.num_layers):
        constants |= layer_weights(case, shared, layer)
        states = [f"{kind}_{layer}" for kind in ("hc" if lstm else "h")]
        before = [f"{name}_before" for name in states] if case.streams else []
        options: dict[str, Any] = {"linear_before_reset": 1} if case.cell == "gru" else {}
        options |= {"hidden_size": case.hidden_size}
        options |= {"direction": "bidirectional" if case.bidirectional else "forward"}
        inputs = [given, f"W{layer}", f"R{layer}", f"B{layer}", "", *before]
        nodes.append(helper.make_node(CLASS_NAMES[case.cell], inputs, [f"Y{layer}", *states], **options))
        given = "output" if layer == case.num_layers - 1 else f"output_{layer}"
        if case.bidirectional:  # [T, D, B, H] -> [T, B, D * H]
            nodes.append(helper.make_node("Transpose", [f"Y{layer}"], [f"turned_{layer}"], perm=[0, 2, 1, 3]))
            nodes.append(helper.make_node("Reshape", [f"turned_{layer}", "joined"], [given]))
        else:
            nodes.append(helper.make_node("Squeeze", [f"Y{layer}", "one"], [given]))

    def tensor(name: str, *shape: int) -> Any:
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

    names = state_names(case)
    graph = helper.make_graph(
        nodes,
        "case",
        [tensor("x", case.steps, case.batch, case.input_size)]
        + [tensor(f"{name}_before", *state_shape(case)) for name in names if case.streams],
        [tensor("output", case.steps, case.batch, width)] + [tensor(name, *state_shape(case)) for name in names],
        [to_array(np.ascontiguousarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())
