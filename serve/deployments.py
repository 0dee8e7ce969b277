"""The service on Ray Serve: a tuner pool, a sampler pool, and the ingress; beside them the desk, a named actor.

The desk is no deployment, since a redeploy replaces those: it is a detached actor that goes on with what it accepted,
while replicas come and go. It ends when no replica was heard of for as long as a concept lives.

What crosses from process to process and may hold pictures or prompts is sealed with the store's key, so that Ray's
object store, what it spills to disk, and its logs hold none of it in the clear.

Models, and torch with them, are loaded where tuners and samplers begin; desk and ingress do without.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, cast

import ray
from fastapi import FastAPI
from pydantic import ValidationError
from ray import serve
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from imprint.errors import ConfigError
from imprint.serve.api import create_api
from imprint.serve.desk import Desk
from imprint.serve.front import Front
from imprint.serve.jobs import DrawJob, TuneJob, WorkerEvent, WorkerLost
from imprint.serve.problems import Problem
from imprint.serve.settings import PoolSpec, ServeSpec
from imprint.serve.store import Blobs, FolderBlobs, Store, open_blobs
from imprint.serve.tenants import Tenants
from imprint.serve.vault import Vault, find_key

if TYPE_CHECKING:
    from imprint.tuning import Concept

log = logging.getLogger(__name__)

NAMESPACE = "imprint-serve"
_HELLO_S = 2.0
_ALONE_S = 60.0
_CALLS = 10_000  # of the desk at a time; most of them wait for an event
_CROSSING = "crossing"
_LOST = (RayError, RayServeException, WorkerLost)


def build(args: dict[str, Any]) -> serve.Application:
    """The application of `serve/config.yaml`; `args` are the keys of `ServeSpec`.

    Raises:
        ConfigError: a key is wrong, or there is no API key.
    """
    try:
        spec = ServeSpec.model_validate(args or {})
    except ValidationError as error:
        said = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:5])
        raise ConfigError(f"args of the application: {said}") from error
    if spec.keys_file is None:  # the file may lie on the cluster alone
        Tenants.of(spec)
    keys = spec.model_dump(mode="json")
    tuner = _deployment(Tuner, spec.tuner, spec.tuner.target_queue, 1).bind(keys)
    room = 4 * spec.limits.images_waiting
    sampler = _deployment(Sampler, spec.sampler, spec.sampler.target_ongoing, room).bind(keys)
    ingress = _deployment(Ingress, spec.ingress, 64, 1000)
    return ingress.bind(keys, tuner, sampler)


def _deployment(cls: Any, pool: PoolSpec, target: float, ongoing: int) -> Any:
    threads = pool.threads or max(1, round(pool.cpus))
    scaling = {
        "min_replicas": pool.min_replicas, "max_replicas": pool.max_replicas, "target_ongoing_requests": target,
    }  # fmt: skip
    return cls.options(
        autoscaling_config=scaling,
        max_ongoing_requests=ongoing,
        graceful_shutdown_timeout_s=pool.drain_s,
        ray_actor_options={
            "num_cpus": pool.cpus, "num_gpus": pool.gpus,
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(threads)}},
        },
    )  # fmt: skip


# -- the desk ----------------------------------------------------------------------------------------------------


class DeskActor:
    """A `Desk` in an actor of its own, with the store where that is memory."""

    def __init__(self, keys: dict[str, Any], app: str, key: bytes | None) -> None:
        """`key` is that of a store in memory: replicas know it, so that it must outlive this process."""
        self.spec = ServeSpec.model_validate(keys)
        self.key = key or find_key(self.spec.store)
        self.store = Store(open_blobs(self.spec.store), Vault(self.key))
        self.desk = Desk(self.spec, self.store, RayWorkers(app, self.store.vault))
        self._heard = time.monotonic()
        self._started: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None

    async def _begun(self) -> None:
        if self._started is None:
            self._started = asyncio.ensure_future(self.desk.start())
            self._watch = asyncio.ensure_future(self._leave_when_alone())
        await asyncio.shield(self._started)

    async def _leave_when_alone(self) -> None:
        while time.monotonic() - self._heard < max(_ALONE_S, self.spec.store.ttl_s):
            await asyncio.sleep(self.spec.store.sweep_s)
        log.info("no replica was heard of for longer than a concept lives; the desk ends")
        ray.kill(ray.get_runtime_context().current_actor, no_restart=True)

    async def call(self, method: str, args: tuple[Any, ...]) -> Any:
        """A method of the desk; a problem is a value, so that no log shows its text."""
        await self._begun()
        if method == "hello":
            self._heard = time.monotonic()
        try:
            return await getattr(self.desk, method)(*args)
        except Problem as problem:
            return problem

    async def blob(self, method: str, args: tuple[Any, ...]) -> Any:
        """A method of the store in memory; what comes and goes is sealed."""
        try:
            return await getattr(self.store.blobs, method)(*args)
        except Problem as problem:
            return problem

    async def settings(self, keys: dict[str, Any]) -> bytes:
        """Take up new settings, of which the store's stay as they were; the answer is the store's key."""
        spec = ServeSpec.model_validate(keys)
        self.spec = spec
        for holder in (self.desk, self.desk.answers):
            holder.spec = spec
        return self.key


def find_desk(spec: ServeSpec, app: str) -> Any:
    """The actor: the one that is there, or a new one. Another store has another desk."""
    store = hashlib.sha256(spec.store.model_dump_json(include={"url", "key_file"}).encode()).hexdigest()[:8]
    options = {
        "name": f"desk-{app}-{store}", "namespace": NAMESPACE, "lifetime": "detached", "get_if_exists": True,
        "max_concurrency": _CALLS, "num_cpus": _desk_cpus(), "max_restarts": -1,
    }  # fmt: skip
    key = find_key(spec.store) if spec.store.url == "memory" else None
    return ray.remote(DeskActor).options(**options).remote(spec.model_dump(mode="json"), app, key)


def _desk_cpus() -> float:
    """Next to nothing, but where the head has no CPUs enough to be elsewhere: the service should outlive the head."""
    return 0.001 if any(node["Alive"] and not node["Resources"].get("CPU") for node in ray.nodes()) else 0.0


class RemoteDesk:
    """A `Desk` in another process: its methods by their names."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def __getattr__(self, method: str) -> Any:
        async def call(*args: Any) -> Any:
            return _value(await _answer(self.actor.call.remote(method, args)))

        return call


class RemoteBlobs:
    """The desk's memory as a store's blobs."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    async def _call(self, method: str, *args: Any) -> Any:
        return _value(await _answer(self.actor.blob.remote(method, args)))

    async def put(self, path: str, data: bytes) -> None:
        await self._call("put", path, data)

    async def get(self, path: str) -> bytes | None:
        return await self._call("get", path)

    async def remove(self, path: str) -> None:
        await self._call("remove", path)

    async def drop(self, folder: str) -> None:
        await self._call("drop", folder)

    async def folders(self) -> list[str]:
        return await self._call("folders")


async def _answer(reference: Any) -> Any:
    """What the desk says; while it is being restarted that is a 503."""
    try:
        return await reference
    except RayActorError:
        raise Problem.of(503, "no-desk", "the desk is being restarted", retry_after_s=2) from None


def _value(answer: Any) -> Any:
    if isinstance(answer, Problem):
        raise answer
    return answer


async def _join(keys: dict[str, Any]) -> tuple[ServeSpec, Any, Store]:
    """What every replica begins with: the settings, the desk, and the store."""
    spec = ServeSpec.model_validate(keys)
    actor = find_desk(spec, serve.get_replica_context().app_name)
    key = await actor.settings.remote(keys)
    blobs: Blobs = RemoteBlobs(actor) if spec.store.url == "memory" else FolderBlobs(spec.store.url)
    return spec, actor, Store(blobs, Vault(key))


class _Replica:
    """A replica of a pool: known to the desk, and what it says is sealed."""

    async def _begin(self, kind: str, keys: dict[str, Any]) -> ServeSpec:
        self.spec, self.actor, self.store = await _join(keys)
        self.desk = RemoteDesk(self.actor)
        self._kind, self._id = kind, secrets.token_hex(4)
        return self.spec

    def _places(self) -> list[str]:
        return []

    def _drop(self, places: list[str]) -> None:
        return

    def _say_hello(self) -> None:
        self._hello = asyncio.ensure_future(self._hello_forever())

    async def _hello_forever(self) -> None:
        while True:
            try:
                self._drop(await self.desk.hello(self._kind, self._id, self._places()))
            except Problem as problem:
                log.warning("saying hello: %s", problem)
            await asyncio.sleep(_HELLO_S)

    async def _sealed(self, events: AsyncIterator[WorkerEvent]) -> AsyncIterator[bytes | Problem | None]:
        """The events as they cross; a problem as a value; None where the replica gives up."""
        try:
            async with aclosing(cast(Any, events)) as open_events:
                async for event in open_events:
                    yield _seal(self.store.vault, event)
        except Problem as problem:
            yield problem
        except WorkerLost:
            yield None


def _seal(vault: Vault, event: Mapping[str, Any]) -> bytes:
    png = event.get("png")
    return vault.seal_json({**event, "png": None if png is None else png.hex()}, _CROSSING)


def _unseal(vault: Vault, sealed: bytes) -> dict[str, Any]:
    event = vault.open_json(sealed, _CROSSING)
    return {**event, "png": None if event.get("png") is None else bytes.fromhex(event["png"])}


@serve.deployment
class Tuner(_Replica):
    """Tunes, one subject at a time."""

    async def __init__(self, keys: dict[str, Any]) -> None:
        from imprint.serve.tuner import TunerEngine
        from imprint.serve.tuning import TunerService

        spec = await self._begin("tuner", keys)
        self.service = TunerService(await asyncio.to_thread(TunerEngine, spec), self.store)
        self._say_hello()

    async def tune(self, sealed: bytes) -> AsyncIterator[bytes | Problem | None]:
        job = TuneJob.model_validate(self.store.vault.open_json(sealed, _CROSSING))
        async with aclosing(cast(Any, self._sealed(self.service.tune(job)))) as events:
            async for event in events:
                yield event

    def check_health(self) -> None:
        if not self.service.is_whole:
            raise RuntimeError("the base model did not stay what it was")


@serve.deployment
class Sampler(_Replica):
    """Draws; knows many concepts at a time, of which Serve's router is told."""

    async def __init__(self, keys: dict[str, Any]) -> None:
        from imprint.serve.artifacts import unpack
        from imprint.serve.sampler import SamplerEngine

        spec = await self._begin("sampler", keys)

        async def load(place: str) -> Concept:
            return await asyncio.to_thread(unpack, await self.store.get(place, "weights"))

        self.engine = await asyncio.to_thread(SamplerEngine, spec, load)
        self._resident = serve.multiplexed(max_num_models_per_replica=spec.sampler.cached_concepts)(_resident)
        self._say_hello()

    def _places(self) -> list[str]:
        return self.engine.cache.places

    def _drop(self, places: list[str]) -> None:
        self.engine.cache.drop(places)

    async def draw(self, sealed: bytes) -> AsyncIterator[bytes | Problem | None]:
        job = DrawJob.model_validate(self.store.vault.open_json(sealed, _CROSSING))
        if model_id := serve.get_multiplexed_model_id():
            await self._resident(model_id)
        async with aclosing(cast(Any, self._sealed(self.engine.draw(job)))) as events:
            async for event in events:
                yield event

    async def check(self, sealed: bytes) -> Any:
        prompts, negative = self.store.vault.open_json(sealed, _CROSSING)
        try:
            return dict(await self.engine.check(prompts, negative))
        except Problem as problem:
            return problem

    async def export(self, place: str, form: str) -> Any:
        try:
            data, name = await self.engine.export(place, form)
        except Problem as problem:
            return problem
        return self.store.vault.seal(data, _CROSSING), name


async def _resident(model_id: str) -> str:
    """Serve counts who has which concept, to send a request where its own is; the engine's cache holds them."""
    return model_id


# -- the pools from outside --------------------------------------------------------------------------------------


class RayWorkers:
    """The pools by their handles, which are looked up by name where `handles` has them not."""

    def __init__(self, app: str, vault: Vault, handles: Mapping[str, DeploymentHandle] | None = None) -> None:
        self.app, self.vault = app, vault
        self._handles = {name: handle.options() for name, handle in (handles or {}).items()}

    def _handle(self, name: str) -> DeploymentHandle:
        if name not in self._handles:
            # By its options a handle begins to ask Serve for the replicas, and not only when it is first used.
            self._handles[name] = serve.get_deployment_handle(name, self.app).options()
        return self._handles[name]

    async def is_ready(self) -> bool:
        """Whether Serve has said who is in the pools: what it has not said when the head dies stays unknown until the
        head is back, and a request that came here would wait for it."""
        try:
            return all(self._handle(name).running_replicas_populated() for name in ("Tuner", "Sampler"))
        except RayServeException:  # not deployed yet
            return False

    async def tune(self, job: TuneJob) -> AsyncIterator[WorkerEvent]:
        handle = self._handle("Tuner").options(stream=True)
        async with aclosing(cast(Any, self._stream(handle.tune, job.model_dump(mode="json")))) as events:
            async for event in events:
                yield event

    async def draw(self, job: DrawJob) -> AsyncIterator[WorkerEvent]:
        handle = self._handle("Sampler").options(stream=True, multiplexed_model_id="+".join(job.places))
        async with aclosing(cast(Any, self._stream(handle.draw, job.model_dump(mode="json")))) as events:
            async for event in events:
                yield event

    async def _stream(self, method: Any, job: dict[str, Any]) -> AsyncIterator[WorkerEvent]:
        response = method.remote(self.vault.seal_json(job, _CROSSING))
        ended = False
        try:
            async for sealed in response:
                if sealed is None:
                    ended = True
                    raise WorkerLost
                yield _unseal(self.vault, _value(sealed))
            ended = True
        except Problem:
            ended = True
            raise
        except BackPressureError:
            raise Problem.of(503, "busy", "enough requests wait", retry_after_s=2) from None
        except Exception as error:
            raise _as_lost(error) from None
        finally:
            if not ended:
                response.cancel()

    async def check(self, prompts: Sequence[str], negative: str = "") -> Mapping[str, Any]:
        sealed = self.vault.seal_json([list(prompts), negative], _CROSSING)
        try:
            return _value(await self._handle("Sampler").check.remote(sealed))
        except Problem:
            raise
        except Exception as error:
            raise _as_lost(error) from None

    async def export(self, place: str, form: str) -> tuple[bytes, str]:
        handle = self._handle("Sampler").options(multiplexed_model_id=place)
        try:
            sealed, name = _value(await handle.export.remote(place, form))
        except Problem:
            raise
        except Exception as error:
            raise _as_lost(error) from None
        return self.vault.open(sealed, _CROSSING), name


def _as_lost(error: Exception) -> Exception:
    """WorkerLost where a replica died or was taken away; an error of the work itself stays what it is."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return WorkerLost() if isinstance(cause, _LOST) else error


# -- the ingress -------------------------------------------------------------------------------------------------


@serve.deployment
@serve.ingress()
class Ingress:
    """HTTP."""

    async def __init__(self, keys: dict[str, Any], tuner: DeploymentHandle, sampler: DeploymentHandle) -> None:
        spec, actor, store = await _join(keys)
        handles = {"Tuner": tuner, "Sampler": sampler}
        workers = RayWorkers(serve.get_replica_context().app_name, store.vault, handles)
        self._api = create_api(Front(spec, cast(Desk, RemoteDesk(actor)), workers, store))

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._api
