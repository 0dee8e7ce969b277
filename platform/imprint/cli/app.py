"""The commands of `imprint`, put together."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from imprint.cli.compare import compare
from imprint.cli.data import data
from imprint.cli.export import export
from imprint.cli.merge import merge
from imprint.cli.personalize import personalize
from imprint.cli.plan import plan
from imprint.cli.run import check, run
from imprint.cli.sample import sample
from imprint.cli.schema import schema
from imprint.cli.serve import serve, verify
from imprint.cli.submit import submit

app = typer.Typer(
    name="imprint",
    help="Teach a text-to-image model your subject in seconds.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,  # locals hold whole tensors, and may hold secrets
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"imprint {version('imprint')}")
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Teach a text-to-image model your subject in seconds."""


app.command()(run)
app.command()(check)
app.command()(plan)
app.command()(submit)
app.command()(schema)
app.command()(personalize)
app.command()(sample)
app.command()(merge)
app.command()(export)
app.command()(compare)
app.command()(serve)
app.command()(verify)
app.add_typer(data)


def main() -> None:
    """Entry point of the `imprint` executable."""
    app()
