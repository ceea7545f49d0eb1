"""The next character: the model of `python -m rnnfast demo` in torch's form. One to one, the state carried along.

    python examples/characters.py [--cell rnn|lstm|gru] [--framework rnnfast|torch]

Text and baselines are the demo's: the English documentation that comes with Python. No download.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import numpy as np
import torch
from task_training import CELLS, Task, main
from torch import Tensor, nn

from rnnfast import _demo

STEPS = 64  # of truncated back-propagation


class CharModel(nn.Module):
    """Character -> embedding -> layer -> a logit for each next character."""

    def __init__(self, cell: str, symbols: int, embedding: int = 64, hidden: int = 128) -> None:
        super().__init__()
        self.embed = nn.Embedding(symbols, embedding)
        self.layer = CELLS[cell](embedding, hidden)
        self.head = nn.Linear(hidden, symbols)

    def forward(self, numbers: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """[T, B] -> [T, B, V] and the state to go on from"""
        output, state = self.layer(self.embed(numbers), state)
        return self.head(output), state


class Characters(Task):
    metric, best = "bits per character", min
    epochs, batch, rate = 2, 32, 5e-3

    def __init__(self, options: argparse.Namespace) -> None:
        limit = None if options.limit is None else max(options.limit, 100 * self.batch)
        self.corpus = _demo.Corpus.of(_demo.own_text()[:limit])
        self.model = CharModel(options.cell, len(self.corpus.symbols))
        self.size = len(self.corpus.train)
        self.state: Any = None

    def batches(self) -> list[tuple[bool, Tensor, Tensor]]:
        """(start, input, target), the last two [T, B]: the text in rows side by side, from another place each time."""
        row = (self.size - 1) // self.batch - 1
        offset = int(torch.randint(self.size - self.batch * row, ()))
        text = torch.from_numpy(self.corpus.train[offset : offset + self.batch * row + 1])
        x, y = (text[shift : shift + self.batch * row].view(self.batch, row).T for shift in (0, 1))
        pieces = zip(x.split(STEPS), y.split(STEPS), strict=True)
        return [(n == 0, *piece) for n, piece in enumerate(pieces)]

    def loss(self, batch: tuple[bool, Tensor, Tensor]) -> Tensor:
        start, x, y = batch
        logits, state = self.model(x, None if start else self.state)
        self.state = tuple(part.detach() for part in state) if isinstance(state, tuple) else state.detach()
        return nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())

    def score(self) -> float:
        total, state = 0.0, None
        text = torch.from_numpy(self.corpus.held_out)[:, None]
        for x, y in zip(text[:-1].split(512), text[1:].split(512), strict=True):
            logits, state = self.model(x, state)
            total += nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum").item()
        return total / (len(text) - 1) / math.log(2)

    def baselines(self) -> dict[str, float]:
        return {"unigram": _demo.unigram_bits(self.corpus), "bigram": _demo.bigram_bits(self.corpus)}

    def samples(self) -> list[str]:
        """Text that the model writes, each character drawn and then read."""
        rng, state, text = np.random.default_rng(0), None, "\n"
        with torch.inference_mode():
            for _ in range(300):
                logits, state = self.model(
                    torch.from_numpy(_demo.encode(text[-1], self.corpus.symbols))[:, None], state
                )
                z = logits[0, 0, :-1].numpy() / 0.7
                text += self.corpus.symbols[int((z + rng.gumbel(size=z.shape)).argmax())]
        return text.strip().splitlines()


if __name__ == "__main__":
    raise SystemExit(main(Characters, __doc__))
