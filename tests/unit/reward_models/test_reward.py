"""One reward out of several."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from portraitkit.errors import ConfigError
from reward_models.reward import FLOOR, combine

NAN = math.nan
WAYS = ("product", "sum", "minimum")


def combined(parts: dict[str, list[float]], weights: dict[str, float], how: str) -> list[float]:
    return combine({name: torch.tensor(values) for name, values in parts.items()}, weights, how).tolist()


@pytest.mark.parametrize(("how", "expected"), [("product", 0.8**0.75 * 0.4**0.25), ("sum", 0.7), ("minimum", 0.4)])
def test_by_hand(how, expected):
    assert combined({"a": [0.8], "b": [0.4]}, {"a": 3.0, "b": 1.0}, how) == pytest.approx([expected])


def test_a_part_of_zero_is_taken_at_the_floor_in_a_product_only():
    parts = {"a": [0.0], "b": [1.0]}
    assert combined(parts, {"a": 1.0, "b": 1.0}, "product") == pytest.approx([FLOOR**0.5])
    assert combined(parts, {"a": 1.0, "b": 1.0}, "sum") == [0.5]
    assert combined(parts, {"a": 1.0, "b": 1.0}, "minimum") == [0.0]


@pytest.mark.parametrize("how", WAYS)
def test_a_part_that_does_not_apply_leaves_its_weight_to_the_rest(how):
    weights = {"a": 5.0, "b": 1.0, "c": 2.0}
    with_gap = combined({"a": [NAN, 0.5], "b": [0.3, 0.5], "c": [0.9, 0.5]}, weights, how)
    assert with_gap[0] == pytest.approx(combined({"b": [0.3], "c": [0.9]}, {"b": 1.0, "c": 2.0}, how)[0])
    assert with_gap[1] == pytest.approx(0.5)


@pytest.mark.parametrize(("how", "expected"), [("product", 0.4 * 0.5), ("sum", 0.5 * 0.5), ("minimum", 0.2)])
def test_a_guard_multiplies_what_the_others_earn(how, expected):
    parts = {"a": [0.8, 0.8], "b": [0.2, 0.2], "own_color": [0.5, NAN]}
    guarded, without = combined(parts, {"a": 1.0, "b": 1.0, "own_color": 1.0}, how)
    assert guarded == pytest.approx(expected)
    assert without == pytest.approx(combined({"a": [0.8], "b": [0.2]}, {"a": 1.0, "b": 1.0}, how)[0])
    assert combined({"own_color": [0.5]}, {"own_color": 2.0}, how) == pytest.approx([0.5 if how == "minimum" else 0.25])


@pytest.mark.parametrize("how", WAYS)
def test_nothing_applies(how):
    assert math.isnan(combined({"a": [NAN], "b": [NAN]}, {"a": 1.0, "b": 1.0}, how)[0])


@given(
    values=st.lists(st.floats(FLOOR, 1), min_size=1, max_size=5),
    weights=st.lists(st.floats(0.01, 10), min_size=5, max_size=5),
    how=st.sampled_from(WAYS),
)
@settings(deadline=None, max_examples=60)
def test_lies_between_worst_and_best_and_rises_with_every_part(values, weights, how):
    names = [str(i) for i in range(len(values))]
    weight = dict(zip(names, weights, strict=False))
    before = combined({name: [value] for name, value in zip(names, values, strict=True)}, weight, how)[0]
    assert min(values) - 1e-5 <= before <= max(values) + 1e-5
    for better in names:
        raised = {name: [min(1.0, value + 0.2) if name == better else value] for name, value in zip(names, values, strict=True)}
        assert combined(raised, weight, how)[0] >= before - 1e-6


@given(scale=st.floats(0.01, 100))
@settings(deadline=None, max_examples=20)
def test_only_the_proportions_of_the_weights_matter(scale):
    parts = {"a": [0.8], "b": [0.4]}
    for how in WAYS:
        one, other = (combined(parts, {"a": 3 * factor, "b": factor}, how) for factor in (1.0, scale))
        assert one == pytest.approx(other, rel=1e-5)


def test_product_is_differentiable_above_the_floor():
    part = torch.tensor([0.5], requires_grad=True)
    combine({"a": part, "b": torch.tensor([0.25])}, {"a": 1.0, "b": 1.0}, "product").sum().backward()
    assert part.grad is not None
    assert float(part.grad) == pytest.approx(0.5 * (0.25 / 0.5) ** 0.5)


@pytest.mark.parametrize("weights", [{"a": 1.0}, {"a": 1.0, "b": 0.0}, {"a": 1.0, "b": -1.0}])
def test_every_part_needs_a_weight(weights):
    with pytest.raises(ConfigError, match="reward 'b' has weight .*: every reward in use needs a weight above 0"):
        combined({"a": [0.5], "b": [0.5]}, weights, "product")
