"""Models of one RNN, GRU or LSTM node, their inputs, and the outputs that the operators' text (opset 22) asks for.

`CASES` has every attribute and every input of opsets 7 to 22. Weights are drawn by rnnfast's own names and in its
order, and the expected outputs are computed from these, in float64, by `rnnfast.reference`; only then are they laid out
as ONNX has them. Nothing here uses `rnnfast.onnx`.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper

from rnnfast import Activation, reference

GATES = {"RNN": "h", "GRU": "rzn", "LSTM": "ifgo"}  # in our order
ONNX_GATES = {"RNN": "h", "GRU": "zrn", "LSTM": "iofg"}  # in the order i o f c, z r h of ONNX
TYPES = {
    "float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE, "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
}  # fmt: skip
EPS = {"float32": 2.0**-23, "float64": 2.0**-52, "float16": 2.0**-10, "bfloat16": 2.0**-7}
#: The names of ONNX's activations, ours, and the alpha and beta of the operators of these names.
ACTIVATIONS: dict[str, tuple[str, dict[str, float]]] = {
    "Tanh": ("tanh", {}),
    "Sigmoid": ("sigmoid", {}),
    "Relu": ("relu", {}),
    "Affine": ("affine", {"alpha": 1.0, "beta": 0.0}),
    "LeakyRelu": ("leaky_relu", {"alpha": 0.01}),
    "ThresholdedRelu": ("thresholded_relu", {"alpha": 1.0}),
    "ScaledTanh": ("scaled_tanh", {"alpha": 1.0, "beta": 1.0}),
    "HardSigmoid": ("hard_sigmoid", {"alpha": 0.2, "beta": 0.5}),
    "Elu": ("elu", {"alpha": 1.0}),
    "Softsign": ("softsign", {}),
    "Softplus": ("softplus", {}),
}
USUAL = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}


class Sizes(NamedTuple):
    T: int = 5
    B: int = 3
    I: int = 4
    H: int = 6


@dataclass(frozen=True)
class Case:
    """One model with its data. `attributes` are the node's own, without hidden_size."""

    name: str
    operator: str
    attributes: dict[str, Any] = field(default_factory=dict)
    inputs: str = "X W R B"  # and of sequence_lens initial_h initial_c P
    outputs: str = "Y Y_h Y_c"  # an LSTM's; others have no Y_c
    dtype: str = "float32"
    opset: int = 14
    sizes: Sizes = Sizes()
    lengths: tuple[int, ...] = (5, 2, 3)
    scale: float = 1.0  # of the inputs; large ones reach the clip
    constant: bool = False  # whether the weights are initializers
    hidden_size: bool = True  # whether the attribute is there

    @property
    def directions(self) -> int:
        return 2 if self.attributes.get("direction") == "bidirectional" else 1

    @property
    def layout(self) -> int:
        return int(self.attributes.get("layout", 0))

    def output_names(self) -> list[str]:
        return [name for name in self.outputs.split() if self.operator == "LSTM" or name != "Y_c"]

    # --- data, in our names and order ---

    @cached_property
    def drawn(self) -> dict[str, Any]:
        """In float64, rounded to the case's dtype."""
        rng = np.random.default_rng(zlib.crc32(self.name.encode()))
        T, B, I, H = self.sizes
        D, rows = self.directions, len(GATES[self.operator]) * H

        def draw(*shape: int, scale: float = 0.6) -> Any:
            return self.rounded(rng.uniform(-scale, scale, shape))

        return {
            "x": draw(T, B, I, scale=1.5 * self.scale),
            "weight_ih": draw(D, rows, I), "weight_hh": draw(D, rows, H),
            "bias_ih": draw(D, rows), "bias_hh": draw(D, rows), "weight_ch": draw(D, 3, H),
            "initial_h": draw(D, B, H), "initial_c": draw(D, B, H, scale=1.0),
        }  # fmt: skip

    def rounded(self, array: Any) -> Any:
        return array.astype(helper.tensor_dtype_to_np_dtype(TYPES[self.dtype])).astype(np.float64)

    def has(self, name: str) -> bool:
        return name in self.inputs.split()

    # --- as ONNX has them ---

    def onnx_inputs(self) -> dict[str, Any]:
        data, order = self.drawn, [GATES[self.operator].index(gate) for gate in ONNX_GATES[self.operator]]

        def blocks(array: Any) -> Any:
            parts = np.split(array, len(order), axis=1)
            return np.concatenate([parts[k] for k in order], axis=1)

        turn = (lambda array: array.swapaxes(0, 1)) if self.layout else (lambda array: array)
        arrays = {
            "X": turn(data["x"]),
            "W": blocks(data["weight_ih"]),
            "R": blocks(data["weight_hh"]),
            "B": np.concatenate([blocks(data["bias_ih"]), blocks(data["bias_hh"])], axis=1),
            "initial_h": turn(data["initial_h"]),
            "initial_c": turn(data["initial_c"]),
            "P": data["weight_ch"][:, [0, 2, 1]].reshape(self.directions, -1),  # i o f
        }
        dtype = helper.tensor_dtype_to_np_dtype(TYPES[self.dtype])
        given = {name: np.ascontiguousarray(array).astype(dtype) for name, array in arrays.items() if self.has(name)}
        if self.has("sequence_lens"):
            given["sequence_lens"] = np.array(self.lengths, dtype=np.int32)
        return given

    def node(self) -> onnx.NodeProto:
        places = ["X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"]
        inputs = [name if self.has(name) else "" for name in places]
        outputs = [name if name in self.output_names() else "" for name in ("Y", "Y_h", "Y_c")]
        for names in (inputs, outputs):
            while names[-1] == "":
                names.pop()
        attributes = dict(self.attributes)
        if self.hidden_size:
            attributes["hidden_size"] = self.sizes.H
        return helper.make_node(self.operator, inputs, outputs, **attributes)

    def model(self) -> onnx.ModelProto:
        given, T, B, D, H = self.onnx_inputs(), self.sizes.T, self.sizes.B, self.directions, self.sizes.H
        kinds = dict.fromkeys(given, TYPES[self.dtype])
        kinds["sequence_lens"] = TensorProto.INT32
        state = (B, D, H) if self.layout else (D, B, H)
        shapes = {"Y": (B, T, D, H) if self.layout else (T, D, B, H), "Y_h": state, "Y_c": state}
        constants = [name for name in given if self.constant and name in ("W", "R", "B", "P")]
        graph = helper.make_graph(
            [self.node()],
            self.name,
            [
                helper.make_tensor_value_info(name, kinds[name], array.shape)
                for name, array in given.items()
                if name not in constants
            ],
            [helper.make_tensor_value_info(name, TYPES[self.dtype], shapes[name]) for name in self.output_names()],
            [onnx.numpy_helper.from_array(given[name], name) for name in constants],
        )
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10 if self.opset >= 22 else 8
        )

    def feeds(self) -> dict[str, Any]:
        """What a runtime is given besides the model."""
        constants = {tensor.name for tensor in self.model().graph.initializer}
        return {name: array for name, array in self.onnx_inputs().items() if name not in constants}

    # --- what the operators' text asks for ---

    def activations(self) -> list[list[Activation]]:
        """Of each direction. alpha and beta are consumed in order by the functions that take them."""
        names = self.attributes.get("activations", USUAL[self.operator] * self.directions)
        given = {letter: list(self.attributes.get(f"activation_{letter}", ())) for letter in ("alpha", "beta")}
        functions = []
        for name in names:
            ours, defaults = ACTIVATIONS[name]
            values = {
                letter: float(np.float32(given[letter].pop(0))) if given[letter] else value
                for letter, value in defaults.items()
            }
            functions.append(Activation(ours, **values))
        count = len(USUAL[self.operator])
        return [functions[k : k + count] for k in range(0, len(functions), count)]

    def expected(self) -> dict[str, Any]:
        """The outputs in float64, by name."""
        results = [self._direction(k) for k in range(self.directions)]
        output = np.stack([y for y, _, _ in results], axis=2)  # [T, B, D, H]
        states = [np.stack(parts) for parts in list(zip(*results, strict=True))[1:]]
        turned = {
            "Y": output.transpose(1, 0, 2, 3) if self.layout else output.transpose(0, 2, 1, 3),
            **{
                name: part.swapaxes(0, 1) if self.layout else part
                for name, part in zip(("Y_h", "Y_c"), states, strict=True)
            },
        }
        return {name: turned[name] for name in self.output_names()}

    def _direction(self, k: int) -> tuple[Any, Any, Any]:
        """Y [T, B, H], Y_h, Y_c [B, H] of one direction, run forwards over rows that are turned one by one."""
        data, (T, B, _, H) = self.drawn, self.sizes
        backwards = k == 1 or self.attributes.get("direction") == "reverse"
        lengths = self.lengths if self.has("sequence_lens") else (T,) * B
        kinds = ["weight_ih", "weight_hh"]
        kinds += ["bias_ih", "bias_hh"] * self.has("B") + ["weight_ch"] * self.has("P")
        parameters = {kind + "_l0": data[kind][k] for kind in kinds}
        y, h, c = np.zeros((T, B, H)), np.zeros((B, H)), np.zeros((B, H))
        for row, length in enumerate(lengths):
            if length == 0:
                continue  # all zeros
            x = data["x"][:length, row : row + 1]
            states = [
                data[name][k : k + 1, row : row + 1] if self.has(name) else np.zeros((1, 1, H))
                for name in ("initial_h", "initial_c")
            ]
            output, state, _ = reference.forward(
                self.operator.lower(), parameters, x[::-1] if backwards else x,
                tuple(states) if self.operator == "LSTM" else states[0], **self._options(k),
            )  # fmt: skip
            y[:length, row] = (output[::-1] if backwards else output)[:, 0]
            h[row], c[row] = (state[0][0, 0], state[1][0, 0]) if self.operator == "LSTM" else (state[0, 0], 0.0)
        return y, h, c

    def _options(self, k: int) -> dict[str, Any]:
        clip = self.attributes.get("clip")
        options: dict[str, Any] = {"clip": None if clip is None else float(np.float32(clip))}
        functions = self.activations()[k]
        if self.operator == "RNN":
            return options | {"activation": functions[0]}
        options |= {"recurrent_activation": functions[0], "activation": functions[1]}
        if self.operator == "GRU":
            return options | {"reset_after": bool(self.attributes.get("linear_before_reset", 0))}
        return options | {
            "output_activation": functions[2], "coupled_gates": bool(self.attributes.get("input_forget", 0)),
        }  # fmt: skip

    def allowed(self, want: Any) -> float:
        """The largest error: 4 eps sqrt(I + H), relative to 1 + max|want|, since some activations are not bounded."""
        largest = float(np.abs(want).max(initial=0.0))
        return 4 * EPS[self.dtype] * float(np.sqrt(self.sizes.I + self.sizes.H)) * (1.0 + largest)


# --- the list ---

WITH_STATES = {
    "RNN": "X W R B initial_h", "GRU": "X W R B initial_h", "LSTM": "X W R B initial_h initial_c",
}  # fmt: skip
BOTH = {"direction": "bidirectional"}
BACK = {"direction": "reverse"}


def of_every_operator(operator: str) -> Iterator[Case]:
    def case(name: str, attributes: dict[str, Any] | None = None, **more: Any) -> Case:
        return Case(f"{operator.lower()}_{name}", operator, attributes or {}, **more)

    lens, states = "X W R B sequence_lens", WITH_STATES[operator]
    yield case("forward", opset=7)
    yield case("forward_named", {"direction": "forward"})
    yield case("reverse", BACK, opset=7)
    yield case("bidirectional", BOTH, opset=7)
    yield case("opset_22", BOTH, opset=22)
    yield case("no_bias", inputs="X W R")
    yield case("no_bias_bidirectional", BOTH, inputs="X W R")
    yield case("sequence_lens", inputs=lens, opset=7)
    yield case("sequence_lens_reverse", BACK, inputs=lens)
    yield case("sequence_lens_bidirectional", BOTH, inputs=lens)
    yield case("sequence_lens_zero", inputs=lens, lengths=(0, 5, 2))
    yield case("initial_states", inputs=states, opset=7)
    yield case("initial_states_reverse", BACK, inputs=states)
    yield case(
        "initial_states_sequence_lens_zero_bidirectional", BOTH, inputs=states + " sequence_lens", lengths=(3, 0, 5)
    )
    yield case("clip", {"clip": 0.4}, scale=2.0)
    yield case("clip_reverse_sequence_lens", {"clip": 0.4, **BACK}, inputs=lens, scale=2.0)
    yield case("clip_bidirectional_initial_states", {"clip": 0.25, **BOTH}, inputs=states, scale=3.0)
    yield case("layout_1", {"layout": 1})
    yield case("layout_1_reverse", {"layout": 1, **BACK}, inputs=states)
    yield case("layout_1_bidirectional_all_inputs", {"layout": 1, **BOTH}, inputs=states + " sequence_lens")
    yield case("only_Y", outputs="Y")
    yield case("only_Y_h", BOTH, outputs="Y_h")
    yield case("float64", BOTH, dtype="float64", inputs=states)
    yield case("float16", BOTH, dtype="float16", inputs=states)
    yield case("bfloat16", dtype="bfloat16", opset=22, inputs=states)
    yield case("weights_constant", BOTH, constant=True, inputs=lens)
    yield case("hidden_size_absent", hidden_size=False, constant=True)
    yield case("one_step_one_row", inputs=states, sizes=Sizes(1, 1, 1, 1))
    yield case("wide", BOTH, inputs=states + " sequence_lens", sizes=Sizes(9, 4, 17, 33), lengths=(9, 1, 4, 6))
    yield case("float64_wide", BACK, dtype="float64", sizes=Sizes(9, 4, 17, 33))


def of_rnn() -> Iterator[Case]:
    given = {"alpha": 0.75, "beta": 0.125}
    for name, (ours, defaults) in ACTIVATIONS.items():
        values = {f"activation_{letter}": [given[letter]] for letter in defaults}
        yield Case(f"rnn_{ours}", "RNN", {"activations": [name], **values})
        if defaults:
            yield Case(f"rnn_{ours}_defaults", "RNN", {"activations": [name]})
    yield Case("rnn_activations_by_direction", "RNN", {"activations": ["Relu", "Tanh"], **BOTH})
    yield Case(
        "rnn_activations_by_direction_alpha", "RNN",
        {"activations": ["Softsign", "LeakyRelu"], "activation_alpha": [0.3], **BOTH},
    )  # fmt: skip
    yield Case("rnn_relu_clip", "RNN", {"activations": ["Relu"], "clip": 0.5}, scale=2.0)


def of_gru() -> Iterator[Case]:
    after = {"linear_before_reset": 1}
    yield Case("gru_linear_before_reset", "GRU", after, opset=7)
    yield Case("gru_linear_before_reset_no_bias", "GRU", after, inputs="X W R")
    yield Case(
        "gru_linear_before_reset_bidirectional", "GRU", {**after, **BOTH}, inputs="X W R B sequence_lens initial_h"
    )
    yield Case("gru_linear_before_reset_clip", "GRU", {**after, "clip": 0.4}, scale=2.0)
    yield Case("gru_linear_before_reset_float64", "GRU", {**after, **BACK}, dtype="float64", inputs="X W R B initial_h")
    yield Case("gru_hard_sigmoid_defaults", "GRU", {"activations": ["HardSigmoid", "Tanh"]})
    yield Case(
        "gru_activations_alpha_beta", "GRU",
        {"activations": ["HardSigmoid", "ScaledTanh"], "activation_alpha": [0.25, 0.75],
         "activation_beta": [0.5, 1.25]},
    )  # fmt: skip
    yield Case("gru_relu", "GRU", {"activations": ["Sigmoid", "Relu"], **after})
    yield Case(
        "gru_activations_by_direction", "GRU",
        {"activations": ["Sigmoid", "Softsign", "HardSigmoid", "Elu"], "activation_alpha": [0.25, 0.5],
         "activation_beta": [0.375], **BOTH},
    )  # fmt: skip


def of_lstm() -> Iterator[Case]:
    with_p = "X W R B P"
    everything = "X W R B sequence_lens initial_h initial_c P"
    coupled = {"input_forget": 1}
    yield Case("lstm_peepholes", "LSTM", inputs=with_p, opset=7)
    yield Case("lstm_peepholes_reverse", "LSTM", BACK, inputs=with_p)
    yield Case("lstm_peepholes_bidirectional_all_inputs", "LSTM", BOTH, inputs=everything)
    yield Case("lstm_peepholes_no_bias", "LSTM", inputs="X W R initial_c P")
    yield Case("lstm_peepholes_clip", "LSTM", {"clip": 0.4}, inputs=with_p, scale=2.0)
    yield Case("lstm_input_forget", "LSTM", coupled, opset=7)
    yield Case("lstm_input_forget_bidirectional", "LSTM", {**coupled, **BOTH}, inputs="X W R B sequence_lens")
    yield Case("lstm_input_forget_peepholes", "LSTM", coupled, inputs=everything)
    yield Case("lstm_initial_h_only", "LSTM", inputs="X W R B initial_h")
    yield Case("lstm_initial_c_only", "LSTM", inputs="X W R B initial_c")
    yield Case("lstm_only_Y_c", "LSTM", outputs="Y_c")
    yield Case("lstm_Y_and_Y_c", "LSTM", BOTH, outputs="Y Y_c")
    yield Case("lstm_hard_sigmoid_defaults", "LSTM", {"activations": ["HardSigmoid", "Tanh", "Tanh"]})
    yield Case(
        "lstm_activations_alpha_beta", "LSTM",
        {"activations": ["HardSigmoid", "ScaledTanh", "Affine"], "activation_alpha": [0.25, 0.75, 0.5],
         "activation_beta": [0.5, 1.25, 0.0625]},
    )  # fmt: skip
    yield Case("lstm_output_activation", "LSTM", {"activations": ["Sigmoid", "Softsign", "Relu"]})
    yield Case(
        "lstm_activations_by_direction", "LSTM",
        {"activations": ["Sigmoid", "Tanh", "Softsign", "HardSigmoid", "Elu", "Tanh"], "activation_alpha": [0.25, 0.5],
         "activation_beta": [0.375], **BOTH},
    )  # fmt: skip
    yield Case(
        "lstm_everything", "LSTM",
        {"activations": ["HardSigmoid", "Softsign", "Tanh", "Sigmoid", "Tanh", "ScaledTanh"],
         "activation_alpha": [0.25, 0.75], "activation_beta": [0.5, 1.25], "clip": 0.8, "layout": 1, **coupled, **BOTH},
        inputs=everything, dtype="float64", opset=22, scale=2.0,
    )  # fmt: skip


CASES = [
    *(case for operator in GATES for case in of_every_operator(operator)), *of_rnn(), *of_gru(), *of_lstm(),
]  # fmt: skip
