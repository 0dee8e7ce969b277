"""Seconds and memory from a picture to a tuned concept and its first sample, by method, on a published backbone.

    python benchmarks/gpu_tune.py --models sd21-base --methods e4t domain_agnostic dreambooth --json tune.json

Needs torch, diffusers and the core of this project, and no Ray. Weights are random, so nothing is worth looking at;
time and memory are those of the real ones. CLIP is ViT-H/14, which E4T and the domain-agnostic encoder read.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from gpu_report import attempt, device_options, finish, machine, peak_gb, synchronize

from imprint.backbone import Backbone
from imprint.backbone.published import SHAPES, build_published
from imprint.config.methods import (
    DomainAgnosticSpec,
    DomainAgnosticTuneSpec,
    DreamBoothTuneSpec,
    E4TSpec,
    E4TTuneSpec,
    FewStepSpec,
    LoraTuneSpec,
    SampleSpec,
    TextualInversionTuneSpec,
)
from imprint.features.clip import ClipFeatures
from imprint.features.clip_shapes import clip_of_shape
from imprint.methods import METHODS
from imprint.methods.base import Pictures

CLIP, SMALL_CLIP = "ViT-H-14", "imprint-tiny-clip"


@dataclass(frozen=True)
class Case:
    """One method: its tuning, and the parts that its pretraining would have left."""

    tune: Callable[..., FewStepSpec]
    parts: Callable[[Backbone, ClipFeatures], Any] | None = None


def _e4t(backbone: Backbone, clip: ClipFeatures) -> Any:
    return METHODS["e4t"].pretrain(backbone, E4TSpec(), clip).parts


def _domain_agnostic(backbone: Backbone, clip: ClipFeatures) -> Any:
    return METHODS["domain_agnostic"].pretrain(backbone, DomainAgnosticSpec(), clip).parts


CASES: dict[str, Case] = {
    "e4t": Case(E4TTuneSpec, _e4t),
    "domain_agnostic": Case(DomainAgnosticTuneSpec, _domain_agnostic),
    "dreambooth": Case(DreamBoothTuneSpec),
    "lora": Case(LoraTuneSpec),
    "textual_inversion": Case(TextualInversionTuneSpec),
}


def measure(model: str, method: str, steps: int | None, batch: int | None, how: argparse.Namespace) -> dict[str, Any]:
    """One tuning that counts after one that does not (kernels are chosen and compiled in the first)."""
    device = torch.device(how.device)
    torch.manual_seed(0)
    dtype = torch.bfloat16 if how.weights == "bf16" else torch.float32
    backbone = build_published(model, device=device, dtype=dtype, reduced=how.reduced)
    case = CASES[method]
    base: Any = backbone
    if case.parts is not None:
        clip = ClipFeatures.load(SMALL_CLIP, device=device) if how.reduced else clip_of_shape(CLIP, device=device)
        base = case.parts(backbone, clip)
    changes: dict[str, Any] = {"precision": how.precision}
    changes |= {"steps": steps} if steps is not None else {}
    changes |= {"batch_size": batch} if batch is not None else {}
    if method in ("dreambooth", "lora"):  # these backbones have no vocabulary to look for a rare word in
        changes["identifier"] = {"text": "zq"}
    if method == "dreambooth":
        changes["prior"] = {"enabled": False} if how.no_prior else {"images": how.prior_images}
    spec = case.tune(**changes)
    pictures = Pictures(torch.rand(1, 3, backbone.image_size, backbone.image_size, device=device) * 2 - 1)
    sampling = SampleSpec(steps=how.sample_steps, precision=how.precision)
    for _ in range(1 if how.no_warm else 2):
        synchronize(device)
        began = time.perf_counter()
        learned = METHODS[method].tune(base, pictures, spec, class_noun="person")
        synchronize(device)
        tuned = time.perf_counter()
        METHODS[method].sample(backbone, learned, ["a photo of <concept>"], sampling, seeds=[0])
        synchronize(device)
        ended = time.perf_counter()
    return {
        "steps": spec.steps, "pictures a step": spec.batch_size, "tuning, s": tuned - began,
        "first sample after, s": ended - tuned, "both, s": ended - began, "peak memory, GB": peak_gb(device),
    }  # fmt: skip


def rows(how: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for model in how.models:
        for method in how.methods:
            for steps in how.steps or [None]:
                for batch in how.batch_sizes or [None]:
                    head = {"model": model, "method": method, "precision": how.precision, "weights": how.weights}
                    done = attempt(lambda m=model, n=method, s=steps, b=batch: measure(m, n, s, b, how),
                                   torch.device(how.device))  # fmt: skip
                    print({**head, **done}, flush=True)
                    yield {**head, **done}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(SHAPES), default=["sd21-base"])
    parser.add_argument("--methods", nargs="+", choices=list(CASES), default=["e4t", "domain_agnostic", "lora"])
    parser.add_argument("--steps", nargs="+", type=int, help="in place of the paper's")
    parser.add_argument("--batch-sizes", nargs="+", type=int, help="in place of the paper's")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--weights", choices=("fp32", "bf16"), default="fp32", help="of the frozen models")
    parser.add_argument("--sample-steps", type=int, default=30)
    parser.add_argument("--prior-images", type=int, default=8, help="dreambooth: pictures of the class")
    parser.add_argument("--no-prior", action="store_true", help="dreambooth: without prior preservation")
    parser.add_argument("--no-warm", action="store_true", help="count the first tuning")
    device_options(parser)
    how = parser.parse_args()
    finish({"machine": machine(torch.device(how.device)), "rows": list(rows(how))}, how.json)


if __name__ == "__main__":
    main()
