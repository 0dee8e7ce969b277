"""A small object store on the loopback interface that can be told to fail: plain HTTP, S3 and GCS clients read it.

It speaks just what the real clients (aiohttp in fsspec, s3fs, gcsfs) ask for when they look for an object and read
ranges of it. It is no stand-in for a client: those are the real ones.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

_GCS_OBJECT = re.compile(r"^/(?:download/)?storage/v1/b/([^/]+)/o/([^/]+)$")
_EMPTY_LISTING = (
    b'<?xml version="1.0"?><ListBucketResult><Name>bucket</Name><KeyCount>0</KeyCount>'
    b"<IsTruncated>false</IsTruncated></ListBucketResult>"
)


@dataclass
class LoopbackStorage:
    """`objects` by path without the first slash. Each read takes the next of `faults`.

    A fault is None (all is well), a status to answer with, or ("cut", n): n bytes of the body, then the connection
    ends. `reads` are the ranges that were asked for, (path, first byte or None).
    """

    objects: dict[str, bytes] = field(default_factory=dict)
    faults: list[int | tuple[str, int] | None] = field(default_factory=list)
    reads: list[tuple[str, int | None]] = field(default_factory=list)
    ranges: bool = True
    version: int = 1
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def serve(storage: LoopbackStorage) -> Iterator[LoopbackStorage]:
    """Serve it until the block ends."""

    class Handler(_Handler):
        store = storage

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    storage.port = server.server_address[1]
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield storage
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: LoopbackStorage

    def log_message(self, *_: Any) -> None: ...

    def do_HEAD(self) -> None:
        path = unquote(urlsplit(self.path).path).lstrip("/")
        data = self.store.objects.get(path)
        if data is None:
            self._answer(404, b"", {})
        else:
            self._answer(200, data, self._headers(), with_body=False)

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = parse_qs(parts.query)
        if "list-type" in query:
            return self._answer(200, _EMPTY_LISTING, {"Content-Type": "application/xml"})
        gcs = _GCS_OBJECT.match(parts.path)
        path = f"{gcs[1]}/{unquote(gcs[2])}" if gcs else unquote(parts.path).lstrip("/")
        data = self.store.objects.get(path)
        if data is None:
            return self._answer(404, b"{}" if gcs else b"", {})
        if gcs and query.get("alt") != ["media"]:
            return self._answer(200, self._gcs_record(gcs[1], unquote(gcs[2]), data), {})
        self._read(path, data)

    def _read(self, path: str, data: bytes) -> None:
        asked = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")) if self.store.ranges else None
        self.store.reads.append((path, int(asked[1]) if asked else None))
        fault = self.store.faults.pop(0) if self.store.faults else None
        if isinstance(fault, int):
            return self._answer(fault, b"", {})
        status, headers, body = 200, self._headers(), data
        if asked:
            first, last = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
            status, body = 206, data[first : last + 1]
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        self._answer(status, body, headers, cut=fault[1] if fault else None)

    def _headers(self) -> dict[str, str]:
        accept = {"Accept-Ranges": "bytes"} if self.store.ranges else {"Accept-Ranges": "none"}
        return accept | {"ETag": f'"{self.store.version}"', "Last-Modified": "Wed, 01 Jan 2025 00:00:00 GMT"}

    def _gcs_record(self, bucket: str, name: str, data: bytes) -> bytes:
        record = {
            "kind": "storage#object", "name": name, "bucket": bucket, "size": str(len(data)), "id": name,
            "generation": str(self.store.version), "etag": str(self.store.version), "storageClass": "STANDARD",
            "timeCreated": "2025-01-01T00:00:00.000Z", "updated": "2025-01-01T00:00:00.000Z",
            "contentType": "application/octet-stream",
        }  # fmt: skip
        return json.dumps(record).encode()

    def _answer(
        self, status: int, body: bytes, headers: dict[str, str], *, cut: int | None = None, with_body: bool = True
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body if cut is None else body[:cut])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True
