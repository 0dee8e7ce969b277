"""`imprint serve` and `imprint verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from imprint.cli.errors import TracebackOption, configure_logging, errors_as_messages

UNMARKED_EXIT_CODE = 1


def serve(
    config: Annotated[Path | None, typer.Option(help="A config of Ray Serve; by default serve/config.yaml.")] = None,
    host: Annotated[str | None, typer.Option(help="By default what the config says.")] = None,
    port: Annotated[int | None, typer.Option(help="By default what the config says.")] = None,
    new_key: Annotated[
        str | None, typer.Option(metavar="TENANT", help="Make an API key for a tenant, print it, and end.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Keys of args, such as store.ttl_s=600.")
    ] = None,
    traceback: Annotated[bool, TracebackOption] = False,
) -> None:
    """Serve: upload pictures of a subject, and draw it in new scenes."""
    configure_logging()
    console = Console(soft_wrap=True, highlight=False, markup=False)
    with errors_as_messages(traceback):
        from imprint.serve import launch, tenants

        if new_key is not None:
            key = tenants.new_key()
            tenants.Tenants({new_key: [tenants.key_hash(key)]})
            console.print(f"key: {key}\nconfig: keys: {{{new_key}: [{tenants.key_hash(key)}]}}")
            return
        planned = launch.plan(config, overrides or [], host=host, port=port)
        address = f"http://{planned.host}:{planned.port}{planned.route}"
        if planned.made_key is not None:
            console.print(f"no keys are configured; one for this run: {planned.made_key}")
            address += f"#key={planned.made_key}"
        console.print(f"serving on {address}")
        launch.serve_forever(planned)


def verify(
    image: Annotated[Path, typer.Argument(help="A picture.")],
    key: Annotated[str, typer.Option(help="The watermark's key, where the service has one of its own.")] = "imprint",
    traceback: Annotated[bool, TracebackOption] = False,
) -> None:
    """Say whether a picture bears the marks of Imprint; exit code 1 where it bears none."""
    configure_logging()
    with errors_as_messages(traceback):
        from imprint.serve.provenance import verify as look

        origin = look(image, key)
    found = origin.watermark
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(f"metadata:  {'says that a model made it' if origin.metadata else 'says nothing'}")
    chance = f"score {found.score:.1f}; an unmarked picture gets there with a chance of at most {found.false_alarm:.1g}"
    console.print(f"watermark: {'found' if found.found else 'not found'} ({chance})")
    raise typer.Exit(0 if origin.is_marked else UNMARKED_EXIT_CODE)
