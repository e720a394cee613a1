"""Agreement and standings against values worked out by hand or published."""

import math

import numpy as np
import pytest

from preference_data.annotations import agreement, bradley_terry
from preference_data.schema import DIMENSIONS


def everywhere(verdict):
    return dict.fromkeys((*DIMENSIONS, "overall"), verdict)


def test_perfect_agreement_is_one_and_opposites_are_below_zero():
    truth = {str(n): everywhere("a" if n % 2 else "b") for n in range(20)}
    found = agreement({"x": truth, "y": truth})["overall"]
    assert found.alpha == pytest.approx(1) and found.equal == 1 and found.pairs == 20
    opposite = {pair: everywhere("b" if row["overall"] == "a" else "a") for pair, row in truth.items()}
    assert agreement({"x": truth, "y": opposite})["overall"].alpha == pytest.approx(-0.95, abs=0.05)


def test_chance_is_near_zero():
    rng = np.random.default_rng(0)
    judges = {name: {str(n): everywhere(str(rng.choice(["a", "b", "tie"]))) for n in range(2000)} for name in "xyz"}
    found = agreement(judges)["texture"]
    assert found.alpha == pytest.approx(0, abs=0.05) and found.equal == pytest.approx(1 / 3, abs=0.03)


def test_nominal_two_values_by_hand():
    """Two judges, four pairs, one disagreement: with two values alpha = 1 - (n - 1) o_ab / (n_a n_b) = 1 - 7 / 15 (Krippendorff 2011)."""
    x = {n: everywhere(v) for n, v in zip("1234", ["a", "a", "b", "b"], strict=True)}
    y = {n: everywhere(v) for n, v in zip("1234", ["a", "a", "a", "b"], strict=True)}
    found = agreement({"x": x, "y": y})["identity"]
    assert found.alpha == pytest.approx(1 - 7 * 1 / (5 * 3)) and found.equal == 0.75


def test_undefined_is_none():
    one = {"1": everywhere("a")}
    assert agreement({"x": one})["overall"].alpha is None
    assert agreement({"x": one, "y": {"2": everywhere("a")}})["overall"].equal is None
    assert agreement({"x": one, "y": one})["overall"].alpha is None and agreement({"x": one, "y": one})["overall"].equal == 1


def test_bradley_terry_of_two_is_the_log_odds():
    found = bradley_terry([("x", "y", "a")] * 30 + [("y", "x", "a")] * 10, prior=0)
    assert found["x"] - found["y"] == pytest.approx(math.log(3), abs=1e-3) and sum(found.values()) == pytest.approx(0)


def test_bradley_terry_recovers_strengths_from_either_side():
    rng, truth = np.random.default_rng(1), {"p": -1.0, "q": 0.0, "r": 1.0}
    names, duels = list(truth), []
    for _ in range(6000):
        one, two = rng.choice(names, 2, replace=False)
        duels.append((str(one), str(two), "a" if rng.random() < 1 / (1 + math.exp(truth[two] - truth[one])) else "b"))
    found = bradley_terry(duels)
    assert all(found[name] == pytest.approx(strength, abs=0.1) for name, strength in truth.items())


def test_ties_level_and_winners_stay_finite():
    assert bradley_terry([("x", "y", "tie")] * 9) == pytest.approx({"x": 0, "y": 0})
    assert 1 < bradley_terry([("x", "y", "a")] * 9)["x"] < 10
    assert bradley_terry([]) == {} == bradley_terry([("x", "x", "a")])
