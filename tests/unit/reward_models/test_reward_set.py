"""Rewards by name, scored together."""

import math
from collections import Counter

import pytest
import torch

from portraitkit.errors import ConfigError, WeightsError
from reward_models import reward_set
from reward_models.judge.judge import WEIGHTS
from reward_models.reward_set import CHECKS, LEARNED_WEIGHT, RewardSet, build_rewards
from reward_models.verifiable import REWARDS

NAMES = tuple(REWARDS)


def test_default_weights_are_the_rewards_own_and_those_of_the_mean_sum_to_one():
    weights = build_rewards(NAMES, (), "product").weights
    assert weights.pop("own_color") == 1.0  # a guard: outside the mean
    assert weights == {"blemish_removal": 0.40, "texture": 0.20, "skin_tone": 0.15, "identity": 0.15, "clarity": 0.10}
    assert sum(weights.values()) == pytest.approx(1)


def test_a_judge_s_dimensions_weigh_what_the_rewards_that_ask_the_same_do():
    shared = Counter(name for some in CHECKS.values() for name in some)
    of = {name: sum(REWARDS[one].weight / shared[one] for one in some if not REWARDS[one].guard) for name, some in CHECKS.items()}
    assert pytest.approx(of) == WEIGHTS


def test_given_weights_replace_them_in_order():
    assert build_rewards(("clarity", "texture"), (3.0, 1.0), "sum").weights == {"clarity": 3.0, "texture": 1.0}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("textur", "reward 'textur' is unknown; did you mean 'texture'?; known: blemish_removal, texture, .*iqa:NAME"),
        ("texture:2", "reward 'texture:2' is unknown"),
        ("", "reward '' is unknown"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(name, message):
    with pytest.raises(ConfigError, match=message.replace("?;", r"\?;")):
        build_rewards((name,), (), "product")


def test_no_reward_at_all_is_refused():
    with pytest.raises(ConfigError, match="--rewards is empty"):
        build_rewards((), (), "product")


@pytest.mark.parametrize("weight", [0.0, -0.5, math.nan])
def test_weights_not_above_zero_are_refused(weight):
    with pytest.raises(ConfigError, match="of reward 'texture': must be above 0; leave the reward out instead"):
        build_rewards(("clarity", "texture"), (1.0, weight), "product")


def test_learned_rewards_get_their_argument_and_the_learned_weight(monkeypatch):
    asked = []
    monkeypatch.setattr(
        reward_set, "iqa_reward", lambda name: asked.append(name) or (lambda candidates, photos: candidates.mean((1, 2, 3)))
    )
    rewards = build_rewards(("texture", "iqa:topiq_nr-face"), (), "product")
    assert asked == ["topiq_nr-face"]
    assert rewards.weights["iqa:topiq_nr-face"] == LEARNED_WEIGHT


def test_a_learned_reward_without_weights_says_so(tmp_path):
    with pytest.raises(WeightsError, match=f"clip_similarity: {tmp_path} has no open_clip_config.json"):
        build_rewards((f"clip_similarity:{tmp_path}",), (), "product")


def test_the_batch_size_changes_nothing(photos, retouches):
    candidates = 0.5 * (retouches + photos.source)
    whole = build_rewards(NAMES, (), "product").parts(candidates, photos)
    for batch in (1, 3):
        split = RewardSet(dict(REWARDS), {}, "product", batch=batch).parts(candidates, photos)
        for name in NAMES:
            torch.testing.assert_close(split[name], whole[name], rtol=1e-4, atol=1e-4)


def test_parts_need_no_gradient(photos, retouches):
    candidate = retouches[:1].clone().requires_grad_()
    parts = build_rewards(NAMES, (), "product").parts(candidate, photos.select(torch.tensor([0])))
    assert not any(value.requires_grad for value in parts.values())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_candidate_with_one_bad_pixel_is_unscorable_and_harms_no_other(photos, retouches, value):
    """Not even in the background, which the identity net never looks at: it must not be scored by what is left."""
    rewards = build_rewards(NAMES, (), "product")
    candidates = retouches.clone()
    candidates[2, 0, 0, 0] = value
    parts = rewards.parts(candidates, photos)
    assert all(part[2].isnan() for part in parts.values())
    combined, expected = rewards.combined(parts), rewards.combined(rewards.parts(retouches, photos))
    assert combined[2].isnan()
    rest = torch.arange(len(candidates)) != 2
    torch.testing.assert_close(combined[rest], expected[rest])
