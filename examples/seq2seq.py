"""An encoder and a decoder with attention, for the tasks that turn one sequence into another.

Source: Luong, Pham, Manning, Effective approaches to attention-based neural machine translation, 2015.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch
from task_data import Vocabulary, split
from task_training import CELLS, Sequences, Task, joined, mapped, padded, written
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence


class Translator(nn.Module):
    """
    m_s = encoder, both directions                     [H] for each source symbol
    h_t = decoder(symbol t, h_(t-1))                   [H], starts with the encoder's last states
    a_t = softmax over s of h_t . m_s
    z_t = W tanh(V [sum over s of a_t,s m_s; h_t])     a logit for each next symbol
    """

    def __init__(self, cell: str, sources: int, targets: int, embedding: int = 64, hidden: int = 256) -> None:
        super().__init__()
        self.embed_source = nn.Embedding(sources, embedding)
        self.embed_target = nn.Embedding(targets, embedding)
        self.dropout = nn.Dropout(0.2)
        self.encoder = CELLS[cell](embedding, hidden // 2, bidirectional=True)
        self.decoder = CELLS[cell](embedding, hidden)
        self.combine = nn.Linear(2 * hidden, hidden // 2)
        self.head = nn.Linear(hidden // 2, targets)

    def encode(self, source: PackedSequence) -> tuple[Tensor, Tensor, Any]:
        """Memory [B, S, H], what of it is padding [B, S], the decoder's first state."""
        output, state = self.encoder(mapped(lambda numbers: self.dropout(self.embed_source(numbers)), source))
        return *padded(output), joined(state)

    def attend(self, h: Tensor, memory: Tensor, padding: Tensor) -> Tensor:
        """h [B, T, H] -> logits [B, T, V]"""
        weights = (h @ memory.mT).masked_fill(padding[:, None], -torch.inf).softmax(dim=-1)
        return self.head(self.dropout(torch.tanh(self.combine(torch.cat([weights @ memory, h], dim=-1)))))

    def forward(self, source: PackedSequence, inputs: PackedSequence) -> Tensor:
        """Logits [B, T, V] of the symbols after each of the inputs."""
        memory, padding, state = self.encode(source)
        output, _ = self.decoder(mapped(lambda numbers: self.dropout(self.embed_target(numbers)), inputs), state)
        return self.attend(padded(output)[0], memory, padding)

    def write(self, source: PackedSequence, longest: int) -> list[list[int]]:
        memory, padding, start = self.encode(source)

        def step(symbols: Tensor, state: Any) -> tuple[Tensor, Any]:
            h, state = self.decoder(self.embed_target(symbols)[None], state)
            return self.attend(h.mT.permute(2, 0, 1), memory, padding)[:, 0], state

        return written(step, start, len(memory), longest)


class Targets:
    """Sequences to write, as decoder input (START first) and as expected output (STOP last)."""

    def __init__(self, vocabulary: Vocabulary, rows: Sequence[Sequence[str]]) -> None:
        ends = torch.tensor([Vocabulary.START]), torch.tensor([Vocabulary.STOP])
        numbers = [torch.from_numpy(vocabulary.encode(row)) for row in rows]
        self.inputs = Sequences([torch.cat([ends[0], row]) for row in numbers])
        self.outputs = Sequences([torch.cat([row, ends[1]]) for row in numbers])

    def loss(self, logits: Tensor, index: Tensor) -> Tensor:
        """logits: [B, T, V]. Mean cross-entropy of the symbols that are no padding."""
        expected = self.outputs.padded[index, : logits.shape[1]]
        return nn.functional.cross_entropy(logits.flatten(0, 1), expected.flatten(), ignore_index=Vocabulary.PAD)


class PairTask(Task):
    """Learns from pairs of sequences of symbols, and writes the second for held-out firsts."""

    hidden = 256

    def __init__(self, options: argparse.Namespace, pairs: Sequence[tuple[Any, Any]], held_out: int) -> None:
        """held_out: how many at most; pairs with the same source stay together."""
        pairs = pairs[: options.limit]
        train, unseen = split(len(pairs), min(0.2, held_out / len(pairs)), [str(pair[0]) for pair in pairs])
        self.known, self.unseen = [pairs[n] for n in train], [pairs[n] for n in unseen]
        sources, targets = zip(*self.known, strict=True)
        read, write = self.speller(sources), self.speller(targets)
        sources, targets = [*map(read, sources)], [*map(write, targets)]
        self.source, self.target = Vocabulary(sources), Vocabulary(targets)
        self.x, self.y = Sequences([self.source.encode(row) for row in sources]), Targets(self.target, targets)
        self.questions = Sequences([self.source.encode(read(row)) for row, _ in self.unseen])
        self.longest = 2 * self.y.outputs.padded.shape[1]
        self.size, self.lengths = len(self.x), self.x.lengths + self.y.inputs.lengths
        self.model: Translator = Translator(options.cell, len(self.source), len(self.target), hidden=self.hidden)

    def speller(self, texts: Sequence[Any]) -> Callable[[Any], Sequence[str]]:
        """What turns a text like these into symbols; by default each of its elements is one."""
        return list

    def loss(self, batch: Tensor) -> Tensor:
        return self.y.loss(self.model(self.x.packed(batch), self.y.inputs.packed(batch)), batch)

    def answers(self, count: int | None = None) -> list[list[str]]:
        """What the model writes for the first `count` held-out sources."""
        index = torch.arange(len(self.questions))[:count]
        found = [row for part in index.split(256) for row in self.written(part)]
        return [self.target.decode(row) for row in found]

    @torch.inference_mode()
    def written(self, index: Tensor) -> list[list[int]]:
        return self.model.write(self.questions.packed(index), self.longest)
