"""The client for ordinary code."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
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


class Client:
    """Speaks to the service at `base_url` with an API key.

    Requests that were refused because the service is busy, or whose connection broke, are sent again; each POST has an
    Idempotency-Key, so that nothing is done twice. `http` replaces the HTTP client, for a proxy or for tests.
    """

    def __init__(self, base_url: str, key: str, *, http: httpx2.Client | None = None) -> None:
        self._http = http or httpx2.Client(base_url=base_url, timeout=TIMEOUT)
        self._http.headers["Authorization"] = f"Bearer {key}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def start_concept(
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
        return ConceptStatus.model_validate_json(self._send(call).content)

    def create_concept(self, images: Sequence[PictureSource], **options: Any) -> ConceptStatus:
        """As `start_concept`, and wait until it is tuned.

        Raises:
            ConceptFailed: it failed or was canceled.
            ServiceError: the service refused it.
        """
        return self.wait(self.start_concept(images, **options))

    def wait(self, concept: str | ConceptStatus) -> ConceptStatus:
        """Until tuning has ended well.

        Raises:
            ConceptFailed: it failed or was canceled.
        """
        if isinstance(concept, str) or not concept.state.is_terminal:
            for _ in self.concept_events(concept):
                pass
            concept = self.concept(concept)
        return succeeded(concept)

    def concept(self, concept: str | ConceptStatus) -> ConceptStatus:
        """Where it is now."""
        return ConceptStatus.model_validate_json(self._send(Call("GET", concept_path(concept))).content)

    def cancel_concept(self, concept: str | ConceptStatus) -> ConceptStatus:
        """End its tuning."""
        return ConceptStatus.model_validate_json(self._send(Call("POST", concept_path(concept, "cancel"))).content)

    def delete_concept(self, concept: str | ConceptStatus) -> None:
        """Remove it and all that was made of it."""
        self._send(Call("DELETE", concept_path(concept)))

    def weights(self, concept: str | ConceptStatus, form: str = "safetensors") -> bytes:
        """What was learned: `safetensors`, `imprint`, `diffusers-lora`, `kohya` or `textual-inversion`."""
        return self._send(Call("GET", concept_path(concept, "weights"), {"params": {"format": form}})).content

    def concept_events(self, concept: str | ConceptStatus) -> Iterator[Event]:
        """What happens to it, to the end; a connection that breaks is taken up again."""
        after, tried = 0, 0
        while True:
            call = Call("GET", concept_path(concept, "events"), {"headers": {"Last-Event-ID": str(after)}})
            try:
                for event in self._events(call):
                    after, tried = event.id or after, 0
                    yield event
                    if event.is_last:
                        return
            except httpx2.TransportError:
                pause = pause_s(None, tried)
                if pause is None:
                    raise
                time.sleep(pause)
            tried += 1

    def create_images(
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
        return ImagesResult.model_validate_json(self._send(call).content)

    def image_events(
        self, prompt: str, concepts: Sequence[str | ConceptStatus] = (), **options: Any
    ) -> Iterator[Event]:
        """As `create_images`, with progress; leaving early cancels the work."""
        call = image_call(_order(prompt, concepts, {**options, "stream": True}), idempotency_key=None)
        yield from self._events(call)

    def _events(self, call: Call) -> Iterator[Event]:
        with self._http.stream(call.method, call.path, **call.options) as response:
            if not response.is_success:
                response.read()
            checked(response)
            yield from EventReader().read(response.iter_lines())

    def _send(self, call: Call) -> httpx2.Response:
        tried = 0
        while True:
            failed: ServiceError | httpx2.TransportError
            try:
                return checked(self._http.request(call.method, call.path, **call.options))
            except ServiceError as error:
                failed, pause = error, pause_s(error, tried)
            except httpx2.TransportError as error:
                failed, pause = error, pause_s(None, tried)
            if pause is None:
                raise failed
            tried += 1
            time.sleep(pause)


def _order(prompt: str, concepts: Sequence[str | ConceptStatus], options: dict[str, Any]) -> ImageOrder:
    ids = [concept if isinstance(concept, str) else concept.id for concept in concepts]
    return ImageOrder(prompt=prompt, concepts=ids, **options)
