"""Load on a service: pictures asked for one after another, by several clients at once, or at a rate, come what may."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2

PATIENCE_S = 120.0
"""An answer that takes longer counts as none; the service's own deadline for pictures is 60 s."""
NO_ANSWER = 0

Order = Callable[[int], dict[str, Any]]
"""The body of the n-th `POST /v1/images`."""


@dataclass(frozen=True)
class Answer:
    """What came back, `seconds` after it was due."""

    status: int
    seconds: float


@dataclass(frozen=True)
class Load:
    """Answers of one load, and how long it took until the last of them."""

    answers: Sequence[Answer]
    seconds: float

    def of(self, status: int) -> list[float]:
        """Seconds of all answers of a status."""
        return [answer.seconds for answer in self.answers if answer.status == status]


def client(address: str, key: str) -> httpx2.AsyncClient:
    """As many connections as there are requests."""
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=64)
    headers = {"Authorization": f"Bearer {key}"}
    return httpx2.AsyncClient(base_url=address, headers=headers, timeout=PATIENCE_S, limits=limits)


async def ask(http: httpx2.AsyncClient, body: dict[str, Any], due: float) -> Answer:
    """One picture."""
    try:
        status = (await http.post("/v1/images", json=body)).status_code
    except httpx2.TransportError:
        status = NO_ANSWER
    return Answer(status, time.perf_counter() - due)


async def in_turn(http: httpx2.AsyncClient, order: Order, count: int) -> Load:
    """One client that waits for each answer."""
    began = time.perf_counter()
    answers = [await ask(http, order(number), time.perf_counter()) for number in range(count)]
    return Load(answers, time.perf_counter() - began)


async def at_once(http: httpx2.AsyncClient, order: Order, clients: int, seconds: float) -> Load:
    """Clients that each send the next request when they have their answer, for so long."""
    began = time.perf_counter()
    answers: list[Answer] = []
    sent = iter(range(1 << 30))

    async def one() -> None:
        while time.perf_counter() - began < seconds:
            answers.append(await ask(http, order(next(sent)), time.perf_counter()))

    await asyncio.gather(*(one() for _ in range(clients)))
    return Load(answers, time.perf_counter() - began)


async def at_rate(http: httpx2.AsyncClient, order: Order, rate: float, seconds: float) -> Load:
    """Requests that come at random moments, `rate` a second, whether or not earlier ones were answered."""
    chosen = random.Random(0)
    began = time.perf_counter()
    due = began
    work: list[asyncio.Task[Answer]] = []
    while due - began < seconds:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        work.append(asyncio.ensure_future(ask(http, order(len(work)), due)))
        due += chosen.expovariate(rate)
    answers = await asyncio.gather(*work)
    return Load(answers, time.perf_counter() - began)


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that `share` of all do not exceed; of a few values p99 is the largest."""
    if not values:
        return None
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, max(0, -(-int(share * 1000) * len(ranked) // 1000) - 1))]
