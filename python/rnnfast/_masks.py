"""The random choices of a training pass: drawn from a seed, or given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import _check
from ._check import Array
from ._config import Config
from ._layout import Layout


@dataclass(frozen=True, eq=False)
class Masks:
    """What `forward` left to chance, as `tape.masks()` tells it; `forward(x, masks=...)` does the same again.

    Everything here that is None is drawn: from `seed`, or where that is None too, from the layer's generator. So
    `Masks(seed=7)` fixes all, and a list fixes one kind. Only what the layer's options ask for may be given.
    """

    #: Of the dropout between layers (`tape.dropout_masks()`), and of what is drawn here: an integer below 2**64.
    seed: int | None = None
    #: Of input_dropout, one array for each layer, [B, I_l] ([I_l] unbatched): what its input is multiplied with.
    input: Sequence[Array] | None = None
    #: Of recurrent_dropout, number `layer * directions + direction`, [B, H] ([H] unbatched): what h is multiplied with.
    recurrent: Sequence[Array] | None = None
    #: Of zoneout of h, numbered alike, bool [T, B, H] laid out like the output: True where h keeps its value.
    zoneout_h: Sequence[Array] | None = None
    #: Of zoneout of c, likewise.
    zoneout_c: Sequence[Array] | None = None


KINDS = ("input", "recurrent", "zoneout_h", "zoneout_c")  # their order is part of what a seed means


def rates(config: Config) -> dict[str, float]:
    zoneout_h, zoneout_c = config.zoneout_rates()
    return dict(zip(KINDS, (config.input_dropout, config.recurrent_dropout, zoneout_h, zoneout_c), strict=True))


def random(config: Config) -> bool:
    """Whether a training pass leaves anything to chance."""
    return bool(config.dropout and config.num_layers > 1) or any(rates(config).values())


def resolved(config: Config, layout: Layout, steps: int, batch: int, seed: int, given: Masks) -> dict[str, list[Array]]:
    """The arrays of every kind that the options ask for, as the engine takes them."""
    arrays = {}
    for number, (kind, rate) in enumerate(rates(config).items()):
        masks: Any = getattr(given, kind)
        _check.mask_is_used(f"masks.{kind}", masks, rate)
        if not rate:
            continue
        widths = config.input_sizes if kind == "input" else np.repeat(config.widths, config.directions).tolist()
        if masks is None:
            arrays[kind] = [
                _drawn(kind, rate, np.random.Philox(key=[seed, number << 32 | index]), (steps, batch, width), config)
                for index, width in enumerate(widths)
            ]
        else:
            arrays[kind] = _read(kind, masks, widths, layout, (steps, batch), config)
    return arrays


def _drawn(kind: str, rate: float, bits: np.random.Philox, shape: tuple[int, int, int], config: Config) -> Array:
    generator = np.random.Generator(bits)
    if kind.startswith("zoneout"):
        return (generator.random(shape, np.float32) < rate).astype(np.uint8)
    kept = generator.random(shape[1:], np.float32) >= rate
    factor = config.numpy_dtype.type(1.0 / (1.0 - rate) if rate < 1 else 0.0)
    factors: Array = np.multiply(kept, factor, dtype=config.numpy_dtype)
    return factors


def _read(
    kind: str, masks: Any, widths: Sequence[int], layout: Layout, shape: tuple[int, int], config: Config
) -> list[Array]:
    arrays = []
    for index, (mask, width) in enumerate(
        zip(_check.mask_list(f"masks.{kind}", masks, len(widths)), widths, strict=True)
    ):
        name = f"masks.{kind}[{index}]"
        if kind.startswith("zoneout"):
            array = _check.bool_array(name, mask, layout.shape(*shape, width), "the shape of h at every step")
            arrays.append(np.ascontiguousarray(layout.to_engine(array), np.uint8))
        else:
            array = _check.factors(name, mask, (shape[1], width) if layout.batched else (width,), config.numpy_dtype)
            arrays.append(np.ascontiguousarray(array.reshape(shape[1], width)))
    return arrays


def told(arrays: dict[str, list[Array]], seed: int, layout: Layout) -> Masks:
    """The engine's arrays in the form that users see."""

    def seen(kind: str, array: Array) -> Array:
        if kind.startswith("zoneout"):
            return layout.from_engine(array.view(np.bool_))
        return array if layout.batched else array[0]

    return Masks(seed, **{kind: [seen(kind, array) for array in masks] for kind, masks in arrays.items()})
