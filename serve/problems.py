"""What the service answers where it does not do as asked: RFC 9457 documents, and the exception that carries one."""

from __future__ import annotations

from typing import Any

from imprint.errors import ImprintError

MEDIA_TYPE = "application/problem+json"
RETRY_S = 5.0
"""Retry-After where nothing better is known."""

TITLES = {
    400: "The request cannot be read",
    401: "No valid API key",
    404: "Not found",
    405: "Method not allowed",
    409: "In conflict with the present state",
    413: "Too large",
    415: "Not a supported media type",
    422: "The request cannot be carried out",
    429: "Too many requests",
    500: "Internal error",
    503: "Not available now",
    504: "Not done in time",
}


class Problem(ImprintError):
    """An answer that is an error. `where` holds the status, the kind and what else the document says."""

    @classmethod
    def of(cls, status: int, kind: str, detail: str, *, retry_after_s: float | None = None, **more: Any) -> Problem:
        """`kind` is a short name for programs, such as `prompt-too-long`; `detail` is for people."""
        return cls(detail, status=status, kind=kind, retry_after_s=retry_after_s, **more)

    def __str__(self) -> str:
        return self.message

    @property
    def status(self) -> int:
        return int(self.where["status"])

    @property
    def kind(self) -> str:
        return str(self.where["kind"])

    @property
    def retry_after_s(self) -> float | None:
        return self.where.get("retry_after_s")

    def document(self) -> dict[str, Any]:
        """The members of RFC 9457, and its extensions."""
        status = self.status
        extensions = {
            name: value
            for name, value in self.where.items()
            if name not in ("status", "kind", "retry_after_s") and value is not None
        }
        return {
            "type": f"urn:imprint:problem:{self.kind}", "title": TITLES.get(status, "Error"), "status": status,
            "detail": self.message, **extensions,
        }  # fmt: skip

    def headers(self) -> dict[str, str]:
        """Retry-After in whole seconds, one at the least; every 429 and 503 has it."""
        wait = self.retry_after_s
        if wait is None:
            if self.status not in (429, 503):
                return {}
            wait = RETRY_S
        return {"Retry-After": str(max(1, round(wait)))}


def from_document(document: dict[str, Any]) -> Problem:
    """The other way round."""
    more = {name: value for name, value in document.items() if name not in ("type", "title", "status", "detail")}
    kind = str(document["type"]).rpartition(":")[2]
    return Problem(document["detail"], status=document["status"], kind=kind, retry_after_s=None, **more)


def not_found() -> Problem:
    """One and the same answer for what was never there, what is gone, and what is another tenant's."""
    return Problem.of(404, "no-such-concept", "there is no such concept; it may have expired or been deleted")


def concealed(error: BaseException) -> Problem:
    """What is said of an error that is no fault of the request: its kind alone, as its text may quote the request."""
    return Problem.of(500, "internal", f"an internal error ({type(error).__name__}); its cause is not in the request")
