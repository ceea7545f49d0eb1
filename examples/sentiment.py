"""Sentiment of tweets: is a tweet positive or negative? Many to one.

    python examples/sentiment.py [--cell rnn|lstm|gru] [--framework rnnfast|torch]

Trained on rated tweets; a fifth of them is held out. A word is what the model learns of it, and how positive readers
found it alone. The model learns how positive a tweet is; the score counts only positive or negative.
`sentiment_numpy.py` does the same without torch.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from sentiment_data import baselines, load, strength
from task_training import CELLS, Sequences, Task, main, mapped, mean_over_time
from torch import Tensor, nn


class Classifier(nn.Module):
    """Words -> embedding and valence -> layer in both directions -> mean of h over the words -> one logit."""

    valence: Tensor  # [words]

    def __init__(self, cell: str, valence: np.ndarray, embedding: int = 32, hidden: int = 96) -> None:
        super().__init__()
        self.register_buffer("valence", torch.from_numpy(valence))
        self.embed = nn.Embedding(len(valence), embedding)
        nn.init.normal_(self.embed.weight, std=0.1)  # small: rare words hardly leave it
        self.dropout = nn.Dropout(0.7)
        self.layer = CELLS[cell](embedding + 1, hidden, bidirectional=True)
        self.head = nn.Linear(2 * hidden, 1)

    def word(self, numbers: Tensor) -> Tensor:
        return torch.cat([self.dropout(self.embed(numbers)), self.valence[numbers, None]], dim=-1)

    def forward(self, words: nn.utils.rnn.PackedSequence) -> Tensor:
        """[B] logits of being positive"""
        output, _ = self.layer(mapped(self.word, words))
        return self.head(self.dropout(mean_over_time(output))).squeeze(-1)


class Sentiment(Task):
    metric = "accuracy, %"
    epochs, batch, rate = 6, 32, 2e-3

    def __init__(self, options: argparse.Namespace) -> None:
        tweets = self.tweets = load(options.limit)
        self.x, self.unseen = (
            Sequences([tweets.vocabulary.encode(words) for words in texts]) for texts in (tweets.x, tweets.x_held_out)
        )
        self.y, self.expected = torch.from_numpy(strength(tweets.y)), tweets.y_held_out
        self.size, self.lengths = len(self.x), self.x.lengths
        self.model = Classifier(options.cell, tweets.valence)

    def loss(self, batch: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(self.model(self.x.packed(batch)), self.y[batch])

    def logits(self, index: Tensor) -> np.ndarray:
        with torch.inference_mode():
            return self.model(self.unseen.packed(index)).numpy()

    def score(self) -> float:
        found = self.logits(torch.arange(len(self.unseen))) > 0
        return 100 * float((found == (self.expected > 0)).mean())

    def baselines(self) -> dict[str, float]:
        return baselines(self.tweets)

    def samples(self) -> list[str]:
        texts = self.tweets.texts[:4]
        logits = self.logits(torch.arange(len(texts)))
        return [
            f"{1 / (1 + np.exp(-logit)):4.2f} positive: {text[:80]}" for logit, text in zip(logits, texts, strict=True)
        ]


if __name__ == "__main__":
    raise SystemExit(main(Sentiment, __doc__))
