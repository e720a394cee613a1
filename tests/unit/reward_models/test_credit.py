"""Local credit: its cells add up to the change of the reward, and a fault is charged to the cell it lies in."""

import pytest
import torch

from portraitkit.grpo import group_advantages, local_advantages
from reward_models.credit import CELLS, local_credit, to_tokens
from reward_models.reward_set import build_rewards

NAMES = ("blemish_removal", "texture", "skin_tone", "identity", "clarity")


def group_of(photos, retouches, index, count=6):
    """Small random variations of one retouch."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.full((count,), index)
    noise = torch.randn(count, 3, 16, 16, generator=generator)
    noise = torch.nn.functional.interpolate(noise, size=128, mode="bilinear") * 0.01
    return (retouches[rows] + noise).clamp(0, 1), photos.select(rows), torch.zeros(count, dtype=torch.long)


@pytest.mark.parametrize("how", ["product", "sum"])
def test_with_full_reach_the_cells_share_the_reward(photos, retouches, how, monkeypatch):
    """To first order: cells of zero reach sum to what the combined reward changes inside the group."""
    from reward_models import credit

    monkeypatch.setattr(credit, "_within", lambda cells, reach: cells)
    rewards = build_rewards(("blemish_removal", "texture", "clarity"), (), how)
    candidates, group, groups = group_of(photos, retouches, 0)
    parts = rewards.parts(candidates, group)
    total = local_credit(candidates, group, groups, rewards, parts).sum(1)
    reward = rewards.combined(parts)
    assert torch.corrcoef(torch.stack([total, reward]))[0, 1] > 0.95
    assert torch.allclose((total - total.mean()).norm(), (reward - reward.mean()).norm(), rtol=0.2)


def test_a_reward_without_a_place_goes_to_every_cell(photos, retouches):
    rewards = build_rewards(("skin_tone",), (), "sum")
    candidates, group, groups = group_of(photos, retouches, 0)
    parts = rewards.parts(candidates, group)
    advantages = local_advantages(local_credit(candidates, group, groups, rewards, parts), rewards.combined(parts), groups)
    expected = group_advantages(rewards.combined(parts), groups).values
    assert torch.allclose(advantages, expected[:, None].expand(-1, CELLS * CELLS), atol=1e-4)


def test_a_fault_is_charged_to_its_surroundings(photos, retouches):
    rewards = build_rewards(("texture",), (), "sum")
    rows = torch.zeros(4, dtype=torch.long)
    candidates = retouches[rows].clone()
    skin = photos.skin[0, 0] * (photos.opacity[0, 0] < 0.01)
    y, x = divmod(int(torch.nn.functional.avg_pool2d(skin[None], 16).flatten().argmax()), 8)
    candidates[2, :, y * 16 : y * 16 + 16 : 2, x * 16 : x * 16 + 16] += 0.1
    parts = rewards.parts(candidates.clamp(0, 1), photos.select(rows))
    credit = local_credit(candidates.clamp(0, 1), photos.select(rows), rows, rewards, parts)
    loss = (credit[2] - credit[0]).view(8, 8)
    assert loss[y, x] < 0
    far = torch.ones(8, 8, dtype=torch.bool)
    far[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3] = False
    assert loss[far].abs().max() < 1e-3 * loss[y, x].abs()


def test_unscorable_and_equal_candidates_get_nothing():
    credit = torch.arange(12.0).view(4, 3)
    values = local_advantages(credit, torch.tensor([0.1, float("nan"), 0.5, 0.5]), torch.tensor([0, 0, 1, 1]))
    assert not values.any()


def test_tokens_take_the_value_of_their_cell():
    cells = torch.arange(64.0)[None]
    assert torch.equal(to_tokens(cells, 64), cells)
    fine = to_tokens(cells, 32 * 32).view(32, 32)
    assert fine[0, 3] == 0 and fine[4, 4] == 9 and fine[31, 31] == 63
