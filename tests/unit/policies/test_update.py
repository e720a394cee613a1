"""The update: the ratio is 1 on-policy, shared gradients equal unshared ones, and its direction raises what was better."""

from dataclasses import replace

import pytest
import torch
from rollouts import roll_out

from policies.retoucher.rank_groups import roll_out_groups
from policies.retoucher.rollout import Rollout
from policies.retoucher.update import Loss, _step_terms, accumulate_gradients, base_policy, draw_anchors


def prepared(trainer, config, seed=0):
    batch = trainer.source.load("train", [0, 1])
    condition = trainer.backbone.condition(batch.photos.source, config.prompt)
    scheduler = config.scheduler(trainer.sigmas, seed)
    rollout = roll_out(
        trainer.backbone,
        condition,
        trainer.backbone.encode(batch.anchors),
        scheduler,
        group_size=config.group_size,
        shared_noise=True,
        generator=torch.Generator().manual_seed(5),
        batch=64,
    )
    return condition, rollout


def shifted(trainer, size=0.05):
    with torch.no_grad():
        for parameter in trainer.adapter.values():
            parameter.add_(size * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))


def gradients(trainer, config, condition, rollout, advantages):
    trainer.optimizer.zero_grad(set_to_none=True)
    photos = torch.arange(len(condition))
    figures = accumulate_gradients(
        trainer.backbone, condition, rollout, advantages, photos, config.objective, micro_batch=config.micro_batch
    )
    grads = {name: p.grad.clone() for name, p in trainer.adapter.items() if p.grad is not None}
    return figures, grads


def unshare(rollout: Rollout) -> Rollout:
    steps = [step.share(rollout.photo_of) if step.shared else step for step in rollout.steps]
    return replace(rollout, steps=steps)


@pytest.fixture
def advantages():
    return torch.tensor([1.0, -1.0, 0.5, -0.5, 0.3, -0.9, 0.9, -0.3])


@pytest.mark.parametrize(("sampler", "loss"), [("flow_sde", "grpo"), ("cps", "grpo"), ("dance_sde", "grpo"), ("flow_sde", "dppo")])
def test_ratio_is_one_before_any_update(make_trainer, config, advantages, sampler, loss):
    trainer = make_trainer(config, sampler=sampler, loss=loss)
    condition, rollout = prepared(trainer, trainer.config)
    figures, _ = gradients(trainer, trainer.config, condition, rollout, advantages)
    assert figures.ratio_deviation < 1e-6
    assert figures.clipped == 0


@pytest.mark.parametrize("local", [False, True])
def test_flow_dppo_is_the_papers(make_trainer, config, advantages, local):
    """Of every candidate and step, and of every token with local credit: `-A r`, or nothing."""
    trainer = make_trainer(config)
    condition, rollout = prepared(trainer, config)
    advantages = advantages[:, None] * torch.linspace(0.5, 1.5, rollout.latents.shape[1]) if local else advantages
    shifted(trainer)
    seen = []
    for step in unshare(rollout).steps:
        v = trainer.backbone.velocity(step.x, float(step.sigma), condition.select(rollout.photo_of)).detach()
        shift = (step.mean - step.mean_under(v)) / step.std
        dims = (2,) if local else (1, 2)
        ratio, kl = (-shift * (step.noise + shift / 2)).mean(dims).exp(), (shift**2).mean(dims) / 2
        seen.append((ratio, kl))
    threshold = float(torch.cat([kl.flatten() for _, kl in seen]).median())
    total = blocked = 0.0
    for ratio, kl in seen:
        stop = (kl > threshold) & (((advantages > 0) & (ratio > 1)) | ((advantages < 0) & (ratio < 1)))
        total += float((-advantages * ratio * ~stop).mean()) / len(seen)
        blocked += float(stop.float().mean()) / len(seen)
    assert 0.05 < blocked < 0.6
    figures, grads = gradients(trainer, replace(config, loss="dppo", kl_threshold=threshold), condition, rollout, advantages)
    assert (figures.loss, figures.clipped) == pytest.approx((total, blocked), rel=1e-3, abs=1e-6)
    free, others = gradients(trainer, replace(config, loss="dppo", kl_threshold=10.0), condition, rollout, advantages)
    assert free.clipped == 0 and any(not torch.allclose(grads[name], others[name]) for name in grads)


@pytest.mark.parametrize("sampler", ["flow_sde", "cps"])
def test_the_guarded_ratio_of_an_update_is_the_noise_times_the_means_shift(make_trainer, config, advantages, sampler):
    """For cps, too, whose own log-ratio has another unit than the KL that GRPO-Guard adds."""
    trainer = make_trainer(config, sampler=sampler)
    condition, rollout = prepared(trainer, trainer.config)
    shifted(trainer)
    step = unshare(rollout).steps[0]
    rows = torch.arange(8)
    terms = _step_terms(trainer.backbone, condition, rollout, step, advantages, rows, Loss(ratio="guard"))
    with torch.no_grad():
        v = trainer.backbone.velocity(step.x, float(step.sigma), condition.select(rollout.photo_of))
    want = (step.noise * (step.mean_under(v) - step.mean)).flatten(1).mean(1)
    assert want.abs().max() > 1e-5
    torch.testing.assert_close(terms.log_ratio.detach(), want, rtol=1e-3, atol=1e-7)


def test_the_shared_step_has_the_gradient_of_the_unshared_one(make_trainer, config, advantages):
    trainer = make_trainer(config)
    condition, rollout = prepared(trainer, config)
    assert rollout.steps[0].shared
    shared, few = gradients(trainer, config, condition, rollout, advantages)
    unshared, many = gradients(trainer, config, condition, unshare(rollout), advantages)
    assert few.keys() == many.keys()
    for name in few:
        assert torch.allclose(few[name], many[name], rtol=1e-3, atol=1e-7 + 1e-4 * many[name].abs().max()), name
    assert shared.evaluations < unshared.evaluations


def test_micro_batches_do_not_change_the_gradient(make_trainer, config, advantages):
    trainer = make_trainer(config)
    condition, rollout = prepared(trainer, config)
    _, whole = gradients(trainer, config, condition, rollout, advantages)
    seen = []
    forward = trainer.backbone.velocity
    trainer.backbone.velocity = lambda x, *given: seen.append(len(x)) or forward(x, *given)
    for size in (4, 3, 1):  # a group, and less than one
        seen.clear()
        _, parts = gradients(trainer, replace(config, micro_batch=size), condition, rollout, advantages)
        assert max(seen) == size
        for name in whole:
            assert torch.allclose(whole[name], parts[name], rtol=1e-3, atol=1e-7 + 1e-4 * whole[name].abs().max()), name


def test_groups_without_advantage_cost_nothing(make_trainer, config, advantages):
    trainer = make_trainer(config)
    condition, rollout = prepared(trainer, config)
    full, _ = gradients(trainer, config, condition, rollout, advantages)
    half = torch.where(rollout.photo_of == 0, advantages, 0.0)
    figures, _ = gradients(trainer, config, condition, rollout, half)
    assert figures.evaluations == full.evaluations // 2
    nothing, grads = gradients(trainer, config, condition, rollout, torch.zeros(8))
    assert nothing.evaluations == 0 and not grads


@pytest.mark.parametrize("wide", [{"clip_range": 10.0}, {"loss": "dppo", "kl_threshold": 10.0}], ids=["grpo", "dppo"])
def test_one_group_is_overfitted(make_trainer, config, advantages, wide):
    """Updates on one group make its better candidates likelier, and never less so."""
    trainer = make_trainer(replace(config, **wide))
    condition, rollout = prepared(trainer, config)
    advantages = torch.where(rollout.photo_of == 0, advantages, 0.0)
    losses, deviation = [], 0.0
    for _ in range(6):
        figures, _ = gradients(trainer, trainer.config, condition, rollout, advantages)
        losses.append(figures.loss)
        deviation = figures.ratio_deviation
        trainer.optimizer.step()
    assert deviation > 0 and losses == sorted(losses, reverse=True) and losses[-1] < losses[1] < losses[0]


@pytest.mark.parametrize("local", [False, True])
def test_neighbor_grpo_is_the_papers_and_overfits_one_group(make_trainer, config, advantages, local):
    trainer = make_trainer(config, loss="neighbor", dpg=False, neighbor_anchors=2, segments=2, clip_range=10.0)
    scheduler = trainer.config.scheduler(trainer.sigmas, 0)
    own, _ = roll_out_groups(trainer.backbone, trainer.source, trainer.rewards, scheduler, trainer.config, 0, [0, 1])
    rollout, condition, steps = own.rollout, own.condition, own.rollout.steps
    assert len(steps) == 2 and not any(step.shared for step in steps) and rollout.evaluations == 8 * config.num_steps
    advantages = advantages[:, None] * torch.linspace(0.5, 1.5, rollout.latents.shape[1]) if local else advantages
    anchors = draw_anchors([0, 1], config.group_size, 2, seed=0, iteration=0)
    assert [int(row) // 4 for row in anchors] == [0, 0, 1, 1] and len(set(anchors.tolist())) == 4

    def gradients(worth):
        trainer.optimizer.zero_grad(set_to_none=True)
        given = (trainer.backbone, condition, rollout, worth, torch.tensor([0, 1]), trainer.config.objective)
        return accumulate_gradients(*given, micro_batch=3, anchors=anchors)

    start = gradients(advantages)
    assert start.ratio_deviation < 1e-6 and (start.clipped, start.evaluations) == (0, 3 * 2 * 4)
    shifted(trainer)
    total = 0.0
    for step in steps:
        assert torch.allclose(step.x_next, step.mean) and not step.std.any()
        with torch.no_grad():
            v = trainer.backbone.velocity(step.x[anchors], float(step.sigma), condition.select(rollout.photo_of[anchors]))
        new = step.x[anchors] + (step.sigma_next - step.sigma) * v
        for anchor, x in zip(anchors.tolist(), new, strict=True):
            group = slice(anchor // 4 * 4, anchor // 4 * 4 + 4)
            dims = (2,) if local else (1, 2)
            policy, old = (torch.softmax(-(step.x_next[group] - place).square().mean(dims), 0) for place in (x, step.x_next[anchor]))
            total -= float((advantages[group] * policy / old).sum(0).mean()) / (2 * len(anchors))
    assert gradients(advantages).loss == pytest.approx(total, rel=1e-3, abs=1e-6)
    losses = []
    for _ in range(5):
        losses.append(gradients(torch.where((rollout.photo_of == 0).view(-1, *[1] * (advantages.ndim - 1)), advantages, 0.0)).loss)
        trainer.optimizer.step()
    assert losses[-1] < losses[0]


def test_flow_dppo_stops_at_its_threshold(make_trainer, config, advantages):
    """Where every step is too far off, what would go on is stopped."""
    trainer = make_trainer(config, loss="dppo", kl_threshold=1e-12)
    condition, rollout = prepared(trainer, trainer.config)
    gradients(trainer, trainer.config, condition, rollout, advantages)
    trainer.optimizer.step()
    assert gradients(trainer, trainer.config, condition, rollout, advantages)[0].clipped > 0.4


def test_kl_is_zero_at_the_base_and_positive_away_from_it(make_trainer, config, advantages):
    trainer = make_trainer(config, kl_beta=0.1)
    condition, rollout = prepared(trainer, trainer.config)
    at_base, _ = gradients(trainer, trainer.config, condition, rollout, advantages)
    assert at_base.kl == pytest.approx(0, abs=1e-9)
    shifted(trainer)
    moved, _ = gradients(trainer, trainer.config, condition, rollout, advantages)
    assert moved.kl > 1e-6


def test_base_policy_switches_the_adapters_off_and_on_again(make_trainer, config):
    trainer = make_trainer(config)
    condition, rollout = prepared(trainer, config)
    x = rollout.steps[0].x
    base = trainer.backbone.velocity(x, 0.5, condition)
    with torch.no_grad():
        for parameter in trainer.adapter.values():
            parameter.add_(0.1)
        moved = trainer.backbone.velocity(x, 0.5, condition)
        with base_policy(trainer.backbone):
            again = trainer.backbone.velocity(x, 0.5, condition)
    assert torch.equal(base, again)
    assert not torch.equal(base, moved)
    assert torch.equal(moved, trainer.backbone.velocity(x, 0.5, condition))
