"""The demo: a recurrent layer learns to guess the next character of a text, then writes text of its own.

Only NumPy and rnnfast are used, so this is also an example of a whole training loop. In order: the text, two baselines
that count characters, the model, training, evaluation, sampling, files, the command line.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import rnnfast as rf

from . import _io
from ._check import Array
from .layers import Layer

HELD_OUT = 0.07  # share of the text, its end, that is never trained on
MIN_CHARACTERS = 1000
MAX_SYMBOLS = 1000  # bounds the memory of one-hot input and of the bigram table
OTHER = "\N{REPLACEMENT CHARACTER}"  # stands for characters that the training text does not have
CELLS: dict[str, type[Layer[Any]]] = {"rnn": rf.RNN, "lstm": rf.LSTM, "gru": rf.GRU}
LEARNING_RATE = {"rnn": 2e-3, "lstm": 5e-3, "gru": 4e-3}
HIDDEN = 256
CHUNK = 64  # steps of truncated back-propagation
MAX_NORM = 1.0  # of the gradient of all parameters together


class DemoError(Exception):
    """A mistake of the user, told in one line."""


# --- the text ---


@dataclass(frozen=True)
class Corpus:
    """Training and held-out text as numbers of symbols; the last symbol stands for all other characters."""

    symbols: str
    train: Array
    held_out: Array

    @staticmethod
    def of(text: str, symbols: str | None = None) -> Corpus:
        """Splits the text. Without `symbols` they are the characters of its training part, frequent ones first."""
        if len(text) < MIN_CHARACTERS:
            raise DemoError(f"the text has {len(text)} characters; at least {MIN_CHARACTERS} are needed")
        cut = len(text) - max(2, int(len(text) * HELD_OUT))
        if symbols is None:
            characters, counts = np.unique(code_points(text[:cut]), return_counts=True)
            frequent = characters[np.argsort(-counts, kind="stable")][: MAX_SYMBOLS - 1]
            symbols = "".join(chr(point) for point in frequent if chr(point) != OTHER) + OTHER
        return Corpus(symbols, encode(text[:cut], symbols), encode(text[cut:], symbols))


def code_points(text: str) -> Array:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def encode(text: str, symbols: str) -> Array:
    """Numbers of symbols, [len(text)]."""
    known = code_points(symbols)
    order = np.argsort(known)
    points = code_points(text)
    place = np.minimum(np.searchsorted(known, points, sorter=order), len(known) - 1)
    number = order[place]
    return np.where(known[number] == points, number, len(symbols) - 1)


def own_text() -> str:
    """Documentation that comes with Python. Its chapters repeat each other, and a paragraph that is in both parts
    would test memory, so each paragraph is kept once."""
    from pydoc_data import topics

    return "\n\n".join(dict.fromkeys("\n".join(topics.topics.values()).split("\n\n")))


def read_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DemoError(f"{path} is not text in UTF-8: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise DemoError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:  # a zero byte in the name
        raise DemoError(f"cannot read {path!r}: {error}") from error


# --- the baselines ---


def unigram_bits(corpus: Corpus) -> float:
    """Bits per character of the held-out text if each symbol is drawn by how often it is in the training text."""
    return bits_of(unigram(corpus)[corpus.held_out[1:]])


def bigram_bits(corpus: Corpus, strength: float = 10.0) -> float:
    """As `unigram_bits`, given the symbol before. Counts are smoothed by `strength` draws from the unigram model,
    about the best value for English text."""
    size = len(corpus.symbols)
    pairs = corpus.train[:-1] * size + corpus.train[1:]
    counts = np.bincount(pairs, minlength=size * size).reshape(size, size)
    before, after = corpus.held_out[:-1], corpus.held_out[1:]
    prior = strength * unigram(corpus)[after]
    return bits_of((counts[before, after] + prior) / (counts.sum(axis=1)[before] + strength))


def unigram(corpus: Corpus) -> Array:
    counts = np.bincount(corpus.train, minlength=len(corpus.symbols)) + 1.0  # no symbol is impossible
    return np.asarray(counts / counts.sum())


def bits_of(probabilities: Array) -> float:
    return float(-np.log2(probabilities).mean())


# --- the model ---


@dataclass(frozen=True)
class Pass:
    """What `CharModel.forward` computed and `CharModel.backward` needs. T steps, B rows, V symbols, H units."""

    h: Array  # [T, B, H]
    log_p: Array  # [T, B, V]
    state: Any  # after the last step
    tape: rf.Tape


class CharModel:
    """Guesses symbol t + 1 from symbols up to t.

        x_t = one-hot of symbol t                [V]
        h_t = layer(x_t, h_(t-1))                [H]
        z_t = W h_t + b                          [V]
        p_t = softmax(z_t)                       [V]
        loss = mean over t and rows of -log p_t[symbol t + 1]
    """

    def __init__(self, cell: str, symbols: str, hidden: int, seed: int = 0, dtype: str = "float32") -> None:
        self.cell, self.symbols, self.hidden = cell, symbols, hidden
        rng = np.random.default_rng(seed)
        self.layer = CELLS[cell](len(symbols), hidden, dtype=dtype, seed=rng)
        if cell == "lstm":
            self.layer.bias_hh_l0[hidden : 2 * hidden] += 1.0  # forget gate: remember, to begin with
        bound = 1.0 / math.sqrt(hidden)
        self.W = rng.uniform(-bound, bound, (len(symbols), hidden)).astype(dtype)
        self.b = np.zeros(len(symbols), dtype)

    @property
    def parameters(self) -> dict[str, Array]:
        """The arrays to learn, live, by name."""
        return {"W": self.W, "b": self.b, **self.layer.parameters}

    def one_hot(self, numbers: Array) -> Array:
        x = np.zeros((*numbers.shape, len(self.symbols)), self.W.dtype)
        np.put_along_axis(x, numbers[..., None], 1, axis=-1)
        return x

    def forward(self, numbers: Array, state: Any = None) -> Pass:
        """numbers: [T, B]; state: where the rows were left, None for a start."""
        h, state, tape = self.layer.forward(self.one_hot(numbers), state)
        return Pass(h, log_softmax(h @ self.W.T + self.b), state, tape)

    def loss(self, done: Pass, targets: Array) -> float:
        """targets: the symbols that follow, [T, B]. In nats."""
        return float(-np.take_along_axis(done.log_p, targets[..., None], axis=-1).mean(dtype=np.float64))

    def backward(self, done: Pass, targets: Array) -> dict[str, Array]:
        """d loss / d parameter, by the names of `parameters`.

        d loss / d z_t = (p_t - one-hot of the target) / (T B); from there by the chain rule.
        """
        d_z = (np.exp(done.log_p) - self.one_hot(targets)) / targets.size
        d_W = np.tensordot(d_z, done.h, axes=([0, 1], [0, 1]))
        d_b = d_z.sum(axis=(0, 1))
        d_h = d_z @ self.W
        return {"W": d_W, "b": d_b, **self.layer.backward(done.tape, d_h).parameters}

    def bits(self, numbers: Array, chunk: int = 512) -> float:
        """Bits per character over one long text, [N], read from its beginning."""
        total, state = 0.0, None
        for start in range(0, len(numbers) - 1, chunk):
            piece = numbers[start : start + chunk + 1, None]
            h, state = self.layer(self.one_hot(piece[:-1]), state)
            log_p = log_softmax(h @ self.W.T + self.b)
            total -= float(np.take_along_axis(log_p, piece[1:, :, None], axis=-1).sum(dtype=np.float64))
        return total / (len(numbers) - 1) / math.log(2)

    def write(self, length: int, temperature: float, rng: np.random.Generator) -> Iterator[str]:
        """Draws one character after the other; each is the next input. Low temperatures prefer the likely ones."""
        stream = self.layer.freeze().stream()
        x, h = np.zeros(len(self.symbols), self.W.dtype), np.zeros(self.hidden, self.W.dtype)
        number = max(self.symbols.find("\n"), 0)
        for _ in range(length):
            x[number] = 1
            stream.step(x, out=h)
            x[number] = 0
            z = np.float64(self.W @ h + self.b)[:-1]  # the last symbol has no character
            if temperature > 0:  # argmax(z + Gumbel noise) is a draw from softmax(z)
                z = z / temperature + rng.gumbel(size=z.shape)
            number = int(z.argmax())
            yield self.symbols[number]


def log_softmax(z: Array) -> Array:
    z = z - z.max(axis=-1, keepdims=True)
    return np.asarray(z - np.log(np.exp(z).sum(axis=-1, keepdims=True)))
