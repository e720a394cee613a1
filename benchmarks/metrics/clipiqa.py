"""CLIP-IQA (Wang et al., 2023): how much nearer a picture is to "Good image" than to "bad image", and four more such pairs, in CLIP."""

from collections.abc import Mapping
from pathlib import Path
from unittest.mock import patch

from benchmarks.metric import Metric, Range, Score, WeightFile
from benchmarks.nets.pyiqa_nets import LICENCE, column, empty_net, quiet
from benchmarks.weight_files import read_state
from portraitkit.errors import WeightsError

FILE = "RN50.pt"
SHA256 = "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762"


def open_clipiqa(files: Mapping[str, Path]) -> Score:
    """The scoring function.

    Raises:
        WeightsError: the file is no CLIP ResNet-50.
    """
    state = {name: value.float() for name, value in read_state(files[FILE], torchscript_sha256=SHA256).items()}
    try:
        with quiet():
            from pyiqa.archs.clip_model import build_model

        clip = build_model(state).float().eval()
        with patch("pyiqa.archs.clipiqa_arch.load", lambda *_: clip):
            return column(empty_net("clipiqa"))
    except (KeyError, RuntimeError) as error:
        raise WeightsError(f"{files[FILE]}: is no CLIP ResNet-50 ({str(error).splitlines()[0]}); download it again") from error


METRIC = Metric(
    name="clipiqa",
    title="quality in words (CLIP)",
    direction="higher",
    range=Range(0, 1),
    reference="none",
    licence=f"{LICENCE}; CLIP: MIT",
    open=open_clipiqa,
    weights=(WeightFile(FILE, f"https://openaipublic.azureedge.net/clip/models/{SHA256}/{FILE}", SHA256, 244),),
    revision="openai/CLIP",
    smallest=32,
)
