"""The Python client, sync and async, and the curl lines of the docs, against a real server."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from safetensors.torch import load
from serving import KEYS, picture

import imprint.client
from imprint.client import AsyncClient, Client, ConceptFailed, ServiceError, State
from imprint.client.models import ProblemDetails
from imprint.client.requests import EventReader, checked, pause_s

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address, KEYS["red"]) as client:
        yield client


def test_every_public_name_is_exported() -> None:
    for name in imprint.client.__all__:
        assert getattr(imprint.client, name)


def test_the_client_from_upload_to_deletion(client: Client, tmp_path: Path) -> None:
    file = tmp_path / "cat.png"
    file.write_bytes(picture())
    concept = client.create_concept([file, picture(1)], class_noun="cat", prompts=["a photo of <concept>"], seed=2)
    assert concept.state is State.SUCCEEDED and concept.images[0].png.startswith(b"\x89PNG")
    result = client.create_images("<concept> on blue", [concept], num_images=2, seed=5)
    assert [one.seed for one in result.data] == [5, 6]
    told = [event.event for event in client.image_events("<concept>", [concept], steps=2)]
    assert told == ["progress", "progress", "image", "succeeded"]
    assert load(client.weights(concept))
    client.delete_concept(concept)
    with pytest.raises(ServiceError) as caught:
        client.concept(concept)
    assert caught.value.status == 404 and "expired" in str(caught.value)


def test_what_fails_is_an_error_with_what_was_said(client: Client) -> None:
    started = client.start_concept([picture()], class_noun="cat", steps=1000)
    client.cancel_concept(started)
    with pytest.raises(ConceptFailed, match="canceled"):
        client.wait(started)
    with pytest.raises(ServiceError, match="JPEG, PNG or WebP") as caught:
        client.create_concept([b"no picture"], class_noun="cat")
    assert caught.value.problem.type == "urn:imprint:problem:not-a-picture"


def test_one_key_is_one_concept(client: Client) -> None:
    first, again = (
        client.start_concept([picture()], class_noun="cat", seed=1, idempotency_key="from the test") for _ in range(2)
    )
    assert first.id == again.id


def test_the_async_client(address: str) -> None:
    async def use() -> None:
        async with AsyncClient(address, KEYS["red"]) as client:
            concept = await client.create_concept([picture()], class_noun="cat", prompts=["<concept>"])
            both = await asyncio.gather(*(client.create_images("<concept>", [concept], seed=n) for n in range(2)))
            assert [one.data[0].seed for one in both] == [0, 1]
            told = [event.event async for event in client.image_events("<concept>", [concept], steps=2)]
            assert told == ["progress", "progress", "image", "succeeded"]
            assert load(await client.weights(concept))
            await client.delete_concept(concept)
            with pytest.raises(ServiceError):
                await client.concept(concept)

    asyncio.run(use())


def test_busy_answers_are_tried_again() -> None:
    calls: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        calls.append(request)
        if len(calls) == 1:
            raise httpx2.ConnectError("refused")
        if len(calls) == 2:
            document = {"type": "urn:imprint:problem:busy", "title": "t", "status": 503, "detail": "d"}
            return httpx2.Response(503, json=document, headers={"Retry-After": "1"})
        return httpx2.Response(200, json={"created": 1, "data": []})

    http = httpx2.Client(transport=httpx2.MockTransport(answer), base_url="http://service")
    with Client("http://service", "key", http=http) as client:
        assert client.create_images("a cat").data == []
    assert len(calls) == 3
    assert len({call.headers["Idempotency-Key"] for call in calls}) == 1
    assert {call.headers["Authorization"] for call in calls} == {"Bearer key"}


def test_errors_that_are_no_ones_problem_document() -> None:
    with pytest.raises(ServiceError) as caught:
        checked(httpx2.Response(502, text="<html>bad gateway", headers={"Retry-After": "later"}))
    assert caught.value.status == 502 and caught.value.retry_after_s is None
    assert pause_s(caught.value, 0) is None
    busy = ServiceError("", problem=ProblemDetails(type="", title="", status=429, detail=""), retry_after_s=7)
    assert pause_s(busy, 0) == 7 and pause_s(busy, 99) is None


def test_event_lines() -> None:
    lines = [": ping", "", "event: progress", "id: 3", 'data: {"step": 1}', "", 'data: {"a": 1}', ""]
    events = list(EventReader().read(lines))
    assert [(event.event, event.id, event.data) for event in events] == [("progress", 3, {"step": 1})]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_curl_lines_of_the_docs(address: str, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "serve.md").read_text()
    script = "\n".join(re.findall(r"```sh curl\n(.*?)```", text, re.S))
    assert script.count("curl ") >= 8
    (tmp_path / "me.jpg").write_bytes(picture(form="JPEG"))
    env = os.environ | {"SERVICE": address, "KEY": KEYS["red"]}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    assert load((tmp_path / "concept.safetensors").read_bytes())
    assert "event: succeeded" in done.stdout and '"state":"canceled"' in done.stdout
