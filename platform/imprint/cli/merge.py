"""`imprint merge`: several Concepts in one, to draw their subjects together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from imprint.cli.errors import TracebackOption, configure_logging, errors_as_messages


def merge(
    concept: Annotated[list[Path], typer.Option(help="Folder of a Concept; give it again for each.")],
    out: Annotated[Path, typer.Option(help="Folder to write the merged Concept to.")],
    weight: Annotated[
        list[float] | None, typer.Option(help="How strongly each changes the model, in the same order; 1 by default.")
    ] = None,
    traceback: Annotated[bool, TracebackOption] = False,
) -> None:
    """Put Concepts of one method and one backbone together."""
    configure_logging()
    with errors_as_messages(traceback):
        from imprint.tuning import Concept, merge_concepts

        merged = merge_concepts([Concept.load(folder) for folder in concept], weight)
        folder = merged.save(out)
        names = ", ".join(merged.learned.placeholders)
        Console(soft_wrap=True, highlight=False, markup=False).print(f"ok: {folder}\nin prompts say: {names}")
