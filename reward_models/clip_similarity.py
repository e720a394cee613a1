"""Image similarity by OpenCLIP as a reward: the candidate still shows what the photo shows."""

import pickle
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor

from portraitkit.errors import ConfigError, WeightsError, nearest, reason_of
from portraitkit.files.jsonl import read_json
from portraitkit.runs.checkpoint import check_weights
from reward_models.photos import Photos
from reward_models.reward import RewardFunction

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
