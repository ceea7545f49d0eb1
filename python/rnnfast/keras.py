"""Weights and options of Keras's layers SimpleRNN, LSTM, GRU, Bidirectional, to rnnfast's layers and back.

Needs neither keras nor tensorflow: weights are lists of arrays as `keras_layer.get_weights()` returns them and
`set_weights` takes them, options are dicts as in `keras_layer.get_config()` and in the files that Keras writes.

    import rnnfast.keras

    layer = rnnfast.keras.from_config(saved["config"], weights, class_name="LSTM", keras_version=3)
    layer = rnnfast.keras.from_weights("GRU", weights, reset_after=False, recurrent_activation="sigmoid")
    keras_layer.set_weights(rnnfast.keras.to_weights(layer))

Which form goes where: docs/keras.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from . import _check
from ._check import Array
from .activation import Activation
from .layers import GRU, LSTM, RNN, Layer
from .reversed import Reversed

__all__ = ["activation", "from_config", "from_weights", "to_config", "to_weights"]

AnyLayer: TypeAlias = Layer[Any] | Reversed

CLASSES: dict[str, Callable[..., Layer[Any]]] = {"SimpleRNN": RNN, "LSTM": LSTM, "GRU": GRU}
CUDNN = {"CuDNNLSTM": "LSTM", "CuDNNGRU": "GRU"}  # classes of Keras 2 before tensorflow 2
#: Keras's blocks of columns in the order of our rows, and back: i f c o is ours already, z r h <-> r z n.
BLOCKS = {"SimpleRNN": (0,), "LSTM": (0, 1, 2, 3), "GRU": (1, 0, 2)}

HARD_SIGMOIDS = {
    2: Activation("hard_sigmoid", alpha=0.2, beta=0.5),
    3: Activation("hard_sigmoid", alpha=1 / 6, beta=0.5),
}
NAMED = {
    "tanh": Activation("tanh"),
    "sigmoid": Activation("sigmoid"),
    "relu": Activation("relu"),
    "linear": Activation("affine"),
    "leaky_relu": Activation("leaky_relu", alpha=0.2),
    "elu": Activation("elu"),
    "softsign": Activation("softsign"),
    "softplus": Activation("softplus"),
}


def activation(name: Any, keras_version: int | None = None) -> Activation:
    """What a name means in Keras; None is "linear".

    keras_version: 2 or 3; only "hard_sigmoid" needs it, which is 0.2 x + 0.5 in Keras 2 and x/6 + 0.5 in Keras 3.

    Raises ValueError for functions that no layer here has, and for "hard_sigmoid" without a version.
    """
    if isinstance(name, Activation):
        return name
    _check_version(keras_version)
    if name == "hard_sigmoid":
        if keras_version is None:
            raise ValueError(
                "hard_sigmoid is 0.2 x + 0.5 in Keras 2 and x/6 + 0.5 in Keras 3: give keras_version, or "
                "rnnfast.Activation('hard_sigmoid', alpha=..., beta=...)"
            )
        return HARD_SIGMOIDS[keras_version]
    if name is None:
        name = "linear"
    if not isinstance(name, str) or name not in NAMED:
        known = ", ".join([*NAMED, "hard_sigmoid"])
        raise ValueError(f"an activation of Keras must be one of {known}, or a rnnfast.Activation, got {name!r}")
    return NAMED[name]


def _check_version(keras_version: Any) -> None:
    if keras_version not in (None, *HARD_SIGMOIDS):
        raise ValueError(f"keras_version must be 2 or 3, got {keras_version!r}")


# --- from Keras ---


def from_weights(
    class_name: str,
    weights: Sequence[Any],
    *,
    activation: Any = "tanh",
    recurrent_activation: Any = "sigmoid",
    use_bias: bool = True,
    reset_after: bool = True,
    go_backwards: bool = False,
    bidirectional: bool = False,
    num_layers: int = 1,
    keras_version: int | None = None,
    **options: Any,
) -> AnyLayer:
    """A layer with the weights of one of Keras, or of several that stand on each other.

    class_name: "SimpleRNN", "LSTM", "GRU", or the older "CuDNNLSTM", "CuDNNGRU".
    weights: [kernel, recurrent_kernel, bias], without the bias where use_bias is False; with bidirectional those of the
        forward layer and then those of the backward one. Kernels are [I, G * H] and [H, G * H]; the bias is [G * H], of
        a GRU with reset_after [2, 3 * H]. Of a CuDNN class, each gate's block is stored transposed, and the bias is
        [2 * G * H].
    num_layers: of so many layers with the same units and options, in `weights` one after the other.
    activation, recurrent_activation: Keras's names, or `rnnfast.Activation`; `activation` of this module reads them.
    reset_after: a GRU's; False was the default before tensorflow 2.
    go_backwards: gives a `Reversed` layer whose output is in the order of the scan, as Keras's is.
    keras_version: 2 or 3, needed for "hard_sigmoid".
    options: further arguments of the layer, such as input_dropout, recurrent_dropout, dtype, seed.

    The layer is batch_first, and of the weights' dtype. Raises ValueError for wrong numbers and shapes of weights and
    for what no layer here can do, TypeError for wrong types.
    """
    cell, cudnn = CUDNN.get(class_name, class_name), class_name in CUDNN
    _check.choice("class_name", cell, tuple(CLASSES))
    if go_backwards and (bidirectional or num_layers != 1):
        raise ValueError("go_backwards is for one layer and direction: not with bidirectional or num_layers")
    arrays = [_check.as_array(f"weights[{k}]", array) for k, array in enumerate(weights)]
    count, suffixes = 3 if use_bias else 2, _suffixes(num_layers, bidirectional)
    if not suffixes or len(arrays) != count * len(suffixes):
        raise ValueError(
            f"weights of a {class_name} with use_bias={use_bias}, bidirectional={bidirectional}, "
            f"num_layers={num_layers} must be {count * len(suffixes)} arrays, got {len(arrays)}"
        )
    parts = [arrays[k : k + count] for k in range(0, len(arrays), count)]
    rows = [
        _parameters(cell, _from_cudnn(cell, part) if cudnn else part, cell == "GRU" and reset_after) for part in parts
    ]
    own = _functions(cell, activation, recurrent_activation, keras_version)
    if cell == "GRU":
        own["reset_after"] = reset_after
    layer = CLASSES[cell](
        rows[0]["weight_ih"].shape[1], rows[0]["weight_hh"].shape[1], num_layers, bias=use_bias,
        bidirectional=bidirectional,
        **{"batch_first": True, "dtype": arrays[0].dtype, "seed": 0, **own, **options},
    )  # fmt: skip
    for suffix, values in zip(suffixes, rows, strict=True):
        layer.parameters.update({name + suffix: value for name, value in values.items()})
    return Reversed(layer, scan_order=True) if go_backwards else layer


def _suffixes(num_layers: int, bidirectional: bool) -> list[str]:
    """How the names of parameters end, in the order of Keras's weights."""
    ends = ("", "_reverse") if bidirectional else ("",)
    return [f"_l{level}{end}" for level in range(num_layers) for end in ends]


def _functions(cell: str, own: Any, recurrent: Any, keras_version: int | None) -> dict[str, Any]:
    read: Callable[[Any], Activation] = lambda value: activation(value, keras_version)  # noqa: E731
    functions = {"activation": read(own)}
    return functions if cell == "SimpleRNN" else functions | {"recurrent_activation": read(recurrent)}


def _parameters(cell: str, part: Sequence[Array], two_biases: bool) -> dict[str, Array]:
    """Of one direction, by our names."""
    kernel, recurrent = part[:2]
    gates = len(BLOCKS[cell])
    if recurrent.ndim != 2 or recurrent.shape[1] != gates * recurrent.shape[0]:
        raise ValueError(f"the recurrent kernel must be [H, {gates} * H], got {list(recurrent.shape)}")
    H = recurrent.shape[0]
    if kernel.ndim != 2 or kernel.shape[1] != gates * H:
        raise ValueError(f"the kernel must be [I, {gates * H}], got {list(kernel.shape)}")
    values = {"weight_ih": _in_order(cell, kernel.T), "weight_hh": _in_order(cell, recurrent.T)}
    if len(part) == 3:
        expected = (2, gates * H) if two_biases else (gates * H,)
        if part[2].shape != expected:
            which = f" with reset_after={two_biases}" if cell == "GRU" else ""
            raise ValueError(f"the bias of a {cell}{which} must be {list(expected)}, got {list(part[2].shape)}")
        # One bias is that of the input; the recurrent one stays 0.
        both = part[2] if two_biases else (part[2], np.zeros_like(part[2]))
        values["bias_ih"], values["bias_hh"] = (_in_order(cell, bias) for bias in both)
    return values


def _in_order(cell: str, array: Array) -> Array:
    """Blocks of rows from Keras's order to ours; each order is its own inverse, so also back."""
    blocks = np.split(array, len(BLOCKS[cell]))
    return np.concatenate([blocks[k] for k in BLOCKS[cell]])


def _from_cudnn(cell: str, part: Sequence[Array]) -> list[Array]:
    """The form of LSTM and GRU: cuDNN has each gate's block as [H, I] and [H, H] in the place of [I, H] and [H, H]."""
    gates, kernels = len(BLOCKS[cell]), []
    for kernel in part[:2]:
        if kernel.ndim != 2 or kernel.shape[1] % gates:
            raise ValueError(f"a kernel must be [I, {gates} * H], got {list(kernel.shape)}")
        H = kernel.shape[1] // gates
        kernels.append(np.hstack([block.reshape(H, -1).T for block in np.hsplit(kernel, gates)]))
    if len(part) != 3:
        raise ValueError("a CuDNN layer has biases: use_bias must be True")
    halves = part[2].reshape(2, -1)
    return [*kernels, halves if cell == "GRU" else halves.sum(axis=0)]


#: Options of Keras that say how a layer is called or trained there, not what it computes.
WITHOUT_EFFECT = {
    "name", "trainable", "dtype", "units", "return_sequences", "return_state", "stateful", "unroll", "implementation",
    "zero_output_for_mask", "batch_input_shape", "unit_forget_bias", "build_config", "input_shape", "batch_shape",
    "kernel_initializer", "recurrent_initializer", "bias_initializer",
    "kernel_regularizer", "recurrent_regularizer", "bias_regularizer", "activity_regularizer",
    "kernel_constraint", "recurrent_constraint", "bias_constraint", "seed", "use_cudnn",
}  # fmt: skip
PASSED_ON = {"activation", "recurrent_activation", "use_bias", "reset_after", "go_backwards"}


def from_config(
    config: Mapping[str, Any],
    weights: Sequence[Any],
    *,
    class_name: str | None = None,
    keras_version: int | None = None,
    **options: Any,
) -> AnyLayer:
    """A layer from what Keras wrote down of one: its configuration and its weights.

    config: `get_config()` of a layer, with its class_name beside it; or {"class_name": ..., "config": ...} as in the
        files of Keras, also of a Bidirectional with merge_mode "concat".
    keras_version: 2 or 3: of the Keras that made the configuration. It settles "hard_sigmoid", and what an option that
        is not there was: GRU's reset_after.
    weights, options: as of `from_weights`. Keras's dropout is input_dropout here.

    return_sequences, return_state, stateful, initializers, regularizers and the like do not change the layer;
    time_major makes it [T, B, I].

    Raises ValueError for an option whose effect a layer here does not have, and as `from_weights`.
    """
    if "class_name" in config and "config" in config:
        class_name, config = config["class_name"], config["config"]
    if class_name is None:
        raise ValueError("class_name must be given where config is what get_config() returned")
    if class_name == "Bidirectional":
        return _from_bidirectional(config, weights, keras_version, options)
    if units := config.get("units"):
        _check_units(units, weights)
    return from_weights(class_name, weights, keras_version=keras_version, **_options(class_name, config), **options)


def _options(class_name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Of `from_weights`."""
    cell = CUDNN.get(class_name, class_name)
    given = dict(config)
    renamed = {"dropout": "input_dropout", "recurrent_dropout": "recurrent_dropout"}
    options = {ours: given.pop(name) for name, ours in renamed.items() if name in given}
    options |= {name: given.pop(name) for name in PASSED_ON if name in given}
    if given.pop("time_major", False):
        options["batch_first"] = False
    if cell == "GRU" and class_name not in CUDNN and "reset_after" not in options:
        options["reset_after"] = False  # configurations without it are older than it
    unknown = sorted(set(given) - WITHOUT_EFFECT)
    if unknown:
        raise ValueError(f"config of this {class_name} has options that are not known here: {unknown}")
    return options


def _check_units(units: int, weights: Sequence[Any]) -> None:
    if len(weights) > 1 and np.shape(weights[1])[:1] != (units,):
        raise ValueError(f"config says units={units}, but weights[1] has shape {list(np.shape(weights[1]))}")


def _from_bidirectional(
    config: Mapping[str, Any], weights: Sequence[Any], keras_version: int | None, options: dict[str, Any]
) -> AnyLayer:
    if config.get("merge_mode", "concat") != "concat":
        raise ValueError(f"merge_mode of a Bidirectional must be 'concat', got {config['merge_mode']!r}")
    inner = config["layer"]
    forth = _options(inner["class_name"], inner["config"])
    if forth.pop("go_backwards", False):
        raise ValueError("the first layer of a Bidirectional must not have go_backwards")
    other = config.get("backward_layer")
    if other is not None:
        back = _options(other["class_name"], other["config"])
        back.pop("go_backwards", None)
        if other["class_name"] != inner["class_name"] or back != forth:
            raise ValueError(f"both layers of a Bidirectional must be alike, got {forth} and {back}")
    class_name = inner["class_name"]
    return from_weights(class_name, weights, bidirectional=True, keras_version=keras_version, **forth, **options)


# --- to Keras ---


def to_weights(layer: AnyLayer) -> list[Array]:
    """Copies of a layer's weights as `set_weights` of Keras's SimpleRNN, LSTM, GRU or Bidirectional takes them; with
    num_layers above 1, those of the layers one after the other.

    The two biases are added where Keras has one.

    Raises ValueError for a layer that Keras has no equal of: projections, peepholes and so on.
    """
    inner, cell = _convertible(layer)
    two_biases = cell == "GRU" and inner.reset_after
    arrays = []
    for suffix in _suffixes(inner.num_layers, inner.bidirectional):
        part = {
            name: _in_order(cell, inner.parameters[name + suffix])
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            if name + suffix in inner.parameters
        }
        arrays += [part["weight_ih"].T.copy(), part["weight_hh"].T.copy()]
        if inner.bias:
            both = np.stack([part["bias_ih"], part["bias_hh"]])
            arrays.append(both if two_biases else both.sum(axis=0))
    return arrays


def to_config(layer: AnyLayer, keras_version: int = 3) -> dict[str, Any]:
    """{"class_name": ..., "config": ...} of a layer of Keras that computes the same, with return_sequences; with
    num_layers above 1, of each of the layers.

    Raises ValueError for a layer, or an activation, that this version of Keras has no equal of.
    """
    if keras_version not in HARD_SIGMOIDS:
        raise ValueError(f"keras_version must be 2 or 3, got {keras_version!r}")
    inner, cell = _convertible(layer)
    config: dict[str, Any] = {
        "units": inner.hidden_size, "activation": _name(inner.activation, keras_version), "use_bias": inner.bias,
        "dropout": inner.input_dropout, "recurrent_dropout": inner.recurrent_dropout, "return_sequences": True,
        "go_backwards": isinstance(layer, Reversed),
    }  # fmt: skip
    if cell != "SimpleRNN":
        config["recurrent_activation"] = _name(inner.recurrent_activation, keras_version)
    if cell == "GRU":
        config["reset_after"] = inner.reset_after
    described = {"class_name": cell, "config": config}
    if not inner.bidirectional:
        return described
    return {"class_name": "Bidirectional", "config": {"layer": described, "merge_mode": "concat"}}


def _name(function: Any, keras_version: int) -> str:
    names = {known: name for name, known in NAMED.items()} | {HARD_SIGMOIDS[keras_version]: "hard_sigmoid"}
    if function not in names:
        raise ValueError(f"Keras {keras_version} has no name for {function}")
    return names[function]


def _convertible(layer: Any) -> tuple[Layer[Any], str]:
    """The layer itself, and the name of Keras's class."""
    inner = layer.layer if isinstance(layer, Reversed) else layer
    names = {ours: name for name, ours in CLASSES.items()}
    if type(inner) not in names:
        raise TypeError(f"layer must be an RNN, LSTM or GRU, or a Reversed of one, got {type(inner).__name__}")
    if isinstance(layer, Reversed) and not layer.scan_order:
        raise ValueError("Keras's go_backwards gives the output in the order of the scan: make it with scan_order=True")
    by_direction = any(isinstance(value, tuple) for value in (inner.activation, inner.recurrent_activation))
    refused = {
        "proj_size": inner.proj_size > 0,
        "peepholes": inner.peepholes,
        "coupled_gates": inner.coupled_gates,
        "clip": inner.clip is not None,
        "layer_norm": inner.layer_norm,
        "zoneout": inner.zoneout not in (0.0, (0.0, 0.0)),
        "output_activation": inner.output_activation not in (None, inner.activation),
        "a tuple of hidden sizes": isinstance(inner.hidden_size, tuple),
        "an activation for each direction": by_direction,
    }
    found = [name for name, there in refused.items() if there]
    if found:
        raise ValueError(f"a layer of Keras has no {', '.join(found)}: {inner!r}")
    return inner, names[type(inner)]
