"""A limit on how often Ray Data's scheduling loop turns."""

from __future__ import annotations

import time
from typing import Any

from ray.data._internal.execution.execution_callback import ExecutionCallback

_STEP_SECONDS = 0.02  # a block waits 10 ms more on average, which prefetching hides


class PacedScheduling(ExecutionCallback):
    """Sleeps away the rest of each turn of the scheduling loop.

    The loop waits in `ray.wait` for running tasks only. While all is read and the consumer is the slow one, as in
    training, there are none, and it spins: on two cores it took 0.6 to 1.2 of one (Ray 2.60), as much as a worker.
    Ray takes such classes by `DataContext.custom_execution_callback_classes`.
    """

    def __init__(self) -> None:
        self._last = 0.0

    def on_execution_step(self, executor: Any) -> None:
        """Called by the executor after each turn."""
        rest = self._last + _STEP_SECONDS - time.monotonic()
        if rest > 0:
            time.sleep(rest)
        self._last = time.monotonic()
