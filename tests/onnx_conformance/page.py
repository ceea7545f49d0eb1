"""Runs the cases on rnnfast, ONNX Runtime and OpenVINO and writes the table of docs/onnx.md:

    PYTHONPATH=tests python -m onnx_conformance.page            # the table, in its place
    PYTHONPATH=tests python -m onnx_conformance.page --print    # on standard output
    PYTHONPATH=tests python -m onnx_conformance.page --export FOLDER   # the cases as ONNX's own test data

Where a runtime's outputs are wrong, the outputs of the same case without one or some of its features are compared with
them, which tells what the runtime left out.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx

from rnnfast.onnx import Backend
from rnnfast.reference.activations import Function
from rnnfast.reference.arguments import Functions

from .cases import CASES, Case

FILE = Path(__file__).parents[2] / "docs" / "onnx.md"
START, END = "<!-- conformance: written by tests/onnx_conformance/page.py -->", "<!-- end of conformance -->"

Arrays = dict[str, Any]


# --- runtimes ---


def run_rnnfast(case: Case) -> Arrays:
    return dict(zip(case.output_names(), Backend.prepare(case.model()).run(case.feeds()), strict=True))


def run_onnxruntime(case: Case) -> Arrays:
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        case.model().SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return dict(zip(case.output_names(), session.run(case.output_names(), case.feeds()), strict=True))


def run_openvino(case: Case) -> Arrays:
    import openvino

    core = openvino.Core()
    # Without the hint some CPUs would compute float32 models in bfloat16.
    compiled = core.compile_model(
        core.read_model(case.model().SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )

    def tensor(array: Any) -> Any:
        if array.dtype.name != "bfloat16":
            return array
        return openvino.Tensor(array.view(np.uint16).copy(), list(array.shape), openvino.Type.bf16)

    feeds = case.feeds()
    names = [port.get_any_name() for port in compiled.inputs]
    request = compiled.create_infer_request()
    request.infer({name: tensor(feeds[name]) for name in names})
    results = {}
    for name, port in zip(case.output_names(), compiled.outputs, strict=True):
        array = request.get_tensor(port).data
        is_bfloat16 = port.get_element_type() == openvino.Type.bf16
        results[name] = array.view(np.uint16).view(case.onnx_inputs()["X"].dtype) if is_bfloat16 else array.copy()
    return results


RUNTIMES: dict[str, tuple[str, Callable[[Case], Arrays]]] = {
    "rnnfast": ("rnnfast", run_rnnfast),
    "ONNX Runtime": ("onnxruntime", run_onnxruntime),
    "OpenVINO": ("openvino", run_openvino),
}


# --- judging ---


def verdict(case: Case, run: Callable[[Case], Arrays]) -> str:
    """ "ok", or what happened instead."""
    try:
        got = run(case)
    except Exception as error:
        return f"refused: {shortened(str(error))}"
    expected = case.expected()
    for name, want in expected.items():
        if got[name].shape != want.shape:
            return f"wrong shape: {name} is {list(got[name].shape)} instead of {list(want.shape)}"
        if got[name].dtype.name != case.dtype:
            return f"wrong type: {name} is {got[name].dtype.name}"
    if agree(case, got, expected):
        return "ok"
    error = max(float(np.abs(got[name].astype(np.float64) - want).max()) for name, want in expected.items())
    for text, wrong, dtype in explanations(case):
        if agree(replace(case, dtype=dtype), got, wrong):
            return f"wrong by {error:.1g}: {text}"
    return f"wrong by {error:.1g}"


def agree(case: Case, got: Arrays, expected: Arrays) -> bool:
    return all(
        bool(np.all(np.abs(got[name].astype(np.float64) - want) <= case.allowed(want)))
        for name, want in expected.items()
    )


def shortened(message: str) -> str:
    """The sentence that says why, of a message with file names, numbers of lines and types in C++."""
    for sentence, said in SENTENCES:
        if found := re.search(sentence, message):
            return found.expand(said)
    message = re.sub(r"\S*/\S+", "", " ".join(message.split()))
    return message.replace("|", "/").strip()[:120]


SENTENCES = [
    (r"Could not find an implementation for \w+\(\d+\)", r"\g<0>"),
    (r"\(layout == 1\) are not supported", "layout 1 is not supported"),
    (r"does not support double yet", r"\g<0>"),
    (r"GetAttr\(.hidden_size.[^\n]* was false", "hidden_size must be given"),
    (r"unknown attribute '\w+'", r"\g<0>"),
    (r"Dimension `(\w+)` is not matched", r"dimension \1 is not matched"),
    (r"Un(known|supported) activation function(: \w+)?", r"\g<0>"),
]


def explanations(case: Case) -> Iterator[tuple[str, Arrays, str]]:
    """What a runtime could have computed instead: in words, the outputs, and the type whose precision they have."""
    if case.dtype == "float64":
        yield "computes in float32", case.expected(), "float32"
    features = changes(case)
    for count in (1, 2, 3):
        for some in combinations(features.items(), count):
            changed, patch = case, nullcontext()
            for _, change in some:
                changed = change(changed) if change is not without_clip_of_c else changed
            if any(change is without_clip_of_c for _, change in some):
                patch = clip_leaves_out_c()
            with patch:
                expected = changed.expected()
            text = " and ".join(name for name, _ in some)
            yield text, expected, case.dtype
            if case.dtype == "float64":
                yield f"{text}, and computes in float32", expected, "float32"


def changes(case: Case) -> dict[str, Callable[[Case], Case]]:
    """Of the features that a case has: what leaving it out looks like, and the case without it."""

    def without(*names: str) -> Callable[[Case], Case]:
        return lambda case: replace(
            case, attributes={name: value for name, value in case.attributes.items() if name not in names}
        )

    def unfed(*names: str) -> Callable[[Case], Case]:
        return lambda case: replace(case, inputs=" ".join(name for name in case.inputs.split() if name not in names))

    def first_for_both(case: Case) -> Case:
        names = case.attributes["activations"]
        return replace(case, attributes=case.attributes | {"activations": names[: len(names) // 2] * 2})

    there: dict[str, Callable[[Case], Case]] = {}
    if case.operator == "LSTM" and "clip" in case.attributes:
        there["does not clip c on its way to h"] = without_clip_of_c
    for name in ("clip", "input_forget", "activations", "linear_before_reset"):
        if name in case.attributes:
            both = ("activation_alpha", "activation_beta") if name == "activations" else ()
            there[f"ignores {name}"] = without(name, *both)
    for name in ("activation_alpha", "activation_beta"):
        if name in case.attributes:
            there[f"ignores {name}"] = without(name)
    if "activations" in case.attributes and case.activations() != zeros(case).activations():
        there["takes 0 for the alpha and beta that are not given"] = zeros
    if case.directions == 2 and "activations" in case.attributes:
        there["uses the first direction's activations for both"] = first_for_both
    for name in ("P", "sequence_lens", "initial_h", "initial_c", "B"):
        if case.has(name):
            there[f"ignores {name}"] = unfed(name)
    return there


def zeros(case: Case) -> Case:
    lists = {
        f"activation_{letter}": [*case.attributes.get(f"activation_{letter}", ()), *[0.0] * 6]
        for letter in ("alpha", "beta")
    }
    return replace(case, attributes=case.attributes | lists)


def without_clip_of_c(case: Case) -> Case:
    raise AssertionError("a mark; see clip_leaves_out_c")


def clip_leaves_out_c() -> AbstractContextManager[Any]:
    read = Functions.read

    def changed(*arguments: Any) -> Functions:
        functions = read(*arguments)
        forth, back = functions.output
        return replace(functions, output=(Function(forth.activation), Function(back.activation)))

    return mock.patch.object(Functions, "read", staticmethod(changed))


# --- the page ---


def described(case: Case) -> str:
    def shown(value: Any) -> str:
        return " ".join(map(str, value)) if isinstance(value, list) else str(value)

    parts = [f"{name}={shown(value)}" for name, value in case.attributes.items()]
    extra = [name for name in case.inputs.split() if name not in ("X", "W", "R", "B")]
    parts += [f"with {', '.join(extra)}"] * bool(extra) + ["without B"] * (not case.has("B"))
    if case.has("sequence_lens") and 0 in case.lengths:
        parts.append("a row of length 0")
    if case.outputs != "Y Y_h Y_c":
        parts.append(f"only {case.outputs.replace(' ', ', ')}")
    parts += [case.dtype] * (case.dtype != "float32") + ["weights are initializers"] * case.constant
    parts += ["no hidden_size"] * (not case.hidden_size)
    return "; ".join([*parts, f"opset {case.opset}"])


def table() -> str:
    rows, counts = [], {name: Counter[str]() for name in RUNTIMES}
    for case in CASES:
        cells = []
        for name, (_, run) in RUNTIMES.items():
            cell = verdict(case, run)
            counts[name][cell.split(" ")[0].rstrip(":")] += 1
            cells.append(cell)
        rows.append(f"| `{case.name}` | {described(case)} | {' | '.join(cells)} |")
    versions = {name: importlib.metadata.version(package) for name, (package, _) in RUNTIMES.items()}
    lines = [f"| {len(CASES)} cases | {' | '.join(f'{name} {version}' for name, version in versions.items())} |"]
    lines.append("|---" * (1 + len(RUNTIMES)) + "|")
    for kind, text in (("ok", "right"), ("wrong", "wrong"), ("refused", "refused")):
        lines.append(f"| {text} | {' | '.join(str(counts[name][kind]) for name in RUNTIMES)} |")
    lines += ["", f"| case | what it has | {' | '.join(RUNTIMES)} |", "|---" * (2 + len(RUNTIMES)) + "|", *rows]
    return "\n".join(lines)


def export(folder: Path) -> None:
    """In the form of ONNX's backend tests: model.onnx, and input_N.pb and output_N.pb beside it."""
    for case in CASES:
        data = folder / f"test_{case.name}" / "test_data_set_0"
        data.mkdir(parents=True, exist_ok=True)
        model = case.model()
        onnx.save(model, data.parent / "model.onnx")
        feeds, expected = case.feeds(), case.expected()
        dtype = case.onnx_inputs()["X"].dtype
        for kind, arrays in (("input", feeds), ("output", {n: want.astype(dtype) for n, want in expected.items()})):
            for number, (name, array) in enumerate(arrays.items()):
                tensor = onnx.numpy_helper.from_array(np.ascontiguousarray(array), name)
                (data / f"{kind}_{number}.pb").write_bytes(tensor.SerializeToString())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--print", action="store_true", help="write the table to standard output")
    parser.add_argument("--export", type=Path, metavar="FOLDER", help="write the cases as files instead")
    arguments = parser.parse_args()
    if arguments.export:
        export(arguments.export)
    elif arguments.print:
        print(table())
    else:
        text = FILE.read_text()
        before, after = text.split(START)[0], text.split(END)[1]
        FILE.write_text(f"{before}{START}\n\n{table()}\n\n{END}{after}")


if __name__ == "__main__":
    main()
