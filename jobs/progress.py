"""The progress of a run on the driver's terminal: a bar where there is one, else a line at each report."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


class ProgressLine:
    """Shows loss, images/s, share of time spent waiting for data, and time left."""

    def __init__(self, name: str, total_steps: int) -> None:
        self.name, self.total_steps = name, total_steps
        self.bar: Progress | None = None
        if sys.stderr.isatty():
            self.bar = Progress(
                TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[report]}"),
                console=Console(stderr=True), transient=False,
            )  # fmt: skip
            self.task = self.bar.add_task(name, total=total_steps, report="starting")
            self.bar.start()

    def show(self, record: dict[str, Any]) -> None:
        """Take one line of the journal."""
        if "loss" not in record:
            return
        report = describe(record, self.total_steps)
        if self.bar is not None:
            self.bar.update(self.task, completed=record["step"], report=report)
        else:
            print(f"{self.name}: {report}", flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()


def describe(record: dict[str, Any], total_steps: int) -> str:
    """One line: step, loss, images/s, data-wait share, ETA."""
    minutes, seconds = divmod(round(record["eta_seconds"]), 60)
    hours, minutes = divmod(minutes, 60)
    left = f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
    return (
        f"step {record['step']}/{total_steps}  loss {record['loss']:.4f}  {record['images_per_second']:.1f} images/s  "
        f"data wait {100 * record['data_wait_share']:.1f} %  ETA {left}"
    )
