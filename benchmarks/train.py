"""Our trainer and the plainest loop of diffusers and accelerate that does the same arithmetic, side by side.

Command, on two cores with nothing else running (about five minutes):

    python benchmarks/train.py [--precision fp32 bf16] [--json FILE]

Both train the whole UNet of `imprint-tiny` on the same pictures with the same captions and noise: autoencoder and text
encoder frozen, AdamW, gradients clipped. Their losses are compared step by step. They take turns, each turn in
processes of its own with one thread a worker; the table has the median step over all turns. `--small` is a smoke test.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

KINDS = {"ours": "imprint", "plain": "diffusers + accelerate"}
RATE, CLIP_NORM, SEED, SIDE = 1e-4, 1.0, 7, 64
CAPTION = "a person on a blue background"


def main() -> None:
    """Run every turn, print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a smoke test: few steps, one turn")
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32"])
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--batch", type=int, default=16, help="pictures a worker and step")
    parser.add_argument("--steps", type=int, default=8, help="that count, in each turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where the numbers go")
    how = parser.parse_args()
    if how.small:
        how.steps, how.turns, how.batch = 2, 1, 2
    found: dict[str, Any] = {"machine": _machine(), "batch": how.batch, "runs": []}
    for precision in how.precision:
        for _ in range(how.turns):
            for workers in how.workers:
                for kind in KINDS:
                    run = _start(kind, workers, precision, how)
                    print(f"{precision} {kind} {workers}: {run['seconds']}", file=sys.stderr, flush=True)
                    found["runs"].append({"kind": kind, "workers": workers, "precision": precision, **run})
    print(report(found))
    if how.json:
        how.json.write_text(json.dumps(found, indent=1) + "\n")


def _start(kind: str, workers: int, precision: str, how: argparse.Namespace) -> dict[str, Any]:
    """One turn: `workers` processes as torchrun would start them; what rank 0 measured."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="imprint-train-") as folder:
        target = Path(folder) / "found.json"
        arguments = {"kind": kind, "precision": precision, "batch": how.batch, "steps": how.steps}
        processes = []
        for rank in range(workers):
            env = os.environ | {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(workers), "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true",
            }  # fmt: skip
            command = [sys.executable, __file__, "--worker", json.dumps({**arguments, "target": str(target)})]
            processes.append(subprocess.Popen(command, env=env))
        codes = [process.wait(1200) for process in processes]
        if any(codes):
            raise SystemExit(f"a worker of {kind} ended with {codes}; its messages are above")
        return json.loads(target.read_text())


# -- a worker -----------------------------------------------------------------------------------------------


def worker(how: dict[str, Any]) -> None:
    """One rank of one turn."""
    import torch

    torch.set_num_threads(1)
    rank, workers = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    losses, seconds = (_ours if how["kind"] == "ours" else _plain)(how, rank, workers)
    if rank == 0:
        record = {"seconds": statistics.median(seconds), "losses": losses}
        Path(how["target"]).write_text(json.dumps(record))


def _pictures(step: int, first: int, size: int) -> np.ndarray:
    """uint8 pictures [size, h, w, 3], a pure function of their places."""
    return np.random.default_rng([SEED, step, first]).integers(0, 256, (size, SIDE, SIDE, 3), dtype=np.uint8)


def _ours(how: dict[str, Any], rank: int, workers: int) -> tuple[list[float], list[float]]:
    import torch
    import torch.distributed as dist

    from imprint.backbone import Backbone
    from imprint.config.training import EngineSpec, OptimizerSpec, TrainingSpec
    from imprint.methods.diffusion_loss import diffusion_loss, random_noise
    from imprint.objective import Batch, Objective, StepOutput
    from imprint.training.batches import collate
    from imprint.training.engines.torch import TorchEngine
    from imprint.training.loop import Hooks, train

    class TextToImage(Objective):
        def __init__(self) -> None:
            super().__init__()
            backbone = Backbone.load("imprint-tiny")
            self.unet = backbone.unet.requires_grad_(True).train()
            self.backbone = (backbone,)

        def forward(self, batch: Batch, generator: torch.Generator) -> StepOutput:
            (backbone,) = self.backbone
            latents = backbone.encode_images(batch["pixel_values"])
            noise = random_noise(latents, generator)
            timesteps = torch.randint(0, backbone.schedule.num_timesteps, (len(latents),), generator=generator)
            with torch.no_grad():
                text = backbone.encode_text(batch["captions"])
            output = backbone.denoise(backbone.schedule.add_noise(latents, noise, timesteps), timesteps, text)
            return StepOutput(diffusion_loss(output, backbone.schedule.target(latents, noise, timesteps)))

    class Watch(Hooks):
        def __init__(self) -> None:
            self.losses: list[float] = []
            self.times: list[float] = []

        def on_log(self, step: int, record: dict[str, float]) -> None:
            self.losses.append(record["loss"])

        def on_step(self, step: int, ema: object) -> None:
            self.times.append(time.perf_counter())

    def batches() -> Iterator[Batch]:
        step, size = 0, how["batch"]
        while True:
            images = _pictures(step, rank * size, size)
            rows = [{"image": image, "caption": CAPTION, "__key__": str(place)} for place, image in enumerate(images)]
            yield collate(rows)
            step += 1

    if workers > 1:
        dist.init_process_group("gloo")
    optimizer = OptimizerSpec(learning_rate=RATE, clip_norm=CLIP_NORM)
    spec = TrainingSpec(steps=how["steps"] + 2, batch_size=how["batch"] * workers, optimizer=optimizer, log_every=1)
    watch = Watch()
    torch.manual_seed(SEED)
    engine = TorchEngine(TextToImage(), EngineSpec(precision=how["precision"]), optimizer)
    train(batches(), engine, spec, seed=SEED, hooks=watch)
    if workers > 1:
        dist.destroy_process_group()
    return watch.losses, np.diff(watch.times)[1:].tolist()


def _plain(how: dict[str, Any], rank: int, workers: int) -> tuple[list[float], list[float]]:
    """As diffusers' own example for text-to-image does it, without its options."""
    import torch
    import torch.nn.functional as F
    from accelerate import Accelerator
    from diffusers import AutoencoderTiny, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    from imprint.backbone.loading import embedded_path
    from imprint.training.loop import step_generator

    folder = embedded_path("imprint-tiny")
    accelerator = Accelerator(cpu=True, mixed_precision="bf16" if how["precision"] == "bf16" else "no")
    torch.manual_seed(SEED)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder").eval().requires_grad_(False)
    vae = AutoencoderTiny.from_pretrained(folder / "vae", dtype=torch.float32).eval().requires_grad_(False)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", dtype=torch.float32).train()
    scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
    optimizer = torch.optim.AdamW(unet.parameters(), lr=RATE, weight_decay=0.01)
    unet, optimizer = accelerator.prepare(unet, optimizer)
    size, losses, times = how["batch"], [], []
    for step in range(how["steps"] + 2):
        images = _pictures(step, rank * size, size)
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        generator = step_generator(SEED, step, rank * size)
        with accelerator.autocast(), torch.no_grad():
            latents = vae.encode(pixels).latents * vae.config.scaling_factor
            ids = tokenizer(
                [CAPTION] * size, padding="max_length", max_length=tokenizer.model_max_length, truncation=True,
                return_tensors="pt",
            ).input_ids  # fmt: skip
            text = text_encoder(ids)[0]
        latents = latents.float()
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (size,), generator=generator)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        velocity = scheduler.config.prediction_type == "v_prediction"
        target = scheduler.get_velocity(latents, noise, timesteps) if velocity else noise
        output = unet(noisy, timesteps, text, return_dict=False)[0]
        loss = F.mse_loss(output.float(), target)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(unet.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(accelerator.gather(loss.detach().reshape(1)).mean().item())
        times.append(time.perf_counter())
    accelerator.end_training()
    return losses, np.diff(times)[1:].tolist()


# -- the report ---------------------------------------------------------------------------------------------


def report(found: dict[str, Any]) -> str:
    """The numbers as Markdown."""
    lines = [
        f"\n{found['machine']['processor']}, {found['machine']['cores']} cores, one thread a worker; "
        f"torch {found['machine']['torch']}, diffusers {found['machine']['diffusers']}, "
        f"accelerate {found['machine']['accelerate']}; {found['batch']} pictures of {SIDE} px a worker\n",
        "| precision | workers | imprint, images/s | the plain loop, images/s | ratio | imprint against the plain "
        "loop with one worker | largest difference of a loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for precision in dict.fromkeys(run["precision"] for run in found["runs"]):
        single = _speed(found, "plain", 1, precision)
        for workers in sorted({run["workers"] for run in found["runs"]}):
            ours, plain = (_speed(found, kind, workers, precision) for kind in KINDS)
            pair = [
                next(run["losses"] for run in found["runs"] if (run["kind"], run["workers"], run["precision"])
                     == (kind, workers, precision)) for kind in KINDS
            ]  # fmt: skip
            apart = max(abs(a - b) / b for a, b in zip(*pair, strict=True))
            against = f"{ours / single:.2f}" if single else ""
            lines.append(
                f"| {precision} | {workers} | {ours:.1f} | {plain:.1f} | {ours / plain:.2f} | {against} | {apart:.1e} |"
            )
    return "\n".join(lines)


def _speed(found: dict[str, Any], kind: str, workers: int, precision: str) -> float:
    """Images/s over all workers: the median over turns of the median step."""
    wanted = (kind, workers, precision)
    seconds = [run["seconds"] for run in found["runs"] if (run["kind"], run["workers"], run["precision"]) == wanted]
    return workers * found["batch"] / statistics.median(seconds) if seconds else 0.0


def _machine() -> dict[str, Any]:
    names = ("torch", "diffusers", "accelerate")
    return {"processor": _processor(), "cores": os.cpu_count(), **{name: version(name) for name in names}}


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(json.loads(sys.argv[2]))
    else:
        main()
