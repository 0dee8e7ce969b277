"""Whole-network tuning of the Taming Encoder under ZeRO on two ranks: the losses and weights of the plain engine."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch import Tensor

from imprint.backbone import Backbone
from imprint.config.methods import TamingSpec
from imprint.config.training import EngineSpec, OptimizerSpec
from imprint.features.clip import ClipFeatures
from imprint.methods.taming import TamingObjective, TripletBatch
from imprint.training.engines.base import Engine
from imprint.training.engines.deepspeed import DeepSpeedEngine
from imprint.training.engines.torch import TorchEngine

pytestmark = [pytest.mark.integration, pytest.mark.slow]
RANKS, STEPS = 2, 4
OPTIMIZER = OptimizerSpec(learning_rate=1e-3, clip_norm=1.0)
SPECS = {
    "plain": (EngineSpec(), True),
    "stage-2": (EngineSpec(name="deepspeed", zero_stage=2), True),
    "stage-3": (EngineSpec(name="deepspeed", zero_stage=3), True),
    "stage-3-bf16": (EngineSpec(name="deepspeed", zero_stage=3, precision="bf16"), True),
    "attentions-plain": (EngineSpec(), False),
    "attentions-stage-2-bf16": (EngineSpec(name="deepspeed", zero_stage=2, precision="bf16"), False),
}


def triplets(step: int, rank: int) -> TripletBatch:
    generator = torch.Generator().manual_seed(10 * step + rank)

    def pictures() -> Tensor:
        return torch.rand(4, 3, 16, 16, generator=generator) * 2 - 1

    return {
        "pixel_values": pictures(), "object_values": pictures(), "object_masks": torch.ones(4, 1, 16, 16),
        "is_domain": torch.tensor([True, False, True, True]), "captions": ["a cat"] * 4, "contexts": ["smiling"] * 4,
        "keys": list("abcd"),
    }  # fmt: skip


def worker(rank: int, port: int, folder: str, pipeline: str, clip: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=RANKS)
    for name, (spec, whole) in SPECS.items():
        torch.manual_seed(0)
        objective = TamingObjective(Backbone.load(pipeline), TamingSpec(whole_network=whole), ClipFeatures.load(clip))
        engine: Engine = (
            TorchEngine(objective, spec, OPTIMIZER)
            if spec.name == "torch"
            else DeepSpeedEngine(objective, spec, OPTIMIZER)
        )
        trace = []
        for step in range(STEPS):
            output = engine.forward(triplets(step, rank), torch.Generator().manual_seed(step + 100 * rank))
            engine.backward(output.loss, 1)
            norm = engine.step(1e-3)
            trace.append(torch.stack([engine.mean(output.loss.detach().float().clone()), norm.float()]))
        parameters = {f"end/{key}": value.clone() for key, value in engine.parameters().items()}
        if rank == 0:
            save_file({"trace": torch.stack(trace), **parameters}, Path(folder) / f"{name}.safetensors")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory, tiny_sd15: Path, tiny_clip: Path) -> dict[str, dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("taming-engines")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, (port, str(folder), str(tiny_sd15), str(tiny_clip)), nprocs=RANKS)
    return {path.stem: load_file(path) for path in folder.glob("*.safetensors")}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("stage", ["stage-2", "stage-3"])
def test_zero_trains_the_whole_network_as_the_plain_engine_does(
    traces: dict[str, dict[str, Tensor]], stage: str
) -> None:
    plain, zero = traces["plain"], traces[stage]
    assert plain.keys() == zero.keys()
    assert {name.split(".")[0] for name in plain} == {"trace", "end/attentions", "end/unet"}
    torch.testing.assert_close(zero["trace"], plain["trace"], rtol=1e-4, atol=1e-5)
    for name in plain:
        torch.testing.assert_close(zero[name], plain[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("plain", "bf16"), [("plain", "stage-3-bf16"), ("attentions-plain", "attentions-stage-2-bf16")]
)
def test_bf16_stays_near_fp32(traces: dict[str, dict[str, Tensor]], plain: str, bf16: str) -> None:
    one, other = traces[plain], traces[bf16]
    assert one.keys() == other.keys()
    torch.testing.assert_close(other["trace"][:, 0], one["trace"][:, 0], rtol=0.03, atol=0.03)
    weight = next(value for name, value in other.items() if name.endswith("to_v.weight"))
    assert weight.dtype == torch.float32 and not torch.equal(weight, weight.bfloat16().float())
