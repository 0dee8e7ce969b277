"""A run that goes on with another number of workers, 1 -> 2 -> 1: the losses of a run of one size at every stage.

One run changes its engine with each leg as well.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from test_loop import Recorder, Regression

from imprint.config.training import CheckpointSpec, EmaSpec, EngineSpec, OptimizerSpec, TrainingSpec
from imprint.objective import Batch
from imprint.training.checkpoint import latest_checkpoint, load_checkpoint
from imprint.training.engines.base import Engine
from imprint.training.engines.deepspeed import DeepSpeedEngine
from imprint.training.engines.torch import TorchEngine
from imprint.training.loop import train

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]
BATCH, STEPS = 8, 12
LEGS = ((1, 4), (2, 8), (1, 12))  # workers, and the step until which they train
ENGINES = {
    "torch": EngineSpec(),
    "stage-2": EngineSpec(name="deepspeed", zero_stage=2),
    "stage-3": EngineSpec(name="deepspeed", zero_stage=3),
}
RUNS = {name: (name,) * len(LEGS) for name in ENGINES} | {"mixed": ("torch", "stage-3", "stage-2")}


def pictures(step: int, first: int, size: int) -> Batch:
    """Rows of the step's batch by their place in it, whoever reads them."""
    rows = [torch.randn(1, 2, 2, generator=torch.Generator().manual_seed(100 * step + first + i)) for i in range(size)]
    return {"pixel_values": torch.stack(rows), "captions": [""] * size, "keys": [str(first + i) for i in range(size)]}


def batches(rank: int, passes: int, size: int, step: int) -> Iterator[Batch]:
    while True:
        for number in range(passes):
            yield pictures(step, (rank * passes + number) * size, size)
        step += 1


def leg(rank: int, workers: int, port: int, folder: str, runs: dict[str, str], last: int) -> None:
    """Each of these runs under its engine, from where it is to the step `last`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=workers)
    optimizer = OptimizerSpec(learning_rate=1e-2, clip_norm=0.5, schedule="cosine", warmup_steps=2)
    whole = TrainingSpec(
        steps=STEPS, batch_size=BATCH, optimizer=optimizer, log_every=1, ema=EmaSpec(decay=0.9)
    ).on_workers(workers, 2)  # fmt: skip
    passes = whole.gradient_accumulation

    class UntilThere(Recorder):
        def should_stop(self) -> bool:
            return max(self.losses) == last

    for name, chosen in runs.items():
        spec = ENGINES[chosen]
        engine: Engine = (
            TorchEngine(Regression(), spec, optimizer)
            if spec.name == "torch"
            else DeepSpeedEngine(Regression(), spec, optimizer, accumulation=passes)
        )
        place, hooks = Path(folder) / name, UntilThere()
        resume = latest_checkpoint(place)
        train(
            batches(rank, passes, whole.micro_batch_size(workers), resume.step if resume else 0), engine, whole,
            resume=resume, hooks=hooks, checkpoints=(place, CheckpointSpec(every=100, keep=9)),
        )  # fmt: skip
        if rank == 0:
            with open(Path(folder) / f"{name}.jsonl", "a") as out:
                out.write(json.dumps(hooks.losses) + "\n")
    dist.destroy_process_group()


def start(workers: int, folder: Path, runs: dict[str, str], last: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(leg, (workers, port, str(folder), runs, last), nprocs=workers)


def losses(folder: Path, name: str) -> dict[int, float]:
    lines = (folder / f"{name}.jsonl").read_text().splitlines()
    return {int(step): loss for line in lines for step, loss in json.loads(line).items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every run through the legs, and plain torch on one worker from the first step to the last."""
    place = tmp_path_factory.mktemp("sizes")
    for number, (workers, last) in enumerate(LEGS):
        fixed = {"fixed": "torch"} if last == STEPS else {}
        start(workers, place, {name: engines[number] for name, engines in RUNS.items()} | fixed, last)
    return place


@pytest.mark.parametrize("name", RUNS)
def test_one_then_two_then_one(name: str, folder: Path) -> None:
    expected, found = losses(folder, "fixed"), losses(folder, name)
    assert found.keys() == expected.keys() == set(range(1, STEPS + 1))
    for step, loss in expected.items():
        assert found[step] == pytest.approx(loss, rel=1e-5)
    fixed, state = (load_checkpoint(folder / run / f"step-{STEPS:08d}") for run in ("fixed", name))
    assert fixed.ema is not None and state.ema is not None
    assert state.samples == fixed.samples == STEPS * BATCH
    for key in fixed.parameters:
        torch.testing.assert_close(state.parameters[key], fixed.parameters[key], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(state.ema[key], fixed.ema[key], rtol=1e-4, atol=1e-6)
