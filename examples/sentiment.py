"""Sentiment of tweets: is a tweet positive or negative? Many to one.

    python examples/sentiment.py [--cell rnn|lstm|gru] [--framework rnnfast|torch]

Trained on rated tweets and rated sentences of reviews; a fifth of the tweets is held out. `sentiment_numpy.py` does the
same without torch.
"""

from __future__ import annotations

import argparse
import re

import numpy as np
import task_data
import torch
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


def words_of(text: str) -> list[str]:
    """Lower-case words, and the signs that carry a mood: smileys, exclamation and question marks."""
    return re.findall(r"[a-z']+|[:;=8xX]-?[()\[\]dDpP/\\|*oO3]+|<3|[!?]+|\.\.+", text.lower()) or ["."]


def load(limit: int | None) -> tuple[list[list[str]], np.ndarray, list[list[str]], np.ndarray, list[str]]:
    """Words and labels (1: positive) to train on, words and labels held out, and the held-out texts."""
    tweets = [tweet for tweet in task_data.rated_texts("tweets") if tweet.rating][:limit]
    train, held_out = task_data.split(len(tweets), 0.2, [tweet.text for tweet in tweets])
    known = [tweets[n] for n in train]
    if limit is None:
        for kind in ("movieReviewSnippets", "amazonReviewSnippets"):
            known += [text for text in task_data.rated_texts(kind) if text.rating]
    unseen = [tweets[n] for n in held_out]
    (x, y), (x_held_out, y_held_out) = (
        ([words_of(item.text) for item in items], np.array([item.rating > 0 for item in items], np.float32))
        for items in (known, unseen)
    )
    return x, y, x_held_out, y_held_out, [item.text for item in unseen]


def baselines(x: list[list[str]], y: np.ndarray, x_held_out: list[list[str]], y_held_out: np.ndarray) -> dict[str, float]:
    """The more frequent answer, and naive Bayes: a sum of log odds of words, whatever their order."""
    vocabulary = task_data.Vocabulary(x, least=2)
    counts = np.ones((2, len(vocabulary)))
    for words, label in zip(x, y, strict=True):
        np.add.at(counts[int(label)], vocabulary.encode(words), 1)
    odds = np.log(counts[1] / counts[1].sum()) - np.log(counts[0] / counts[0].sum())
    prior = np.log(y.mean() / (1 - y.mean()))
    bayes = np.array([odds[vocabulary.encode(words)].sum() + prior > 0 for words in x_held_out])
    majority = max(y_held_out.mean(), 1 - y_held_out.mean())
    return {"more frequent answer": 100 * float(majority), "naive Bayes": 100 * float((bayes == y_held_out).mean())}


class Sentiment(Task):
    metric = "accuracy, %"
    epochs, batch, rate = 6, 32, 2e-3

    def __init__(self, options: argparse.Namespace) -> None:
        self.data = x, y, x_held_out, y_held_out, self.texts = load(options.limit)
        vocabulary = task_data.Vocabulary(x, least=2)
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
        logits = self.logits(torch.arange(4))
        return [f"{1 / (1 + np.exp(-logit)):4.2f} positive: {text[:80]}" for logit, text in zip(logits, self.texts)]


if __name__ == "__main__":
    raise SystemExit(main(Sentiment, __doc__))
