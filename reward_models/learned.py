"""Rewards by nets of others, offline: image similarity by OpenCLIP, who it is by ArcFace, and no-reference quality by any metric of pyiqa.

Nothing is downloaded: a file that is missing is named with its folder. Weights are read as tensors only.

pyiqa's licence is non-commercial, so it is the extra `iqa` and is imported when a reward asks for it. Its metrics fetch their weights as
they are built, and read most of them with full unpickling; here both are refused. `piqe` and `entropy` need no files at all.
"""

import os
import pickle
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor

from portraitkit.errors import ConfigError, WeightsError, nearest, reason_of
from portraitkit.faces.arcface import DEFAULT_FOLDER, FILES, ArcFaceIdentity, open_arcface
from portraitkit.files.jsonl import read_json
from portraitkit.runs.checkpoint import check_weights
from reward_models.photos import Photos
from reward_models.reward import RewardFunction

# ---- no-reference quality by pyiqa


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


# ---- image similarity by OpenCLIP: the candidate still shows what the photo shows

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")


def clip_similarity(source: str) -> RewardFunction:
    """Cosine similarity of the CLIP image embeddings of candidate and photo, negative values as 0: in [0, 1], higher is better.

    Hacked by: copying the photo, which scores 1; so it only guards, beside a reward for the retouch. At the 224 px or so that CLIP
    looks at, pores and small blemishes hardly count, nor does exact identity; fine adversarial texture can raise it.

    Args:
        source: a folder with open_clip_config.json and its weights (`open_clip_model.safetensors`, or a .bin, of which only
            tensors are read), or MODEL/TAG of open_clip, for example "ViT-B-32/laion2b_s34b_b79k", in the caches already.

    Returns:
        The reward. NaN where the candidate holds NaN.

    Raises:
        ConfigError: `source` is neither a folder nor one of open_clip's MODEL/TAG pairs.
        WeightsError: the weights are missing, damaged, of another model, or hold more than tensors.
    """
    model = _from_folder(Path(source)) if Path(source).is_dir() else _from_tag(source)
    model.eval().requires_grad_(False)
    preprocess = model.visual.preprocess_cfg
    mean, std = (torch.tensor(preprocess[key]).view(3, 1, 1) for key in ("mean", "std"))
    size = preprocess["size"] if isinstance(preprocess["size"], int) else tuple(preprocess["size"])

    def embed(images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n dim"]:
        images = F.interpolate(images, size=size, mode="bicubic", antialias=True).clamp(0, 1)
        return F.normalize(model.to(images.device).encode_image((images - mean.to(images)) / std.to(images)), dim=-1)

    @torch.no_grad()
    def reward(candidates: Float[Tensor, "n 3 h w"], photos: Photos) -> Float[Tensor, " n"]:
        return (embed(candidates) * embed(photos.source)).sum(1).clamp(0, 1)

    return reward


def _from_folder(folder: Path) -> torch.nn.Module:
    if not (folder / CONFIG).is_file():
        raise WeightsError(f"clip_similarity: {folder} has no {CONFIG}: put there what open_clip's push_to_hf_hub saves")
    if not any((folder / name).is_file() for name in WEIGHTS):
        raise WeightsError(f"clip_similarity: {folder} has no weights: put {WEIGHTS[0]} there")
    try:
        config = read_json(folder / CONFIG)
        hub_text = config["model_cfg"]["text_cfg"].get("hf_model_name")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"clip_similarity: {folder / CONFIG} cannot be read ({error!r}): it must be open_clip's own") from error
    if hub_text:
        raise WeightsError(
            f"clip_similarity: {folder} takes its text tower from the hub ({hub_text}): use a CLIP with a text tower of its own"
        )
    return _create(f"local-dir:{folder}", folder)


def _from_tag(source: str) -> torch.nn.Module:
    import open_clip

    known = ["/".join(pair) for pair in open_clip.list_pretrained()]
    if source not in known:
        raise ConfigError(
            f"clip_similarity:{source} is neither a folder nor one of open_clip's MODEL/TAG pairs{nearest(source, known)}; "
            "give for example ViT-B-32/laion2b_s34b_b79k"
        )
    name, tag = source.split("/")
    options = open_clip.get_pretrained_cfg(name, tag)
    path = _cached(source, options)
    preprocess = {key: options[key] for key in ("mean", "std", "interpolation", "resize_mode") if key in options}
    return _create(name, path, pretrained=str(path), force_quick_gelu=options.get("quick_gelu", False), force_preprocess_cfg=preprocess)


def _cached(source: str, options: dict[str, str]) -> Path:
    """The weights' file in the hub's cache or in open_clip's own; never a download."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_CACHE

    wanted = []
    if "hf_hub" in options:
        repository, _, file = options["hf_hub"].rpartition("/")
        names = WEIGHTS[:1] + WEIGHTS[2:] if not file else (str(Path(file).with_suffix(".safetensors")), file)
        for name in names:
            cached = try_to_load_from_cache(repository, name)
            if isinstance(cached, str):
                return Path(cached)
        wanted.append(f"{names[0]} of {repository} in {HF_HUB_CACHE}")
    if "url" in options:
        path = Path.home() / ".cache" / "clip" / Path(options["url"]).name
        if path.is_file():
            return path
        wanted.append(f"{path.name} in {path.parent}")
    raise WeightsError(
        f"clip_similarity:{source} needs {' or '.join(wanted)}: download it there, or give a folder with {CONFIG} and {WEIGHTS[0]}"
    )


def _create(name: str, path: Path, **options: object) -> torch.nn.Module:
    import open_clip

    try:
        model = open_clip.create_model(name, require_pretrained=True, weights_only=True, **options)
        check_weights(f"clip_similarity: {path}", model)
        return model
    except pickle.UnpicklingError as error:
        raise WeightsError(f"clip_similarity: {path} holds more than tensors, and unpickling it could run code: use safetensors") from error
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise WeightsError(
            f"clip_similarity: {path} cannot be loaded ({reason_of(error)}): the file is damaged or of another model"
        ) from error


# ---- who it is by ArcFace (Deng et al., 2019), a second net beside dlib's: a reward, and a measure of evaluations where its weights are


def arcface_reward(source: str, device: str = "cpu") -> RewardFunction:
    """Cosine of ArcFace's embeddings of candidate and person, negative values as 0: in [0, 1], higher is better.

    The person is the clean portrait where it is known, else the photo. Two people have about 0 to .3, photos of one person .5 and more.

    Hacked by: copying the photo, which scores 1; adversarial texture that the net reads as the same face (texture falls).

    Args:
        source: folder of an insightface model pack or its ONNX file; empty is insightface's own place, `~/.insightface/models/buffalo_l`.
        device: of the net; see `open_arcface`.

    Raises:
        WeightsError: onnxruntime or the net is not there. Nothing is downloaded.
    """
    net = open_arcface(Path(source) if source else None, device)

    def reward(candidates: Float[Tensor, "n 3 h w"], photos: Photos) -> Float[Tensor, " n"]:
        return (1 - _distance(net, candidates, photos)).clamp(0, 1)

    return reward


def has_arcface() -> bool:
    """Whether onnxruntime and a net in insightface's own place are there."""
    return find_spec("onnxruntime") is not None and any((DEFAULT_FOLDER.expanduser() / name).is_file() for name in FILES)


def check_arcface() -> None:
    """WeightsError where the net in insightface's own place cannot be opened, at a run's start and not at its first evaluation."""
    if has_arcface():
        open_arcface()


def arcface_change(candidates: Float[Tensor, "n 3 h w"], photos: Photos) -> Float[Tensor, " n"]:
    """1 - cosine of the embeddings of candidate and person, in [0, 2], by the net in insightface's own place.
    WeightsError: it is not there; see `has_arcface`."""
    return _distance(_own_net(str(candidates.device)), candidates, photos)


_own_net = cache(partial(open_arcface, None))  # by its device


def _distance(net: ArcFaceIdentity, candidates: Tensor, photos: Photos) -> Float[Tensor, " n"]:
    unknown = photos.clean.isnan().flatten(1).any(1).view(-1, 1, 1, 1)
    person = net.embedding(torch.where(unknown, photos.source, photos.clean), photos.meshes)
    return net.distance(net.embedding(candidates, photos.meshes.expand(len(candidates), -1, -1)), person)
