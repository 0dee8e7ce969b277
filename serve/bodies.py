"""Request bodies: counted before they are parsed, and kept in memory, whatever their kind."""

from __future__ import annotations

import hashlib
import json
from typing import Any, TypeVar

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from imprint.client.models import Asked, ConceptOrder
from imprint.serve.problems import Problem
from imprint.serve.settings import LimitsSpec

AskedT = TypeVar("AskedT", bound=Asked)
_FIELD_BYTES = 64 << 10
_MANY = ("prompts",)
_MULTIPART = "multipart/form-data"
_JSON = "application/json"


class BodyLimit:
    """ASGI middleware: a body of more than `most` bytes ends the request, by its header, or where it passes them."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        scope.setdefault("state", {})["too_large"] = not declared.isdigit() or int(declared) > self.most
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.most:
                raise too_large(self.most)
            return message

        return await self.app(scope, counted, send)


def too_large(most: int) -> Problem:
    return Problem.of(413, "body-too-large", f"the body has more than {most:,} bytes, which is the most", limit=most)


class _InMemory(MultiPartParser):
    """Starlette's parser, which would write files above a megabyte to disk."""

    spool_max_size = 1 << 40


async def read_concept_order(
    request: Request, limits: LimitsSpec
) -> tuple[ConceptOrder | Mapping[str, Any], list[bytes]]:
    """The fields and the pictures, of either kind of body; pictures of JSON are still data URLs in the order.

    Raises:
        Problem: 400, 413, 415 or 422.
    """
    kind = _kind(request)
    if kind == _JSON:
        return await read_json(request, ConceptOrder, limits), []
    if kind != _MULTIPART:
        raise Problem.of(415, "unsupported-body", f"Content-Type: expected {_MULTIPART} or {_JSON}")
    _check_size(request, limits)
    form = await _read_form(request, limits)
    files, fields = await _split(form)
    order = validated(ConceptOrder, {"images": ["data:,"] * max(1, len(files)), **fields})
    return order, files


async def _read_form(request: Request, limits: LimitsSpec) -> FormData:
    try:
        parser = _InMemory(
            request.headers, request.stream(), max_files=limits.pictures + 1, max_fields=limits.prompts + 16,
            max_part_size=_FIELD_BYTES,
        )  # fmt: skip
        return await parser.parse()
    except MultiPartException as error:
        raise Problem.of(400, "bad-multipart", f"the body cannot be read: {error.message}") from None
    except (KeyError, ValueError, UnicodeError):
        raise Problem.of(400, "bad-multipart", "the body cannot be read as multipart/form-data") from None


async def _split(form: FormData) -> tuple[list[bytes], dict[str, Any]]:
    """Files of `images`, and fields by name."""
    files: list[bytes] = []
    fields: dict[str, Any] = {}
    try:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if name != "images":
                    raise Problem.of(422, "unknown-field", f"{name[:40]!r}: expected pictures in the field images")
                files.append(await value.read())
            elif name == "images":
                raise Problem.of(422, "not-a-file", "images: expected files, and got a text field")
            elif name in _MANY:
                fields.setdefault(name, []).append(value)
            elif name in fields:
                raise Problem.of(422, "field-twice", f"{name[:40]}: it is there twice")
            else:
                fields[name] = value
    finally:
        await form.close()
    return files, fields


async def read_json(request: Request, model: type[AskedT], limits: LimitsSpec) -> AskedT:
    """A JSON body as a model.

    Raises:
        Problem: 400, 413, 415 or 422.
    """
    if _kind(request) != _JSON:
        raise Problem.of(415, "unsupported-body", f"Content-Type: expected {_JSON}")
    _check_size(request, limits)
    body = await request.body()
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        raise Problem.of(400, "bad-json", "the body is not JSON") from None
    return validated(model, data)


def validated(model: type[AskedT], data: Any) -> AskedT:
    """
    Raises:
        Problem: 422, with one entry for each thing wrong.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        # Without the inputs: an answer must not be as long as what was wrong.
        wrong = [
            {"at": ".".join(map(str, one["loc"]))[:200], "what": one["msg"][:300]}
            for one in error.errors(include_url=False, include_input=False, include_context=False)[:20]
        ]
        said = "; ".join(f"{one['at']}: {one['what']}" for one in wrong[:3])
        raise Problem.of(422, "bad-request-body", said, errors=wrong) from None


def digest_of(route: str, order: Asked, files: list[bytes]) -> str:
    """A hash of what a request asks for, the same for both kinds of body that ask for the same in the same way."""
    digest = hashlib.sha256(f"{route}\n".encode())
    digest.update(order.model_dump_json().encode("utf-8", "surrogatepass"))
    for data in files:
        digest.update(hashlib.sha256(data).digest())
    return digest.hexdigest()


def _kind(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _check_size(request: Request, limits: LimitsSpec) -> None:
    if getattr(request.state, "too_large", False):
        raise too_large(limits.body_bytes)
