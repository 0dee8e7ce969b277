"""Draw docs/images/imprint-tiny.png, what imprint-tiny draws: `python scripts/readme_picture.py`."""

from __future__ import annotations

from pathlib import Path

from imprint.backbone import Backbone
from imprint.config.methods import SampleSpec
from imprint.evaluation.grid import labelled_grid, save_png
from imprint.sampling.draw import draw_prompts
from imprint.sampling.sheet import to_pil

PROMPTS = (
    "a smiling man with a red beard and round glasses, on a blue background",
    "a person with long straight black hair, with sunglasses, on a pink background",
    "a surprised person with curly blond hair, wearing a green hoodie, on a yellow background",
    "a person with a platinum blond bob and black glasses, wearing a red t-shirt, on a gray background",
    "a man with a big brown beard and a bald head, grimacing, wearing a purple t-shirt, on an orange background",
    "an emoji of a red heart, on a white background",
    "an emoji of a sunflower, on a blue background",
)
SEEDS = (0, 1, 2)
SAMPLING = SampleSpec(steps=30, guidance_scale=5.0, sampler="ddim")


def main() -> None:
    """A row a seed, a column a prompt; no picture is chosen."""
    backbone = Backbone.load("imprint-tiny")
    rows = [to_pil(draw_prompts(backbone, PROMPTS, SAMPLING, seeds=[seed] * len(PROMPTS))) for seed in SEEDS]
    print(save_png(labelled_grid(rows, PROMPTS, cell=128), Path("docs/images/imprint-tiny.png")))


if __name__ == "__main__":
    main()
