"""The whole service in one process, without Ray: for tests, also those of applications that use the service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

from fastapi import FastAPI

from imprint.serve.api import create_api
from imprint.serve.artifacts import unpack
from imprint.serve.desk import Desk
from imprint.serve.front import Front
from imprint.serve.jobs import DrawJob, TuneJob, WorkerEvent
from imprint.serve.sampler import SamplerEngine
from imprint.serve.settings import ServeSpec
from imprint.serve.store import Store, open_blobs
from imprint.serve.tuner import TunerEngine
from imprint.serve.tuning import TunerService
from imprint.serve.vault import Vault, find_key
from imprint.tuning import Concept

_HELLO_S = 2.0


class LocalWorkers:
    """One tuner and one sampler."""

    def __init__(self, spec: ServeSpec, store: Store) -> None:
        async def load(place: str) -> Concept:
            return await asyncio.to_thread(unpack, await store.get(place, "weights"))

        self.tuner = TunerService(TunerEngine(spec), store)
        self.sampler = SamplerEngine(spec, load)

    def tune(self, job: TuneJob) -> AsyncIterator[WorkerEvent]:
        return self.tuner.tune(job)

    async def draw(self, job: DrawJob) -> AsyncIterator[WorkerEvent]:
        async with aclosing(self.sampler.draw(job)) as events:
            async for event in events:
                yield event

    async def check(self, prompts: Sequence[str], negative: str = "") -> Mapping[str, Any]:
        return await self.sampler.check(prompts, negative)

    async def export(self, place: str, form: str) -> tuple[bytes, str]:
        return await self.sampler.export(place, form)

    async def is_ready(self) -> bool:
        return True


def create_local_api(spec: ServeSpec) -> FastAPI:
    """The application; any ASGI server runs it, with its lifespan."""
    store = Store(open_blobs(spec.store), Vault(find_key(spec.store)))
    workers = LocalWorkers(spec, store)
    desk = Desk(spec, store, workers)
    api = create_api(Front(spec, desk, workers, store))

    async def say_hello() -> None:
        while True:
            await desk.hello("tuner", "here", [])
            workers.sampler.cache.drop(await desk.hello("sampler", "here", workers.sampler.cache.places))
            await asyncio.sleep(_HELLO_S)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await desk.start()
        hello = asyncio.ensure_future(say_hello())
        yield
        hello.cancel()
        await desk.close()

    api.router.lifespan_context = lifespan
    api.state.desk, api.state.workers = desk, workers
    return api
