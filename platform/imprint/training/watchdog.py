"""Ends a process whose training hangs, so that whoever started it can start it again.

A rank that waits for another in a collective cannot be asked to stop: nothing of ours runs in it. So a thread watches
the time since the last sign of life, writes down where every thread stands, and ends the process.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)
EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: try again
FIRST = 5.0  # the first step loads, compiles and fills the data pipeline: it may take so many times as long


class Watchdog:
    """Call `beat` at each step; where none comes for `seconds`, `on_hang` is called with a message."""

    def __init__(self, seconds: float, rank: int, on_hang: Callable[[str], None] | None = None) -> None:
        self.seconds, self.rank = seconds, rank
        self.on_hang = on_hang or end_process
        self._last, self._allowed, self._doing = time.monotonic(), seconds * FIRST, "starting"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def beat(self, doing: str, *, started: bool = True) -> None:
        """A sign of life; `doing` is what begins now. Before the first step is over, say so with `started`."""
        self._last, self._doing = time.monotonic(), doing
        self._allowed = self.seconds if started else self.seconds * FIRST

    def _watch(self) -> None:
        while not self._stop.wait(min(1.0, self.seconds / 4)):
            silent = time.monotonic() - self._last
            if silent > self._allowed:
                self.on_hang(
                    f"rank {self.rank} hangs: {self._doing} for {silent:.0f} s, expected {self._allowed:.0f} s at the "
                    "most (cluster.hang_timeout_s)"
                )
                return


def end_process(message: str) -> None:
    """Say where every thread stands, and end at once; nothing is flushed but the log."""
    log.error("%s; ending the process", message)
    faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
    sys.stderr.flush()
    os._exit(EXIT_CODE)
