"""Idempotency-Key: a POST that is sent again gets the answer that it got, and is not carried out again."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from imprint.config.base import Section
from imprint.errors import StorageError
from imprint.serve.problems import Problem
from imprint.serve.settings import ServeSpec
from imprint.serve.store import Store

log = logging.getLogger(__name__)

_FOLDER = "answer-"
_GRACE_S = 60.0


class Answer(Section):
    """A response that was given, whole."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(eq=False)
class _Kept:
    """A key: running where it has no answer yet."""

    tenant: str
    digest: str
    expires: float
    concept_ids: frozenset[str] = frozenset()
    done: bool = False


class Answers:
    """Keys of all tenants, by tenant; answers lie in the store, sealed as everything there."""

    def __init__(self, spec: ServeSpec, store: Store) -> None:
        self.spec, self.store = spec, store
        self._kept: dict[str, _Kept] = {}

    async def begin(self, tenant: str, key: str, digest: str) -> Answer | None:
        """The answer that was given; None where the request is to be carried out, and `finish` called after it.

        Raises:
            Problem: 409, the first request still runs; 422, it had another body; 429, too many keys.
        """
        folder = _folder(tenant, key)
        kept = self._kept.get(folder)
        if kept is not None and time.time() < kept.expires:
            if kept.digest != digest:
                raise Problem.of(422, "idempotency-key-reused", "Idempotency-Key: it was used with another request")
            if not kept.done:
                raise Problem.of(409, "still-running", "Idempotency-Key: the first request with it still runs",
                                 retry_after_s=1)  # fmt: skip
            return _read(await self.store.get(folder, "record"))
        own = [one for one in self._kept.values() if one.tenant == tenant]
        if len(own) >= self.spec.limits.answers_per_tenant:
            raise Problem.of(429, "too-many-keys", "Idempotency-Key: too many are kept", retry_after_s=60)
        self._kept[folder] = _Kept(tenant, digest, time.time() + self._longest_s)
        return None

    @property
    def _longest_s(self) -> float:
        """A request that runs for longer has died with its ingress, and its key may be used again."""
        limits = self.spec.limits
        return max(limits.longest_wait_s, limits.image_deadline_s) + _GRACE_S

    async def finish(self, tenant: str, key: str, answer: Answer | None, concept_ids: Collection[str]) -> None:
        """Keep the answer until it expires, or its concepts do; None forgets the key, so that it may be tried again."""
        folder = _folder(tenant, key)
        kept = self._kept.get(folder)
        if kept is None:
            return
        if answer is None:
            del self._kept[folder]
            return
        kept.concept_ids = frozenset(concept_ids)
        kept.expires = time.time() + self.spec.store.ttl_s
        record = {
            "digest": kept.digest, "expires": kept.expires, "concept_ids": sorted(concept_ids),
            "status": answer.status, "headers": answer.headers, "body": base64.b64encode(answer.body).decode(),
        }  # fmt: skip
        try:
            await self.store.put(folder, "record", json.dumps(record).encode())
        except (Problem, StorageError) as error:  # what was asked for is done; only its answer cannot be kept
            log.warning("an answer is not kept: %s", error)
            self._kept.pop(folder, None)
            return
        kept.done = True

    def restore(self, name: str, folder: str, saved: Mapping[str, Any]) -> bool:
        """Take up a record of the store, if it is an answer."""
        if not name.startswith(_FOLDER):
            return False
        tenant = folder.partition("/")[0]
        ids = frozenset(saved["concept_ids"])
        self._kept[folder] = _Kept(tenant, saved["digest"], saved["expires"], ids, done=True)
        return True

    async def forget(self, concept_id: str) -> None:
        """All answers that tell of a concept."""
        await self._drop([folder for folder, kept in self._kept.items() if concept_id in kept.concept_ids])

    async def sweep(self) -> None:
        """Those that have expired."""
        await self._drop([folder for folder, kept in self._kept.items() if time.time() >= kept.expires])

    async def _drop(self, folders: Collection[str]) -> None:
        for folder in folders:
            self._kept.pop(folder, None)
            await self.store.drop(folder)

    def folders(self) -> set[str]:
        return set(self._kept)


def _folder(tenant: str, key: str) -> str:
    return f"{tenant}/{_FOLDER}{hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"


def _read(record: bytes) -> Answer:
    saved = json.loads(record)
    return Answer(status=saved["status"], headers=saved["headers"], body=base64.b64decode(saved["body"]))
