"""FLUX.1 Kontext (arXiv 2506.15742) as a policy: stock diffusers pipeline parts, latent packing and LoRA targets as published."""

from functools import partial
from typing import Any

import torch
from diffusers import FluxKontextPipeline
from torch import Tensor

from policies.retoucher.backbones.pipeline import ATTENTION, PipelineBackbone
from policies.retoucher.model.backbone import Condition, Images, Latents

# The published 342 modules of the real model: 12 in each of 19 double blocks, 3 in each of 38 single ones (BeautyGRPO's released LoRA).
LORA_TARGETS = [*(f"attn.{name}" for name in ATTENTION), "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"]


class KontextBackbone(PipelineBackbone):
    """Wraps a `FluxKontextPipeline`. The T5 sequence has `text_tokens` (512 as published); `guidance` is the distilled scale (2.5 as
    published), unused where the transformer has no guidance embedding. LoRA adapts the published modules if no others are named."""

    text_parts = ("text_encoder", "text_encoder_2")

    def __init__(
        self, pipeline: FluxKontextPipeline, *, text_tokens: int, guidance: float, lora_targets: list[str] | None = None, **facts: Any
    ) -> None:
        super().__init__(pipeline, lora_targets=lora_targets or LORA_TARGETS, **facts)
        self.text_tokens, self.guidance = text_tokens, guidance
        pipeline.vae.to(memory_format=torch.channels_last)
        target = pipeline._prepare_latent_image_ids(1, self.side, self.side, self.device, torch.float32)
        reference = target.clone()
        reference[:, 0] = 1
        self.image_ids = torch.cat([target, reference])

    def _settings(self) -> dict[str, object]:
        return {"text_tokens": self.text_tokens}

    def _encode(self, pixels: Tensor) -> Tensor:
        vae = self.pipeline.vae
        z = vae.encode(pixels.to(memory_format=torch.channels_last)).latent_dist.mode()
        z = (z - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor
        return self.pipeline._pack_latents(z, *z.shape)

    def _decode(self, x: Tensor) -> Tensor:
        vae = self.pipeline.vae
        z = self.pipeline._unpack_latents(x, self.resolution, self.resolution, self.pipeline.vae_scale_factor)
        z = z / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
        return vae.decode(z.to(vae.dtype, memory_format=torch.channels_last)).sample

    def _text(self, images: Images, prompt: str) -> dict[str, Any]:
        words, pooled, _ = self.pipeline.encode_prompt(prompt, None, device=self.device, max_sequence_length=self.text_tokens)
        return {"prompt": words, "pooled": pooled}

    def velocity(self, x: Latents, sigma: float, condition: Condition) -> Latents:
        dtype = self.transformer.dtype
        count, self.image_ids = len(x), self.image_ids.to(self.device)  # moved once
        guidance = torch.full((count,), self.guidance, device=self.device) if self.transformer.config.guidance_embeds else None
        out = self.transformer(
            hidden_states=torch.cat([x, condition.reference], dim=1).to(dtype),
            encoder_hidden_states=condition.prompt.expand(count, -1, -1),
            pooled_projections=condition.pooled.expand(count, -1),
            timestep=torch.full((count,), sigma, device=self.device, dtype=dtype),
            guidance=guidance,
            img_ids=self.image_ids,
            txt_ids=torch.zeros(condition.prompt.shape[1], 3, device=self.device),
            return_dict=False,
        )[0]
        return out[:, : x.shape[1]].float()


KONTEXT = {"kind": FluxKontextPipeline, "hub_id": "black-forest-labs/FLUX.1-Kontext-dev", "licence": "flux-1-dev-non-commercial-license"}
BACKBONE = partial(KontextBackbone.load, name="flux_kontext", text_tokens=512, guidance=2.5, **KONTEXT)
