"""rnnfast.torch in several processes: data-parallel training, and workers of a DataLoader."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import programs

torch = pytest.importorskip("torch", reason="tests the PyTorch modules, and torch is not installed")

PARALLEL = """
import copy, sys, tempfile, torch, torch.distributed as dist, torch.multiprocessing as mp
import rnnfast.torch as rt

def batch():
    return torch.randn(6, 8, 5, generator=torch.Generator().manual_seed(1))

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.cell, self.head = rt.LSTM(5, 7, 2, bidirectional=True), rt.GRU(14, 6), torch.nn.Linear(6, 1)
    def forward(self, x):
        return self.head(self.cell(self.layer(x)[0])[0]).square().mean()

def made():
    torch.manual_seed(0)
    return Model()

def work(rank, file):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    model = torch.nn.parallel.DistributedDataParallel(made())
    model(batch()[:, rank * 4 : rank * 4 + 4]).backward()
    if rank == 0:
        single = made()
        single(batch()).backward()
        for mine, other in zip(model.module.parameters(), single.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-7)
        print("equal")
    dist.barrier()
    dist.destroy_process_group()

if __name__ == "__main__":
    mp.spawn(work, (tempfile.mktemp(),), nprocs=2)
"""

LOADER = """
import sys, torch, torch.utils.data
import rnnfast.torch as rt

class Features(torch.utils.data.Dataset):
    def __init__(self, layer):
        self.layer = layer
    def __len__(self):
        return 6
    def __getitem__(self, i):
        with torch.no_grad():
            return self.layer(torch.full((40, 16, 64), float(i)))[0][-1]

if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(2)
    features = Features(rt.GRU(64, 128))
    want = [features[i] for i in range(6)]  # uses threads before the fork
    loader = torch.utils.data.DataLoader(features, None, num_workers=2, multiprocessing_context=sys.argv[1])
    assert all(map(torch.equal, loader, want))
    print("equal")
"""


def run(code: str, tmp_path: Path, *arguments: str) -> str:
    script = tmp_path / "script.py"
    script.write_text(code)
    done = programs.run([sys.executable, script, *arguments], timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed training")
def test_two_processes_give_the_gradients_of_one_on_the_joined_batch(tmp_path: Path) -> None:
    assert run(PARALLEL, tmp_path) == "equal"


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_of_a_data_loader_give_the_same_results(start: str, tmp_path: Path) -> None:
    assert run(LOADER, tmp_path, start) == "equal"
