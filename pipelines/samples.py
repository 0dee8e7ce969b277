"""Samples of a shard: members that share a key, as the webdataset format says.

A key is the path up to the first dot of the file name; what follows is the extension, in any letter case. Members of
a sample stand side by side: a key that comes again later begins another sample. Source: the webdataset file format,
"WebDataset" v0.2, sections "Naming" and "Grouping".
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from imprint.errors import SampleError
from imprint.pipelines.tar import Member, read_exactly

PICTURES = ("jpg", "jpeg", "png", "webp")
MASKS = ("mask.png",)
TEXT = ("txt", "json")
FEATURES_PART = "features.safetensors"
FURTHER = (*PICTURES, *TEXT, "cls", "npy", "safetensors")  # how the extensions of further parts may end
_NAME = re.compile(r"^(?P<key>(?:.*/)?[^./][^./]*)\.(?P<extension>[^/]+)$")
_READ = frozenset((*PICTURES, *MASKS, *TEXT))
_SHOWN = 4  # unread extensions that an error names


@dataclass(slots=True)
class Entry:
    """Where the parts of one sample lie in its shard, by extension.

    `unread` has extensions that are there and not on the list; `again` says that its key stood earlier in the shard.
    """

    key: str
    offset: int
    parts: dict[str, Member] = field(default_factory=dict)
    problem: str | None = None
    unread: list[str] = field(default_factory=list)
    again: bool = False


def is_readable(extension: str) -> bool:
    """Whether a part of this extension may be asked for: what it ends with is on the list."""
    return extension == extension.lower() and extension.rpartition(".")[2] in FURTHER


def group_members(members: Iterable[Member], further: Collection[str] = ()) -> Iterator[Entry]:
    """Entries in written order. Only extensions of the allow-list and of `further` are kept; others are never read."""
    entry: Entry | None = None
    seen: set[str] = set()
    for member in members:
        match = _NAME.match(member.name)
        if match is None:
            continue
        key, extension = match["key"], match["extension"].lower()
        if entry is None or key != entry.key:
            if entry is not None:
                yield entry
            entry = Entry(key, member.offset, again=key in seen)
            seen.add(key)
        if extension not in _READ and extension not in further:
            if len(entry.unread) < _SHOWN:
                entry.unread.append(extension)
            continue
        if member.refused:
            entry.problem = member.refused
        elif extension in entry.parts:
            entry.problem = "duplicate-part"
        entry.parts[extension] = member
    if entry is not None:
        yield entry


def read_parts(
    descriptor: int, entry: Entry, max_bytes: int, further: Collection[str] = (), shard: str = ""
) -> dict[str, bytes]:
    """The content of a sample's parts, sizes checked first. Parts of `further` must be there.

    Raises:
        SampleError: with `reason`: oversized-member, no-picture, non-contiguous, missing-part, sparse-member,
            not-a-file or duplicate-part.
        ShardError: the shard itself cannot be read.
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
        raise _without_picture(entry)
    for extension in further:
        if extension not in entry.parts:
            raise SampleError(
                f"reading a sample: no part .{extension} among {sorted(entry.parts)}",
                key=entry.key,
                reason="missing-part",
            )
    return {
        extension: read_exactly(descriptor, member.size, member.offset, shard)
        for extension, member in entry.parts.items()
    }


def _without_picture(entry: Entry) -> SampleError:
    found = sorted(entry.parts)
    if entry.again:
        return SampleError(
            f"reading a sample: its key stood earlier in the shard and here are only {found}; the members of a sample "
            "must stand side by side",
            key=entry.key,
            reason="non-contiguous",
        )
    unread = f" (not read: {entry.unread}; a key ends at the first dot)" if entry.unread else ""
    return SampleError(
        f"reading a sample: no picture among {found}{unread}; expected one of {list(PICTURES)}",
        key=entry.key,
        reason="no-picture",
    )
