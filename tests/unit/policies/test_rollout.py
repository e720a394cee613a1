"""Rollouts: what is shared is exact, and without noise a rollout is the plain ODE."""

from dataclasses import replace

import pytest
import torch

from policies.retoucher.model.backbone import sample_ode
from policies.retoucher.rollout import plan_steps, roll_out


def rolled(backbone, source, config, *, drawn=None, shared=True, **plan_changes):
    batch = source.load("train", [0, 1])
    condition = backbone.condition(batch.photos.source, config.prompt)
    plan = plan_steps(config, backbone.sigmas(config.num_steps), 0)
    plan = replace(plan, **({"drawn": drawn} if drawn is not None else {}), **plan_changes)
    rollout = roll_out(
        backbone,
        condition,
        backbone.encode(batch.anchors),
        plan,
        group_size=config.group_size,
        shared_noise=shared,
        generator=torch.Generator().manual_seed(3),
        batch=64,
    )
    return batch, condition, plan, rollout


def test_without_drawn_steps_every_candidate_is_the_ode(backbone, source, config):
    _, condition, _, rollout = rolled(backbone, source, config, drawn=[])
    noise = backbone.noise(2, torch.Generator().manual_seed(3))
    ode = sample_ode(backbone, condition, noise, config.num_steps)
    pictures = backbone.decode(rollout.latents, condition.select(rollout.photo_of))
    for member, photo in enumerate(rollout.photo_of.tolist()):
        assert torch.allclose(pictures[member], ode[photo], atol=1e-5)


@pytest.mark.parametrize("first", [0, 1, 2])
def test_sharing_the_prefix_saves_evaluations_and_changes_nothing(backbone, source, config, first):
    _, condition, plan, rollout = rolled(backbone, source, config, drawn=[first])
    photos, group, steps = 2, config.group_size, config.num_steps
    assert rollout.evaluations == photos * (first + 1) + photos * group * (steps - 1 - first)
    assert rollout.steps[0].shared and len(rollout.steps[0].x) == photos
    noise = backbone.noise(photos, torch.Generator().manual_seed(3))[rollout.photo_of]
    x, everyone = noise, condition.select(rollout.photo_of)
    with torch.no_grad():
        for index in range(first):
            sigma, sigma_next = plan.sigmas[index : index + 2]
            x = x + (sigma_next - sigma) * backbone.velocity(x, sigma, everyone)
    assert torch.allclose(x, rollout.steps[0].x[rollout.photo_of], atol=1e-5)


def test_full_guidance_ends_near_the_anchor(backbone, source, config):
    batch, _, _, rollout = rolled(backbone, source, config, drawn=[0, 1, 2, 3], lams=[0.999] * 4)
    anchors = backbone.encode(batch.anchors)[rollout.photo_of]
    assert (rollout.latents - anchors).abs().mean() < 0.02 * anchors.abs().mean()


def test_attenuation_without_an_anchor_keeps_the_mean(backbone, source, config):
    _, _, _, loud = rolled(backbone, source, config, drawn=[2], anchored=False, lams=[0.0] * 4)
    _, _, _, quiet = rolled(backbone, source, config, drawn=[2], anchored=False, lams=[0.9] * 4)
    spread = [r.latents.unflatten(0, (2, -1)).std(1).mean() for r in (loud, quiet)]
    assert spread[1] < 0.3 * spread[0]
    assert torch.equal(loud.steps[0].mean, quiet.steps[0].mean)


def test_candidates_of_a_group_differ_and_draws_follow_the_seed(backbone, source, config):
    first, second = (rolled(backbone, source, config)[3] for _ in range(2))
    assert torch.equal(first.latents, second.latents)
    assert (first.latents[0] - first.latents[1]).abs().max() > 1e-3
    sigmas = backbone.sigmas(10)
    long = replace(config, num_steps=10)
    assert len({tuple(plan_steps(long, sigmas, i).drawn) for i in range(20)}) > 5


def test_own_noise_for_every_candidate_shares_nothing(backbone, source, config):
    rollout = rolled(backbone, source, config, drawn=[1], shared=False)[3]
    assert rollout.evaluations == 2 * config.group_size * config.num_steps
    assert not rollout.steps[0].shared
