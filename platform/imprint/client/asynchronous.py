"""The client for asyncio; what it does is what `Client` does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, Self

import httpx2

from imprint.client.errors import ServiceError
from imprint.client.models import ConceptStatus, Event, ImageOrder, ImagesResult
from imprint.client.requests import (
    TIMEOUT,
    Call,
    EventReader,
    PictureSource,
    checked,
    concept_call,
    concept_path,
    image_call,
    pause_s,
    succeeded,
)


class AsyncClient:
    """Speaks to the service at `base_url` with an API key.

    Requests that were refused because the service is busy, or whose connection broke, are sent again; each POST has an
    Idempotency-Key, so that nothing is done twice. `http` replaces the HTTP client, for a proxy or for tests.
    """

    def __init__(self, base_url: str, key: str, *, http: httpx2.AsyncClient | None = None) -> None:
        self._http = http or httpx2.AsyncClient(base_url=base_url, timeout=TIMEOUT)
        self._http.headers["Authorization"] = f"Bearer {key}"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def start_concept(
        self,
        images: Sequence[PictureSource],
        *,
        class_noun: str | None = None,
        method: str | None = None,
        steps: int | None = None,
        seed: int | None = None,
        prompts: Sequence[str] = (),
        num_images: int = 1,
        wait_s: float | None = None,
        idempotency_key: str | None = None,
    ) -> ConceptStatus:
        """Upload pictures of a subject. The answer comes at once, or within `wait_s` seconds with the result.

        Raises:
            ServiceError: the service refused it.
        """
        fields: dict[str, Any] = {
            "class_noun": class_noun, "method": method, "steps": steps, "seed": seed, "prompts": list(prompts),
            "num_images": num_images,
        }  # fmt: skip
        call = concept_call(images, fields, wait_s=wait_s, idempotency_key=idempotency_key)
        return ConceptStatus.model_validate_json((await self._send(call)).content)

    async def create_concept(self, images: Sequence[PictureSource], **options: Any) -> ConceptStatus:
        """As `start_concept`, and wait until it is tuned.

        Raises:
            ConceptFailed: it failed or was canceled.
            ServiceError: the service refused it.
        """
        return await self.wait(await self.start_concept(images, **options))

    async def wait(self, concept: str | ConceptStatus) -> ConceptStatus:
        """Until tuning has ended well.

        Raises:
            ConceptFailed: it failed or was canceled.
        """
        if isinstance(concept, str) or not concept.state.is_terminal:
            async for _ in self.concept_events(concept):
                pass
            concept = await self.concept(concept)
        return succeeded(concept)

    async def concept(self, concept: str | ConceptStatus) -> ConceptStatus:
        """Where it is now."""
        return ConceptStatus.model_validate_json((await self._send(Call("GET", concept_path(concept)))).content)

    async def cancel_concept(self, concept: str | ConceptStatus) -> ConceptStatus:
        """End its tuning."""
        return ConceptStatus.model_validate_json(
            (await self._send(Call("POST", concept_path(concept, "cancel")))).content
        )

    async def delete_concept(self, concept: str | ConceptStatus) -> None:
        """Remove it and all that was made of it."""
        await self._send(Call("DELETE", concept_path(concept)))

    async def weights(self, concept: str | ConceptStatus, form: str = "safetensors") -> bytes:
        """What was learned: `safetensors`, `imprint`, `diffusers-lora`, `kohya` or `textual-inversion`."""
        call = Call("GET", concept_path(concept, "weights"), {"params": {"format": form}})
        return (await self._send(call)).content

    async def concept_events(self, concept: str | ConceptStatus) -> AsyncGenerator[Event, None]:
        """What happens to it, to the end; a connection that breaks is taken up again."""
        after, tried = 0, 0
        while True:
            call = Call("GET", concept_path(concept, "events"), {"headers": {"Last-Event-ID": str(after)}})
            try:
                async for event in self._events(call):
                    after, tried = event.id or after, 0
                    yield event
                    if event.is_last:
                        return
            except httpx2.TransportError:
                pause = pause_s(None, tried)
                if pause is None:
                    raise
                await asyncio.sleep(pause)
            tried += 1

    async def create_images(
        self,
        prompt: str,
        concepts: Sequence[str | ConceptStatus] = (),
        *,
        idempotency_key: str | None = None,
        **options: Any,
    ) -> ImagesResult:
        """Draw a prompt. `options` are the fields of `ImageOrder`: num_images, seed, steps, guidance_scale ...

        Raises:
            ServiceError: the service refused it.
        """
        call = image_call(_order(prompt, concepts, options), idempotency_key=idempotency_key)
        return ImagesResult.model_validate_json((await self._send(call)).content)

    async def image_events(
        self, prompt: str, concepts: Sequence[str | ConceptStatus] = (), **options: Any
    ) -> AsyncGenerator[Event, None]:
        """As `create_images`, with progress; leaving early cancels the work."""
        call = image_call(_order(prompt, concepts, {**options, "stream": True}), idempotency_key=None)
        async with aclosing(self._events(call)) as events:
            async for event in events:
                yield event

    async def _events(self, call: Call) -> AsyncGenerator[Event, None]:
        async with self._http.stream(call.method, call.path, **call.options) as response:
            if not response.is_success:
                await response.aread()
            checked(response)
            reader = EventReader()
            async for line in response.aiter_lines():
                event = reader.feed(line)
                if event is not None:
                    yield event

    async def _send(self, call: Call) -> httpx2.Response:
        tried = 0
        while True:
            failed: ServiceError | httpx2.TransportError
            try:
                return checked(await self._http.request(call.method, call.path, **call.options))
            except ServiceError as error:
                failed, pause = error, pause_s(error, tried)
            except httpx2.TransportError as error:
                failed, pause = error, pause_s(None, tried)
            if pause is None:
                raise failed
            tried += 1
            await asyncio.sleep(pause)


def _order(prompt: str, concepts: Sequence[str | ConceptStatus], options: dict[str, Any]) -> ImageOrder:
    ids = [concept if isinstance(concept, str) else concept.id for concept in concepts]
    return ImageOrder(prompt=prompt, concepts=ids, **options)
