"""Text in: tokenise prompts, replace a placeholder's word embeddings, run one or two text encoders.

A placeholder such as `<concept>` is never added to a tokenizer. The prompt is split at it, the parts are
tokenised on their own, and the placeholder takes as many positions as it has vectors. So a concept changes
neither the vocabulary nor the embedding table, and many concepts share one text encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imprint.errors import BackboneError

PLACEHOLDER = "<concept>"


@dataclass(frozen=True)
class TokenReplacements:
    """Word embeddings for `placeholder_token`: for each text encoder a tensor [b, k, width].

    b is the number of prompts, or 1 for the same vectors in every prompt; k the positions it takes.
    Gradients flow through the vectors.
    """

    vectors: tuple[Float[Tensor, "b k width"], ...]
    placeholder_token: str = PLACEHOLDER


@dataclass(frozen=True)
class TextConditioning:
    """What the UNet attends to: `hidden` [b, n, d]; `pooled` [b, p] where the family has one (SDXL)."""

    hidden: Float[Tensor, "b n d"]
    pooled: Float[Tensor, "b p"] | None = None

    def __getitem__(self, index: Any) -> TextConditioning:
        return TextConditioning(self.hidden[index], None if self.pooled is None else self.pooled[index])

    @staticmethod
    def cat(parts: Sequence[TextConditioning]) -> TextConditioning:
        """Stack several along the batch."""
        pooled = None if parts[0].pooled is None else torch.cat([p.pooled for p in parts])  # type: ignore[misc]
        return TextConditioning(torch.cat([p.hidden for p in parts]), pooled)

    def repeat(self, count: int) -> TextConditioning:
        """Every row `count` times, rows of one prompt together."""
        pooled = None if self.pooled is None else self.pooled.repeat_interleave(count, 0)
        return TextConditioning(self.hidden.repeat_interleave(count, 0), pooled)


@dataclass(frozen=True)
class _Tokens:
    ids: Tensor  # [b, n]
    start: list[list[int]]  # positions at which a placeholder begins, for each prompt


def max_prompt_tokens(tokenizer: Any) -> int:
    """How many positions the text encoder has, begin and end tokens included."""
    return int(tokenizer.model_max_length)


def tokenize(tokenizer: Any, prompts: Sequence[str], placeholder: str | None, width: int) -> _Tokens:
    """Token ids [b, n], padded to the model's length, and where each placeholder begins.

    A placeholder that takes `width` positions holds the id of an ordinary token there; its embedding is
    overwritten later. Text beyond the model's length is cut, a placeholder never is.

    Raises:
        BackboneError: a placeholder would fall off the end of the prompt.
    """
    length = max_prompt_tokens(tokenizer)
    filler = tokenizer("a", add_special_tokens=False)["input_ids"][0]
    rows, starts = [], []
    for prompt in prompts:
        parts = prompt.split(placeholder) if placeholder else [prompt]
        ids, at = [], []
        for number, part in enumerate(parts):
            if number:
                at.append(len(ids) + 1)
                ids += [filler] * width
            if part.strip():
                ids += tokenizer(part, add_special_tokens=False, truncation=False)["input_ids"]
        if at and at[-1] + width > length - 1:
            raise BackboneError(
                f"encoding a prompt: {placeholder} falls beyond the {length} tokens the model reads; "
                "put it earlier or shorten the prompt",
                prompt=prompt[:80],
            )
        ids = [tokenizer.bos_token_id, *ids[: length - 2], tokenizer.eos_token_id]
        ids += [tokenizer.pad_token_id] * (length - len(ids))
        rows.append(ids)
        starts.append(at)
    return _Tokens(torch.tensor(rows), starts)


def run_text_encoder(
    encoder: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str],
    vectors: Float[Tensor, "b k width"] | None,
    placeholder: str,
    *,
    penultimate: bool = False,
) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b p"]]:
    """The hidden states and the pooled output of one text encoder, with the placeholder's embeddings replaced."""
    table = encoder.get_input_embeddings()
    tokens = tokenize(tokenizer, prompts, placeholder if vectors is not None else None,
                      vectors.shape[1] if vectors is not None else 0)  # fmt: skip
    ids = tokens.ids.to(table.weight.device)

    def replace(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        assert vectors is not None
        rows, columns, sources = [], [], []
        for row, starts in enumerate(tokens.start):
            for start in starts:
                for k in range(vectors.shape[1]):
                    rows.append(row)
                    columns.append(start + k)
                    sources.append((row if vectors.shape[0] > 1 else 0, k))
        if not rows:
            return output
        source_row, source_k = zip(*sources, strict=True)
        new = vectors[list(source_row), list(source_k)].to(output.dtype)
        index = (torch.tensor(rows, device=output.device), torch.tensor(columns, device=output.device))
        return output.index_put(index, new)

    handle = table.register_forward_hook(replace) if vectors is not None else None
    try:
        out = encoder(ids, output_hidden_states=penultimate)
    finally:
        if handle is not None:
            handle.remove()
    hidden = out.hidden_states[-2] if penultimate else out.last_hidden_state
    pooled = out.text_embeds if hasattr(out, "text_embeds") else out.pooler_output
    return hidden, pooled
