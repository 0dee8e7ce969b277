"""Textual inversion, the baseline: one new word for a frozen model. Gal et al., arXiv:2208.01618."""

from imprint.methods.textual_inversion.learned import export, merge
from imprint.methods.textual_inversion.sample import sample
from imprint.methods.textual_inversion.tune import tune

__all__ = ["export", "merge", "sample", "tune"]
