"""No-reference image quality as a reward: any metric of pyiqa, by pyiqa's name, offline.

pyiqa's licence is non-commercial, so it is the extra `iqa` and is imported when a reward asks for it. Its metrics fetch their
weights as they are built, and read most of them with full unpickling; here both are refused: a file that is missing is named
with its folder, and weights are read as tensors only. `piqe` and `entropy` need no files at all.
"""

import os
import pickle
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from jaxtyping import Float
from torch import Tensor

from portraitkit.errors import ConfigError, WeightsError, nearest
from portraitkit.runs.checkpoint import check_weights
from reward_models.photos import Photos
from reward_models.reward import RewardFunction


@dataclass(frozen=True)
class ScoreRange:
    """What a metric's scores mean."""

    low: float  # lowest score to be expected
    high: float  # highest score to be expected
    lower_better: bool  # whether a low score is a good one

    def to_reward(self, scores: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Linear onto [0, 1], 1 is best. Scores outside the range are clamped: out there the reward is flat. NaN stays NaN."""
        share = ((scores - self.low) / (self.high - self.low)).clamp(0, 1)
        return 1 - share if self.lower_better else share


def score_range(name: str) -> ScoreRange:
    """Range and direction of a no-reference metric, as pyiqa declares them.

    Args:
        name: pyiqa's name, for example "piqe" (0 to 100, lower is better), "musiq" (0 to 100) or "topiq_nr-face" (0 to 1). pyiqa
            marks bounds that are estimates with "~"; they are taken as they are.

    Raises:
        ConfigError: pyiqa is not installed, has no such no-reference metric, or declares no finite range for it.
    """
    metrics = _import_pyiqa().default_model_configs.DEFAULT_CONFIGS
    known = [key for key, options in metrics.items() if options["metric_mode"] == "NR"]
    if name not in known:
        kind = "compares with a reference picture" if name in metrics else f"is unknown{nearest(name, known)}"
        raise ConfigError(f"iqa:{name}: the metric {kind}; give one of pyiqa's no-reference metrics, for example iqa:piqe")
    low, high = (part.strip().lstrip("~") for part in metrics[name]["score_range"].split(","))
    if not low or not high:
        raise ConfigError(f"iqa:{name}: the metric has no finite range and cannot become a reward; use another, for example iqa:piqe")
    return ScoreRange(float(low), float(high), bool(metrics[name].get("lower_better", False)))


def iqa_reward(name: str) -> RewardFunction:
    """A no-reference metric by pyiqa's name as a reward in [0, 1], 1 is best; see `ScoreRange.to_reward`. NaN where the metric yields none.

    Hacked by: whatever the metric likes whether or not it is a retouch: sharpening, contrast and fine grain raise most of them,
    smoothing raises NIQE and its kin, and none sees that the person has changed. They were trained on whole photographs: scores of
    small face crops are coarse. Use one beside the verifiable rewards, with a small weight, never alone.

    Returns:
        The reward; the photos are not looked at.

    Raises:
        ConfigError: pyiqa or a package that the metric needs is not installed, or the metric cannot be a reward.
        WeightsError: a file of the metric is missing or cannot be read safely. Nothing is downloaded.
    """
    scale = score_range(name)
    metric = _build(name)

    @torch.no_grad()
    def reward(candidates: Float[Tensor, "n 3 h w"], photos: Photos) -> Float[Tensor, " n"]:
        readable = candidates.isfinite().all(dim=1).flatten(1).all(dim=1)
        pictures = torch.where(readable[:, None, None, None], candidates.clamp(0, 1), 0.5)
        scores = metric.to(candidates.device)(pictures).reshape(len(candidates)).to(candidates)
        return torch.where(readable, scale.to_reward(scores), torch.nan)

    return reward


def _import_pyiqa() -> ModuleType:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pyiqa's dependencies warn about each other
            import pyiqa
            import pyiqa.default_model_configs
            import pyiqa.utils.download_util  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"iqa rewards need pyiqa ({error}): install it with pip install 'portraitkit[iqa]'") from error
    return pyiqa


def _build(name: str) -> torch.nn.Module:
    from huggingface_hub.errors import LocalEntryNotFoundError

    pyiqa = _import_pyiqa()
    try:
        with _offline(name), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            metric = pyiqa.create_metric(name, device="cpu").requires_grad_(False)
        check_weights(f"iqa:{name}", metric)
        return metric
    except ImportError as error:
        raise ConfigError(f"iqa:{name}: the metric needs a package that is not installed: {error}") from error
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"iqa:{name}: its weights hold more than tensors, and unpickling them could run code: convert them, or use another metric"
        ) from error
    except (LocalEntryNotFoundError, FileNotFoundError) as error:
        raise WeightsError(f"iqa:{name} needs files from the Hugging Face hub that are not cached here: {_fetch_once(name)}") from error


def _fetch_once(name: str) -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    folders = f"{torch.hub.get_dir()}, {Path.home() / '.cache' / 'clip'} and {HF_HUB_CACHE}"
    return f"run python -c \"import pyiqa; pyiqa.create_metric('{name}')\" where there is a network and copy what it put into {folders}"


@contextmanager
def _offline(name: str) -> Iterator[None]:
    """While a metric is being built, every road to the network raises WeightsError and `torch.load` reads tensors only.

    Not for several threads: the functions that download are replaced for the whole process until the metric stands.
    """
    import huggingface_hub.constants
    import pyiqa.utils.download_util

    def refuse_file(url: str, target: str, *_: Any, **__: Any) -> None:
        path = Path(target)
        raise WeightsError(f"iqa:{name} needs {path.name} in {path.parent}, where it is not: download {url} and put it there")

    def refuse_url(url: Any, *_: Any, **__: Any) -> None:
        raise WeightsError(f"iqa:{name} needs {url}, which is not cached here: {_fetch_once(name)}")

    with ExitStack() as stack:
        stack.enter_context(patch.object(torch.hub, "download_url_to_file", refuse_file))
        stack.enter_context(patch.object(pyiqa.utils.download_util, "download_url_to_file", refuse_file))
        stack.enter_context(patch.object(urllib.request, "urlopen", refuse_url))
        stack.enter_context(patch("socket.getaddrinfo", refuse_url))
        stack.enter_context(patch.object(huggingface_hub.constants, "HF_HUB_OFFLINE", True))
        stack.enter_context(patch.dict(os.environ, {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"}))
        yield
