"""FLUX.2 [klein] (Black Forest Labs, 2026) as a policy: the photo's latents stand behind the picture's own, guidance is classifier-free.

The 4B models are Apache-2.0, the 9B ones are not for commercial use (github.com/black-forest-labs/flux2, README, commit f72e0dc). Its
authors name the undistilled base models for training; a step-distilled one works without guidance.
"""

from functools import partial
from typing import Any

import torch
from diffusers import Flux2KleinPipeline
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from torch import Tensor

from policies.retoucher.backbones.pipeline import ATTENTION, PipelineBackbone
from policies.retoucher.model.backbone import Condition, Images, Latents

# Both streams of each double block: 12 modules. Each single block adds the two of `SINGLE`: 100 of the 4B models.
LORA_TARGETS = [*(f"attn.{name}" for name in ATTENTION)]
LORA_TARGETS += ["ff.linear_in", "ff.linear_out", "ff_context.linear_in", "ff_context.linear_out", "attn.to_qkv_mlp_proj"]
SINGLE = "single_transformer_blocks.{}.attn.to_out"  # named whole: a double block's `attn.to_out` is a list of modules
TEXT_LAYERS = (9, 18, 27)  # Layers of the text encoder that are read, as published
HEADS_OF_4B = 24  # The 9B models have 32


class KleinBackbone(PipelineBackbone):
    """Wraps a `Flux2KleinPipeline`; the defaults are as published. Guidance is classifier-free: 1 turns it off and halves the cost, and it
    is off for a step-distilled model. Text is padded to `text_tokens`; `text_layers` of its encoder are read."""

    text_parts = ("text_encoder",)

    def __init__(
        self,
        pipeline: Any,
        *,
        text_tokens: int = 512,
        guidance: float = 4.0,
        negative_prompt: str = "",
        text_layers: tuple[int, ...] = TEXT_LAYERS,
        **facts: Any,
    ) -> None:
        singles = [SINGLE.format(index) for index in range(len(pipeline.transformer.single_transformer_blocks))]
        super().__init__(pipeline, lora_targets=[*LORA_TARGETS, *singles], **facts)
        if pipeline.transformer.config.num_attention_heads > HEADS_OF_4B:
            self.licence = "flux-non-commercial-license"
        self.text_tokens, self.guidance, self.text_layers = text_tokens, guidance, text_layers
        self.negative_prompt = negative_prompt
        self.forwards = 2 if guidance > 1 and not pipeline.config.is_distilled else 1
        grid = torch.empty(1, 1, self.side, self.side)
        self.image_ids = torch.cat([pipeline._prepare_latent_ids(grid)[0], pipeline._prepare_image_ids([grid])[0]])
        self.text_ids = pipeline._prepare_text_ids(torch.empty(1, text_tokens, 1))[0]

    def _settings(self) -> dict[str, object]:
        negative = self.negative_prompt if self.forwards == 2 else None
        return {"text_tokens": self.text_tokens, "text_layers": self.text_layers, "negative": negative}

    def _mu(self, num_steps: int) -> float:
        return compute_empirical_mu(self.side**2, num_steps)

    def _scale(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents' channels, as the autoencoder's batch normalisation has them."""
        norm = self.pipeline.vae.bn
        std = torch.sqrt(norm.running_var.view(1, -1, 1, 1) + self.pipeline.vae.config.batch_norm_eps)
        return norm.running_mean.view(1, -1, 1, 1).to(z), std.to(z)

    def _encode(self, pixels: Tensor) -> Tensor:
        z = self.pipeline._patchify_latents(self.pipeline.vae.encode(pixels).latent_dist.mode())
        mean, std = self._scale(z)
        return self.pipeline._pack_latents((z - mean) / std)

    def _decode(self, x: Tensor) -> Tensor:
        z = x.mT.unflatten(2, (self.side, self.side))
        mean, std = self._scale(z)
        return self.pipeline.vae.decode(self.pipeline._unpatchify_latents(z * std + mean).to(self.pipeline.vae.dtype)).sample

    def _text(self, images: Images, prompt: str) -> dict[str, Any]:
        how = {"max_sequence_length": self.text_tokens, "text_encoder_out_layers": self.text_layers, "device": self.device}
        words = self.pipeline.encode_prompt(prompt, **how)[0]
        negative = self.pipeline.encode_prompt(self.negative_prompt, **how)[0] if self.forwards == 2 else None
        return {"prompt": words, "pooled": words.new_zeros(1, 0), "negative": negative}

    def velocity(self, x: Latents, sigma: float, condition: Condition) -> Latents:
        return self._guided(x, sigma, condition)[0]

    def _evaluate(self, x: Latents, sigma: float, reference: Latents, words: Tensor) -> Tensor:
        dtype = self.transformer.dtype
        self.image_ids, self.text_ids = self.image_ids.to(self.device), self.text_ids.to(self.device)  # moved once
        out = self.transformer(
            hidden_states=torch.cat([x, reference], dim=1).to(dtype),
            encoder_hidden_states=words.to(dtype).expand(len(x), -1, -1),
            timestep=torch.full((len(x),), sigma, device=self.device, dtype=dtype),
            guidance=None,
            img_ids=self.image_ids,
            txt_ids=self.text_ids,
            return_dict=False,
        )[0]
        return out[:, : x.shape[1]].float()


KLEIN = {"kind": Flux2KleinPipeline, "hub_id": "black-forest-labs/FLUX.2-klein-base-4B", "licence": "apache-2.0"}
BACKBONE = partial(KleinBackbone.load, name="flux2_klein", guidance=4.0, negative_prompt="", **KLEIN)
