"""rnnfast.keras against layers that Keras itself made and ran (keras_cases.py), and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import programs
import rnnfast as rf
from oracle import assert_close, tolerances
from rnnfast.keras import activation, from_config, from_weights, to_config, to_weights

with np.load(Path(__file__).with_name("keras_cases.npz")) as file:
    DATA = dict(file)
CONFIGS = json.loads(str(DATA.pop("configs")))["layers"]


def weights_of(number: int) -> list[Any]:
    return [DATA[f"{number}/w{k}"] for k in range(6) if f"{number}/w{k}" in DATA]


def drawn(*shapes: tuple[int, ...], seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [rng.uniform(-0.6, 0.6, shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize("number", range(len(CONFIGS)))
def test_a_layer_gives_what_keras_gave(isa: str, number: int) -> None:
    layer = from_config(CONFIGS[number], weights_of(number), keras_version=3)
    x, y = DATA[f"{number}/x"], DATA[f"{number}/y"]
    mask = {"mask": DATA[f"{number}/mask"], "masked_output": "carry"} if f"{number}/mask" in DATA else {}
    allowed = 2 * tolerances("float32", 4, 5, 1, 1, 1).output * max(1.0, float(np.abs(y).max()))  # Keras errs too
    for run in (layer, layer.freeze()):
        assert_close("y", run(x, **mask)[0], y, allowed)


@pytest.mark.parametrize("number", range(len(CONFIGS)))
def test_weights_and_options_come_back(number: int) -> None:
    layer = from_config(CONFIGS[number], weights_of(number), keras_version=3)
    for got, want in zip(to_weights(layer), weights_of(number), strict=True):
        np.testing.assert_array_equal(got, want)
    again = from_config(to_config(layer), to_weights(layer), keras_version=3)
    assert repr(again) == repr(layer)
    inner = CONFIGS[number]["config"].get("layer", CONFIGS[number])
    described = to_config(layer)
    assert described["class_name"] == CONFIGS[number]["class_name"]
    own = described["config"].get("layer", described)["config"]
    assert own == {name: inner["config"][name] for name in own}


def test_trained_biases_of_both_kinds_are_added_where_keras_has_one() -> None:
    layer = rf.LSTM(4, 5, seed=0)
    bias = to_weights(layer)[2]
    np.testing.assert_array_equal(bias, layer.bias_ih_l0 + layer.bias_hh_l0)
    x = np.random.default_rng(0).normal(size=(3, 6, 4)).astype(np.float32)
    again = from_weights("LSTM", to_weights(layer))
    assert_close(
        "y", again(x)[0], layer(x.swapaxes(0, 1))[0].swapaxes(0, 1), tolerances("float32", 4, 5, 1, 1, 1).output
    )


def test_one_bias_of_a_gru_leaves_the_recurrent_one_0() -> None:
    layer = from_weights("GRU", drawn((4, 15), (5, 15), (15,)), reset_after=False)
    assert isinstance(layer, rf.GRU)
    assert not layer.bias_hh_l0.any()
    assert layer.bias_ih_l0.all()


def test_layers_that_stand_on_each_other_become_one() -> None:
    lower, upper = drawn((4, 20), (5, 20), (20,)), drawn((5, 20), (5, 20), (20,), seed=1)
    stack = from_weights("LSTM", [*lower, *upper], num_layers=2)
    x = np.random.default_rng(0).normal(size=(3, 6, 4)).astype(np.float32)
    first = from_weights("LSTM", lower)(x)[0]
    np.testing.assert_array_equal(stack(x)[0], from_weights("LSTM", upper)(first)[0])
    for got, want in zip(to_weights(stack), [*lower, *upper], strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_the_cudnn_form_of_old_files_is_the_same_layer(name: str) -> None:
    gates = {"LSTM": 4, "GRU": 3}[name]
    kernel, recurrent, bias = drawn((4, gates * 5), (5, gates * 5), (2, gates * 5))
    plain = [kernel, recurrent, bias if name == "GRU" else bias[0] + bias[1]]

    def stored(array: Any) -> Any:
        """Each gate's block, transposed, in the memory of the block."""
        blocks = np.hsplit(array, gates)
        return np.hstack([np.ascontiguousarray(block.T).reshape(block.shape) for block in blocks])

    old = from_weights(f"CuDNN{name}", [stored(kernel), stored(recurrent), bias.ravel()])
    for got, want in zip(to_weights(old), plain, strict=True):
        np.testing.assert_array_equal(got, want)


def test_both_hard_sigmoids_and_no_bare_name() -> None:
    assert activation("hard_sigmoid", 2) == rf.Activation("hard_sigmoid", alpha=0.2, beta=0.5)
    assert activation("hard_sigmoid", 3) == rf.Activation("hard_sigmoid", alpha=1 / 6, beta=0.5)
    own = rf.Activation("hard_sigmoid", alpha=0.25, beta=0.5)
    assert activation(own) is own
    with pytest.raises(ValueError, match="hard_sigmoid is 0.2 x \\+ 0.5 in Keras 2 and x/6 \\+ 0.5 in Keras 3"):
        activation("hard_sigmoid")
    layer = from_weights("LSTM", drawn((4, 20), (5, 20), (20,)), recurrent_activation="hard_sigmoid", keras_version=2)
    assert to_config(layer, keras_version=2)["config"]["recurrent_activation"] == "hard_sigmoid"
    with pytest.raises(ValueError, match="Keras 3 has no name for Activation\\('hard_sigmoid', alpha=0.2, beta=0.5\\)"):
        to_config(layer, keras_version=3)


def test_options_of_keras_are_kept() -> None:
    config = {
        "units": 5,
        "dropout": 0.25,
        "recurrent_dropout": 0.5,
        "activation": "tanh",
        "stateful": True,
        "time_major": True,
    }
    layer = from_config(config, drawn((4, 15), (5, 15), (15,)), class_name="GRU", seed=3)
    assert (layer.input_dropout, layer.recurrent_dropout, layer.batch_first) == (0.25, 0.5, False)
    assert not layer.reset_after  # a configuration without the option is older than it
    assert layer.dtype == np.float32
    assert from_config(config, drawn((4, 15), (5, 15), (15,)), class_name="GRU", dtype="float64").dtype == np.float64


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("Dense", drawn((4, 5))), {}, "class_name must be one of"),
        (("LSTM", drawn((4, 20), (5, 20))), {}, "must be 3 arrays, got 2"),
        (("LSTM", drawn((4, 20), (5, 20), (20,))), {"use_bias": False}, "must be 2 arrays, got 3"),
        (("LSTM", drawn((4, 20), (5, 20), (20,))), {"num_layers": 0}, "num_layers=0"),
        (("LSTM", drawn((4, 15), (5, 15), (15,))), {}, r"recurrent kernel must be \[H, 4 \* H\], got \[5, 15\]"),
        (("LSTM", drawn((4, 15), (5, 20), (20,))), {}, r"kernel must be \[I, 20\], got \[4, 15\]"),
        (
            ("GRU", drawn((4, 15), (5, 15), (15,))),
            {},
            r"bias of a GRU with reset_after=True must be \[2, 15\], got \[15\]",
        ),
        (("GRU", drawn((4, 15), (5, 15), (2, 15))), {"reset_after": False}, r"must be \[15\], got \[2, 15\]"),
        (("GRU", drawn((4, 15), (5, 15), (2, 15))), {"activation": "gelu"}, "got 'gelu'"),
        (("GRU", drawn((4, 15), (5, 15), (2, 15))), {"keras_version": 4}, "keras_version must be 2 or 3, got 4"),
        (("CuDNNGRU", drawn((4, 15), (5, 15))), {"use_bias": False}, "a CuDNN layer has biases"),
        (
            ("GRU", drawn((4, 15), (5, 15), (2, 15)) * 2),
            {"bidirectional": True, "go_backwards": True},
            "go_backwards is for one layer and direction",
        ),
    ],
)
def test_wrong_weights_and_options_are_refused(arguments: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_weights(*arguments, **options)


def test_wrong_configurations_are_refused() -> None:
    weights = drawn((4, 20), (5, 20), (20,))
    with pytest.raises(ValueError, match="class_name must be given"):
        from_config({"units": 5}, weights)
    with pytest.raises(ValueError, match=r"units=6, but weights\[1\] has shape \[5, 20\]"):
        from_config({"units": 6}, weights, class_name="LSTM")
    with pytest.raises(ValueError, match=r"options that are not known here: \['peephole'\]"):
        from_config({"units": 5, "peephole": True}, weights, class_name="LSTM")
    inner = {"class_name": "LSTM", "config": {"units": 5}}
    with pytest.raises(ValueError, match="merge_mode of a Bidirectional must be 'concat', got 'sum'"):
        from_config({"class_name": "Bidirectional", "config": {"layer": inner, "merge_mode": "sum"}}, weights * 2)
    other = {"class_name": "LSTM", "config": {"units": 5, "activation": "relu"}}
    with pytest.raises(ValueError, match="both layers of a Bidirectional must be alike"):
        from_config({"class_name": "Bidirectional", "config": {"layer": inner, "backward_layer": other}}, weights * 2)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (rf.LSTM(4, 5, proj_size=2), "proj_size"),
        (rf.LSTM(4, 5, peepholes=True, clip=3.0), "peepholes, clip"),
        (rf.LSTM(4, 5, coupled_gates=True), "coupled_gates"),
        (rf.LSTM(4, 5, output_activation="relu"), "output_activation"),
        (rf.LSTM(4, 5, zoneout=(0.1, 0.0)), "zoneout"),
        (rf.GRU(4, 5, layer_norm=True), "layer_norm"),
        (rf.GRU(4, (5, 6), 2), "a tuple of hidden sizes"),
        (rf.GRU(4, 5, bidirectional=True, activation=("tanh", "relu")), "an activation for each direction"),
        (rf.Reversed(rf.GRU(4, 5)), "scan_order=True"),
    ],
)
def test_what_keras_does_not_have_is_refused(layer: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_weights(layer)


def test_other_things_are_no_layers() -> None:
    with pytest.raises(TypeError, match="layer must be an RNN, LSTM or GRU"):
        to_weights([1, 2])  # type: ignore[arg-type]


def test_neither_keras_nor_tensorflow_is_imported() -> None:
    code = "import sys, rnnfast.keras; sys.exit(any(name in sys.modules for name in ('keras', 'tensorflow', 'torch')))"
    done = programs.run_code(code)
    assert done.returncode == 0, done.stderr
