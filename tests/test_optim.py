"""Optimisers and clipping against torch's, and their own promises."""

from __future__ import annotations

import copy
import pickle
import re
from typing import Any

import numpy as np
import pytest

import rnnfast as rf

SHAPES = {"weight": (5, 4), "bias": (5,), "scalar": (), "empty": (0, 3)}
OPTIMISERS = {
    "SGD": [
        {"lr": 0.1},
        {"lr": 0.1, "momentum": 0.9},
        {"lr": 0.1, "momentum": 0.9, "dampening": 0.3},
        {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
        {"lr": 0.1, "weight_decay": 0.1},
        {},
    ],
    "Adam": [
        {},
        {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-3},
        {"lr": 0.01, "weight_decay": 0.1},
        {"betas": (0.0, 0.0)},
    ],
}
CASES = [(name, options) for name, all_options in OPTIMISERS.items() for options in all_options]


def arrays(seed: int, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.standard_normal(shape), dtype) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_steps_are_torchs_to_rounding(name: str, options: dict[str, Any], dtype: str) -> None:
    torch = pytest.importorskip("torch", reason="compares with torch")
    params = arrays(0, dtype)
    theirs = {key: torch.tensor(array) for key, array in params.items()}
    ours = getattr(rf.optim, name)(params, **options)
    reference = getattr(torch.optim, name)(list(theirs.values()), **options)
    for step in range(1, 21):
        grads = arrays(step, dtype)
        for key, tensor in theirs.items():
            tensor.grad = torch.tensor(grads[key])
        ours.step(grads)
        reference.step()
        if step == 10:
            ours.lr = reference.param_groups[0]["lr"] = 0.05
    for key, array in params.items():
        np.testing.assert_allclose(array, theirs[key].numpy(), rtol=0, atol=20 * np.finfo(dtype).eps, err_msg=key)
        assert array.dtype == dtype


@pytest.mark.parametrize("norm_type", [2.0, 1.0, 3.0, float("inf")])
@pytest.mark.parametrize("max_norm", [0.0, 1.0, 1e6, float("inf")])
def test_clip_grad_norm_is_torchs(max_norm: float, norm_type: float) -> None:
    torch = pytest.importorskip("torch", reason="compares with torch")
    grads = arrays(0)
    theirs = [torch.nn.Parameter(torch.tensor(array)) for array in grads.values()]
    for tensor, array in zip(theirs, grads.values(), strict=True):
        tensor.grad = torch.tensor(array)
    expected = torch.nn.utils.clip_grad_norm_([t for t in theirs if t.numel()], max_norm, norm_type)
    assert rf.clip_grad_norm(grads, max_norm, norm_type) == pytest.approx(float(expected), rel=1e-6)
    for tensor, array in zip(theirs, grads.values(), strict=True):
        np.testing.assert_allclose(array, tensor.grad.numpy(), rtol=1e-6)


def test_clip_grad_value_is_torchs() -> None:
    torch = pytest.importorskip("torch", reason="compares with torch")
    grads = arrays(0)
    theirs = [torch.nn.Parameter(torch.tensor(array)) for array in grads.values()]
    for tensor, array in zip(theirs, grads.values(), strict=True):
        tensor.grad = torch.tensor(array)
    torch.nn.utils.clip_grad_value_(theirs, 0.5)
    norm = np.sqrt(sum(np.sum(array.astype(np.float64) ** 2) for array in grads.values()))
    assert rf.clip_grad_value(grads, 0.5) == pytest.approx(norm)
    for tensor, array in zip(theirs, grads.values(), strict=True):
        np.testing.assert_array_equal(array, tensor.grad.numpy())


def gradients_of(layer: Any) -> rf.Gradients:
    output, state, tape = layer.forward(np.ones((4, 2, layer.input_size), np.float32))
    return layer.backward(tape, np.ones_like(output), state)


def test_clipping_acts_on_the_gradients_of_parameters_only() -> None:
    grads = gradients_of(rf.LSTM(3, 5, seed=0))
    kept, d_x = grads.state[0].copy(), grads.input.copy()
    norm = rf.clip_grad_norm(grads, 0.5)
    assert norm > 0.5 and rf.clip_grad_norm(grads, 1e9) == pytest.approx(0.5, rel=1e-5)
    rf.clip_grad_value(grads, 0.01)
    assert max(np.abs(array).max() for array in grads.parameters.values()) == np.float32(0.01)
    np.testing.assert_array_equal(grads.state[0], kept)
    np.testing.assert_array_equal(grads.input, d_x)


def test_clipping_takes_several_groups_as_one() -> None:
    one, two = {"a": np.full(3, 3.0)}, {"a": np.full(1, np.sqrt(73.0))}
    assert rf.clip_grad_norm([one, two, {"skipped": None}], 1.0) == pytest.approx(10.0)
    np.testing.assert_allclose(one["a"], 0.3, rtol=1e-6)
    assert rf.clip_grad_norm({}, 1.0) == 0.0


def test_a_large_norm_does_not_overflow() -> None:
    grads = {"a": np.full(4, 1e30, np.float32)}
    assert rf.clip_grad_norm(grads, 1.0) == pytest.approx(2e30)
    np.testing.assert_allclose(grads["a"], 0.5, rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_norm_that_is_not_finite(value: float) -> None:
    grads = {"a": np.array([1.0, value], np.float32)}
    with pytest.raises(ValueError, match=f"the norm of grads is {value}"):
        rf.clip_grad_norm(grads, 1.0, error_if_nonfinite=True)
    assert grads["a"][0] == 1.0
    assert not np.isfinite(rf.clip_grad_norm(grads, 1.0))
    assert np.isnan(grads["a"][1])


@pytest.mark.parametrize(("name", "options"), CASES)
def test_state_dict_continues_where_it_was(name: str, options: dict[str, Any]) -> None:
    kind = getattr(rf.optim, name)
    params = arrays(0)
    optimiser = kind(params, **options)
    for step in range(3):
        optimiser.step(arrays(step + 1))
    saved = optimiser.state_dict()
    twin_params = {key: array.copy() for key, array in params.items()}
    twin = kind(twin_params, lr=123.0)
    twin.load_state_dict(pickle.loads(pickle.dumps(saved)))
    assert repr(twin) == repr(optimiser) and "lr=" in repr(twin)
    for both in (optimiser, twin):
        both.step(arrays(9))
    for key in params:
        np.testing.assert_array_equal(params[key], twin_params[key])
    assert all(entry["step"] == 3 for entry in saved["state"].values())  # a copy


def test_optimisers_take_layers_and_their_gradients() -> None:
    layer = rf.GRU(3, 5, seed=0)
    before = layer.state_dict()
    rf.optim.SGD(layer, lr=0.5).step(grads := gradients_of(layer))
    for name, array in layer.parameters.items():
        np.testing.assert_allclose(array, before[name] - 0.5 * grads.parameters[name], rtol=1e-6, atol=1e-7)


def test_none_leaves_a_parameter_alone_and_other_names_are_ignored() -> None:
    params = arrays(0)
    before = copy.deepcopy(params)
    rf.optim.Adam(params).step({**arrays(1), "bias": None, "other": np.ones(3)})
    np.testing.assert_array_equal(params["bias"], before["bias"])
    assert not np.array_equal(params["weight"], before["weight"])


def test_gradients_are_not_changed() -> None:
    for name, options in CASES:
        grads = arrays(1)
        optimiser = getattr(rf.optim, name)(arrays(0), **options)
        optimiser.step(grads)
        optimiser.step(grads)
        for key, array in arrays(1).items():
            np.testing.assert_array_equal(grads[key], array, err_msg=f"{name} {options}")


def test_training_with_numpy_alone_learns() -> None:
    """The sign of the sum of a sequence, from the last output."""
    rng = np.random.default_rng(0)
    layer, head = rf.LSTM(1, 8, seed=0), rng.standard_normal((8, 1)).astype(np.float32) * 0.3
    optimiser = rf.optim.Adam({"head": head, **layer.parameters}, lr=0.02)
    losses = []
    for _ in range(150):
        x = rng.standard_normal((6, 32, 1)).astype(np.float32)
        target = np.sign(x.sum(0))
        _, (h, c), tape = layer.forward(x)
        error = h[0] @ head - target
        d_h = (2 / 32 * error @ head.T).astype(np.float32)
        grads = layer.backward(tape, None, (d_h[None], None))
        rf.clip_grad_norm(grads, 1.0)
        optimiser.step({"head": 2 / 32 * h[0].T @ error, **grads.parameters})
        losses.append(float((error**2).mean()))
    assert np.mean(losses[-10:]) < 0.3 * np.mean(losses[:3])


# --- errors ---


def make(name: str = "SGD", params: Any = None, **options: Any) -> Any:
    return getattr(rf.optim, name)(arrays(0) if params is None else params, **options)


READ_ONLY = np.zeros(3)
READ_ONLY.flags.writeable = False

ERRORS = {
    "lr": (lambda: make(lr=-1), ValueError, "lr must be a finite number of at least 0, got -1.0"),
    "lr NaN": (lambda: make(lr=float("nan")), ValueError, "lr must be a finite number"),
    "lr type": (lambda: make(lr="fast"), TypeError, "lr must be a number, got 'fast'"),
    "momentum": (lambda: make(momentum=-0.1), ValueError, "momentum must be a finite number of at least 0"),
    "dampening": (lambda: make(dampening=None), TypeError, "dampening must be a number, got None"),
    "nesterov": (lambda: make(nesterov=True), ValueError, "nesterov needs a momentum above 0 and a dampening of 0"),
    "nesterov type": (lambda: make(nesterov=1), TypeError, "nesterov must be True or False, got 1"),
    "decay": (lambda: make("Adam", weight_decay=-1), ValueError, "weight_decay must be a finite number of at least 0"),
    "betas": (
        lambda: make("Adam", betas=(0.9, 1.0)),
        ValueError,
        "betas must be two numbers in [0, 1), got (0.9, 1.0)",
    ),
    "betas type": (lambda: make("Adam", betas=0.9), TypeError, "betas must be two numbers, got 0.9"),
    "eps": (lambda: make("Adam", eps=-1e-8), ValueError, "eps must be a finite number of at least 0"),
    "params": (lambda: make(params=[np.zeros(3)]), TypeError, "params must be a mapping from names to arrays"),
    "params list": (lambda: make(params={"a": [1.0]}), TypeError, "params['a'] must be a NumPy array, got a list"),
    "params integers": (
        lambda: make(params={"a": np.zeros(3, int)}),
        TypeError,
        "params['a'] must be of a floating-point type, got int64",
    ),
    "params read-only": (lambda: make(params={"a": READ_ONLY}), ValueError, "params['a'] is read-only"),
    "grads": (lambda: make().step(None), TypeError, "grads must be a mapping from names to arrays"),
    "grads missing": (
        lambda: make().step({"weight": np.zeros((5, 4))}),
        ValueError,
        "grads has no gradient of bias, scalar, empty; None stands for one to be left out",
    ),
    "grads shape": (
        lambda: make().step({**arrays(1), "bias": np.zeros(4)}),
        ValueError,
        "grads['bias'] must have shape (5,), got (4,)",
    ),
    "grads type": (
        lambda: make().step({**arrays(1), "bias": 3}),
        TypeError,
        "grads['bias'] must be a NumPy array, got 3",
    ),
    "state": (
        lambda: make().load_state_dict([]),
        TypeError,
        "state_dict must be what state_dict() returned, got a list",
    ),
    "state options": (
        lambda: make().load_state_dict(make("Adam").state_dict()),
        ValueError,
        "state_dict has options ['betas', 'eps', 'lr', 'weight_decay'], expected",
    ),
    "state names": (
        lambda: make().load_state_dict(make(params={"a": np.zeros(3)}).state_dict()),
        ValueError,
        "state_dict has parameters ['a'], expected ['bias', 'empty', 'scalar', 'weight']",
    ),
    "max_norm": (lambda: rf.clip_grad_norm({}, -1), ValueError, "max_norm must be a number of at least 0"),
    "norm_type": (
        lambda: rf.clip_grad_norm({}, 1, 0),
        ValueError,
        "norm_type must be a positive number or inf, got 0.0",
    ),
    "clip_value": (lambda: rf.clip_grad_value({}, "1"), TypeError, "clip_value must be a number, got '1'"),
    "clip read-only": (
        lambda: rf.clip_grad_norm({"a": READ_ONLY}, 1),
        ValueError,
        "grads['a'] is read-only and cannot be changed in place",
    ),
    "clip type": (lambda: rf.clip_grad_value(3, 1), TypeError, "grads must be a mapping from names to arrays"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_say_what_is_wrong(case: str) -> None:
    call, error, message = ERRORS[case]
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_a_refused_step_updates_nothing() -> None:
    params = arrays(0)
    optimiser = rf.optim.Adam(params)
    before = copy.deepcopy(params)
    with pytest.raises(ValueError, match="grads"):
        optimiser.step({**arrays(1), "empty": np.zeros(1)})
    for key in params:
        np.testing.assert_array_equal(params[key], before[key])
    assert all(entry == {"step": 0} for entry in optimiser.state_dict()["state"].values())


def test_a_refused_state_loads_nothing() -> None:
    optimiser = rf.optim.Adam(arrays(0))
    optimiser.step(arrays(1))
    saved = optimiser.state_dict()
    for break_it, message in (
        (lambda s: s["state"]["bias"].update(step=-1), "state_dict step of bias must be at least 0, got -1"),
        (lambda s: s["state"]["bias"].pop("exp_avg"), "state_dict has entries ['exp_avg_sq', 'step'] for bias"),
        (lambda s: s["state"]["bias"].update(exp_avg=np.zeros(4)), "exp_avg of bias must have shape (5,), got (4,)"),
        (lambda s: s["options"].update(eps=-1), "eps must be a finite number of at least 0"),
    ):
        broken = copy.deepcopy(saved)
        broken["options"]["lr"] = 0.7
        break_it(broken)
        with pytest.raises(ValueError, match=re.escape(message)):
            optimiser.load_state_dict(broken)
        assert optimiser.lr == 1e-3
