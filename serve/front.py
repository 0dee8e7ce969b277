"""What the routes do, without their HTTP: between a request that was read and the desk and the pools."""

from __future__ import annotations

import asyncio
import base64
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, suppress
from typing import Any

from imprint.client.models import ConceptOrder, ConceptStatus, Event, ImageOrder, ImagesResult, Picture
from imprint.config.methods import ENCODER_METHODS, TUNE_SPECS, SampleSpec
from imprint.serve.desk import Desk, read_events, read_status
from imprint.serve.intake import from_data_url, take_pictures
from imprint.serve.jobs import DrawJob, WorkerLost, Workers
from imprint.serve.problems import Problem
from imprint.serve.records import with_bytes
from imprint.serve.settings import ServeSpec, tune_spec
from imprint.serve.store import Store
from imprint.serve.tenants import Tenants
from imprint.serve.texts import check_noun, check_text, require_subject
from imprint.serve.uploads import Uploads

SEEDS = 2**31
DECODES_AT_ONCE = 2
WEIGHT_FORMATS = ("safetensors", "imprint", "diffusers-lora", "kohya", "textual-inversion")
_PAUSE_S = 0.3
_POLL_S = 10.0


class Front:
    """One for each ingress process."""

    def __init__(self, spec: ServeSpec, desk: Desk, workers: Workers, store: Store) -> None:
        self.spec, self.desk, self.workers, self.store = spec, desk, workers, store
        self.tenants = Tenants.of(spec)
        self.uploads = Uploads(spec.limits)
        # Few at once, so that a crowd of large pictures takes no more memory than two of them.
        self._decoding = asyncio.Semaphore(DECODES_AT_ONCE)

    def methods(self) -> list[str]:
        """Those that can tune here: with an encoder, where they need one."""
        return [name for name in TUNE_SPECS if name not in ENCODER_METHODS or name in self.spec.encoders]

    # -- concepts ----------------------------------------------------------------------------------------------

    async def create(self, tenant: str, order: ConceptOrder, files: Sequence[bytes]) -> ConceptStatus:
        """
        Raises:
            Problem: what was asked will not do, or there is no room.
        """
        limits = self.spec.limits
        method = order.method or self.spec.default_method
        if method not in self.methods():
            raise Problem.of(422, "unknown-method", f"method: expected one of {', '.join(self.methods())}")
        noun = check_noun(order.class_noun)
        if noun is None and method not in self.spec.encoders:
            raise Problem.of(422, "no-class-noun", f"class_noun: {method} needs to know what the subject is")
        if order.steps is not None and order.steps > limits.steps:
            raise Problem.of(422, "too-many-steps", f"steps: expected {limits.steps} at most", limit=limits.steps)
        try:
            steps = tune_spec(self.spec, method, order.steps).steps
        except ValueError as error:
            raise Problem.of(422, "bad-steps", f"steps: {method} does not take {order.steps}") from error
        await self._check_prompts(order)
        uploads = list(files) or [from_data_url(url, f"images[{n}]") for n, url in enumerate(order.images)]
        async with self._decoding:
            pictures = await asyncio.to_thread(take_pictures, uploads, limits)
        accepted = {
            "tenant": tenant, "method": method, "class_noun": noun, "steps": steps, "seed": _seed(order.seed),
            "prompts": tuple(order.prompts), "num_images": order.num_images,
        }  # fmt: skip
        return read_status(await self.desk.create(accepted, pictures))

    async def _check_prompts(self, order: ConceptOrder) -> None:
        limits = self.spec.limits
        if len(order.prompts) > limits.prompts:
            raise Problem.of(422, "too-many-prompts", f"prompts: expected {limits.prompts} at most")
        if order.num_images * max(1, len(order.prompts)) > limits.images:
            raise Problem.of(422, "too-many-images", f"num_images: {limits.images} pictures at most, over all prompts")
        for prompt in order.prompts:
            require_subject(check_text(prompt, "prompts"), ("<concept>",), "prompts")
        if order.prompts:
            await self._patiently(lambda: self.workers.check(list(order.prompts)))

    async def wait(self, tenant: str, concept_id: str, seconds: float) -> ConceptStatus:
        """The status when it has ended, or after `seconds`, with its pictures."""
        deadline = time.monotonic() + seconds
        while True:
            left = deadline - time.monotonic()
            status = read_status(await self.desk.wait(tenant, concept_id, min(max(left, 0.0), _POLL_S)))
            if status.state.is_terminal or left <= _POLL_S:
                return await self.with_pictures(tenant, status)

    async def status(self, tenant: str, concept_id: str) -> ConceptStatus:
        return await self.with_pictures(tenant, read_status(await self.desk.status(tenant, concept_id)))

    async def with_pictures(self, tenant: str, status: ConceptStatus) -> ConceptStatus:
        """The status with its pictures' bytes."""
        pictures = [await self._filled(tenant, status.id, n, picture) for n, picture in enumerate(status.images)]
        return status.model_copy(update={"images": pictures})

    async def _filled(self, tenant: str, concept_id: str, index: int, picture: Picture) -> Picture:
        if picture.flagged:
            return picture
        return with_bytes(picture, await self.store.get(f"{tenant}/{concept_id}", f"image-{index}"))

    async def events(self, tenant: str, concept_id: str, after: int) -> AsyncIterator[Event | None]:
        """All that is told from `after` on, to the end; None where nothing was for a while."""
        while True:
            news = read_events(await self.desk.events(tenant, concept_id, after, _POLL_S))
            if not news:
                yield None
            for event in news:
                after = event.id or after
                yield await self._with_picture(tenant, event)
                if event.is_last:
                    return

    async def _with_picture(self, tenant: str, event: Event) -> Event:
        if event.event != "image":
            return event
        data = event.data
        picture = Picture(b64_json=None, prompt=data["prompt"], seed=data["seed"], flagged=data["flagged"])
        filled = await self._filled(tenant, data["id"], data["index"], picture)
        return event.model_copy(update={"data": {**data, **filled.model_dump()}})

    async def weights(self, tenant: str, concept_id: str, form: str) -> tuple[bytes, str]:
        """The file and its name.

        Raises:
            Problem: 404; 409, not tuned yet; 422, no such format, or not for this method.
        """
        if form not in WEIGHT_FORMATS:
            raise Problem.of(422, "unknown-format", f"format: expected one of {', '.join(WEIGHT_FORMATS)}")
        (place,) = await self.desk.resolve(tenant, [concept_id])
        if form == "safetensors":
            return await self.store.get(place, "weights"), f"{concept_id}.safetensors"
        data, name = await self._patiently(lambda: self.workers.export(place, form))
        return data, f"{concept_id}.zip" if form == "imprint" else f"{concept_id}-{name}"

    async def _patiently(self, work: Any) -> Any:
        """A short call, again where a replica dies under it."""
        for _ in range(self.spec.sampler.attempts):
            try:
                async with asyncio.timeout(self.spec.limits.image_deadline_s):
                    return await work()
            except WorkerLost:
                await asyncio.sleep(_PAUSE_S)
            except TimeoutError:
                break
        raise Problem.of(503, "no-sampler", "no sampler answers now", retry_after_s=5)

    # -- pictures ----------------------------------------------------------------------------------------------

    async def sampling(self, order: ImageOrder) -> SampleSpec:
        """How the order wants its pictures drawn.

        Raises:
            Problem: 422.
        """
        limits = self.spec.limits
        check_text(order.prompt, "prompt")
        check_text(order.negative_prompt, "negative_prompt")
        if order.num_images > limits.images:
            raise Problem.of(422, "too-many-images", f"num_images: expected {limits.images} at most")
        if order.response_format == "png" and (order.num_images > 1 or order.stream):
            raise Problem.of(422, "one-png", "response_format: png is one picture without events; ask for b64_json")
        if order.steps is not None and order.steps > limits.sampling_steps:
            raise Problem.of(422, "too-many-steps", f"steps: expected {limits.sampling_steps} at most")
        if len(set(order.concepts)) != len(order.concepts):
            raise Problem.of(422, "concept-twice", "concepts: one of them is there twice")
        if order.size != "auto":
            side = (await self._patiently(lambda: self.workers.check([])))["image_size"]
            if order.size != f"{side}x{side}":
                raise Problem.of(422, "bad-size", f"size: the model draws {side}x{side}; expected that, or auto")
        asked = {
            "negative_prompt": order.negative_prompt, "guidance_scale": order.guidance_scale, "steps": order.steps,
            "sampler": order.sampler,
        }  # fmt: skip
        return self.spec.sampling.model_copy(update={key: value for key, value in asked.items() if value is not None})

    async def draw(self, tenant: str, order: ImageOrder) -> AsyncIterator[Event]:
        """`progress`, then an `image` for each picture; whoever leaves early cancels it.

        Raises:
            Problem: what was asked will not do, there is no room, or it was not done in time.
        """
        sampling = await self.sampling(order)
        seed = _seed(order.seed)
        ticket, places = await self.desk.admit(tenant, order.concepts, order.num_images)
        job = DrawJob(
            places=tuple(places), prompt=order.prompt, num_images=order.num_images, seed=seed, sampling=sampling
        )
        outcome, began = "canceled", time.monotonic()
        try:
            async with aclosing(self._draw(job)) as events:
                async for event in events:
                    yield event
            outcome = "succeeded"
        except Problem as problem:
            outcome = str(problem.status)
            raise
        finally:
            with suppress(Problem):  # the desk died meanwhile, and its tickets with it
                await asyncio.shield(self.desk.release(ticket, outcome, time.monotonic() - began))

    async def _draw(self, job: DrawJob) -> AsyncIterator[Event]:
        deadline = time.monotonic() + self.spec.limits.image_deadline_s
        for _ in range(self.spec.sampler.attempts):
            try:
                async with aclosing(self.workers.draw(job)) as events:
                    async for event in _until(events, deadline):
                        yield _told(event, job.prompt)
                return
            except WorkerLost:
                await asyncio.sleep(_PAUSE_S)
            except TimeoutError:
                raise Problem.of(504, "too-slow", "the pictures were not drawn in time; ask for fewer, or later") from (
                    None
                )
        raise Problem.of(503, "replicas-lost", "the samplers died, again and again", retry_after_s=5)

    async def images(self, tenant: str, order: ImageOrder) -> ImagesResult:
        """All pictures of an order."""
        data = []
        async with aclosing(self.draw(tenant, order)) as events:
            async for event in events:
                if event.event == "image":
                    data.append(Picture.model_validate(event.data))
        return ImagesResult(created=int(time.time()), data=data)


async def _until(events: AsyncIterator[Any], deadline: float) -> AsyncIterator[Any]:
    """The same events; TimeoutError where the next one is not there by the deadline."""
    iterator = aiter(events)
    while True:
        async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
            try:
                event = await anext(iterator)
            except StopAsyncIteration:
                return
        yield event


def _told(event: Any, prompt: str) -> Event:
    if event["kind"] == "step":
        return Event(event="progress", data={"step": event["step"], "steps": event["steps"]})
    png = event["png"]
    picture = Picture(
        b64_json=None if png is None else base64.b64encode(png).decode(), prompt=prompt, seed=event["seed"],
        flagged=event["flagged"],
    )  # fmt: skip
    return Event(event="image", data={"index": event["index"], **picture.model_dump()})


def _seed(given: int | None) -> int:
    return secrets.randbelow(SEEDS) if given is None else given
