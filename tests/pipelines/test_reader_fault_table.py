"""The fault table: every fault made for real, and every sample of it accounted for.

Each case writes shards, breaks them, and says what must come out: an error of the whole shard, or so many samples in,
out and in quarantine. docs/data_plane.md shows the same table.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from reading_shards import keys, read
from small_shards import write_shards

from imprint.errors import DataError, ShardError
from imprint.pipelines.quarantine import summary
from imprint.pipelines.reading import ReadOptions
from imprint.pipelines.shards import find_shards
from imprint.pipelines.tar import BLOCK
from imprint.pipelines.writer import Sample

LIMIT = 200_000  # bytes of a member
PIXELS = 1_000_000
MEMORY = 8_000_000  # bytes that reading any of these may take at its height


@dataclass
class Case:
    """Six samples are written, `break_` changes the tar's bytes (or makes another tar), and this is what is read."""

    break_: Callable[[bytes], bytes]
    out: int = 6
    quarantined: dict[str, int] = field(default_factory=dict)
    samples: int = 6
    error: str | None = None  # with a manifest
    error_without: str | None = None  # without one; None: `out` and `quarantined` hold


# -- ways to break a tar --------------------------------------------------------------------------------------


def members(data: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return tar.getmembers()


def cut_at(place: Callable[[list[tarfile.TarInfo], int], int]) -> Callable[[bytes], bytes]:
    return lambda data: data[: place(members(data), len(data))]


def end(member: tarfile.TarInfo) -> int:
    """The first byte after a member's padding."""
    return member.offset_data + -(-member.size // BLOCK) * BLOCK


def flip(place: Callable[[bytes], int]) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        changed = bytearray(data)
        changed[place(data)] ^= 0x10
        return bytes(changed)

    return change


def rebuilt(change: Callable[[list[tuple[tarfile.TarInfo, bytes]]], None]) -> Callable[[bytes], bytes]:
    """A well-formed tar whose list of (header, content) was changed."""

    def rebuild(data: bytes) -> bytes:
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            found = [(member, tar.extractfile(member).read()) for member in tar.getmembers()]  # type: ignore[union-attr]
        change(found)
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for member, content in found:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        return file.getvalue()

    return rebuild


def hole(data: bytes) -> bytes:
    """A member with its header is zeros."""
    lost = members(data)[8]
    return data[: lost.offset] + bytes(end(lost) - lost.offset) + data[end(lost) :]


def put(name: str, content: bytes, kind: bytes = tarfile.REGTYPE) -> Callable[[bytes], bytes]:
    """One member's content and kind are others."""

    def change(found: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        number = next(i for i, (member, _) in enumerate(found) if member.name == name)
        member = found[number][0]
        member.type = kind
        if kind != tarfile.REGTYPE:
            member.linkname = "/etc/passwd"
        found[number] = member, content

    return rebuilt(change)


def rename(changes: dict[str, str]) -> Callable[[bytes], bytes]:
    def change(found: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        for member, _ in found:
            member.name = changes.get(member.name, member.name)

    return rebuilt(change)


def move_to_the_end(name: str) -> Callable[[bytes], bytes]:
    def change(found: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        found.append(found.pop(next(i for i, (member, _) in enumerate(found) if member.name == name)))

    return rebuilt(change)


def without(*names: str) -> Callable[[bytes], bytes]:
    return rebuilt(lambda found: found.__setitem__(slice(None), [f for f in found if f[0].name not in names]))


def gnu_sparse(data: bytes) -> bytes:
    """An old GNU sparse member of 10 KB that says it is 300 MB, as `tar --sparse` writes it, in place of a picture."""
    header = bytearray(tarfile.TarInfo("s-0002.png").tobuf(tarfile.GNU_FORMAT))
    header[156:157] = b"S"
    header[124:136] = b"%011o\0" % BLOCK
    header[386:410] = b"%011o\0%011o\0" % (300_000_000 - BLOCK, BLOCK)  # one piece at the very end
    header[483:495] = b"%011o\0" % 300_000_000
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    found = members(data)
    place = next(member for member in found if member.name == "s-0002.png")
    return data[: place.offset] + bytes(header) + b"x" * BLOCK + data[end(place) :]


def pax_sparse(data: bytes) -> bytes:
    def change(found: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        member = next(member for member, _ in found if member.name == "s-0002.png")
        member.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "300000000"}

    return rebuilt(change)(data)


# -- contents that are bad ------------------------------------------------------------------------------------


def png(*chunks: tuple[bytes, bytes], width: int = 16, height: int = 16, content: bytes | None = None) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    pixels = zlib.compress(content if content is not None else bytes((3 * width + 1) * height), 9)
    parts = [chunk(b"IHDR", head), *(chunk(*c) for c in chunks), chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def jpeg(size: int = 64) -> bytes:
    return simplejpeg.encode_jpeg(np.random.default_rng(0).integers(0, 255, (size, size, 3), np.uint8))


def damaged_jpeg(place: int | None = None) -> bytes:
    """Sixteen bytes are 0xFF: from `place` on, or in the frame's header."""
    data = bytearray(jpeg())
    place = data.index(b"\xff\xc0") + 4 if place is None else place
    data[place : place + 16] = b"\xff" * 16
    return bytes(data)


def text_bomb() -> bytes:
    """A PNG whose compressed text is 20 MB."""
    return png((b"zTXt", b"Comment\0\0" + zlib.compress(bytes(20_000_000), 9)))


def webp(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "WEBP")
    return file.getvalue()


P = "s-0002.png"
AS_JPEG = {P: "s-0002.jpg"}


def as_jpeg(content: bytes) -> Callable[[bytes], bytes]:
    return lambda data: rename(AS_JPEG)(put(P, content)(data))


CASES: dict[str, Case] = {
    "nothing": Case(lambda data: data),
    # shards
    "cut in a header": Case(cut_at(lambda m, _: m[9].offset + 200), error="cut", error_without="cut"),
    "cut after a header": Case(cut_at(lambda m, _: m[9].offset_data), error="cut", error_without="cut"),
    "cut in a member": Case(cut_at(lambda m, _: m[9].offset_data + 3), error="cut", error_without="cut"),
    "cut in padding": Case(cut_at(lambda m, _: end(m[9]) - 5), error="cut", error_without="cut"),
    "cut between members": Case(cut_at(lambda m, _: end(m[9])), error="cut", error_without="cut"),
    "cut between samples": Case(cut_at(lambda m, _: end(m[11])), error="cut", error_without="cut"),
    "cut before the end mark": Case(cut_at(lambda m, _: end(m[-1])), error="cut", error_without="cut"),
    "cut in the end mark": Case(cut_at(lambda m, _: end(m[-1]) + 100), error="cut", error_without="cut"),
    "cut after the end mark's first block": Case(cut_at(lambda m, _: end(m[-1]) + BLOCK), error="cut"),
    "empty": Case(lambda data: b"", error="cut", error_without="cut"),
    "cut between samples and closed again": Case(
        lambda data: data[: end(members(data)[11])] + bytes(2 * BLOCK), out=3, samples=3, error="cut"
    ),
    "a hole of zeros": Case(
        hole,
        error="overwritten with zeros", error_without="overwritten with zeros",
    ),
    "two tars joined": Case(lambda data: data + data, error="cut or replaced", error_without="two tars were joined"),
    "compressed": Case(gzip.compress, error="cut or replaced", error_without="compressed with gzip"),
    "no tar at all": Case(lambda data: b"<html>not found</html>" * 100, error="cut", error_without="damaged"),
    "a bit of a header flipped": Case(
        flip(lambda d: members(d)[9].offset + 3), error="damaged", error_without="damaged"
    ),
    "a bit of a header's size flipped": Case(
        flip(lambda d: members(d)[9].offset + 130), error="damaged", error_without="damaged"
    ),
    "a bit of a header's checksum flipped": Case(
        flip(lambda d: members(d)[9].offset + 150), error="damaged", error_without="damaged"
    ),
    # members
    "a sparse member, old GNU": Case(gnu_sparse, out=5, quarantined={"sparse-member": 1}),
    "a sparse member, pax": Case(pax_sparse, out=5, quarantined={"sparse-member": 1}),
    "a symbolic link": Case(put(P, b"", tarfile.SYMTYPE), out=5, quarantined={"not-a-file": 1}),
    "a hard link": Case(put(P, b"", tarfile.LNKTYPE), out=5, quarantined={"not-a-file": 1}),
    "a device": Case(put(P, b"", tarfile.CHRTYPE), out=5, quarantined={"not-a-file": 1}),
    "a pipe": Case(put(P, b"", tarfile.FIFOTYPE), out=5, quarantined={"not-a-file": 1}),
    "an oversized member": Case(put(P, bytes(LIMIT + 1)), out=5, quarantined={"oversized-member": 1}),
    "a gzip bomb": Case(
        lambda data: rename({P: "s-0002.png.gz"})(put(P, gzip.compress(bytes(20_000_000)))(data)),
        out=5, quarantined={"no-picture": 1},
    ),
    "a part twice": Case(rename({"s-0002.mask.png": "s-0002.PNG"}), out=5, quarantined={"duplicate-part": 1}),
    "a pickle beside the picture": Case(rename({"s-0002.txt": "s-0002.pkl"})),
    "no picture": Case(without(P), out=5, quarantined={"no-picture": 1}),
    "no caption": Case(without("s-0002.txt")),
    "a key with dots": Case(
        rename({f"s-0002.{part}": f"s-0002.v1.{part}" for part in ("png", "mask.png", "txt", "json")}),
        out=5, quarantined={"no-picture": 1},
    ),
    "dots in the folder": Case(
        rename({f"s-0002.{part}": f"v1.2/s-0002.{part}" for part in ("png", "mask.png", "txt", "json")})
    ),
    "upper-case extensions": Case(rename({P: "s-0002.PNG", "s-0002.txt": "s-0002.Txt"})),
    "a caption apart from its sample": Case(
        move_to_the_end("s-0002.txt"), quarantined={"non-contiguous": 1}, samples=7, error="replaced|holds 7"
    ),
    "a picture apart from its sample": Case(
        move_to_the_end(P), quarantined={"no-picture": 1}, samples=7, error="replaced|holds 7"
    ),
    # pictures and text
    "a picture cut short": Case(put(P, png()[:-30]), out=5, quarantined={"corrupt-picture": 1}),
    "an empty picture": Case(put(P, b""), out=5, quarantined={"corrupt-picture": 1}),
    "a JPEG cut short": Case(as_jpeg(jpeg()[:-200]), out=5, quarantined={"corrupt-picture": 1}),
    "a JPEG damaged at its head": Case(as_jpeg(damaged_jpeg()), out=5, quarantined={"corrupt-picture": 1}),
    "a JPEG damaged in its data": Case(as_jpeg(damaged_jpeg(5000)), out=5, quarantined={"corrupt-picture": 1}),
    "a GIF named .png": Case(put(P, b"GIF89a" + bytes(100)), out=5, quarantined={"corrupt-picture": 1}),
    "a pixel bomb": Case(put(P, png(width=60_000, height=60_000, content=b"")), out=5,
                         quarantined={"too-many-pixels": 1}),
    "a pixel bomb in WebP": Case(put(P, webp(2000, 2000)), out=5, quarantined={"too-many-pixels": 1}),
    "a decompression bomb in a PNG's text": Case(put(P, text_bomb()), out=5, quarantined={"corrupt-picture": 1}),
    "a decompression bomb of pixels": Case(put(P, png(content=bytes(20_000_000)))),
    "a mask of another size": Case(put("s-0002.mask.png", png(width=8)), out=5, quarantined={"corrupt-mask": 1}),
    "a caption that is no text": Case(put("s-0002.txt", b"\xff\xfe\0"), out=5, quarantined={"bad-text": 1}),
    "broken json": Case(put("s-0002.json", b'{"a": '), out=5, quarantined={"bad-json": 1}),
    "deep json": Case(put("s-0002.json", b"[" * 100_000), out=5, quarantined={"bad-json": 1}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_without_a_manifest(name: str, tmp_path: Path) -> None:
    case, tar = CASES[name], tmp_path / "broken.tar"
    tar.write_bytes(_broken(tmp_path, case))
    if case.error_without:
        with pytest.raises(ShardError, match=case.error_without):
            read(find_shards([str(tar)]), ReadOptions())
        return
    _check(case, Path(tar), tmp_path)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.error])
def test_with_a_manifest_any_change_of_size_or_count_is_an_error(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    data = _broken(tmp_path, case)
    (tmp_path / "whole" / "train-000000.tar").write_bytes(data)
    with pytest.raises(ShardError, match=case.error):
        read(tmp_path / "whole", ReadOptions())


def test_a_flipped_bit_of_a_picture_harms_no_other_and_the_manifest_tells(tmp_path: Path) -> None:
    """Half of such bits a decoder cannot know of; SHA-256 does."""
    folder = write_shards(tmp_path / "whole", [6], lambda n, one: Sample(one.key, {"jpg": jpeg(), "txt": b"x"}))
    tar = folder / "train-000000.tar"
    whole = tar.read_bytes()
    (picture,) = [member for member in members(whole) if member.name == "s-0002.jpg"]
    expected = read(folder, ReadOptions())
    for number, place in enumerate(np.random.default_rng(0).integers(0, picture.size, 12)):
        tar.write_bytes(flip(lambda _, place=place: picture.offset_data + int(place))(whole))
        quarantine = tmp_path / f"quarantine-{number}"
        rows = read(folder, ReadOptions(max_bad_share=1, quarantine=str(quarantine)))
        assert len(rows) + summary(quarantine).total() == 6
        others = [row for row in rows if row["__key__"] != "s-0002"]
        assert len(others) == 5
        for row in others:
            np.testing.assert_array_equal(row["image"], expected[0]["image"])
        with pytest.raises(ShardError, match="sha256"):
            read(folder, ReadOptions(verify=True))


@pytest.mark.parametrize("extension", [".tar.gz", ".tgz", ".tar.zst"])
def test_compressed_shards_are_refused_by_their_name(extension: str) -> None:
    with pytest.raises(DataError, match="compressed tars are not read"):
        find_shards([f"/shards/a{extension}"])


def _broken(folder: Path, case: Case) -> bytes:
    whole = write_shards(folder / "whole", [6])
    return case.break_((whole / "train-000000.tar").read_bytes())


def _check(case: Case, tar: Path, folder: Path) -> None:
    quarantine = folder / "quarantine"
    options = ReadOptions(
        max_member_bytes=LIMIT, max_pixels=PIXELS, max_bad_share=1, quarantine=str(quarantine), on_bad="drop"
    )
    tracemalloc.start()
    try:
        rows = read(find_shards([str(tar)]), options)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(rows) == case.out
    assert dict(summary(quarantine)) == case.quarantined
    assert case.out + sum(case.quarantined.values()) == case.samples, "every sample is out or in quarantine"
    assert len(set(keys(rows))) == case.out
    for row in rows:
        number = int(row["__key__"][-4:])
        if number != 2:
            assert int(row["image"][0, 0, 0]) == number, "good neighbours come out as they are"
            assert row["caption"] == f"caption {number}"
    assert peak < MEMORY
