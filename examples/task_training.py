"""What the tasks share: the command line, the training loop, scores, the curve. Needs torch, tqdm and matplotlib.

A task is a subclass of `Task`. `main(Task)` trains its model, with torch's own recurrent modules or with rnnfast's in
their place, from the same weights and on the same batches:

    python examples/sentiment.py --cell gru --framework rnnfast

Recurrent layers run over whole sequences of their own length (`PackedSequence`): nothing is computed for padding.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from task_data import DataError, Vocabulary
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

CELLS: dict[str, Any] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
MAX_NORM = 1.0  # of the gradient of all parameters together


class Task:
    """A model, its batches, its loss, its score. Subclasses set these and override the methods."""

    metric = "accuracy"
    best = max  # or min: which of two scores is the better one
    epochs, batch, rate = 10, 32, 2e-3

    model: nn.Module
    size: int  # number of training examples
    lengths: Tensor | None = None  # of the training examples, [size]

    def __init__(self, options: argparse.Namespace) -> None:
        """Reads the data and makes the model. options: cell, limit (of examples; None for all)."""

    def batches(self) -> Sequence[Any]:
        """One epoch's batches; by default numbers of training examples, [B], in a new order.

        With `lengths`, examples of about the same length come together, so that the last steps are no lonely ones.
        """
        order = torch.randperm(self.size)
        if self.lengths is None:
            return order.split(self.batch)
        parts = [part[self.lengths[part].argsort()] for part in order.split(16 * self.batch)]
        batches = [batch for part in parts for batch in part.split(self.batch)]
        return [batches[n] for n in torch.randperm(len(batches)).tolist()]

    def loss(self, batch: Any) -> Tensor:
        raise NotImplementedError

    def score(self) -> float:
        """Of the held-out examples."""
        raise NotImplementedError

    def baselines(self) -> dict[str, float]:
        """Scores of what needs no network, by name."""
        raise NotImplementedError

    def samples(self) -> list[str]:
        """Lines that show what the model does with held-out examples."""
        return []


class Sequences:
    """N sequences of different length, [T_i] or [T_i, C] each."""

    def __init__(self, rows: Sequence[Any]) -> None:
        tensors = [torch.as_tensor(row) for row in rows]
        self.lengths = torch.tensor([len(row) for row in tensors])
        self.padded = nn.utils.rnn.pad_sequence(tensors, batch_first=True)  # [N, T, ...]

    def __len__(self) -> int:
        return len(self.lengths)

    def packed(self, index: Tensor) -> PackedSequence:
        """The sequences of these numbers."""
        lengths = self.lengths[index]
        rows = self.padded[index, : int(lengths.max())]
        return pack_padded_sequence(rows, lengths, batch_first=True, enforce_sorted=False)


def mapped(function: Callable[[Tensor], Tensor], packed: PackedSequence) -> PackedSequence:
    """The function applied to the steps of all sequences at once."""
    return PackedSequence(function(packed.data), packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)


def sequence_of(packed: PackedSequence) -> Tensor:
    """The number of the sequence that each of the packed steps belongs to."""
    order = torch.arange(packed.batch_sizes[0]) if packed.sorted_indices is None else packed.sorted_indices
    return torch.cat([order[:count] for count in packed.batch_sizes.tolist()])


def padded(packed: PackedSequence) -> tuple[Tensor, Tensor]:
    """[B, T, ...] and where it is padding, [B, T]: torch's `pad_packed_sequence` in one gather, not step by step.

    Padding is not 0, but any of the steps.
    """
    begins = packed.batch_sizes.cumsum(0) - packed.batch_sizes
    order = torch.arange(packed.batch_sizes[0]) if packed.unsorted_indices is None else packed.unsorted_indices
    padding = order[:, None] >= packed.batch_sizes
    place = (begins + order[:, None]).masked_fill(padding, 0)
    return nn.functional.embedding(place, packed.data), padding


def mean_over_time(packed: PackedSequence) -> Tensor:
    """[B, H]"""
    h, padding = padded(packed)
    return h.masked_fill(padding[..., None], 0).sum(dim=1) / (~padding).sum(dim=1, keepdim=True)


def last(state: Any) -> Tensor:
    """h after the last step of the last layer, [B, H], or [B, 2 H] of both directions of a bidirectional layer."""
    h = state[0] if isinstance(state, tuple) else state
    return torch.cat(list(h), dim=-1)


def joined(state: Any) -> Any:
    """The states of both directions, [2, B, H], side by side as one state, [1, B, 2 H]."""
    if isinstance(state, tuple):
        return tuple(joined(part) for part in state)
    return torch.cat(list(state), dim=-1)[None]


@torch.inference_mode()
def written(step: Callable[[Tensor, Any], tuple[Tensor, Any]], state: Any, count: int, longest: int) -> list[list[int]]:
    """Symbols by greedy choice, step by step, for `count` sequences at once; each ends with STOP, or cut off.

    step: symbols [B] and a state to logits [B, V] and the next state.
    """
    symbols = torch.full((count,), Vocabulary.START)
    ended = torch.zeros(count, dtype=torch.bool)
    columns = []
    while len(columns) < longest and not ended.all():
        logits, state = step(symbols, state)
        symbols = logits.argmax(dim=-1)
        ended |= symbols == Vocabulary.STOP
        columns.append(symbols)
    return torch.stack(columns, dim=1).tolist()


# --- scores ---


def edits(found: Sequence[Any], expected: Sequence[Any]) -> int:
    """Levenshtein's distance: insertions, deletions and replacements that make one of the other."""
    row = list(range(len(expected) + 1))
    for i, left in enumerate(found):
        corner, row[0] = row[0], i + 1
        for j, right in enumerate(expected):
            corner, row[j + 1] = row[j + 1], min(corner + (left != right), row[j] + 1, row[j + 1] + 1)
    return row[-1]


def error_rate(found: Sequence[Sequence[Any]], expected: Sequence[Sequence[Any]]) -> float:
    """Edits per expected symbol, in percent."""
    wrong = sum(edits(*pair) for pair in zip(found, expected, strict=True))
    return 100 * wrong / sum(len(sequence) for sequence in expected)


def chrf(found: Sequence[str], expected: Sequence[str], longest: int = 6, beta: float = 2.0) -> float:
    """F-score of the character n-grams of 1 to `longest` characters, without spaces, in percent.

    Source: Popovic, chrF: character n-gram F-score for automatic MT evaluation, 2015.
    """
    scores = []
    for n in range(1, longest + 1):
        right = left = total = 0
        for pair in zip(found, expected, strict=True):
            texts = [text.replace(" ", "") for text in pair]
            ours, theirs = (Counter(text[at : at + n] for at in range(len(text) - n + 1)) for text in texts)
            right, left, total = right + (ours & theirs).total(), left + ours.total(), total + theirs.total()
        if total:
            precision, recall = right / max(left, 1), right / total
            scores.append((1 + beta**2) * precision * recall / max(beta**2 * precision + recall, 1e-12))
    return 100 * float(np.mean(scores))


# --- training ---


def train(task: Task, epochs: int) -> Iterator[tuple[float, float]]:
    """Adam with a rate that rises over the first steps and falls to 0. Yields each epoch's mean loss and seconds."""
    from tqdm import tqdm

    parameters = list(task.model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=task.rate, betas=(0.9, 0.99), fused=True)
    total = epochs * len(task.batches())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / 30, 1 - step / total))
    interval = 0.1 if sys.stderr.isatty() else 5.0  # in a log each state of the bar is a line
    with tqdm(total=total, unit="step", desc="training", dynamic_ncols=True, mininterval=interval) as bar:
        for epoch in range(epochs):
            task.model.train()
            losses = []
            begin = clock()
            for batch in task.batches():
                optimizer.zero_grad()
                loss = task.loss(batch)
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, MAX_NORM)
                optimizer.step()
                schedule.step()
                losses.append(loss.item())
                bar.update()
            seconds = clock() - begin
            mean = float(np.mean(losses))
            bar.set_postfix_str(f"epoch {epoch + 1}, loss {mean:.3f}", refresh=False)
            yield mean, seconds


def clock() -> float:
    """Seconds; with one thread those of the processor, which other programs on the machine disturb less."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def measured(task: Task) -> float:
    """The held-out score, without dropout and without gradients."""
    task.model.eval()
    with torch.inference_mode():
        return float(task.score())


def recurrent_seconds(task: Task, batches: int = 16, repeats: int = 5) -> float:
    """Seconds that the recurrent modules alone need in an epoch, forward and backward.

    The inputs, and the gradients by the outputs, of some training steps are recorded; then the modules run on them
    alone, and the shortest of some repetitions counts.
    """
    calls: list[tuple[nn.Module, Any, list[Tensor | None]]] = []

    def keep(gradients: list[Tensor | None], place: int, gradient: Tensor | None) -> None:
        gradients[place] = None if gradient is None else gradient.clone()  # None: the output was not used

    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        gradients: list[Tensor | None] = [None] * len(tensors(output))
        for place, tensor in enumerate(tensors(output)):
            if tensor.requires_grad:
                tensor.register_hook(lambda gradient, place=place: keep(gradients, place, gradient))
        calls.append((module, detached(inputs), gradients))

    modules = [module for module in task.model.modules() if isinstance(module, nn.RNNBase)]
    task.model.train()
    hooks = [module.register_forward_hook(record) for module in modules]
    epoch = task.batches()
    for batch in epoch[:batches]:
        task.loss(batch).backward()
    for hook in hooks:
        hook.remove()

    def once() -> float:
        begin = clock()
        for module, inputs, gradients in calls:
            pairs = [pair for pair in zip(tensors(module(*inputs)), gradients, strict=True) if pair[1] is not None]
            torch.autograd.backward([tensor for tensor, _ in pairs], [gradient for _, gradient in pairs])
        return clock() - begin

    return min(once() for _ in range(repeats)) * len(epoch) / min(len(epoch), batches)


def tensors(value: Any) -> list[Tensor]:
    """Those with values among inputs or outputs of a recurrent module."""
    if isinstance(value, PackedSequence):
        return [value.data]
    if isinstance(value, tuple):
        return [tensor for part in value for tensor in tensors(part)]
    return [value] if isinstance(value, Tensor) else []


def detached(value: Any) -> Any:
    """The same values, for which gradients are computed where they were before."""
    if isinstance(value, PackedSequence):
        return mapped(detached, value)
    if isinstance(value, tuple):
        return tuple(detached(part) for part in value)
    return value.detach().clone().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value


@torch.no_grad()
def start_weights(model: nn.Module) -> None:
    """First weights of the recurrent layers, as Keras has them.

    Orthogonal matrices for h, which keep its length; Glorot's for the inputs; an LSTM's forget gates are open.
    """
    for module in model.modules():
        if not isinstance(module, nn.RNNBase):
            continue
        for name, parameter in module.named_parameters():
            gates = parameter.split(module.hidden_size)
            for place, gate in enumerate(gates):
                if name.startswith("weight_hh"):
                    nn.init.orthogonal_(gate)
                elif name.startswith("weight_ih"):
                    nn.init.xavier_uniform_(gate)
                else:
                    nn.init.constant_(gate, float(module.mode == "LSTM" and name.startswith("bias_ih") and place == 1))


def accelerated(model: nn.Module, framework: str) -> nn.Module:
    """The one place where the frameworks differ."""
    if framework == "rnnfast":
        import rnnfast.torch as rt

        rt.accelerate(model)
    return model


# --- the command line ---


def main(kind: type[Task], about: str) -> int:
    options = command_line(kind, about)
    torch.set_num_threads(options.threads or torch.get_num_threads())
    torch.manual_seed(options.seed)
    try:
        task = kind(options)
    except (DataError, ImportError) as error:
        print(error, file=sys.stderr)
        return 2
    start_weights(task.model)
    accelerated(task.model, options.framework)
    torch.manual_seed(options.seed)  # the batches, whatever the model drew
    parameters = sum(parameter.numel() for parameter in task.model.parameters())
    print(
        f"{task.size} training examples; {options.cell} with {parameters} parameters, {options.framework}", flush=True
    )
    losses, seconds, scores = [], [], []
    for loss, duration in train(task, options.epochs):
        losses.append(loss)
        seconds.append(duration)
        scores.append(measured(task))
    baselines = task.baselines()
    print(f"epoch     {np.median(seconds):.2f} s (median of {len(seconds)})")
    print(f"held out, {task.metric}:")
    for name, score in [*baselines.items(), (options.cell, scores[-1])]:
        print(f"  {name:24} {score:.2f}")
    task.model.eval()
    for line in task.samples():
        print(f"  {line}")
    if options.report:
        result = {name: getattr(options, name) for name in ("cell", "framework", "seed", "threads", "epochs", "limit")}
        result |= {"metric": task.metric, "losses": losses, "seconds": seconds, "scores": scores}
        result |= {"baselines": baselines, "recurrent": recurrent_seconds(task)}
        Path(options.report).write_text(json.dumps(result), encoding="utf-8")
    try:
        draw(task, options, losses, scores, baselines)
    except (OSError, ValueError, ImportError) as error:
        print(f"no picture: {error}", file=sys.stderr)
        return 2
    print(f"drawn: {options.out}")
    return 0


def command_line(kind: type[Task], about: str) -> argparse.Namespace:
    title = about.strip().splitlines()[0]
    parser = argparse.ArgumentParser(description=title, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--cell", choices=CELLS, default="gru", help="kind of recurrent layer")
    parser.add_argument("--framework", choices=["rnnfast", "torch"], default="rnnfast", help="who computes it")
    parser.add_argument("--epochs", type=int, default=kind.epochs, metavar="N", help="times through the data")
    parser.add_argument("--limit", type=int, metavar="N", help="use this many examples, to try it out")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of weights and batches")
    parser.add_argument("--threads", type=int, metavar="N", help="torch's, which rnnfast follows; default: torch's own")
    parser.add_argument("--out", default=f"{Path(sys.argv[0]).stem}.png", metavar="FILE.png", help="the curve")
    parser.add_argument("--report", metavar="FILE.json", help="also write figures, and the time of the recurrent part")
    options = parser.parse_args()
    for name, low in (("epochs", 1), ("limit", 50), ("threads", 1)):
        value = getattr(options, name)
        if value is not None and value < low:
            parser.error(f"--{name} has to be at least {low}, and is {value}")
    if not Path(options.out).parent.is_dir():  # before the training, not after it
        parser.error(f"there is no folder {Path(options.out).parent} for --out")
    return options


def draw(task: Task, options: Any, losses: list[float], scores: list[float], baselines: dict[str, float]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    style: dict[Any, Any] = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True}
    style |= {"grid.color": "#e4e7eb", "axes.edgecolor": "#8a94a3", "axes.titlelocation": "left"}
    with plt.rc_context(style):
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
        epochs = np.arange(1, len(losses) + 1)
        left.plot(epochs, losses, "o-", color="#3b6fb6", markersize=4)
        left.set(title="Training loss", xlabel="epoch", ylabel="nats")
        right.plot(epochs, scores, "o-", color="#3b6fb6", markersize=4, label=options.cell)
        for (name, score), colour in zip(baselines.items(), ("#b8323a", "#d98c1f", "#2a9d6f"), strict=False):
            right.axhline(score, color=colour, linestyle=(0, (4, 3)), label=name)
        right.set(title="Held-out score", xlabel="epoch", ylabel=task.metric)
        for panel in (left, right):
            panel.xaxis.get_major_locator().set_params(integer=True)
        figure.legend(frameon=False, loc="outside lower right", ncols=4)
        figure.suptitle(f"{Path(sys.argv[0]).stem.replace('_', ' ')}: {options.cell}, {options.framework}")
        figure.savefig(options.out, dpi=120)
        plt.close(figure)
