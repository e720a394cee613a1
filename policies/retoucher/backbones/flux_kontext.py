"""FLUX.1 Kontext (arXiv 2506.15742) as a policy: stock diffusers pipeline parts, latent packing and LoRA targets as published."""

import copy
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxKontextPipeline
from diffusers.pipelines.flux.pipeline_flux_kontext import calculate_shift, retrieve_timesteps
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file

from policies.retoucher.backbone import Condition, Images, Latents
from portraitkit.errors import ConfigError, WeightsError

# The published 342 modules of the real model: 12 in each of 19 double blocks, 3 in each of 38 single ones (BeautyGRPO's released LoRA).
LORA_TARGETS = [
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
    "ff.net.0.proj",
    "ff.net.2",
    "ff_context.net.0.proj",
    "ff_context.net.2",
]


class KontextBackbone:
    """Wraps a `FluxKontextPipeline`; see `policies.retoucher.backbone.Backbone` for the contract.

    Latents and pictures stay where the caller has them (they are small); the networks live on the pipeline's device.

    Args:
        pipeline: the stock pipeline; its transformer is aligned, the rest frozen.
        name: as logged.
        resolution: side of the square pictures, a multiple of 16.
        text_tokens: length of the T5 sequence (512 as published).
        guidance: distilled guidance scale (2.5 as published); unused where the transformer has no guidance embedding.
        add_residual: return `source + decode(z_out) - decode(z_source)` instead of `decode(z_out)`: what the
            autoencoder cannot carry (pores, sharp hair) then stays exactly as it was in the photo.
        base_model: hub id or name of the base.
        licence: licence of the base.
        batch: pictures encoded, decoded or evaluated at once.
        lora_targets: module names that LoRA adapts; the published ones if not given.
    """

    def __init__(
        self,
        pipeline: FluxKontextPipeline,
        *,
        name: str,
        resolution: int,
        text_tokens: int,
        guidance: float,
        add_residual: bool,
        base_model: str,
        licence: str,
        batch: int,
        lora_targets: list[str] | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.name, self.resolution, self.base_model, self.licence = name, resolution, base_model, licence
        self.text_tokens, self.guidance, self.add_residual, self.batch = text_tokens, guidance, add_residual, batch
        self.lora_targets = lora_targets or LORA_TARGETS
        self.transformer = pipeline.transformer
        for part in (pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2, pipeline.transformer):
            part.requires_grad_(False).eval()
        pipeline.vae.to(memory_format=torch.channels_last)
        self.side = resolution // (pipeline.vae_scale_factor * 2)
        target = pipeline._prepare_latent_image_ids(1, self.side, self.side, self.device, torch.float32)
        reference = target.clone()
        reference[:, 0] = 1
        self.image_ids = torch.cat([target, reference])

    @property
    def device(self) -> torch.device:
        """Where the transformer lives."""
        return self.transformer.device

    def sigmas(self, num_steps: int) -> list[float]:
        """See `Backbone.sigmas`; the resolution-dependent shift of the pipeline's scheduler included."""
        scheduler = copy.deepcopy(self.pipeline.scheduler)
        names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        mu = calculate_shift(self.side**2, *(scheduler.config[name] for name in names))
        retrieve_timesteps(scheduler, num_steps, "cpu", sigmas=np.linspace(1.0, 1 / num_steps, num_steps), mu=mu)
        return scheduler.sigmas.tolist()

    @torch.no_grad()
    def encode(self, images: Images) -> Latents:
        """See `Backbone.encode`."""
        vae = self.pipeline.vae
        shift = vae.config.shift_factor or 0.0
        parts = []
        for part in images.split(self.batch):
            pixels = (part * 2 - 1).to(self.device, vae.dtype, memory_format=torch.channels_last)
            z = (vae.encode(pixels).latent_dist.mode() - shift) * vae.config.scaling_factor
            parts.append(self.pipeline._pack_latents(z, *z.shape).float().to(images.device))
        return torch.cat(parts)

    @torch.no_grad()
    def _pictures(self, x: Latents) -> Images:
        vae = self.pipeline.vae
        shift = vae.config.shift_factor or 0.0
        parts = []
        for part in x.split(self.batch):
            z = self.pipeline._unpack_latents(part, self.resolution, self.resolution, self.pipeline.vae_scale_factor)
            z = (z / vae.config.scaling_factor + shift).to(self.device, vae.dtype, memory_format=torch.channels_last)
            parts.append(vae.decode(z).sample.float().contiguous().to(x.device) / 2 + 0.5)
        return torch.cat(parts)

    @torch.no_grad()
    def condition(self, images: Images, prompt: str) -> Condition:
        """See `Backbone.condition`."""
        reference = self.encode(images)
        residual = images - self._pictures(reference) if self.add_residual else torch.zeros_like(images)
        words, pooled, _ = self.pipeline.encode_prompt(prompt, None, device=self.device, max_sequence_length=self.text_tokens)
        return Condition(reference, residual, words, pooled)

    def noise(self, count: int, generator: torch.Generator) -> Latents:
        """See `Backbone.noise`."""
        return torch.randn(count, self.side**2, self.transformer.config.in_channels, generator=generator)

    def velocity(self, x: Latents, sigma: float, condition: Condition) -> Latents:
        """See `Backbone.velocity`."""
        dtype = self.transformer.dtype
        count = len(x)
        guidance = torch.full((count,), self.guidance, device=self.device) if self.transformer.config.guidance_embeds else None
        out = self.transformer(
            hidden_states=torch.cat([x, condition.reference], dim=1).to(self.device, dtype),
            encoder_hidden_states=condition.prompt.expand(count, -1, -1),
            pooled_projections=condition.pooled.expand(count, -1),
            timestep=torch.full((count,), sigma, device=self.device, dtype=dtype),
            guidance=guidance,
            img_ids=self.image_ids,
            txt_ids=self.image_ids.new_zeros(condition.prompt.shape[1], 3),
            return_dict=False,
        )[0]
        return out[:, : x.shape[1]].float().to(x.device)

    @torch.no_grad()
    def decode(self, x: Latents, condition: Condition) -> Images:
        """See `Backbone.decode`."""
        return (self._pictures(x) + condition.residual).clamp(0, 1)

    def save_adapter(self, folder: str) -> None:
        """See `Backbone.save_adapter`."""
        layers = get_peft_model_state_dict(self.transformer)
        FluxKontextPipeline.save_lora_weights(folder, transformer_lora_layers=layers)

    def load_adapter(self, folder: str) -> None:
        """See `Backbone.load_adapter`.

        Raises:
            WeightsError: no LoRA there, or one of other modules or another rank; the keys are named.
        """
        path = Path(folder) / "pytorch_lora_weights.safetensors" if Path(folder).is_dir() else Path(folder)
        if not path.is_file():
            raise WeightsError(f"{path}: no LoRA there; give a folder with pytorch_lora_weights.safetensors")
        layers = {key.removeprefix("transformer."): value for key, value in load_file(path).items()}
        own = get_peft_model_state_dict(self.transformer)
        wrong = sorted(set(own) ^ set(layers)) or [key for key in own if own[key].shape != layers[key].shape]
        if wrong:
            raise WeightsError(f"{path}: {len(wrong)} tensors do not fit this backbone and --rank, first {wrong[0]!r}")
        set_peft_model_state_dict(self.transformer, layers)


def load_flux_kontext(model: str | None, resolution: int | None, device: str) -> KontextBackbone:
    """FLUX.1 Kontext [dev] from a hub id or a local folder, bf16, 512 px unless told otherwise.

    Raises:
        ConfigError: the resolution is not a multiple of 16.
        WeightsError: the weights are not there and cannot be had.
    """
    resolution = resolution or 512
    if resolution % 16:
        raise ConfigError(f"--resolution {resolution}: FLUX works on multiples of 16; try {resolution // 16 * 16}")
    name = model or "black-forest-labs/FLUX.1-Kontext-dev"
    try:
        pipeline = FluxKontextPipeline.from_pretrained(name, dtype=torch.bfloat16).to(device)
    except OSError as error:
        raise WeightsError(
            f"{name}: no FLUX.1 Kontext weights there; accept the licence on its model page and log in, or give --model a local folder"
        ) from error
    return KontextBackbone(
        pipeline,
        name="flux_kontext",
        resolution=resolution,
        text_tokens=512,
        guidance=2.5,
        add_residual=False,
        base_model=name,
        licence="flux-1-dev-non-commercial-license",
        batch=4,
    )


BACKBONE = load_flux_kontext
