"""Bad samples, set aside one by one: counted by reason and listed in `<folder>/<shard>.jsonl`.

A file per shard, rewritten whole, so that reading a shard again (another epoch, a retried task) changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from imprint.errors import DataError, SampleError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BadSample:
    """One quarantined sample; `offset` is the byte in its shard where its first member's content begins."""

    shard: str
    key: str
    offset: int
    reason: str
    detail: str


class Quarantine:
    """What one read task set aside.

    `folder` may be None (log only). `total` is the number of samples in the data set: past `max_share` of it the run
    stops.
    """

    def __init__(self, folder: str | None, *, total: int, max_share: float) -> None:
        self.folder = Path(folder) if folder else None
        self.total, self.max_share = total, max_share
        self.found: dict[tuple[str, str, int], BadSample] = {}

    def add(self, shard: str, key: str, offset: int, error: SampleError) -> None:
        """Set a sample aside."""
        reason = str(error.where.get("reason", "bad"))
        if (shard, key, offset) not in self.found:
            log.warning("quarantined %s of %s at byte %d: %s", key, shard, offset, error.message)
        self.found[(shard, key, offset)] = BadSample(shard, key, offset, reason, error.message)

    def close(self) -> None:
        """Write what was found, and stop the run if it is too much.

        Raises:
            DataError: past the share.
        """
        if not self.found:
            return
        if self.folder:
            for shard in {bad.shard for bad in self.found.values()}:
                _merge(self.folder, shard, [bad for bad in self.found.values() if bad.shard == shard])
        reasons = summary(self.folder) if self.folder else Counter(bad.reason for bad in self.found.values())
        bad = max(reasons.total(), len(self.found))
        if bad > self.max_share * self.total:
            counts = ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common())
            raise DataError(
                f"reading samples: {bad} of {self.total} are bad ({counts}), more than data.reader.max_bad_share="
                f"{self.max_share} allows; see {self.folder or 'the log'}, mend the shards or raise the share"
            )


def summary(folder: Path | str) -> Counter[str]:
    """How many samples were quarantined, by reason."""
    return Counter(bad.reason for file in sorted(Path(folder).glob("*.jsonl")) for bad in _read(file))


def metrics(folder: Path | str) -> dict[str, float]:
    """The same as metrics of a run: `quarantine/samples` in all, and one for each reason."""
    reasons = summary(folder)
    return {"quarantine/samples": float(reasons.total())} | {
        f"quarantine/{reason}": float(count) for reason, count in sorted(reasons.items())
    }


def _merge(folder: Path, shard: str, found: list[BadSample]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tag = hashlib.sha256(shard.encode()).hexdigest()[:8]
    path = folder / f"{Path(shard).stem}-{tag}.jsonl"
    known = {(bad.key, bad.offset): bad for bad in [*_read(path), *found]}
    temporary = path.with_suffix(f".{os.getpid()}.partial")
    lines = [json.dumps(asdict(bad)) for _, bad in sorted(known.items(), key=lambda item: item[0][1])]
    temporary.write_text("\n".join(lines) + "\n")
    os.replace(temporary, path)


def _read(path: Path) -> list[BadSample]:
    if not path.exists():
        return []
    return [BadSample(**json.loads(line)) for line in path.read_text().splitlines()]
