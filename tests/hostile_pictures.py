"""Uploads that are no pictures, or pictures that nobody should decode, and the status that each deserves."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image
from serving import picture


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, data: bytes = b"", kind: int = 2) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def animated() -> bytes:
    out = io.BytesIO()
    frames = [Image.new("RGB", (32, 32), color) for color in ("red", "blue")]
    frames[0].save(out, "WEBP", save_all=True, append_images=frames[1:])
    return out.getvalue()


HOSTILE: dict[str, tuple[bytes, int]] = {
    "empty": (b"", 415), "text": (b"hello", 415), "gif": (b"GIF89a" + bytes(100), 415), "svg": (b"<svg/>", 415),
    "bmp": (picture(form="BMP"), 415), "tiff": (picture(form="TIFF"), 415), "pdf": (b"%PDF-1.4", 415),
    "only a PNG's start": (b"\x89PNG\r\n\x1a\n", 422), "only a JPEG's start": (b"\xff\xd8\xff", 422),
    "only a WebP's start": (b"RIFF\x10\0\0\0WEBP", 422), "cut PNG": (picture(side=256)[:-300], 422),
    "cut JPEG": (picture(form="JPEG", side=256)[:-400], 422), "cut WebP": (picture(form="WEBP", side=256)[:-40], 422),
    "PNG bomb": (png_of(60_000, 60_000, zlib.compress(bytes(1 << 20))), 413),
    "PNG of no pixels": (png_of(0, 10), 422), "PNG that lies of its size": (png_of(300, 300, zlib.compress(b"x")), 422),
    "one row": (picture(side=1), 422), "animated WebP": (animated(), 422),
    "PNG with a text bomb": (
        picture()[:-12] + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(80 << 20))) + chunk(b"IEND", b""), 422
    ),
    "JPEG with a PNG inside": (b"\xff\xd8\xff" + picture(), 422),
}  # fmt: skip
