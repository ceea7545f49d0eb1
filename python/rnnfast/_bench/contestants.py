"""The libraries: how each builds a case from the shared weights, and how it runs one call.

Each gets the best way that its users have: prepared sessions, buffers bound once, no conversion of arrays per call.
"""

from __future__ import annotations

import importlib
import os
import platform
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np

from .cases import CLASS_NAMES, Array, Case, parameters


@dataclass(frozen=True)
class Prepared:
    run: Callable[[int], None]  # makes so many calls
    results: Callable[[], dict[str, Array]]  # of one call; of a stream, of its first steps, from a state of zeros


class Contestant(ABC):
    """Made once in a process of its own; raises ImportError where the library is not there."""

    modes: tuple[str, ...] = ("forward", "step", "cold")

    @abstractmethod
    def __init__(self, threads: int) -> None: ...

    @property
    @abstractmethod
    def version(self) -> str: ...

    @abstractmethod
    def prepare(self, case: Case, shared: dict[str, Array]) -> Prepared: ...


def named_results(output: Any, states: Sequence[Any], gradients: dict[str, Any] | None = None) -> dict[str, Array]:
    results = {"output": output, **dict(zip(("h_n", "c_n"), states, strict=False))}
    results |= {f"grad of {name}": gradient for name, gradient in (gradients or {}).items()}
    return {name: np.array(array) for name, array in results.items()}


class RnnFast(Contestant):
    modes: tuple[str, ...] = ("forward", "train", "step", "cold")

    def __init__(self, threads: int) -> None:
        self.package: Any = importlib.import_module("rnnfast")
        self.package.set_num_threads(threads)

    @property
    def version(self) -> str:
        config = self.package.show_config(mode="dicts")
        return f"{config['version']} ({config['isa']}, {config['threading']}, {config['compiler']})"

    def layer(self, case: Case, shared: dict[str, Array]) -> Any:
        layer = getattr(self.package, CLASS_NAMES[case.cell])(
            case.input_size, case.hidden_size, case.num_layers, bidirectional=case.bidirectional
        )
        layer.load_state_dict(parameters(shared))
        return layer

    def prepare(self, case: Case, shared: dict[str, Array]) -> Prepared:
        layer = self.layer(case, shared)
        if case.mode == "train":
            return self.training(layer, shared)
        if case.streams:
            return self.stream(layer.freeze().stream(case.batch), case, shared["x"])
        return self.inference(layer.freeze(), shared["x"])

    def inference(self, call: Callable[[Array], Any], x: Array) -> Prepared:
        def run(n: int) -> None:
            for _ in repeat(None, n):
                call(x)

        def results() -> dict[str, Array]:
            output, state = call(x)
            return named_results(output, state if isinstance(state, tuple) else (state,))

        return Prepared(run, results)

    def training(self, layer: Any, shared: dict[str, Array]) -> Prepared:
        x, grad_output = shared["x"], shared["grad_output"]

        def run(n: int) -> None:
            for _ in repeat(None, n):
                _, _, tape = layer.forward(x)
                layer.backward(tape, grad_output)

        def results() -> dict[str, Array]:
            output, state, tape = layer.forward(x)
            gradients = layer.backward(tape, grad_output)
            states = state if isinstance(state, tuple) else (state,)
            return named_results(output, states, {"x": gradients.input, **gradients.parameters})

        return Prepared(run, results)

    def stream(self, stream: Any, case: Case, x: Array) -> Prepared:
        x_t, out = x[0].copy(), np.empty((case.batch, case.hidden_size), np.float32)

        def run(n: int) -> None:
            step = stream.step
            for _ in repeat(None, n):
                step(x_t, out)

        def results() -> dict[str, Array]:
            stream.reset()
            output = np.stack([stream.step(x_t) for x_t in x])
            state = stream.state
            return named_results(output, state if isinstance(state, tuple) else (state,))

        return Prepared(run, results)


class RnnFastLayer(RnnFast):
    """A layer that is not frozen packs its weights at each call: what that costs."""

    modes: tuple[str, ...] = ("forward",)

    def prepare(self, case: Case, shared: dict[str, Array]) -> Prepared:
        return self.inference(self.layer(case, shared), shared["x"])


class Torch(Contestant):
    modes: tuple[str, ...] = ("forward", "train", "step", "cold")

    def __init__(self, threads: int) -> None:
        self.package: Any = importlib.import_module("torch")
        self.package.set_num_threads(threads)

    @property
    def version(self) -> str:
        return str(self.package.__version__)

    def module(self, case: Case, shared: dict[str, Array]) -> Any:
        module = getattr(self.package.nn, CLASS_NAMES[case.cell])(
            case.input_size, case.hidden_size, case.num_layers, bidirectional=case.bidirectional
        )
        module.load_state_dict({name: self.package.tensor(array) for name, array in parameters(shared).items()})
        return module

    def prepare(self, case: Case, shared: dict[str, Array]) -> Prepared:
        module = self.module(case, shared)
        x = self.package.tensor(shared["x"])
        if case.mode == "train":
            return self.training(module, x, self.package.tensor(shared["grad_output"]))
        module.eval()
        if case.streams:
            return self.stream(module, x)
        return self.inference(module, x, self.package.inference_mode)

    def inference(self, module: Any, x: Any, context: Callable[[], Any]) -> Prepared:
        def run(n: int) -> None:
            with context():
                for _ in repeat(None, n):
                    module(x)

        def results() -> dict[str, Array]:
            with context():
                output, state = module(x)
            states = [s.detach() for s in (state if isinstance(state, tuple) else (state,))]
            return named_results(output.detach(), states)

        return Prepared(run, results)

    def training(self, module: Any, x: Any, grad_output: Any) -> Prepared:
        x.requires_grad_()
        named = dict(module.named_parameters())
        inputs, grad = [x, *named.values()], self.package.autograd.grad

        def run(n: int) -> None:
            for _ in repeat(None, n):
                output, _ = module(x)
                grad(output, inputs, grad_output)

        def results() -> dict[str, Array]:
            output, state = module(x)
            gradients = grad(output, inputs, grad_output)
            states = [s.detach() for s in (state if isinstance(state, tuple) else (state,))]
            return named_results(output.detach(), states, dict(zip(["x", *named], gradients, strict=True)))

        return Prepared(run, results)

    def stream(self, module: Any, x: Any) -> Prepared:
        first = x[:1].clone()
        with self.package.inference_mode():
            _, held = module(first)

        def run(n: int) -> None:
            nonlocal held
            state = held
            with self.package.inference_mode():
                for _ in repeat(None, n):
                    _, state = module(first, state)
            held = state

        def results() -> dict[str, Array]:
            state, outputs = None, []
            with self.package.inference_mode():
                for x_t in x:
                    output, state = module(x_t[None], state)
                    outputs.append(output[0])
            return named_results(self.package.stack(outputs), state if isinstance(state, tuple) else (state,))

        return Prepared(run, results)


class RnnFastTorch(Torch):
    """rnnfast's modules for PyTorch, as they stand between PyTorch's own operations."""

    def module(self, case: Case, shared: dict[str, Array]) -> Any:
        return importlib.import_module("rnnfast.torch").accelerate(super().module(case, shared))


class TorchGrad(Torch):
    """Evaluation without `inference_mode`, as programs do that forget it: autograd records the call."""

    modes: tuple[str, ...] = ("forward",)

    def prepare(self, case: Case, shared: dict[str, Array]) -> Prepared:
        module = self.module(case, shared).eval()
        return self.inference(module, self.package.tensor(shared["x"]), self.package.enable_grad)


class TorchCompile(Torch):
    modes: tuple[str, ...] = ("forward",)

    def prepare(self, case: Case, shared: dict[str, Array]) -> Prepared:
        compiled = self.package.compile(self.module(case, shared).eval())
        return self.inference(compiled, self.package.tensor(shared["x"]), self.package.inference_mode)


class OnnxRuntime(Contestant):
    def __init__(self, threads: int) -> None:
        self.package: Any = importlib.import_module("onnxruntime")
        self.models = importlib.import_module(".onnx_model", __package__)
        self.package.set_default_logger_severity(3)
        self.options = self.package.SessionOptions()
        self.options.intra_op_num_threads = threads
        self.options.inter_op_num_threads = 1

    @property
    def version(self) -> str:
        return str(self.package.__version__)

    def binding(self, session: Any, values: dict[str, Any]) -> Any:
        binding = session.io_binding()
        for node in session.get_inputs():
            binding.bind_ortvalue_input(node.name, values[node.name])
        for node in session.get_outputs():
            binding.bind_ortvalue_output(node.name, values[node.name])
        return binding

    def prepare(self, case: Case, shared: dict[str, Array]) -> Prepared:
        model = self.models.build(case, shared)
        session = self.package.InferenceSession(model, self.options, providers=["CPUExecutionProvider"])
        value = self.package.OrtValue.ortvalue_from_numpy
        x = np.ascontiguousarray(shared["x"][: case.steps])
        names = self.models.state_names(case)
        # A stream's states go from one set of buffers to the other and back.
        sets = [{name: np.zeros(self.models.state_shape(case), np.float32) for name in names} for _ in range(2)]
        x_value = value(x)
        output = value(np.zeros((case.steps, case.batch, case.directions * case.hidden_size), np.float32))
        held = [{name: value(array) for name, array in one.items()} for one in sets]
        bindings = []
        for before, after in ((0, 1), (1, 0)):
            values = {"x": x_value, "output": output}
            values |= {f"{name}_before": v for name, v in held[before].items()} | held[after]
            bindings.append(self.binding(session, values))
        run_with = session.run_with_iobinding

        def run(n: int) -> None:
            one, other = bindings
            for _ in repeat(None, n // 2):
                run_with(one)
                run_with(other)
            if n % 2:
                run_with(one)

        def results() -> dict[str, Array]:
            outputs = []
            states: dict[str, Array] = {name: np.zeros_like(array) for name, array in sets[0].items()}
            for x_t in shared["x"] if case.streams else [x]:
                given = {f"{name}_before": array for name, array in states.items()} if case.streams else {}
                y, *after = session.run(None, {"x": x_t[None] if case.streams else x_t, **given})
                states = dict(zip(names, after, strict=True))
                outputs.append(y)
            return named_results(np.concatenate(outputs), self.models.joined_states(case, states))

        return Prepared(run, results)


class OpenVino(Contestant):
    def __init__(self, threads: int) -> None:
        self.package: Any = importlib.import_module("openvino")
        self.models = importlib.import_module(".onnx_model", __package__)
        self.core = self.package.Core()
        self.settings = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }

    @property
    def version(self) -> str:
        return str(self.package.__version__).split("-")[0]

    def prepare(self, case: Case, shared: dict[str, Array]) -> Prepared:
        model = self.core.read_model(self.models.build(case, shared), b"")
        compiled = self.core.compile_model(model, "CPU", self.settings)
        tensor = self.package.Tensor
        names = self.models.state_names(case)
        x = np.ascontiguousarray(shared["x"][: case.steps])
        sets = [{name: np.zeros(self.models.state_shape(case), np.float32) for name in names} for _ in range(2)]
        requests = []
        for before, after in ((0, 1), (1, 0)):
            request = compiled.create_infer_request()
            request.set_tensor("x", tensor(x, shared_memory=True))
            for name in names:
                if case.streams:
                    request.set_tensor(f"{name}_before", tensor(sets[before][name], shared_memory=True))
                request.set_tensor(name, tensor(sets[after][name], shared_memory=True))
            requests.append(request)

        def run(n: int) -> None:
            one, other = requests
            start_one, wait_one, start_other, wait_other = one.start_async, one.wait, other.start_async, other.wait
            for _ in repeat(None, n // 2):
                start_one()
                wait_one()
                start_other()
                wait_other()
            if n % 2:
                start_one()
                wait_one()

        def results() -> dict[str, Array]:
            for array in sets[0].values():
                array[...] = 0
            outputs, kept = [], x.copy()
            for number, x_t in enumerate(shared["x"] if case.streams else [x]):
                x[...] = x_t
                requests[number % 2].infer()
                outputs.append(np.array(requests[number % 2].get_tensor("output").data))
            states = sets[len(outputs) % 2]
            x[...] = kept
            return named_results(np.concatenate(outputs), self.models.joined_states(case, states))

        return Prepared(run, results)


class Paddle(Contestant):
    """A peer for training, where it is the fastest at batch 1."""

    modes: tuple[str, ...] = ("train",)

    def __init__(self, threads: int) -> None:
        os.environ.setdefault("GLOG_minloglevel", "2")
        self.package: Any = importlib.import_module("paddle")
        self.package.set_device("cpu")
        self.package.base.core.set_num_threads(threads)

    @property
    def version(self) -> str:
        return str(self.package.__version__)

    def prepare(self, case: Case, shared: dict[str, Array]) -> Prepared:
        layer = getattr(self.package.nn, {"rnn": "SimpleRNN"}.get(case.cell, CLASS_NAMES[case.cell]))(
            case.input_size,
            case.hidden_size,
            num_layers=case.num_layers,
            direction="bidirect" if case.bidirectional else "forward",
            time_major=True,
        )
        tensor, grad = self.package.to_tensor, self.package.grad
        given = parameters(shared)
        layer.set_state_dict({name: tensor(array) for name, array in given.items()})
        x, grad_output = tensor(shared["x"], stop_gradient=False), tensor(shared["grad_output"])
        named = {name: value for name, value in layer.named_parameters() if name in given}
        inputs = [x, *named.values()]

        def run(n: int) -> None:
            for _ in repeat(None, n):
                output, _ = layer(x)
                grad(output, inputs, grad_output)

        def results() -> dict[str, Array]:
            output, state = layer(x)
            gradients = grad(output, inputs, grad_output)
            states = state if isinstance(state, (tuple, list)) else (state,)
            return named_results(output, states, dict(zip(["x", *named], gradients, strict=True)))

        return Prepared(run, results)


CONTESTANTS: dict[str, type[Contestant]] = {
    "rnnfast": RnnFast,
    "rnnfast-layer": RnnFastLayer,
    "torch": Torch,
    "torch-grad": TorchGrad,
    "torch-compile": TorchCompile,
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "paddle": Paddle,
}
OPTIONAL = ("torch-compile",)  # takes part only where it is named
OURS = ("rnnfast", "rnnfast-layer")


def describe_process() -> str:
    return f"Python {platform.python_version()}, NumPy {np.__version__}"
