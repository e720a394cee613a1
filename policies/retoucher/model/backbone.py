"""The contract between the alignment loop and a diffusion image editor: one file a backbone in `backbones/`.

A backbone file exports `BACKBONE`, a function `(model: str | None, resolution: int | None, device) -> Backbone`, with a keyword
argument for each option of `policies.retoucher.model.loading.LOADING` that it knows; `--backbone my_file.py:BACKBONE` loads a user's own by
the same road as the built-in ones.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, Self, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

Images = Float[Tensor, "n 3 h w"]
Latents = Float[Tensor, "n tokens channels"]


@dataclass(frozen=True)
class Condition:
    """What the policy is told about each photo, encoded once and shared by every step of every candidate."""

    reference: Latents  # the photos' latents, normalised and packed as the policy's own
    residual: Images  # what decoding the photo's own latent loses, `source - decode(reference)`; zero where it is not added back
    prompt: Float[Tensor, "rows words dim"]  # text embeddings, one row for all photos, or one a photo where the photo is part of the prompt
    pooled: Float[Tensor, "rows dim2"]  # pooled text embedding, rows as `prompt`; of width 0 where the model has none
    # text embeddings of the negative prompt, rows as `prompt`; None without classifier-free guidance
    negative: Float[Tensor, "rows words2 dim"] | None = None
    own_text: bool = False  # whether each photo has its own row of text embeddings

    def __len__(self) -> int:
        return len(self.reference)

    def each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """With each tensor changed, as moved."""
        return replace(self, **{name: change(value) for name, value in vars(self).items() if isinstance(value, Tensor)})

    def select(self, index: Int[Tensor, " k"]) -> Self:
        """The photos at `index`, which may repeat."""
        if self.own_text:
            return self.each(lambda part: part[index])
        return replace(self, reference=self.reference[index], residual=self.residual[index])


@runtime_checkable
class Backbone(Protocol):
    """A diffusion image editor as the alignment loop sees it. All that it returns lives on its device, and so does all that it is given
    but pictures to encode."""

    name: str  # as logged
    resolution: int  # side of the square pictures it works on, in pixels
    transformer: nn.Module  # the network that is aligned, with diffusers' `PeftAdapterMixin`; everything else is frozen
    lora_targets: list[str]  # module names (peft's suffix rule) that LoRA adapts
    base_model: str  # hub id or name of the base, written into the adapter's card
    licence: str  # licence of the base
    forwards: int  # evaluations of the transformer in one velocity, 2 with true classifier-free guidance

    def encoding_key(self) -> str:
        """What encodings depend on beside photo and prompt (weights of the encoders, their settings), as text; keys a cache."""
        ...

    def sigmas(self, num_steps: int) -> list[float]:
        """Noise levels from 1 down to 0, `num_steps + 1` of them, as the stock pipeline would use."""
        ...

    def encode(self, images: Images) -> Latents:
        """Latents of images in [0, 1], normalised and packed as the transformer takes them."""
        ...

    def condition(self, images: Images, prompt: str) -> Condition:
        """Encode photos (RGB, [0, 1]) and the prompt."""
        ...

    def noise(self, count: int, generator: torch.Generator) -> Latents:
        """Standard normal latents of `count` pictures; a generator on the CPU draws the same ones for every device."""
        ...

    def velocity(self, x: Latents, sigma: float, condition: Condition) -> Latents:
        """The velocity `eps - x0` at `x`, float32, guidance included; differentiable in the transformer's parameters."""
        ...

    def decode(self, x: Latents, condition: Condition) -> Images:
        """Pictures in [0, 1] of final latents, the photo's residual added back where the backbone does so."""
        ...


@torch.no_grad()
def sample_ode(backbone: Backbone, condition: Condition, noise: Latents, num_steps: int, batch: int | None = None) -> Images:
    """Retouch by the plain, anchor-free Euler ODE: the only sampler used at inference and for evaluation.

    Noise is the initial latents, one row a photo. It and the encoded photos may wait in main memory: pictures come back to where they are.
    `batch` photos are evaluated and decoded at once, all if it is not given; what a photo becomes does not depend on it.
    """
    if batch is not None and len(noise) > batch:
        parts = torch.arange(len(noise)).split(batch)
        return torch.cat([sample_ode(backbone, condition.select(rows), noise[rows], num_steps) for rows in parts])
    place = next((parameter.device for parameter in backbone.transformer.parameters()), noise.device)
    condition = condition.each(lambda part: part.to(place, non_blocking=True))
    x, sigmas = noise.to(place), backbone.sigmas(num_steps)
    for sigma, sigma_next in zip(sigmas[:-1], sigmas[1:], strict=True):
        x = x + (sigma_next - sigma) * backbone.velocity(x, sigma, condition)
    return backbone.decode(x, condition).to(noise.device)
