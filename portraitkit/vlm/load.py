"""Load a vision-language model and its processor: the embedded one, a local folder or a hub id."""

from pathlib import Path
from typing import Any

import torch

from portraitkit.errors import ConfigError, WeightsError

EMBEDDED = Path(__file__).parent / "embedded"
"""The tiny Qwen2.5-VL that ships with the package; `policies.vlm.pretrain` builds it."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def model_path(source: str) -> str:
    """What `from_pretrained` takes for `embedded`, a folder or a hub id.

    Raises:
        WeightsError: a folder that holds no model.
    """
    if source == "embedded":
        if not (EMBEDDED / "config.json").is_file():
            raise WeightsError("--model embedded: its weights are not built; run make embedded (hours), or give a local folder or a hub id")
        return str(EMBEDDED)
    path = Path(source)
    if path.is_dir() and not (path / "config.json").is_file():
        raise WeightsError(f"--model {source}: the folder holds no config.json; give a folder written by save_pretrained, or a hub id")
    if not path.is_dir() and (path.is_absolute() or source.startswith(".") or source.count("/") != 1):
        raise WeightsError(
            f"--model {source}: no such folder; give embedded, a local folder or a hub id such as Qwen/Qwen2.5-VL-7B-Instruct"
        )
    return source


def load_processor(source: str, *, max_pixels: int | None = None) -> Any:
    """The model's processor, padding on the left.

    Args:
        source: see `model_path`.
        max_pixels: largest picture in pixels; larger ones are scaled down before they become tokens.

    Raises:
        WeightsError: nothing can be loaded from there.
    """
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(model_path(source), padding_side="left")
    except (OSError, ValueError) as error:
        raise WeightsError(f"--model {source}: no processor could be loaded ({_first_line(error)}); {_where(source)}") from error
    if not hasattr(processor, "image_processor"):
        raise WeightsError(f"--model {source}: that model takes no pictures; give a vision-language model")
    if max_pixels is not None:
        size = dict(processor.image_processor.size)
        if "longest_edge" not in size:
            raise ConfigError(f"--max-pixels {max_pixels}: the processor of {source} has no such limit; leave the option out")
        size["longest_edge"] = max_pixels
        size["shortest_edge"] = min(size["shortest_edge"], max_pixels)
        processor.image_processor.size = size
    return processor


def load_model(source: str, *, dtype: str = "float32", device: str = "cpu", freeze_vision: bool = False) -> Any:
    """The model, in evaluation mode.

    Args:
        source: see `model_path`.
        dtype: float32 or bfloat16.
        device: as torch names it.
        freeze_vision: no parameter of the vision tower is trained.

    Raises:
        WeightsError: nothing can be loaded from there.
    """
    from transformers import AutoModelForImageTextToText

    try:
        model: Any = AutoModelForImageTextToText.from_pretrained(model_path(source), dtype=DTYPES[dtype])
    except (OSError, ValueError) as error:
        raise WeightsError(f"--model {source}: could not be loaded ({_first_line(error)}); {_where(source)}") from error
    model = model.to(device).eval()
    if freeze_vision:
        vision_tower(model).requires_grad_(False)
    return model


def check_device(device: str) -> None:
    """Refuse a device that is not there.

    Raises:
        ConfigError: torch does not know it, or cannot use it.
    """
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ConfigError(f"--device {device}: no such device; use cpu or cuda") from error
    if kind not in ("cpu", "cuda") or (kind == "cuda" and not torch.cuda.is_available()):
        raise ConfigError(f"--device {device}: not available here; use cpu")


def vision_tower(model: Any) -> torch.nn.Module:
    """The part of a model that sees.

    Raises:
        ConfigError: it has none by a name that is known here.
    """
    for owner in (getattr(model, "model", None), model):
        for name in ("visual", "vision_tower", "vision_model"):
            if isinstance(tower := getattr(owner, name, None), torch.nn.Module):
                return tower
    raise ConfigError(f"--freeze-vision: {type(model).__name__} has no vision tower that is known here; leave the option out")


def count_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """All parameters, and those that are trained."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)


def _where(source: str) -> str:
    if source == "embedded" or Path(source).is_dir():
        return "check the folder"
    return f"download it (hf download {source}) and give the local folder, or check the id and the network"


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
