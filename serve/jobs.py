"""What the pools are asked to do, as it crosses from process to process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

from imprint.config.base import Section
from imprint.config.methods import SampleSpec

WorkerEvent = Mapping[str, Any]
"""`kind` is one of: `began`; `step` (step, steps, loss); `learned` (bytes); `image` (index, seed, png, flagged)."""


class TuneJob(Section):
    """Tune a concept on the pictures that the store has of it, and put its weights there."""

    place: str
    attempt: int
    method: str
    class_noun: str | None
    steps: int
    seed: int


class DrawJob(Section):
    """Draw pictures of a prompt, with the concepts at `places`; none draws with the model alone."""

    places: tuple[str, ...]
    prompt: str
    num_images: int
    seed: int
    sampling: SampleSpec


class Workers(Protocol):
    """The pools, wherever they are. Leaving an iterator early cancels the work behind it.

    Problems are raised as `Problem`; a replica that dies as `WorkerLost`.
    """

    def tune(self, job: TuneJob) -> AsyncIterator[WorkerEvent]: ...

    def draw(self, job: DrawJob) -> AsyncIterator[WorkerEvent]: ...

    async def check(self, prompts: Sequence[str], negative: str = "") -> Mapping[str, Any]:
        """What the model is (`image_size`, `prompt_tokens`).

        Raises:
            Problem: 422, a prompt is longer than the model reads.
        """
        ...

    async def export(self, place: str, form: str) -> tuple[bytes, str]:
        """A concept for other programs, and the file's name."""
        ...

    async def is_ready(self) -> bool:
        """Whether this process knows where to send work."""
        ...


class WorkerLost(Exception):
    """A replica died, or was taken away, under a piece of work; it may be begun again."""
