"""Samples of a shard: members that share a key, as the webdataset format says.

A key is the path up to the first dot of the file name; what follows is the extension, in any letter case. Members of
a sample stand side by side. Source: the webdataset file format, "WebDataset" v0.2, sections "Naming" and "Grouping".
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from imprint.errors import SampleError
from imprint.pipelines.tar import Member

PICTURES = ("jpg", "jpeg", "png", "webp")
MASKS = ("mask.png",)
TEXT = ("txt", "json")
_NAME = re.compile(r"^(?P<key>(?:.*/)?[^./][^./]*)\.(?P<extension>[^/]+)$")
_READ = frozenset((*PICTURES, *MASKS, *TEXT))


@dataclass(slots=True)
class Entry:
    """Where the parts of one sample lie in its shard, by extension."""

    key: str
    offset: int
    parts: dict[str, Member] = field(default_factory=dict)
    problem: str | None = None


def group_members(members: Iterable[Member]) -> Iterator[Entry]:
    """Entries in written order. Only extensions of the allow-list are kept; others are never read."""
    entry: Entry | None = None
    for member in members:
        match = _NAME.match(member.name)
        if match is None:
            continue
        key, extension = match["key"], match["extension"].lower()
        if entry is None or key != entry.key:
            if entry is not None:
                yield entry
            entry = Entry(key, member.offset)
        if extension not in _READ:
            continue
        if member.refused:
            entry.problem = member.refused
        elif extension in entry.parts:
            entry.problem = "duplicate-part"
        entry.parts[extension] = member
    if entry is not None:
        yield entry


def read_parts(descriptor: int, entry: Entry, max_bytes: int) -> dict[str, bytes]:
    """The content of a sample's parts, sizes checked first.

    Raises:
        SampleError: with `reason`: oversized-member, no-picture, sparse-member, not-a-file or duplicate-part.
    """
    if entry.problem:
        raise SampleError(f"reading a sample: {entry.problem}", key=entry.key, reason=entry.problem)
    for extension, member in entry.parts.items():
        if member.size > max_bytes:
            raise SampleError(
                f"reading a sample: .{extension} has {member.size} bytes, the limit is {max_bytes}",
                key=entry.key,
                reason="oversized-member",
            )
    if not any(extension in entry.parts for extension in PICTURES):
        raise SampleError(
            f"reading a sample: no picture among {sorted(entry.parts)}; expected one of {list(PICTURES)}",
            key=entry.key,
            reason="no-picture",
        )
    return {extension: os.pread(descriptor, member.size, member.offset) for extension, member in entry.parts.items()}
