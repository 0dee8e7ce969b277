"""Images/s, latency and memory of drawing pictures with a published backbone.

    python benchmarks/gpu_sample.py --models sd15 sd21-base sdxl --batch-sizes 1 4 16 --json sample.json

Needs torch, diffusers and the core of this project, and no Ray. Weights are random. MFU counts the UNet's products
alone, with guidance twice a step, against the dense bf16 peak of the data sheet.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from gpu_report import attempt, device_options, finish, machine, peak_gb, seconds_of
from torch.utils.flop_counter import FlopCounterMode

from imprint.backbone import TextConditioning
from imprint.backbone.published import SHAPES, build_published
from imprint.config.methods import SampleSpec
from imprint.sampling.draw import draw_prompts
from imprint.training.apply import apply_channels_last, apply_compile
from imprint.training.peaks import peak_flops

OPTIONS = ("bf16", "autocast", "channels_last", "compile", "compile_blocks")


def unet_flops(model: str, *, reduced: bool) -> float:
    """Of one forward pass of the UNet over one picture."""
    backbone = build_published(model, device="meta", reduced=reduced)
    pooled = backbone.text_encoders[-1].config.projection_dim if backbone.family.pooled else None
    text = TextConditioning(
        torch.empty(1, 77, sum(backbone.embedding_widths), device="meta"),
        None if pooled is None else torch.empty(1, pooled, device="meta"),
    )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        backbone.denoise(
            torch.empty(1, *backbone.latent_shape, device="meta"), torch.zeros(1, dtype=torch.long, device="meta"), text
        )
    return float(counter.get_total_flops())


def measure(model: str, batch_size: int, options: set[str], how: argparse.Namespace) -> dict[str, Any]:
    """One row."""
    device = torch.device(how.device)
    torch.manual_seed(0)
    dtype = torch.bfloat16 if "bf16" in options else torch.float32
    backbone = build_published(model, device=device, dtype=dtype, reduced=how.reduced)
    if "channels_last" in options:
        apply_channels_last(backbone.unet)
        apply_channels_last(backbone.vae)
    if options & {"compile", "compile_blocks"}:
        apply_compile(backbone.unet, "whole" if "compile" in options else "blocks")
    spec = SampleSpec(
        steps=how.steps, batch_size=batch_size, guidance_scale=how.guidance,
        precision="bf16" if options & {"bf16", "autocast"} else "fp32",
    )  # fmt: skip
    prompts = ["a photo of a person"] * batch_size

    def draw() -> None:
        draw_prompts(backbone, prompts, spec, seeds=list(range(batch_size)))

    seconds = seconds_of(draw, device, warm=how.warm, times=how.times)
    passes = 1 if how.guidance == 1 else 2
    flops, peak = unet_flops(model, reduced=how.reduced) * passes * how.steps, peak_flops(device)
    speed = batch_size / seconds
    return {
        "images/s": speed, "seconds a batch": seconds, "MFU": speed * flops / peak if peak else None,
        "peak memory, GB": peak_gb(device),
    }  # fmt: skip


def rows(how: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for model in how.models:
        for options in how.options:
            chosen = set(filter(None, options.split(",")))
            if chosen - set(OPTIONS):
                raise SystemExit(f"--options: {sorted(chosen - set(OPTIONS))} unknown, expected of {OPTIONS}")
            for batch_size in how.batch_sizes:
                head = {"model": model, "options": options or "fp32", "batch": batch_size, "steps": how.steps}
                done = attempt(lambda m=model, b=batch_size, o=chosen: measure(m, b, o, how), torch.device(how.device))
                print({**head, **done}, flush=True)
                yield {**head, **done}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(SHAPES), default=["sd15", "sd21-base", "sdxl"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--options", nargs="+", default=["autocast", "bf16", "bf16,channels_last"])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--warm", type=int, default=1)
    parser.add_argument("--times", type=int, default=3)
    device_options(parser)
    how = parser.parse_args()
    finish({"machine": machine(torch.device(how.device)), "rows": list(rows(how))}, how.json)


if __name__ == "__main__":
    main()
