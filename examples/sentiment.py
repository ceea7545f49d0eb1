"""Sentiment of tweets: is a tweet positive or negative? Many to one.

    python examples/sentiment.py [--cell rnn|lstm|gru] [--framework rnnfast|torch]

Trained on rated tweets and rated sentences of reviews; a fifth of the tweets is held out. `sentiment_numpy.py` does the
same without torch.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from sentiment_data import baselines, load
from task_data import Vocabulary
from task_training import CELLS, Sequences, Task, last, main, mapped
from torch import Tensor, nn


class Classifier(nn.Module):
    """Words -> embedding -> layer in both directions -> the last h of each -> one logit."""

    def __init__(self, cell: str, words: int, embedding: int = 64, hidden: int = 96) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, embedding)
        self.dropout = nn.Dropout(0.4)
        self.layer = CELLS[cell](embedding, hidden, bidirectional=True)
        self.head = nn.Linear(2 * hidden, 1)

    def forward(self, words: nn.utils.rnn.PackedSequence) -> Tensor:
        """[B] logits of being positive"""
        _, state = self.layer(mapped(lambda numbers: self.dropout(self.embed(numbers)), words))
        return self.head(self.dropout(last(state))).squeeze(-1)


class Sentiment(Task):
    metric = "accuracy, %"
    epochs, batch, rate = 6, 32, 2e-3

    def __init__(self, options: argparse.Namespace) -> None:
        self.data = x, y, x_held_out, y_held_out, self.texts = load(options.limit)
        vocabulary = Vocabulary(x, least=2)
        self.x, self.y = Sequences([vocabulary.encode(words) for words in x]), torch.from_numpy(y)
        self.unseen, self.expected = Sequences([vocabulary.encode(words) for words in x_held_out]), y_held_out
        self.size = len(self.x)
        self.model = Classifier(options.cell, len(vocabulary))

    def loss(self, batch: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(self.model(self.x.packed(batch)), self.y[batch])

    def logits(self, index: Tensor) -> np.ndarray:
        with torch.inference_mode():
            return self.model(self.unseen.packed(index)).numpy()

    def score(self) -> float:
        found = self.logits(torch.arange(len(self.unseen))) > 0
        return 100 * float((found == self.expected).mean())

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
