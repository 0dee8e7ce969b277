"""DeepSpeed's stages against the plain engine: equal losses and weights, and states that go from one to the other."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from imprint.config.training import EngineSpec, OptimizerSpec
from imprint.errors import TrainingError
from imprint.objective import Batch, Objective, StepOutput
from imprint.training.engines.base import Engine
from imprint.training.engines.deepspeed import DeepSpeedEngine
from imprint.training.engines.torch import TorchEngine

pytestmark = pytest.mark.integration
STEPS, ACCUMULATION, RANKS = 6, 2, 2
OPTIMIZER = OptimizerSpec(learning_rate=1e-2, weight_decay=0.1, clip_norm=0.05)


class Toy(Objective):
    """Odd sizes, so that partitions need padding; two groups with rates of their own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(27, 13), nn.Tanh(), nn.Linear(13, 5))
        self.head = nn.Linear(5, 3)

    def forward(self, batch: Batch, generator: torch.Generator) -> StepOutput:
        x = batch["pixel_values"].flatten(1)
        noise = torch.randn(x.shape, generator=generator)
        output = self.head(self.body(x + 0.1 * noise))
        loss = (output.float() - x[:, :3]).square().mean()
        return StepOutput(loss, {"size": output.detach().float().norm()})

    def parameter_groups(self) -> list[dict[str, object]]:
        return [
            {"params": list(self.body.parameters()), "lr_scale": 1.0},
            {"params": list(self.head.parameters()), "lr_scale": 0.5},
        ]


def batch(step: int, micro: int, rank: int) -> Batch:
    generator = torch.Generator().manual_seed(1000 * step + 10 * micro + rank)
    return {
        "pixel_values": torch.randn(2, 3, 3, 3, generator=generator), "captions": ["", ""], "keys": ["a", "b"],
    }  # fmt: skip


def make(spec: EngineSpec) -> Engine:
    if spec.name == "torch":
        return TorchEngine(Toy(), spec, OPTIMIZER)
    return DeepSpeedEngine(Toy(), spec, OPTIMIZER, accumulation=ACCUMULATION)


def run(engine: Engine, first: int, last: int) -> Tensor:
    """(loss, gradient norm) of each step, averaged over ranks."""
    found = []
    for step in range(first, last):
        losses = []
        for micro in range(ACCUMULATION):
            generator = torch.Generator().manual_seed(step + 100 * engine.rank)
            output = engine.forward(batch(step, micro, engine.rank), generator)
            engine.backward(output.loss, ACCUMULATION)
            losses.append(output.loss.detach())
        norm = engine.step(OPTIMIZER.learning_rate / (1 + step))
        found.append(torch.stack([engine.mean(torch.stack(losses).mean()), norm.float()]))
    return torch.stack(found)


def worker(rank: int, port: int, folder: str, specs: list[EngineSpec]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=RANKS)
    for spec in specs:
        name = f"{spec.name}-{spec.zero_stage}-{spec.precision}-{spec.offload}"
        engine = make(spec)
        first = run(engine, 0, STEPS // 2)
        parameters = {k: v.clone() for k, v in engine.parameters().items()}
        moments = {k: v.clone() for k, v in engine.optimizer_state().items()}
        rest = run(engine, STEPS // 2, STEPS)
        resumed = make(spec)
        resumed.load(parameters, moments)
        averages = check_parts(resumed, parameters)
        again = run(resumed, STEPS // 2, STEPS)
        torch_engine = TorchEngine(Toy(), EngineSpec(), OPTIMIZER)
        torch_engine.load(parameters, moments)
        crossed = run(torch_engine, STEPS // 2, STEPS)
        if rank == 0:
            from safetensors.torch import save_file

            end = {f"end/{k}": v.contiguous().clone() for k, v in engine.parameters().items()}
            resumed_end = {f"resumed/{k}": v.contiguous() for k, v in resumed.parameters().items()}
            record = {"trace": torch.cat([first, rest]), "again": again, "crossed": crossed}
            record |= {"held": torch.tensor([averages]), "skipped": skips_what_is_not_finite(engine)}
            save_file({**record, **end, **resumed_end}, Path(folder) / f"{name}.safetensors")
        else:
            engine.parameters()
            resumed.parameters()
            skips_what_is_not_finite(engine)
    dist.destroy_process_group()


def check_parts(engine: Engine, parameters: dict[str, Tensor]) -> int:
    """An average goes to this rank's parts and back, bit for bit, and the weights stay; elements held on this rank."""
    average = {name: 2 * value + 1 for name, value in parameters.items()}
    parts = engine.parts(average)
    for name, part in engine.master().items():
        assert parts[name].shape == part.shape and parts[name].data_ptr() != part.data_ptr()
    back = engine.whole(parts)
    now = engine.parameters()
    for name, value in average.items():
        assert torch.equal(back[name], value), (name, engine)
        assert torch.equal(now[name], parameters[name]), (name, engine)
    return sum(part.numel() for part in parts.values())


def skips_what_is_not_finite(engine: Engine) -> Tensor:
    """Of a step with such a loss on one rank: the largest change of a weight, and whether the norm says so."""
    before = {name: value.clone() for name, value in engine.parameters().items()}
    for micro in range(ACCUMULATION):
        one = batch(0, micro, engine.rank)
        if engine.rank == 1:
            one["pixel_values"] = one["pixel_values"] * float("inf")
        engine.backward(engine.forward(one, torch.Generator().manual_seed(1)).loss, ACCUMULATION)
    norm = engine.step(1e-2)
    after = engine.parameters()
    change = max(float((after[name] - before[name]).abs().max()) for name in before)
    run(engine, 0, 1)  # and the next step trains again
    moved = max(float((value - before[name]).abs().max()) for name, value in engine.parameters().items())
    return torch.tensor([change, float(torch.as_tensor(norm).isfinite()), moved])


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    from safetensors.torch import load_file

    folder = tmp_path_factory.mktemp("engines")
    specs = [EngineSpec(), *(EngineSpec(name="deepspeed", zero_stage=stage) for stage in (0, 1, 2, 3))]
    specs += [EngineSpec(name="deepspeed", zero_stage=stage, precision="bf16") for stage in (1, 2, 3)]
    specs += [EngineSpec(name="deepspeed", zero_stage=stage, offload="optimizer") for stage in (2, 3)]
    specs += [EngineSpec(name="deepspeed", zero_stage=3, offload="all")]
    specs += [EngineSpec(precision="bf16", weights="bf16")]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, (port, str(folder), specs), nprocs=RANKS)
    return {path.stem: load_file(path) for path in folder.glob("*.safetensors")}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_stage_gives_the_losses_and_weights_of_the_plain_engine(
    traces: dict[str, dict[str, Tensor]], stage: int
) -> None:
    plain, zero = traces["torch-0-fp32-none"], traces[f"deepspeed-{stage}-fp32-none"]
    torch.testing.assert_close(zero["trace"], plain["trace"], rtol=1e-5, atol=1e-6)
    for name in plain:
        if name.startswith("end/"):
            torch.testing.assert_close(zero[name], plain[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_resumed_run_equals_one_that_was_not_stopped(traces: dict[str, dict[str, Tensor]], stage: int) -> None:
    found = traces[f"deepspeed-{stage}-fp32-none"]
    assert torch.equal(found["again"], found["trace"][STEPS // 2 :])
    ends = [name for name in found if name.startswith("end/")]
    assert len(ends) == 6
    for name in ends:
        assert torch.equal(found[name], found[name.replace("end/", "resumed/")])


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_state_of_any_stage_goes_on_in_the_plain_engine(traces: dict[str, dict[str, Tensor]], stage: int) -> None:
    found = traces[f"deepspeed-{stage}-fp32-none"]
    torch.testing.assert_close(found["crossed"], found["trace"][STEPS // 2 :], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bf16_keeps_fp32_master_weights_and_stays_near_fp32(traces: dict[str, dict[str, Tensor]], stage: int) -> None:
    fp32, bf16 = traces["torch-0-fp32-none"], traces[f"deepspeed-{stage}-bf16-none"]
    torch.testing.assert_close(bf16["trace"][:, 0], fp32["trace"][:, 0], rtol=0.03, atol=0.03)
    weight = bf16["end/body.0.weight"]
    assert weight.dtype == torch.float32
    assert not torch.equal(weight, weight.bfloat16().float())
    assert torch.equal(bf16["again"], bf16["trace"][STEPS // 2 :])


@pytest.mark.parametrize("name", ["2-fp32-optimizer", "3-fp32-optimizer", "3-fp32-all"])
def test_offload_changes_nothing(traces: dict[str, dict[str, Tensor]], name: str) -> None:
    plain, found = traces["torch-0-fp32-none"], traces[f"deepspeed-{name}"]
    torch.testing.assert_close(found["trace"], plain["trace"], rtol=1e-5, atol=1e-6)
    assert torch.equal(found["again"], found["trace"][STEPS // 2 :])


def test_weights_in_bf16_with_fp32_copies_stay_near_fp32(traces: dict[str, dict[str, Tensor]]) -> None:
    fp32, bf16 = traces["torch-0-fp32-none"], traces["torch-0-bf16-none"]
    torch.testing.assert_close(bf16["trace"][:, 0], fp32["trace"][:, 0], rtol=0.03, atol=0.03)
    assert torch.equal(bf16["again"], bf16["trace"][STEPS // 2 :])
    weight = bf16["end/body.0.weight"]
    assert weight.dtype == torch.float32 and not torch.equal(weight, weight.bfloat16().float())


def test_a_rank_keeps_its_part_of_an_average_alone(traces: dict[str, dict[str, Tensor]]) -> None:
    """27 x 13 + 13 + 13 x 5 + 5 + 5 x 3 + 3 = 452 parameters, and what DeepSpeed pads them with."""
    assert traces["torch-0-fp32-none"]["held"].item() == 452
    for stage in (1, 2, 3):
        assert 452 / 2 <= traces[f"deepspeed-{stage}-fp32-none"]["held"].item() <= 0.6 * 452


def test_every_engine_leaves_out_a_step_that_is_not_finite(traces: dict[str, dict[str, Tensor]]) -> None:
    for name, found in traces.items():
        change, finite, moved = found["skipped"].tolist()
        assert (change, finite) == (0, 0), name
        assert 0 < moved < 1, name


def test_deepspeed_without_torch_distributed_says_what_to_do() -> None:
    with pytest.raises(TrainingError, match="start it first"):
        DeepSpeedEngine(Toy(), EngineSpec(name="deepspeed"), OPTIMIZER)
