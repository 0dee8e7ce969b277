"""ProFusion: PromptNet without regularization, and fusion sampling. Zhou et al., arXiv:2305.13579."""

from imprint.methods.profusion.artifact import load_encoder
from imprint.methods.profusion.learned import merge
from imprint.methods.profusion.objective import ProFusionObjective
from imprint.methods.profusion.parts import ProFusionParts
from imprint.methods.profusion.sample import preview, sample
from imprint.methods.profusion.tune import tune

pretrain = ProFusionObjective

__all__ = [
    "ProFusionObjective",
    "ProFusionParts",
    "load_encoder",
    "merge",
    "pretrain",
    "preview",
    "sample",
    "tune",
]
