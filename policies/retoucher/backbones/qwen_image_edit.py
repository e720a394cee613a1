"""Qwen-Image-Edit (arXiv 2508.02324) as a policy: the photo is part of the prompt, and guidance is true classifier-free guidance."""

from functools import partial
from typing import Any

import torch
from diffusers import QwenImageEditPipeline
from torch import Tensor

from policies.retoucher.backbones.pipeline import ATTENTION, PipelineBackbone
from policies.retoucher.model.backbone import Condition, Images, Latents
from portraitkit.pictures.images import to_pil

# Both streams of each of the 60 blocks: 720 modules. The last block's text output is not used: 4 of its modules never learn.
LORA_TARGETS = [*(f"attn.{name}" for name in ATTENTION)]
LORA_TARGETS += ["img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2"]


class QwenEditBackbone(PipelineBackbone):
    """Wraps a `QwenImageEditPipeline` or a `QwenImageEditPlusPipeline`.

    All photos have one size and one prompt, so all rows of text embeddings have one length and no mask is needed. Guidance is true
    classifier-free guidance, 4 as published; 1 turns it off and halves the cost. The text encoder sees the photo `prompt_side` pixels wide,
    as wide as it is if not given.
    """

    text_parts = ("text_encoder",)

    def __init__(
        self, pipeline: Any, *, guidance: float = 4.0, negative_prompt: str = " ", prompt_side: int | None = None, **facts: Any
    ) -> None:
        super().__init__(pipeline, lora_targets=LORA_TARGETS, **facts)
        self.guidance, self.negative_prompt = guidance, negative_prompt
        self.prompt_side = prompt_side or self.resolution
        self.forwards = 2 if guidance > 1 else 1
        config = pipeline.vae.config
        self.mean = torch.tensor(config.latents_mean).view(1, -1, 1, 1, 1)
        self.std = torch.tensor(config.latents_std).view(1, -1, 1, 1, 1)

    def _settings(self) -> dict[str, object]:
        return {"negative": self.negative_prompt if self.forwards == 2 else None, "prompt_side": self.prompt_side}

    def _encode(self, pixels: Tensor) -> Tensor:
        z = self.pipeline.vae.encode(pixels.unsqueeze(2)).latent_dist.mode()
        z = (z - self.mean.to(z)) / self.std.to(z)
        return self.pipeline._pack_latents(z, len(z), z.shape[1], z.shape[3], z.shape[4])

    def _decode(self, x: Tensor) -> Tensor:
        vae = self.pipeline.vae
        z = self.pipeline._unpack_latents(x, self.resolution, self.resolution, self.pipeline.vae_scale_factor)
        z = z * self.std.to(z) + self.mean.to(z)
        return vae.decode(z.to(vae.dtype)).sample[:, :, 0]

    def _text(self, images: Images, prompt: str) -> dict[str, Any]:
        words = self._words(images, prompt)
        negative = self._words(images, self.negative_prompt) if self.forwards == 2 else None
        return {"prompt": words, "pooled": words.new_zeros(len(words), 0), "negative": negative, "own_text": True}

    def _words(self, images: Images, prompt: str) -> Tensor:
        """One row a photo, each photo encoded on its own, as the stock pipeline does."""
        rows = []
        for image in images:
            shown = self.pipeline.image_processor.resize(to_pil(image), self.prompt_side, self.prompt_side)
            rows.append(self.pipeline.encode_prompt(prompt=prompt, image=[shown], device=self.device)[0])
        return torch.cat(rows)

    def velocity(self, x: Latents, sigma: float, condition: Condition) -> Latents:
        """See `Backbone.velocity`; the guided velocity is scaled to the unguided one's length token by token, as in the pipeline."""
        guided, v = self._guided(x, sigma, condition)
        return v if guided is v else guided * (v.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))

    def _evaluate(self, x: Latents, sigma: float, reference: Latents, words: Tensor) -> Tensor:
        dtype = self.transformer.dtype
        grid = (1, self.side, self.side)
        out = self.transformer(
            hidden_states=torch.cat([x, reference], dim=1).to(dtype),
            timestep=torch.full((len(x),), sigma, device=self.device, dtype=dtype),
            encoder_hidden_states=words.to(dtype),
            img_shapes=[[grid, grid]] * len(x),
            return_dict=False,
        )[0]
        return out[:, : x.shape[1]].float()


load_qwen = partial(QwenEditBackbone.load, licence="apache-2.0", guidance=4.0, negative_prompt=" ")
BACKBONE = partial(load_qwen, kind=QwenImageEditPipeline, name="qwen_image_edit", hub_id="Qwen/Qwen-Image-Edit")
