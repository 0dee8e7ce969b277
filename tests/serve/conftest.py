"""The service on a tiny random base model, without Ray, behind a real HTTP server on loopback."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from serving import headers, picture, served, spec_of

from imprint.serve.inprocess import create_local_api


@pytest.fixture(scope="session")
def api(tiny_sd15: Path) -> FastAPI:
    return create_local_api(spec_of(tiny_sd15, limits={"tunes_per_tenant": 8, "concepts": 50}))


@pytest.fixture(scope="session")
def address(api: FastAPI) -> Iterator[str]:
    with served(api) as url:
        yield url


@pytest.fixture
def http(address: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=address, headers=headers(), timeout=60) as client:
        yield client


@pytest.fixture
def other(address: str) -> Iterator[httpx2.Client]:
    """Another tenant."""
    with httpx2.Client(base_url=address, headers=headers("blue"), timeout=60) as client:
        yield client


@pytest.fixture
def tuned(http: httpx2.Client) -> Callable[..., dict[str, Any]]:
    """Makes a concept and waits for it."""

    def make(client: httpx2.Client = http, **fields: Any) -> dict[str, Any]:
        answer = client.post(
            "/v1/concepts", files={"images": picture()}, data={"class_noun": "cat", **fields},
            headers={"Prefer": "wait=60"},
        )  # fmt: skip
        assert answer.status_code == 201, answer.text
        return answer.json()

    return make
