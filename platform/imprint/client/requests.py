"""What both clients do alike: requests as data, answers as models, errors, events."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from pydantic import ValidationError

from imprint.client.errors import ConceptFailed, ServiceError
from imprint.client.models import ConceptStatus, Event, ImageOrder, ProblemDetails, State

PictureSource = str | os.PathLike[str] | bytes
"""A file, or its bytes."""

CONCEPTS, IMAGES = "/v1/concepts", "/v1/images"
TRIES = 4
TIMEOUT = httpx2.Timeout(30.0, read=300.0)
_LATER = (429, 503)
_LONGEST_PAUSE_S = 30.0


@dataclass(frozen=True)
class Call:
    """A request that may be sent again as it is."""

    method: str
    path: str
    options: Mapping[str, Any] = field(default_factory=dict)


def concept_call(
    pictures: Sequence[PictureSource],
    fields: Mapping[str, Any],
    *,
    wait_s: float | None,
    idempotency_key: str | None,
) -> Call:
    """POST /v1/concepts; a key of its own makes it safe to send again."""
    files = [("images", (f"{number}", _bytes(source))) for number, source in enumerate(pictures)]
    data = {
        name: value if isinstance(value, list) else str(value) for name, value in fields.items() if value is not None
    }
    headers = _key(idempotency_key)
    if wait_s is not None:
        headers["Prefer"] = f"wait={wait_s:.0f}"
    return Call("POST", CONCEPTS, {"files": files, "data": data, "headers": headers})


def image_call(order: ImageOrder, *, idempotency_key: str | None) -> Call:
    """POST /v1/images."""
    return Call("POST", IMAGES, {"json": order.model_dump(exclude_none=True), "headers": _key(idempotency_key)})


def concept_path(concept: str | ConceptStatus, *rest: str) -> str:
    """Where a concept is; by its id."""
    return "/".join([CONCEPTS, concept if isinstance(concept, str) else concept.id, *rest])


def _key(given: str | None) -> dict[str, str]:
    return {"Idempotency-Key": given or secrets.token_hex(16)}


def _bytes(source: PictureSource) -> bytes:
    return source if isinstance(source, bytes) else Path(source).read_bytes()


def checked(response: httpx2.Response) -> httpx2.Response:
    """The response, whole.

    Raises:
        ServiceError: it is an error.
    """
    if response.is_success:
        return response
    try:
        problem = ProblemDetails.model_validate_json(response.content)
    except ValidationError:  # a proxy's answer, not the service's
        problem = ProblemDetails(
            type="about:blank", title=response.reason_phrase, status=response.status_code, detail=response.text[:300]
        )
    after = response.headers.get("Retry-After", "")
    raise ServiceError(
        f"{problem.title}: {problem.detail}", problem=problem, retry_after_s=float(after) if after.isdigit() else None
    )


def pause_s(error: ServiceError | None, tried: int) -> float | None:
    """How long to wait before the next try; None where there is none."""
    if tried >= TRIES:
        return None
    if error is None:
        return min(0.5 * 2**tried, _LONGEST_PAUSE_S)
    busy = error.status in _LATER or error.problem.type.endswith(":still-running")
    return min(error.retry_after_s or 1.0, _LONGEST_PAUSE_S) if busy else None


def succeeded(status: ConceptStatus) -> ConceptStatus:
    """
    Raises:
        ConceptFailed: it failed or was canceled.
    """
    if status.state in (State.FAILED, State.CANCELED):
        said = status.error.detail if status.error else "it was canceled"
        raise ConceptFailed(f"the concept {status.id} {status.state.value}: {said}", concept=status)
    return status


class EventReader:
    """Server-sent events out of lines."""

    def __init__(self) -> None:
        self._fields: dict[str, str] = {}

    def feed(self, line: str) -> Event | None:
        """The event that this line ends, if it ends one."""
        if line:
            name, _, value = line.partition(":")
            if name:
                self._fields[name] = value.removeprefix(" ")
            return None
        fields, self._fields = self._fields, {}
        if "event" not in fields:
            return None
        number = fields.get("id")
        return Event(event=fields["event"], data=json.loads(fields["data"]), id=None if number is None else int(number))

    def read(self, lines: Iterable[str]) -> Iterator[Event]:
        """All events of all lines."""
        for line in lines:
            event = self.feed(line)
            if event is not None:
                yield event
