"""Shards on remote storage that fails: real clients against a server on the loopback, and a file system that breaks."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from loopback_storage import LoopbackStorage, serve
from reading_shards import keys, read

from imprint.errors import DataError, ShardError, StorageError
from imprint.pipelines import storage
from imprint.pipelines.reading import ReadOptions
from imprint.pipelines.shards import Shard, check_present, counted, find_shards, open_shard
from imprint.pipelines.storage import Retry, copy_remote, is_final, read_on

MakeShards = Callable[..., Path]
QUICK = Retry(tries=3, first_wait=0.001, longest_wait=0.002)
DATA = bytes(range(256)) * 1000
CHUNK = 100_000

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "CHUNK_BYTES", CHUNK)


@pytest.fixture
def server() -> Iterator[LoopbackStorage]:
    with serve(LoopbackStorage({"bucket/x.tar": DATA})) as running:
        yield running


def everything(url: str, retry: Retry = QUICK) -> bytes:
    return b"".join(read_on(url, retry))


# -- HTTP -----------------------------------------------------------------------------------------------------


def test_a_remote_file_comes_in_ranges(server: LoopbackStorage) -> None:
    assert everything(f"{server.url}/bucket/x.tar") == DATA
    assert [first for _, first in server.reads] == [0, CHUNK, 2 * CHUNK]


def test_a_cut_connection_goes_on_at_the_byte_that_was_missing(
    server: LoopbackStorage, caplog: pytest.LogCaptureFixture
) -> None:
    server.faults = [None, ("cut", 5000), None, 503, None]
    assert everything(f"{server.url}/bucket/x.tar") == DATA
    assert [first for _, first in server.reads] == [0, CHUNK, CHUNK, 2 * CHUNK, 2 * CHUNK]
    assert caplog.text.count("trying again") == 2


def test_tries_are_bounded_and_counted_from_the_last_byte_that_came(server: LoopbackStorage) -> None:
    server.faults = [503, 503, None, 503, 503, None, 503, 503, None]
    assert everything(f"{server.url}/bucket/x.tar") == DATA, "never three in a row without a byte"
    server.faults = [None, 503, 503, 503, None]
    with pytest.raises(ShardError, match=r"failed 3 times in a row.*storage_tries.*x.tar"):
        everything(f"{server.url}/bucket/x.tar")


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_is_final(server: LoopbackStorage, status: int) -> None:
    server.faults = [status, None]
    with pytest.raises(Exception, match=str(status)) as caught:
        everything(f"{server.url}/bucket/x.tar")
    assert is_final(caught.value)
    assert len(server.reads) == 1


def test_a_server_without_ranges_is_read_as_a_stream_and_again_from_its_start(server: LoopbackStorage) -> None:
    server.ranges = False
    server.faults = [("cut", 150_000), None]
    assert everything(f"{server.url}/bucket/x.tar") == DATA
    assert [first for _, first in server.reads] == [None, None]


def test_a_file_replaced_while_it_is_read_is_an_error(server: LoopbackStorage) -> None:
    server.faults = [None, ("cut", 10)]
    chunks = read_on(f"{server.url}/bucket/x.tar", QUICK)
    next(chunks)
    server.version = 2
    with pytest.raises(ShardError, match="replaced while it was read"):
        list(chunks)


def test_shards_with_a_manifest_are_read_over_http(make_shards: MakeShards) -> None:
    folder = make_shards([4, 3, 5])
    objects = {f"data/{path.name}": path.read_bytes() for path in folder.iterdir()}
    expected = keys(read(folder, ReadOptions(seed=2, shuffle_buffer=6)))
    with serve(LoopbackStorage(objects)) as server:
        shards = find_shards([f"{server.url}/data"])
        check_present(shards, QUICK)
        server.faults = [("cut", 700), None, 500, None, ("cut", 0)]
        assert keys(read(shards, ReadOptions(seed=2, shuffle_buffer=6, retry=QUICK))) == expected
        braces = find_shards([f"{server.url}/data/train-{{000000..000002}}.tar"])
        assert [shard.samples for shard in braces] == [4, 3, 5], "counts come from the manifest beside them"
        with pytest.raises(ShardError, match="nothing is there"):
            check_present([Shard(f"{server.url}/data/train-000009.tar")], QUICK)
        with pytest.raises(DataError, match="not a folder with a manifest"):
            find_shards([f"{server.url}/elsewhere"])


def test_without_a_manifest_a_remote_shard_is_counted_and_the_log_says_so(
    make_shards: MakeShards, caplog: pytest.LogCaptureFixture
) -> None:
    tar = make_shards([4]) / "train-000000.tar"
    with serve(LoopbackStorage({"train-000000.tar": tar.read_bytes()})) as server:
        shards = counted(find_shards([f"{server.url}/train-000000.tar"]), QUICK)
        assert [shard.samples for shard in shards] == [4]
        assert "no manifest" in caplog.text
        server.objects["train-000000.tar"] = tar.read_bytes()[:-4096]
        with pytest.raises(ShardError, match="cut"):
            read(shards, ReadOptions(retry=QUICK))


# -- S3 and GCS, by their real clients ------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["s3", "gs"])
def test_object_stores_go_on_where_they_broke_off(
    server: LoopbackStorage, protocol: str, monkeypatch: pytest.MonkeyPatch, make_shards: MakeShards
) -> None:
    own = {"anon": True, "config_kwargs": {"retries": {"max_attempts": 1}}} if protocol == "s3" else {"token": "anon"}
    settings = {"endpoint_url": server.url, "skip_instance_cache": True, **own}
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # it asks Google by gRPC what kind of bucket it is
    monkeypatch.setitem(fsspec.config.conf, protocol, settings)
    assert everything(f"{protocol}://bucket/x.tar") == DATA
    server.reads.clear()
    server.faults = [None, ("cut", 5000), None]
    assert everything(f"{protocol}://bucket/x.tar") == DATA
    assert {first for _, first in server.reads} == {0, CHUNK, 2 * CHUNK}
    assert len(server.reads) >= 4, "the cut range was asked for again, by the client or by us"
    folder = make_shards([3])
    server.objects |= {f"bucket/data/{path.name}": path.read_bytes() for path in folder.iterdir()}
    assert keys(read(find_shards([f"{protocol}://bucket/data"]), ReadOptions(retry=QUICK))) == keys(
        read(folder, ReadOptions())
    )


# -- a file system that breaks --------------------------------------------------------------------------------


class Breaking(MemoryFileSystem):
    """The memory file system, whose reads fail at set bytes, each once, and where they are longer than `longest`."""

    protocol = "breaking"
    store: dict[str, Any] = {}  # noqa: RUF012 - the base class keeps its files like this
    pseudo_dirs = [""]  # noqa: RUF012
    breaks: list[int] = []  # noqa: RUF012
    failures: list[Exception] = []  # noqa: RUF012
    longest: int | None = None

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(str(path).removeprefix("breaking://"))

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        file = super()._open(path, mode=mode, **kwargs)
        return _BreakingFile(file.getvalue()) if mode == "rb" else file


class _BreakingFile(io.BytesIO):
    def read(self, size: int | None = -1) -> bytes:
        if Breaking.longest and min(size or 0, len(self.getvalue()) - self.tell()) > Breaking.longest:
            raise OSError("a longer answer never comes whole")
        for at in Breaking.breaks:
            if self.tell() <= at < self.tell() + (size or 0):
                Breaking.breaks.remove(at)
                raise Breaking.failures[0] if Breaking.failures else OSError("the wire was cut")
        return super().read(size)


@pytest.fixture
def breaking() -> Iterator[type[Breaking]]:
    fsspec.register_implementation("breaking", Breaking, clobber=True)
    Breaking.store.clear()
    Breaking.breaks, Breaking.failures, Breaking.longest = [], [], None
    yield Breaking


class OddError(Exception):
    """Storage libraries raise classes that are no OSErrors."""


@pytest.mark.parametrize("failure", [OSError("reset"), TimeoutError(), OddError("backend"), EOFError()])
def test_any_passing_error_is_tried_again_at_its_byte(
    breaking: type[Breaking], make_shards: MakeShards, failure: Exception
) -> None:
    folder = make_shards([6])
    tar = (folder / "train-000000.tar").read_bytes()
    shard = Shard("breaking://shards/a.tar", samples=6, bytes=len(tar))
    fsspec.filesystem("breaking").pipe_file("/shards/a.tar", tar)
    breaking.failures = [failure]
    breaking.breaks = [0, 512, 513, len(tar) // 2, len(tar) - 1]
    rows = read([shard], ReadOptions(retry=Retry(tries=6, first_wait=0.001)))
    assert keys(rows) == keys(read(folder, ReadOptions()))
    assert breaking.breaks == []


def test_where_long_answers_never_come_whole_shorter_ones_are_asked_for(
    breaking: type[Breaking], caplog: pytest.LogCaptureFixture
) -> None:
    with fsspec.filesystem("breaking").open("x", "wb") as file:
        file.write(DATA)
    breaking.longest = 20_000
    patient = Retry(tries=6, first_wait=0.001, longest_wait=0.002)
    with caplog.at_level(logging.WARNING):
        chunks = list(read_on("breaking://x", patient))
    assert b"".join(chunks) == DATA
    assert set(map(len, chunks[:-1])) == {storage.SMALLEST_CHUNK_BYTES}
    assert len(caplog.records) < 3 * len(chunks), "no range is asked for from its longest again"
    breaking.longest = 1000
    with pytest.raises(ShardError, match="failed 6 times in a row"):
        list(read_on("breaking://x", patient))


def test_a_final_error_is_not_tried_again(breaking: type[Breaking]) -> None:
    fsspec.filesystem("breaking").pipe_file("/a.tar", DATA)
    breaking.failures = [PermissionError("not yours")]
    breaking.breaks = [0, 1]
    with pytest.raises(ShardError, match="not yours"), open_shard(Shard("breaking://a.tar"), QUICK):
        pass
    assert breaking.breaks == [1]


def test_waits_double_up_to_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(storage.time, "sleep", waits.append)
    retry = Retry(tries=9, first_wait=1, longest_wait=5)
    for failures in range(1, 6):
        retry.wait(failures)
    for wait, longest in zip(waits, [1, 2, 4, 5, 5], strict=True):
        assert longest / 2 <= wait <= longest


def test_a_full_disk_is_named(breaking: type[Breaking]) -> None:
    fsspec.filesystem("breaking").pipe_file("/a.tar", DATA)
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(StorageError, match=r"No space left.*TMPDIR"):
        copy_remote("breaking://a.tar", full, QUICK)


def test_verify_finds_a_changed_byte_that_nothing_else_would(
    make_shards: MakeShards, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_shards([3])
    tar = folder / "train-000000.tar"
    data = bytearray(tar.read_bytes())
    place = bytes(data).index(b"caption 1")
    data[place + 8] ^= 1
    tar.write_bytes(data)
    caplog.set_level(logging.WARNING)
    assert [row["caption"] for row in read(folder, ReadOptions())] == ["caption 0", "caption 0", "caption 2"]
    with pytest.raises(ShardError, match=r"its sha256 is .* bytes of it were changed"):
        read(folder, ReadOptions(verify=True))
    manifest = json.loads((folder / "manifest.json").read_text())
    assert find_shards([str(folder)])[0].sha256 == manifest["shards"][0]["sha256"]
