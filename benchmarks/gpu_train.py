"""Images/s, MFU and memory of training a published UNet whole, with latents and text computed before.

    python benchmarks/gpu_train.py --models sd21-base sdxl --batch-sizes 16 32 \\
        --options bf16 bf16,channels_last bf16,compile bf16,checkpointing --json train.json

Needs torch, diffusers and the core of this project, and no Ray. Weights are random: speed does not depend on them.
An option is a list of `bf16` (weights in bf16 with fp32 copies in AdamW), `autocast` (fp32 weights, products in bf16),
`channels_last`, `compile` or `compile_blocks`, `checkpointing`, `ema`. MFU counts the products forward and backward
(nothing that is computed again) against the dense bf16 peak of the data sheet.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from gpu_report import attempt, device_options, finish, machine, peak_gb, seconds_of
from torch import Tensor

from imprint.backbone import Backbone, TextConditioning
from imprint.backbone.published import SHAPES, build_published
from imprint.config.training import EmaSpec, EngineSpec, OptimizerSpec
from imprint.methods.diffusion_loss import random_noise, stratified_timesteps
from imprint.objective import Batch, Objective, StepOutput
from imprint.training.apply import apply_engine_options
from imprint.training.ema import Ema
from imprint.training.engines.torch import TorchEngine
from imprint.training.flops import count_step
from imprint.training.peaks import peak_flops

OPTIONS = ("bf16", "autocast", "channels_last", "compile", "compile_blocks", "checkpointing", "ema")


class PrecomputedDenoising(Objective):
    """The denoising loss of the UNet alone, on latents and text embeddings that come with the batch."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.unet = backbone.unet.requires_grad_(True)
        self.backbone = (backbone,)

    def forward(self, batch: Batch, generator: torch.Generator) -> StepOutput:
        (backbone,) = self.backbone
        latents = batch["latent_mean"]
        noise = random_noise(latents, generator)
        timesteps = stratified_timesteps(len(latents), backbone.schedule.num_timesteps, generator).to(latents.device)
        noisy = backbone.schedule.add_noise(latents, noise, timesteps)
        text = TextConditioning(batch["text_hidden"], batch.get("text_pooled"))
        dtype = backbone.dtype
        if dtype == torch.bfloat16:  # all of it in bf16, norms too, and not only the products
            with torch.autocast(latents.device.type, enabled=False):
                pooled = None if text.pooled is None else text.pooled.to(dtype)
                output = backbone.denoise(noisy.to(dtype), timesteps, TextConditioning(text.hidden.to(dtype), pooled))
        else:
            output = backbone.denoise(noisy, timesteps, text)
        target = backbone.schedule.target(latents, noise, timesteps)
        return StepOutput((output.float() - target.float()).square().mean())


def make_batch(backbone: Backbone, size: int, device: torch.device | str) -> Batch:
    """Random latents and text embeddings."""

    def of(*shape: int) -> Tensor:
        return torch.randn(size, *shape, device=device)

    width = sum(backbone.embedding_widths)
    batch: dict[str, Any] = {
        "latent_mean": of(*backbone.latent_shape), "text_hidden": of(77, width), "keys": [""] * size,
        "pixel_values": of(1), "captions": [""] * size,
    }  # fmt: skip
    if backbone.family.pooled:
        batch["text_pooled"] = of(backbone.text_encoders[-1].config.projection_dim)
    return batch  # type: ignore[return-value]


def engine_spec(options: set[str]) -> EngineSpec:
    """What the named options mean."""
    return EngineSpec(
        precision="bf16" if options & {"bf16", "autocast"} else "fp32",
        weights="bf16" if "bf16" in options else "fp32",
        channels_last="channels_last" in options,
        activation_checkpointing="checkpointing" in options,
        compile="whole" if "compile" in options else "blocks" if "compile_blocks" in options else "none",
    )


def flops_per_image(model: str, size: int | None, *, reduced: bool) -> float:
    """Forward and backward, counted without computing anything."""
    backbone = _sized(build_published(model, device="meta", reduced=reduced), size)
    return count_step(PrecomputedDenoising(backbone), make_batch(backbone, 1, "meta")).flops


def measure(
    model: str, size: int | None, batch_size: int, options: set[str], how: argparse.Namespace
) -> dict[str, Any]:
    """One row: some steps of the trainer's own engine."""
    device = torch.device(how.device)
    torch.manual_seed(0)
    backbone = _sized(build_published(model, device=device, reduced=how.reduced), size)
    backbone.vae.to("cpu")
    for encoder in backbone.text_encoders:
        encoder.to("cpu")
    spec = engine_spec(options)
    objective = PrecomputedDenoising(backbone)
    apply_engine_options(backbone, spec)
    engine = TorchEngine(objective, spec, OptimizerSpec(learning_rate=1e-5))
    ema = Ema(EmaSpec(), engine.master()) if "ema" in options else None
    batch = make_batch(backbone, batch_size, device)
    generator = torch.Generator(device).manual_seed(0)
    losses: list[Tensor] = []

    def step() -> None:
        output = engine.forward(batch, generator)
        engine.backward(output.loss, 1)
        engine.step(1e-5)
        if ema is not None:
            ema.update(engine.master(), 1)
        losses.append(output.loss.detach())

    seconds = seconds_of(step, device, warm=how.warm, times=how.steps)
    speed = batch_size / seconds
    flops, peak = flops_per_image(model, size, reduced=how.reduced), peak_flops(device)
    assert bool(torch.stack(losses).isfinite().all()), "the loss is not finite"
    return {
        "images/s": speed, "MFU": speed * flops / peak if peak else None, "step, ms": 1000 * seconds,
        "peak memory, GB": peak_gb(device), "TFLOP an image": flops / 1e12,
    }  # fmt: skip


def _sized(backbone: Backbone, size: int | None) -> Backbone:
    if size is not None:
        backbone.unet.register_to_config(sample_size=size // backbone.downsampling)
    return backbone


def rows(how: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for model in how.models:
        for options in how.options:
            for batch_size in how.batch_sizes:
                chosen = set(filter(None, options.split(",")))
                if chosen - set(OPTIONS):
                    raise SystemExit(f"--options: {sorted(chosen - set(OPTIONS))} unknown, expected of {OPTIONS}")
                head = {"model": model, "options": options or "fp32", "batch": batch_size}
                done = attempt(lambda m=model, b=batch_size, o=chosen: measure(m, how.size, b, o, how),
                               torch.device(how.device))  # fmt: skip
                print({**head, **done}, flush=True)
                yield {**head, **done}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(SHAPES), default=["sd15", "sd21-base", "sdxl"])
    parser.add_argument("--size", type=int, default=None, help="pixels; null: the model's own")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[8, 16, 32])
    parser.add_argument("--options", nargs="+", default=["autocast", "bf16", "bf16,channels_last", "bf16,compile"])
    parser.add_argument("--warm", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    device_options(parser)
    how = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = True
    finish({"machine": machine(torch.device(how.device)), "rows": list(rows(how))}, how.json)


if __name__ == "__main__":
    main()
