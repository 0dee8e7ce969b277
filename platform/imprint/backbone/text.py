"""Text in: tokenise prompts, replace a placeholder's word embeddings, run one or two text encoders.

A placeholder such as `<concept>` is never added to a tokenizer. The prompt is split at it, the parts are
tokenised on their own, and the placeholder takes as many positions as it has vectors. So a concept changes
neither the vocabulary nor the embedding table, and many concepts share one text encoder.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
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
    """What the UNet attends to: `hidden` [b, n, d]; `pooled` [b, p] where the family has one (SDXL).

    `objects` [b, m, e] is for attentions that a method put between self-attention and the text's; without them the
    UNet takes none. `time_ids` [b, 6] are SDXL's (original size, crop, target size); without them pictures count as
    never resized.
    """

    hidden: Float[Tensor, "b n d"]
    pooled: Float[Tensor, "b p"] | None = None
    objects: Float[Tensor, "b m e"] | None = None
    time_ids: Int[Tensor, "b 6"] | None = None

    def sized(self, time_ids: Int[Tensor, "b 6"] | None) -> TextConditioning:
        """The same for pictures of these sizes and crops."""
        return replace(self, time_ids=time_ids)

    def __getitem__(self, index: Any) -> TextConditioning:
        return self._each(lambda value: value[index])

    @staticmethod
    def cat(parts: Sequence[TextConditioning]) -> TextConditioning:
        """Stack several along the batch."""
        first = parts[0]
        pooled = None if first.pooled is None else torch.cat([p.pooled for p in parts])  # type: ignore[misc]
        objects = None if first.objects is None else torch.cat([p.objects for p in parts])  # type: ignore[misc]
        sizes = None if first.time_ids is None else torch.cat([p.time_ids for p in parts])  # type: ignore[misc]
        return TextConditioning(torch.cat([p.hidden for p in parts]), pooled, objects, sizes)

    def repeat(self, count: int) -> TextConditioning:
        """Every row `count` times, rows of one prompt together."""
        return self._each(lambda value: value.repeat_interleave(count, 0))

    def _each(self, change: Callable[[Tensor], Tensor]) -> TextConditioning:
        further = (None if value is None else change(value) for value in (self.pooled, self.objects, self.time_ids))
        return TextConditioning(change(self.hidden), *further)


@dataclass(frozen=True)
class _Tokens:
    ids: Tensor  # [b, n]
    places: list[list[tuple[int, str]]]  # for each prompt, where a placeholder begins, and which


def max_prompt_tokens(tokenizer: Any) -> int:
    """How many positions the text encoder has, begin and end tokens included."""
    return int(tokenizer.model_max_length)


def tokenize(tokenizer: Any, prompts: Sequence[str], widths: Mapping[str, int]) -> _Tokens:
    """Token ids [b, n], padded to the model's length, and where each placeholder begins.

    `widths` are the placeholders and how many positions each takes. They hold the id of an ordinary token there; its
    embedding is overwritten later. Text beyond the model's length is cut, a placeholder never is.

    Raises:
        BackboneError: a placeholder would fall off the end of the prompt.
    """
    length = max_prompt_tokens(tokenizer)
    filler = tokenizer("a", add_special_tokens=False)["input_ids"][0]
    pattern = re.compile(f"({'|'.join(map(re.escape, widths))})") if widths else None
    rows, places = [], []
    for prompt in prompts:
        ids, at = [], []
        for part in pattern.split(prompt) if pattern else [prompt]:
            if part in widths:
                at.append((len(ids) + 1, part))
                ids += [filler] * widths[part]
            elif part.strip():
                ids += tokenizer(part, add_special_tokens=False, truncation=False)["input_ids"]
        if at and at[-1][0] + widths[at[-1][1]] > length - 1:
            raise BackboneError(
                f"encoding a prompt: {at[-1][1]} falls beyond the {length} tokens the model reads; "
                "put it earlier or shorten the prompt",
                prompt=prompt[:80],
            )
        ids = [tokenizer.bos_token_id, *ids[: length - 2], tokenizer.eos_token_id]
        ids += [tokenizer.pad_token_id] * (length - len(ids))
        rows.append(ids)
        places.append(at)
    return _Tokens(torch.tensor(rows), places)


def run_text_encoder(
    encoder: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str],
    vectors: Mapping[str, Float[Tensor, "b k width"]],
    *,
    penultimate: bool = False,
) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b p"]]:
    """The hidden states and the pooled output of one text encoder, with each placeholder's embeddings replaced."""
    table = encoder.get_input_embeddings()
    tokens = tokenize(tokenizer, prompts, {placeholder: value.shape[1] for placeholder, value in vectors.items()})
    ids = tokens.ids.to(table.weight.device)

    def replace(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        for placeholder, value in vectors.items():
            output = _put(output, tokens.places, placeholder, value)
        return output

    handle = table.register_forward_hook(replace) if vectors else None
    try:
        out = encoder(ids, output_hidden_states=penultimate)
    finally:
        if handle is not None:
            handle.remove()
    hidden = out.hidden_states[-2] if penultimate else out.last_hidden_state
    pooled = out.text_embeds if hasattr(out, "text_embeds") else out.pooler_output
    return hidden, pooled


def _put(
    embeddings: Float[Tensor, "b n width"],
    places: list[list[tuple[int, str]]],
    placeholder: str,
    vectors: Float[Tensor, "b k width"],
) -> Float[Tensor, "b n width"]:
    """The embeddings with `vectors` at every place of one placeholder."""
    rows, columns, sources = [], [], []
    for row, starts in enumerate(places):
        for start, which in starts:
            if which == placeholder:
                for k in range(vectors.shape[1]):
                    rows.append(row)
                    columns.append(start + k)
                    sources.append((row if vectors.shape[0] > 1 else 0, k))
    if not rows:
        return embeddings
    source_row, source_k = zip(*sources, strict=True)
    new = vectors[list(source_row), list(source_k)].to(embeddings.dtype)
    device = embeddings.device
    index = (torch.tensor(rows, device=device), torch.tensor(columns, device=device))
    return embeddings.index_put(index, new)
