"""Each kind of label shows its own fault, by number, and more of it with more strength."""

import pytest
import torch
from torch import Tensor

from portraitkit.pictures.images import luminance
from preference_data.people.synthetic import Case, make_case
from reward_models.filters import blur
from tools.embedded.labels import LABEL_SHARES, LABELS


@pytest.fixture(scope="module", params=[0, 1, 2, 3])
def case(request) -> Case:
    return make_case("validation", request.param)


def make(case: Case, kind: str, strength: float) -> Tensor:
    return LABELS[kind](case.source, case.clean, case.skin, strength)


def detail(image: Tensor, mask: Tensor) -> float:
    """RMS of the fine part inside the mask."""
    luma = luminance(image)[None]
    fine = (luma - blur(luma, 1.5))[0]
    return float((fine.square() * mask).sum().div(mask.sum()).sqrt())


def untouched(case: Case) -> Tensor:
    return (case.skin > 0.95) & (case.opacity == 0)


def test_shares_are_of_these_kinds_and_sum_to_one():
    assert list(LABEL_SHARES) == list(LABELS) == ["good", "half_done", "over_smoothed", "whitened"]
    assert sum(LABEL_SHARES.values()) == pytest.approx(1)


@pytest.mark.parametrize("kind", LABELS)
def test_every_label_is_a_picture_and_leaves_its_inputs_alone(case, kind):
    before = [part.clone() for part in (case.source, case.clean, case.skin)]
    for strength in (0.0, 1.0):
        label = make(case, kind, strength)
        assert label.shape == (3, 128, 128)
        assert ((label >= 0) & (label <= 1)).all()
    assert all(torch.equal(one, other) for one, other in zip(before, (case.source, case.clean, case.skin), strict=True))


def test_good_is_the_clean_portrait(case):
    assert torch.equal(make(case, "good", 0.0), case.clean)
    assert torch.equal(make(case, "good", 1.0), case.clean)


@pytest.mark.parametrize(("strength", "left"), [(0.0, 0.45), (0.5, 0.675), (1.0, 0.9)])
def test_half_done_leaves_a_known_part_of_each_blemish(case, strength, left):
    torch.testing.assert_close(make(case, "half_done", strength) - case.clean, left * (case.source - case.clean), rtol=1e-3, atol=1e-6)


def test_over_smoothed_loses_pores_on_the_skin(case):
    before = detail(case.clean, untouched(case))
    after = [detail(make(case, "over_smoothed", strength), untouched(case)) for strength in (0.0, 0.5, 1.0)]
    assert after[0] < 0.7 * before
    assert after == sorted(after, reverse=True)
    off = case.skin[0] == 0
    assert torch.equal(make(case, "over_smoothed", 1.0)[:, off], torch.lerp(case.clean, case.source, 0.25)[:, off])


def test_over_smoothing_keeps_the_tone(case):
    mask = untouched(case)
    shift = luminance(make(case, "over_smoothed", 0.5) - case.clean)[mask].mean()
    assert shift.abs() < 0.02


@pytest.mark.parametrize(("strength", "gain"), [(0.0, 1.05), (1.0, 1.12)])
def test_whitened_brightens_and_greys_the_skin_by_a_known_factor(case, strength, gain):
    mask = (untouched(case) & (case.clean.amax(0) < 0.85) & (case.skin == 1))[0]
    before, after = case.clean[:, mask], make(case, "whitened", strength)[:, mask]
    torch.testing.assert_close(after.mean(0), gain * before.mean(0), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(after - after.mean(0), 0.92 * gain * (before - before.mean(0)), rtol=1e-3, atol=1e-4)
    off = case.skin[0] == 0
    assert torch.equal(make(case, "whitened", strength)[:, off], torch.lerp(case.clean, case.source, 0.4)[:, off])


def test_only_the_good_label_removes_the_blemishes(case):
    spots = (case.opacity > 0.5).expand(3, -1, -1) & (case.skin > 0.95)
    full = (case.source - case.clean).abs()[spots].mean()
    left = {kind: float((make(case, kind, 0.0) - case.clean).abs()[spots].mean() / full) for kind in LABELS}
    assert left["good"] == 0
    assert left["half_done"] == pytest.approx(0.45, abs=0.01)
    assert min(left["over_smoothed"], left["whitened"]) > 0.1


@pytest.mark.parametrize("kind", ["half_done", "over_smoothed", "whitened"])
def test_strength_makes_it_worse(case, kind):
    away = [float((make(case, kind, strength) - case.clean).square().mean()) for strength in (0.0, 0.5, 1.0)]
    assert 0 < away[0] < away[1] < away[2]
