"""E4T: an encoder, weight offsets and a few tuning steps. Gal et al., arXiv:2302.12228."""

from imprint.methods.e4t.artifact import find_encoder, load_encoder, save_encoder
from imprint.methods.e4t.objective import E4TObjective
from imprint.methods.e4t.parts import E4TParts
from imprint.methods.e4t.sample import preview, sample, sample_features
from imprint.methods.e4t.tune import concept_features, tune

pretrain = E4TObjective

__all__ = [
    "E4TObjective",
    "E4TParts",
    "concept_features",
    "find_encoder",
    "load_encoder",
    "pretrain",
    "preview",
    "sample",
    "sample_features",
    "save_encoder",
    "tune",
]
