"""`imprint plan`: FLOPs as counted by hand on one layer, the published figure of SD2.1, and rows that add up."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from typer.testing import CliRunner

from imprint.backbone import Backbone
from imprint.backbone.published import build_published
from imprint.cli.app import app
from imprint.config.load import load_job
from imprint.config.training import EngineSpec
from imprint.errors import ConfigError
from imprint.objective import Batch, Objective, StepOutput
from imprint.training.apply import apply_engine_options
from imprint.training.flops import count_step
from imprint.training.memory import state_bytes
from imprint.training.objectives.denoising import DenoisingObjective
from imprint.training.peaks import GPUS
from imprint.training.plan import job_cost, plan_rows

JOBS = Path(__file__).parents[2] / "jobs"


class OneLayer(Objective):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(30, 50)

    def forward(self, batch: Batch, generator: torch.Generator) -> StepOutput:
        return StepOutput(self.layer(batch["pixel_values"].flatten(1)).square().mean())


class Attention(Objective):
    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Parameter(torch.empty(1, 2, 64, 8))

    def forward(self, batch: Batch, generator: torch.Generator) -> StepOutput:
        return StepOutput(F.scaled_dot_product_attention(self.q, self.q, self.q).mean())


def test_a_linear_layer_is_counted_as_by_hand() -> None:
    batch: Batch = {"pixel_values": torch.zeros(4, 3, 2, 5), "captions": [""] * 4, "keys": list("abcd")}
    cost = count_step(OneLayer(), batch)
    assert cost.forward == 2 * 30 * 50
    assert cost.backward == 2 * 30 * 50, "the input takes no gradient, so there is one product"
    assert cost.kept_elements == 30 + 50, "the input for the weight's gradient, the output for the square's"


def test_attention_without_values_keeps_no_probabilities() -> None:
    with torch.device("meta"):
        objective = Attention()
    batch: Batch = {"pixel_values": torch.empty(1, device="meta"), "captions": [""], "keys": ["a"]}
    cost = count_step(objective, batch)
    product = 2 * 2 * 64 * 64 * 8
    assert (cost.forward, cost.backward) == (2 * product, 4 * product)
    assert cost.kept_elements <= 2 * 64 * 8, "its output; the inputs are parameters"


def test_what_is_computed_again_is_not_counted() -> None:
    costs = []
    for again in (False, True):
        backbone = build_published("sd15", reduced=True)
        backbone.unet.requires_grad_(True)
        apply_engine_options(backbone, EngineSpec(activation_checkpointing=again))
        latents = torch.zeros(2, 4, 8, 8)
        batch: Batch = {"pixel_values": latents, "captions": ["a"] * 2, "keys": ["a", "b"], "latent_mean": latents,
                        "latent_std": latents}  # type: ignore[typeddict-unknown-key]  # fmt: skip
        costs.append(count_step(DenoisingObjective(backbone), batch))
    assert costs[0] == costs[1]
    assert costs[0].backward == pytest.approx(2 * costs[0].forward, rel=0.2)


def test_shapes_cost_what_values_cost() -> None:
    """The same job on the device meta and with numbers."""
    found = []
    for device in ("cpu", "meta"):
        backbone = build_published("sd21-base", reduced=True, device=device)
        backbone.unet.requires_grad_(True)
        latents = torch.zeros(2, 4, 8, 8, device=device)
        batch: Batch = {"pixel_values": latents, "captions": ["a"] * 2, "keys": ["a", "b"], "latent_mean": latents,
                        "latent_std": latents}  # type: ignore[typeddict-unknown-key]  # fmt: skip
        found.append(count_step(DenoisingObjective(backbone), batch))
    assert found[0].flops == pytest.approx(found[1].flops, rel=1e-3)


def test_sd21_takes_the_flops_that_are_known() -> None:
    backbone = build_published("sd21-base", device="meta")
    backbone.unet.requires_grad_(True)
    objective = DenoisingObjective(backbone, caption_dropping=0)
    latents = torch.empty(2, 4, 64, 64, device="meta")
    batch: Batch = {"pixel_values": latents, "captions": ["a"] * 2, "keys": ["a", "b"], "latent_mean": latents,
                    "latent_std": latents}  # type: ignore[typeddict-unknown-key]  # fmt: skip
    objective.text_encoders.requires_grad_(False)
    cost = count_step(objective, batch)
    text = 2 * 77 * sum(p.numel() for p in objective.text_encoders.parameters() if p.ndim == 2)
    # 0.804 TFLOP forward for the UNet at 512 px, and twice that backward; the text encoder runs forward only.
    assert cost.forward - 0.804e12 == pytest.approx(text, rel=0.3)
    assert cost.backward == pytest.approx(2 * 0.804e12, rel=0.01)


@pytest.mark.parametrize("name", ["pretrain_encoder", "finetune_joint"])
def test_rows_of_the_shipped_jobs(name: str) -> None:
    spec = load_job(JOBS / f"{name}.yaml", ()).spec
    cost = job_cost(spec)
    rows = plan_rows(spec, cost, [1, 8, 64], GPUS["H100"], 0.3)
    assert [row.workers for row in rows] == [1, 8, 64]
    assert [row.micro_batch for row in rows] == [32, 4, 16], "64 workers have no share of 32: they keep a worker's 16"
    assert rows[1].images_per_second == pytest.approx(8 * rows[0].images_per_second)
    assert rows[0].hours * 3600 * rows[0].images_per_second == pytest.approx(1000 * 32)
    assert rows[0].images_per_second == pytest.approx(989e12 * 0.3 / (cost.cost.forward + cost.cost.backward))


@pytest.mark.parametrize("train", ["full", "lora"])
def test_dreambooth_counts_a_class_image_with_each_picture(train: str) -> None:
    costs = {}
    for prior in (True, False):
        keys = (f"method.prior.enabled={str(prior).lower()}", f"method.train={train}")
        costs[prior] = job_cost(load_job(JOBS / "dreambooth.yaml", keys).spec)
    assert costs[True].trained == costs[False].trained
    assert costs[True].cost.flops == pytest.approx(2 * costs[False].cost.flops, rel=1e-6)
    unet = sum(p.numel() for p in Backbone.load("imprint-tiny", device="meta").unet.parameters())
    assert (costs[True].trained == unet) == (train == "full") and costs[True].trained <= unet


def test_state_of_each_stage_follows_zero() -> None:
    """ZeRO's Figure 1: with mixed precision 16 bytes a parameter, of which each stage shares some between 64 ranks."""

    def figure(stage: int) -> float:
        engine = EngineSpec(name="deepspeed", zero_stage=stage, precision="bf16")
        return state_bytes(7_500_000_000, engine, 64).device / 1e9

    assert [round(figure(stage), 1) for stage in (0, 1, 2, 3)] == [120.0, 31.4, 16.6, 1.9]


def test_a_job_that_does_not_train_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not train on workers"):
        job_cost(load_job(JOBS / "evaluate.yaml", ()).spec)


def test_the_command_prints_a_table() -> None:
    overrides = ["backbone=sd21-base", "method.object_encoder.clip=ViT-B-32", "data.image_size=512"]
    done = CliRunner().invoke(
        app,
        ["plan", str(JOBS / "finetune_joint.yaml"), *overrides, "--workers", "8", "--workers", "512", "--gpu", "H200"],
    )
    assert done.exit_code == 0, done.output
    assert "TFLOP forward" in done.output and "512" in done.output and "ZeRO-3" in done.output
    wrong = CliRunner().invoke(app, ["plan", str(JOBS / "finetune_joint.yaml"), "--gpu", "H1"])
    assert wrong.exit_code == 2 and "expected one of B200" in wrong.output
