"""The options of the layers: which values each takes, and which of them exclude each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import _check
from .activation import Activation, activation

if TYPE_CHECKING:
    from ._config import Config


def checked(config: Config) -> dict[str, Any]:
    """The options of a layer by name, as Python's own types; ValueError, TypeError for what is none."""
    output = config.output_activation
    return {
        "activation": activations("activation", config.activation, config.bidirectional),
        "recurrent_activation": activations("recurrent_activation", config.recurrent_activation, config.bidirectional),
        "output_activation": None if output is None else activations("output_activation", output, config.bidirectional),
        "proj_size": _check.size("proj_size", config.proj_size, 0),
        "forget_bias": _check.finite("forget_bias", config.forget_bias),
        "clip": None if config.clip is None else _check.positive("clip", config.clip),
        "zoneout": zoneout(config.zoneout, config.cell == "lstm"),
        "grad_clip": None if config.grad_clip is None else _check.positive("grad_clip", config.grad_clip),
        "recompute": None if config.recompute is None else _check.size("recompute", config.recompute, 1),
        **{name: _check.flag(name, getattr(config, name)) for name in FLAGS},
        **{name: _check.probability(name, getattr(config, name)) for name in ("recurrent_dropout", "input_dropout")},
    }


FLAGS = ("reset_after", "peepholes", "coupled_gates", "layer_norm")


def activations(name: str, value: Any, bidirectional: bool) -> Activation | tuple[Activation, Activation]:
    """One for both directions, or a pair of a bidirectional layer's two."""
    if not isinstance(value, (tuple, list)):
        return activation(name, value)
    forth, back = _check.direction_pair(name, value, bidirectional)
    pair = activation(f"{name}[0]", forth), activation(f"{name}[1]", back)
    return pair if pair[0] != pair[1] else pair[0]


def rnn_activation(nonlinearity: Any, value: Any) -> Any:
    """An RNN's, which goes by two names."""
    if nonlinearity is None:
        return "tanh" if value is None else value
    _check.excluded("nonlinearity", "activation", value is not None)
    return _check.choice("nonlinearity", nonlinearity, ("tanh", "relu"))


def zoneout(value: Any, lstm: bool) -> float | tuple[float, float]:
    if not isinstance(value, (tuple, list)):
        return _check.probability("zoneout", value)
    h, c = _check.zoneout_pair(value, lstm)
    return _check.probability("zoneout[0]", h), _check.probability("zoneout[1]", c)


def shown(value: Any) -> Any:
    """In a repr: the name alone of an activation that has no parameters."""
    if isinstance(value, tuple):
        return tuple(map(shown, value))
    if isinstance(value, Activation) and value.alpha is None and value.beta is None:
        return value.name
    return value


# --- pairs ---

Test = Callable[["Config"], bool]
#: What is called an option here, and whether a layer has it.
USED: dict[str, Test] = {
    "proj_size": lambda config: config.proj_size > 0,
    "a tuple of hidden sizes": lambda config: isinstance(config.hidden_size, tuple),
    "zoneout": lambda config: any(config.zoneout_rates()),
    "layer_norm": lambda config: config.layer_norm,
    "reset_after=False": lambda config: not config.reset_after,
    "peepholes": lambda config: config.peepholes,
    "coupled_gates": lambda config: config.coupled_gates,
    "forget_bias": lambda config: config.forget_bias != 0,
    "recompute": lambda config: config.recompute is not None,
    "recurrent_dropout": lambda config: config.recurrent_dropout > 0,
}
#: Two options, and why no layer has both.
REFUSED = [
    ("proj_size", "a tuple of hidden sizes", "all layers are projected to the same size"),
    ("proj_size", "zoneout", "h has not the size of c then"),
    ("proj_size", "layer_norm", "which of both comes first is not agreed on"),
    ("layer_norm", "reset_after=False", "U h is normalised as a whole, and here it is two products"),
    ("layer_norm", "peepholes", "whether the peepholes are normalised is not agreed on"),
    ("layer_norm", "coupled_gates", "the rows of the forget gate would be part of the mean and variance"),
    ("layer_norm", "zoneout", "what is kept, c or its normalised form, is not agreed on"),
    ("forget_bias", "coupled_gates", "f has no bias of its own"),
    ("recompute", "reset_after=False", "a segment is computed again as one product, and here it is two"),
    ("recompute", "layer_norm", "the statistics of every row would have to be kept"),
    ("recompute", "recurrent_dropout", "a segment is computed again from the outputs, which are not masked"),
]


def check_pairs(config: Config) -> None:
    for first, second, reason in REFUSED:
        _check.excluded(first, second, USED[first](config) and USED[second](config), reason)
    if config.proj_size:
        _check.less_than("proj_size", config.proj_size, "hidden_size", config.hidden_size)
    if config.forget_bias:
        _check.needs("forget_bias", "bias=True", config.bias)
