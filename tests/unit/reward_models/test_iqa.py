"""No-reference quality metrics of pyiqa: their ranges, and that nothing is downloaded or unpickled.

A stand-in for pyiqa is enough for what this package adds; the tests of the real one are skipped where it cannot be imported.
"""

import math
import pickle
import sys
import urllib.request
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from unpickled import Touch

from portraitkit.errors import ConfigError, WeightsError
from reward_models.learned import ScoreRange, iqa_reward, score_range

METRICS = {
    "up": {"metric_mode": "NR", "score_range": "~0, ~10"},
    "down": {"metric_mode": "NR", "score_range": "0, 100", "lower_better": True},
    "signed": {"metric_mode": "NR", "score_range": "-1, 1"},
    "open": {"metric_mode": "NR", "score_range": "0, "},
    "lpips": {"metric_mode": "FR", "score_range": "0, 1"},
}


class Brightness(torch.nn.Module):
    """100 times the mean of each picture, as a column, as pyiqa's metrics give it."""

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        assert pictures.isfinite().all() and pictures.min() >= 0 and pictures.max() <= 1
        return 100 * pictures.mean((1, 2, 3))[:, None]


@pytest.fixture
def pyiqa(monkeypatch) -> ModuleType:
    """A module that looks like pyiqa; `build` is what its `create_metric` does."""
    names = ("pyiqa", "pyiqa.default_model_configs", "pyiqa.utils", "pyiqa.utils.download_util")
    modules: dict[str, Any] = {name: ModuleType(name) for name in names}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(modules[parent], last, module)
    fake = modules["pyiqa"]
    fake.default_model_configs.DEFAULT_CONFIGS = METRICS
    fake.utils.download_util.download_url_to_file = lambda *_: None
    fake.build = Brightness
    fake.create_metric = lambda name, device: fake.build()
    return fake


@pytest.fixture(scope="module")
def real_pyiqa() -> None:
    try:
        score_range("piqe")
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    ("scale", "rewards"),
    [
        (ScoreRange(0, 10, False), [0.0, 0.0, 0.25, 1.0, 1.0]),
        (ScoreRange(0, 10, True), [1.0, 1.0, 0.75, 0.0, 0.0]),
        (ScoreRange(-10, 10, False), [0.25, 0.5, 0.625, 1.0, 1.0]),
    ],
)
def test_scores_become_rewards(scale, rewards):
    assert scale.to_reward(torch.tensor([-5.0, 0.0, 2.5, 10.0, 11.0])).tolist() == pytest.approx(rewards)
    assert scale.to_reward(torch.tensor([math.nan])).isnan().all()


def test_range_and_direction_are_pyiqas(pyiqa):
    assert score_range("up") == ScoreRange(0, 10, False)
    assert score_range("down") == ScoreRange(0, 100, True)
    assert score_range("signed") == ScoreRange(-1, 1, False)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dowm", "iqa:dowm: the metric is unknown; did you mean 'down'"),
        ("lpips", "iqa:lpips: the metric compares with a reference picture"),
        ("open", "iqa:open: the metric has no finite range and cannot become a reward"),
        ("", "iqa:: the metric is unknown"),
    ],
)
def test_metrics_that_cannot_be_rewards_are_refused(pyiqa, name, message):
    with pytest.raises(ConfigError, match=message):
        iqa_reward(name)


def test_without_pyiqa_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    with pytest.raises(ConfigError, match=r"iqa rewards need pyiqa .*: install it with pip install 'portraitkit\[iqa\]'"):
        iqa_reward("piqe")


def test_the_reward_clamps_pictures_and_marks_those_that_are_not_finite(pyiqa, photos):
    candidates = torch.stack([torch.full((3, 128, 128), value) for value in (0.0, 0.25, 2.0, 0.5, 0.5, 1.0, -1.0, 0.75)])
    candidates[3, 1, 7, 7] = math.nan
    candidates[4, 1, 7, 7] = math.inf
    values = iqa_reward("down")(candidates.requires_grad_(), photos)
    assert values.tolist() == pytest.approx([1.0, 0.75, 0.0, math.nan, math.nan, 0.0, 1.0, 0.25], nan_ok=True)
    assert not values.requires_grad


ROADS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "pyiqa": (
        lambda fake: fake.utils.download_util.download_url_to_file("https://a/b.pth", "/cache/b.pth"),
        "needs b.pth in /cache, where it is not: download https://a/b.pth and put it there",
    ),
    "torch hub": (lambda fake: torch.hub.load_state_dict_from_url("https://a/b.pth"), "needs b.pth in .*download https://a/b.pth"),
    "urllib": (lambda fake: urllib.request.urlopen("https://a/b.pth"), "needs https://a/b.pth, which is not cached here: run python -c"),
    "socket": (lambda fake: __import__("socket").create_connection(("weights.example", 443)), "needs weights.example, which is not cached"),
}


@pytest.mark.parametrize("road", ROADS)
def test_missing_weights_are_refused_on_one_line_and_nothing_is_fetched(pyiqa, tmp_path, monkeypatch, road):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    pyiqa.build = lambda: ROADS[road][0](pyiqa)
    with pytest.raises(WeightsError, match="^iqa:up " + ROADS[road][1]) as caught:
        iqa_reward("up")
    assert "\n" not in str(caught.value)


def test_the_hub_is_offline_while_a_metric_is_built_and_all_is_put_back_after(pyiqa, monkeypatch):
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    before = (torch.hub.download_url_to_file, urllib.request.urlopen, hub.HF_HUB_OFFLINE)
    seen = []

    def build() -> torch.nn.Module:
        seen.append(hub.HF_HUB_OFFLINE)
        return Brightness()

    pyiqa.build = build
    iqa_reward("up")
    assert seen == [True]
    assert (torch.hub.download_url_to_file, urllib.request.urlopen, hub.HF_HUB_OFFLINE) == before


def test_a_pickle_that_would_run_code_is_refused_unrun(pyiqa, tmp_path):
    torch.save({"weight": Touch(tmp_path / "owned")}, tmp_path / "weights.pth", pickle_module=pickle)
    pyiqa.build = lambda: torch.load(tmp_path / "weights.pth")  # weights_only is forced from outside
    with pytest.raises(WeightsError, match="iqa:up: its weights hold more than tensors"):
        iqa_reward("up")
    assert not (tmp_path / "owned").exists()


def test_a_package_that_a_metric_lacks_is_named(pyiqa):
    pyiqa.build = lambda: __import__("no_such_package")
    with pytest.raises(ConfigError, match="iqa:up: the metric needs a package that is not installed: .*no_such_package"):
        iqa_reward("up")


def test_real_piqe_needs_no_file_and_prefers_the_photo_to_blocks(real_pyiqa, photos):
    blocks = torch.nn.functional.interpolate(photos.source, scale_factor=1 / 8).repeat_interleave(8, 2).repeat_interleave(8, 3)
    reward = iqa_reward("piqe")
    good, bad = reward(photos.source, photos), reward(blocks, photos)
    assert ((good >= 0) & (good <= 1)).all()
    assert good.mean() > bad.mean() + 0.1


@pytest.mark.parametrize("name", ["niqe", "brisque", "musiq"])
def test_real_metrics_without_their_file_are_refused(real_pyiqa, tmp_path, monkeypatch, name):
    import pyiqa.utils.download_util

    monkeypatch.setattr(pyiqa.utils.download_util, "DEFAULT_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(WeightsError, match=f"iqa:{name} needs .*where it is not: download https://"):
        iqa_reward(name)


def test_a_real_unknown_metric_is_refused_with_the_nearest(real_pyiqa):
    with pytest.raises(ConfigError, match="iqa:musiqq: the metric is unknown; did you mean 'musiq'"):
        iqa_reward("musiqq")
