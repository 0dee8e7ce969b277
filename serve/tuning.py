"""A tuner as the desk sees it: pictures out of the store, events as it goes, weights into the store."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

from imprint.serve.jobs import TuneJob, WorkerEvent, WorkerLost
from imprint.serve.store import Store
from imprint.serve.tuner import TunerEngine


class TunerService:
    """One tune after another; leaving the events early stops the one behind them at its next step."""

    def __init__(self, engine: TunerEngine, store: Store) -> None:
        self.engine, self.store = engine, store
        self.is_whole = True
        self._turn = asyncio.Lock()

    async def tune(self, job: TuneJob) -> AsyncIterator[WorkerEvent]:
        """See `Workers.tune`.

        Raises:
            Problem: the pictures or the settings will not do.
            WorkerLost: the base model did not stay what it was; this replica is of no use any more.
        """
        async with self._turn:
            yield {"kind": "began"}
            pictures = await self.store.get(job.place, "pictures")
            loop = asyncio.get_running_loop()
            steps: asyncio.Queue[WorkerEvent | None] = asyncio.Queue()
            stopped = threading.Event()

            def on_step(step: int, loss: float) -> None:
                event = {"kind": "step", "step": step, "steps": job.steps, "loss": loss}
                loop.call_soon_threadsafe(steps.put_nowait, event)

            work = asyncio.ensure_future(asyncio.to_thread(self.engine.tune, job, pictures, stopped, on_step))
            work.add_done_callback(lambda done: steps.put_nowait(None))
            try:
                while (event := await steps.get()) is not None:
                    yield event
            finally:
                stopped.set()
                await asyncio.wait([work])
                if self.engine.spec.tuner.verify_base:
                    self.is_whole = await asyncio.to_thread(self.engine.base_is_whole)
            if not self.is_whole:
                raise WorkerLost
            blob = work.result()
            await self._keep(job.place, blob)
            yield {"kind": "learned", "bytes": len(blob)}

    async def _keep(self, place: str, blob: bytes) -> None:
        try:
            await self.store.put(place, "weights", blob)
        except BaseException:
            # Canceled while it was written: the desk has emptied the folder already, or is about to.
            await self.store.blobs.remove(f"{place}/weights")
            raise
