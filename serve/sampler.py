"""Drawing in one process: one base model, many concepts, and requests that wait for the same thing drawn together."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch

from imprint.backbone import Backbone
from imprint.backbone.text import max_prompt_tokens
from imprint.config.methods import SampleSpec
from imprint.errors import ImprintError
from imprint.methods.base import Learned
from imprint.sampling.sheet import to_pil
from imprint.serve.across import Rows, draw_together, group_of
from imprint.serve.artifacts import as_folder, pack, zipped
from imprint.serve.concepts import ConceptCache, Load
from imprint.serve.jobs import DrawJob, WorkerEvent
from imprint.serve.problems import Problem, concealed
from imprint.serve.prompts import check_prompt, placeholder_widths
from imprint.serve.provenance import finish
from imprint.serve.safety import SafetyChecker, load_checker
from imprint.serve.scratch import memory_folder, sweep_left_over
from imprint.serve.settings import ServeSpec
from imprint.serve.texts import require_subject
from imprint.serve.weights import exact_digest
from imprint.tuning import Concept, merge_concepts
from imprint.tuning.export import export_concept


class _Abandoned(Exception):
    """Everybody who waited for a batch has left."""


@dataclass(eq=False)
class _Order:
    """A request that waits for its pictures, or gets them."""

    group: Hashable
    rows: Rows
    spec: SampleSpec
    events: asyncio.Queue[WorkerEvent | Exception] = field(default_factory=asyncio.Queue)
    left: threading.Event = field(default_factory=threading.Event)

    @property
    def pictures(self) -> int:
        return len(self.rows.prompts)


class SamplerEngine:
    """Draws batches one after another in a thread of its own."""

    def __init__(self, spec: ServeSpec, load: Load) -> None:
        """`load` gets a concept from the store, by place.

        Raises:
            BackboneError: the base cannot be loaded.
        """
        sweep_left_over()
        self.spec = spec
        self.backbone = Backbone.load(spec.backbone, device=spec.device)
        self.digest = exact_digest(self.backbone)
        pool = spec.sampler
        self.cache = ConceptCache(load, most=pool.cached_concepts, most_bytes=pool.cached_bytes)
        wanted = spec.safety.enabled and "outputs" in spec.safety.check
        self.checker: SafetyChecker | None = load_checker(spec.safety) if wanted else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="draw")
        self._waiting: deque[_Order] = deque()
        self._more = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self.batches = 0
        self.drawn = 0

    # -- what a request sees -----------------------------------------------------------------------------------

    async def draw(self, job: DrawJob) -> AsyncIterator[WorkerEvent]:
        """Events `step` and `image`; leaving early gives up the request's place in its batch.

        Raises:
            Problem: the prompt will not do, a concept is gone, or drawing failed.
        """
        order = await self._order(job)
        if self._loop is None or self._loop.done():
            self._loop = asyncio.ensure_future(self._serve())
        self._waiting.append(order)
        self._more.set()
        received = 0
        try:
            while received < order.pictures:
                event = await order.events.get()
                if isinstance(event, Exception):
                    raise event
                received += event["kind"] == "image"
                yield event
        finally:
            order.left.set()

    async def _order(self, job: DrawJob) -> _Order:
        learned, place = await self._learned(job.places)
        placeholders: Sequence[str] = () if learned is None else learned.placeholders
        require_subject(job.prompt, placeholders, "prompt")
        widths = {} if learned is None else placeholder_widths(self.backbone, learned)
        prompt = check_prompt(self.backbone, job.prompt, "prompt", widths)
        negative = check_prompt(self.backbone, job.sampling.negative_prompt, "negative_prompt")
        if learned is not None and learned.method == "profusion" and job.sampling.sampler != "ddim":
            raise Problem.of(422, "bad-sampler", "sampler: a concept of profusion is drawn with ddim alone")
        spec = job.sampling.model_copy(
            update={"negative_prompt": negative, "batch_size": max(job.num_images, self.spec.sampler.batch_size)}
        )
        seeds = [job.seed + number for number in range(job.num_images)]
        group = group_of(place, learned, spec)
        return _Order(group, Rows(place, learned, [prompt] * job.num_images, seeds), spec)

    async def _learned(self, places: Sequence[str]) -> tuple[Learned | None, str]:
        """One concept, or several merged."""
        if not places:
            return None, ""
        concepts = [await self.cache.get(place) for place in places]
        if len(concepts) == 1:
            return concepts[0].learned, places[0]
        try:
            merged: Concept = await asyncio.to_thread(merge_concepts, concepts)
        except ImprintError as error:
            raise Problem.of(422, "concepts-do-not-merge", error.message) from None
        return merged.learned, "+".join(places)

    async def check(self, prompts: Sequence[str], negative: str = "") -> Mapping[str, Any]:
        """See `Workers.check`."""
        for prompt in prompts:
            check_prompt(self.backbone, prompt, "prompts")
        check_prompt(self.backbone, negative, "negative_prompt")
        limit = min(max_prompt_tokens(tokenizer) for tokenizer in self.backbone.tokenizers) - 2
        return {"image_size": self.backbone.image_size, "prompt_tokens": limit, "base": self.digest}

    async def export(self, place: str, form: str) -> tuple[bytes, str]:
        """See `Workers.export`."""
        concept = await self.cache.get(place)
        return await asyncio.to_thread(self._export, concept, form)

    def _export(self, concept: Concept, form: str) -> tuple[bytes, str]:
        if form == "imprint":
            return as_folder(pack(concept)), "concept.zip"
        with memory_folder() as folder:
            try:
                files, _ = export_concept(self.backbone, concept, form, folder / "concept")
            except ImprintError as error:
                raise Problem.of(422, "no-such-export", error.message) from None
            if len(files) == 1:
                return files[0].read_bytes(), files[0].name
            return zipped({file.name: file.read_bytes() for file in files}), "concept.zip"

    # -- the batches -------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        while True:
            await self._more.wait()
            await asyncio.sleep(self.spec.sampler.batch_wait_ms / 1000)
            batch = self._next_batch()
            if batch:
                await self._draw(batch)

    def _next_batch(self) -> list[_Order]:
        """The oldest order that somebody waits for, and others of its group up to a batch, in their order."""
        waiting = [order for order in self._waiting if not order.left.is_set()]
        batch: list[_Order] = []
        room = self.spec.sampler.batch_size
        for order in waiting:
            fits = order.group == batch[0].group and order.pictures <= room if batch else True
            if fits:
                batch.append(order)
                room -= order.pictures
        self._waiting = deque(order for order in waiting if order not in batch)
        if not self._waiting:
            self._more.clear()
        return batch

    async def _draw(self, batch: list[_Order]) -> None:
        loop = asyncio.get_running_loop()

        def report(done: int, total: int) -> None:
            if all(order.left.is_set() for order in batch):
                raise _Abandoned
            event = {"kind": "step", "step": done, "steps": total}
            for order in batch:
                loop.call_soon_threadsafe(order.events.put_nowait, event)

        try:
            pictures = await loop.run_in_executor(self._thread, self._pictures, batch, report)
        except _Abandoned:
            return
        except Exception as error:
            problem = _as_problem(error)
            for order in batch:
                order.events.put_nowait(problem)
            return
        for order, events in zip(batch, pictures, strict=True):
            for event in events:
                order.events.put_nowait(event)

    def _pictures(self, batch: list[_Order], report: Any) -> list[list[WorkerEvent]]:
        """In the thread: the `image` events of each order."""
        began = time.perf_counter()
        values = draw_together(self.backbone, [order.rows for order in batch], batch[0].spec, report)
        self.batches += 1
        self.drawn += len(values)
        images = to_pil(values)
        flags = [verdict.flagged for verdict in self.checker(images)] if self.checker else [False] * len(images)
        took = time.perf_counter() - began
        found: list[list[WorkerEvent]] = []
        start = 0
        for order in batch:
            rows = range(start, start + order.pictures)
            start += order.pictures
            found.append([
                {
                    "kind": "image", "index": index, "seed": order.rows.seeds[index], "flagged": flags[row],
                    "png": None if flags[row] else finish(images[row], self.spec.provenance),
                    "batch": len(images), "seconds": took,
                }
                for index, row in enumerate(rows)
            ])  # fmt: skip
        return found


def _as_problem(error: Exception) -> Problem:
    if isinstance(error, Problem):
        return error
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return Problem.of(503, "out-of-memory", "not enough memory for now; ask for fewer pictures", retry_after_s=5)
    if isinstance(error, ImprintError):
        return Problem.of(422, "cannot-be-drawn", error.message)
    return concealed(error)
