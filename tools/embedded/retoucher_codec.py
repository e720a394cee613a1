"""Stage 1 of the embedded retoucher: an autoencoder whose latents make edits easy.

Beside reconstruction it learns three things that a retoucher needs:

- **differences**: decode(b) - decode(a) must equal b - a, since the retoucher adds just that difference to the photo;
- **visible blemishes**: a throw-away head, one small MLP per latent pixel, must turn the photo's latent into each label's latent,
  so that the encoder's convolutions find the blemishes and the flow model need not;
- **tolerance**: latents are jittered before decoding, so that a flow model's small errors stay small in the picture.

Afterwards the latents are whitened exactly (mean 0, covariance I over latent pixels) by folding an affine map into the 1x1
convolutions around them: small edits then have a fair share of the flow loss.
"""

import math
import time
from collections.abc import Callable

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor, nn

from portraitkit.processor import bf16_autocast
from tools.embedded.case_pool import CasePool, LabelledBatch

JITTER = 0.08


class RetouchHead(nn.Module):
    """Predicts each label kind's latent from the photo's latent, one latent pixel at a time. Thrown away after stage 1."""

    def __init__(self, channels: int, kinds: int, width: int = 128) -> None:
        super().__init__()
        self.kinds = kinds
        self.net = nn.Sequential(
            nn.Conv2d(channels + kinds + 1, width, 1),
            nn.SiLU(),
            nn.Conv2d(width, width, 1),
            nn.SiLU(),
            nn.Conv2d(width, channels, 1),
        )

    def forward(self, z: Float[Tensor, "b c h w"], kind: Tensor, strength: Tensor) -> Float[Tensor, "b c h w"]:
        hot = nn.functional.one_hot(kind, self.kinds).to(z.dtype)
        ask = torch.cat([hot, strength[:, None]], 1)[:, :, None, None].expand(-1, -1, *z.shape[-2:])
        return z + self.net(torch.cat([z, ask], 1))


def latents_of(vae: AutoencoderKL, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c hh ww"]:
    """The mean latent of images in [0, 1]."""
    return vae.encode(images * 2 - 1).latent_dist.mode()


def pictures_of(vae: AutoencoderKL, z: Float[Tensor, "b c hh ww"]) -> Float[Tensor, "b 3 h w"]:
    """Decoded images; nominally in [0, 1], not clamped."""
    return vae.decode(z).sample / 2 + 0.5


def train_codec(
    vae: AutoencoderKL,
    pool: CasePool,
    *,
    steps: int,
    batch: int,
    crop: int,
    learning_rate: float,
    blemish_weight: float,
    seed: int,
    head: RetouchHead,
    report: Callable[[int, dict[str, float]], None],
) -> None:
    """Train `vae` and `head` in place on random crops; the learning rate falls along a cosine to a fiftieth.

    Squared errors weigh 1 + `blemish_weight` times the blemish's opacity.
    """
    generator = torch.Generator().manual_seed(seed)
    vae.train()
    parameters = [*vae.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-4)
    started = time.monotonic()
    for step in range(steps):
        share = (step + 1) / steps
        lr = learning_rate * min(1.0, (step + 1) / 50) * (0.5 * (1 + math.cos(math.pi * share)) * 0.98 + 0.02)
        for group in optimizer.param_groups:
            group["lr"] = lr
        case = pool.batch(batch, generator, crop=crop)
        with bf16_autocast():
            z = latents_of(vae, torch.cat([case.source, case.label]))
            z_source, z_label = z.chunk(2)
            asked = head(z_source, case.kind, case.strength)
            spread = z.detach().std(dim=(0, 2, 3), keepdim=True)
            latents = torch.cat([z_source, z_label, asked])
            latents = latents + JITTER * spread * torch.randn(latents.shape, generator=generator)
            decoded = pictures_of(vae, latents)
        source, label, edited = decoded.float().chunk(3)
        weight = 1 + blemish_weight * case.opacity
        truth = case.label - case.source
        losses = {
            "reconstruct": 0.5 * ((source - case.source).square().mean() + (label - case.label).square().mean()),
            "difference": ((label - source - truth).square() * weight).mean(),
            "head": ((edited - source - truth).square() * weight).mean(),
            "size": 1e-5 * z.float().square().mean(),
        }
        loss = losses["reconstruct"] + 4 * losses["difference"] + 4 * losses["head"] + losses["size"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 100 == 0 or step == steps - 1:
            report(step, {name: value.item() for name, value in losses.items()} | {"seconds": time.monotonic() - started})
    vae.eval()
    head.eval()


@torch.no_grad()
def codec_gate(vae: AutoencoderKL, head: RetouchHead, pool: CasePool) -> dict[str, float]:
    """Blemish error left and PSNR when the clean portrait itself is encoded (oracle), and when the head guesses its latent."""
    case = pool.take(torch.arange(len(pool.planes)), torch.Generator().manual_seed(1), kind="good")
    z = latents_of(vae, case.source)
    base = pictures_of(vae, z)
    oracle = case.source + pictures_of(vae, latents_of(vae, case.label)) - base
    guess = case.source + pictures_of(vae, head(z, case.kind, case.strength)) - base
    figures = {"psnr_input": psnr(case.source, case.clean)}
    for name, picture in (("oracle", oracle), ("head", guess)):
        figures[f"residual_{name}"] = residual_inside(picture, case)
        figures[f"psnr_{name}"] = psnr(picture, case.clean)
    return figures


def residual_inside(picture: Float[Tensor, "b 3 h w"], case: LabelledBatch) -> float:
    """Share of the squared error inside the blemishes that is left."""
    mask = case.opacity > 0.05
    return float(((picture - case.clean).square() * mask).sum() / ((case.source - case.clean).square() * mask).sum())


def psnr(picture: Float[Tensor, "b 3 h w"], truth: Float[Tensor, "b 3 h w"]) -> float:
    """Mean peak signal-to-noise ratio in dB."""
    return float(-10 * (picture - truth).square().mean((1, 2, 3)).log10().mean())


@torch.no_grad()
def whiten_latents(vae: AutoencoderKL, images: Float[Tensor, "n 3 h w"]) -> None:
    """Make the latents of `images` zero-mean with unit covariance, exactly, by rewriting the 1x1 convolutions in place.

    With z = W (z_old - m), `quant_conv` takes W and -W m, and `post_quant_conv` takes the inverse, so that decoding is unchanged.
    The symmetric (ZCA) root is used: it stays closest to the learned axes.
    """
    z = torch.cat([latents_of(vae, part) for part in images.split(32)])
    flat = z.permute(1, 0, 2, 3).flatten(1).double()
    mean = flat.mean(1)
    values, vectors = torch.linalg.eigh(torch.cov(flat))
    root = vectors @ torch.diag(values.clamp_min(1e-8).rsqrt()) @ vectors.T
    inverse = torch.linalg.inv(root)
    encode, decode = vae.quant_conv, vae.post_quant_conv
    channels = len(mean)
    kernel, bias = encode.weight.double()[:channels, :, 0, 0], encode.bias.double()[:channels]
    encode.weight[:channels] = (root @ kernel)[..., None, None].float()
    encode.bias[:channels] = (root @ (bias - mean)).float()
    encode.weight[channels:].zero_()
    encode.bias[channels:].fill_(-10.0)
    kernel = decode.weight.double()[:, :, 0, 0]
    decode.bias += (kernel @ mean).float()
    decode.weight.copy_((kernel @ inverse)[..., None, None].float())
