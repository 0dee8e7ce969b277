"""Jobs that make the embedded default: its autoencoder, its CLIP, and its UNet with text encoder."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from PIL import Image
from rich.progress import track
from transformers import CLIPTokenizer

from imprint.backbone import Backbone
from imprint.backbone.loading import EMBEDDED, embedded_path
from imprint.backbone.tiny import (
    assemble,
    build_autoencoder,
    build_unet,
    save_autoencoder,
    save_backbone,
    text_encoder_of_clip,
    train_tokenizer,
)
from imprint.config.jobs.tiny import LocalTraining, TrainBackbone, TrainTinyClip, TrainTinyVae
from imprint.config.paths import resolve_path
from imprint.features.clip import ClipFeatures
from imprint.features.tiny_clip import build_clip, save_clip
from imprint.jobs.local import (
    Pictures,
    batches,
    draw,
    keep_record,
    load_pictures,
    require_finished,
    run_training,
    write_whole,
)
from imprint.training.apply import apply_engine_options
from imprint.training.batches import to_pixel_values
from imprint.training.objectives.autoencoder import AutoencoderObjective, latent_scale
from imprint.training.objectives.contrastive import ContrastiveObjective
from imprint.training.objectives.denoising import DenoisingObjective, LatentBatch

log = logging.getLogger(__name__)
_ENCODE_BATCH = 128


def _start(spec: LocalTraining, *, with_masks: bool = False) -> Pictures:
    torch.set_num_threads(spec.threads)
    torch.manual_seed(spec.seed)
    return load_pictures(spec.sources, with_masks=with_masks)


def run_vae(spec: TrainTinyVae, *, job_file: Path | None, source: str) -> None:
    """Train the autoencoder; writes a diffusers AutoencoderTiny folder and `reconstructions.png` in the run."""
    pictures = _start(spec)
    vae = build_autoencoder(spec.model).to(memory_format=torch.channels_last)
    objective = AutoencoderObjective(vae, spec.loss)
    size = spec.training.batch_size
    state = run_training(spec, objective, lambda step: batches(pictures, size, spec.seed, step), source)
    require_finished(spec, state.step)
    sample = to_pixel_values(pictures.images[draw(pictures.weights, 256, spec.seed, spec.training.steps)])
    vae.eval()
    vae.register_to_config(scaling_factor=latent_scale(vae, sample))

    def write(folder: Path) -> None:
        save_autoencoder(vae, folder)
        keep_record(spec, folder)

    write_whole(Path(resolve_path(spec.output)), write)
    vae.float()
    with torch.no_grad():
        decoded = vae.decode(vae.encode(sample[:8]).latents).sample
    rows = torch.cat([torch.cat(list(sample[:8]), -1), torch.cat(list(decoded), -1)], -2)
    array = ((rows.clamp(-1, 1) + 1) * 127.5).byte().permute(1, 2, 0).numpy()
    Image.fromarray(array).save(Path(resolve_path(spec.runs)) / spec.name / "reconstructions.png")


def run_clip(spec: TrainTinyClip, *, job_file: Path | None, source: str) -> None:
    """Train the small CLIP; writes a folder that open_clip loads as `local-dir:FOLDER`."""
    pictures = _start(spec)
    tokenizer = train_tokenizer(pictures.captions, spec.tokenizer.vocabulary)
    clip, config = build_clip(spec.model, len(tokenizer))
    length = spec.model.text.max_length

    def tokenize(captions: list[str]) -> torch.Tensor:
        padded = tokenizer(captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        return padded.input_ids

    objective = ContrastiveObjective(clip, tokenize)
    size = spec.training.batch_size
    state = run_training(spec, objective, lambda step: batches(pictures, size, spec.seed, step), source)
    require_finished(spec, state.step)

    def write(folder: Path) -> None:
        save_clip(clip, config, tokenizer, folder)
        keep_record(spec, folder)

    write_whole(Path(resolve_path(spec.output)), write)


def run_backbone(spec: TrainBackbone, *, job_file: Path | None, source: str) -> None:
    """Train UNet and text encoder on the latents of a finished autoencoder; writes a diffusers folder."""
    weighted = spec.subject_weight != 1
    pictures = _start(spec, with_masks=weighted)
    backbone = _further(spec) if spec.initialize_from else _untrained(spec, pictures.images.shape[1])
    objective = DenoisingObjective(
        backbone,
        caption_dropping=spec.caption_dropping,
        min_snr_gamma=spec.min_snr_gamma,
        offset_noise=spec.offset_noise,
        subject_weight=spec.subject_weight,
        timestep_logits=spec.timestep_logits,
    )
    apply_engine_options(backbone, spec.engine)
    moments = _latent_moments(backbone, pictures)
    batch_size = spec.training.batch_size
    state = run_training(
        spec, objective, lambda step: _latent_batches(pictures, moments, batch_size, spec.seed, step), source
    )
    require_finished(spec, state.step)

    def write(folder: Path) -> None:
        save_backbone(backbone, folder)
        _keep_earlier_records(spec, backbone, folder)
        keep_record(spec, folder)

    write_whole(Path(resolve_path(spec.output)), write)


def _untrained(spec: TrainBackbone, image_size: int) -> Backbone:
    """A new UNet around the finished autoencoder, and a text encoder that starts as the small CLIP's text tower."""
    assert spec.vae is not None and spec.clip is not None
    vae = AutoencoderTiny.from_pretrained(resolve_path(spec.vae), dtype=torch.float32).eval().requires_grad_(False)
    clip = ClipFeatures.load(resolve_path(spec.clip)).model
    tokenizer = CLIPTokenizer.from_pretrained(resolve_path(spec.clip), model_max_length=len(clip.positional_embedding))
    text_encoder = text_encoder_of_clip(clip, tokenizer)
    size = image_size // 2 ** (len(vae.config.block_out_channels) - 1)
    channels = vae.config.latent_channels
    unet = build_unet(spec.unet, latent_channels=channels, latent_size=size, text_width=text_encoder.config.hidden_size)
    return assemble(unet, vae, text_encoder, tokenizer, spec.prediction_type)


def _further(spec: TrainBackbone) -> Backbone:
    """A finished backbone whose UNet and text encoders train again."""
    assert spec.initialize_from is not None
    place = resolve_path(spec.initialize_from)
    backbone = Backbone.load(place if Path(place).exists() else spec.initialize_from)
    for module in (backbone.unet, *backbone.text_encoders):
        module.requires_grad_(True).train()
    return backbone


def _keep_earlier_records(spec: TrainBackbone, backbone: Backbone, folder: Path) -> None:
    """The records of what this run started from: of the autoencoder, or of the whole backbone under `before/`."""
    if spec.initialize_from is None:
        source = Path(resolve_path(str(spec.vae)))
    else:
        source = embedded_path(backbone.path) if backbone.path in EMBEDDED else Path(backbone.path)
    record = source / "training"
    if not record.is_dir():
        return
    shutil.copytree(record, folder / "training", dirs_exist_ok=True)
    own = folder / "training" / spec.job
    if own.is_dir():
        before = own.rename(own.with_name(f".{spec.job}"))
        own.mkdir()
        before.rename(own / "before")


def _latent_moments(backbone: Backbone, pictures: Pictures) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every picture's latents, fp16, once for all epochs."""
    means, stds = [], []
    backbone.vae.to(memory_format=torch.channels_last)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for start in track(range(0, len(pictures.images), _ENCODE_BATCH), description="encoding pictures"):
            batch = to_pixel_values(pictures.images[start : start + _ENCODE_BATCH])
            mean, std = backbone.latent_moments(batch.contiguous(memory_format=torch.channels_last))
            means.append(mean.half().numpy())
            stds.append(std.half().numpy())
    log.info("encoded %d pictures to latents", len(pictures.images))
    return np.concatenate(means), np.concatenate(stds)


def _latent_batches(
    pictures: Pictures, moments: tuple[np.ndarray, np.ndarray], batch_size: int, seed: int, step: int
) -> Iterator[LatentBatch]:
    while True:
        index = draw(pictures.weights, batch_size, seed, step)
        batch = {
            "latent_mean": torch.from_numpy(moments[0][index]).float(),
            "latent_std": torch.from_numpy(moments[1][index]).float(),
            "captions": [pictures.captions[i] for i in index],
            "keys": [pictures.keys[i] for i in index],
        }
        if pictures.masks is not None:
            masks = torch.from_numpy(pictures.masks[index])[:, None].float() / 255
            batch["masks"] = F.adaptive_avg_pool2d(masks, moments[0].shape[-2:])
        yield batch  # type: ignore[misc]
        step += 1
