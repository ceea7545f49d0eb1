"""Data-parallel training of a GRU with PyTorch's DistributedDataParallel on several processes of one machine:

    torchrun --nproc-per-node 2 examples/distributed.py

Every process trains on its own part of each batch; gradients are averaged over the processes (gloo). The task: digits
are read one by one, and at the end it is to be told how many were even. The first process prints the loss and, last,
how many of a held-out set all processes together get right. `--framework torch` runs PyTorch's own GRU instead.
"""

from __future__ import annotations

import argparse
import os

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import rnnfast.torch as rt


class Counter(torch.nn.Module):
    """[B, digits] of 0..9 to [B, digits + 1] logits."""

    def __init__(self, hidden: int, digits: int) -> None:
        super().__init__()
        self.digits = torch.nn.Embedding(10, 16)
        self.gru = torch.nn.GRU(16, hidden, batch_first=True)
        self.head = torch.nn.Linear(hidden, digits + 1)

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        _, state = self.gru(self.digits(numbers))
        return self.head(state[0])


def draw(count: int, digits: int, seed: int) -> TensorDataset:
    numbers = torch.randint(10, (count, digits), generator=torch.Generator().manual_seed(seed))
    return TensorDataset(numbers, (numbers % 2 == 0).sum(1))


def train(arguments: argparse.Namespace) -> float:
    torch.manual_seed(0)  # the same weights in every process
    model = Counter(arguments.hidden, arguments.digits)
    if arguments.framework == "rnnfast":
        rt.accelerate(model)
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.Adam(parallel.parameters(), lr=3e-3)
    data = draw(arguments.numbers, arguments.digits, seed=1)
    sampler: DistributedSampler = DistributedSampler(data)
    for epoch in range(arguments.epochs):
        sampler.set_epoch(epoch)
        total = torch.zeros(())
        for numbers, counts in (loader := DataLoader(data, arguments.batch, sampler=sampler)):
            loss = torch.nn.functional.cross_entropy(parallel(numbers), counts)
            optimizer.zero_grad()
            loss.backward()  # averages the gradients over the processes
            optimizer.step()
            total += loss.detach() / len(loader)
        dist.all_reduce(total)
        if dist.get_rank() == 0:
            print(f"epoch {epoch + 1}: loss {total.item() / dist.get_world_size():.3f}", flush=True)
    return score(model, arguments.digits)


@torch.inference_mode()
def score(model: torch.nn.Module, digits: int) -> float:
    numbers, counts = draw(1000, digits, seed=2).tensors
    own = slice(dist.get_rank(), None, dist.get_world_size())
    right = (model(numbers[own]).argmax(1) == counts[own]).sum()
    dist.all_reduce(right)
    return right.item() / len(numbers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--framework", choices=("rnnfast", "torch"), default="rnnfast")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--numbers", type=int, default=8000, help="in the training set")
    parser.add_argument("--digits", type=int, default=8)
    parser.add_argument("--batch", type=int, default=32, help="of each process")
    parser.add_argument("--hidden", type=int, default=64)
    arguments = parser.parse_args()
    if "RANK" not in os.environ:
        parser.error("start it with torchrun: torchrun --nproc-per-node 2 " + parser.prog)
    dist.init_process_group("gloo")
    right = train(arguments)
    if dist.get_rank() == 0:
        _, counts = draw(1000, arguments.digits, seed=2).tensors
        always = counts.bincount().max().item() / len(counts)
        print(f"held-out numbers told right: {right:.1%} (always the most frequent count: {always:.1%})")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
