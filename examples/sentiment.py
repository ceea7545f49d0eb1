"""Sentiment of tweets: is a tweet positive or negative? Many to one.

    python examples/sentiment.py [--cell rnn|lstm|gru] [--framework rnnfast|torch]

Trained on rated tweets; a fifth of them is held out. The model learns how positive a tweet is; the score counts only
positive or negative. `sentiment_numpy.py` does the same without torch.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from sentiment_data import baselines, load, strength
from task_data import Vocabulary
from task_training import CELLS, Sequences, Task, main, mapped, mean_over_time
from torch import Tensor, nn


class Classifier(nn.Module):
    """Words -> embedding -> layer in both directions -> mean of h over the words -> one logit."""

    def __init__(self, cell: str, words: int, embedding: int = 64, hidden: int = 96) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, embedding)
        nn.init.normal_(self.embed.weight, std=0.1)  # small: rare words hardly leave it
        self.dropout = nn.Dropout(0.4)
        self.layer = CELLS[cell](embedding, hidden, bidirectional=True)
        self.head = nn.Linear(2 * hidden, 1)

    def forward(self, words: nn.utils.rnn.PackedSequence) -> Tensor:
        """[B] logits of being positive"""
        output, _ = self.layer(mapped(lambda numbers: self.dropout(self.embed(numbers)), words))
        return self.head(self.dropout(mean_over_time(output))).squeeze(-1)


class Sentiment(Task):
    metric = "accuracy, %"
    epochs, batch, rate = 6, 32, 2e-3

    def __init__(self, options: argparse.Namespace) -> None:
        self.data = x, y, x_held_out, y_held_out, self.texts = load(options.limit)
        vocabulary = Vocabulary(x, least=2)
        self.x, self.y = Sequences([vocabulary.encode(words) for words in x]), torch.from_numpy(strength(y))
        self.unseen, self.expected = Sequences([vocabulary.encode(words) for words in x_held_out]), y_held_out
        self.size, self.lengths = len(self.x), self.x.lengths
        self.model = Classifier(options.cell, len(vocabulary))

    def loss(self, batch: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(self.model(self.x.packed(batch)), self.y[batch])

    def logits(self, index: Tensor) -> np.ndarray:
        with torch.inference_mode():
            return self.model(self.unseen.packed(index)).numpy()

    def score(self) -> float:
        found = self.logits(torch.arange(len(self.unseen))) > 0
        return 100 * float((found == (self.expected > 0)).mean())

    def baselines(self) -> dict[str, float]:
        return baselines(*self.data[:4])

    def samples(self) -> list[str]:
        logits = self.logits(torch.arange(len(self.texts[:4])))
        return [
            f"{1 / (1 + np.exp(-logit)):4.2f} positive: {text[:80]}"
            for logit, text in zip(logits, self.texts[:4], strict=True)
        ]


if __name__ == "__main__":
    raise SystemExit(main(Sentiment, __doc__))
