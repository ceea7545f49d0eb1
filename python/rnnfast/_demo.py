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
CELLS: dict[str, Callable[..., Layer[Any]]] = {"rnn": rf.RNN, "lstm": rf.LSTM, "gru": rf.GRU}
LEARNING_RATE = {"rnn": 6e-3, "lstm": 1.2e-2, "gru": 1.2e-2}
HIDDEN, BATCH, STEPS = 256, 32, 1200  # about a minute on two cores
MAX_HIDDEN = 8192
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

    W and b are attributes of that name; the layer has its own parameters.
    """

    def __init__(self, cell: str, symbols: str, hidden: int, seed: int = 0, dtype: str = "float32") -> None:
        self.cell, self.symbols, self.hidden = cell, symbols, hidden
        rng = np.random.default_rng(seed)
        self.layer = CELLS[cell](len(symbols), hidden, dtype=dtype, seed=rng)
        # A column is all that tells a symbol from others: like rows of an embedding, they have to start far apart.
        self.layer.weight_ih_l0[...] = rng.standard_normal(self.layer.weight_ih_l0.shape)
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
            z = (self.W @ h + self.b)[:-1].astype(np.float64)  # the last symbol has no character
            if temperature > 0:  # argmax(z + Gumbel noise) is a draw from softmax(z)
                z = z / temperature + rng.gumbel(size=z.shape)
            number = int(z.argmax())
            yield self.symbols[number]


def log_softmax(z: Array) -> Array:
    z = z - z.max(axis=-1, keepdims=True)
    return np.asarray(z - np.log(np.exp(z).sum(axis=-1, keepdims=True)))


# --- training ---


def chunks(numbers: Array, batch: int, rng: np.random.Generator) -> Iterator[tuple[Array, Array, bool]]:
    """Endless (input, target, start) of shape [T, B]: the text is cut into `batch` rows, which are read side by side.

    `start` says that the rows begin anew, each time at another place, so that the state has to be dropped.
    """
    row = (len(numbers) - 1) // batch
    steps = min(CHUNK, row)
    while True:
        offset = int(rng.integers(0, len(numbers) - batch * row))
        skip = int(rng.integers(0, min(steps, row - steps + 1)))
        x = numbers[offset : offset + batch * row].reshape(batch, row).T
        y = numbers[offset + 1 : offset + 1 + batch * row].reshape(batch, row).T
        for t in range(skip, row - steps + 1, steps):
            yield x[t : t + steps], y[t : t + steps], t == skip


def train(model: CharModel, numbers: Array, steps: int, batch: int, seed: int, report: Callable[[float], None]) -> None:
    """Truncated back-propagation through time: the state goes from chunk to chunk, the gradient does not.

    Source: Williams, Peng, An efficient gradient-based algorithm for on-line training of recurrent network
    trajectories, 1990.
    """
    rate = LEARNING_RATE[model.cell]
    optimizer = rf.optim.Adam(model.parameters, betas=(0.9, 0.99))
    source = chunks(numbers, batch, np.random.default_rng(seed))
    state = None
    for step in range(steps):
        x, y, start = next(source)
        done = model.forward(x, None if start else state)
        state = done.state
        gradients = model.backward(done, y)
        rf.clip_grad_norm(gradients, MAX_NORM)
        optimizer.lr = rate * min((step + 1) / 30, 1.0 - step / steps)  # up for 30 steps, then down to 0
        optimizer.step(gradients)
        report(model.loss(done, y) / math.log(2))


class Progress:
    """A bar by tqdm where it is installed, else a line for every tenth of the steps."""

    def __init__(self, steps: int) -> None:
        self.steps, self.done, self.bits = steps, 0, float("nan")
        self.bar: Any = None
        self.begin = time.perf_counter()
        try:
            from tqdm import tqdm
        except ImportError:
            return
        interval = 0.1 if sys.stderr.isatty() else 5.0  # in a log each state of the bar is a line
        self.bar = tqdm(total=steps, unit="step", desc="training", dynamic_ncols=True, mininterval=interval)

    def __call__(self, bits: float) -> None:
        self.done += 1
        self.bits = bits if self.done == 1 else self.bits + (bits - self.bits) * max(0.05, 1.0 / self.done)
        if self.bar is not None:
            self.bar.set_postfix_str(f"{self.bits:.3f} bits/char", refresh=False)
            self.bar.update()
        elif self.done % max(1, self.steps // 10) == 0 or self.done == self.steps:
            seconds = time.perf_counter() - self.begin
            print(f"step {self.done}/{self.steps}  {self.bits:.3f} bits/char  {seconds:.0f} s", file=sys.stderr)

    def close(self) -> float:
        """Returns the seconds that have passed."""
        if self.bar is not None:
            self.bar.close()
        return time.perf_counter() - self.begin


# --- files ---


def save(path: str, model: CharModel) -> None:
    arrays: dict[str, Any] = dict(model.parameters)
    about = {"demo": 1, "cell": model.cell, "hidden": model.hidden, "symbols": model.symbols}
    arrays[_io.KEY] = np.array(json.dumps(about))
    try:
        np.savez(path, **arrays)
    except OSError as error:
        raise DemoError(f"cannot write {path}: {error.strerror}") from error


def load(path: str) -> CharModel:
    try:
        with _io.NpzFile(Path(path)) as file:
            model = _described(path, file.text)
            arrays = file.read({name: array.shape for name, array in model.parameters.items()})
    except OSError as error:
        raise DemoError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, MemoryError) as error:
        raise DemoError(str(error) or f"{path} is too large") from error
    for name, array in model.parameters.items():
        found = arrays.get(name)
        if found is None or found.shape != array.shape or found.dtype != array.dtype:
            what = "missing" if found is None else f"{found.dtype} {list(found.shape)}"
            raise DemoError(f"{path}: {name} has to be {array.dtype} {list(array.shape)}, and is {what}")
        if not np.isfinite(found).all():
            raise DemoError(f"{path}: {name} has elements that are no finite numbers")
        array[...] = found
    return model


def _described(path: str, text: str | None) -> CharModel:
    try:
        about = json.loads(text or "")
        cell, hidden, symbols = about["cell"], about["hidden"], about["symbols"]
        if about["demo"] != 1 or cell not in CELLS or type(hidden) is not int or not 1 <= hidden <= MAX_HIDDEN:
            raise ValueError
        if type(symbols) is not str or not 2 <= len(set(symbols)) == len(symbols) <= MAX_SYMBOLS:
            raise ValueError
        if symbols[-1] != OTHER:
            raise ValueError
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise DemoError(f"{path} was not written by this demo's --save") from error
    return CharModel(cell, symbols, hidden)


# --- the command line ---


def whole(low: int, high: int) -> Callable[[str], int]:
    """For argparse: reads an integer in a range."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"has to be an integer from {low} to {high}, and is {text!r}")
        return value

    return read


def number(text: str) -> float:
    """For argparse: reads a number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"has to be a number of at least 0, and is {text!r}")
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--cell", choices=CELLS, help="kind of layer (lstm)")
    add("--hidden", type=whole(1, MAX_HIDDEN), metavar="N", help=f"units of the layer ({HIDDEN})")
    add("--steps", type=whole(0, 10**9), metavar="N", help=f"training steps ({STEPS}; 0 with --load)")
    add("--batch", type=whole(1, 4096), default=BATCH, metavar="N", help="rows of text read side by side (%(default)s)")
    add("--seed", type=whole(0, 2**63), default=0, metavar="N", help="of all random numbers (%(default)s)")
    add("--text", metavar="FILE", help="text in UTF-8 to learn (the documentation that comes with Python)")
    add("--sample", type=whole(0, 10**6), default=600, metavar="N", help="characters to write (%(default)s)")
    add("--temperature", type=number, default=0.7, metavar="X", help="0: the likeliest, 1: as learnt (%(default)s)")
    add("--save", metavar="FILE.npz", help="write the trained model")
    add("--load", metavar="FILE.npz", help="start from a model written by --save, with its cell, units and symbols")


def run(options: argparse.Namespace) -> int:
    """Returns the exit code."""
    try:
        demo(options)
    except DemoError as error:
        print(f"python -m rnnfast demo: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except MemoryError:
        print("python -m rnnfast demo: not enough memory for these sizes", file=sys.stderr)
        return 2
    return 0


def demo(options: argparse.Namespace) -> None:
    check_target(options.save)
    model = None if options.load is None else load(options.load)
    text = own_text() if options.text is None else read_text(options.text)
    corpus = Corpus.of(text, None if model is None else model.symbols)
    if options.batch >= len(corpus.train):
        raise DemoError(f"--batch {options.batch} is too large for {len(corpus.train)} characters to train on")
    if model is None:
        model = CharModel(options.cell or "lstm", corpus.symbols, options.hidden or HIDDEN, options.seed)
    check_choice("--cell", options.cell, model.cell)
    check_choice("--hidden", options.hidden, model.hidden)
    steps = options.steps
    if steps is None:
        steps = STEPS if options.load is None else 0

    size = sum(array.size for array in model.parameters.values())
    print(f"text      {len(corpus.train)} characters to train on, {len(corpus.held_out)} held out")
    print(f"model     {model.layer!r}, {size} parameters", flush=True)
    if steps:
        fit(model, corpus, steps, options)
    print("held out, bits per character:")
    print(f"  unigram {unigram_bits(corpus):.3f}")
    print(f"  bigram  {bigram_bits(corpus):.3f}")
    print(f"  {model.cell:7} {model.bits(corpus.held_out):.3f}", flush=True)
    if options.save is not None:
        save(options.save, model)
        print(f"saved     {options.save}")
    if options.sample:
        print(f"sample    at temperature {options.temperature:g}:\n")
        for character in model.write(options.sample, options.temperature, np.random.default_rng(options.seed)):
            print(character, end="", flush=character == "\n")
        print()


def fit(model: CharModel, corpus: Corpus, steps: int, options: argparse.Namespace) -> None:
    """Trains with progress shown. Ctrl-C ends the training, not the demo."""
    progress, word = Progress(steps), "trained"
    try:
        train(model, corpus.train, steps, options.batch, options.seed, progress)
    except KeyboardInterrupt:
        word = "stopped"
    finally:
        seconds = progress.close()
    print(f"{word}   {progress.done} steps in {seconds:.1f} s, last about {progress.bits:.3f} bits per character")


def check_target(path: str | None) -> None:
    """A path that cannot be written should fail before the training, not after it."""
    if path is None:
        return
    target = Path(path)
    if target.suffix != ".npz":
        raise DemoError(f"--save needs a name that ends in .npz, not {path}")
    if not target.parent.is_dir():
        raise DemoError(f"cannot write {path}: there is no folder {target.parent}")
    if target.is_dir() or not os.access(target if target.exists() else target.parent, os.W_OK):
        raise DemoError(f"cannot write {path}: no permission, or a folder")


def check_choice(name: str, given: Any, loaded: Any) -> None:
    if given is not None and given != loaded:
        raise DemoError(f"{name} {given} does not fit the loaded model, which has {loaded}")
