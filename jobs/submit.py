"""Hand a job file to a running Ray cluster, follow its log, and end as it ends."""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from imprint.config.paths import ROOT_VARIABLE, project_root
from imprint.errors import ConfigError, ImprintError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient


# A head's dashboard answers some seconds before the agent that runs jobs has reported to it.
_NO_AGENT_YET = "No available agent"
_PATIENCE_S = 60


@dataclass(frozen=True)
class Submission:
    """What the cluster is asked to do: run `entrypoint` in a copy of `working_dir`, with CPUs of its own or none."""

    address: str
    entrypoint: str
    working_dir: Path
    runtime_env: dict[str, Any]
    driver_cpus: float | None = None


def plan_submission(
    job_file: Path, overrides: Sequence[str], *, address: str, working_dir: Path, driver_cpus: float | None = None
) -> Submission:
    """Return what to submit, without contacting anything.

    A cluster on this machine gets IMPRINT_ROOT, so that relative paths mean what they mean here; elsewhere they start
    from where the cluster's own IMPRINT_ROOT points. A driver without CPUs of its own runs on the head, and dies with
    it; one with `driver_cpus` runs where CPUs are, which is on a worker where the head has none.

    Raises:
        ConfigError: the working directory is none, or the job file is outside of it.
    """
    folder = working_dir.expanduser().resolve()
    if not folder.is_dir():
        raise ConfigError(f"submitting {job_file}: working directory {working_dir} is not a folder")
    try:
        relative = job_file.expanduser().resolve().relative_to(folder)
    except ValueError as error:
        raise ConfigError(
            f"submitting {job_file}: it lies outside of the working directory {folder}, of which the cluster gets a "
            "copy; move it there or name another --working-dir"
        ) from error
    runtime_env: dict[str, Any] = {"working_dir": str(folder)}
    if _is_loopback(address):
        runtime_env["env_vars"] = {ROOT_VARIABLE: str(project_root())}
    entrypoint = shlex.join(["imprint", "run", relative.as_posix(), *overrides])
    return Submission(address, entrypoint, folder, runtime_env, driver_cpus)


def submit(submission: Submission) -> tuple[JobSubmissionClient, str]:
    """Send the job; return the client and the job's id.

    Raises:
        ImprintError: no cluster answers at the address, or it refuses the job.
    """
    from ray.job_submission import JobSubmissionClient

    try:
        client = JobSubmissionClient(submission.address)
    except (ConnectionError, RuntimeError) as error:
        raise ImprintError(
            f"submitting a job: no Ray dashboard answers at {submission.address} ({_first_line(error)}); "
            "start one with `ray start --head`, or give its --address"
        ) from error
    try:
        return client, _send(client, submission)
    except (RuntimeError, ValueError) as error:
        detail = f"the cluster at {submission.address} refused it: {_first_line(error)}"
        raise ImprintError(f"submitting {submission.entrypoint!r}: {detail}") from error


def _send(client: JobSubmissionClient, submission: Submission) -> str:
    """Submit, and again while the cluster is still coming up."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return client.submit_job(
                entrypoint=submission.entrypoint, runtime_env=submission.runtime_env,
                entrypoint_num_cpus=submission.driver_cpus,
            )  # fmt: skip
        except RuntimeError as error:
            if _NO_AGENT_YET not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(1)


def follow(client: JobSubmissionClient, job_id: str, write: Callable[[str], None]) -> int:
    """Pass the job's log to `write` until the job ends; return its exit code (1 where it was killed or never ran).

    Raises:
        ImprintError: the connection was lost; the job goes on without us.
    """

    async def tail() -> None:
        async for text in client.tail_job_logs(job_id):
            write(text)

    try:
        asyncio.run(tail())
        info = client.get_job_info(job_id)
    except (OSError, RuntimeError) as error:
        raise ImprintError(
            f"following job {job_id}: the connection was lost ({_first_line(error)}); the job goes on, "
            f"see `ray job logs -f {job_id}`"
        ) from error
    if str(info.status) == "SUCCEEDED":
        return 0
    if info.driver_exit_code in (None, 0) and info.message:
        write(f"{info.message}\n")
    return info.driver_exit_code or 1


def _is_loopback(address: str) -> bool:
    host = urlsplit(address).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
