"""A concept in the books of the desk: what was asked, where it is, and what there is to tell."""

from __future__ import annotations

import asyncio
import base64
import time
from dataclasses import dataclass, field
from typing import Any

from imprint.client.models import ConceptStatus, Event, Links, Picture, ProblemDetails, Progress, State
from imprint.config.base import Section
from imprint.serve.problems import Problem

BASE = "/v1/concepts"


class TuneOrder(Section):
    """An accepted request to tune."""

    tenant: str
    id: str
    method: str
    class_noun: str | None
    steps: int
    seed: int
    prompts: tuple[str, ...] = ()
    num_images: int = 1
    created: float
    expires: float

    @property
    def place(self) -> str:
        """Its folder in the store."""
        return f"{self.tenant}/{self.id}"


class SavedPicture(Section):
    """What is kept of a picture beside its bytes, which are the blob `image-<index>`."""

    prompt: str
    seed: int
    flagged: bool


class SavedRecord(Section):
    """A record as the store has it."""

    order: TuneOrder
    state: State
    step: int = 0
    loss: float | None = None
    pictures: tuple[SavedPicture, ...] = ()
    error: dict[str, Any] | None = None


@dataclass(eq=False)
class Record:
    """A record as the desk has it, with those who listen to it."""

    order: TuneOrder
    state: State = State.STARTING
    step: int = 0
    loss: float | None = None
    pictures: list[SavedPicture] = field(default_factory=list)
    error: dict[str, Any] | None = None
    events: list[Event] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    work: asyncio.Task[None] | None = None

    @classmethod
    def restored(cls, saved: SavedRecord) -> Record:
        """From the store; what was told before is told in short."""
        record = cls(saved.order, saved.state, saved.step, saved.loss, list(saved.pictures), saved.error)
        if saved.state.is_terminal:
            for index in range(len(record.pictures)):
                record.tell_picture(index)
            record.tell(saved.state.value, {} if saved.error is None else {"error": saved.error})
        return record

    def saved(self) -> SavedRecord:
        """As the store is to have it."""
        return SavedRecord(
            order=self.order, state=self.state, step=self.step, loss=self.loss, pictures=tuple(self.pictures),
            error=self.error,
        )  # fmt: skip

    def tell(self, event: str, data: dict[str, Any]) -> None:
        """Add an event and wake who waits for one."""
        self.events.append(Event(event=event, data={"id": self.order.id, **data}, id=len(self.events) + 1))
        self.changed.set()
        self.changed = asyncio.Event()

    def tell_picture(self, index: int) -> None:
        """An `image` event; its bytes are put in where it goes out."""
        picture = self.pictures[index]
        self.tell("image", {"index": index, **picture.model_dump()})

    def fail(self, problem: Problem) -> None:
        self.error = problem.document()
        self.end(State.FAILED, {"error": self.error})

    def end(self, state: State, data: dict[str, Any] | None = None) -> None:
        """Into a final state."""
        self.state = state
        self.tell(state.value, data or {})

    def status(self) -> ConceptStatus:
        """As clients see it, its pictures still without bytes."""
        order = self.order
        own = f"{BASE}/{order.id}"
        return ConceptStatus(
            id=order.id, state=self.state, method=order.method, class_noun=order.class_noun, steps=order.steps,
            seed=order.seed, created=order.created, expires=order.expires,
            progress=Progress(step=self.step, steps=order.steps, loss=self.loss),
            images=[Picture(b64_json=None, **picture.model_dump()) for picture in self.pictures],
            error=None if self.error is None else ProblemDetails.model_validate(self.error),
            links=Links(self=own, events=f"{own}/events", cancel=f"{own}/cancel", weights=f"{own}/weights"),
        )  # fmt: skip

    def is_expired(self) -> bool:
        return time.time() >= self.order.expires


def with_bytes(picture: Picture, png: bytes) -> Picture:
    """The picture with its file."""
    return picture.model_copy(update={"b64_json": base64.b64encode(png).decode()})
