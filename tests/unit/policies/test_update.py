"""The update: the ratio is 1 on-policy, shared gradients equal unshared ones, and its direction raises what was better."""

from dataclasses import replace

import pytest
import torch

from policies.retoucher.rollout import Rollout, roll_out
from policies.retoucher.update import Loss, _step_terms, accumulate_gradients, base_policy


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


@pytest.mark.parametrize("sampler", ["flow_sde", "cps", "dance_sde"])
def test_ratio_is_one_before_any_update(make_trainer, config, advantages, sampler):
    trainer = make_trainer(config, sampler=sampler)
    condition, rollout = prepared(trainer, trainer.config)
    figures, _ = gradients(trainer, trainer.config, condition, rollout, advantages)
    assert figures.ratio_deviation < 1e-6
    assert figures.clipped == 0


@pytest.mark.parametrize("sampler", ["flow_sde", "cps"])
def test_the_guarded_ratio_of_an_update_is_the_noise_times_the_means_shift(make_trainer, config, advantages, sampler):
    """For cps, too, whose own log-ratio has another unit than the KL that GRPO-Guard adds."""
    trainer = make_trainer(config, sampler=sampler)
    condition, rollout = prepared(trainer, trainer.config)
    with torch.no_grad():
        for parameter in trainer.adapter.values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
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


def test_a_step_along_the_gradient_makes_the_better_candidates_likelier(make_trainer, config, advantages):
    trainer = make_trainer(config)
    condition, rollout = prepared(trainer, config)
    before, grads = gradients(trainer, config, condition, rollout, advantages)
    with torch.no_grad():
        for name, parameter in trainer.adapter.items():
            if name in grads:
                parameter -= 1e-2 * grads[name] / (grads[name].norm() + 1e-12)
    wide = replace(config, clip_range=1.0)
    after, _ = gradients(trainer, wide, condition, rollout, advantages)
    assert after.loss < before.loss
    assert after.ratio_deviation > 0


def test_kl_is_zero_at_the_base_and_positive_away_from_it(make_trainer, config, advantages):
    trainer = make_trainer(config, kl_beta=0.1)
    condition, rollout = prepared(trainer, trainer.config)
    at_base, _ = gradients(trainer, trainer.config, condition, rollout, advantages)
    assert at_base.kl == pytest.approx(0, abs=1e-9)
    with torch.no_grad():
        for parameter in trainer.adapter.values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
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
