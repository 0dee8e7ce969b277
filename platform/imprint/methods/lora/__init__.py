"""Plain LoRA, a baseline: low-rank changes and a rare word, no prior preservation. Hu et al., arXiv:2106.09685."""

from imprint.methods.lora.tune import tune
from imprint.methods.phrases import export, merge, sample

__all__ = ["export", "merge", "sample", "tune"]
