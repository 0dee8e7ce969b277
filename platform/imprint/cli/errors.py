"""How errors reach the person at the terminal: one red line, an exit code, and the traceback only on request."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.text import Text

from imprint.errors import ImprintError

TRACEBACK_VARIABLE = "IMPRINT_TRACEBACK"

TracebackOption = typer.Option(
    "--traceback", envvar=TRACEBACK_VARIABLE, help="Show where an error came from, as well as what it says."
)


@contextmanager
def errors_as_messages(traceback: bool = False) -> Iterator[None]:
    """Print an ImprintError raised inside as `error: <message>` on stderr and exit with its code.

    Any other exception is a bug and keeps its traceback.
    """
    try:
        yield
    except ImprintError as error:
        # Made here and not at import, so that it writes to the stderr of now. Messages keep their length: a path
        # that is cut at the width of a terminal cannot be clicked or searched for.
        console = Console(stderr=True, soft_wrap=True)
        if traceback:
            console.print_exception()
        lines = str(error).splitlines() or [type(error).__name__]
        for line in lines:
            console.print(Text.assemble(("error: ", "bold red"), line))
        raise typer.Exit(error.exit_code) from None


def configure_logging(verbose: bool = False) -> None:
    """Send log records to stderr: warnings and what Imprint reports, or everything."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("imprint").setLevel(logging.DEBUG if verbose else os.environ.get("IMPRINT_LOG", "INFO"))
