"""Rewards that overlap with rollouts: the parts of a rollout make the whole one, and where rewards are scored changes no bit."""

from concurrent.futures import Future
from dataclasses import replace

import pytest
import torch
from rollouts import draw_noise, roll_out

from policies.retoucher.rank_groups import diversity_of
from policies.retoucher.rollout import join
from policies.retoucher.rollout import roll_out as roll_out_photos
from reward_models.reward_set import build_rewards


class Elsewhere:
    """Scores in this process, tells in `events` that it was asked, and answers when the first result is waited for."""

    def __init__(self, rewards, events):
        self.rewards, self.events = rewards, events

    def submit(self, names, *unit):
        candidates, photos = unit
        self.events.append(f"submit {len(candidates)} of {len(photos)}")
        future = Future()
        future.set_result(self.rewards.score_unit(list(names), *unit))
        return [future]


@pytest.mark.parametrize("shared", [True, False])
def test_the_parts_of_a_rollout_make_the_whole(backbone, source, config, shared):
    batch = source.load("train", [0, 1, 2])
    condition = backbone.condition(batch.photos.source, config.prompt)
    anchors = backbone.encode(batch.anchors)
    scheduler = config.scheduler(backbone.sigmas(config.num_steps), 0)
    options = {"group_size": config.group_size, "shared_noise": shared}
    whole = roll_out(backbone, condition, anchors, scheduler, **options, generator=torch.Generator().manual_seed(3), batch=64)
    noise = draw_noise(backbone, scheduler.drawn_steps, 3, **options, generator=torch.Generator().manual_seed(3))
    rows = ([0], [1, 2])
    parts = [roll_out_photos(backbone, condition, anchors, scheduler, noise, torch.tensor(some), batch=64) for some in rows]
    joined = join(parts)
    assert torch.equal(joined.photo_of, whole.photo_of) and joined.evaluations == whole.evaluations
    torch.testing.assert_close(joined.latents, whole.latents, rtol=1e-4, atol=1e-4)
    for one, other in zip(joined.steps, whole.steps, strict=True):
        assert torch.equal(one.noise, other.noise) and (one.index, one.shared) == (other.index, other.shared)
        assert torch.equal(one.std, other.std)
        torch.testing.assert_close(one.mean, other.mean, rtol=1e-4, atol=1e-4)
        assert len(one.x) == len(other.x)


def test_a_group_is_scored_while_the_next_is_rolled_out_and_no_bit_changes(make_trainer, config):
    config = replace(config, photos_per_step=3, micro_batch=4, credit="local", lr_scheduler="constant", num_steps=2, segments=1)
    here, there, events = make_trainer(config), make_trainer(config), []
    local = build_rewards(config.rewards, (), "product")
    there.rewards = replace(there.rewards, elsewhere=Elsewhere(local, events), served=config.rewards)
    evaluate = there.backbone.velocity

    def velocity(*args):
        events.append("velocity")
        return evaluate(*args)

    there.backbone.velocity = velocity
    for _ in range(2):
        ours, theirs = here.train_step(), there.train_step()
        assert all(torch.equal(value, theirs.parts[name]) for name, value in ours.parts.items())
        assert torch.equal(ours.rewards, theirs.rewards)
    for name, value in here.adapter.items():
        assert torch.equal(value, there.adapter[name]), name
    submits = [place for place, event in enumerate(events) if event.startswith("submit")]
    assert [events[place] for place in submits[:3]] == [f"submit {config.group_size} of 1"] * 3
    between = [events[a:b].count("velocity") for a, b in zip(submits[:2], submits[1:3], strict=True)]
    assert between == [config.num_steps] * 2  # the next photo is rolled out after the one before was handed over


def test_diversity_is_the_distance_of_pairs():
    pictures = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    pairs = [[(a, b) for a in group for b in group if a < b] for group in (range(3), range(3, 6))]
    want = [sum(float((pictures[a] - pictures[b]).square().mean()) for a, b in some) / len(some) for some in pairs]
    assert diversity_of(pictures, 3).square().tolist() == pytest.approx(want)
    assert not diversity_of(pictures[:1].expand(4, -1, -1, -1), 4).any()


def test_photos_are_rolled_out_together_where_they_fit_a_micro_batch(make_trainer, config):
    events = []
    trainer = make_trainer(replace(config, photos_per_step=3, micro_batch=9))
    trainer.rewards = replace(
        trainer.rewards, elsewhere=Elsewhere(build_rewards(config.rewards, (), "product"), events), served=("texture",)
    )
    trainer.train_step()
    assert events == [f"submit {config.group_size} of 1"] * 3  # a group is a unit, whatever is rolled out with it
