"""Rollouts: what is shared is exact, and without noise a rollout is the plain ODE."""

from dataclasses import replace

import pytest
import torch
from rollouts import draw_noise, roll_out

from dpg.scheduler import DPGScheduler
from policies.retoucher.model.backbone import sample_ode
from policies.retoucher.rollout import roll_out as roll_out_photos


def rolled(backbone, source, config, *, drawn=None, shared=True, **changes):
    batch = source.load("train", [0, 1])
    condition = backbone.condition(batch.photos.source, config.prompt)
    config = replace(config, **changes)
    scheduler = config.scheduler(backbone.sigmas(config.num_steps), 0)
    if drawn is not None:
        scheduler.draw(steps=drawn, record=True)
    rollout = roll_out(
        backbone,
        condition,
        backbone.encode(batch.anchors),
        scheduler,
        group_size=config.group_size,
        shared_noise=shared,
        generator=torch.Generator().manual_seed(3),
        batch=64,
    )
    return batch, condition, scheduler, rollout


def test_without_drawn_steps_every_candidate_is_the_ode(backbone, source, config):
    _, condition, _, rollout = rolled(backbone, source, config, drawn=[])
    noise = backbone.noise(2, torch.Generator().manual_seed(3))
    ode = sample_ode(backbone, condition, noise, config.num_steps)
    pictures = backbone.decode(rollout.latents, condition.select(rollout.photo_of))
    for member, photo in enumerate(rollout.photo_of.tolist()):
        assert torch.allclose(pictures[member], ode[photo], atol=1e-5)


@pytest.mark.parametrize("first", [0, 1, 2])
def test_sharing_the_prefix_saves_evaluations_and_changes_nothing(backbone, source, config, first):
    _, condition, scheduler, rollout = rolled(backbone, source, config, drawn=[first])
    photos, group, steps = 2, config.group_size, config.num_steps
    assert rollout.evaluations == photos * (first + 1) + photos * group * (steps - 1 - first)
    assert rollout.steps[0].shared and len(rollout.steps[0].x) == photos
    noise = backbone.noise(photos, torch.Generator().manual_seed(3))[rollout.photo_of]
    x, everyone = noise, condition.select(rollout.photo_of)
    with torch.no_grad():
        for index in range(first):
            sigma, sigma_next = scheduler.sigmas[index : index + 2].tolist()
            x = x + (sigma_next - sigma) * backbone.velocity(x, sigma, everyone)
    assert torch.allclose(x, rollout.steps[0].x[rollout.photo_of], atol=1e-5)


def test_full_guidance_ends_near_the_anchor(backbone, source, config):
    batch, _, _, rollout = rolled(backbone, source, config, drawn=[0, 1, 2, 3], lam_schedule="constant", lam_max=0.999)
    anchors = backbone.encode(batch.anchors)[rollout.photo_of]
    assert (rollout.latents - anchors).abs().mean() < 0.02 * anchors.abs().mean()


def test_attenuation_without_an_anchor_keeps_the_mean(backbone, source, config):
    _, _, _, loud = rolled(backbone, source, config, drawn=[2], anchor="none", lam_schedule="zero")
    _, _, _, quiet = rolled(backbone, source, config, drawn=[2], anchor="none", lam_schedule="constant", lam_max=0.9)
    spread = [r.latents.unflatten(0, (2, -1)).std(1).mean() for r in (loud, quiet)]
    assert spread[1] < 0.3 * spread[0]
    assert torch.equal(loud.steps[0].mean, quiet.steps[0].mean)


def test_candidates_of_a_group_differ_and_draws_follow_the_seed(backbone, source, config):
    first, second = (rolled(backbone, source, config)[3] for _ in range(2))
    assert torch.equal(first.latents, second.latents)
    assert (first.latents[0] - first.latents[1]).abs().max() > 1e-3
    sigmas = backbone.sigmas(10)
    long = replace(config, num_steps=10)
    assert len({tuple(long.scheduler(sigmas, i).drawn_steps) for i in range(20)}) > 5


def test_own_noise_for_every_candidate_shares_nothing(backbone, source, config):
    rollout = rolled(backbone, source, config, drawn=[1], shared=False)[3]
    assert rollout.evaluations == 2 * config.group_size * config.num_steps
    assert not rollout.steps[0].shared


@pytest.mark.parametrize("sampler", ["flow_sde", "cps", "dance_sde"])
def test_a_rollout_is_the_stock_pipelines_loop_through_the_scheduler(backbone, source, config, sampler):
    """To the bit: the stock pipeline with the scheduler in place of its own takes the steps that the trainer takes."""
    config = replace(config, sampler=sampler)
    photo = source.load("train", [0])
    condition = replace(backbone.condition(photo.photos.source, config.prompt), own_text=True)  # a row a candidate
    anchors = backbone.encode(photo.anchors)
    scheduler = config.scheduler(backbone.sigmas(config.num_steps), 0)
    members = {"group_size": config.group_size, "shared_noise": False}
    noise = draw_noise(backbone, scheduler.drawn_steps, 1, **members, generator=torch.Generator().manual_seed(3))
    rollout = roll_out_photos(backbone, condition, anchors, scheduler, noise, torch.tensor([0]), batch=64)

    pipeline = backbone.pipeline
    pipeline.scheduler = DPGScheduler.from_config(scheduler.config)
    pipeline.scheduler.set_anchor(anchors)
    pipeline.scheduler.draw(config.seed, record=True, noise=noise.steps)
    pipeline.set_progress_bar_config(disable=True)
    encode = pipeline.prepare_latents

    def prepare_latents(*arguments):
        """The pipeline encodes the photo; its latents are replaced by the rollout's own, which another image processor made."""
        latents, _, *ids = encode(*arguments)
        return latents, condition.reference.expand(config.group_size, -1, -1), *ids

    pipeline.prepare_latents = prepare_latents
    final = pipeline(
        image=photo.photos.source,
        prompt_embeds=condition.prompt.repeat(config.group_size, 1, 1),
        pooled_prompt_embeds=condition.pooled.repeat(config.group_size, 1),
        latents=noise.start,
        num_inference_steps=config.num_steps,
        height=backbone.resolution,
        width=backbone.resolution,
        max_area=backbone.resolution**2,
        _auto_resize=False,
        output_type="latent",
    ).images
    assert torch.equal(final, rollout.latents)
    for ours, stock in zip(rollout.steps, pipeline.scheduler.trajectory, strict=True):
        for name in ("x", "x_next", "noise", "mean", "std", "log_prob"):
            assert torch.equal(getattr(ours, name), getattr(stock, name)), name
        assert (ours.index, ours.sigma, ours.sigma_next, ours.lam) == (stock.index, stock.sigma, stock.sigma_next, stock.lam)
