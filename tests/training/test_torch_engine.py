"""Gradients of several ranks under plain torch: summed where backward writes them."""

from __future__ import annotations

import os
import platform
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from imprint.config.training import EngineSpec, OptimizerSpec
from imprint.objective import Batch, Objective, StepOutput
from imprint.training.engines.torch import TorchEngine

STEPS, PASSES, RANKS = 3, 2, 2
OPTIMIZER = OptimizerSpec(learning_rate=1e-2, clip_norm=0.5, weight_decay=0.1)


class Network(Objective):
    """A convolution in channels_last, and a word that the pictures of one rank alone use."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        self.word = nn.Parameter(torch.randn(4, 1, 1))
        self.never = nn.Parameter(torch.ones(5))

    def forward(self, batch: Batch, generator: torch.Generator) -> StepOutput:
        found = self.convolution(batch["pixel_values"])
        return StepOutput((found + self.word if batch["captions"][0] else found).square().mean())


def micro(step: int, number: int, rank: int) -> Batch:
    generator = torch.Generator().manual_seed(100 * step + 10 * number + rank)
    return {"pixel_values": torch.randn(2, 3, 5, 5, generator=generator), "captions": ["a word" if rank else ""] * 2,
            "keys": ["", ""]}  # fmt: skip


def state(engine: TorchEngine) -> dict[str, Tensor]:
    values = engine.parameters() | engine.optimizer_state()
    return {name: value.clone(memory_format=torch.contiguous_format) for name, value in values.items()}


def rank_of_two(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=RANKS)
    for name in ("as it is", "cleared", "bf16"):
        spec = EngineSpec(precision="bf16", weights="bf16") if name == "bf16" else EngineSpec()
        engine = TorchEngine(Network(), spec, OPTIMIZER)
        norms = []
        for step in range(STEPS):
            if name == "cleared":  # as counting FLOPs does before the first step
                engine.objective.zero_grad(set_to_none=True)
            for number in range(PASSES):
                engine.backward(engine.forward(micro(step, number, rank), torch.Generator()).loss, PASSES)
            norms.append(engine.step(1e-2))
            for p in engine.named.values():
                assert p.grad is not None and not p.grad.any() and p.grad.stride() == p.stride()
        assert len({p.grad.untyped_storage().data_ptr() for p in engine.named.values()}) == 1
        save_file(state(engine) | {"norm": torch.stack(norms)}, f"{folder}/{name}-{rank}.safetensors")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[dict[str, Tensor]]]]:
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(rank_of_two, (port, str(folder)), nprocs=RANKS)
    yield {
        name: [load_file(folder / f"{name}-{rank}.safetensors") for rank in range(RANKS)]
        for name in ("as it is", "cleared", "bf16")
    }


@pytest.fixture(scope="module")
def alone() -> dict[str, Tensor]:
    """The same pictures by torch itself in one process, without an engine."""
    network, norms = Network(), []
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, betas=OPTIMIZER.betas, eps=OPTIMIZER.epsilon,
                                  weight_decay=0.1)  # fmt: skip
    for step in range(STEPS):
        losses = [network(micro(step, number, rank), torch.Generator()).loss
                  for number in range(PASSES) for rank in range(RANKS)]  # fmt: skip
        torch.stack(losses).mean().backward()
        network.never.grad = torch.zeros(5)  # decays, as it does under every engine of several ranks
        norms.append(nn.utils.clip_grad_norm_(network.parameters(), 0.5))
        optimizer.step()
        optimizer.zero_grad()
    return {name: p.detach() for name, p in network.named_parameters()} | {"norm": torch.stack(norms)}


@pytest.mark.integration
@pytest.mark.parametrize("name", ["as it is", "cleared"])
def test_two_ranks_step_as_one_process_on_all_pictures(
    name: str, found: dict[str, list[dict[str, Tensor]]], alone: dict[str, Tensor]
) -> None:
    first, second = found[name]
    for key, value in alone.items():
        torch.testing.assert_close(first[key], value, rtol=1e-5, atol=1e-7)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert first["exp_avg/word"].any() and not first["exp_avg/never"].any()


@pytest.mark.integration
def test_weights_in_bf16_step_near_those_in_fp32(
    found: dict[str, list[dict[str, Tensor]]], alone: dict[str, Tensor]
) -> None:
    for key, value in alone.items():
        torch.testing.assert_close(found["bf16"][0][key], value, rtol=3e-2, atol=3e-3)


_FAULTS = """
import resource, sys, torch
from imprint.training.heap import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def step():
    kept = [torch.ones(1 << 20) for _ in range(32)]  # 4 MiB each
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_a_step_finds_the_memory_of_the_last_one() -> None:
    # Where the C library gives large blocks back is its own guess, so it is told to at first.
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}

    def faults(how: str) -> int:
        command = [sys.executable, "-c", _FAULTS, how]
        return int(subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout)

    pages = 5 * 32 * (4 << 20) // resource.getpagesize()
    assert faults("give back") > 0.9 * pages and faults("keep") < 0.01 * pages
