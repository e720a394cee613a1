"""DiffusionNFT's loss: the paper's formula, what cancels in a group, and that a group is learned from."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from rollouts import roll_out

from policies.retoucher.update import ANCHOR_DRAWS, NO_FIGURES, Loss, accumulate_forward_gradients, forward_noise

ADVANTAGES = torch.tensor([1.0, -1.0, 0.5, -0.5, 0.3, -0.9, 0.9, -0.3])
PLAIN = Loss()


@pytest.fixture
def rolled(make_trainer, config):
    trainer = make_trainer(replace(config, loss="nft", dpg=False, shared_noise=False))
    batch = trainer.source.load("train", [0, 1])
    condition = trainer.backbone.condition(batch.photos.source, config.prompt)
    generator = torch.Generator().manual_seed(5)
    options = {"group_size": config.group_size, "shared_noise": False, "generator": generator, "batch": 64}
    rollout = roll_out(trainer.backbone, condition, None, trainer.config.scheduler(trainer.sigmas, 0), **options)
    return trainer, condition, rollout


def noise_of(trainer, groups=(0, 1), sigmas=(1.0, 0.5, 0.0)):
    return forward_noise(trainer.backbone, sigmas, 2, groups, seed=0, iteration=3)


def gradients(rolled, advantages=ADVANTAGES, loss=PLAIN, photos=(0, 1), micro_batch=8, candidates=None, anchors=None, old=None):
    trainer, condition, rollout = rolled
    trainer.optimizer.zero_grad(set_to_none=True)
    options = {"noise": noise_of(trainer), "micro_batch": micro_batch, "candidates": candidates, "anchors": anchors, "old_policy": old}
    figures = accumulate_forward_gradients(
        trainer.backbone, condition, rollout, advantages, torch.tensor(photos, dtype=torch.long), loss, **options
    )
    return figures, {name: p.grad.clone() for name, p in trainer.adapter.items() if p.grad is not None}


def move(trainer, size=0.05):
    with torch.no_grad():
        for parameter in trainer.adapter.values():
            parameter.add_(size * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))


def alike(left, right):
    assert left.keys() == right.keys()
    assert all(torch.allclose(left[name], right[name], rtol=1e-3, atol=1e-7 + 1e-4 * right[name].abs().max()) for name in right)


def test_a_rollout_without_guidance_is_a_plain_ode(rolled):
    _, _, rollout = rolled
    assert not rollout.steps
    assert len({tuple(row[:4].tolist()) for row in rollout.latents.flatten(1)}) == 8


@pytest.mark.parametrize(("beta", "local", "off_policy"), [(1.0, False, False), (0.4, True, False), (1.0, True, True), (0.4, False, True)])
def test_the_loss_is_the_papers(rolled, beta, local, off_policy):
    trainer, condition, rollout = rolled
    tokens = rollout.latents.shape[1]
    advantages = ADVANTAGES[:, None] * torch.linspace(0.5, 1.5, tokens) if local else ADVANTAGES
    old = {name: p.detach().clone() for name, p in trainer.adapter.items()}
    if off_policy:
        move(trainer)
    figures, found = gradients(rolled, advantages, Loss(beta=beta), old=partial(trainer.using, old) if off_policy else None)
    assert figures.evaluations == 8 * 2 * (4 if off_policy else 3)
    r = (advantages / 5 + 1) / 2
    r = r if local else r[:, None].expand(-1, tokens)
    trainer.optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for level, noise in noise_of(trainer).items():
        e, x0 = noise[rollout.photo_of, 0], rollout.latents
        given = ((1 - level) * x0 + level * e, level, condition.select(rollout.photo_of))
        with torch.no_grad(), trainer.using(old):
            v_old = trainer.backbone.velocity(*given)
        v = trainer.backbone.velocity(*given)
        positive, negative = (1 - beta) * v_old + beta * v, (1 + beta) * v_old - beta * v
        errors = [(implicit - (e - x0)).square().mean(2) for implicit in (positive, negative)]
        part = (level**2 * (r * errors[0] + (1 - r) * errors[1])).mean() / 2
        part.backward()
        total += float(part.detach())
    assert figures.loss == pytest.approx(total, rel=1e-4)
    alike(found, {name: p.grad for name, p in trainer.adapter.items() if p.grad is not None})


def test_what_a_group_has_in_common_falls_out_at_the_noisy_end(rolled):
    """At t = 1 all candidates of a group are the same noise, so a shift of all of them teaches nothing."""
    trainer, condition, rollout = rolled
    noise = {1.0: noise_of(trainer)[1.0]}

    def found(shift):
        trainer.optimizer.zero_grad(set_to_none=True)
        moved = replace(rollout, latents=rollout.latents + shift)
        centred = ADVANTAGES - torch.tensor([ADVANTAGES[:4].mean(), ADVANTAGES[4:].mean()]).repeat_interleave(4)
        given = (trainer.backbone, condition, moved, centred, torch.tensor([0, 1]), Loss())
        accumulate_forward_gradients(*given, noise=noise, micro_batch=8)
        return {name: p.grad.clone() for name, p in trainer.adapter.items() if p.grad is not None}

    alike(found(0.7), found(0.0))


def test_parts_add_up_and_micro_batches_change_nothing(rolled):
    move(rolled[0])
    loss = Loss(kl_beta=0.1)
    figures, whole = gradients(rolled, loss=loss)
    for size in (3, 1):
        alike(gradients(rolled, loss=loss, micro_batch=size)[1], whole)
    parts = [gradients(rolled, loss=loss, photos=(photo,), candidates=8) for photo in (0, 1)]
    alike({name: parts[0][1][name] + parts[1][1][name] for name in whole}, whole)
    assert sum(part.loss for part, _ in parts) == pytest.approx(figures.loss, rel=1e-4)
    assert sum(part.evaluations for part, _ in parts) == figures.evaluations == 8 * 2 * 4


@pytest.mark.parametrize("local", [False, True])
def test_a_process_that_has_no_candidate_of_an_update_adds_nothing(rolled, local):
    """As with more processes than groups in an update (`--updates-per-step`)."""
    anchors = torch.zeros(2, *noise_of(rolled[0])[1.0].shape[2:])
    advantages = ADVANTAGES[:, None].expand(-1, rolled[2].latents.shape[1]) if local else ADVANTAGES
    figures, grads = gradients(rolled, advantages, Loss(kl_beta=0.1, anchor_weight=0.5), photos=(), candidates=8, anchors=anchors)
    assert (figures, grads) == (NO_FIGURES, {})


def test_groups_without_advantage_cost_nothing(rolled):
    figures, grads = gradients(rolled, torch.zeros(8))
    assert (figures.evaluations, figures.loss, grads) == (0, 0.0, {})
    half, _ = gradients(rolled, torch.where(rolled[2].photo_of == 0, ADVANTAGES, 0.0))
    assert half.evaluations == gradients(rolled)[0].evaluations // 2


def test_the_kl_is_zero_at_the_base_and_positive_away_from_it(rolled):
    assert gradients(rolled, loss=Loss(kl_beta=0.1))[0].kl == pytest.approx(0, abs=1e-9)
    move(rolled[0])
    assert gradients(rolled, loss=Loss(kl_beta=0.1))[0].kl > 1e-6


def test_noise_belongs_to_the_group_whoever_draws_it(rolled):
    trainer = rolled[0]
    whole, part = noise_of(trainer, (0, 1, 2)), noise_of(trainer, (2,))
    assert all(torch.equal(part[level][0], whole[level][2]) for level in whole)
    rows = [tuple(row[:4].tolist()) for drawn in whole.values() for row in drawn.flatten(0, 1).flatten(1)]
    assert len(set(rows)) == len(rows) == 2 * 3 * (1 + ANCHOR_DRAWS)
    some = forward_noise(trainer.backbone, trainer.sigmas, 2, (0,), seed=0, iteration=4)
    assert len(some) == 2 and set(some) < set(trainer.sigmas[:-1])


def test_one_group_is_overfitted(rolled):
    """Thirty updates on one group bring the policy's answer nearer to the best candidate than to the worst."""
    trainer, condition, rollout = rolled
    advantages = torch.tensor([1.5, -1.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    x, photo = noise_of(trainer)[1.0][:1, 0], condition.select(torch.tensor([0]))

    def nearer():
        with torch.no_grad():
            answer = x - trainer.backbone.velocity(x, 1.0, photo)
        return float((answer - rollout.latents[1]).square().mean() - (answer - rollout.latents[0]).square().mean())

    before = nearer()
    for _ in range(30):
        gradients(rolled, advantages, photos=(0,))
        trainer.optimizer.step()
    assert nearer() > before + 1e-3


def test_an_anchor_is_learned_from_as_the_best_candidate_of_its_photo(rolled):
    """With r = 1 the loss is the flow-matching one, weighed against all candidates of the photo; parts still add up."""
    trainer, condition, _ = rolled
    anchors = torch.randn(2, *noise_of(trainer)[1.0].shape[2:], generator=torch.Generator().manual_seed(1))
    loss = Loss(anchor_weight=0.5)
    figures, found = gradients(rolled, torch.zeros(8), loss, anchors=anchors)
    trainer.optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for level, noise in noise_of(trainer).items():
        for photo in (0, 1):
            x0, e = anchors[photo].expand(ANCHOR_DRAWS, -1, -1), noise[photo, 1:]
            rows = torch.full((ANCHOR_DRAWS,), photo)
            v = trainer.backbone.velocity((1 - level) * x0 + level * e, level, condition.select(rows))
            total = total + 0.5 * level**2 * (v - (e - x0)).square().mean() / 4
    total.backward()
    assert figures.loss == pytest.approx(float(total.detach()), rel=1e-4)
    alike(found, {name: p.grad for name, p in trainer.adapter.items() if p.grad is not None})
    parts = [gradients(rolled, ADVANTAGES, loss, (photo,), candidates=8, anchors=anchors)[1] for photo in (0, 1)]
    whole = gradients(rolled, ADVANTAGES, loss, anchors=anchors)[1]
    alike({name: parts[0][name] + parts[1][name] for name in whole}, whole)
