"""The words that a text encoder already knows: which of them lie nearest to a predicted embedding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from imprint.backbone import Backbone


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The ordinary tokens of one text encoder: begin, end, padding and added placeholders are left out.

    `embeddings` are their rows of the embedding table in fp32, and `unit` the same at unit length.
    """

    ids: Int[Tensor, "n"]
    embeddings: Float[Tensor, "n width"]
    unit: Float[Tensor, "n width"]

    @classmethod
    def each_of(cls, backbone: Backbone) -> tuple[Vocabulary, ...]:
        """That of each text encoder."""
        found = []
        for encoder, tokenizer in zip(backbone.text_encoders, backbone.tokenizers, strict=True):
            table = encoder.get_input_embeddings().weight.detach()
            left_out = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
            known = {index for index in tokenizer.get_vocab().values() if index < len(table)}
            ids = torch.tensor(sorted(known - left_out), device=table.device)
            embeddings = table[ids].float()
            found.append(cls(ids, embeddings, F.normalize(embeddings, dim=-1)))
        return tuple(found)

    @torch.no_grad()
    def nearest(self, vectors: Float[Tensor, "b width"], count: int = 1) -> Int[Tensor, "b count"]:
        """Rows of the `count` tokens nearest by cosine, the nearest first."""
        with torch.autocast(vectors.device.type, enabled=False):  # bf16 cannot tell near neighbours apart
            cosines = F.normalize(vectors.detach().float(), dim=-1) @ self.unit.T
        return cosines.topk(min(count, len(self.ids)), dim=-1).indices


@torch.no_grad()
def start_as_average_words(head: nn.Linear, vocabulary: Vocabulary) -> None:
    """Initialise the last layer of an encoder: its inputs are of unit variance, its output is one or more words.

    Each starts as an average word that differs a little from picture to picture. A default linear layer's output is
    tens of times longer than any word, and far from all of them.
    """
    nn.init.normal_(head.weight, std=float(vocabulary.embeddings.std()) * head.in_features**-0.5)
    mean = vocabulary.embeddings.mean(0)
    head.bias.copy_(mean.repeat(head.out_features // len(mean)))
