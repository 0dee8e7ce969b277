"""Write k8s/jobs anew: the RayJobs of all job files, as `imprint submit --kube --dry-run` prints
them; on CPUs as the files are, and on GPUs with what GPUs need.
"""

from __future__ import annotations

import sys
from pathlib import Path

from imprint.config.load import load_job
from imprint.jobs.kube import render, to_yaml

ROOT = Path(__file__).resolve().parents[1]
_PREPARE = ("kube.head_cpus=4", "kube.priority=imprint-batch")
CPU: dict[str, tuple[str, ...]] = {
    "ablations": ("kube.priority=imprint-batch",),
    "ablations_pretraining": ("kube.priority=imprint-batch",),
    "steps": ("kube.priority=imprint-batch",),
    "benchmark": ("kube.priority=imprint-batch",),
    "continue_backbone": (),
    "dreambench": ("kube.priority=imprint-batch",),
    "dreambooth": (),
    "evaluate": ("kube.priority=imprint-batch",),
    "finetune_joint": (),
    "prepare_faces": _PREPARE,
    "prepare_objects": _PREPARE,
    "prepare_shards": ("kube.priority=imprint-batch",),
    "pretrain_domain_agnostic": (),
    "pretrain_encoder": (),
    "pretrain_profusion": (),
    "search": ("kube.priority=imprint-batch",),
    "train_backbone": (),
    "train_face_attributes": (),
    "train_super_resolution": (),
    "train_tiny_clip": (),
    "train_tiny_vae": (),
}
_TRAIN = ("cluster.gpus_per_worker=1", "cluster.cpus_per_worker=4", "kube.cpus=12", "kube.memory=96Gi",
          "kube.shared_memory=16Gi", "kube.head_cpus=4", "kube.head_memory=16Gi")  # fmt: skip
_ACTORS = ("cluster.gpus_per_actor=1", "kube.cpus=8", "kube.memory=48Gi", "kube.priority=imprint-batch")
GPU: dict[str, tuple[str, ...]] = {
    "ablations": _ACTORS,
    "ablations_pretraining": _ACTORS,
    "steps": _ACTORS,
    "benchmark": _ACTORS,
    "dreambench": _ACTORS,
    "dreambooth": _TRAIN,
    "evaluate": _ACTORS,
    "finetune_joint": _TRAIN,
    "pretrain_domain_agnostic": _TRAIN,
    "pretrain_encoder": _TRAIN,
    "pretrain_profusion": _TRAIN,
    "search": _ACTORS,
}


def rayjobs() -> dict[str, str]:
    """The text of each file by its path inside of k8s/jobs."""
    files = {}
    for place, jobs in (("cpu", CPU), ("gpu", GPU)):
        for stem, overrides in jobs.items():
            job = load_job(ROOT / "jobs" / f"{stem}.yaml", overrides)
            (config_map, ray_job) = render(job, overrides, name=stem)
            text = config_map["data"]["job.yaml"]
            config_map["data"]["job.yaml"] = text.replace(f"# {job.path.as_posix()}", f"# jobs/{stem}.yaml", 1)
            head = "# Written by scripts/render_rayjobs.py; change jobs/*.yaml and write it anew.\n"
            files[f"{place}/{stem.replace('_', '-')}.yaml"] = head + to_yaml([config_map, ray_job])
        names = "".join(f"  - {stem.replace('_', '-')}.yaml\n" for stem in sorted(jobs))
        files[f"{place}/kustomization.yaml"] = _KUSTOMIZATION.format(names=names)
    return files


_KUSTOMIZATION = """\
# Written by scripts/render_rayjobs.py. One job: kubectl create -f NAME.yaml. For images of a registry of your own add
# `images` here, as in the overlays, and take what `kubectl kustomize` prints.
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources:
{names}"""


def main() -> int:
    folder = ROOT / "k8s" / "jobs"
    for old in folder.glob("*/*.yaml"):
        old.unlink()
    for name, text in rayjobs().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
