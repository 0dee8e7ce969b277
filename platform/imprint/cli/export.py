"""`imprint export`: a Concept in the formats of other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from imprint.cli.errors import TracebackOption, configure_logging, errors_as_messages


def export(
    concept: Annotated[Path, typer.Option(help="Folder of a Concept, as `imprint personalize` writes it.")],
    form: Annotated[
        str, typer.Option("--format", help="diffusers-lora, kohya (ComfyUI), textual-inversion, or diffusers.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write to.")],
    backbone: Annotated[
        str | None, typer.Option(help="By default the backbone that the Concept was learned on.")
    ] = None,
    trigger: Annotated[
        list[str] | None, typer.Option(help="Name of a learned word, such as <my-cat>; one for each subject.")
    ] = None,
    traceback: Annotated[bool, TracebackOption] = False,
) -> None:
    """Write a Concept for diffusers, ComfyUI and other programs."""
    configure_logging()
    with errors_as_messages(traceback):
        console = Console(stderr=True)
        with console.status("loading the backbone"):
            from imprint.backbone import Backbone
            from imprint.tuning import Concept
            from imprint.tuning.export import export_concept

            loaded = Concept.load(concept)
            model = Backbone.load(backbone or loaded.backbone_path)
        files, triggers = export_concept(model, loaded, form, out, triggers=trigger or ())
        written = "\n".join(map(str, files))
        Console(soft_wrap=True, highlight=False, markup=False).print(
            f"ok: {written}\nin prompts say: {', '.join(triggers)}"
        )
