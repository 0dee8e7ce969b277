"""The HTTP interface, on real engines in one process."""

from __future__ import annotations

import base64
import io
import json
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from hostile_pictures import HOSTILE
from PIL import Image
from safetensors.torch import load
from serving import headers, picture

from imprint.serve.inprocess import LocalWorkers
from imprint.tuning import Concept


def events_of(text: str) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if lines:
            found.append((lines["event"], json.loads(lines["data"])))
    return found


def test_a_concept_from_upload_to_deletion(http: httpx2.Client) -> None:
    fields = {"class_noun": "cat", "prompts": ["a photo of <concept>", "<concept> on blue"], "num_images": 2, "seed": 3}
    files = [("images", picture(1)), ("images", picture(2, form="JPEG"))]
    made = http.post("/v1/concepts", files=files, data=fields)
    assert made.status_code == 202, made.text
    first = made.json()
    assert made.headers["Location"] == f"/v1/concepts/{first['id']}" and first["state"] in ("starting", "processing")
    stream = http.get(first["links"]["events"])
    assert stream.headers["content-type"].startswith("text/event-stream")
    told = events_of(stream.text)
    assert [event for event, _ in told] == ["progress"] * 3 + ["image"] * 4 + ["succeeded"]
    assert [data["step"] for event, data in told if event == "progress"] == [0, 1, 2]
    assert all(data["loss"] > 0 for event, data in told[1:3])
    whole = http.get(first["links"]["self"]).json()
    assert whole["state"] == "succeeded" and whole["progress"]["step"] == 2
    assert [image["seed"] for image in whole["images"]] == [3, 4, 3, 4]
    pictures = [Image.open(io.BytesIO(base64.b64decode(image["b64_json"]))) for image in whole["images"]]
    assert {one.size for one in pictures} == {(16, 16)}
    assert [data["b64_json"] for event, data in told if event == "image"] == [i["b64_json"] for i in whole["images"]]
    again = http.get(first["links"]["events"], headers={"Last-Event-ID": "7"})
    assert [event for event, _ in events_of(again.text)] == ["succeeded"]
    assert http.delete(first["links"]["self"]).status_code == 204
    assert http.get(first["links"]["self"]).status_code == 404
    assert http.delete(first["links"]["self"]).status_code == 404


def test_json_body_gives_the_same_weights_as_multipart(http: httpx2.Client) -> None:
    url = "data:image/png;base64," + base64.b64encode(picture(1)).decode()
    order = {"images": [url], "class_noun": "cat", "seed": 5}
    prefer = {"Prefer": "respond-async, wait=60"}
    one = http.post("/v1/concepts", json=order, headers=prefer)
    two = http.post("/v1/concepts", files={"images": picture(1)}, data={"class_noun": "cat", "seed": 5}, headers=prefer)
    assert (one.status_code, two.status_code) == (201, 201)
    weights = [load(http.get(answer.json()["links"]["weights"]).content) for answer in (one, two)]
    assert weights[0].keys() == weights[1].keys()
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])


def test_weights_are_a_concept_that_the_command_line_reads(
    http: httpx2.Client, tuned: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    made = tuned(method="lora")
    answer = http.get(made["links"]["weights"], params={"format": "imprint"})
    assert answer.headers["content-type"] == "application/zip"
    zipfile.ZipFile(io.BytesIO(answer.content)).extractall(tmp_path / "concept")
    concept = Concept.load(tmp_path / "concept")
    assert concept.learned.method == "lora" and concept.learned.class_noun == "cat"
    exported = http.get(made["links"]["weights"], params={"format": "diffusers-lora"})
    assert exported.status_code == 200 and load(exported.content)
    wrong = http.get(made["links"]["weights"], params={"format": "textual-inversion"})
    assert wrong.status_code == 422 and "LoRA" in wrong.json()["detail"]
    assert http.get(made["links"]["weights"], params={"format": "pickle"}).status_code == 422


def test_images_of_a_concept_and_of_the_model_alone(http: httpx2.Client, tuned: Callable[..., dict[str, Any]]) -> None:
    concept = tuned()["id"]
    order = {"prompt": "a photo of <concept>", "concepts": [concept], "num_images": 2, "seed": 1, "steps": 3}
    result = http.post("/v1/images", json=order).json()
    assert [one["seed"] for one in result["data"]] == [1, 2]
    assert http.post("/v1/images", json=order).json()["data"] == result["data"]
    plain = http.post("/v1/images", json={"prompt": "a cat", "response_format": "png", "seed": 4})
    assert plain.headers["content-type"] == "image/png" and Image.open(io.BytesIO(plain.content)).size == (16, 16)
    assert plain.headers["X-Seed"] == "4"


def test_images_tell_their_progress(http: httpx2.Client) -> None:
    stream = http.post("/v1/images", json={"prompt": "a cat", "stream": True, "steps": 3, "num_images": 2})
    told = events_of(stream.text)
    assert [event for event, _ in told] == ["progress"] * 3 + ["image"] * 2 + ["succeeded"]
    assert [data["step"] for event, data in told[:3]] == [1, 2, 3]


def test_two_concepts_in_one_picture(http: httpx2.Client, tuned: Callable[..., dict[str, Any]]) -> None:
    ids = [tuned()["id"], tuned(class_noun="dog")["id"]]
    both = http.post("/v1/images", json={"prompt": "<concept-1> by <concept-2>", "concepts": ids})
    assert both.status_code == 200, both.text
    one = http.post("/v1/images", json={"prompt": "<concept>", "concepts": ids})
    assert one.status_code == 422 and one.json()["type"] == "urn:imprint:problem:no-placeholder"
    mixed = http.post(
        "/v1/images", json={"prompt": "<concept-1> <concept-2>", "concepts": [ids[0], tuned(method="lora")["id"]]}
    )
    assert mixed.status_code == 422 and mixed.json()["type"] == "urn:imprint:problem:concepts-do-not-merge"


BAD_IMAGES: list[tuple[dict[str, Any], int]] = [
    ({}, 422), ({"prompt": ""}, 422), ({"prompt": "a", "what": 1}, 422), ({"prompt": "a", "num_images": 99}, 422),
    ({"prompt": "a", "size": "512x512"}, 422), ({"prompt": "a", "sampler": "plms"}, 422),
    ({"prompt": "a", "steps": 1000}, 422), ({"prompt": "word " * 200}, 422), ({"prompt": "a " * 4000}, 422),
    ({"prompt": "a", "negative_prompt": "word " * 200}, 422), ({"prompt": "<concept>"}, 422),
    ({"prompt": "<concept>", "concepts": ["c_0"]}, 404), ({"prompt": "a", "concepts": ["../../etc"]}, 404),
    ({"prompt": "a", "response_format": "png", "num_images": 2}, 422),
    ({"prompt": "<concept>", "concepts": ["c_0", "c_0"]}, 422),
]  # fmt: skip


@pytest.mark.parametrize(("order", "status"), BAD_IMAGES)
def test_what_cannot_be_drawn(http: httpx2.Client, order: dict[str, Any], status: int) -> None:
    answer = http.post("/v1/images", json=order)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert document["status"] == status and document["title"] and document["detail"]


def test_a_prompt_that_is_too_long_is_told_the_limit(http: httpx2.Client) -> None:
    document = http.post("/v1/images", json={"prompt": "cat " * 60}).json()
    assert document["limit"] == 22 and document["got"] == 60 and "22" in document["detail"]


@pytest.mark.parametrize(
    "prompt", ["🙂 猫 кот", "a\0b", "{} %s ${x} <script>", "<|endoftext|> a cat", "\u202eabc", "ﷺ"]
)
def test_any_unicode_is_text(http: httpx2.Client, prompt: str) -> None:
    assert http.post("/v1/images", json={"prompt": prompt}).status_code == 200


def test_half_of_a_pair_is_no_text(http: httpx2.Client) -> None:
    kind = {"Content-Type": "application/json"}
    answer = http.post("/v1/images", content=b'{"prompt": "a \\ud800 b"}', headers=kind)
    assert answer.status_code == 422


BAD_CONCEPTS: list[tuple[dict[str, Any], int, str]] = [
    ({"data": {"class_noun": "cat"}, "files": {"other": b"x"}}, 422, "unknown-field"),
    ({"files": {"images": b"GIF89a......"}, "data": {"class_noun": "cat"}}, 415, "not-a-picture"),
    ({"files": {"images": picture()}}, 422, "no-class-noun"),
    ({"files": {"images": picture()}, "data": {"class_noun": "<concept>"}}, 422, "bad-class-noun"),
    ({"files": {"images": picture()}, "data": {"class_noun": "cat", "method": "e4t"}}, 422, "unknown-method"),
    ({"files": {"images": picture()}, "data": {"class_noun": "cat", "steps": "x"}}, 422, "bad-request-body"),
    ({"files": {"images": picture()}, "data": {"class_noun": "cat", "steps": 10**6}}, 422, "too-many-steps"),
    ({"files": {"images": picture()}, "data": {"class_noun": "cat", "prompts": ["cat"]}}, 422, "no-placeholder"),
    ({"files": {"images": picture()}, "data": {"class_noun": "cat", "prompts": ["<concept> " + "x " * 50]}}, 422,
     "prompt-too-long"),
    ({"files": [("images", picture())] * 9, "data": {"class_noun": "cat"}}, 422, "too-many-pictures"),
    ({"json": {"images": ["http://example.com/a.png"], "class_noun": "cat"}}, 415, "not-a-data-url"),
    ({"json": {"images": ["data:image/png;base64,?"], "class_noun": "cat"}}, 422, "bad-base64"),
    ({"json": {"images": [], "class_noun": "cat"}}, 422, "bad-request-body"),
    ({"content": b"{", "headers": {"Content-Type": "application/json"}}, 400, "bad-json"),
    ({"content": b"[" * 100_000, "headers": {"Content-Type": "application/json"}}, 400, "bad-json"),
    ({"content": b"x", "headers": {"Content-Type": "text/plain"}}, 415, "unsupported-body"),
    ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 400, "bad-multipart"),
    ({"content": b"x", "headers": {"Content-Type": "multipart/form-data; boundary=b"}}, 400, "bad-multipart"),
    ({"content": b"0" * (25 << 20), "headers": {"Content-Type": "application/json"}}, 413, "body-too-large"),
]  # fmt: skip


@pytest.mark.parametrize(("request_", "status", "kind"), BAD_CONCEPTS, ids=[kind for _, _, kind in BAD_CONCEPTS])
def test_what_cannot_be_tuned(http: httpx2.Client, request_: dict[str, Any], status: int, kind: str) -> None:
    answer = http.post("/v1/concepts", **request_)
    assert (answer.status_code, answer.json()["type"]) == (status, f"urn:imprint:problem:{kind}"), answer.text


def test_hostile_uploads_are_refused(http: httpx2.Client) -> None:
    for name, (data, status) in HOSTILE.items():
        files = {"images": (f"../../{name}\0.png", data, "image/png")}
        answer = http.post("/v1/concepts", files=files, data={"class_noun": "cat"})
        assert answer.status_code == status, name


def test_a_body_without_a_length_is_counted_as_it_comes(http: httpx2.Client) -> None:
    def endless() -> Any:
        for _ in range(30):
            yield b"0" * (1 << 20)

    answer = http.post("/v1/concepts", content=endless(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413


def test_no_key_no_answer(http: httpx2.Client) -> None:
    for value in (b"", b"Bearer", b"Bearer wrong", b"Basic imp_red", b"Bearer \xff"):
        answer = http.post("/v1/images", json={"prompt": "a"}, headers={"Authorization": value})
        assert answer.status_code == 401 and answer.headers["WWW-Authenticate"] == "Bearer"


def test_what_is_not_there(http: httpx2.Client) -> None:
    for method, path in (
        ("GET", "/v2"),
        ("PUT", "/v1/images"),
        ("GET", "/page/../settings.py"),
        ("GET", "/page/%2e%2e/api.py"),
    ):
        answer = http.request(method, path)
        assert answer.status_code in (404, 405) and answer.json()["status"] == answer.status_code


def test_another_tenants_concept_is_not_there(
    http: httpx2.Client, other: httpx2.Client, tuned: Callable[..., dict[str, Any]]
) -> None:
    made = tuned()
    links = made["links"]
    draw = {"prompt": "<concept>", "concepts": [made["id"]]}
    calls = [
        lambda c: c.get(links["self"]), lambda c: c.get(links["events"]), lambda c: c.get(links["weights"]),
        lambda c: c.post(links["cancel"]), lambda c: c.delete(links["self"]),
        lambda c: c.post("/v1/images", json=draw),
    ]  # fmt: skip
    for call in calls:
        answer = call(other)
        assert answer.status_code == 404
        assert answer.json() == other.get("/v1/concepts/c_000000000000000000000000").json()
    assert http.get(links["self"]).json()["state"] == "succeeded"


def test_cancel(http: httpx2.Client) -> None:
    made = http.post("/v1/concepts", files={"images": picture()}, data={"class_noun": "cat", "steps": 1000}).json()
    while http.get(made["links"]["self"]).json()["progress"]["step"] < 2:
        time.sleep(0.02)
    answer = http.post(made["links"]["cancel"])
    assert answer.status_code == 200 and answer.json()["state"] == "canceled"
    assert http.post(made["links"]["cancel"]).json()["state"] == "canceled"
    assert events_of(http.get(made["links"]["events"]).text)[-1][0] == "canceled"
    assert http.get(made["links"]["weights"]).status_code == 409


def test_cancel_of_what_has_ended(http: httpx2.Client, tuned: Callable[..., dict[str, Any]]) -> None:
    assert http.post(tuned()["links"]["cancel"]).status_code == 409


def test_idempotency(http: httpx2.Client, other: httpx2.Client, api: FastAPI) -> None:
    order = {"prompt": "a cat", "num_images": 2}
    key = {"Idempotency-Key": "one"}
    first = http.post("/v1/images", json=order, headers=key)
    again = http.post("/v1/images", json=order, headers=key)
    assert again.content == first.content and again.headers["Idempotent-Replayed"] == "true"
    assert "Idempotent-Replayed" not in first.headers
    reused = http.post("/v1/images", json={**order, "seed": 1}, headers=key)
    assert reused.status_code == 422 and reused.json()["type"].endswith("idempotency-key-reused")
    assert other.post("/v1/images", json=order, headers=key).content != first.content
    refused = http.post("/v1/images", json={"prompt": ""}, headers={"Idempotency-Key": "two"})
    assert refused.status_code == 422
    assert http.post("/v1/images", json=order, headers={"Idempotency-Key": "two"}).status_code == 200
    stream = http.post("/v1/images", json={**order, "stream": True}, headers={"Idempotency-Key": "three"})
    replay = http.post("/v1/images", json={**order, "stream": True}, headers={"Idempotency-Key": "three"})
    assert replay.text == stream.text and replay.headers["content-type"].startswith("text/event-stream")


def test_idempotency_of_concepts(http: httpx2.Client) -> None:
    def post(key: str, seed: int = 1) -> httpx2.Response:
        data = {"class_noun": "cat", "seed": seed}
        return http.post("/v1/concepts", files={"images": picture()}, data=data, headers={"Idempotency-Key": key})

    first, again = post("a"), post("a")
    assert first.status_code == 202 and again.json() == first.json() and again.headers["Location"]
    assert post("a", seed=2).status_code == 422
    http.delete(first.json()["links"]["self"])
    assert post("a").json()["id"] != first.json()["id"]  # the answer went with its concept


def test_who_does_not_know_the_pools_yet_is_not_ready(http: httpx2.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    async def unknown(self: LocalWorkers) -> bool:
        return False

    monkeypatch.setattr(LocalWorkers, "is_ready", unknown)
    answer = http.get("/ready")
    assert answer.status_code == 503 and answer.headers["Retry-After"]


def test_operators_routes(http: httpx2.Client) -> None:
    assert http.get("/health").json() == {"status": "ok"}
    assert http.get("/ready").status_code == 200
    text = http.get("/metrics").text
    assert 'imprint_replicas{pool="sampler"} 1.0' in text and "red" not in text
    document = http.get("/openapi.json").json()
    assert {"/v1/concepts", "/v1/images", "/v1/concepts/{concept_id}/events"} <= document["paths"].keys()


def test_uploads_are_not_kept_once_they_are_learned(tuned: Callable[..., dict[str, Any]], api: FastAPI) -> None:
    made, held = tuned(), api.state.desk.store.blobs._held
    deadline = time.monotonic() + 60
    while "pictures" in (kept := {path.rpartition("/")[2] for path in [*held] if made["id"] in path}):
        assert time.monotonic() < deadline  # the books are closed after the end was told
        time.sleep(0.02)
    assert kept == {"record", "weights"}


def test_a_client_that_goes_away_cancels(http: httpx2.Client, address: str, api: FastAPI) -> None:
    before = set(api.state.desk.records)
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.post(
            f"{address}/v1/concepts", files={"images": picture()}, data={"class_noun": "cat", "steps": 1000},
            headers=headers(Prefer="wait=60"), timeout=0.7,
        )  # fmt: skip
    deadline = time.monotonic() + 120
    while set(api.state.desk.records) - before:
        assert time.monotonic() < deadline, "the concept of a client that went away is still there"
        time.sleep(0.05)
    order = {"prompt": "a cat", "steps": 100, "num_images": 8}
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.post(f"{address}/v1/images", json=order, headers=headers(), timeout=0.3)
    while api.state.desk._images:
        assert time.monotonic() < deadline, "the ticket of a client that went away is still held"
        time.sleep(0.05)
