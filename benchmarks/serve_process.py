"""`imprint serve` in a process of its own, on a store that holds many concepts already; and its sampler alone."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import httpx2
import numpy as np
import torch
import yaml
from PIL import Image

from imprint.backbone import Backbone
from imprint.client.models import State
from imprint.serve.across import Rows, draw_together
from imprint.serve.artifacts import unpack
from imprint.serve.concepts import ConceptCache
from imprint.serve.intake import take_pictures
from imprint.serve.jobs import TuneJob
from imprint.serve.records import SavedRecord, TuneOrder
from imprint.serve.settings import ServeSpec, StoreSpec
from imprint.serve.store import Store, open_blobs
from imprint.serve.tenants import key_hash, new_key
from imprint.serve.tuner import TunerEngine
from imprint.serve.vault import Vault
from imprint.tuning import Concept

TENANT, NOUN = "benchmark", "person"
START_S = 900
STOP_S = 150


def picture(seed: int, side: int = 256) -> bytes:
    """A PNG of random blocks: what is in it changes no time."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(blocks).resize((side, side)).save(out, "PNG")
    return out.getvalue()


class Shelf:
    """A sealed store in a folder, and the keys to it and to the service."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key_file, self.keys_file = folder / "store-key", folder / "keys.yaml"
        sealing = secrets.token_bytes(32)
        self.key_file.write_bytes(base64.b64encode(sealing))
        self.api_key = new_key()
        self.keys_file.write_text(yaml.safe_dump({TENANT: [key_hash(self.api_key)]}))
        self.store = Store(open_blobs(StoreSpec(url=str(folder / "store"))), Vault(sealing))

    def spec(self, **changes: Any) -> ServeSpec:
        return ServeSpec.model_validate({"keys_file": str(self.keys_file), **changes})

    def learn(self, engine: TunerEngine, method: str, steps: int) -> bytes:
        """One concept, tuned as the service would."""
        job = TuneJob(place="none", attempt=0, method=method, class_noun=NOUN, steps=steps, seed=0)
        return engine.tune(job, take_pictures([picture(0)], engine.spec.limits), threading.Event(), lambda *_: None)

    async def fill(self, method: str, steps: int, weights: bytes, count: int) -> list[str]:
        """Put a concept into the store `count` times, each as one of its own; their ids."""
        now, ids = time.time(), []
        for number in range(count):
            ids.append(f"c_{method.replace('_', '')}{number:05d}")
            order = TuneOrder(
                tenant=TENANT, id=ids[-1], method=method, class_noun=NOUN, steps=steps, seed=0, created=now,
                expires=now + 24 * 3600,
            )  # fmt: skip
            record = SavedRecord(order=order, state=State.SUCCEEDED, step=steps)
            await self.store.put(order.place, "weights", weights)
            await self.store.put(order.place, "record", record.model_dump_json().encode())
        return ids


class Service:
    """`imprint serve` on a free port of loopback, until the block ends."""

    def __init__(self, shelf: Shelf, *overrides: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.address, self.key = f"http://127.0.0.1:{port}", shelf.api_key
        self._temporary = Path(tempfile.mkdtemp(prefix="imprint-serve-", dir="/tmp"))  # sockets need a short path
        self._command = [
            str(Path(sys.executable).parent / "imprint"), "serve", "--host", "127.0.0.1", "--port", str(port),
            f"store.url={shelf.folder / 'store'}", f"store.key_file={shelf.key_file}", f"keys_file={shelf.keys_file}",
            "limits.concepts=2000",
            *overrides,
        ]  # fmt: skip
        self._log = shelf.folder / "service.log"

    def __enter__(self) -> Self:
        env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        env |= {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": str(self._temporary)}
        began = time.perf_counter()
        with self._log.open("w") as log:
            self._process = subprocess.Popen(self._command, env=env, stdout=log, stderr=log, start_new_session=True)
        try:
            while not self._is_ready():
                if self._process.poll() is not None or time.perf_counter() - began > START_S:
                    raise SystemExit(f"the service did not start:\n{self._log.read_text()[-3000:]}")
                time.sleep(0.2)
        except BaseException:
            self.__exit__()
            raise
        self.start_s = time.perf_counter() - began
        return self

    def _is_ready(self) -> bool:
        try:
            return httpx2.get(f"{self.address}/ready", timeout=10).status_code == 200
        except httpx2.TransportError:
            return False

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
        shutil.rmtree(self._temporary, ignore_errors=True)


def swaps(shelf: Shelf, ids: Mapping[str, Sequence[str]], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of a sampler alone, by method: one denoising step of the concept that was drawn before (`same`), of
    another one in memory (`other`), of the model without one (`model`), and a concept from the store into memory."""
    torch.set_num_threads(1)  # as many as a sampler has by default
    backbone = Backbone.load(shelf.spec().backbone)
    spec = shelf.spec().sampling.model_copy(update={"steps": 1})

    def draw(place: str, concept: Concept | None) -> float:
        rows = Rows(place, concept and concept.learned, ["a photo of <concept>" if concept else "a photo"], [0])
        began = time.perf_counter()
        draw_together(backbone, [rows], spec)
        return time.perf_counter() - began

    found = {}
    for method, each in ids.items():
        stored: list[float] = []
        one, two = asyncio.run(_load(shelf, each, stored))[:2]
        turns: dict[str, list[float]] = {"model": [], "same": [], "other": [], "store": stored}
        for number in range(rounds + 1):
            now, then = ((each[0], one), (each[1], two))[:: 1 if number % 2 else -1]
            turns["model"].append(draw("", None))
            draw(*now)
            turns["same"].append(draw(*now))
            turns["other"].append(draw(*then))
        found[method] = {name: seconds[1:] for name, seconds in turns.items()}  # the first of all are slower
    return found


async def _load(shelf: Shelf, ids: Sequence[str], seconds: list[float]) -> list[Concept]:
    """All concepts, through a cache as a sampler has it; the times go to `seconds`."""

    async def load(place: str) -> Concept:
        return await asyncio.to_thread(unpack, await shelf.store.get(place, "weights"))

    cache = ConceptCache(load, most=len(ids), most_bytes=1 << 40)
    concepts = []
    for concept_id in ids:
        began = time.perf_counter()
        concepts.append(await cache.get(f"{TENANT}/{concept_id}"))
        seconds.append(time.perf_counter() - began)
    return concepts
