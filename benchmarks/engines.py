"""The engine-equality matrix: the same job under every engine, and how far losses and weights are from plain torch.

    python benchmarks/engines.py [--steps 20] [--jobs finetune_joint ...] [--json FILE]

Each job runs on `imprint-tiny` with one worker of plain torch, and then with two workers under torch.distributed and
every ZeRO stage, with and without offload. All see the same pictures and draw the same noise. `--small` takes a random
backbone a few channels wide. The state on
a rank is all that engine and training added to the process when the last step begins: parameters, gradients, optimizer.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import platform
import socket
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from training_jobs import JOBS, make_objective, micro_batches

from imprint.config.training import EngineSpec, OptimizerSpec, TrainingSpec
from imprint.training.engines.base import Engine
from imprint.training.engines.deepspeed import DeepSpeedEngine
from imprint.training.engines.torch import TorchEngine
from imprint.training.loop import Hooks, train
from imprint.training.memory import live_bytes, state_bytes

BATCH, MICRO = 4, 2
REFERENCE = "torch, 1 worker"


def _zero(stage: int, offload: str = "none", precision: str = "fp32") -> tuple[int, EngineSpec]:
    return 2, EngineSpec(name="deepspeed", zero_stage=stage, offload=offload, precision=precision)


ENGINES: dict[str, tuple[int, EngineSpec]] = {
    REFERENCE: (1, EngineSpec()),
    "torch, 2 workers": (2, EngineSpec()),
    "ZeRO-1": _zero(1),
    "ZeRO-2": _zero(2),
    "ZeRO-3": _zero(3),
    "ZeRO-2, optimizer offloaded": _zero(2, "optimizer"),
    "ZeRO-3, optimizer offloaded": _zero(3, "optimizer"),
    "ZeRO-3, all offloaded": _zero(3, "all"),
    "torch bf16, 2 workers": (2, EngineSpec(precision="bf16")),
    "ZeRO-2 bf16": _zero(2, precision="bf16"),
    "ZeRO-3 bf16": _zero(3, precision="bf16"),
}


def main() -> None:
    """Run everything, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--small", action="store_true", help="a random backbone a few channels wide")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES))
    parser.add_argument("--json", type=Path, help="where the numbers go")
    options = parser.parse_args()
    names = [REFERENCE, *(name for name in options.engines if name != REFERENCE)]
    found: dict[str, Any] = {"steps": options.steps, "small": options.small, "machine": _machine(), "jobs": {}}
    for job, results in compare(options.jobs, names, options.steps, small=options.small).items():
        found["jobs"][job] = results
        print(table(job, results), flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def compare(jobs: list[str], names: list[str], steps: int, *, small: bool) -> dict[str, dict[str, dict[str, Any]]]:
    """Each job under each engine against the first of them; `REFERENCE` must be that."""
    with tempfile.TemporaryDirectory(prefix="imprint-engines-") as folder:
        for workers in (1, 2):
            chosen = [name for name in names if ENGINES[name][0] == workers]
            if chosen:
                mp.spawn(_worker, (workers, _free_port(), folder, jobs, chosen, steps, small), nprocs=workers)
        return {job: _against_first(Path(folder) / job, names) for job in jobs}


def _against_first(folder: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    results: dict[str, dict[str, Any]] = {
        name: json.loads((folder / f"{name}.json").read_text()) for name in names
    }  # fmt: skip
    weights = {name: torch.tensor(results[name].pop("weights"), dtype=torch.float64) for name in names}
    reference = results[REFERENCE]
    for name, result in results.items():
        result["loss_difference"] = _largest(result["losses"], reference["losses"])
        result["norm_difference"] = _largest(result["norms"], reference["norms"])
        change = weights[name] - weights[REFERENCE]
        result["weight_difference"] = float(change.norm() / weights[REFERENCE].norm())
    return results


def _largest(ours: list[float], theirs: list[float]) -> float:
    """The largest relative difference of any step."""
    return max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))


class _Trace(Hooks):
    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.seconds: list[float] = []

    def on_log(self, step: int, record: dict[str, float]) -> None:
        self.losses.append(record["loss"])
        self.norms.append(record["gradient_norm"])
        self.seconds.append(record["step_seconds"])


def _worker(
    rank: int, workers: int, port: int, folder: str, jobs: list[str], names: list[str], steps: int, small: bool
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=workers)
    for job in jobs:
        for name in names:
            gc.collect()
            record = _run(job, name, rank, workers, steps, small=small)
            if rank == 0:
                (Path(folder) / job).mkdir(exist_ok=True)
                (Path(folder) / job / f"{name}.json").write_text(json.dumps(record))
    dist.destroy_process_group()


def _run(job: str, name: str, rank: int, workers: int, steps: int, *, small: bool) -> dict[str, Any]:
    """One job under one engine, on this rank."""
    objective = make_objective(job, small=small)
    trains = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    optimizer = OptimizerSpec(learning_rate=1e-4, warmup_steps=5)
    passes = BATCH // MICRO // workers
    spec = TrainingSpec(steps=steps, batch_size=BATCH, gradient_accumulation=passes, optimizer=optimizer, log_every=1)
    kind = ENGINES[name][1]
    engine: Engine = (
        TorchEngine(objective, kind, optimizer)
        if kind.name == "torch"
        else DeepSpeedEngine(objective, kind, optimizer, accumulation=passes)
    )
    trace, began = _Trace(), time.perf_counter()
    before = live_bytes(_tensors())
    held: list[int] = []
    _before_step(engine, steps, lambda: held.append(live_bytes(_tensors())))
    state = train(micro_batches(job, rank, passes, MICRO, small=small), engine, spec, hooks=trace)
    return {
        "losses": trace.losses, "norms": trace.norms, "seconds": time.perf_counter() - began,
        "trains": trains, "weights": _sample(state.parameters),
        "state_bytes": held[0] - before + 4 * trains, "planned_bytes": state_bytes(trains, kind, workers).all,
    }  # fmt: skip


def _tensors() -> list[Tensor]:
    """All tensors of this process, and their gradients."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some modules warn when their attributes are looked at
        found = [thing for thing in gc.get_objects() if isinstance(thing, Tensor)]
        return [*found, *(t.grad for t in found if t.is_leaf and t.grad is not None)]


def _before_step(engine: Engine, number: int, call: Callable[[], None]) -> None:
    """Once, since to look through all objects of the process takes longer than a step."""
    step, left = engine.step, itertools.count(number - 1, -1)

    def watched(learning_rate: float) -> Tensor:
        if next(left) == 0:
            call()
        return step(learning_rate)

    engine.step = watched  # type: ignore[method-assign]


def _sample(parameters: dict[str, Tensor]) -> list[float]:
    """Up to 2,000 values of each parameter, evenly spread: enough to tell weights apart."""
    values = []
    for _, p in sorted(parameters.items()):
        flat = p.flatten()
        values.append(flat[:: max(1, len(flat) // 2000)].double().cpu())
    return torch.cat(values).tolist()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _machine() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "deepspeed")} | {"processor": platform.machine()}


def table(job: str, results: dict[str, dict[str, Any]]) -> str:
    """Markdown: a row for each engine."""
    trains = results[REFERENCE]["trains"] / 1e6
    lines = [
        f"\n{job}: {trains:.2f} million parameters train; last loss {results[REFERENCE]['losses'][-1]:.6f}\n",
        "| engine | largest difference of a loss | of a gradient norm | of the weights at the end | "
        "state on a rank, MB | planned |",
        "|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        cells = (f"{result[f'{what}_difference']:.1e}" for what in ("loss", "norm", "weight"))
        memory = f"{result['state_bytes'] / 1e6:.1f} | {result['planned_bytes'] / 1e6:.1f}"
        lines.append(f"| {name} | {' | '.join(cells)} | {memory} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
