"""rnnfast.torch: its modules do what torch's do, and say what torch's say."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

import programs

torch = pytest.importorskip("torch", reason="tests the PyTorch modules, and torch is not installed")

from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence  # noqa: E402

import rnnfast as rf  # noqa: E402
import rnnfast.torch as rt  # noqa: E402
from rnnfast.torch import _engine  # noqa: E402

LAYERS = ["RNN", "LSTM", "GRU"]
CELLS = ["RNNCell", "LSTMCell", "GRUCell"]
T, B, I, H = 6, 4, 5, 7


@pytest.fixture(autouse=True)
def one_thread_of_torch() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def pair(kind: str, *args: Any, **options: Any) -> tuple[Any, Any]:
    """Ours and torch's with the same weights."""
    theirs = getattr(torch.nn, kind)(*args, **options)
    ours = getattr(rt, kind)(*args, **options)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def flat(result: Any) -> list[Any]:
    if isinstance(result, PackedSequence):
        return [result.data]
    if isinstance(result, (tuple, list)):
        return [tensor for part in result for tensor in flat(part)]
    return [result]


def leaves(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(leaves(part) for part in value)
    return None if value is None else value.detach().clone().requires_grad_()


def outputs_and_gradients(module: Any, x: Any, hx: Any, lengths: Any = None) -> list[Any]:
    x, hx = leaves(x), leaves(hx)
    given = x
    if lengths is not None:
        given = pack_padded_sequence(x, lengths, batch_first=module.batch_first, enforce_sorted=False)
    results = flat(module(given, hx))
    wanted = [x, *(flat(hx) if hx is not None else []), *module.parameters()]
    loss = sum(
        (tensor * torch.linspace(-1, 1, tensor.numel(), dtype=x.dtype).view(tensor.shape)).sum() for tensor in results
    )
    return [*results, *torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)]


def assert_same(got: list[Any], want: list[Any]) -> None:
    assert len(got) == len(want)
    for mine, theirs in zip(got, want, strict=True):
        single = mine.dtype == torch.float32
        torch.testing.assert_close(mine, theirs, rtol=1e-4 if single else 1e-9, atol=1e-5 if single else 1e-11)


def draw_state(kind: str, shape: tuple[int, ...], dtype: Any) -> Any:
    h = torch.randn(shape, dtype=dtype)
    return (h, torch.randn(shape, dtype=dtype)) if kind.startswith("LSTM") else h


def nodes_behind(tensor: Any) -> int:
    seen, waiting = set(), [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen and "AccumulateGrad" not in node.name():
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
    return len(seen)


# --- results ---


@pytest.mark.parametrize("form", ["time first", "batch first", "unbatched", "not contiguous", "packed"])
@pytest.mark.parametrize(
    ("layers", "bidirectional", "bias"), list(itertools.product([1, 2], [False, True], [False, True]))
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", LAYERS)
def test_layers_give_torchs_results_and_gradients(
    kind: str, dtype: Any, layers: int, bidirectional: bool, bias: bool, form: str
) -> None:
    ours, theirs = pair(
        kind, I, H, layers, bias=bias, batch_first=form == "batch first", bidirectional=bidirectional, dtype=dtype
    )
    shape = {"unbatched": (T, I), "batch first": (B, T, I)}.get(form, (T, B, I))
    x = torch.randn(shape, dtype=dtype)
    if form == "not contiguous":
        x = torch.randn(I, B, T, dtype=dtype).permute(2, 1, 0)
    count = layers * (2 if bidirectional else 1)
    state = draw_state(kind, (count, H) if form == "unbatched" else (count, B, H), dtype)
    lengths = [3, 6, 1, 6] if form == "packed" else None
    for hx in (None, state):
        got = outputs_and_gradients(ours, x, hx, lengths)
        assert_same(got, outputs_and_gradients(theirs, x, hx, lengths))
        given = x if lengths is None else pack_padded_sequence(x, lengths, enforce_sorted=False)
        with torch.no_grad():
            without = flat(ours(given, hx))
        for mine, same in zip(without, got, strict=False):
            assert torch.equal(mine, same) and not mine.requires_grad


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("form", ["batch", "one", "no state"])
@pytest.mark.parametrize("kind", CELLS)
def test_cells_give_torchs_results(kind: str, form: str, mode: Any) -> None:
    ours, theirs = pair(kind, I, H)
    batch = () if form == "one" else (B,)
    x = torch.randn(*batch, I)
    hx = None if form == "no state" else draw_state(kind, (*batch, H), torch.float32)
    with mode():
        assert_same(flat(ours(x, hx)), flat(theirs(x, hx)))


@pytest.mark.filterwarnings("ignore:LSTM with projections")  # torch's, about itself
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("lengths", [None, [3, T, 1]])
def test_projections_equal_torch(bias: bool, bidirectional: bool, lengths: Any) -> None:
    ours, theirs = pair("LSTM", I, H, 2, bias=bias, bidirectional=bidirectional, proj_size=3, dtype=torch.float64)
    assert rt.explain(ours)[0].runs_in == "rnnfast"
    x = torch.randn(T, 3, I, dtype=torch.float64)
    cells = 4 if bidirectional else 2
    hx = torch.randn(cells, 3, 3, dtype=torch.float64), torch.randn(cells, 3, H, dtype=torch.float64)
    for state in (None, hx):
        assert_same(outputs_and_gradients(ours, x, state, lengths), outputs_and_gradients(theirs, x, state, lengths))
    with torch.no_grad():
        assert_same(flat(ours(x, hx)), flat(theirs(x, hx)))


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_a_projected_layer_has_second_derivatives() -> None:
    layer = rt.LSTM(2, 4, proj_size=3, dtype=torch.float64)
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: layer(x)[0], x)


@pytest.mark.parametrize("kind", LAYERS)
def test_an_empty_batch_works(kind: str) -> None:
    ours, _ = pair(kind, I, H)
    results = outputs_and_gradients(ours, torch.randn(T, 0, I), None)
    assert results[0].shape == (T, 0, H)
    assert all(not gradient.any() for gradient in results[2 if kind != "LSTM" else 3 :])


# --- autograd ---


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_is_one_node(kind: str) -> None:
    layer = getattr(rt, kind)(I, H, 2)
    assert nodes_behind(layer(torch.randn(50, B, I))[0]) == 1


@pytest.mark.parametrize("kind", LAYERS)
def test_gradients_of_gradients_agree_with_finite_differences(kind: str) -> None:
    layer = getattr(rt, kind)(2, 3, 2, bidirectional=True, dropout=0.4, dtype=torch.float64)
    names = [name for name, _ in layer.named_parameters()]

    def run(packed: bool, x: Any, *parameters: Any) -> Any:
        torch.manual_seed(1)  # the same masks in every evaluation
        given = pack_padded_sequence(x, [2, 3], enforce_sorted=False) if packed else x
        output, state = torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (given,))
        return flat(output)[0], *flat(state)

    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    parameters = [value.detach().clone().requires_grad_() for value in layer.parameters()]
    for packed in (False, True):
        assert torch.autograd.gradcheck(partial(run, packed), (x, *parameters), fast_mode=True)
        assert torch.autograd.gradgradcheck(partial(run, packed), (x, *parameters), fast_mode=True)


@pytest.mark.parametrize("kind", LAYERS)
def test_any_subset_of_gradients_may_be_asked_for(kind: str) -> None:
    ours, _ = pair(kind, I, H, 2, bidirectional=True)
    names = [name for name, _ in ours.named_parameters()]
    x = torch.randn(T, B, I, requires_grad=True)
    ours(x)[0].square().sum().backward()
    want = {"x": x.grad, **{name: value.grad for name, value in ours.named_parameters()}}
    for chosen in ([], ["x"], [names[0]], [names[-1]], [name for name in names if "l1" in name], names[1::3]):
        for name, value in ours.named_parameters():
            value.requires_grad_(name in chosen)
            value.grad = None
        again = x.detach().clone().requires_grad_("x" in chosen)
        output = ours(again)[0]
        assert output.requires_grad == bool(chosen)
        if not chosen:
            continue
        output.square().sum().backward()
        got = {"x": again.grad, **{name: value.grad for name, value in ours.named_parameters()}}
        for name, gradient in got.items():
            assert (gradient is not None) == (name in chosen)
            assert gradient is None or torch.equal(gradient, want[name]), name


def test_weights_written_between_forward_and_backward_are_an_error() -> None:
    layer = rt.GRU(I, H)
    loss = layer(torch.randn(T, B, I))[0].sum()
    with torch.no_grad():
        layer.weight_hh_l0.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_graph_may_be_walked_twice() -> None:
    layer = rt.LSTM(I, H)
    loss = layer(torch.randn(T, B, I))[0].sum()
    first = torch.autograd.grad(loss, layer.parameters(), retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(loss, layer.parameters())))


def test_dropout_comes_from_torchs_generator() -> None:
    layer, x = rt.GRU(I, 64, 2, dropout=0.5), torch.randn(T, B, I)
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(layer(x)[0])
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    torch.manual_seed(1)
    with torch.no_grad():  # in training mode dropout does not depend on gradients
        assert torch.equal(layer(x)[0], runs[0])
    layer.eval()
    assert torch.equal(layer(x)[0], layer(x)[0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's, about torch.jit
@pytest.mark.parametrize("transform", ["vmap", "grad", "jvp"])
@pytest.mark.parametrize("kind", LAYERS)
def test_functional_transforms_run_torchs_operations(kind: str, transform: str) -> None:
    ours, theirs = pair(kind, I, H)
    x = torch.randn(T, B, I)

    def result(module: Any) -> Any:
        if transform == "vmap":
            return torch.vmap(lambda one: module(one)[0])(torch.stack([x, -x]))
        if transform == "grad":
            return torch.func.grad(lambda given: module(given)[0].sum())(x)
        return torch.func.jvp(lambda given: module(given)[0], (x,), (x,))[1]

    try:
        want = result(theirs)
    except (RuntimeError, NotImplementedError) as error:
        with pytest.raises(type(error)):
            result(ours)
    else:
        assert_same([result(ours)], [want])


@pytest.mark.parametrize("kind", [*LAYERS, *CELLS])
def test_autocast_does_what_it_does_with_torchs_module(kind: str) -> None:
    ours, theirs = pair(kind, I, H)
    x = torch.randn(B, I) if kind in CELLS else torch.randn(T, B, I)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        try:
            want = flat(theirs(x))
        except RuntimeError as error:  # oneDNN has no LSTM in bfloat16 for every processor
            with pytest.raises(RuntimeError, match=re.escape(str(error)[:40])):
                ours(x)
            return
        for mine, other in zip(flat(ours(x)), want, strict=True):
            assert mine.dtype == other.dtype and torch.equal(mine, other)


# --- the cache of packed weights ---


@pytest.mark.parametrize("kind", [*LAYERS, *CELLS])
def test_changes_of_weights_are_noticed(kind: str) -> None:
    ours, theirs = pair(kind, I, H)
    x = torch.randn(B, I) if kind in CELLS else torch.randn(T, B, I)
    name = next(name for name, _ in ours.named_parameters() if "weight_hh" in name)
    changes = [
        lambda module: getattr(module, name).mul_(0.5),
        lambda module: setattr(module, name, torch.nn.Parameter(getattr(module, name) * 2)),
        lambda module: module.load_state_dict({key: value + 1 for key, value in module.state_dict().items()}),
        lambda module: setattr(getattr(module, name), "data", getattr(module, name).data * 3),
        lambda module: module.double(),
    ]
    with torch.no_grad():
        for change in changes:
            ours(x)
            change(ours)
            change(theirs)
            x = x.to(next(ours.parameters()).dtype)
            assert_same(flat(ours(x)), flat(theirs(x)))


def test_flatten_parameters_drops_what_the_cache_cannot_see() -> None:
    layer, x = rt.GRU(I, H), torch.randn(T, B, I)
    with torch.no_grad():
        before = layer(x)[0]
        layer.weight_hh_l0.data.mul_(2)  # no version tells
        assert torch.equal(layer(x)[0], before)
        layer.flatten_parameters()
        assert not torch.equal(layer(x)[0], before)


def test_the_cache_ends_with_the_weights() -> None:
    count = len(_engine._entries)
    layer = rt.GRU(I, H)
    with torch.no_grad():
        layer(torch.randn(T, B, I))
    assert len(_engine._entries) == count + 1
    del layer
    assert len(_engine._entries) == count


def test_parameters_made_in_inference_mode_work_and_are_not_cached() -> None:
    with torch.inference_mode():
        layer, x = rt.LSTM(I, H), torch.randn(T, B, I)
        first = layer(x)[0]
        layer.weight_hh_l0.mul_(2)
        assert not torch.equal(layer(x)[0], first)


# --- accelerate, restore, explain ---


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = torch.nn.LSTM(I, H, 2, bidirectional=True)
        self.shared = torch.nn.ModuleList([self.encoder, torch.nn.GRU(2 * H, H)])
        self.cell = torch.nn.GRUCell(H, H)
        self.projected = torch.nn.LSTM(H, H, proj_size=2)

    def forward(self, x: Any) -> Any:
        output, _ = self.shared[1](self.encoder(x)[0])
        return self.projected(self.cell(output[-1])[None])[0]


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_accelerate_keeps_everything_and_restore_undoes_it() -> None:
    model = Model().eval()
    calls: list[Any] = []
    model.encoder.register_forward_hook(lambda module, *_: calls.append(module))
    text, parameters, encoder = repr(model), dict(model.named_parameters()), model.encoder
    x = torch.randn(T, B, I)
    want = model(x)
    state = copy.deepcopy(model.state_dict())
    assert rt.accelerate(model) is model
    assert model.encoder is encoder is model.shared[0] and type(encoder) is rt.LSTM and not encoder.training
    assert repr(model) == text
    assert all(value is parameters[name] for name, value in model.named_parameters())
    torch.testing.assert_close(model(x), want)
    assert calls == [encoder, encoder]
    model.load_state_dict(state)
    where = {line.name: line.runs_in for line in rt.explain(model)}
    assert where == {"encoder": "rnnfast", "shared.1": "rnnfast", "cell": "rnnfast", "projected": "rnnfast"}
    rt.restore(model)
    assert type(encoder) is torch.nn.LSTM and type(model.cell) is torch.nn.GRUCell
    assert torch.equal(model(x), want)


def test_explain_says_why() -> None:
    class Own(torch.nn.GRU):
        pass

    model = torch.nn.ModuleDict(
        {
            "good": torch.nn.GRU(1, 1),
            "short": rt.GRU(1, 1).half(),
            "absent": rt.GRU(1, 1, device="meta"),
            "own": Own(1, 1),
        }
    )
    reasons = {line.name: line.reason for line in rt.explain(rt.accelerate(model))}
    assert reasons["good"] == ""
    assert "float16" in reasons["short"] and "meta" in reasons["absent"] and "rnnfast.torch.GRU" in reasons["own"]
    assert str(rt.explain(torch.nn.Linear(1, 1))) == "no recurrent modules"


def test_parametrised_weights_work() -> None:
    layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.LSTM(I, H), "weight_hh_l0")
    x = torch.randn(T, B, I)
    want = outputs_and_gradients(layer, x, None)
    rt.accelerate(layer)
    assert rt.explain(layer)[0].runs_in == "rnnfast" and nodes_behind(layer(x)[0]) > 1
    assert_same(outputs_and_gradients(layer, x, None), want)
    rt.restore(layer)
    assert_same(outputs_and_gradients(layer, x, None), want)


def test_tied_weights_get_the_sum_of_their_gradients() -> None:
    ours, theirs = pair("GRU", H, H, 2)
    for module in (ours, theirs):
        module.weight_ih_l1 = module.weight_ih_l0
    x = torch.randn(T, B, H)
    assert_same(outputs_and_gradients(ours, x, None), outputs_and_gradients(theirs, x, None))


@pytest.mark.parametrize("kind", [*LAYERS, *CELLS])
def test_modules_are_copied_pickled_and_saved(kind: str) -> None:
    ours, _ = pair(kind, I, H)
    x = torch.randn(B, I) if kind in CELLS else torch.randn(T, B, I)
    with torch.no_grad():
        want = flat(ours(x))
        file = io.BytesIO()
        torch.save(ours, file)
        file.seek(0)
        others = [copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), torch.load(file, weights_only=False)]
        for other in others:
            assert type(other) is type(ours)
            assert all(map(torch.equal, flat(other(x)), want))


# --- threads ---


def test_the_number_of_threads_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RNNFAST_NUM_THREADS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    torch.set_num_threads(3)
    assert _engine.threads() == 3
    with rf.threads(2):
        assert _engine.threads() == 2
    monkeypatch.setenv("RNNFAST_NUM_THREADS", "5")
    assert _engine.threads() == 5


def test_importing_rnnfast_does_not_import_torch() -> None:
    done = programs.run_code("import rnnfast, sys; assert 'torch' not in sys.modules")
    assert done.returncode == 0, done.stderr


def test_a_fused_optimizer_is_noticed() -> None:
    """Its step writes the weights without raising their version."""
    layer = rt.GRU(3, 5)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1, fused=True)
    x = torch.randn(4, 2, 3)
    with torch.no_grad():
        before = layer(x)[0]
    layer(x)[0].sum().backward()
    optimizer.step()
    with torch.no_grad():
        after = layer(x)[0]
        layer.flatten_parameters()
        torch.testing.assert_close(after, layer(x)[0], rtol=0, atol=0)
    assert not torch.equal(before, after)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("sizes", [[2, 3, 1], [3, 2, 2], [3, 2], [3, -1, 4]])
def test_a_packed_sequence_that_is_none_is_refused(sizes: list[int], train: bool) -> None:
    layer = rt.GRU(I, H)
    packed = PackedSequence(torch.randn(6, I), torch.tensor(sizes))
    with torch.set_grad_enabled(train), pytest.raises(ValueError, match="batch_sizes"):
        layer(packed)


def test_the_rows_of_a_packed_sequence_may_lie_apart() -> None:
    ours, theirs = pair("GRU", I, H, 2)
    packed = pack_padded_sequence(torch.randn(T, B, I), [6, 5, 3, 1])
    for data in (packed.data.repeat_interleave(2, 0)[::2], packed.data.T.contiguous().T):
        strided = packed._replace(data=data)
        torch.testing.assert_close(ours(strided)[0].data, theirs(strided)[0].data)
        assert torch.equal(ours(strided)[0].data, ours(packed)[0].data)


@pytest.mark.parametrize(
    "changed", [lambda t: t.float(), lambda t: t.repeat_interleave(2)[::2]], ids=["another dtype", "apart"]
)
def test_a_tape_that_a_hook_has_changed_is_refused(changed: Any) -> None:
    layer = rt.GRU(I, H)

    def unpack(tensor: Any) -> Any:
        return changed(tensor) if tensor.dtype == torch.uint8 else tensor

    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, unpack):
        output = layer(torch.randn(T, B, I))[0]
    with pytest.raises(ValueError, match="hook"):
        output.sum().backward()


def test_a_gradient_of_a_class_of_its_own_goes_through_the_dispatcher() -> None:
    class Doubled(torch.Tensor):
        @staticmethod
        def __new__(cls, inner: Any) -> Any:
            return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

        def __init__(self, inner: Any) -> None:
            self.inner = inner

        @classmethod
        def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            plain = torch.utils._pytree.tree_map(lambda t: t.inner if isinstance(t, Doubled) else t, (args, kwargs))
            return function(*plain[0], **(plain[1] or {}))

    layer, x, gradient = rt.GRU(I, H), torch.randn(T, B, I, requires_grad=True), torch.randn(T, B, H)
    expected = torch.autograd.grad(layer(x)[0], x, gradient)[0]
    (found,) = torch.autograd.grad(layer(x)[0], x, Doubled(gradient))
    torch.testing.assert_close(found, expected)
