"""Server-sent events, and work that ends when its client goes away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine, Mapping
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse

T = TypeVar("T")

PING_S = 10.0
_LOOK_S = 0.1
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class ClientGone(Exception):
    """The client closed the connection."""


def sse(event: str, data: Mapping[str, Any], number: int | None = None) -> str:
    """One event as text."""
    lines = [f"event: {event}"]
    if number is not None:
        lines.append(f"id: {number}")
    return "\n".join([*lines, f"data: {json.dumps(data)}"]) + "\n\n"


def event_stream(events: AsyncIterator[str]) -> StreamingResponse:
    """The response; Starlette ends the iterator when the client goes away."""
    return StreamingResponse(events, media_type="text/event-stream", headers=_HEADERS)


async def while_listening(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is canceled when the client goes away.

    Raises:
        ClientGone: it did.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait([task, watch], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for one in (task, watch):
            if not one.done():
                one.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _gone(request: Request) -> None:
    while not await request.is_disconnected():
        await asyncio.sleep(_LOOK_S)
