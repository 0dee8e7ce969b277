"""One interface to a text-to-image backbone: text in, latents in and out, one denoiser call.

Methods ask a `Backbone` for what they need and never hard-code a width, a layer count or a model name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from imprint.backbone.attention import AttentionProjection, attention_projections
from imprint.backbone.families import Family
from imprint.backbone.noise import NoiseSchedule, PredictionType
from imprint.backbone.text import TextConditioning, TokenReplacements, run_text_encoder
from imprint.errors import BackboneError


def modules_fingerprint(modules: Iterable[nn.Module]) -> str:
    """sha256 over places, names, shapes and fp16 values of all weights."""
    digest = hashlib.sha256()
    for part, module in enumerate(modules):
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{part}/{name}{tuple(tensor.shape)}".encode())
            values = tensor.detach().to("cpu", torch.float16) if tensor.is_floating_point() else tensor.cpu()
            digest.update(values.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass
class Backbone:
    """A pretrained text-to-image model: text encoders, autoencoder, UNet and noise schedule.

    `path` is where it came from; `scheduler_config` is the diffusers scheduler's, kept for export.
    """

    path: str
    family: Family
    unet: nn.Module
    vae: nn.Module
    text_encoders: tuple[nn.Module, ...]
    tokenizers: tuple[Any, ...]
    schedule: NoiseSchedule
    scheduler_config: Mapping[str, Any]

    @classmethod
    def load(
        cls, path: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> Backbone:
        """Load a diffusers folder, a single safetensors file, a hub id or an embedded name ("imprint-tiny").

        The backbone comes frozen and in eval mode.

        Raises:
            BackboneError: nothing loadable is there, or it is of no known family.
        """
        from imprint.backbone.loading import load_backbone

        return load_backbone(path, dtype=dtype, device=device)

    # -- what it is -----------------------------------------------------------------------------------------

    @property
    def prediction_type(self) -> PredictionType:
        return self.schedule.prediction_type

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.unet.parameters()).dtype

    @property
    def downsampling(self) -> int:
        """Pixels along one side of a latent."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the latents at the model's own size."""
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return self.unet.config.in_channels, height, width

    @property
    def image_size(self) -> int:
        """Pixels along a side of the pictures that the model was trained on."""
        return self.latent_shape[1] * self.downsampling

    @property
    def embedding_widths(self) -> tuple[int, ...]:
        """Width of the word embeddings of each text encoder."""
        return tuple(encoder.get_input_embeddings().weight.shape[1] for encoder in self.text_encoders)

    def attention_projections(self) -> list[AttentionProjection]:
        """Every q, k, v and out projection of the UNet, with its parameter name and shape."""
        return attention_projections(self.unet)

    def modules(self) -> Iterator[nn.Module]:
        """UNet, autoencoder and text encoders."""
        yield self.unet
        yield self.vae
        yield from self.text_encoders

    def freeze(self) -> Backbone:
        """No parameter takes a gradient; dropout and the like are off."""
        for module in self.modules():
            module.requires_grad_(False)
            module.eval()
        return self

    def fingerprint(self) -> str:
        """sha256 over names, shapes and fp16 values of all weights: the same whatever dtype it was loaded in.

        Rounded to fp16 first, since a backbone stored in fp16 and loaded in fp32 must keep its name.
        """
        return modules_fingerprint(self.modules())

    # -- pictures -------------------------------------------------------------------------------------------

    def latent_moments(
        self, pixel_values: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b c h2 w2"], Float[Tensor, "b c h2 w2"]]:
        """Mean and standard deviation of the scaled latents of pictures in [-1, 1].

        An autoencoder without a posterior (AutoencoderTiny) has a standard deviation of zero.
        """
        mean, std = latent_moments(self.vae, pixel_values)
        return mean.to(self.dtype), std.to(self.dtype)

    @torch.no_grad()
    def encode_images(
        self, pixel_values: Float[Tensor, "b 3 h w"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "b c h2 w2"]:
        """Scaled latents of pictures in [-1, 1], sampled from the posterior (its mean without a generator)."""
        mean, std = self.latent_moments(pixel_values)
        return mean if generator is None else sample_latents(mean, std, generator)

    @torch.no_grad()
    def decode_latents(self, latents: Float[Tensor, "b c h2 w2"]) -> Float[Tensor, "b 3 h w"]:
        """Pictures in [-1, 1] of scaled latents."""
        shift = getattr(self.vae.config, "shift_factor", None) or 0.0
        latents = latents.to(self.vae_dtype) / self.vae.config.scaling_factor + shift
        return self.vae.decode(latents, return_dict=False)[0].float().clamp(-1, 1)

    @property
    def vae_dtype(self) -> torch.dtype:
        return next(self.vae.parameters()).dtype

    # -- text -----------------------------------------------------------------------------------------------

    def encode_text(
        self,
        prompts: Sequence[str],
        replacements: TokenReplacements | Sequence[TokenReplacements] | None = None,
    ) -> TextConditioning:
        """Run the text encoders, with the word embeddings of a placeholder, or of several, replaced where given.

        Raises:
            BackboneError: the replacements do not fit the text encoders, or a placeholder falls off the end.
        """
        each = [replacements] if isinstance(replacements, TokenReplacements) else list(replacements or ())
        for replacement in each:
            self._check_vectors(replacement, len(prompts))
        hidden, pooled = [], None
        for number, (encoder, tokenizer) in enumerate(zip(self.text_encoders, self.tokenizers, strict=True)):
            vectors = {replacement.placeholder_token: replacement.vectors[number] for replacement in each}
            states, pooled = run_text_encoder(
                encoder, tokenizer, prompts, vectors, penultimate=self.family.penultimate_hidden
            )
            hidden.append(states)
        return TextConditioning(torch.cat(hidden, dim=-1), pooled if self.family.pooled else None)

    def _check_vectors(self, replacements: TokenReplacements, prompts: int) -> None:
        got = [tuple(v.shape) for v in replacements.vectors]
        wanted = self.embedding_widths
        fits = len(got) == len(wanted) and all(
            len(shape) == 3 and shape[0] in (1, prompts) and shape[2] == width
            for shape, width in zip(got, wanted, strict=True)
        )
        if not fits:
            raise BackboneError(
                f"replacing word embeddings: got tensors of shape {got}, expected one [1 or {prompts}, k, width] for "
                f"each text encoder with widths {list(wanted)}"
            )

    def word_embedding(self, word: str) -> tuple[Float[Tensor, "k width"], ...]:
        """The word embeddings of a word or phrase, one row a token, for each text encoder.

        Raises:
            BackboneError: the word has no tokens.
        """
        found = []
        for encoder, tokenizer in zip(self.text_encoders, self.tokenizers, strict=True):
            ids = tokenizer(word, add_special_tokens=False)["input_ids"]
            if not ids:
                raise BackboneError(f"looking up the word {word!r}: it has no tokens; expected a word such as 'face'")
            table = encoder.get_input_embeddings().weight
            found.append(table[torch.tensor(ids, device=table.device)].detach().clone())
        return tuple(found)

    # -- the denoiser ---------------------------------------------------------------------------------------

    def added_conditioning(
        self, conditioning: TextConditioning, latents: Float[Tensor, "b c h w"]
    ) -> dict[str, Tensor] | None:
        """SDXL's pooled text and time ids (original size, crop, target size, in pixels); None elsewhere.

        Without the conditioning's own, a picture of the latents' size that was never resized.
        """
        if not self.family.pooled:
            return None
        if conditioning.time_ids is not None:
            return {"text_embeds": conditioning.pooled, "time_ids": conditioning.time_ids.to(latents)}
        height, width = (side * self.downsampling for side in latents.shape[-2:])
        ids = torch.tensor([[height, width, 0, 0, height, width]], device=latents.device, dtype=latents.dtype)
        return {"text_embeds": conditioning.pooled, "time_ids": ids.expand(len(latents), -1)}

    def denoise(
        self,
        latents: Float[Tensor, "b c h w"],
        timesteps: Int[Tensor, "b"],
        conditioning: TextConditioning,
        weights: Mapping[str, Tensor] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """One call of the UNet: its raw output (eps, v or x_0 by `prediction_type`).

        `weights` replaces UNet parameters by name for this call, differentiably and without touching the model.
        """
        arguments = (latents, timesteps, conditioning.hidden)
        keywords = {
            "added_cond_kwargs": self.added_conditioning(conditioning, latents),
            "return_dict": False,
        }
        if conditioning.objects is not None:
            # diffusers' way to GLIGEN's modules, which stand where ours do: after self-attention, before the text's
            keywords["cross_attention_kwargs"] = {"gligen": {"objs": conditioning.objects}}
        if weights is None:
            return self.unet(*arguments, **keywords)[0]
        return torch.func.functional_call(self.unet, dict(weights), arguments, keywords)[0]


def latent_moments(
    vae: nn.Module, pixel_values: Float[Tensor, "b 3 h w"]
) -> tuple[Float[Tensor, "b c h2 w2"], Float[Tensor, "b c h2 w2"]]:
    """`Backbone.latent_moments` of an autoencoder alone, in its own precision."""
    parameter = next(vae.parameters())
    encoded = vae.encode(pixel_values.to(parameter.device, parameter.dtype))
    if hasattr(encoded, "latent_dist"):
        mean, std = encoded.latent_dist.mean, encoded.latent_dist.std
    else:
        mean, std = encoded.latents, torch.zeros_like(encoded.latents)
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    scale = vae.config.scaling_factor
    return (mean - shift) * scale, std * scale


def sample_latents(
    mean: Float[Tensor, "b c h w"], std: Float[Tensor, "b c h w"], generator: torch.Generator
) -> Float[Tensor, "b c h w"]:
    """A draw from the autoencoder's posterior."""
    noise = torch.randn(mean.shape, generator=generator, device=generator.device, dtype=torch.float32)
    return mean + std * noise.to(mean.device, mean.dtype)
