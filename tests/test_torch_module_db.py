"""torch's own samples and error inputs for its recurrent modules, run against ours."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="runs torch's own tests, and torch is not installed")
pytest.importorskip("expecttest", reason="torch's test support needs expecttest, which is not installed")

from torch.testing._internal.common_modules import module_db  # noqa: E402

import rnnfast.torch as rt  # noqa: E402

INFOS = {info.module_cls.__name__: info for info in module_db if info.module_cls.__name__ in rt.__all__}

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # torch's, about itself


@pytest.fixture(autouse=True)
def one_thread_of_torch() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_torch_has_samples_for_all_modules() -> None:
    assert set(INFOS) == {"RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"}


def flat(value: Any) -> list[Any]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, torch.nn.utils.rnn.PackedSequence):
        return [value.data]
    return [tensor for part in value for tensor in flat(part)] if isinstance(value, (tuple, list)) else []


def call(module: Any, sample: Any) -> list[Any]:
    """Outputs, and the gradients of all inputs and parameters."""
    given = sample.forward_input
    leaves = [t for t in (*flat(given.args), *flat(tuple(given.kwargs.values()))) if t.requires_grad]
    outputs = [t for t in flat(module(*given.args, **given.kwargs)) if t.requires_grad]
    loss = sum(output.square().sum() for output in outputs)
    return outputs + list(torch.autograd.grad(loss, [*leaves, *module.parameters()], allow_unused=True))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", sorted(INFOS))
def test_samples(kind: str, dtype: Any, training: bool) -> None:
    info = INFOS[kind]
    count = 0
    for sample in info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True, training=training):
        arguments, options = sample.constructor_input.args, sample.constructor_input.kwargs
        theirs = info.module_cls(*arguments, **options).to(dtype).train(training)
        ours = getattr(rt, kind)(*arguments, **options).to(dtype).train(training)
        ours.load_state_dict(theirs.state_dict())
        assert repr(ours) == repr(theirs)
        for mine, other in zip(call(ours, sample), call(theirs, sample), strict=True):
            if other is None:
                assert mine is None
            else:
                rtol = 1e-5 if dtype == torch.float32 else 1e-10
                torch.testing.assert_close(mine, other, rtol=rtol, atol=rtol * max(1.0, float(other.abs().max())))
        count += 1
    assert count > 0


@pytest.mark.parametrize("kind", sorted(INFOS))
def test_error_inputs(kind: str) -> None:
    info = INFOS[kind]
    if info.module_error_inputs_func is None:
        pytest.skip("torch has no error inputs for it")
    for case in info.module_error_inputs_func(
        info, device="cpu", dtype=torch.float32, requires_grad=False, training=False
    ):
        sample = case.module_error_input
        arguments, options = sample.constructor_input.args, sample.constructor_input.kwargs
        if case.error_on.name == "CONSTRUCTION_ERROR":
            with pytest.raises(case.error_type, match=case.error_regex):
                getattr(rt, kind)(*arguments, **options)
            continue
        ours, theirs = getattr(rt, kind)(*arguments, **options), info.module_cls(*arguments, **options)
        given = sample.forward_input
        with pytest.raises(case.error_type, match=case.error_regex):
            ours(*given.args, **given.kwargs)
        with pytest.raises(case.error_type) as expected:
            theirs(*given.args, **given.kwargs)
        with pytest.raises(case.error_type, match=re.escape(str(expected.value))):
            ours(*given.args, **given.kwargs)
