"""`imprint submit`: a job file, with overrides, run on a Ray cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from imprint.cli.errors import TracebackOption, errors_as_messages
from imprint.cli.run import FileArgument, OverridesArgument
from imprint.config.load import load_job


def submit(
    file: FileArgument,
    overrides: OverridesArgument = None,
    address: Annotated[
        str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="The Ray cluster's dashboard.")
    ] = "http://127.0.0.1:8265",
    working_dir: Annotated[Path, typer.Option(help="The folder of which the cluster gets a copy.")] = Path("."),
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the log and end as the job ends.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be submitted, and stop.")] = False,
    traceback: Annotated[bool, TracebackOption] = False,
) -> None:
    """Validate a job file, submit it to a Ray cluster and follow its log."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    with errors_as_messages(traceback):
        load_job(file, overrides or ())
        from imprint.jobs.submit import follow, plan_submission
        from imprint.jobs.submit import submit as send

        plan = plan_submission(file, overrides or (), address=address, working_dir=working_dir)
        if dry_run:
            console.print(f"would submit to {plan.address}, with a copy of {plan.working_dir}:\n  {plan.entrypoint}")
            return
        client, job_id = send(plan)
        console.print(f"[green]submitted[/] {job_id} to {plan.address}: {plan.entrypoint}")
        if not wait:
            return
        try:
            code = follow(client, job_id, lambda text: typer.echo(text, nl=False))
        except KeyboardInterrupt:
            console.print(f"left {job_id} running; stop it with: ray job stop --address {plan.address} {job_id}")
            raise
    raise typer.Exit(code)
