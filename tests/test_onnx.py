"""rnnfast.onnx: ONNX's own node tests, our conformance cases, and what is refused."""

from __future__ import annotations

import importlib
import re
import unittest
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

import rnnfast as rf

onnx = pytest.importorskip("onnx")

from onnx.backend.test.runner import Runner  # noqa: E402

from onnx_conformance.cases import CASES, Sizes  # noqa: E402
from onnx_conformance.page import FILE, START  # noqa: E402
from oracle import assert_close  # noqa: E402
from rnnfast.onnx import Backend, from_node  # noqa: E402

helper = onnx.helper
BY_NAME = {case.name: case for case in CASES}


def node_tests() -> list[Any]:
    """Those of the three operators. The runner would make those of all operators, which takes some seconds."""
    for module in ("rnn", "gru", "lstm"):
        importlib.import_module(f"onnx.backend.test.case.node.{module}")
    from onnx.backend.test.case.node import _NodeTestCases

    return [case for case in _NodeTestCases if case.model.graph.node[0].op_type in ("RNN", "GRU", "LSTM")]


class Passed(unittest.TestResult):
    """Counts what passed; whether testsRun counts what was skipped differs between versions of Python."""

    count = 0

    def addSuccess(self, test: unittest.TestCase) -> None:
        self.count += 1


def test_the_node_tests_of_the_onnx_package_pass(isa: str) -> None:
    with mock.patch("onnx.backend.test.runner.load_model_tests", lambda kind: node_tests() if kind == "node" else []):
        suite = Runner(Backend, __name__).test_suite
    result = Passed()
    suite.run(result)
    assert result.failures == result.errors == []
    assert all("CUDA" in reason for _, reason in result.skipped)
    assert result.count == 18


# --- our conformance cases ---


@pytest.mark.parametrize("name", BY_NAME)
def test_conformance(name: str) -> None:
    case = BY_NAME[name]
    model = case.model()
    assert Backend.is_compatible(model)
    results = Backend.prepare(model).run(case.feeds())
    expected = case.expected()
    assert len(results) == len(expected)
    for got, (output, want) in zip(results, expected.items(), strict=True):
        assert got.dtype.name == case.dtype
        assert_close(f"{name}: {output}", got, want, case.allowed(want))


def test_the_cases_are_valid_models_with_names_of_their_own() -> None:
    assert len(BY_NAME) == len(CASES) >= 96
    for case in CASES:
        onnx.checker.check_model(case.model(), full_check=True)


def test_the_cases_have_every_attribute_input_and_output() -> None:
    nodes = [case.node() for case in CASES]
    for operator in ("RNN", "GRU", "LSTM"):
        schema = onnx.defs.get_schema(operator, 22)
        own = [node for node in nodes if node.op_type == operator]
        assert {attribute.name for node in own for attribute in node.attribute} >= set(schema.attributes) - {
            # these two by the activations of RNN, whose functions are all of ONNX's
            *(("activation_alpha", "activation_beta") if operator != "RNN" else ()),
        }
        assert {name for node in own for name in node.input if name} == {entry.name for entry in schema.inputs}
        assert {name for node in own for name in node.output if name} == {entry.name for entry in schema.outputs}
    assert {case.opset for case in CASES} == {7, 14, 22}


def test_the_page_has_every_case() -> None:
    page = Path(FILE).read_text()
    rows = [line.split("|")[1].strip(" `") for line in page[page.index(START) :].splitlines() if line.startswith("| `")]
    assert rows == list(BY_NAME)


@pytest.mark.parametrize("operator", ["RNN", "GRU", "LSTM"])
def test_a_node_runs_alone_with_arrays_in_order(operator: str) -> None:
    case = BY_NAME[f"{operator.lower()}_initial_states_sequence_lens_zero_bidirectional"]
    node, given = case.node(), case.onnx_inputs()
    by_name = Backend.run_node(node, given)
    in_order = Backend.run_node(node, [given[name] for name in node.input if name])
    prepared = Backend.run_model(case.model(), case.feeds())
    for first, second, third in zip(by_name, in_order, prepared, strict=True):
        np.testing.assert_array_equal(first, second)
        np.testing.assert_array_equal(first, third)


def test_outputs_are_in_the_order_of_the_graph() -> None:
    case = BY_NAME["lstm_forward"]
    model = case.model()
    straight = Backend.prepare(model).run(case.feeds())
    outputs = list(model.graph.output)
    del model.graph.output[:]
    model.graph.output.extend(reversed(outputs))
    turned = Backend.prepare(model).run(case.feeds())
    for first, second in zip(straight, reversed(turned), strict=True):
        np.testing.assert_array_equal(first, second)


def test_the_example_of_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = replace(BY_NAME["lstm_forward"], constant=True)
    onnx.save(case.model(), tmp_path / "lstm.onnx")
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"^```python\n(.*?)^```", Path(FILE).read_text(), re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {"X": case.feeds()["X"]}
    exec(compile(block, "docs/onnx.md", "exec"), names)
    np.testing.assert_array_equal(names["Y"][:, 0], names["layer"](names["X"])[0])


@pytest.mark.parametrize(("T", "B"), [(0, 3), (4, 0)])
def test_no_steps_and_no_rows_work(T: int, B: int) -> None:
    for name in ("gru_initial_states", "lstm_layout_1_bidirectional_all_inputs"):
        case = replace(BY_NAME[name], sizes=Sizes(T, B), lengths=(0,) * B)
        results = Backend.prepare(case.model()).run(case.feeds())
        shapes = [entry.type.tensor_type.shape.dim for entry in case.model().graph.output]
        assert [list(got.shape) for got in results] == [[dim.dim_value for dim in shape] for shape in shapes]
        if T == 0 and not case.has("sequence_lens"):
            np.testing.assert_array_equal(results[1], case.feeds()["initial_h"])


# --- from_node ---


@pytest.mark.parametrize(
    "name",
    [
        "rnn_reverse",
        "gru_linear_before_reset_clip",
        "lstm_peepholes",
        "lstm_input_forget_bidirectional",
        "gru_layout_1",
    ],
)
def test_from_node_gives_the_layer_that_the_backend_runs(name: str) -> None:
    case = replace(BY_NAME[name], constant=True)
    model = case.model()
    layer = from_node(model.graph.node[0], model.graph.initializer)
    given = case.feeds()
    output, _ = layer(given["X"], lengths=given.get("sequence_lens"))
    Y = Backend.prepare(model).run(given)[0]
    apart = output.reshape(*output.shape[:2], case.directions, -1)
    np.testing.assert_array_equal(Y, apart if case.layout else apart.swapaxes(1, 2))
    assert isinstance(layer, rf.Reversed) == (name == "rnn_reverse")


def test_from_node_takes_a_mapping_of_arrays_and_gives_a_layer_that_trains() -> None:
    case = BY_NAME["lstm_float64"]
    layer = from_node(case.node(), case.onnx_inputs())
    assert isinstance(layer, rf.LSTM)
    assert layer.dtype == np.float64
    x = case.onnx_inputs()["X"]
    output, _, tape = layer.forward(x)
    grads = layer.backward(tape, np.ones_like(output))
    assert grads.parameters.keys() == layer.parameters.keys()


def test_values_for_all_functions_mean_the_same_as_values_for_those_that_take_one() -> None:
    def layer(**attributes: Any) -> Any:
        names = ["HardSigmoid", "Tanh", "LeakyRelu"]
        node = helper.make_node("LSTM", ["X", "W", "R"], ["Y"], activations=names, hidden_size=6, **attributes)
        return from_node(node, BY_NAME["lstm_no_bias"].onnx_inputs())

    consumed = layer(activation_alpha=[0.25, 0.125], activation_beta=[0.375])
    listed = layer(activation_alpha=[0.25, 9.0, 0.125], activation_beta=[0.375, 9.0, 9.0])
    for name in ("activation", "recurrent_activation", "output_activation"):
        assert getattr(consumed, name) == getattr(listed, name)
    assert consumed.recurrent_activation == rf.Activation("hard_sigmoid", alpha=0.25, beta=0.375)
    assert layer(activation_alpha=[0.25]).output_activation == rf.Activation("leaky_relu", alpha=0.01)
    with pytest.raises(ValueError, match="activation_alpha must have at most one value for each of 2"):
        layer(activation_alpha=[0.1, 0.2, 0.3, 0.4])


# --- what is refused ---


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"direction": "sideways"}, "direction must be one of forward, reverse, bidirectional, got 'sideways'"),
        ({"layout": 2}, "layout must be 0 or 1, got 2"),
        ({"clip": -1.0}, "clip must be positive, got -1"),
        ({"activations": ["Tanh"]}, "activations of this LSTM must be 3 names"),
        ({"activations": ["Sigmoid", "Tanh", "Gelu"]}, "got 'Gelu'"),
        ({"output_sequence": 1}, r"LSTM has no attributes \['output_sequence'\]"),
        ({"hidden_size": 7}, r"W of this LSTM must have shape \[1, 28, 4\] .*got \[1, 24, 4\]"),
        ({"direction": "bidirectional"}, r"W of this LSTM must have shape \[2, 24, 4\]"),
    ],
)
def test_wrong_attributes_are_refused(attributes: dict[str, Any], message: str) -> None:
    case = BY_NAME["lstm_forward"]
    node = helper.make_node("LSTM", ["X", "W", "R", "B"], ["Y"], **attributes)
    with pytest.raises(ValueError, match=message):
        from_node(node, case.onnx_inputs())


def test_wrong_nodes_weights_and_models_are_refused() -> None:
    case = BY_NAME["lstm_forward"]
    given = case.onnx_inputs()
    with pytest.raises(ValueError, match="must be an RNN, GRU or LSTM of ONNX, got Relu"):
        from_node(helper.make_node("Relu", ["X"], ["Y"]), {})
    with pytest.raises(ValueError, match="initializers must have the R of the node, 'R'"):
        from_node(case.node(), {"W": given["W"]})
    with pytest.raises(TypeError, match="W must be of float16, bfloat16, float32 or float64, got int64"):
        from_node(case.node(), given | {"W": given["W"].astype(np.int64)})
    with pytest.raises(ValueError, match="device must be CPU, got 'CUDA'"):
        Backend.prepare(case.model(), "CUDA")
    two = case.model()
    two.graph.node.append(helper.make_node("Relu", ["Y"], ["Z"]))
    assert not Backend.is_compatible(two)
    with pytest.raises(ValueError, match="single RNN, GRU or LSTM node"):
        Backend.prepare(two)
    with pytest.raises(ValueError, match=r"LSTM must have the inputs \['R'\], got \['X', 'W'\]"):
        Backend.run_node(helper.make_node("LSTM", ["X", "W"], ["Y"]), [given["X"], given["W"]])
    rep = Backend.prepare(case.model())
    with pytest.raises(ValueError, match="inputs must be 4 arrays"):
        rep.run([given["X"]])
    with pytest.raises(ValueError, match="inputs must be named"):
        rep.run({"X": given["X"]})


def test_an_operator_older_than_opset_7_is_refused() -> None:
    case = BY_NAME["gru_forward"]
    old = replace(case, opset=6, hidden_size=True).model()
    assert not Backend.is_compatible(old)


def test_lengths_are_checked_as_everywhere() -> None:
    case = replace(BY_NAME["rnn_sequence_lens"], lengths=(6, 1, 1), sizes=Sizes())
    with pytest.raises(ValueError, match="lengths must be between 0 and the number of steps 5, got 6 in row 0"):
        Backend.prepare(case.model()).run(case.feeds())
