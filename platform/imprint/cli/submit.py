"""`imprint submit`: a job file, with overrides, run on a Ray cluster or, by a RayJob of its own, on Kubernetes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from imprint.cli.errors import TracebackOption, errors_as_messages
from imprint.cli.run import FileArgument, OverridesArgument
from imprint.config.load import JobFile, load_job

if TYPE_CHECKING:
    from imprint.jobs.submit import Submission


def submit(
    file: FileArgument,
    overrides: OverridesArgument = None,
    address: Annotated[
        str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="The Ray cluster's dashboard.")
    ] = "http://127.0.0.1:8265",
    working_dir: Annotated[Path, typer.Option(help="The folder of which the cluster gets a copy.")] = Path("."),
    driver_cpus: Annotated[
        float | None,
        typer.Option(min=0.001, help="CPUs for the driver, which then runs on a worker and outlives the head."),
    ] = None,
    kube: Annotated[bool, typer.Option("--kube", help="Make a RayJob of KubeRay of it, by kubectl.")] = False,
    context: Annotated[str | None, typer.Option(help="With --kube: context of the kubeconfig.")] = None,
    name: Annotated[
        str | None, typer.Option(help="With --kube: name of the RayJob; by default the job's and the time.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the job and end as it ends.")] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be submitted (with --kube: print it), and stop.")
    ] = False,
    traceback: Annotated[bool, TracebackOption] = False,
) -> None:
    """Validate a job file, submit it to a Ray cluster or to Kubernetes, and follow it."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    with errors_as_messages(traceback):
        from imprint.jobs.submit import plan_submission

        job = load_job(file, overrides or ())
        if kube:
            code = _submit_to_kube(
                console, job, overrides or [], context=context, name=name, wait=wait, dry_run=dry_run
            )
        else:
            plan = plan_submission(
                file, overrides or [], address=address, working_dir=working_dir, driver_cpus=driver_cpus
            )
            code = _submit_to_ray(console, plan, wait=wait, dry_run=dry_run)
    raise typer.Exit(code)


def _submit_to_ray(console: Console, plan: Submission, *, wait: bool, dry_run: bool) -> int:
    from imprint.jobs.submit import follow
    from imprint.jobs.submit import submit as send

    if dry_run:
        console.print(f"would submit to {plan.address}, with a copy of {plan.working_dir}:\n  {plan.entrypoint}")
        return 0
    client, job_id = send(plan)
    console.print(f"[green]submitted[/] {job_id} to {plan.address}: {plan.entrypoint}")
    if not wait:
        return 0
    try:
        return follow(client, job_id, lambda text: typer.echo(text, nl=False))
    except KeyboardInterrupt:
        console.print(f"left {job_id} running; stop it with: ray job stop --address {plan.address} {job_id}")
        raise


def _submit_to_kube(
    console: Console,
    job: JobFile,
    overrides: list[str],
    *,
    context: str | None,
    name: str | None,
    wait: bool,
    dry_run: bool,
) -> int:
    from imprint.jobs.kube import job_name, render, to_yaml
    from imprint.jobs.kubectl import Kubectl, follow

    own = str(getattr(job.spec, "name", job.path.stem))
    manifests = render(job, overrides, name=name or f"{job_name(own)[:31]}-{time.strftime('%Y%m%d-%H%M%S')}")
    if dry_run:
        typer.echo(to_yaml(manifests), nl=False)
        return 0
    metadata = manifests[-1]["metadata"]
    chosen, namespace = metadata["name"], metadata["namespace"]
    kubectl = Kubectl.find(context)
    kubectl.create(to_yaml(manifests))
    console.print(f"[green]created[/] RayJob {chosen} in namespace {namespace}; its log: "
                  f"kubectl logs -n {namespace} -f job/{chosen}")  # fmt: skip
    if not wait:
        return 0
    try:
        return follow(kubectl, chosen, namespace, lambda text: typer.echo(text, nl=False))
    except KeyboardInterrupt:
        console.print(f"left {chosen} running; stop it with: kubectl delete rayjob {chosen} -n {namespace}")
        raise
