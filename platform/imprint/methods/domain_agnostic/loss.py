"""The losses of the domain-agnostic encoder. Source: arXiv:2307.06925, section 4.2.

Legend: v* the predicted word, N(v*) its nearest tokens T_i by cosine, v' the words of other pictures, tau the
temperature.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from imprint.config.methods import ContrastiveSpec
from imprint.methods.gather import gather_rows
from imprint.methods.vocabulary import Vocabulary


def contrastive_loss(
    words: Float[Tensor, "b width"],
    every: Float[Tensor, "n width"],
    start: int,
    vocabulary: Vocabulary,
    spec: ContrastiveSpec,
) -> Float[Tensor, ""]:
    """L_c of Eq. 3, averaged over the batch.

    `every` are the words of all ranks, in which this rank's begin at `start`; all but a picture's own are negatives.
    """
    positives = vocabulary.embeddings[vocabulary.nearest(words, spec.neighbours)]
    words, every = words.float(), every.float()
    if spec.normalize:
        words, every = F.normalize(words, dim=-1), F.normalize(every, dim=-1)
        positives = F.normalize(positives, dim=-1)
    with torch.autocast(words.device.type, enabled=False):
        near = torch.einsum("bd,bkd->bk", words, positives) / spec.temperature
        far = words @ every.T / spec.temperature
    own = torch.arange(len(words), device=far.device)
    far = far.masked_fill(own[:, None] + start == torch.arange(len(every), device=far.device), -torch.inf)
    return (torch.cat([near, far], dim=1).logsumexp(1) - near.logsumexp(1)).mean()


def contrastive_over_ranks(
    words: Sequence[Float[Tensor, "b width"]], vocabularies: Sequence[Vocabulary], spec: ContrastiveSpec
) -> Float[Tensor, ""]:
    """L_c with the negatives of all ranks, summed over the text encoders."""
    losses = []
    for own, vocabulary in zip(words, vocabularies, strict=True):
        every, start = gather_rows(own)
        losses.append(contrastive_loss(own, every, start, vocabulary, spec))
    return torch.stack(losses).sum()


def word_norm(words: Sequence[Float[Tensor, "b width"]]) -> Float[Tensor, ""]:
    """L_L2 = ||v*||^2 (Eq. 4), summed over the text encoders and averaged over the batch."""
    return torch.stack([word.float().square().sum(-1) for word in words]).sum(0).mean()


def noun_distance(
    words: Sequence[Float[Tensor, "b width"]], nouns: Sequence[Float[Tensor, "b width"]]
) -> Float[Tensor, ""]:
    """The squared distance of v* from its picture's class noun, summed over the text encoders and averaged over the
    batch. Not of this paper: E4T's Eq. 2 (arXiv:2302.12228), with a noun for each picture in place of one domain's."""
    return word_norm([word.float() - noun for word, noun in zip(words, nouns, strict=True)])
