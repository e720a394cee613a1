"""Stage 2 of the embedded retoucher: flow matching from noise to a label's latent, given the photo's latent as reference tokens."""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FluxKontextPipeline, FluxTransformer2DModel
from jaxtyping import Float
from torch import Tensor, nn

from policies.retoucher.backbones import tiny
from policies.retoucher.model.backbone import sample_ode
from portraitkit.processor import bf16_autocast
from tools.embedded.case_pool import CasePool
from tools.embedded.retoucher_codec import latents_of, pictures_of, psnr, residual_inside

REFERENCE_SCALE = 2.0
"""Brings the way to the clean portrait nearer to the size of a velocity."""


@dataclass(frozen=True)
class LatentPool:
    """Latents of many photos, of their clean portraits and of several labels each, packed as Kontext's tokens; and how strongly each
    token is blemished."""

    source: Float[Tensor, "n tokens channels"]
    clean: Float[Tensor, "n tokens channels"]
    labels: Float[Tensor, "n labels tokens channels"]
    blemished: Float[Tensor, "n tokens"]


def pack(z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b tokens channels"]:
    """Kontext's packing: 2 x 2 latent pixels make one token of 4 c channels, channel-major."""
    return FluxKontextPipeline._pack_latents(z, *z.shape)


def unpack(tokens: Float[Tensor, "b tokens channels"], side: int) -> Float[Tensor, "b c h w"]:
    """Inverse of `pack` for a square latent of `side` latent pixels."""
    b, _, channels = tokens.shape
    z = tokens.view(b, side // 2, side // 2, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return z.reshape(b, channels // 4, side, side)


@torch.no_grad()
def encode_pool(vae: AutoencoderKL, pool: CasePool, *, labels: int, seed: int, kind: str | None = None) -> LatentPool:
    """Encode every case of the pool once, with `labels` random labels each (all of one `kind` where given)."""
    generator = torch.Generator().manual_seed(seed)
    sources, cleans, targets, masks = [], [], [], []
    for start in range(0, len(pool.planes), 32):
        index = torch.arange(start, min(start + 32, len(pool.planes)))
        batches = [pool.take(index, generator, kind=kind) for _ in range(labels)]
        pictures = torch.cat([batches[0].source, batches[0].clean, *(batch.label for batch in batches)])
        z = latents_of(vae, pictures.contiguous(memory_format=torch.channels_last))
        z = pack(z).unflatten(0, (labels + 2, len(index)))
        sources.append(z[0].half())
        cleans.append(z[1].half())
        targets.append(z[2:].transpose(0, 1).half())
        masks.append(F.adaptive_max_pool2d(batches[0].opacity, int(math.isqrt(z.shape[2]))).flatten(1))
    return LatentPool(*(torch.cat(parts) for parts in (sources, cleans, targets, masks)))


@torch.no_grad()
def pixel_metric(vae: AutoencoderKL, z: Float[Tensor, "n c h w"], *, seed: int = 0, size: float = 0.05) -> Float[Tensor, "c c"]:
    """How much a small change of one latent pixel shows in the picture: E[J^T J] of the decoder, scaled to a mean diagonal of 1.

    Estimated by finite differences with random signs on all latent pixels of one channel at a time, which decorrelates neighbours.
    """
    generator = torch.Generator().manual_seed(seed)
    base = pictures_of(vae, z)
    changes = []
    signs = torch.where(torch.rand(z.shape[0], 1, *z.shape[2:], generator=generator) < 0.5, -1.0, 1.0)
    for channel in range(z.shape[1]):
        step = torch.zeros_like(z)
        step[:, channel] = size * signs[:, 0]
        changes.append(((pictures_of(vae, z + step) - base) / size).flatten())
    jacobian = torch.stack(changes)
    metric = jacobian @ jacobian.T
    return metric / metric.diagonal().mean()


def predict(
    transformer: FluxTransformer2DModel,
    x: Float[Tensor, "b tokens channels"],
    source: Float[Tensor, "b tokens channels"],
    t: Float[Tensor, " b"],
    text: tuple[Tensor, Tensor],
    ids: tuple[Tensor, Tensor],
) -> Float[Tensor, "b both channels"]:
    """The model's output at time t in (0, 1]: the velocity eps - x0 at the target's tokens, and behind it what Kontext's pipeline
    throws away, the output at the reference tokens."""
    prompt, pooled = text
    return transformer(
        hidden_states=torch.cat([x, source], dim=1),
        encoder_hidden_states=prompt.expand(len(x), -1, -1),
        pooled_projections=pooled.expand(len(x), -1),
        timestep=t,
        img_ids=ids[0],
        txt_ids=ids[1],
        return_dict=False,
    )[0]


def flow_gate(pipeline: FluxKontextPipeline, model: nn.Module, pool: CasePool, *, count: int = 32) -> dict[str, float]:
    """Blemish error left by the model's ODE (8 steps) and by one step, on validation photos, beside the untouched input's PSNR."""
    parts = {name: getattr(pipeline, name) for name in ("scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")}
    backbone = tiny.wrap(FluxKontextPipeline(transformer=model, **parts))
    case = pool.take(torch.arange(count), torch.Generator().manual_seed(1), kind="good")
    condition = backbone.condition(case.source, tiny.PROMPT)
    noise = backbone.noise(count, torch.Generator().manual_seed(3))
    figures = {"psnr_input": psnr(case.source, case.clean)}
    for steps in (1, 8):
        picture = sample_ode(backbone, condition, noise, steps)
        figures |= {f"residual_{steps}": residual_inside(picture, case), f"psnr_{steps}": psnr(picture, case.clean)}
    return figures


def position_ids(side: int, text_tokens: int) -> tuple[Tensor, Tensor]:
    """Kontext's ids for a square picture of `side` tokens: axis 0 is 0 for the target and 1 for the reference."""
    target = FluxKontextPipeline._prepare_latent_image_ids(1, side, side, torch.device("cpu"), torch.float32)
    reference = target.clone()
    reference[:, 0] = 1
    return torch.cat([target, reference]), torch.zeros(text_tokens, 3)


def train_flow(
    transformer: FluxTransformer2DModel,
    pool: LatentPool,
    text: tuple[Tensor, Tensor],
    metric: Float[Tensor, "c c"],
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    cooldown: float,
    seed: int,
    reference_weight: float,
    x0_loss: bool,
    seen_weight: float = 2.0,
    blemish_weight: float = 4.0,
    ema_decay: float = 0.999,
    report: Callable[[int, dict[str, float], FluxTransformer2DModel], None],
    every: int = 500,
) -> FluxTransformer2DModel:
    """Train and return the moving average of the weights.

    The loss is the squared velocity error, plus `seen_weight` times the same error as the decoder shows it (`pixel_metric`), more by
    `blemish_weight` on blemished tokens. All weights depend on the condition alone, so the optimum stays the conditional mean.
    `x0_loss` multiplies the velocity error by 2 t, which makes it the error of the picture that is predicted: without, nearly all of the
    loss comes from times that a sampler of a few steps never visits.
    With `reference_weight` the same loss asks the output at the reference tokens, which sampling ignores, for the way to the clean
    portrait: that says without noise where blemishes are, and target tokens can attend there.
    The learning rate is constant, then falls to zero over the last `cooldown` share of the steps.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = position_ids(math.isqrt(pool.source.shape[1]), text[0].shape[1])
    average = copy.deepcopy(transformer).requires_grad_(False)
    optimizer = torch.optim.AdamW(transformer.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=1e-3)
    root = torch.linalg.cholesky(metric + 1e-4 * torch.eye(len(metric)))
    running: list[Tensor] = []
    started = time.monotonic()
    for step in range(steps):
        left = (steps - step) / (cooldown * steps) if cooldown > 0 else 1.0
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / 200, left)
        rows = torch.randint(len(pool.source), (batch,), generator=generator)
        draw = torch.randint(pool.labels.shape[1], (batch,), generator=generator)
        source, x0 = pool.source[rows].float(), pool.labels[rows, draw].float()
        noise = torch.randn(x0.shape, generator=generator)
        t = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
        t = (t * 1.02).clamp(0.02, 1.0)
        x = torch.lerp(x0, noise, t[:, None, None])
        with bf16_autocast():
            predicted = predict(transformer, x, source, t, text, ids).float()
        weight = 1 + blemish_weight * pool.blemished[rows]

        def error(found: Tensor, truth: Tensor, weight: Tensor = weight) -> Tensor:
            difference = found - truth
            shown = difference.unflatten(2, (len(metric), 4)).transpose(2, 3) @ root
            return ((difference.square().mean(2) + seen_weight * shown.square().mean((2, 3))) * weight).mean()

        tokens = x.shape[1]
        scale = 2 * t[:, None, None] if x0_loss else 1.0
        loss = error(scale * predicted[:, :tokens], scale * (noise - x0))
        if reference_weight:
            way = REFERENCE_SCALE * (pool.clean[rows].float() - source)
            loss = loss + reference_weight * error(predicted[:, tokens:], way)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(transformer.parameters(), 1.0)
        optimizer.step()
        decay = min(ema_decay, (step + 1) / (step + 10))
        with torch.no_grad():
            for kept, new in zip(average.parameters(), transformer.parameters(), strict=True):
                kept.lerp_(new, 1 - decay)
        running.append(loss.detach())
        if (step + 1) % every == 0 or step == steps - 1:
            figures = {"loss": torch.stack(running).mean().item(), "seconds": time.monotonic() - started}
            running.clear()
            report(step + 1, figures, average)
    return average
