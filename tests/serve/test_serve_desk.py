"""What the desk has accepted it finishes: through lost replicas and restarts, within its bounds, until it expires."""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx2
import pytest
from serving import headers, picture, served, spec_of

from imprint.serve.answers import Answer, Answers
from imprint.serve.desk import Desk
from imprint.serve.inprocess import LocalWorkers, create_local_api
from imprint.serve.intake import take_pictures
from imprint.serve.jobs import DrawJob, TuneJob, WorkerEvent, WorkerLost
from imprint.serve.problems import Problem
from imprint.serve.settings import ServeSpec
from imprint.serve.store import Store, open_blobs
from imprint.serve.vault import Vault, find_key
from imprint.serve.weights import exact_digest


class Dying:
    """Real workers that die under the first pieces of work, in their middle."""

    def __init__(self, workers: LocalWorkers, deaths: int) -> None:
        self.workers, self.deaths, self.begun = workers, deaths, 0

    async def tune(self, job: TuneJob) -> AsyncIterator[WorkerEvent]:
        self.begun += 1
        async with aclosing(self.workers.tune(job)) as events:  # type: ignore[type-var]
            async for event in events:
                if event["kind"] == "step" and self.deaths:
                    self.deaths -= 1
                    raise WorkerLost
                yield event

    def draw(self, job: DrawJob) -> AsyncIterator[WorkerEvent]:
        return self.workers.draw(job)

    async def check(self, prompts: Sequence[str], negative: str = "") -> Mapping[str, Any]:
        return await self.workers.check(prompts, negative)

    async def export(self, place: str, form: str) -> tuple[bytes, str]:
        return await self.workers.export(place, form)

    async def is_ready(self) -> bool:
        return True


ORDER = {"tenant": "red", "method": "textual_inversion", "class_noun": "cat", "steps": 3, "seed": 1,
         "prompts": ("a photo of <concept>",), "num_images": 1}  # fmt: skip


def order(**changes: Any) -> dict[str, Any]:
    return {**ORDER, **changes}


def pictures(seed: int = 0) -> bytes:
    return take_pictures([picture(seed)], ServeSpec().limits)


def run_desk(spec: ServeSpec, use: Callable[[Desk, LocalWorkers], Coroutine[Any, Any, None]], deaths: int = 0) -> None:
    async def run() -> None:
        store = Store(open_blobs(spec.store), Vault(find_key(spec.store)))
        workers = LocalWorkers(spec, store)
        desk = Desk(spec, store, Dying(workers, deaths))
        await desk.start()
        try:
            await use(desk, workers)
        finally:
            await desk.close()

    asyncio.run(run())


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "key"
    file.write_bytes(base64.b64encode(bytes(range(32))))
    return file


def test_work_is_begun_again_where_a_replica_dies(tiny_sd15: Path) -> None:
    async def use(desk: Desk, workers: LocalWorkers) -> None:
        made = await desk.create(order(), pictures())
        done = await desk.wait("red", made["id"], 60)
        assert done["state"] == "succeeded" and desk.workers.begun == 3  # type: ignore[attr-defined]
        assert workers.tuner.is_whole and len(done["images"]) == 1

    run_desk(spec_of(tiny_sd15), use, deaths=2)


def test_what_dies_again_and_again_has_failed(tiny_sd15: Path) -> None:
    async def use(desk: Desk, workers: LocalWorkers) -> None:
        done = await desk.wait("red", (await desk.create(order(), pictures()))["id"], 60)
        assert done["state"] == "failed" and done["error"]["type"].endswith("replicas-lost")
        work = desk.records[done["id"]].work
        assert work is not None
        await work  # the books are closed after the end was told
        assert await desk.store.blobs.folders() == [f"red/{done['id']}"]

    run_desk(spec_of(tiny_sd15), use, deaths=99)


def test_a_new_desk_goes_on_where_the_old_one_ended(tiny_sd15: Path, tmp_path: Path, key_file: Path) -> None:
    spec = spec_of(tiny_sd15, store={"url": str(tmp_path / "store"), "key_file": str(key_file)})
    ids: list[str] = []

    async def first(desk: Desk, workers: LocalWorkers) -> None:
        done = await desk.create(order(), pictures())
        ids.append(done["id"])
        await desk.wait("red", done["id"], 60)
        answer = Answer(status=200, headers={}, body=b"an answer")
        assert await desk.begin("red", "key", "digest") is None
        await desk.finish("red", "key", answer, [done["id"]])
        running = await desk.create(order(steps=500), pictures())
        ids.append(running["id"])
        await desk.wait("red", running["id"], 0.5)

    async def second(desk: Desk, workers: LocalWorkers) -> None:
        done = await desk.status("red", ids[0])
        assert done["state"] == "succeeded" and len(done["images"]) == 1
        assert [event["event"] for event in await desk.events("red", ids[0], 0, 0)] == ["image", "succeeded"]
        answer = await desk.begin("red", "key", "digest")
        assert answer is not None and answer.body == b"an answer"
        running = await desk.status("red", ids[1])
        assert running["state"] in ("starting", "processing")
        assert (await desk.cancel("red", ids[1]))["state"] == "canceled"
        await desk.delete("red", ids[0])
        await desk.delete("red", ids[1])

    run_desk(spec, first)
    stored = [file for file in (tmp_path / "store").rglob("*") if file.is_file()]
    assert len(stored) >= 6
    for file in stored:
        assert b"concept" not in file.read_bytes() and b"photo" not in file.read_bytes()
    run_desk(spec, second)
    assert [file for file in (tmp_path / "store").rglob("*") if file.is_file()] == []


def test_what_expires_is_gone_and_so_is_what_nobody_knows(tiny_sd15: Path) -> None:
    async def use(desk: Desk, workers: LocalWorkers) -> None:
        made = await desk.create(order(prompts=()), pictures())
        await desk.wait("red", made["id"], 60)
        await desk.store.put("red/c_of_a_dead_replica", "weights", b"left behind")
        await desk.sweep()
        assert await desk.store.blobs.folders() == [f"red/{made['id']}"]
        record = desk.records[made["id"]]
        record.order = record.order.model_copy(update={"expires": time.time() - 1})
        with pytest.raises(Problem):
            await desk.status("red", made["id"])
        await desk.sweep()
        assert await desk.store.blobs.folders() == [] and desk.records == {}

    run_desk(spec_of(tiny_sd15, store={"sweep_s": 100}), use)


def test_a_key_whose_ingress_died_may_be_used_again(tiny_sd15: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(tiny_sd15)
    answers = Answers(spec, Store(open_blobs(spec.store), Vault(find_key(spec.store))))
    now = time.time()

    async def use() -> None:
        assert await answers.begin("red", "key", "digest") is None
        monkeypatch.setattr(time, "time", lambda: now + spec.limits.longest_wait_s)
        with pytest.raises(Problem, match="still runs"):
            await answers.begin("red", "key", "digest")
        monkeypatch.setattr(time, "time", lambda: now + spec.limits.longest_wait_s + 120)
        assert await answers.begin("red", "key", "digest") is None
        await answers.finish("red", "key", Answer(status=200, headers={}, body=b"done"), [])
        monkeypatch.setattr(time, "time", lambda: now + spec.store.ttl_s)
        known = await answers.begin("red", "key", "digest")
        assert known is not None and known.body == b"done"

    asyncio.run(use())


def test_a_tune_that_takes_too_long_has_failed(tiny_sd15: Path) -> None:
    async def use(desk: Desk, workers: LocalWorkers) -> None:
        done = await desk.wait("red", (await desk.create(order(steps=1000), pictures()))["id"], 60)
        assert done["state"] == "failed" and done["error"]["status"] == 504

    run_desk(spec_of(tiny_sd15, limits={"tune_deadline_s": 0.5}), use)


def test_the_base_is_whole_after_tunes_that_end_in_every_way(tiny_sd15: Path) -> None:
    spec = spec_of(tiny_sd15, methods={"dreambooth": {"steps": 2, "prior": {"images": 2, "sampling": {"steps": 2}}}})

    async def use(desk: Desk, workers: LocalWorkers) -> None:
        engine = workers.tuner.engine
        before = exact_digest(engine.backbone)
        for method in ("dreambooth", "lora", "textual_inversion"):
            done = await desk.create(order(method=method, steps=2, prompts=()), pictures())
            assert (await desk.wait("red", done["id"], 60))["state"] == "succeeded"
            stopped = await desk.create(order(method=method, steps=500, prompts=()), pictures())
            await desk.wait("red", stopped["id"], 0.4)
            await desk.cancel("red", stopped["id"])
            assert exact_digest(engine.backbone) == before and workers.tuner.is_whole
        original = engine.checker

        def no_memory(images: Any) -> Any:
            raise MemoryError

        engine.checker = no_memory
        failed = await desk.wait("red", (await desk.create(order(), pictures()))["id"], 60)
        engine.checker = original
        assert failed["error"]["type"].endswith("out-of-memory")
        assert exact_digest(engine.backbone) == before
        next(iter(engine.backbone.unet.parameters())).data[0] += 1  # a broken replica notices, and takes no more work
        assert (await desk.wait("red", (await desk.create(order(), pictures()))["id"], 60))["state"] == "failed"
        assert not workers.tuner.is_whole

    run_desk(spec, use)


def test_the_default_personalizes_with_the_encoder_that_ships() -> None:
    spec = spec_of(Path("imprint-tiny"), encoders={"e4t": "imprint-tiny-e4t-faces"}, safety={"enabled": True})

    async def use(desk: Desk, workers: LocalWorkers) -> None:
        before = exact_digest(workers.tuner.engine.backbone)
        made = await desk.create(order(method="e4t", class_noun=None, steps=1), pictures())
        done = await desk.wait("red", made["id"], 120)
        assert done["state"] == "succeeded", done["error"]
        assert [picture["flagged"] for picture in done["images"]] == [False]
        assert exact_digest(workers.tuner.engine.backbone) == exact_digest(workers.sampler.backbone) == before

    run_desk(spec, use)


@pytest.fixture
def small(tiny_sd15: Path) -> Iterator[str]:
    """A service of few places."""
    limits = {"tunes_per_tenant": 2, "tunes": 3, "images_per_tenant": 3, "images_waiting": 4, "concepts": 4}
    with served(create_local_api(spec_of(tiny_sd15, limits=limits))) as address:
        yield address


def test_queues_are_bounded(small: str) -> None:
    def create(client: httpx2.Client) -> httpx2.Response:
        data = {"class_noun": "cat", "steps": 1000}
        return client.post("/v1/concepts", files={"images": picture()}, data=data)

    with (
        httpx2.Client(base_url=small, headers=headers(), timeout=60) as red,
        httpx2.Client(base_url=small, headers=headers("blue"), timeout=60) as blue,
    ):
        accepted = [create(red), create(red), create(blue)]
        assert [answer.status_code for answer in accepted] == [202] * 3
        enough, busy = create(red), create(blue)
        assert (enough.status_code, busy.status_code) == (429, 503)
        for answer in (enough, busy):
            assert int(answer.headers["Retry-After"]) >= 1 and answer.json()["status"] == answer.status_code
        assert red.post("/v1/images", json={"prompt": "a", "num_images": 4}).status_code == 429
        for client, answers in ((red, accepted[:2]), (blue, accepted[2:])):
            for answer in answers:
                assert client.delete(answer.json()["links"]["self"]).status_code == 204
        assert create(red).status_code == 202


def test_overload_is_answered_and_never_hangs(small: str) -> None:
    """Many times what there is room for: only 2xx, 429 and 503, and all of them soon."""

    async def load() -> list[int]:
        order = {"prompt": "a cat", "steps": 20}
        async with httpx2.AsyncClient(base_url=small, headers=headers(), timeout=60) as client:
            answers = await asyncio.gather(*(client.post("/v1/images", json=order) for _ in range(60)))
        return [answer.status_code for answer in answers]

    began = time.monotonic()
    statuses = asyncio.run(load())
    assert set(statuses) <= {200, 429, 503} and 200 in statuses and 429 in statuses
    assert time.monotonic() - began < 60


def test_a_draw_that_is_not_done_in_time_is_a_504(tiny_sd15: Path) -> None:
    with served(create_local_api(spec_of(tiny_sd15, limits={"image_deadline_s": 0.3}))) as address:
        order = {"prompt": "a cat", "steps": 100, "num_images": 8}
        answer = httpx2.post(f"{address}/v1/images", json=order, headers=headers(), timeout=60)
        assert answer.status_code == 504 and answer.json()["type"].endswith("too-slow")
        assert httpx2.get(f"{address}/health").status_code == 200


def test_nothing_of_a_deleted_concept_is_on_disk_or_in_logs(
    tiny_sd15: Path, tmp_path: Path, key_file: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker, noun = "zanzibar", "quokka"
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    spec = spec_of(tiny_sd15, store={"url": str(tmp_path / "store"), "key_file": str(key_file)})
    shown = Path("/dev/shm")
    before = set(shown.glob("imprint-serve-*"))
    with (
        caplog.at_level(logging.DEBUG),
        served(create_local_api(spec)) as address,
        httpx2.Client(base_url=address, headers=headers(Prefer="wait=60"), timeout=60) as client,
    ):
        comment = b"picturemarker" * 3
        upload = picture(form="JPEG", comment=comment)
        data = {"class_noun": noun, "prompts": f"<concept> {marker}", "steps": "2"}
        for method in ("textual_inversion", "lora"):
            made = client.post("/v1/concepts", files={"images": upload}, data={**data, "method": method}).json()
            assert made.get("state") == "succeeded", made
            order = {"prompt": f"<concept> {marker}", "concepts": [made["id"]]}
            assert client.post("/v1/images", json=order, headers={"Idempotency-Key": marker}).status_code == 200
            assert client.get(made["links"]["weights"]).status_code == 200
            client.post("/v1/images", json={**order, "prompt": marker * 40})
            assert client.delete(made["links"]["self"]).status_code == 204
    left = [file for file in tmp_path.rglob("*") if file.is_file() and file != key_file]
    for file in left:
        content = file.read_bytes()
        assert not any(word in content for word in (marker.encode(), noun.encode(), b"picturemarker")), file
    assert [file for file in (tmp_path / "store").rglob("*") if file.is_file()] == []
    assert marker not in caplog.text and noun not in caplog.text
    assert set(shown.glob("imprint-serve-*")) == before
