"""Rare words of a backbone's vocabulary: names for a subject that mean little to the model yet.

Source: DreamBooth, arXiv:2208.12242, section 4.1: tokens that are rare and have three characters or fewer, drawn
uniformly and without replacement, and inverted into text.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from imprint.backbone import Backbone
from imprint.config.methods import IdentifierSpec
from imprint.errors import ConfigError

MAX_CHARACTERS = 3


def find_identifier(backbone: Backbone, spec: IdentifierSpec, *, seed: int, avoid: Iterable[str] = ()) -> str:
    """The identifier of the spec, or `spec.tokens` rare words; the words in `avoid` are left out.

    Raises:
        ConfigError: the vocabulary has too few.
    """
    if spec.text is not None:
        return spec.text
    used = {word for text in avoid for word in re.findall(r"\w+", text.lower())}
    found = [word for word in rare_words(backbone, spec.rare_share) if word not in used]
    if len(found) < spec.tokens:
        raise ConfigError(
            f"identifier: the vocabulary of {backbone.path!r} has {len(found)} rare words of {MAX_CHARACTERS} letters "
            f"or fewer, expected {spec.tokens}; raise identifier.rare_share, or give identifier.text"
        )
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))
    return " ".join(found[index] for index in order[: spec.tokens].tolist())


def subject_seed(images: Float[Tensor, "n 3 h w"], seed: int) -> int:
    """A seed of the pictures too, so that concepts of different subjects get different names and can be merged."""
    pixels = images.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()
    return zlib.crc32(pixels, seed & 0xFFFFFFFF)


def rare_words(backbone: Backbone, share: float) -> list[str]:
    """Words of two or three letters that are one rare token each, for every text encoder, the rarest last.

    Ids of a byte-pair vocabulary are in the order of its merges, and so by frequency; rare is the last `share` of them.
    Single letters are left out, since the model knows those well (section 4.1), and so is what does not come back as
    the same token from its own text.
    """
    first, *others = [_rare_words(tokenizer, share) for tokenizer in backbone.tokenizers]
    return [word for word in first if all(word in other for other in others)]


def _rare_words(tokenizer: Any, share: float) -> dict[str, int]:
    special = set(tokenizer.all_special_ids)
    ordinary = sorted(index for index in tokenizer.get_vocab().values() if index not in special)
    found = {}
    for index in ordinary[int(len(ordinary) * (1 - share)) :]:
        text = tokenizer.decode([index]).strip()
        fits = 1 < len(text) <= MAX_CHARACTERS and text.isascii() and text.isalpha() and text.islower()
        if fits and tokenizer(text, add_special_tokens=False)["input_ids"] == [index]:
            found[text] = index
    return found
