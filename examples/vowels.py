"""Who says it? Two Japanese vowels by nine speakers, 12 channels, 7 to 29 steps. Many to one.

    python examples/vowels.py [--cell rnn|lstm|gru] [--framework rnnfast|torch]

Trained on the data set's 270 utterances, scored on its other 370.
"""

from __future__ import annotations

import argparse

import numpy as np
import task_data
import torch
from task_training import CELLS, Sequences, Task, main, mapped, mean_over_time
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

SPEAKERS = 9


class Classifier(nn.Module):
    """Channels -> layer in both directions -> mean of h over the steps -> one logit for each speaker."""

    def __init__(self, cell: str, channels: int = 12, hidden: int = 64) -> None:
        super().__init__()
        self.layer = CELLS[cell](channels, hidden, bidirectional=True)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(2 * hidden, SPEAKERS)

    def forward(self, x: PackedSequence) -> Tensor:
        """[B, 9]"""
        return self.head(self.dropout(mean_over_time(self.layer(x)[0])))


class Vowels(Task):
    metric = "accuracy, %"
    epochs, batch, rate = 40, 18, 3e-3

    def __init__(self, options: argparse.Namespace) -> None:
        x, y = task_data.vowels("TRAIN")
        if options.limit is not None and options.limit < len(x):
            chosen = np.random.default_rng(0).choice(len(x), options.limit, replace=False)
            x, y = [x[n] for n in chosen], y[chosen]
        unseen, self.expected = task_data.vowels("TEST")
        mean, deviation = np.concatenate(x).mean(axis=0), np.concatenate(x).std(axis=0)
        self.series = [(row - mean) / deviation for row in x]
        self.unseen_series = [(row - mean) / deviation for row in unseen]
        self.x, self.unseen = Sequences(self.series), Sequences(self.unseen_series)
        self.y = torch.from_numpy(y)
        self.size = len(x)
        self.model = Classifier(options.cell)

    def loss(self, batch: Tensor) -> Tensor:
        x = self.x.packed(batch)
        if self.model.training:  # so few utterances: a little noise keeps the model from learning them by heart
            x = mapped(lambda data: data + 0.3 * torch.randn_like(data), x)
        return nn.functional.cross_entropy(self.model(x), self.y[batch], label_smoothing=0.1)

    def score(self) -> float:
        found = self.model(self.unseen.packed(torch.arange(len(self.unseen)))).argmax(dim=1).numpy()
        return 100 * float((found == self.expected).mean())

    def baselines(self) -> dict[str, float]:
        """The most frequent speaker, and the nearest utterance by the mean of each channel."""
        means, unseen = (np.stack([row.mean(axis=0) for row in rows]) for rows in (self.series, self.unseen_series))
        nearest = ((unseen[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
        return {
            "most frequent speaker": 100 * float(np.bincount(self.expected).max() / len(self.expected)),
            "nearest means": 100 * float((self.y.numpy()[nearest] == self.expected).mean()),
        }


if __name__ == "__main__":
    raise SystemExit(main(Vowels, __doc__))
