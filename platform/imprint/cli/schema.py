"""`imprint schema`: the JSON schema that editors complete job files with."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from imprint.cli.errors import errors_as_messages
from imprint.config.schema import job_schema


def schema(
    kind: Annotated[str | None, typer.Argument(help="One kind of job, or all of them.")] = None,
) -> None:
    """Print the JSON schema of job files."""
    with errors_as_messages():
        typer.echo(json.dumps(job_schema(kind), indent=2, sort_keys=True))
