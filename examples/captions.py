"""What does the picture show? Names of emoji, from their pictures. One to many.

    python examples/captions.py [--cell rnn|lstm|gru] [--framework rnnfast|torch]

Pictures of the Noto Color Emoji font, 32 x 32; scored by chrF on pictures that were held out.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import task_data
import torch
from seq2seq import Targets
from task_training import CELLS, Task, chrf, main, mapped, padded, sequence_of, written
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

SIDE = 32  # pixels
WHOLE = 3  # so often in training, a word is one symbol; others are spelled letter by letter


class Captioner(nn.Module):
    """Picture -> three convolutions -> first state of a layer, and added to each input; the layer writes the name."""

    def __init__(self, cell: str, symbols: int, embedding: int = 48, hidden: int = 256) -> None:
        super().__init__()
        self.see = nn.Sequential(
            *(nn.Conv2d(3, 32, 4, stride=4), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.Conv2d(32, 96, 3, stride=2, padding=1), nn.BatchNorm2d(96), nn.ReLU()),
            *(nn.Flatten(), nn.Dropout(0.1)),
        )
        self.start = nn.Sequential(nn.Linear(96 * (SIDE // 8) ** 2, hidden), nn.LayerNorm(hidden))
        self.remind = nn.Sequential(nn.Linear(hidden, embedding), nn.LayerNorm(embedding))
        self.embed = nn.Embedding(symbols, embedding)
        self.layer = CELLS[cell](embedding, hidden)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(hidden, symbols)

    def first_state(self, pictures: Tensor) -> tuple[Any, Tensor]:
        """The layer's first state, and what reminds it of the picture at each step, [B, D]."""
        h = torch.tanh(self.start(self.see(pictures)))
        state = (h[None], torch.zeros_like(h)[None]) if isinstance(self.layer, nn.LSTM) else h[None]
        return state, self.remind(h)

    def forward(self, pictures: Tensor, inputs: PackedSequence) -> Tensor:
        """Logits [B, T, V] of the symbols after each of the inputs."""
        state, reminder = self.first_state(pictures)
        reminders = nn.functional.embedding(sequence_of(inputs), reminder)  # of the packed steps
        output, _ = self.layer(mapped(lambda numbers: self.embed(numbers) + reminders, inputs), state)
        return padded(mapped(lambda h: self.head(self.dropout(h)), output))[0]

    def write(self, pictures: Tensor, longest: int) -> list[list[int]]:
        start, reminder = self.first_state(pictures)

        def step(symbols: Tensor, state: Any) -> tuple[Tensor, Any]:
            h, state = self.layer((self.embed(symbols) + reminder)[None], state)
            return self.head(h[0]), state

        return written(step, start, len(pictures), longest)


class Captions(Task):
    metric = "chrF, %"
    epochs, batch, rate = 12, 16, 1.5e-3

    def __init__(self, options: argparse.Namespace) -> None:
        pictures, names = task_data.emoji_pictures(SIDE)
        order = np.random.default_rng(0).permutation(len(names))[: options.limit]
        pictures, names = pictures[order], [names[n] for n in order]
        train, unseen = task_data.split(len(names), min(0.2, 500 / len(names)))
        pictures = (pictures - pictures[train].mean()) / pictures[train].std()
        self.names, self.expected = [names[n] for n in train], [names[n] for n in unseen]
        self.pictures, self.unseen = torch.from_numpy(pictures[train]), torch.from_numpy(pictures[unseen])
        spelled = [*map(task_data.Speller(self.names, least=WHOLE), self.names)]
        self.vocabulary = task_data.Vocabulary(spelled)
        self.y = Targets(self.vocabulary, spelled)
        self.longest = self.y.outputs.padded.shape[1]
        self.size, self.lengths = len(train), self.y.inputs.lengths
        self.model = Captioner(options.cell, len(self.vocabulary))

    def loss(self, batch: Tensor) -> Tensor:
        return self.y.loss(self.model(self.pictures[batch], self.y.inputs.packed(batch)), batch)

    def captions(self, count: int | None = None) -> list[str]:
        with torch.inference_mode():
            return [
                "".join(self.vocabulary.decode(row)).strip()
                for row in self.model.write(self.unseen[:count], self.longest)
            ]

    def score(self) -> float:
        return chrf(self.captions(), self.expected)

    def baselines(self) -> dict[str, float]:
        """The names of any other pictures, and the name of the most similar picture (least squares)."""
        known, unseen = self.pictures.flatten(1), self.unseen.flatten(1)
        nearest = torch.cdist(unseen, known).argmin(dim=1).tolist()
        others = np.random.default_rng(0).choice(self.names, len(self.expected))
        return {
            "any picture": chrf([str(name) for name in others], self.expected),
            "nearest picture": chrf([self.names[n] for n in nearest], self.expected),
        }

    def samples(self) -> list[str]:
        return [f"{name}  ->  {found}" for name, found in zip(self.expected, self.captions(6), strict=False)]


if __name__ == "__main__":
    raise SystemExit(main(Captions, __doc__))
