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
        device = "cpu" if vectors.is_meta else vectors.device.type
        with torch.autocast(device, enabled=False):  # bf16 cannot tell near neighbours apart
            cosines = F.normalize(vectors.detach().float(), dim=-1) @ self.unit.T
        return cosines.topk(min(count, len(self.ids)), dim=-1).indices


class WordHead(nn.Module):
    """The last layer of an encoder: features of unit variance to `count` words.

    They start as average words of the vocabulary, or a tenth of its spread around the word `start`, so that what a
    network knows of that word is there at the first step. Each differs a little from picture to picture; a default
    linear layer's output is tens of times longer than any word, and far from all of them. The vocabulary's spread is a
    constant factor and not in the weights, since AdamW moves a weight by its learning rate however small the weight is:
    without the factor, PromptNet's words on `imprint-tiny` were 28 times as long as the vocabulary's after 1,200 steps
    at 3e-4, and pictures were hardly told apart.
    """

    def __init__(
        self, width: int, vocabulary: Vocabulary, count: int = 1, start: Float[Tensor, "k words"] | None = None
    ) -> None:
        super().__init__()
        mean = (vocabulary.embeddings if start is None else start.float()).mean(0)
        spread = 1.0 if mean.is_meta else float(vocabulary.embeddings.std())  # shapes alone, as in plans
        self.spread = spread
        self.linear = nn.Linear(width, count * len(mean), device=mean.device)
        with torch.no_grad():
            nn.init.normal_(self.linear.weight, std=(1.0 if start is None else 0.1) * width**-0.5)
            self.linear.bias.copy_(mean.repeat(count) / spread)

    def forward(self, features: Float[Tensor, "b width"]) -> Float[Tensor, "b words"]:
        """The words of each row, side by side, in fp32."""
        return self.spread * self.linear(features).float()
