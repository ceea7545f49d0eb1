"""From what the caller gives to the arrays that the scans read, with messages that name the argument."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..activation import Activation
from .activations import Array, Function
from .cells import PARAMETERS, Cell, Layer, States
from .scan import Noise, Rows

Given: TypeAlias = "str | Activation | tuple[str | Activation, str | Activation] | None"


def suffix(level: int, direction: int) -> str:
    """How the names of the parameters of a layer and direction end."""
    return f"_l{level}" + ("_reverse" if direction == 1 else "")


def read_array(name: str, value: ArrayLike, shape: tuple[int, ...]) -> Array:
    array = np.array(value, dtype=np.float64)  # a copy, so that a tape does not depend on what the caller does next
    if array.shape != shape:
        raise ValueError(f"{name}: expected shape {list(shape)}, got {list(array.shape)}")
    return array


def read_all(name: str, values: Sequence[ArrayLike], shapes: Sequence[tuple[int, ...]]) -> list[Array]:
    if len(values) != len(shapes):
        raise ValueError(f"{name}: expected {len(shapes)} arrays, got {len(values)}")
    return [
        read_array(f"{name}[{k}]", value, shape) for k, (value, shape) in enumerate(zip(values, shapes, strict=True))
    ]


# ---- layers ----


@dataclass(frozen=True)
class Functions:
    """Activations by direction."""

    gate: tuple[Function, Function]
    candidate: tuple[Function, Function]
    output: tuple[Function, Function]

    @staticmethod
    def read(cell: str, activation: Given, recurrent: Given, output: Given, clip: float | None) -> Functions:
        bound = np.inf if clip is None else clip

        def pair(value: Given) -> tuple[Function, Function]:
            both = value if isinstance(value, tuple) else (value, value)
            forth, back = (Activation(one) if isinstance(one, str) else one for one in both)
            assert forth is not None and back is not None
            return Function(forth, bound), Function(back, bound)

        candidate = pair(activation or "tanh")
        gate = candidate if cell == "rnn" else pair(recurrent or "sigmoid")
        return Functions(gate, candidate, candidate if output is None else pair(output))


def read_parameters(
    cell: Cell,
    parameters: Mapping[str, ArrayLike],
    input_size: int,
    num_layers: int,
    directions: int,
    functions: Functions,
    coupled_gates: bool,
) -> list[Layer]:
    if num_layers < 1:
        raise ValueError(f"num_layers: expected at least 1, got {num_layers}")
    ends = [suffix(level, direction) for level in range(num_layers) for direction in range(directions)]
    lstm = len(cell.states) == 2
    kinds = PARAMETERS if lstm else [kind for kind in PARAMETERS if kind not in ("weight_hr", "weight_ch")]
    required = ["weight_ih", "weight_hh"]
    if "weight_ln_ih_l0" in parameters:
        required += ["weight_ln_ih", "weight_ln_hh"] + (["weight_ln_c", "bias_ln_c"] if lstm else [])
    required += [kind for kind in ("weight_hr", "weight_ch") if lstm and kind + "_l0" in parameters]
    missing = {kind + end for kind in required for end in ends} - set(parameters)
    unknown = set(parameters) - {kind + end for kind in kinds for end in ends}
    if missing or unknown:  # unknown: refused, because a misspelt bias would otherwise count as absent
        raise ValueError(f"parameters: missing {sorted(missing)}, unknown {sorted(unknown)}")

    layers: list[Layer] = []
    for k, end in enumerate(ends):
        weight_hh = np.asarray(parameters["weight_hh" + end])
        if weight_hh.ndim != 2:
            raise ValueError(f"weight_hh{end}: expected shape [G*H, H], got {list(weight_hh.shape)}")
        hidden = weight_hh.shape[0] // cell.gates if "weight_hr" in required else weight_hh.shape[1]
        rows, width = cell.gates * hidden, weight_hh.shape[1]
        above = k >= directions
        columns = directions * layers[k - directions - k % directions].weight_hh.shape[1] if above else input_size
        shapes: dict[str, tuple[int, ...]] = {
            "weight_ih": (rows, columns), "weight_hh": (rows, width), "bias_ih": (rows,), "bias_hh": (rows,),
            "weight_hr": (width, hidden), "weight_ch": (3, hidden), "weight_ln_ih": (rows,), "weight_ln_hh": (rows,),
            "weight_ln_c": (hidden,), "bias_ln_c": (hidden,),
        }  # fmt: skip
        arrays = {"bias_ih": np.zeros(rows), "bias_hh": np.zeros(rows)}
        for kind, shape in shapes.items():
            if kind + end in parameters:
                arrays[kind] = read_array(kind + end, parameters[kind + end], shape)
        direction = k % directions
        gate, candidate, output = (pair[direction] for pair in (functions.gate, functions.candidate, functions.output))
        layers.append(Layer(**arrays, gate=gate, candidate=candidate, output=output, coupled_gates=coupled_gates))
    return layers


def read_states(name: str, layers: list[Layer], directions: int, cell: Cell, value: Any, batch: int) -> list[States]:
    """[L*D] states, from one array for a cell with one state, a sequence for a cell with more; None, whole or in part,
    is zeros."""
    if value is None:
        parts = [None] * len(cell.states)
    elif len(cell.states) == 1:
        parts = [value]
    elif isinstance(value, (tuple, list)) and len(value) == len(cell.states):
        parts = list(value)
    else:
        raise ValueError(f"{name}: expected a tuple ({', '.join(cell.states)}), got {type(value).__name__}")
    columns = []
    for letter, part in zip(cell.states, parts, strict=True):
        widths = [layer.weight_hh.shape[1 if letter == "h" else 0] for layer in layers]
        if letter == "c":
            widths = [width // cell.gates for width in widths]
        columns.append(read_state(f"{name} {letter}", widths, directions, part, batch))
    return list(zip(*columns, strict=True))


def read_state(name: str, widths: list[int], directions: int, value: Any, batch: int) -> list[Array]:
    """[L*D] arrays [B, H_l]."""
    if value is None:
        return [np.zeros((batch, width)) for width in widths]
    if isinstance(value, (tuple, list)):
        blocks = read_all(name, value, [(directions, batch, width) for width in widths[::directions]])
        return [block[direction] for block in blocks for direction in range(directions)]
    if len(set(widths)) > 1:
        raise ValueError(f"{name}: expected a tuple of one array for each layer, got {type(value).__name__}")
    return list(read_array(name, value, (len(widths), batch, widths[0])))


# ---- which rows take part ----


def read_rows(
    steps: int, batch: int, lengths: ArrayLike | None, mask: ArrayLike | None, reset: ArrayLike | None, to_initial: bool
) -> Rows:
    if lengths is not None and mask is not None:
        raise ValueError("lengths and mask: expected at most one of them")
    inside = np.arange(steps)[:, None] < read_lengths(lengths, steps, batch)
    valid = inside if mask is None else read_array("mask", mask, (steps, batch)) != 0
    again = np.zeros_like(valid) if reset is None else read_array("reset", reset, (steps, batch)) != 0
    return Rows(valid, again & inside, to_initial)


def read_lengths(lengths: ArrayLike | None, steps: int, batch: int) -> NDArray[np.int64]:
    if lengths is None:
        return np.full(batch, steps, dtype=np.int64)
    array = np.asarray(lengths)
    if array.shape != (batch,) or (batch > 0 and not np.issubdtype(array.dtype, np.integer)):
        raise ValueError(f"lengths: expected integers of shape [{batch}], got {array.dtype} {list(array.shape)}")
    if batch > 0 and (array.min() < 0 or array.max() > steps):
        raise ValueError(f"lengths: expected values from 0 to T = {steps}, got {array.min()} to {array.max()}")
    return array.astype(np.int64)


# ---- regularisers ----


@dataclass(frozen=True)
class Masks:
    """What multiplies the input of a layer."""

    dropout: list[Array] | None  # L-1 of [T, B, D*S]
    input: list[Array] | None  # L of [B, I_l]

    @staticmethod
    def read(
        layers: list[Layer],
        directions: int,
        shape: tuple[int, ...],
        dropout: Sequence[ArrayLike] | None,
        inputs: Sequence[ArrayLike] | None,
    ) -> Masks:
        widths = [layer.weight_ih.shape[1] for layer in layers[::directions]]
        if dropout is not None:
            if len(dropout) != len(widths) - 1:
                count = len(widths) - 1
                raise ValueError(f"dropout_masks: expected num_layers - 1 = {count} arrays, got {len(dropout)}")
            dropout = read_all("dropout_masks", dropout, [(*shape, width) for width in widths[1:]])
        if inputs is not None:
            inputs = read_all("input_masks", inputs, [(shape[1], width) for width in widths])
        return Masks(dropout, inputs)

    def applied(self, level: int, y: Array) -> Array:
        """To the input of a layer, or to the gradient by it."""
        if level > 0 and self.dropout is not None:
            y = y * self.dropout[level - 1]
        return y if self.input is None else y * self.input[level]


def read_noise(
    layers: list[Layer],
    shape: tuple[int, ...],
    recurrent: Sequence[ArrayLike] | None,
    zoneout: float | tuple[float, float],
    keep_h: Sequence[ArrayLike] | None,
    keep_c: Sequence[ArrayLike] | None,
) -> list[Noise]:
    rates = zoneout if isinstance(zoneout, tuple) else (zoneout, zoneout)
    widths = [layer.weight_hh.shape[1] for layer in layers]
    factors: list[Any] = [None] * len(layers)
    if recurrent is not None:
        factors = read_all("recurrent_masks", recurrent, [(shape[1], width) for width in widths])
    keep: list[list[Any]] = [[rate or None] * len(layers) for rate in rates]
    for k, (name, masks) in enumerate((("zoneout_masks_h", keep_h), ("zoneout_masks_c", keep_c))):
        if masks is not None:
            arrays = read_all(name, masks, [(*shape, width) for width in widths])
            keep[k] = [array != 0 for array in arrays]
    return [Noise(factor, tuple(both)) for factor, both in zip(factors, zip(*keep, strict=True), strict=True)]
