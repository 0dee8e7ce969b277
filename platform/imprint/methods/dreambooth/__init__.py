"""DreamBooth: a rare word, all weights, and the model's own pictures of the class. Ruiz et al., arXiv:2208.12242."""

from imprint.methods.dreambooth.loss import dreambooth_loss
from imprint.methods.dreambooth.objective import Binding, DreamBoothObjective, make_trained
from imprint.methods.dreambooth.prior import class_images
from imprint.methods.dreambooth.tune import tune
from imprint.methods.phrases import export, merge, sample

__all__ = [
    "Binding",
    "DreamBoothObjective",
    "class_images",
    "dreambooth_loss",
    "export",
    "make_trained",
    "merge",
    "sample",
    "tune",
]
