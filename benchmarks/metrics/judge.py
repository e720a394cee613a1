"""A judge as a metric, `judge:PATH[:FORM]`: its opinion beside the verifiable rewards and IQA on one table.

`score` judges a picture's face beside the photo's, `score_beside_anchor` and `versus_anchor` beside the reference's. A win rate needs the
methods' pictures of one photo side by side: judge those as pairs instead (`--pairs`).
"""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.aligned_faces import NO_FACE, Measure, face_metric
from benchmarks.metric import Metric
from portraitkit.errors import ConfigError, WeightsError
from portraitkit.vlm.model import model_path
from reward_models.judge.judge import load_judge
from reward_models.judge.reward import FORMS, judge_reward, split_argument
from reward_models.judge.settings import source_of
from reward_models.photos import Photos

REMOTE = ("http://", "https://", "vllm:")


def judge_metric(name: str) -> Metric:
    """The metric that `judge:PATH[:FORM]` names; the model is loaded when pictures are measured.
    ConfigError: the form is unknown, or is a win rate.
    WeightsError: no model is there."""
    path, form = split_argument(name.removeprefix("judge:"))
    if form == "win_rate":
        raise ConfigError(f"--metrics {name}: a win rate needs pairs of methods; take score or versus_anchor, or judge pairs (--pairs)")
    folder: Path | None = None
    if not path.startswith(REMOTE):
        try:
            folder = Path(model_path(source_of(path)))
        except WeightsError as error:
            raise WeightsError(str(error).replace("--model", "--metrics judge", 1)) from error

    def open_judge(files: Mapping[str, Path], device: str = "cpu", dtype: str | None = None) -> Measure:
        named = path if form == "score" else f"{path}:{form}"
        reward = judge_reward(named, device=device, load=partial(load_judge, dtype=dtype))

        def measure(candidates: Float[Tensor, "n 3 h w"], photos: Photos) -> Float[Tensor, " n"]:
            return reward.of_groups(candidates, photos, torch.arange(len(candidates)))

        return measure

    parameters = sorted([*folder.glob("*.safetensors"), *folder.glob("judge.json")]) if folder is not None and folder.is_dir() else []
    short = re.sub(r"[^A-Za-z0-9.-]+", "_", path).strip("_")
    return face_metric(
        f"judge_{short}" if form == "score" else f"judge_{short}_{form}",
        f"judge: {FORMS[form]}",
        open_judge,
        licence="that of the judge's model",
        bundled=tuple(parameters),
        revision=path,
        missing=f"{NO_FACE}, a reference is needed and not there, or the judge's answer broke the form",
    )
