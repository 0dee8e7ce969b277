"""`imprint run` and `imprint check`: a job file, with overrides, run here or only validated."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from imprint.cli.errors import TracebackOption, configure_logging, errors_as_messages
from imprint.config.load import JobFile, load_job
from imprint.errors import ConfigError

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="A job file, such as jobs/pretrain_encoder.yaml.")]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Keys to change, such as training.steps=20; values are YAML."),
]


def run(
    file: FileArgument,
    overrides: OverridesArgument = None,
    traceback: Annotated[bool, TracebackOption] = False,
) -> None:
    """Run a job file on this machine (or on the Ray cluster that RAY_ADDRESS names)."""
    configure_logging()
    with errors_as_messages(traceback):
        job = load_job(file, overrides or ())
        _preflight(job)
        from imprint.jobs import load_runner

        load_runner(job.kind)(job.spec, job_file=job.path, source=job.source)


def check(
    file: FileArgument,
    overrides: OverridesArgument = None,
    traceback: Annotated[bool, TracebackOption] = False,
) -> None:
    """Validate a job file without running it."""
    with errors_as_messages(traceback):
        job = load_job(file, overrides or ())
        _preflight(job)
    Console(soft_wrap=True, highlight=False).print(f"[green]ok[/]: {job.path} is a valid {job.kind} job")


def _preflight(job: JobFile) -> None:
    """Ask a spec that can tell (`preflight() -> list[str]`) what is not in place, such as shards that are not there.

    Raises:
        ConfigError: with a line for each thing that is missing.
    """
    ask = getattr(job.spec, "preflight", None)
    if ask is not None and (problems := ask()):
        raise ConfigError("\n".join(f"{job.path}: {problem}" for problem in problems))
