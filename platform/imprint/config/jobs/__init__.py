"""One frozen model for each kind of job. A new kind is one line here and one in `imprint.jobs.RUNNERS`."""

from imprint.config.base import Section
from imprint.config.jobs.benchmark import Benchmark, Search
from imprint.config.jobs.dreambooth import DreamBooth
from imprint.config.jobs.evaluate import Evaluate, TrainFaceAttributes
from imprint.config.jobs.finetune import FinetuneJoint, JointTripletSpec
from imprint.config.jobs.prepare import BackgroundMix, PrepareFaces, PrepareObjects
from imprint.config.jobs.pretrain import PretrainEncoder
from imprint.config.jobs.shards import PrepareShards
from imprint.config.jobs.super_resolution import TrainSuperResolution
from imprint.config.jobs.tiny import TrainBackbone, TrainTinyClip, TrainTinyVae

JOB_SPECS: dict[str, type[Section]] = {
    "benchmark": Benchmark,
    "dreambooth": DreamBooth,
    "evaluate": Evaluate,
    "finetune_joint": FinetuneJoint,
    "prepare_faces": PrepareFaces,
    "prepare_objects": PrepareObjects,
    "prepare_shards": PrepareShards,
    "pretrain_encoder": PretrainEncoder,
    "search": Search,
    "train_backbone": TrainBackbone,
    "train_face_attributes": TrainFaceAttributes,
    "train_super_resolution": TrainSuperResolution,
    "train_tiny_clip": TrainTinyClip,
    "train_tiny_vae": TrainTinyVae,
}

__all__ = [
    "JOB_SPECS",
    "BackgroundMix",
    "Benchmark",
    "DreamBooth",
    "Evaluate",
    "FinetuneJoint",
    "JointTripletSpec",
    "PrepareFaces",
    "PrepareObjects",
    "PrepareShards",
    "PretrainEncoder",
    "Search",
    "TrainBackbone",
    "TrainFaceAttributes",
    "TrainSuperResolution",
    "TrainTinyClip",
    "TrainTinyVae",
]
