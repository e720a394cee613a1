"""A backbone of your own: copy this file and replace the network by your editor.

    .venv/bin/align-retoucher --backbone my_backbone.py:BACKBONE --device cpu
    .venv/bin/retouch-portrait photo.jpg out.jpg --backbone my_backbone.py:BACKBONE --device cpu

It runs as it stands: an untrained network of 190,000 weights that works on patches of pixels instead of latents.
"""

import torch
from diffusers.loaders import PeftAdapterMixin
from torch import nn

from policies.retoucher.model.backbone import Condition

PATCH = 8
CHANNELS = 3 * PATCH * PATCH


class Network(nn.Module, PeftAdapterMixin):
    """What LoRA adapts. diffusers' models have the adapter methods already; any other module gets them from PeftAdapterMixin."""

    def __init__(self):
        super().__init__()
        self.enter, self.leave = nn.Linear(2 * CHANNELS + 1, 320), nn.Linear(320, CHANNELS)
        self.norm = nn.LayerNorm(320)

    def forward(self, x, reference, sigma):
        level = torch.full_like(x[..., :1], sigma)
        return 0.1 * self.leave(torch.relu(self.norm(self.enter(torch.cat([x, reference, level], dim=-1)))))


class MyBackbone:
    name, base_model, licence = "mine", "my-name/my-model", "apache-2.0"
    lora_targets = ["enter", "leave"]  # names, or ends of names, of Linear modules in `transformer`
    forwards = 1  # evaluations of the transformer in one velocity; 2 with classifier-free guidance

    def __init__(self, resolution, device):
        self.resolution, self.device = resolution, device
        torch.manual_seed(0)
        self.transformer = Network().requires_grad_(False).eval().to(device)

    def encoding_key(self):
        """Text that changes when encodings change; names the files of the cache."""
        return f"{self.name} {self.resolution}"

    def sigmas(self, num_steps):
        """Noise levels: `num_steps + 1` numbers from 1 down to 0."""
        return torch.linspace(1, 0, num_steps + 1).tolist()

    def encode(self, images):
        """(n, 3, resolution, resolution) in [0, 1] -> latents (n, tokens, channels), row by row, of about unit variance."""
        return nn.functional.pixel_unshuffle(images.to(self.device) * 2 - 1, PATCH).flatten(2).mT

    def condition(self, images, prompt):
        """What the network is told about each photo. This one reads no prompt; `residual` is what `encode` and `decode` lose."""
        images = images.to(self.device)  # all that a backbone returns lives on its device
        nothing = torch.zeros(1, 1, 1, device=self.device)  # one row for all photos
        return Condition(reference=self.encode(images), residual=torch.zeros_like(images), prompt=nothing, pooled=nothing[0])

    def noise(self, count, generator):
        """Standard normal latents, from this generator and no other."""
        return torch.randn(count, (self.resolution // PATCH) ** 2, CHANNELS, generator=generator).to(self.device)

    def velocity(self, x, sigma, condition):
        """`eps - x0` at `x`, float32. Gradients must reach the transformer's LoRA."""
        return (x - condition.reference - self.transformer(x, condition.reference, sigma)) / sigma

    def decode(self, x, condition):
        """Latents -> pictures in [0, 1]."""
        side = self.resolution // PATCH
        pixels = nn.functional.pixel_shuffle(x.mT.unflatten(2, (side, side)), PATCH)
        return (pixels / 2 + 0.5 + condition.residual).clamp(0, 1)


def BACKBONE(model, resolution, device):
    """`--model` (None if not given), `--resolution` (None if not given) and `--device`."""
    return MyBackbone(resolution or 128, device)
