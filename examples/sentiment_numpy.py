"""Sentiment of tweets with NumPy and rnnfast alone: what `sentiment.py` does, without torch.

python examples/sentiment_numpy.py [--cell rnn|lstm|gru]

x_t = row of E for word t, and the word's valence   [D], dropout; [1]
h   = mean over t of layer(x), both directions      [2 H], dropout
p   = sigmoid(w h + b)
loss = mean over the batch of -y log p - (1 - y) log(1 - p), y the text's strength
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from sentiment_data import baselines, load, strength
from task_data import DataError
from tqdm import tqdm

import rnnfast as rf

CELLS: dict[str, Any] = {"rnn": rf.RNN, "lstm": rf.LSTM, "gru": rf.GRU}
EMBEDDING, HIDDEN, BATCH, RATE, DROPOUT = 32, 96, 32, 2e-3, 0.7


class Classifier:
    def __init__(self, cell: str, valence: Any, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.layer = CELLS[cell](EMBEDDING + 1, HIDDEN, bidirectional=True, seed=self.rng)
        self.valence = valence
        self.E = 0.1 * self.rng.standard_normal((len(valence), EMBEDDING), dtype=np.float32)
        self.w = self.rng.uniform(-0.07, 0.07, 2 * HIDDEN).astype(np.float32)
        self.b = np.zeros(1, np.float32)
        self.parameters = {"E": self.E, "w": self.w, "b": self.b, **self.layer.parameters}

    def mask(self, *shape: int) -> Any:
        """Zeroes a share of the elements, and makes up for it in the others."""
        return (self.rng.random(shape, dtype=np.float32) >= DROPOUT) / np.float32(1 - DROPOUT)

    def inputs(self, words: Any, kept: Any = 1) -> Any:
        """[T, B, D + 1]"""
        return np.concatenate([self.E[words] * kept, self.valence[words][..., None]], axis=-1, dtype=np.float32)

    def __call__(self, words: Any, lengths: Any) -> Any:
        """words: [T, B], to logits [B]"""
        h, _ = self.layer(self.inputs(words), lengths=lengths)
        return h.sum(axis=0) / lengths[:, None] @ self.w + self.b

    def gradients(self, words: Any, lengths: Any, y: Any) -> tuple[float, dict[str, Any]]:
        """The loss of one batch, and d loss / d parameter by name."""
        kept_x, kept_h = self.mask(*words.shape, EMBEDDING), self.mask(len(y), 2 * HIDDEN)
        steps, _, tape = self.layer.forward(self.inputs(words, kept_x), lengths=lengths)
        h = steps.sum(axis=0) / lengths[:, None] * kept_h  # steps are 0 beyond each end
        z = h @ self.w + self.b
        d_z = (1 / (1 + np.exp(-z)) - y) / len(y)
        d_h = d_z[:, None] * self.w * kept_h / lengths[:, None]
        grads = self.layer.backward(tape, np.broadcast_to(d_h.astype(np.float32), steps.shape))
        d_E = np.zeros_like(self.E)
        np.add.at(d_E, words, grads.input[..., :-1] * kept_x)
        loss = float((np.logaddexp(0, z) - y * z).mean())
        return loss, {"E": d_E, "w": d_z @ h, "b": d_z.sum(keepdims=True), **grads.parameters}


def padded(rows: Sequence[Any]) -> tuple[Any, Any]:
    """[T, B] with 0 beyond each end, and the lengths [B]"""
    lengths = np.array([len(row) for row in rows])
    words = np.zeros((lengths.max(), len(rows)), np.int64)
    words.T[np.arange(len(words)) < lengths[:, None]] = np.concatenate(rows)
    return words, lengths


def train(model: Classifier, x: Sequence[Any], y: Any, epochs: int) -> None:
    optimizer = rf.optim.Adam(model.parameters, betas=(0.9, 0.99))
    total = epochs * -(-len(x) // BATCH)
    with tqdm(total=total, unit="step", desc="training", mininterval=0.1 if sys.stderr.isatty() else 5.0) as bar:
        for _ in range(epochs):
            order = model.rng.permutation(len(x))
            for at in range(0, len(x), BATCH):
                chosen = order[at : at + BATCH]
                loss, gradients = model.gradients(*padded([x[n] for n in chosen]), y[chosen])
                rf.clip_grad_norm(gradients, 1.0)
                optimizer.lr = RATE * min((bar.n + 1) / 30, 1 - bar.n / total)
                optimizer.step(gradients)
                bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
                bar.update()


def main() -> int:
    parser = argparse.ArgumentParser(description="Sentiment of tweets with NumPy and rnnfast alone.")
    parser.add_argument("--cell", choices=CELLS, default="gru")
    parser.add_argument("--epochs", type=int, default=6, metavar="N")
    parser.add_argument("--limit", type=int, metavar="N", help="use this many tweets")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--threads", type=int, metavar="N")
    options = parser.parse_args()
    if options.threads:
        rf.set_num_threads(options.threads)
    try:
        tweets = load(options.limit)
    except DataError as error:
        print(error, file=sys.stderr)
        return 2
    x, unseen = ([tweets.vocabulary.encode(words) for words in texts] for texts in (tweets.x, tweets.x_held_out))
    model = Classifier(options.cell, tweets.valence, options.seed)
    train(model, x, strength(tweets.y), options.epochs)
    found = model(*padded(unseen)) > 0
    print("held out, accuracy, %:")
    for name, score in [*baselines(tweets).items(), (options.cell, 100 * (found == (tweets.y_held_out > 0)).mean())]:
        print(f"  {name:24} {score:.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
