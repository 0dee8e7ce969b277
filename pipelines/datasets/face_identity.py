"""Who a face is: six attributes that stay while all others vary, and the fixed split of identities.

The split is a pure function of the identity (no seed, no list to lose): SHA-256 of its look, which is the identity
without the nose, so that two identities which differ by the nose alone are never on both sides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from typing import Literal

from imprint.pipelines.datasets import face_words as words
from imprint.pipelines.datasets.draw import Draw

Split = Literal["train", "heldout"]

# One look in 16 is held out: about 11,500 of 184,000, so that any sensible number of held-out faces can be drawn.
HELDOUT_SHARE = 1 / 16
# Changing this word would move identities across the split: never do it.
_SPLIT_SALT = "imprint-faces-split-1"

_FACIAL_HAIR_SHARE = 0.45
_MATCHING_COLOR_SHARE = 0.4


@dataclass(frozen=True)
class Identity:
    """Names of python-avatars' enum members. A bald head has the hair colour NONE, a bare chin the beard's."""

    skin: str
    hair: str
    hair_color: str
    facial_hair: str
    facial_hair_color: str
    nose: str

    @property
    def key(self) -> str:
        """The identity as one word, as it stands in the json of a sample."""
        return ".".join(astuple(self)).lower()

    @property
    def split(self) -> Split:
        """The side on which every picture of this identity lies."""
        look = ".".join(astuple(self)[:-1]).lower()
        digest = hashlib.sha256(f"{_SPLIT_SALT}/{look}".encode()).digest()
        return "heldout" if int.from_bytes(digest[:8], "big") / 2**64 < HELDOUT_SHARE else "train"


def draw_identities(seed: int, train: int, heldout: int) -> dict[Split, list[Identity]]:
    """`train` and `heldout` different identities. More of them begin with the same ones."""
    wanted: dict[Split, int] = {"train": train, "heldout": heldout}
    found: dict[Split, list[Identity]] = {"train": [], "heldout": []}
    seen: set[Identity] = set()
    for identity in _stream(seed):
        mine = found[identity.split]
        if identity not in seen and len(mine) < wanted[identity.split]:
            seen.add(identity)
            mine.append(identity)
        if all(len(found[split]) == wanted[split] for split in wanted):
            return found
    raise AssertionError("the stream of identities never ends")


def _stream(seed: int) -> Iterator[Identity]:
    draw = Draw(seed, "identities")
    while True:
        hair = draw.choice(tuple(words.HAIRS))
        hair_color = draw.choice(tuple(words.HAIR_COLORS))
        facial_hair, facial_hair_color = words.NO_FACIAL_HAIR, "NONE"
        if draw.chance(_FACIAL_HAIR_SHARE):
            facial_hair = draw.choice(tuple(words.FACIAL_HAIRS))
            other = draw.choice(tuple(words.HAIR_COLORS))
            facial_hair_color = hair_color if draw.chance(_MATCHING_COLOR_SHARE) else other
        yield Identity(
            skin=draw.choice(tuple(words.SKINS)),
            hair=hair,
            hair_color="NONE" if hair == words.BALD else hair_color,
            facial_hair=facial_hair,
            facial_hair_color=facial_hair_color,
            nose=draw.choice(tuple(words.NOSES)),
        )
