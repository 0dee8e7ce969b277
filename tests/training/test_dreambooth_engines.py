"""DreamBooth under every engine on two ranks, all weights or adapters; and class images that ranks draw together."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch import Tensor

from imprint.backbone import Backbone
from imprint.config.methods import DreamBoothTuneSpec, PriorSpec
from imprint.config.training import EngineSpec, OptimizerSpec
from imprint.methods.dreambooth import Binding, DreamBoothObjective, class_images, make_trained
from imprint.objective import Batch
from imprint.training.engines.base import Engine
from imprint.training.engines.deepspeed import DeepSpeedEngine
from imprint.training.engines.torch import TorchEngine

pytestmark = [pytest.mark.integration, pytest.mark.slow]
RANKS, STEPS = 2, 4
OPTIMIZER = OptimizerSpec(learning_rate=1e-3, clip_norm=1.0)
FULL, LORA = {"text_encoder": True}, {"train": "lora", "text_encoder": True}
SPECS: dict[str, tuple[EngineSpec, dict[str, Any]]] = {
    "plain": (EngineSpec(), FULL),
    "stage-2": (EngineSpec(name="deepspeed", zero_stage=2), FULL),
    "stage-3": (EngineSpec(name="deepspeed", zero_stage=3), FULL),
    "stage-3-bf16": (EngineSpec(name="deepspeed", zero_stage=3, precision="bf16"), FULL),
    "lora-plain": (EngineSpec(), LORA),
    "lora-stage-2": (EngineSpec(name="deepspeed", zero_stage=2), LORA),
    "lora-stage-3": (EngineSpec(name="deepspeed", zero_stage=3), LORA),
}


def subject(step: int, rank: int) -> Batch:
    generator = torch.Generator().manual_seed(10 * step + rank)
    pixels = torch.rand(4, 3, 16, 16, generator=generator) * 2 - 1
    return {"pixel_values": pixels, "captions": ["a cat"] * 4, "contexts": ["smiling"] * 4, "keys": list("abcd")}


def prior(folder: Path) -> PriorSpec:
    return PriorSpec(images=5, cache_dir=str(folder), sampling={"steps": 2})


def worker(rank: int, port: int, folder: str, pipeline: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=RANKS)
    backbone = Backbone.load(pipeline)
    own = Path(folder) / f"cache-{rank}"  # each rank's is its own, as on nodes without a common disk
    few = class_images(backbone, prior(own).model_copy(update={"images": 2}), "cat", by_all_ranks=True)
    images = class_images(backbone, prior(own), "cat", by_all_ranks=True)
    save_file({"few": few, "images": images}, Path(folder) / f"images-{rank}.safetensors")
    for name, (spec, keys) in SPECS.items():
        method = DreamBoothTuneSpec(**keys)
        objective = DreamBoothObjective(
            make_trained(backbone, method, seed=0), method, Binding("a zzq cat", "cat", images)
        )
        engine: Engine = (
            TorchEngine(objective, spec, OPTIMIZER)
            if spec.name == "torch"
            else DeepSpeedEngine(objective, spec, OPTIMIZER)
        )
        trace = []
        for step in range(STEPS):
            output = engine.forward(subject(step, rank), torch.Generator().manual_seed(step + 100 * rank))
            engine.backward(output.loss, 1)
            norm = engine.step(1e-3)
            trace.append(torch.stack([engine.mean(output.loss.detach().float().clone()), norm.float()]))
        parameters = {f"end/{key}": value.clone() for key, value in engine.parameters().items()}
        if rank == 0:
            save_file({"trace": torch.stack(trace), **parameters}, Path(folder) / f"{name}.safetensors")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_sd15: Path) -> Path:
    folder = tmp_path_factory.mktemp("dreambooth-engines")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, (port, str(folder), str(tiny_sd15)), nprocs=RANKS)
    return folder


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["", "lora-"])
@pytest.mark.parametrize("stage", ["stage-2", "stage-3"])
def test_eq_2_under_zero_trains_as_under_plain_torch(folder: Path, kind: str, stage: str) -> None:
    plain, zero = (load_file(folder / f"{kind}{name}.safetensors") for name in ("plain", stage))
    assert plain.keys() == zero.keys()
    assert {name.split(".")[0] for name in plain} == {"trace", "end/unet", "end/text_encoder"}
    assert all("lora_" in name for name in plain if name.startswith("end/")) == bool(kind)
    torch.testing.assert_close(zero["trace"], plain["trace"], rtol=1e-4, atol=1e-5)
    for name in plain:
        torch.testing.assert_close(zero[name], plain[name], rtol=1e-3, atol=1e-4)


def test_bf16_stays_near_fp32(folder: Path) -> None:
    plain, bf16 = (load_file(folder / f"{name}.safetensors") for name in ("plain", "stage-3-bf16"))
    torch.testing.assert_close(bf16["trace"][:, 0], plain["trace"][:, 0], rtol=0.03, atol=0.03)


def test_ranks_draw_their_share_of_the_class_images_and_have_all(folder: Path, tiny_sd15: Path) -> None:
    ranks: list[dict[str, Tensor]] = [load_file(folder / f"images-{rank}.safetensors") for rank in range(RANKS)]
    assert all(torch.equal(ranks[0][name], ranks[1][name]) for name in ("few", "images"))
    images = ranks[0]["images"]
    assert images.shape == (5, 3, 16, 16) and torch.equal(images[:2], ranks[0]["few"]), "those of the cache stay"
    alone = class_images(Backbone.load(tiny_sd15), prior(folder / "cache-alone"), "cat")
    assert int((images.int() - alone.int()).abs().max()) <= 1, "a batch of another size rounds otherwise"
    assert (folder / "cache-0").is_dir() and not (folder / "cache-1").exists()
