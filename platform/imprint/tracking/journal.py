"""The journal of a run, `log.jsonl`: rank 0 writes a line at each report, others follow it as it grows.

So the trainer never waits for a tracking server or a terminal, and a run can be watched by anyone who sees its folder.
A line is {"step": ..., "loss": ..., metrics ...}; {"step": ..., "samples": <path in the run>}; or, when the workers
start, {"step": ..., "workers": ..., "host": ..., "pid": ..., "pids": [...]}.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

JOURNAL = "log.jsonl"


def write_journal(folder: Path, record: dict[str, Any]) -> None:
    """Append one line."""
    with open(folder / JOURNAL, "a") as out:
        out.write(json.dumps(record) + "\n")


class JournalFollower:
    """Calls `on_record` in a thread for each line written after `start`; `stop` reads to the end first."""

    def __init__(self, folder: Path, on_record: Callable[[dict[str, Any]], None], interval: float = 0.5) -> None:
        self.path, self.on_record, self.interval = folder / JOURNAL, on_record, interval
        self._position = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)

    def start(self) -> JournalFollower:
        self._position = self.path.stat().st_size if self.path.exists() else 0
        self._thread.start()
        return self

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self.interval):
            self._read()
        self._read()

    def _read(self) -> None:
        if not self.path.exists():
            return
        with open(self.path, "rb") as source:
            source.seek(self._position)
            text = source.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._position += len(whole)
        for line in whole.splitlines():
            self.on_record(json.loads(line))
