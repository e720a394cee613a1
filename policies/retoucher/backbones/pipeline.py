"""What backbones made of a stock diffusers pipeline share: devices, batches, noise levels, residual and LoRA files."""

import copy
import hashlib
import json
from typing import Any, ClassVar, Self

import numpy as np
import torch
from diffusers.pipelines.flux.pipeline_flux_kontext import calculate_shift, retrieve_timesteps
from torch import Tensor, nn

from policies.retoucher.model.backbone import Condition, Images, Latents
from policies.retoucher.model.loading import check_multiple, load_pipeline

SHIFT = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
"""The scheduler's settings that make the shift depend on the number of tokens, with the pipelines' own defaults."""
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
"""Linear layers of the attention of a block with two streams, the picture's and the text's."""


class PipelineBackbone:
    """Wraps a stock pipeline; a subclass says how to encode, decode and evaluate. See `policies.retoucher.model.backbone.Backbone`.

    The transformer is aligned, the rest frozen. What it returns lives on the transformer's device, wherever the pictures that it is given
    are; `batch` of them are encoded, decoded or evaluated at once. With `add_residual` it returns `source + decode(z_out) -
    decode(z_source)` instead of `decode(z_out)`: what the autoencoder cannot carry (pores, sharp hair) then stays exactly as it was in the
    photo. With `offload_text_encoder`, text encoders are on the device only while they encode.
    """

    text_parts: ClassVar[tuple[str, ...]]  # Names of the pipeline's text encoders
    forwards = 1
    guidance = 1.0

    def __init__(
        self,
        pipeline: Any,
        *,
        name: str,
        resolution: int,
        base_model: str,
        licence: str,
        batch: int,
        lora_targets: list[str],
        add_residual: bool = False,
        offload_text_encoder: bool = False,
    ) -> None:
        self.pipeline = pipeline
        self.name, self.resolution, self.base_model, self.licence = name, resolution, base_model, licence
        self.batch, self.lora_targets, self.add_residual = batch, lora_targets, add_residual
        self.offload_text_encoder = offload_text_encoder
        self.transformer: Any = pipeline.transformer
        self.text_encoders: list[nn.Module] = [getattr(pipeline, part) for part in self.text_parts]
        for part in (pipeline.vae, pipeline.transformer, *self.text_encoders):
            part.requires_grad_(False).eval()
        self.side = resolution // (pipeline.vae_scale_factor * 2)

    @classmethod
    def load(
        cls,
        model: str | None,
        resolution: int | None,
        device: str,
        *,
        kind: Any,
        hub_id: str,
        quantize: str = "none",
        offload_text_encoder: bool = False,
        vae_tiling: bool = False,
        **facts: Any,
    ) -> Self:
        """A model for diffusers' pipeline `kind`: the published one, `hub_id`, if none is named, or one in a local folder; bf16, 512 px
        unless told otherwise. What a backbone's file binds of `facts`, which are the class's own arguments, its command line may change."""
        side = check_multiple(resolution or 512, 16)
        resident = ("transformer", "vae", *(() if offload_text_encoder else cls.text_parts))
        pipeline = load_pipeline(kind, model or hub_id, device, quantize=quantize, resident=resident, vae_tiling=vae_tiling)
        return cls(pipeline, resolution=side, base_model=model or hub_id, batch=4, offload_text_encoder=offload_text_encoder, **facts)

    # ---- what a subclass adds

    def _encode(self, pixels: Tensor) -> Tensor:
        """Packed, normalised latents of pixels in [-1, 1] on the device, in the autoencoder's dtype."""
        raise NotImplementedError

    def _decode(self, x: Tensor) -> Tensor:
        """Pixels in [-1, 1] of packed latents on the device."""
        raise NotImplementedError

    def _text(self, images: Images, prompt: str) -> dict[str, Any]:
        """The fields of a `Condition` that come from text encoders, on the device."""
        raise NotImplementedError

    def _settings(self) -> dict[str, object]:
        """What else encodings depend on."""
        return {}

    def _evaluate(self, x: Tensor, sigma: float, reference: Tensor, words: Tensor) -> Tensor:
        """The velocity by one text, where guidance is classifier-free."""
        raise NotImplementedError

    # ---- what all share

    def _guided(self, x: Latents, sigma: float, condition: Condition) -> tuple[Latents, Latents]:
        """The velocity with and without classifier-free guidance; without a negative prompt, both are one."""
        v = self._evaluate(x, sigma, condition.reference, condition.prompt)
        if condition.negative is None:
            return v, v
        negative = self._evaluate(x, sigma, condition.reference, condition.negative)
        return negative + self.guidance * (v - negative), v

    @property
    def device(self) -> torch.device:
        """Where the transformer lives; its own `device` walks through all modules first."""
        return next(self.transformer.parameters()).device

    def divide(self, device: str) -> None:
        """Divide the transformer among the processes, the other networks go to the device: see `policies.retoucher.model.training`."""
        from policies.retoucher.model.training import divide_weights  # FSDP is for those who ask for it

        divide_weights(self.transformer, device)
        for part in (self.pipeline.vae, *([] if self.offload_text_encoder else self.text_encoders)):
            part.to(device)

    def encoding_key(self) -> str:
        """See `Backbone.encoding_key`; the weights count by a sample of each tensor, so that no 9 GB are read."""
        settings = {"name": self.name, "resolution": self.resolution, "residual": self.add_residual, **self._settings()}
        return f"{json.dumps(settings, sort_keys=True)} {fingerprint([self.pipeline.vae, *self.text_encoders])}"

    def sigmas(self, num_steps: int) -> list[float]:
        """See `Backbone.sigmas`; the resolution-dependent shift of the pipeline's scheduler included."""
        if num_steps == 1:  # from pure noise at once: diffusers would stretch it to the shift's last level, 0 by 0
            return [1.0, 0.0]
        scheduler = copy.deepcopy(self.pipeline.scheduler)
        sigmas = np.linspace(1.0, 1 / num_steps, num_steps)
        retrieve_timesteps(scheduler, num_steps, "cpu", sigmas=sigmas, mu=self._mu(num_steps))  # numbers for Python
        return scheduler.sigmas.tolist()

    def _mu(self, num_steps: int) -> float:
        """The pipeline's own shift of the noise levels."""
        return calculate_shift(self.side**2, *(self.pipeline.scheduler.config.get(name, default) for name, default in SHIFT.items()))

    @torch.no_grad()
    def encode(self, images: Images) -> Latents:
        parts = [self._encode((part * 2 - 1).to(self.device, self.pipeline.vae.dtype)) for part in images.split(self.batch)]
        return torch.cat([part.float() for part in parts])

    @torch.no_grad()
    def _pictures(self, x: Latents) -> Images:
        return torch.cat([self._decode(part).float().contiguous() / 2 + 0.5 for part in x.split(self.batch)])

    @torch.no_grad()
    def condition(self, images: Images, prompt: str) -> Condition:
        reference = self.encode(images)
        images = images.to(self.device)
        residual = images - self._pictures(reference) if self.add_residual else torch.zeros_like(images)
        moved = self.text_encoders if self.offload_text_encoder else []
        for part in moved:
            part.to(self.device)
        try:
            return Condition(reference, residual, **self._text(images, prompt))
        finally:
            for part in moved:
                part.to("cpu")  # which is what was asked for: room on the device

    def noise(self, count: int, generator: torch.Generator) -> Latents:
        return torch.randn(count, self.side**2, self.transformer.config.in_channels, generator=generator).to(self.device)

    @torch.no_grad()
    def decode(self, x: Latents, condition: Condition) -> Images:
        return (self._pictures(x) + condition.residual).clamp(0, 1)


def fingerprint(modules: list[nn.Module]) -> str:
    """A hash of networks: class, every tensor's name, shape and dtype, and 16 of its values."""
    digest = hashlib.sha256()
    for module in modules:
        digest.update(type(module).__name__.encode())
        for name, value in module.state_dict().items():
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            flat = value.detach().reshape(-1)
            digest.update(flat[:: max(1, len(flat) // 16)][:16].float().cpu().numpy().tobytes())  # 16 numbers, to be hashed
    return digest.hexdigest()
