"""The Taming Encoder: attentions to an object's embedding in a jointly finetuned network, and no tuning per subject.

Jia et al., arXiv:2304.02642.
"""

from imprint.methods.taming.artifact import find_network, load_encoder, save_network
from imprint.methods.taming.objective import TamingObjective, TripletBatch
from imprint.methods.taming.parts import TamingParts
from imprint.methods.taming.sample import preview, sample, sample_objects
from imprint.methods.taming.tune import tune

__all__ = [
    "TamingObjective",
    "TamingParts",
    "TripletBatch",
    "find_network",
    "load_encoder",
    "preview",
    "sample",
    "sample_objects",
    "save_network",
    "tune",
]
