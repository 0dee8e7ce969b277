"""The service on a base model of the tests, behind a real HTTP server on loopback, and pictures to send to it."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI
from PIL import Image

from imprint.serve.settings import ServeSpec
from imprint.serve.tenants import key_hash

KEYS = {"red": "imp_red", "blue": "imp_blue"}
START_S = 60


def headers(tenant: str = "red", **more: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {KEYS[tenant]}", **more}


def picture(seed: int = 0, side: int = 32, form: str = "PNG", **options: Any) -> bytes:
    """A picture of random blocks."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(blocks).resize((side, side), Image.Resampling.NEAREST).save(out, form, **options)
    return out.getvalue()


def spec_of(backbone: Path, **changes: Any) -> ServeSpec:
    keys: dict[str, Any] = {
        "backbone": str(backbone), "encoders": {}, "default_method": "textual_inversion",
        "methods": {name: {"steps": 2, "batch_size": 1} for name in ("textual_inversion", "lora")},
        "sampling": {"steps": 2}, "keys": {tenant: [key_hash(key)] for tenant, key in KEYS.items()},
        "safety": {"enabled": False}, "store": {"sweep_s": 0.2},
    }  # fmt: skip
    for key, value in changes.items():
        keys[key] = {**keys[key], **value} if isinstance(value, dict) and key in keys else value
    return ServeSpec.model_validate(keys)


@contextmanager
def served(api: FastAPI) -> Iterator[str]:
    """The address of a server that runs while the block does."""
    config = uvicorn.Config(api, port=0, log_level="warning", lifespan="on", ws="none", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + START_S
    while not server.started:
        assert thread.is_alive() and time.monotonic() < deadline, "the server did not start"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)
