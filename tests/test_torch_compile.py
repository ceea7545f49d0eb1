"""rnnfast.torch under torch.compile, torch.export, torch.jit and the profiler."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest

import programs

torch = pytest.importorskip("torch", reason="tests the PyTorch modules, and torch is not installed")

import rnnfast.torch as rt  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # torch's, about itself

LAYERS = ["RNN", "LSTM", "GRU"]
CELLS = ["RNNCell", "LSTMCell", "GRUCell"]
I, H = 6, 8


@pytest.fixture(autouse=True)
def compile_allowed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import torch._dynamo

    before = torch._dynamo.config.allow_rnn
    torch._dynamo.reset()
    torch.manual_seed(0)
    rt.allow_compile()
    yield
    torch._dynamo.config.allow_rnn = before


def gradients(module: Any, run: Any, x: Any) -> list[Any]:
    output, state = run(x)
    last = state[1] if isinstance(state, tuple) else state
    loss = output.square().sum() + last.sum()
    return [output, last, *torch.autograd.grad(loss, [x, *module.parameters()])]


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_compiled_layer_has_no_graph_break_and_equals_eager(kind: str, batch_first: bool) -> None:
    layer = getattr(rt, kind)(I, H, 2, bidirectional=True, batch_first=batch_first)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for steps in (5, 7, 9):  # from the second on with a symbolic number of steps
        x = torch.randn(steps, 4, I, requires_grad=True)
        assert all(map(torch.equal, gradients(layer, compiled, x), gradients(layer, layer, x)))
    with torch.no_grad():
        assert torch.equal(compiled(x)[0], layer(x)[0])


@pytest.mark.parametrize("kind", CELLS)
def test_a_compiled_cell_has_no_graph_break_and_equals_eager(kind: str) -> None:
    cell = getattr(rt, kind)(I, H)
    compiled = torch.compile(cell, fullgraph=True, backend="aot_eager")
    x = torch.randn(3, I)
    for mode in (torch.enable_grad, torch.no_grad):
        with mode():
            torch.testing.assert_close(compiled(x), cell(x))


def test_a_compiled_model_draws_its_dropout_anew() -> None:
    layer = rt.GRU(I, 32, 2, dropout=0.5)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(5, 4, I)
    assert not torch.equal(compiled(x)[0], compiled(x)[0])


@pytest.mark.parametrize("kind", LAYERS)
def test_an_exported_layer_survives_a_round_trip(kind: str) -> None:
    layer = getattr(rt, kind)(I, H, 2).eval()
    free = {"input": {0: torch.export.Dim("steps", min=2), 1: torch.export.Dim("batch", min=2)}}
    program = torch.export.export(layer, (torch.randn(5, 4, I),), dynamic_shapes=free)
    called = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert torch.ops.rnnfast.recurrent.default in called
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    again = torch.export.load(file).module()
    x = torch.randn(9, 3, I)
    with torch.no_grad():
        assert torch.equal(again(x)[0], layer(x)[0])


@pytest.mark.parametrize("kind", LAYERS)
def test_the_operators_are_what_torch_expects_of_operators(kind: str) -> None:
    layer = getattr(rt, kind)(I, H, dtype=torch.float64)
    mode = layer.mode
    x = torch.randn(3, 2, I, dtype=torch.float64, requires_grad=True)
    arguments = (x, None, None, list(layer.parameters()), None, None, mode, 1, False, False, 0.0)
    torch.library.opcheck(
        torch.ops.rnnfast.recurrent.default,
        arguments,
        test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
    )


def test_the_profiler_shows_one_operator_for_a_layer() -> None:
    layer, x = rt.LSTM(I, H), torch.randn(5, 2, I)
    with torch.profiler.profile() as profile, torch.no_grad():
        layer(x)
    assert [event.count for event in profile.key_averages() if event.key == "rnnfast::recurrent"] == [1]


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("kind", [*LAYERS, *CELLS])
def test_scripting_and_tracing_take_torchs_module(kind: str) -> None:
    module = getattr(rt, kind)(I, H)
    x = torch.randn(3, I) if kind in CELLS else torch.randn(5, 3, I)
    with torch.no_grad():
        want = module(x)
        torch.testing.assert_close(torch.jit.script(torch.nn.Sequential(module))(x), want)
        traced = torch.jit.trace(module, x)
        torch.testing.assert_close(traced(x), want)
    assert "rnnfast::" not in str(traced.inlined_graph)


def test_importing_rnnfast_torch_leaves_dynamo_alone() -> None:
    code = "import rnnfast.torch, torch; assert not torch._dynamo.config.allow_rnn"
    done = programs.run_code(code)
    assert done.returncode == 0, done.stderr
