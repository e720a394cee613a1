"""The contract of every backbone, with tiny random parts in the stock pipeline class."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import tiny_klein
import tiny_qwen
import torch
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus
from peft import LoraConfig
from rollouts import roll_out

from dpg.sampler import Sampler
from dpg.scheduler import DPGScheduler
from dpg.sde import log_ratio
from policies.retoucher.backbones import tiny
from policies.retoucher.config import RetoucherConfig
from policies.retoucher.model.adapter import load_lora, save_lora
from policies.retoucher.model.backbone import Backbone, sample_ode
from policies.retoucher.update import accumulate_gradients
from portraitkit.pictures.images import to_pil
from tools.embedded import tiny_kontext

PROMPT = "soften the spots"


@dataclass(frozen=True)
class Kind:
    """How to make a backbone, and how to run its stock pipeline at the backbone's resolution."""

    build: Callable[[], Any]
    wrap: Callable[[Any], Any]
    call: dict[str, Any]
    """Arguments of the stock call beside photo, prompt, noise and steps."""
    noise: Callable[[Any, torch.Tensor], torch.Tensor] = lambda backbone, packed: packed
    """Packed noise as the stock call takes it."""
    latents: Callable[[Any, torch.Tensor], torch.Tensor] = lambda backbone, given: given
    """The stock call's latents as the backbone has them."""
    idle: int = 0
    """LoRA modules that never learn."""


def kontext(pipeline):
    backbone = tiny.wrap(pipeline)
    backbone.add_residual = False
    return backbone


def klein_latents(backbone, given: torch.Tensor) -> torch.Tensor:
    """The pipeline takes its normalisation and its patches off before it returns latents."""
    z = backbone.pipeline._patchify_latents(given)
    mean, std = backbone._scale(z)
    return backbone.pipeline._pack_latents((z - mean) / std)


KLEIN = {
    "noise": lambda backbone, packed: packed.mT.unflatten(2, (backbone.side, backbone.side)),
    "latents": klein_latents,
}
KLEIN_TEXT = {"max_sequence_length": tiny_klein.TEXT_TOKENS, "text_encoder_out_layers": tiny_klein.TEXT_LAYERS}
KINDS = {
    "flux_kontext": Kind(
        lambda: tiny_kontext.build_pipeline(0),
        kontext,
        {"_auto_resize": False, "max_area": 128 * 128, "max_sequence_length": tiny.TEXT_TOKENS},
    ),
    "flux2_klein": Kind(tiny_klein.build_pipeline, tiny_klein.wrap, {"guidance_scale": 4.0, **KLEIN_TEXT}, **KLEIN),
    "flux2_klein, distilled": Kind(
        lambda: tiny_klein.build_pipeline(distilled=True), tiny_klein.wrap, {"guidance_scale": 4.0, **KLEIN_TEXT}, **KLEIN
    ),
    "qwen_image_edit": Kind(tiny_qwen.build_pipeline, tiny_qwen.wrap, {"true_cfg_scale": 4.0, "negative_prompt": " "}, idle=4),
    "qwen_image_edit, no guidance": Kind(
        tiny_qwen.build_pipeline, lambda p: tiny_qwen.wrap(p, guidance=1.0), {"true_cfg_scale": 1.0}, idle=4
    ),
    "qwen_image_edit_plus": Kind(
        lambda: tiny_qwen.build_pipeline(plus=True),
        lambda p: tiny_qwen.wrap(p, negative_prompt="plastic"),
        {"true_cfg_scale": 4.0, "negative_prompt": "plastic"},
        idle=4,
    ),
}


@pytest.fixture(params=KINDS)
def kind(request, monkeypatch) -> Kind:
    """A backbone's kind. The stock Qwen pipelines scale their photo to a million pixels; here they leave it at its size."""
    side, shown = tiny_qwen.RESOLUTION, tiny_qwen.PROMPT_SIDE
    monkeypatch.setattr(pipeline_qwenimage_edit, "calculate_dimensions", lambda area, ratio: (side, side, None))
    small = pipeline_qwenimage_edit_plus.CONDITION_IMAGE_SIZE
    monkeypatch.setattr(
        pipeline_qwenimage_edit_plus, "calculate_dimensions", lambda area, ratio: (shown, shown) if area == small else (side, side)
    )
    return KINDS[request.param]


@pytest.fixture
def made(kind) -> Backbone:
    return kind.wrap(kind.build())


def photos(backbone, count: int = 1) -> torch.Tensor:
    """Random pictures that 8 bits hold exactly, since stock pipelines take PIL pictures."""
    generator = torch.Generator().manual_seed(5)
    return torch.randint(256, (count, 3, backbone.resolution, backbone.resolution), generator=generator) / 255


def stock(backbone, kind: Kind, noise: torch.Tensor, steps: int) -> torch.Tensor:
    """Final latents of the stock pipeline's own call."""
    backbone.pipeline.set_progress_bar_config(disable=True)
    latents = backbone.pipeline(
        image=to_pil(photos(backbone)[0]),
        prompt=PROMPT,
        height=backbone.resolution,
        width=backbone.resolution,
        num_inference_steps=steps,
        latents=kind.noise(backbone, noise),
        output_type="latent",
        **kind.call,
    ).images
    return kind.latents(backbone, latents)


def planned(backbone, config: RetoucherConfig, drawn: list[int], eta: float) -> DPGScheduler:
    scheduler = DPGScheduler(eta=eta, lambda_kind="zero")
    scheduler.set_timesteps(sigmas=backbone.sigmas(config.num_steps)[:-1])
    scheduler.draw(steps=drawn, record=True)
    return scheduler


def rolled(backbone, scheduler, condition, group: int = 2):
    generator = torch.Generator().manual_seed(3)
    settings = {"group_size": group, "shared_noise": True, "generator": generator, "batch": 8}
    return roll_out(backbone, condition, None, scheduler, **settings)


def test_it_keeps_the_contract(made):
    assert isinstance(made, Backbone)
    condition = made.condition(photos(made, 2), PROMPT)
    assert len(condition) == 2 and len(condition.select(torch.tensor([1, 1, 0]))) == 3
    assert made.forwards == (1 if condition.negative is None else 2)
    assert made.sigmas(1) == [1.0, 0.0]  # whatever the last level that its shift ends at
    sigmas = made.sigmas(4)
    assert sigmas[0] == 1 and sigmas[-1] == 0 and sigmas == sorted(sigmas, reverse=True)
    assert not any(parameter.requires_grad for parameter in made.transformer.parameters())


def test_a_rollout_without_noise_is_the_stock_pipelines_sampling(made, kind, config):
    condition = made.condition(photos(made), PROMPT)
    rollout = rolled(made, planned(made, config, [0, 2], eta=0.0), condition)
    noise = made.noise(1, torch.Generator().manual_seed(3))
    expected = stock(made, kind, noise, config.num_steps)
    assert (expected - noise).abs().mean() > 0.1
    for latents in rollout.latents:
        assert (latents - expected[0]).abs().max() < 2e-4 * expected.abs().max()


def test_its_pictures_are_the_stock_pipelines(made, kind):
    condition = made.condition(photos(made), PROMPT)
    noise = made.noise(1, torch.Generator().manual_seed(3))
    made.pipeline.set_progress_bar_config(disable=True)
    size = {"height": made.resolution, "width": made.resolution}
    expected = made.pipeline(
        image=to_pil(photos(made)[0]),
        prompt=PROMPT,
        num_inference_steps=2,
        latents=kind.noise(made, noise),
        output_type="pt",
        **size,
        **kind.call,
    ).images
    assert (sample_ode(made, condition, noise, 2) - expected).abs().max() < 1e-3
    assert expected.std() > 1e-3


def test_the_ratio_is_exactly_one_before_an_update(made, kind, config):
    add_lora(made)
    condition = made.condition(photos(made, 2), PROMPT)
    scheduler = planned(made, config, [0, 2], eta=0.7)
    rollout = rolled(made, scheduler, condition, config.group_size)
    sampler = Sampler("flow_sde", 0.7, float(scheduler.sigmas[1]))
    for step in rollout.steps:
        rows = torch.arange(2) if step.shared else rollout.photo_of
        assert step.index is not None
        sigma, sigma_next = scheduler.sigmas[step.index : step.index + 2].tolist()
        with torch.enable_grad():
            v = made.velocity(step.x, sigma, condition.select(rows))
        assert v.requires_grad
        mean = sampler.mean_std(step.x, v, sigma, sigma_next)[0]
        spread = rollout.photo_of if step.shared else torch.arange(len(rollout.photo_of))
        ratio = log_ratio(mean[spread], step.mean[spread], step.std[spread], step.noise, sampler="flow_sde").exp()
        assert torch.equal(ratio, torch.ones_like(ratio))
    advantages = torch.tensor([1.0, -1, 0.5, -0.5] * 2)
    figures = accumulate_gradients(made, condition, rollout, advantages, torch.arange(2), config.objective, micro_batch=config.micro_batch)
    assert figures.ratio_deviation < 1e-6
    assert figures.evaluations == made.forwards * 3 * (2 + 2 * config.group_size)
    adapter = {name: p for name, p in made.transformer.named_parameters() if p.requires_grad}
    idle = [name for name, p in adapter.items() if p.grad is None or not p.grad.any()]
    assert len(idle) == 2 * kind.idle, "the text output of Qwen's last block leads nowhere"


def test_evaluations_count_both_sides_of_guidance(made, config):
    condition = made.condition(photos(made, 2), PROMPT)
    rollout = rolled(made, planned(made, config, [0], eta=0.7), condition, config.group_size)
    assert rollout.evaluations == made.forwards * (2 + 2 * config.group_size * (config.num_steps - 1))


def test_a_lora_saved_here_loads_in_the_stock_pipeline_of_the_same_run(made, kind, tmp_path):
    """Alpha is twice the rank, so that a file without it would be read at half strength."""
    noise = made.noise(1, torch.Generator().manual_seed(3))
    before = stock(made, kind, noise, 2)
    add_lora(made, alpha=8, scale=0.3)
    trained = sample_latents(made, noise)
    save_lora(made.transformer, tmp_path)
    fresh = kind.wrap(kind.build())
    fresh.pipeline.load_lora_weights(str(tmp_path))
    after = stock(fresh, kind, noise, 2)
    assert (after - before).abs().max() > 1e-2
    assert (after - trained).abs().max() < 1e-3 * after.abs().max()
    add_lora(fresh_again := kind.wrap(kind.build()), alpha=8, scale=0.0)
    load_lora(fresh_again.transformer, tmp_path)
    assert torch.equal(sample_latents(fresh_again, noise), trained)


def sample_latents(backbone, noise: torch.Tensor) -> torch.Tensor:
    condition, x, sigmas = backbone.condition(photos(backbone), PROMPT), noise, backbone.sigmas(2)
    with torch.no_grad():
        for sigma, sigma_next in zip(sigmas[:-1], sigmas[1:], strict=True):
            x = x + (sigma_next - sigma) * backbone.velocity(x, sigma, condition)
    return x


def add_lora(backbone, alpha: int = 4, scale: float = 0.05) -> None:
    """LoRA layers of rank 4 with random weights in both halves."""
    backbone.transformer.add_adapter(LoraConfig(r=4, lora_alpha=alpha, target_modules=backbone.lora_targets))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in backbone.transformer.parameters():
            if parameter.requires_grad:
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
