"""`imprint plan`: what a job would take on so many GPUs, before a single one is paid for."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from imprint.cli.errors import TracebackOption, errors_as_messages
from imprint.cli.run import FileArgument, OverridesArgument
from imprint.config.load import load_job
from imprint.errors import ConfigError


def plan(
    file: FileArgument,
    overrides: OverridesArgument = None,
    workers: Annotated[
        list[int] | None, typer.Option("--workers", min=1, help="Number of GPUs; again for more.  [1, 8, 64, 512]")
    ] = None,
    gpu: Annotated[str, typer.Option(help="Kind of GPU, such as H100, H200, A100-80, L40S.")] = "H100",
    mfu: Annotated[
        float, typer.Option(min=0.01, max=1, help="Share of the GPU's dense bf16 peak that training reaches.")
    ] = 0.3,
    traceback: Annotated[bool, TracebackOption] = False,
) -> None:
    """Say what a job would take: memory on each GPU, images/s, hours, size of a checkpoint. Nothing is run."""
    with errors_as_messages(traceback):
        from imprint.training.peaks import GPUS
        from imprint.training.plan import GIB, job_cost, plan_rows, rank_bytes, stages

        if gpu not in GPUS:
            raise ConfigError(f"--gpu: {gpu!r} is not known, expected one of {', '.join(GPUS)}")
        job = load_job(file, overrides or ())
        cost = job_cost(job.spec)
        chosen = GPUS[gpu]
        rows = plan_rows(job.spec, cost, workers or [1, 8, 64, 512], chosen, mfu)
        console = Console(soft_wrap=True, highlight=False)
        console.print(
            f"{job.path}: {cost.trained / 1e6:.1f} million parameters train; "
            f"{cost.cost.forward / 1e12:.3g} TFLOP forward and {cost.cost.backward / 1e12:.3g} backward a picture; "
            f"a checkpoint has {cost.checkpoint / 1e9:.2f} GB"
        )
        console.print(
            f"{chosen.name}: {chosen.teraflops:g} TFLOP/s dense in bf16, {chosen.gib:g} GiB to use; an MFU of "
            f"{mfu:.0%} is assumed, and no time for communication or data"
        )
        speed = Table("GPUs", "pictures a pass", "batch", "images/s", "hours")
        engines = stages(job.spec.engine)  # type: ignore[attr-defined]
        memory = Table("GPUs", *engines, title="GiB on each GPU")
        for row in rows:
            speed.add_row(
                str(row.workers), str(row.micro_batch), str(row.batch_size), f"{row.images_per_second:,.0f}",
                f"{row.hours:.2f}",
            )  # fmt: skip
            totals = [rank_bytes(cost, engine, row)[1] / GIB for engine in engines.values()]
            cells = (f"{total:.1f}" if total <= chosen.gib else f"[red]{total:.1f}[/]" for total in totals)
            memory.add_row(str(row.workers), *cells)
        console.print(speed)
        console.print(memory)
        console.print(
            "Memory: state, average, frozen models and what the forward pass keeps; red does not fit. An estimate from "
            "shapes: the state is exact, the rest leaves out the allocator and the working space of kernels."
        )
