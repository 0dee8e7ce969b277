"""Does a pretrained encoder know whom it sees? The denoising loss of held-out people with the right reference picture,
with somebody else's, and with the class noun alone, pair by pair. For every method that has an encoder.

    python benchmarks/reference_loss.py runs/profusion-faces --people 48

A person's first picture is the reference and another one is denoised, its context in the prompt. Below zero in the
table is better. Errors are those of the subject's places (the mask's), at one strength of noise a row.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from imprint.backbone import Backbone, TokenReplacements
from imprint.config.data import DataSpec
from imprint.evaluation.statistics import bootstrap_mean
from imprint.jobs.pretrain_here import read_rows
from imprint.methods import METHODS
from imprint.methods.diffusion_loss import random_noise
from imprint.methods.domain_agnostic.dual_path import DualPath
from imprint.methods.domain_agnostic.parts import DomainAgnosticParts, prompts_with, prompts_with_tokens
from imprint.methods.e4t import E4TParts
from imprint.methods.pretrained import find_encoder
from imprint.methods.pretraining import concept_pictures
from imprint.methods.profusion.parts import ProFusionParts
from imprint.methods.vocabulary import Vocabulary
from imprint.objective import Batch
from imprint.pipelines.reading import Row
from imprint.training.batches import collate

Answer = tuple[Tensor, Tensor]
"""The raw output, and the words of the first text encoder."""
Call = Callable[[Tensor, Tensor, Tensor, Sequence[str]], Answer]
"""What a method makes of (references as its encoder sees them, x_t, t, prompts)."""


def by_e4t(parts: E4TParts) -> Call:
    def call(seen: Tensor, xt: Tensor, timesteps: Tensor, prompts: Sequence[str]) -> Answer:
        assert parts.clip is not None
        conditioning, offsets = parts.condition(parts.clip.layers(seen), xt, timesteps, prompts)
        output = parts.backbone.denoise(xt, timesteps, conditioning, parts.modulate(parts.base_weights()))
        return output, parts.domain[0][:1] + parts.spec.encoder.scale * offsets[0]

    return call


def by_profusion(parts: ProFusionParts) -> Call:
    def call(seen: Tensor, xt: Tensor, timesteps: Tensor, prompts: Sequence[str]) -> Answer:
        reference = parts.reference(seen)
        words = parts.promptnet(reference.latents, xt, timesteps, reference.embedding)
        text = parts.backbone.encode_text(prompts, TokenReplacements(words))
        return parts.backbone.denoise(xt, timesteps, text), words[0][:, 0]

    return call


def by_domain_agnostic(parts: DomainAgnosticParts) -> Call:
    dual = parts.spec.dual_path
    path = DualPath(parts.backbone, dual.alpha_blend if dual.enabled else None)

    def call(seen: Tensor, xt: Tensor, timesteps: Tensor, prompts: Sequence[str]) -> Answer:
        prediction = parts.heads(parts.one_pass(seen, torch.Generator().manual_seed(0)))
        soft = prompts_with(parts.backbone, prompts, prediction.words)
        hard = prompts_with_tokens(parts.backbone, prompts, parts.nearest_tokens(prediction.words))
        return path.denoise(xt, timesteps, soft, hard, prediction.factors), prediction.words[0]

    return call


CALLS = {"e4t": by_e4t, "profusion": by_profusion, "domain_agnostic": by_domain_agnostic}


@dataclass(frozen=True)
class People:
    """The reference and the other picture of each person."""

    references: Batch
    others: Batch

    @classmethod
    def of(cls, rows: Sequence[Row], count: int) -> People:
        """The first `count` identities of two pictures at least: the first, and the third where there is one."""
        found: dict[str, list[Row]] = {}
        for row in rows:
            found.setdefault(str(json.loads(row["json"])["identity"]), []).append(row)
        chosen = [own for own in found.values() if len(own) > 1][:count]
        return cls(collate([own[0] for own in chosen]), collate([own[min(2, len(own) - 1)] for own in chosen]))


@torch.no_grad()
def compare(backbone: Backbone, call: Call, people: People, seen: Tensor, timestep: int) -> tuple[list[str], Tensor]:
    """One row of the table, and the words."""
    x0 = backbone.encode_images(people.others["pixel_values"])
    noise = random_noise(x0, torch.Generator().manual_seed(timestep))
    timesteps = torch.full((len(x0),), timestep)
    xt, target = backbone.schedule.add_noise(x0, noise, timesteps), backbone.schedule.target(x0, noise, timesteps)
    shares = F.adaptive_avg_pool2d(people.others["masks"], x0.shape[-2:])

    def errors(output: Tensor) -> np.ndarray:
        each = (shares * (output.float() - target).square()).sum((1, 2, 3)) / (shares.sum((1, 2, 3)) * x0.shape[1])
        return each.double().numpy()

    prompts = [f"a photo of <concept>, {context}" for context in people.others["contexts"]]
    nouns = [p.replace("<concept>", f"a {n}") for p, n in zip(prompts, people.others["class_nouns"], strict=True)]
    plain = errors(backbone.denoise(xt, timesteps, backbone.encode_text(nouns)))
    output, words = call(seen, xt, timesteps, prompts)
    wrong, _ = call(seen.roll(1, dims=0), xt, timesteps, prompts)
    right = errors(output)
    table = backbone.text_encoders[0].get_input_embeddings().weight
    spread = (words - words.mean(0)).norm(dim=1).mean()
    row = [str(timestep), f"{plain.mean():.3f}"]
    row += [
        f"{found.mean:+.4f} ({found.low:+.4f} to {found.high:+.4f})"
        for found in (bootstrap_mean(right - errors(wrong)), bootstrap_mean(right - plain))
    ]
    length = words.norm(dim=1).mean() / table.norm(dim=1).mean()
    return [*row, f"{length:.2f}", f"{spread / words.norm(dim=1).mean():.2f}"], words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder")
    parser.add_argument("--backbone", default="imprint-tiny")
    parser.add_argument("--shards", default="data/faces-64")
    parser.add_argument("--people", type=int, default=48)
    parser.add_argument("--timesteps", type=int, nargs="+", default=[950, 800, 600])
    options = parser.parse_args()
    method = json.loads((find_encoder(options.encoder) / "encoder.json").read_text())["method"]
    backbone = Backbone.load(options.backbone)
    parts = METHODS[method].load_encoder(options.encoder, backbone)
    data = DataSpec(shards=(options.shards,), split="heldout", image_size=backbone.image_size)
    people = People.of(read_rows(data)[0], options.people)
    seen = concept_pictures(parts.spec, people.references["pixel_values"], people.references["masks"])
    print("| t | class noun's error | right minus wrong reference | right minus class noun | length | spread |")
    print("|---|---|---|---|---|---|")
    for timestep in options.timesteps:
        row, words = compare(backbone, CALLS[method](parts), people, seen, timestep)
        print("| " + " | ".join(row) + " |", flush=True)
    known = Vocabulary.each_of(backbone)[0]
    nearest = known.ids[known.nearest(words)[:, 0]].tolist()
    counted = Counter(backbone.tokenizers[0].decode([token]).strip() for token in nearest)
    print("nearest tokens: " + ", ".join(f"{word} {count}" for word, count in counted.most_common(8)))
    print(
        "length is in lengths of the vocabulary's words; spread is how far words lie from their mean, by their length"
    )


if __name__ == "__main__":
    main()
