"""How the user's arrays lie: the engine takes [T, B, features], as views."""

from __future__ import annotations

from dataclasses import dataclass

from ._check import Array


@dataclass(frozen=True)
class Layout:
    """[T, B, ...], [B, T, ...] with batch_first, or [T, ...] unbatched, of any number of further axes."""

    batched: bool
    batch_first: bool

    def to_engine(self, array: Array) -> Array:
        if not self.batched:
            return array[:, None]
        return array.swapaxes(0, 1) if self.batch_first else array

    def from_engine(self, array: Array) -> Array:
        if not self.batched:
            return array[:, 0]
        return array.swapaxes(0, 1) if self.batch_first else array

    def shape(self, steps: int, batch: int, *further: int) -> tuple[int, ...]:
        if not self.batched:
            return (steps, *further)
        return (batch, steps, *further) if self.batch_first else (steps, batch, *further)
