"""Two tenants, interleaved over every route and every id: nothing crosses, and the base stays what it is."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import httpx2
import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from serving import headers, picture, served, spec_of

from imprint.serve.inprocess import create_local_api
from imprint.serve.weights import exact_digest

PLAIN = {"prompt": "a photo of a cat", "seed": 7, "num_images": 2}


def make(client: httpx2.Client, seed: int) -> dict[str, Any]:
    data = {"class_noun": "cat", "seed": seed, "method": random.Random(seed).choice(["textual_inversion", "lora"])}
    answer = client.post("/v1/concepts", files={"images": picture(seed)}, data=data, headers={"Prefer": "wait=60"})
    assert answer.status_code == 201, answer.text
    return answer.json()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("requests", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_nothing_crosses_between_tenants(requests: int, tiny_sd15: Path) -> None:
    api = create_local_api(spec_of(tiny_sd15))
    workers = api.state.workers
    digests = [exact_digest(workers.tuner.engine.backbone), exact_digest(workers.sampler.backbone)]
    with served(api) as address:
        clients = {name: httpx2.Client(base_url=address, headers=headers(name), timeout=60) for name in ("red", "blue")}
        fresh = clients["red"].post("/v1/images", json=PLAIN).json()["data"]
        owned = {name: [make(client, n) for n in range(2)] for name, client in clients.items()}
        drawn = {one["id"]: draw(clients[name], one["id"]).json()["data"] for name in owned for one in owned[name]}
        chosen = random.Random(0)
        counts = {"own": 0, "foreign": 0}
        for _ in range(requests):
            me = chosen.choice(["red", "blue"])
            whose = chosen.choice(["red", "blue"])
            concept = chosen.choice(owned[whose])
            if me == whose:
                counts["own"] += 1
                use_own(clients[me], concept, drawn[concept["id"]], chosen)
            else:
                counts["foreign"] += 1
                refused = use_foreign(clients[me], concept, chosen)
                assert refused.status_code == 404 and concept["id"] not in refused.text
        assert min(counts.values()) > requests // 3
        for name, client in clients.items():
            for concept in owned[name]:
                assert client.get(concept["links"]["self"]).json()["state"] == "succeeded"
            assert client.post("/v1/images", json=PLAIN).json()["data"] == fresh
            client.close()
    assert [exact_digest(workers.tuner.engine.backbone), exact_digest(workers.sampler.backbone)] == digests
    with served(create_local_api(spec_of(tiny_sd15))) as address:
        again = httpx2.post(f"{address}/v1/images", json=PLAIN, headers=headers("blue"), timeout=60).json()["data"]
    assert again == fresh


def draw(client: httpx2.Client, concept_id: str) -> httpx2.Response:
    return client.post("/v1/images", json={"prompt": "<concept>", "concepts": [concept_id], "seed": 1, "steps": 1})


def use_own(client: httpx2.Client, concept: dict[str, Any], drawn: Any, chosen: random.Random) -> None:
    which = chosen.randrange(5)
    if which == 0:
        answer = draw(client, concept["id"])
        assert answer.json()["data"] == drawn
    elif which == 1:
        answer = client.get(concept["links"]["weights"])
    elif which == 2:
        answer = client.get(concept["links"]["events"])
        assert concept["id"] in answer.text
    elif which == 3:
        answer = client.get(concept["links"]["self"])
        assert answer.json()["id"] == concept["id"]
    else:
        answer = client.post(concept["links"]["cancel"])
        assert answer.status_code == 409
        return
    assert answer.status_code == 200


def use_foreign(client: httpx2.Client, concept: dict[str, Any], chosen: random.Random) -> httpx2.Response:
    links = concept["links"]
    calls = [
        lambda: draw(client, concept["id"]), lambda: client.get(links["weights"]), lambda: client.get(links["events"]),
        lambda: client.get(links["self"]), lambda: client.post(links["cancel"]), lambda: client.delete(links["self"]),
        lambda: client.get(links["weights"], params={"format": "imprint"}),
        lambda: client.post(links["cancel"], headers={"Idempotency-Key": "k"}),
    ]  # fmt: skip
    return chosen.choice(calls)()


@pytest.mark.timeout(600)
def test_no_request_that_the_document_allows_is_a_5xx(address: str, api: FastAPI) -> None:
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    quick = settings(
        max_examples=12, deadline=None, database=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) >= 10
    for operation in operations:

        @quick
        @schemathesis_given(operation)
        def check(case: schemathesis.Case) -> None:
            answer = case.call(headers=headers(), timeout=60)
            case.validate_response(answer, checks=[not_a_server_error])

        check()


def schemathesis_given(operation: Any) -> Any:
    from hypothesis import given

    return given(case=operation.as_strategy())
