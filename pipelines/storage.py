"""Reads a remote file in order, going on from the byte where the storage failed.

Any fsspec file system: S3, GCS, HTTP. Storage fails in many classes that share no base (aiohttp's and gcsfs's are not
even OSErrors), so every error is taken for a passing one that is not known to be final.
"""

from __future__ import annotations

import errno
import logging
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, TypeVar

import fsspec

from imprint.errors import ShardError, StorageError

log = logging.getLogger(__name__)
T = TypeVar("T")

CHUNK_BYTES = 4 << 20  # one range request; what is read twice after a failure is less than this
SMALLEST_CHUNK_BYTES = 16 << 10  # after failures: fsspec keeps nothing of a range that broke off
_FINAL = (
    FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError,
    ImportError, NotImplementedError, TypeError, AttributeError,
)  # fmt: skip
_WORTH_ANOTHER_TRY = (408, 425, 429)  # HTTP: timeout, too early, too many requests; others from 400 to 499 are final
_VERSION = ("ETag", "etag", "generation", "VersionId", "mtime", "LastModified", "updated")  # as fsspec's infos say it


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and how patiently a failing storage is asked.

    `tries` without one new byte; between them a wait that doubles from `first_wait` to `longest_wait` seconds, drawn
    from its upper half so that many readers do not come back in the same moment.
    """

    tries: int = 6
    first_wait: float = 0.5
    longest_wait: float = 20.0

    def wait(self, failures: int) -> None:
        """Sleep after so many failures in a row."""
        longest = min(self.longest_wait, self.first_wait * 2 ** (failures - 1))
        time.sleep(longest * random.uniform(0.5, 1.0))


DEFAULT_RETRY = Retry()


class Attempts:
    """Counts the failures in a row of one piece of work."""

    def __init__(self, doing: str, url: str, retry: Retry) -> None:
        self.doing, self.url, self.retry = doing, url, retry
        self.failures = 0

    def went_on(self) -> None:
        """Forget earlier failures: something came."""
        self.failures = 0

    def failed(self, error: Exception) -> None:
        """Wait before the next try.

        Raises:
            ShardError: it was the last one.
            Exception: `error` itself, where trying again cannot help.
        """
        if isinstance(error, (ShardError, StorageError)) or is_final(error):
            raise error
        self.failures += 1
        if self.failures >= self.retry.tries:
            raise ShardError(
                f"{self.doing}: the storage failed {self.failures} times in a row, at last with "
                f"{type(error).__name__}: {error}; check that it answers, or raise data.reader.storage_tries",
                shard=self.url,
            ) from error
        log.warning("%s %s: %s: %s; trying again", self.doing, self.url, type(error).__name__, error)
        self.retry.wait(self.failures)


def is_final(error: Exception) -> bool:
    """Whether asking again would give the same answer: nothing there, not allowed, not installed."""
    status = getattr(error, "status", None)
    if status is None:
        status = getattr(error, "code", None)  # gcsfs
    if isinstance(status, int) and 400 <= status < 500:
        return status not in _WORTH_ANOTHER_TRY
    return isinstance(error, _FINAL)


def with_retry(action: Callable[[], T], doing: str, url: str, retry: Retry) -> T:
    """What `action` returns, asked again while the storage fails.

    Raises:
        ShardError: it failed `retry.tries` times in a row.
        FileNotFoundError, PermissionError and other final errors: as they come.
    """
    attempts = Attempts(doing, url, retry)
    while True:
        try:
            return action()
        except Exception as error:
            attempts.failed(error)


def copy_remote(url: str, target: IO[bytes], retry: Retry) -> int:
    """Copy a remote file to the position of `target` and return its size in bytes.

    Raises:
        ShardError: the storage went on failing, or the file was replaced while it was read.
        StorageError: `target` takes no more.
        FileNotFoundError, PermissionError: as the storage says it.
    """
    size = 0
    for chunk in read_on(url, retry):
        try:
            target.write(chunk)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            hint = "free some space or set TMPDIR to a larger disk" if full else "check the folder TMPDIR"
            raise StorageError(f"copying {url} to a temporary file: {error.strerror}; {hint}") from error
        size += len(chunk)
    return size


def read_on(url: str, retry: Retry, start: int = 0) -> Iterator[bytes]:
    """The bytes of a file from `start`, in chunks of at most `CHUNK_BYTES`; memory holds one of them.

    From the second failure at one byte on, each makes the range requests a quarter as long; with each chunk that comes
    they grow twofold.

    Raises:
        ShardError: the storage went on failing, or the file was replaced while it was read.
    """
    attempts = Attempts("reading", url, retry)
    position, version, ranges, wanted = start, None, True, CHUNK_BYTES
    while True:
        try:
            filesystem, path = fsspec.core.url_to_fs(url)
            if attempts.failures:
                filesystem.invalidate_cache(path)
            info = filesystem.info(path)
            now = info.get("size"), next((str(info[name]) for name in _VERSION if info.get(name)), None)
            if version not in (None, now):
                raise ShardError(
                    f"reading a shard: it was replaced while it was read (size and version {version}, now {now}); "
                    "write new shards under new names",
                    shard=url,
                )
            version = now
            if attempts.failures > 1:
                wanted = min(wanted, now[0] - position) if now[0] else wanted
                wanted = max(wanted // 4, SMALLEST_CHUNK_BYTES)
            with _open_at(filesystem, path, position, ranges) as source:
                while chunk := source.read(wanted):
                    position += len(chunk)
                    wanted = min(2 * wanted, CHUNK_BYTES)
                    attempts.went_on()
                    yield chunk
            if now[0] is not None and position < now[0]:
                raise OSError(errno.EIO, f"the storage stopped at byte {position} of {now[0]}")
            return
        except ValueError as error:
            if not ranges:
                attempts.failed(error)
            ranges = False  # the server takes no range requests after all; read from the start as a stream
        except Exception as error:
            attempts.failed(error)


def _open_at(filesystem: Any, path: str, position: int, ranges: bool) -> Any:
    """An open file at `position`; where the storage cannot seek, what comes before is read and dropped."""
    if ranges:
        source = filesystem.open(path, "rb", block_size=CHUNK_BYTES, cache_type="none")
    else:
        source = filesystem.open(path, "rb", block_size=0)
    try:
        try:
            source.seek(position)
        except ValueError:
            left = position
            while left > 0:
                dropped = source.read(min(left, CHUNK_BYTES))
                if not dropped:
                    raise OSError(errno.EIO, f"the storage stopped before byte {position}") from None
                left -= len(dropped)
    except BaseException:
        source.close()
        raise
    return source
