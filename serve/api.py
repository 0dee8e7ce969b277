"""The HTTP interface: FastAPI routes around a `Front`."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import aclosing, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from imprint.client.models import ConceptOrder, ConceptStatus, ImageOrder, ImagesResult, ProblemDetails, State
from imprint.serve.answers import Answer
from imprint.serve.bodies import BodyLimit, digest_of, read_concept_order, read_json
from imprint.serve.front import WEIGHT_FORMATS, Front
from imprint.serve.problems import MEDIA_TYPE, Problem, concealed, from_document
from imprint.serve.streams import ClientGone, event_stream, sse, while_listening

PAGE = Path(__file__).parent / "page"
_SECURITY = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_KEY_LENGTH = 255
_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*([0-9]{1,6})")

_WHAT = {
    400: "The body cannot be read", 401: "No valid API key", 404: "No such concept", 409: "Not in this state",
    413: "Body or picture too large", 415: "Another media type", 422: "It cannot be carried out",
    429: "Too much for one tenant; see Retry-After", 503: "Busy; see Retry-After", 504: "Not done in time",
}  # fmt: skip


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    schema = {"$ref": "#/components/schemas/ProblemDetails"}
    retry = {"Retry-After": {"description": "Seconds", "schema": {"type": "integer", "minimum": 1}}}
    return {
        status: {"description": _WHAT[status], "content": {MEDIA_TYPE: {"schema": schema}}}
        | ({"headers": retry} if status in (429, 503) else {})
        for status in (401, *statuses)
    }


def _body(*contents: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    content = {kind: {"schema": schema} for kind, schema in contents}
    return {"requestBody": {"required": True, "content": content}}


def _multipart_schema() -> dict[str, Any]:
    schema = ConceptOrder.model_json_schema()
    files = {"type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"}}
    return {**schema, "properties": {**schema["properties"], "images": files}}


_BINARY = {"schema": {"type": "string", "format": "binary"}}
_EVENTS = {"text/event-stream": {"schema": {"type": "string"}}}
_REFERENCE = {"application/json": {"schema": {"$ref": "#/components/schemas/ConceptStatus"}}}

IdempotencyKey = Annotated[
    str | None, Header(alias="Idempotency-Key", description="The same key and body: the same answer, once")
]
LastEventId = Annotated[int, Header(alias="Last-Event-ID", ge=0, le=2**31, description="Goes on after this one")]
Prefer = Annotated[str | None, Header(description="wait=N waits up to N seconds for the result")]


_bearer = HTTPBearer(auto_error=False, description="An API key")


async def tenant_of(request: Request, _: Annotated[Any, Depends(_bearer)]) -> str:
    """Whose key the request bears."""
    front: Front = request.app.state.front
    return front.tenants.owner(request.headers.get("authorization"))


Tenant = Annotated[str, Depends(tenant_of)]


def create_api(front: Front) -> FastAPI:
    """The application."""
    api = FastAPI(
        title="Imprint", version=version("imprint"), docs_url=None, redoc_url=None,
        description="Upload pictures of a subject, and draw it in new scenes. `<concept>` in a prompt is the subject.",
    )  # fmt: skip
    api.add_middleware(BodyLimit, most=front.spec.limits.body_bytes)
    _handle_errors(api)
    api.state.front = front
    _concept_routes(api, front)
    _image_routes(api, front)
    _operator_routes(api, front)
    _page_routes(api)
    _describe(api)
    return api


def _concept_routes(api: FastAPI, front: Front) -> None:
    bodies = _body(("multipart/form-data", _multipart_schema()), ("application/json", ConceptOrder.model_json_schema()))

    @api.post(
        "/v1/concepts", tags=["concepts"], status_code=202, response_model=ConceptStatus, openapi_extra=bodies,
        responses={201: {"description": "Tuned, within Prefer: wait", "content": _REFERENCE},
                   **_errors(400, 409, 413, 415, 422, 429, 503, 504)},
    )  # fmt: skip
    async def create_concept(
        request: Request, tenant: Tenant, prefer: Prefer = None, idempotency_key: IdempotencyKey = None
    ) -> Response:
        """Teach the model a subject from its pictures."""
        wait = _wait_of(prefer, front.spec.limits.longest_wait_s)
        with front.uploads.place(tenant) as place:
            order, files = await read_concept_order(request, front.spec.limits)
            digest = digest_of("concepts", order, files)

            async def work() -> tuple[Response, Collection[str]]:
                status = await front.create(tenant, order, files)
                files.clear()
                place.leave()
                if wait is not None:
                    status = await _waited(request, front, tenant, status, wait, keep=idempotency_key is not None)
                return _created(status, wait), [status.id]

            return await _once(front, tenant, idempotency_key, digest, work)

    @api.get("/v1/concepts/{concept_id}", tags=["concepts"], response_model=ConceptStatus, responses=_errors(404))
    async def get_concept(concept_id: str, tenant: Tenant) -> Response:
        """Where it is, and what came of it."""
        return _json(200, await front.status(tenant, concept_id))

    @api.delete("/v1/concepts/{concept_id}", tags=["concepts"], status_code=204, responses=_errors(404, 503))
    async def delete_concept(concept_id: str, tenant: Tenant) -> Response:
        """Remove it, its pictures, and every answer that was kept of it."""
        await front.desk.delete(tenant, concept_id)
        return Response(status_code=204)

    @api.post(
        "/v1/concepts/{concept_id}/cancel", tags=["concepts"], response_model=ConceptStatus,
        responses=_errors(404, 409, 422, 429, 503),
    )  # fmt: skip
    async def cancel_concept(concept_id: str, tenant: Tenant, idempotency_key: IdempotencyKey = None) -> Response:
        """End its tuning."""

        async def work() -> tuple[Response, Collection[str]]:
            await front.desk.cancel(tenant, concept_id)
            return _json(200, await front.status(tenant, concept_id)), [concept_id]

        return await _once(front, tenant, idempotency_key, f"cancel {concept_id}", work)

    @api.get(
        "/v1/concepts/{concept_id}/events", tags=["concepts"], response_class=Response,
        responses={200: {"description": "progress, image, succeeded, failed, canceled", "content": _EVENTS},
                   **_errors(404, 422)},
    )  # fmt: skip
    async def concept_events(
        concept_id: str,
        tenant: Tenant,
        last_event_id: Annotated[
            int, Header(alias="Last-Event-ID", ge=0, le=2**31, description="Goes on after it")
        ] = 0,
    ) -> Response:
        """What happens to it, as server-sent events, to the end."""
        await front.desk.status(tenant, concept_id)

        async def lines() -> AsyncIterator[str]:
            try:
                async with aclosing(front.events(tenant, concept_id, last_event_id)) as events:
                    async for event in events:
                        yield ": still here\n\n" if event is None else sse(event.event, event.data, event.id)
            except Problem as problem:  # deleted or expired meanwhile
                yield sse("failed", {"id": concept_id, "error": problem.document()})

        return event_stream(lines())

    @api.get(
        "/v1/concepts/{concept_id}/weights", tags=["concepts"], response_class=Response,
        responses={200: {"description": "safetensors, or a zip of several files",
                         "content": {"application/octet-stream": _BINARY, "application/zip": _BINARY}},
                   **_errors(404, 409, 422, 503)},
    )  # fmt: skip
    async def concept_weights(
        concept_id: str,
        tenant: Tenant,
        form: Annotated[str, Query(alias="format", description=", ".join(WEIGHT_FORMATS))] = "safetensors",
    ) -> Response:
        """What was learned: `safetensors`, `imprint` (a zipped folder), or for other programs."""
        data, name = await front.weights(tenant, concept_id, form)
        kind = "application/zip" if name.endswith(".zip") else "application/octet-stream"
        return Response(data, media_type=kind, headers={"Content-Disposition": f'attachment; filename="{name}"'})


def _image_routes(api: FastAPI, front: Front) -> None:
    @api.post(
        "/v1/images", tags=["images"], response_model=ImagesResult,
        openapi_extra=_body(("application/json", ImageOrder.model_json_schema())),
        responses={200: {"description": "The pictures", "content": {"image/png": _BINARY, **_EVENTS}},
                   **_errors(400, 404, 409, 413, 415, 422, 429, 503, 504)},
    )  # fmt: skip
    async def create_images(request: Request, tenant: Tenant, idempotency_key: IdempotencyKey = None) -> Response:
        """Draw a prompt, with one or several concepts, or with the model alone."""
        order = await read_json(request, ImageOrder, front.spec.limits)

        async def work() -> tuple[Response, Collection[str]]:
            if order.stream:
                return await _image_stream(front, tenant, order, idempotency_key), order.concepts
            result = await while_listening(request, front.images(tenant, order))
            if order.response_format == "b64_json":
                return _json(200, result), order.concepts
            (picture,) = result.data
            if picture.flagged:
                raise Problem.of(422, "unsafe-output", "the safety checker held the picture back")
            return Response(picture.png, media_type="image/png", headers={"X-Seed": str(picture.seed)}), order.concepts

        digest = digest_of("images", order, [])
        return await _once(front, tenant, idempotency_key, digest, work)


async def _image_stream(front: Front, tenant: str, order: ImageOrder, key: str | None) -> Response:
    """Events as they come. What is refused at once is an ordinary error; later ones are a `failed` event."""
    events = front.draw(tenant, order)
    try:
        first = await anext(events)
    except BaseException:
        await events.aclose()
        raise

    async def lines() -> AsyncIterator[str]:
        told: list[str] = []
        whole = False
        try:
            told.append(sse(first.event, first.data))
            yield told[-1]
            async for event in events:
                told.append(sse(event.event, event.data))
                yield told[-1]
            told.append(sse("succeeded", {}))
            whole = True
            yield told[-1]
        except Problem as problem:
            yield sse("failed", {"error": problem.document()})
        finally:
            await events.aclose()
            if key is not None:
                headers = {"content-type": "text/event-stream; charset=utf-8"}
                answer = Answer(status=200, headers=headers, body="".join(told).encode()) if whole else None
                with suppress(Problem):
                    await front.desk.finish(tenant, key, answer, order.concepts)

    return event_stream(lines())


def _operator_routes(api: FastAPI, front: Front) -> None:
    @api.get("/health", tags=["operators"], response_model=dict[str, str])
    async def health() -> dict[str, str]:
        """This process answers."""
        return {"status": "ok"}

    @api.get(
        "/ready", tags=["operators"], response_model=dict[str, str],
        responses={503: {"description": "A pool has no replica", "content": {MEDIA_TYPE: {}}}},
    )  # fmt: skip
    async def ready() -> dict[str, str]:
        """Both pools can work."""
        if not (await front.desk.is_ready() and await front.workers.is_ready()):
            raise Problem.of(503, "not-ready", "a pool has no replica yet", retry_after_s=2)
        return {"status": "ready"}

    @api.get("/metrics", tags=["operators"], response_class=Response,
             responses={200: {"description": "Prometheus' text format", "content": {"text/plain": {}}}})  # fmt: skip
    async def metrics() -> Response:
        """Counters, times and queues; no tenant is named."""
        return Response(await front.desk.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _page_routes(api: FastAPI) -> None:
    @api.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse((PAGE / "index.html").read_text(), headers=_SECURITY)

    @api.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse((PAGE / "docs.html").read_text(), headers=_SECURITY)

    api.mount("/page", StaticFiles(directory=PAGE), name="page")


def _describe(api: FastAPI) -> None:
    """Models that routes name by reference go into the document."""
    plain = api.openapi

    def openapi() -> dict[str, Any]:
        document = plain()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas.setdefault("ProblemDetails", ProblemDetails.model_json_schema())
        for path in document["paths"].values():
            for operation in path.values():
                # FastAPI documents an answer of its own for what is wrong; here that is a problem document.
                answer = operation["responses"].get("422", {})
                if "application/json" in answer.get("content", {}):
                    if MEDIA_TYPE in answer["content"]:
                        del answer["content"]["application/json"]
                    else:
                        del operation["responses"]["422"]
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        return document

    api.openapi = openapi  # type: ignore[method-assign]


# -- errors ------------------------------------------------------------------------------------------------------


def _handle_errors(api: FastAPI) -> None:
    @api.exception_handler(Problem)
    async def problem(request: Request, error: Problem) -> Response:
        return problem_response(error)

    @api.exception_handler(ClientGone)
    async def gone(request: Request, error: ClientGone) -> Response:
        return Response(status_code=499)  # nobody reads it; nginx's number for the log

    @api.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        said = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}"[:300] for one in error.errors()[:3])
        return problem_response(Problem.of(422, "bad-parameter", said))

    @api.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        answer = problem_response(Problem.of(error.status_code, "http", str(error.detail)))
        answer.headers.update(error.headers or {})
        return answer

    @api.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        return problem_response(concealed(error))


def problem_response(problem: Problem) -> Response:
    """A problem document, in ASCII: it may quote what is no text."""
    headers = problem.headers() | ({"WWW-Authenticate": "Bearer"} if problem.status == 401 else {})
    return Response(json.dumps(problem.document()), problem.status, headers, MEDIA_TYPE)


# -- answers -----------------------------------------------------------------------------------------------------


def _json(status: int, model: BaseModel, headers: dict[str, str] | None = None) -> Response:
    return Response(model.model_dump_json(), status, headers, "application/json")


def _created(status: ConceptStatus, wait: float | None) -> Response:
    """201 where it is tuned, 202 where it is not yet; what failed meanwhile is that error."""
    headers = {"Location": status.links.self}
    if status.state is State.FAILED and status.error is not None:
        answer = problem_response(from_document(status.error.model_dump()))
        answer.headers.update(headers)
        return answer
    if wait is not None:
        headers["Preference-Applied"] = f"wait={wait:.0f}"
    return _json(201 if status.state is State.SUCCEEDED else 202, status, headers)


async def _waited(
    request: Request, front: Front, tenant: str, status: ConceptStatus, wait: float, *, keep: bool
) -> ConceptStatus:
    """The status after waiting. A client that goes away has not been told the id, so the concept goes as well, unless
    it can ask again by its key."""
    try:
        return await while_listening(request, front.wait(tenant, status.id, wait))
    except ClientGone:
        if not keep:
            await front.desk.delete(tenant, status.id)
            raise
        return status


def _wait_of(prefer: str | None, longest: float) -> float | None:
    found = _WAIT.search(prefer or "")
    return None if found is None else min(float(found[1]), longest)


async def _once(
    front: Front,
    tenant: str,
    key: str | None,
    digest: str,
    work: Callable[[], Awaitable[tuple[Response, Collection[str]]]],
) -> Response:
    """Carry out `work`, or give the answer that its key already has; only what succeeded is kept."""
    if key is None:
        return (await work())[0]
    if not 1 <= len(key) <= _KEY_LENGTH:
        raise Problem.of(422, "bad-idempotency-key", f"Idempotency-Key: expected 1 to {_KEY_LENGTH} characters")
    known = await front.desk.begin(tenant, key, digest)
    if known is not None:
        return Response(known.body, known.status, {**known.headers, "Idempotent-Replayed": "true"})
    answer: Answer | None = None
    ids: Collection[str] = ()
    streamed = False
    try:
        response, ids = await work()
        streamed = not hasattr(response, "body")
        if not streamed and response.status_code < 300:
            answer = Answer(status=response.status_code, headers=_kept(response), body=bytes(response.body))
        return response
    finally:
        if not streamed:  # a stream is kept, or not, at its end
            with suppress(Problem):  # what was asked for is done, also where its answer cannot be kept
                await front.desk.finish(tenant, key, answer, ids)


def _kept(response: Response) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name.lower() != "content-length"}
