"""How many uploads are in memory at a time: one body may be large, and many wait to be decoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from imprint.serve.problems import Problem
from imprint.serve.settings import LimitsSpec

_RETRY_S = 2.0


class Uploads:
    """Those of one ingress, by tenant."""

    def __init__(self, limits: LimitsSpec) -> None:
        self.limits = limits
        self.held: Counter[str] = Counter()

    @contextmanager
    def place(self, tenant: str) -> Iterator[Place]:
        """A place from before the body is read; `leave` gives it back before the block ends.

        Raises:
            Problem: 429, the tenant has enough; 503, everybody has.
        """
        if self.held[tenant] >= self.limits.uploads_per_tenant:
            raise Problem.of(429, "too-many-uploads", f"{self.held[tenant]} of your uploads are being read",
                             retry_after_s=_RETRY_S)  # fmt: skip
        if self.held.total() >= self.limits.uploads:
            raise Problem.of(503, "busy", "enough uploads are being read", retry_after_s=_RETRY_S)
        place = Place(self, tenant)
        try:
            yield place
        finally:
            place.leave()


class Place:
    """One of them."""

    def __init__(self, uploads: Uploads, tenant: str) -> None:
        self._uploads, self._tenant, self._taken = uploads, tenant, True
        uploads.held[tenant] += 1

    def leave(self) -> None:
        """The upload is not in memory any more."""
        if self._taken:
            self._taken = False
            self._uploads.held[self._tenant] -= 1
