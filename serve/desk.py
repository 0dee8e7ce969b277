"""The desk: takes orders, hands them to the pools, keeps the books. There is one, and it outlives what it hands out.

Whatever it has accepted it finishes: work under which a replica dies is begun again, and a desk that starts anew reads
its books from the store and goes on. What a method of it returns or takes is plain, so that it can stand in another
process.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from imprint.client.models import ConceptStatus, Event, State
from imprint.errors import StorageError
from imprint.serve.answers import Answer, Answers
from imprint.serve.gauges import Gauges
from imprint.serve.jobs import DrawJob, TuneJob, WorkerLost, Workers
from imprint.serve.problems import Problem, concealed, not_found
from imprint.serve.records import Record, SavedPicture, SavedRecord, TuneOrder
from imprint.serve.settings import ServeSpec
from imprint.serve.store import Store

log = logging.getLogger(__name__)

_SEEN_S = 20.0
"""A replica that was not heard of for longer counts as gone."""
_PAUSE_S = 0.5


class Desk:
    """See the module."""

    def __init__(self, spec: ServeSpec, store: Store, workers: Workers) -> None:
        self.spec, self.store, self.workers = spec, store, workers
        self.records: dict[str, Record] = {}
        self.answers = Answers(spec, store)
        self.gauges = Gauges()
        self._images: dict[str, tuple[str, int, float]] = {}  # ticket -> tenant, pictures, deadline
        self._seen: dict[tuple[str, str], float] = {}
        self._background: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Read the books, go on with what was not finished, and sweep from now on."""
        for folder in await self.store.blobs.folders():
            await self._restore(folder)
        self._spawn(self._sweep_forever())

    async def _restore(self, folder: str) -> None:
        name = folder.rpartition("/")[2]
        try:
            saved = json.loads(await self.store.get(folder, "record"))
        except (StorageError, Problem, ValueError):
            log.warning("a folder of the store has no record that opens; it is removed")
            await self.store.drop(folder)
            return
        if self.answers.restore(name, folder, saved):
            return
        record = Record.restored(SavedRecord.model_validate(saved))
        self.records[record.order.id] = record
        if not record.state.is_terminal:
            record.work = self._spawn(self._work(record))

    # -- concepts ----------------------------------------------------------------------------------------------

    async def create(self, order: Mapping[str, Any], pictures: bytes) -> dict[str, Any]:
        """Accept an order; the answer is its status.

        Raises:
            Problem: 429, the tenant has enough; 503, everybody has.
        """
        limits = self.spec.limits
        now = time.time()
        whole = TuneOrder(
            id=f"c_{secrets.token_hex(12)}", created=now, expires=now + self.spec.store.ttl_s, **dict(order)
        )
        own = [record for record in self.records.values() if record.order.tenant == whole.tenant]
        if len(own) >= limits.concepts:
            raise Problem.of(429, "too-many-concepts", f"{limits.concepts} concepts are kept; delete some",
                             retry_after_s=min(record.order.expires for record in own) - now)  # fmt: skip
        if sum(not record.state.is_terminal for record in own) >= limits.tunes_per_tenant:
            raise Problem.of(429, "too-many-tunes", f"{limits.tunes_per_tenant} of your concepts wait or are tuned",
                             retry_after_s=self.gauges.tune_s)  # fmt: skip
        waiting = sum(not record.state.is_terminal for record in self.records.values())
        if waiting >= limits.tunes:
            raise Problem.of(503, "busy", "enough concepts wait for a tuner", retry_after_s=self.gauges.tune_s)
        record = Record(whole)
        self.records[whole.id] = record
        try:
            await self.store.put(whole.place, "pictures", pictures)
            await self._save(record)
        except BaseException:
            self.records.pop(whole.id, None)
            await self.store.drop(whole.place)
            raise
        self.gauges.count("concepts", "accepted")
        record.work = self._spawn(self._work(record))
        return record.status().model_dump(mode="json")

    async def status(self, tenant: str, concept_id: str) -> dict[str, Any]:
        """
        Raises:
            Problem: 404.
        """
        return self._find(tenant, concept_id).status().model_dump(mode="json")

    async def wait(self, tenant: str, concept_id: str, seconds: float) -> dict[str, Any]:
        """The status once tuning has ended, or after `seconds`."""
        record = self._find(tenant, concept_id)
        deadline = time.monotonic() + seconds
        while not record.state.is_terminal and (left := deadline - time.monotonic()) > 0:
            await _within(record.changed.wait(), left)
        return record.status().model_dump(mode="json")

    async def events(self, tenant: str, concept_id: str, after: int, seconds: float) -> list[dict[str, Any]]:
        """What was told after the event number `after`; where there is nothing, what is told within `seconds`."""
        record = self._find(tenant, concept_id)
        if len(record.events) <= after:
            await _within(record.changed.wait(), seconds)
        return [event.model_dump(mode="json") for event in record.events[max(0, after) :]]

    async def cancel(self, tenant: str, concept_id: str) -> dict[str, Any]:
        """End tuning; one that has ended stays as it is.

        Raises:
            Problem: 404; 409, it has succeeded or failed already.
        """
        record = self._find(tenant, concept_id)
        if record.state in (State.SUCCEEDED, State.FAILED):
            raise Problem.of(409, "has-ended", f"it has {record.state.value} already; DELETE removes it")
        if record.state is not State.CANCELED:
            record.end(State.CANCELED)
            await self._stop(record)
            await self.store.drop(record.order.place)
            await self._save(record)
            self.gauges.count("concepts", "canceled")
        return record.status().model_dump(mode="json")

    async def delete(self, tenant: str, concept_id: str) -> None:
        """Remove a concept and every answer that was kept of it.

        Raises:
            Problem: 404.
        """
        await self._remove(self._find(tenant, concept_id))
        self.gauges.count("concepts", "deleted")

    async def resolve(self, tenant: str, concept_ids: Sequence[str]) -> list[str]:
        """The places of concepts that can be drawn.

        Raises:
            Problem: 404; 409, one is not tuned yet, or never will be.
        """
        places = []
        for concept_id in concept_ids:
            record = self._find(tenant, concept_id)
            if record.state is not State.SUCCEEDED:
                raise Problem.of(409, "not-ready", f"the concept is {record.state.value}; expected succeeded",
                                 retry_after_s=None if record.state.is_terminal else 1)  # fmt: skip
            places.append(record.order.place)
        return places

    def _find(self, tenant: str, concept_id: str) -> Record:
        record = self.records.get(concept_id)
        if record is None or record.order.tenant != tenant or record.is_expired():
            raise not_found()
        return record

    # -- the work ----------------------------------------------------------------------------------------------

    async def _work(self, record: Record) -> None:
        """Tune and draw what was ordered, and begin again where a replica dies."""
        order = record.order
        began = time.monotonic()
        try:
            async with asyncio.timeout(self.spec.limits.tune_deadline_s):
                await self._again(lambda attempt: self._tune(record, attempt))
                for prompt in order.prompts:
                    await self._again(lambda attempt, prompt=prompt: self._draw(record, prompt))
        except asyncio.CancelledError:
            raise
        except TimeoutError:
            record.fail(Problem.of(504, "too-slow", "tuning took longer than the service allows"))
        except Problem as problem:
            record.fail(problem)
        except WorkerLost:
            record.fail(Problem.of(503, "replicas-lost", "the replicas that tuned it died, again and again"))
        except Exception as error:
            log.error("a concept failed: %s", type(error).__name__)
            record.fail(concealed(error))
        else:
            record.end(State.SUCCEEDED)
            self.gauges.took("tune", time.monotonic() - began)
        self.gauges.count("concepts", record.state.value)
        await self._close(record)

    async def _again(self, work: Callable[[int], Awaitable[None]]) -> None:
        for attempt in range(self.spec.tuner.attempts):
            try:
                return await work(attempt)
            except WorkerLost:
                log.warning("a replica was lost under its work; it is begun again")
                self.gauges.count("replicas", "lost")
                await asyncio.sleep(_PAUSE_S)
        raise WorkerLost

    async def _tune(self, record: Record, attempt: int) -> None:
        order = record.order
        job = TuneJob(
            place=order.place, attempt=attempt, method=order.method, class_noun=order.class_noun, steps=order.steps,
            seed=order.seed,
        )  # fmt: skip
        async with aclosing(self.workers.tune(job)) as events:
            async for event in events:
                if event["kind"] == "began":
                    record.state = State.PROCESSING
                    record.tell("progress", {"step": 0, "steps": order.steps, "loss": None})
                elif event["kind"] == "step":
                    record.step, record.loss = event["step"], event["loss"]
                    record.tell("progress", {"step": record.step, "steps": order.steps, "loss": record.loss})

    async def _draw(self, record: Record, prompt: str) -> None:
        order = record.order
        first = len(record.pictures)
        found: list[tuple[SavedPicture, bytes]] = []
        job = DrawJob(
            places=(order.place,), prompt=prompt, num_images=order.num_images, seed=order.seed,
            sampling=self.spec.sampling,
        )  # fmt: skip
        async with aclosing(self.workers.draw(job)) as events:
            async for event in events:
                if event["kind"] == "image":
                    picture = SavedPicture(prompt=prompt, seed=event["seed"], flagged=event["flagged"])
                    found.append((picture, event["png"] or b""))
        for number, (picture, png) in enumerate(found, start=first):
            await self.store.put(order.place, f"image-{number}", png)
            record.pictures.append(picture)
            record.tell_picture(number)

    async def _close(self, record: Record) -> None:
        """What is not needed any more goes: the pictures always, and everything where nothing came of it."""
        place = record.order.place
        try:
            if record.state is State.SUCCEEDED:
                await self.store.blobs.remove(f"{place}/pictures")
            else:
                await self.store.drop(place)
            await self._save(record)
        except (StorageError, Problem) as error:
            log.error("the store refused a record: %s", type(error).__name__)

    async def _save(self, record: Record) -> None:
        if record.order.id in self.records:
            await self.store.put(record.order.place, "record", record.saved().model_dump_json().encode())

    async def _stop(self, record: Record) -> None:
        work, record.work = record.work, None
        if work is not None and not work.done():
            work.cancel()
            await asyncio.wait([work])

    async def _remove(self, record: Record) -> None:
        self.records.pop(record.order.id, None)
        if not record.state.is_terminal:
            record.end(State.CANCELED)
        await self._stop(record)
        await self.store.drop(record.order.place)
        await self.answers.forget(record.order.id)

    # -- pictures ----------------------------------------------------------------------------------------------

    async def admit(self, tenant: str, concept_ids: Sequence[str], pictures: int) -> tuple[str, list[str]]:
        """A ticket for drawing, to be given back, and the concepts' places.

        Raises:
            Problem: 404 or 409 as in `resolve`; 429 or 503, enough is being drawn.
        """
        places = await self.resolve(tenant, concept_ids)
        now, limits = time.monotonic(), self.spec.limits
        self._images = {ticket: held for ticket, held in self._images.items() if held[2] > now}
        own = sum(count for owner, count, _ in self._images.values() if owner == tenant)
        if own + pictures > limits.images_per_tenant:
            raise Problem.of(429, "too-many-images", f"{own} pictures of yours wait; {limits.images_per_tenant} may",
                             retry_after_s=self.gauges.draw_s)  # fmt: skip
        room = limits.images_waiting * max(1, self._alive("sampler"))
        if sum(count for _, count, _ in self._images.values()) + pictures > max(room, pictures):
            raise Problem.of(503, "busy", "enough pictures wait to be drawn", retry_after_s=self.gauges.draw_s)
        ticket = secrets.token_hex(8)
        self._images[ticket] = (tenant, pictures, now + limits.image_deadline_s + 5)
        return ticket, places

    async def release(self, ticket: str, outcome: str, seconds: float) -> None:
        """Give a ticket back."""
        held = self._images.pop(ticket, None)
        self.gauges.count("images", outcome, 1 if held is None else held[1])
        if outcome == "succeeded":
            self.gauges.took("draw", seconds)

    # -- idempotency -------------------------------------------------------------------------------------------

    async def begin(self, tenant: str, key: str, digest: str) -> Answer | None:
        """See `Answers.begin`."""
        return await self.answers.begin(tenant, key, digest)

    async def finish(self, tenant: str, key: str, answer: Answer | None, concept_ids: Collection[str]) -> None:
        """See `Answers.finish`."""
        alive = all(self._is_of(tenant, concept_id) for concept_id in concept_ids)
        await self.answers.finish(tenant, key, answer if alive else None, concept_ids)

    def _is_of(self, tenant: str, concept_id: str) -> bool:
        record = self.records.get(concept_id)
        return record is not None and record.order.tenant == tenant

    # -- the pools ---------------------------------------------------------------------------------------------

    async def hello(self, kind: str, replica: str, places: Sequence[str]) -> list[str]:
        """A replica is there and has these concepts in memory; the answer is which of them it should drop."""
        self._seen[kind, replica] = time.monotonic()
        alive = {record.order.place for record in self.records.values()}
        return [place for place in places if place not in alive]

    def _alive(self, kind: str) -> int:
        now = time.monotonic()
        self._seen = {who: when for who, when in self._seen.items() if now - when < _SEEN_S}
        return sum(who[0] == kind for who in self._seen)

    async def is_ready(self) -> bool:
        """Whether both pools have a replica, and are known here."""
        return self._alive("tuner") > 0 and self._alive("sampler") > 0 and await self.workers.is_ready()

    async def metrics(self) -> str:
        """In Prometheus' text format; no tenant and no concept is named."""
        states = {state.value: 0 for state in State}
        for record in self.records.values():
            states[record.state.value] += 1
        drawing = sum(count for _, count, _ in self._images.values())
        return self.gauges.text(states, drawing=drawing, tuners=self._alive("tuner"), samplers=self._alive("sampler"))

    # -- sweeping ----------------------------------------------------------------------------------------------

    async def _sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(self.spec.store.sweep_s)
            try:
                await self.sweep()
            except Exception as error:
                log.error("sweeping the store: %s", type(error).__name__)

    async def sweep(self) -> None:
        """Remove what has expired, and what of a dead replica nobody knows of."""
        for record in [record for record in self.records.values() if record.is_expired()]:
            await self._remove(record)
        await self.answers.sweep()
        known = {record.order.place for record in self.records.values()} | self.answers.folders()
        for folder in set(await self.store.blobs.folders()) - known:
            if folder not in self._known_now():
                await self.store.drop(folder)

    def _known_now(self) -> set[str]:
        return {record.order.place for record in self.records.values()} | self.answers.folders()

    async def close(self) -> None:
        """End all work."""
        tasks = [*self._background]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task


async def _within(wait: Awaitable[Any], seconds: float) -> None:
    try:
        await asyncio.wait_for(wait, seconds)
    except TimeoutError:
        return


def read_status(data: Mapping[str, Any]) -> ConceptStatus:
    """What a desk answered, as a model."""
    return ConceptStatus.model_validate(data)


def read_events(data: Sequence[Mapping[str, Any]]) -> list[Event]:
    """What a desk told, as models."""
    return [Event.model_validate(one) for one in data]
