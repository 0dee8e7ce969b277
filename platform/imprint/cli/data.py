"""`imprint data`: what is in shards, and whether they are whole."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from imprint.cli.errors import TracebackOption, configure_logging, errors_as_messages
from imprint.errors import StorageError

if TYPE_CHECKING:
    from imprint.pipelines.inspection import Summary

data = typer.Typer(name="data", help="Look at shards, and check them.", no_args_is_help=True)
_SHOWN = 5  # of the most frequent values

ShardsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="SHARDS...", help="Folders with a manifest.json, or .tar paths and URLs; {000..009} expands."
    ),
]


@data.command()
def inspect(
    shards: ShardsArgument,
    html: Annotated[
        Path | None, typer.Option(help="The contact sheet; by default <name>-contact-sheet.html here.")
    ] = None,
    pictures: Annotated[int, typer.Option(min=0, help="Samples on the contact sheet; 0 writes none.")] = 48,
    split: Annotated[str | None, typer.Option(help="Which shards of a manifest.")] = None,
    traceback: Annotated[bool, TracebackOption] = False,
) -> None:
    """Print counts, sizes, caption lengths and quarantine, and write a contact sheet with masks and captions."""
    configure_logging()
    with errors_as_messages(traceback):
        from imprint.pipelines.contact_sheet import render_sheet
        from imprint.pipelines.inspection import inspect_shards

        with _progress("reading shards") as advance:
            summary, samples = inspect_shards(shards, split, pictures, advance)
        facts = describe(summary)
        table = Table(show_header=False, box=None, pad_edge=False)
        for name, value in facts:
            table.add_row(name, value)
        console = Console(soft_wrap=True, highlight=False)
        console.print(table)
        if pictures:
            name = shards[0].rstrip("/").rpartition("/")[2].removesuffix(".tar")
            sheet = html or Path(f"{''.join(c if c.isalnum() or c in '-_' else '-' for c in name)}-contact-sheet.html")
            try:
                sheet.write_text(render_sheet(", ".join(shards), facts, samples), encoding="utf-8")
            except OSError as error:
                raise StorageError(
                    f"writing the contact sheet {sheet}: {error.strerror}; choose another --html"
                ) from error
            console.print(f"[green]ok[/]: {len(samples)} samples on {sheet}")


@data.command()
def verify(shards: ShardsArgument, traceback: Annotated[bool, TracebackOption] = False) -> None:
    """Compare shards with their manifest (count, bytes, sha256): a line for each fault, and exit code 1 with any."""
    configure_logging()
    with errors_as_messages(traceback):
        from imprint.pipelines.inspection import verify_shards

        with _progress("verifying shards") as advance:
            count, faults = verify_shards(shards, advance)
    for fault in faults:
        typer.echo(str(fault))
    if faults:
        raise typer.Exit(1)
    Console(soft_wrap=True, highlight=False).print(f"[green]ok[/]: {count} shards are as their manifest says")


def describe(summary: Summary) -> list[tuple[str, str]]:
    """The summary as lines of a table."""
    lines = [
        ("shards", f"{summary.shards} ({summary.bytes / 1e6:.1f} MB)"),
        ("samples", str(summary.samples)),
        ("parts", _most(summary.extensions, len(summary.extensions))),
        ("sizes", _sizes(summary.sizes)),
        ("captions", _spread(summary.caption_words, summary.samples, "words")),
        ("masks", _spread([100 * share for share in summary.mask_shares], summary.samples, "% of the picture")),
    ]
    if summary.identities:
        counts = list(summary.identities.values())
        lines.append(("identities", f"{len(counts)}, with {min(counts)} to {max(counts)} samples each"))
    if summary.domains:
        lines.append(("domains", _most(summary.domains, _SHOWN)))
    lines.append(("bad samples", _most(summary.bad, len(summary.bad)) or "none"))
    lines.append(("quarantined", _most(summary.quarantined, len(summary.quarantined)) or "none"))
    lines.append(("filtered", _most(summary.filtered, len(summary.filtered)) or "none"))
    return lines


def _most(counts: Counter[str], shown: int) -> str:
    rest = len(counts) - shown
    text = ", ".join(f"{name} {count}" for name, count in counts.most_common(shown))
    return f"{text} and {rest} more" if rest > 0 else text


def _sizes(sizes: Counter[tuple[int, int]]) -> str:
    if not sizes:
        return "none"
    sides = sorted(min(size) for size in sizes.elements())
    named = Counter({f"{width} x {height}": count for (width, height), count in sizes.items()})
    return f"shorter side {sides[0]} to {sides[-1]} px, median {statistics.median(sides):g}; {_most(named, _SHOWN)}"


def _spread(values: Sequence[float], of: int, unit: str) -> str:
    if not values:
        return f"0 of {of}"
    middle = statistics.median(values)
    return f"{len(values)} of {of}; {min(values):.0f} to {max(values):.0f} {unit}, median {middle:.0f}"


@contextmanager
def _progress(doing: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr that goes away; gives the function that moves it."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(doing, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
