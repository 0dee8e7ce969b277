"""`imprint compare`: runs of `evaluate`, `benchmark` and `search` beside one another, subject by subject."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from imprint.cli.errors import TracebackOption, errors_as_messages


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders of finished runs, such as runs/my-run.")
    ],
    out: Annotated[Path, typer.Option(help="The page to write; the same as Markdown lies beside it.")] = Path(
        "comparison.html"
    ),
    against: Annotated[
        str | None, typer.Option(help="Whom all others are compared with: RUN/NAME, or NAME of a single run.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="The page's title.")] = None,
    traceback: Annotated[bool, TracebackOption] = False,
) -> None:
    """Compare finished evaluations: scores with intervals, who beats whom on the same subjects, a Pareto plot."""
    console = Console(soft_wrap=True, highlight=False)
    with errors_as_messages(traceback):
        with Console(stderr=True).status("reading the runs"):
            from imprint.evaluation.page import Page
            from imprint.evaluation.records import read_comparison

            comparison = read_comparison(runs)
            grids = {f"{run.name}": run / "grid.png" for run in runs if (run / "grid.png").is_file()}
            page = Page(title or "Comparison of " + ", ".join(run.resolve().name for run in runs), comparison, against,
                        grids)  # fmt: skip
            tables = page.tables()
            file = page.write(out.absolute().parent, out.stem)
        for cells in tables:
            table = Table(title=cells.title, title_justify="left")
            for number, name in enumerate(cells.header):
                table.add_column(name, justify="left" if number == 0 else "right")
            for row in cells.rows:
                table.add_row(*row)
            console.print(table)
        for note in page.all_notes():
            console.print(note)
        console.print(f"[green]ok[/]: {file}")
