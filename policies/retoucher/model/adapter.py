"""A trained LoRA put onto a backbone, its rank and alpha read from the file. The file is checked without importing torch."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from portraitkit.errors import WeightsError

FILE = "pytorch_lora_weights.safetensors"
PREFIX = "transformer."
METADATA = "lora_adapter_metadata"  # where diffusers' `save_lora_weights` keeps peft's configuration, as JSON


@dataclass(frozen=True)
class AdapterFile:
    """What the header of a LoRA file says."""

    path: Path
    shapes: dict[str, tuple[int, ...]]  # Of all tensors, by key
    settings: dict[str, Any]  # peft's configuration of the transformer's LoRA; empty where the file has none

    @property
    def ranks(self) -> list[int]:
        """Ranks of its modules; a LoRA of one rank has one."""
        return sorted({shape[0] for key, shape in self.shapes.items() if key.endswith(".lora_A.weight") and len(shape) == 2})


def without_prefix(items: dict[str, Any]) -> dict[str, Any]:
    """The entries of a LoRA file by the names of the transformer's own modules."""
    return {key.removeprefix(PREFIX): value for key, value in items.items()}


def save_lora(transformer: Any, folder: str | Path) -> None:
    """Write a transformer's LoRA as `pytorch_lora_weights.safetensors`, alpha included; diffusers' `load_lora_weights(folder)` takes it."""
    from diffusers.loaders import FluxLoraLoaderMixin
    from peft import get_peft_model_state_dict

    FluxLoraLoaderMixin.save_lora_weights(  # the same file for every architecture with a `transformer`
        folder,
        transformer_lora_layers=get_peft_model_state_dict(transformer),
        transformer_lora_adapter_metadata=transformer.peft_config["default"].to_dict(),
    )


def load_lora(transformer: Any, folder: str | Path) -> None:
    """Load a LoRA file into the LoRA layers of a transformer.

    Raises:
        WeightsError: no LoRA there, or one of other modules or another rank; the keys are named.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    file = read_adapter(folder)
    shapes = without_prefix(file.shapes)
    own = get_peft_model_state_dict(transformer)
    wrong = sorted(own.keys() ^ shapes.keys()) or [key for key in own if tuple(own[key].shape) != shapes[key]]
    if wrong:
        raise WeightsError(f"{file.path}: {len(wrong)} tensors do not fit this backbone and --rank, first {wrong[0]!r}")
    set_peft_model_state_dict(transformer, without_prefix(load_file(file.path)))


def attach_adapter(backbone: Any, folder: str | Path) -> None:
    """Add LoRA layers to a backbone and load a trained LoRA into them.

    The rank is that of the file's tensors; alpha is what the file's metadata says, or else the rank, as in diffusers.
    Everything is checked before the first layer is added: an error leaves the backbone as it was.

    Args:
        backbone: a `Backbone` without LoRA layers.
        folder: holds `pytorch_lora_weights.safetensors`, as align-retoucher and diffusers write it; or the file.

    Raises:
        WeightsError: no LoRA there, an unreadable file, or one made for another base; the keys are named.
    """
    from peft import LoraConfig
    from torch import nn

    file = read_adapter(folder)
    linear = {
        name: module
        for name, module in backbone.transformer.named_modules()
        if isinstance(module, nn.Linear) and any(f".{name}".endswith(f".{target}") for target in backbone.lora_targets)
    }
    if len(file.ranks) > 1:
        raise WeightsError(f"{file.path}: ranks {file.ranks} are mixed; one rank for all modules is needed")
    rank = file.ranks[0] if file.ranks else 0
    expected = {}
    for name, module in linear.items():
        expected[f"{PREFIX}{name}.lora_A.weight"] = (rank, module.in_features)
        expected[f"{PREFIX}{name}.lora_B.weight"] = (module.out_features, rank)
    _compare(file, expected, backbone.name)
    settings = LoraConfig(
        r=rank,
        lora_alpha=file.settings.get("lora_alpha", rank),
        use_rslora=file.settings.get("use_rslora", False),
        target_modules=backbone.lora_targets,
    )
    backbone.transformer.add_adapter(settings)
    load_lora(backbone.transformer, file.path)
    backbone.transformer.requires_grad_(False)


def read_adapter(folder: str | Path) -> AdapterFile:
    """Read the header of a LoRA file; no tensor is loaded.

    Args:
        folder: holds `pytorch_lora_weights.safetensors`; or a safetensors file.

    Raises:
        WeightsError: no such file, or it is no safetensors file.
    """
    path = Path(folder) / FILE if Path(folder).is_dir() else Path(folder)
    if path.suffix != ".safetensors" or not path.is_file():
        raise WeightsError(f"{path}: no LoRA there; give a folder with {FILE}, as align-retoucher writes it, or a .safetensors file")
    try:
        with safe_open(path, framework="numpy") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 (a file, not a dict)
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file ({error}); copy or train it again") from error
    try:
        settings = {key.removeprefix(PREFIX): value for key, value in json.loads(metadata.get(METADATA, "{}")).items()}
    except (json.JSONDecodeError, AttributeError) as error:
        raise WeightsError(f"{path}: its {METADATA} is no JSON object ({error}); save the LoRA again") from error
    return AdapterFile(path, shapes, settings)


def check_start(folder: str | Path, rank: int, alpha: int) -> None:
    """Refuse a LoRA to start from that a run's rank and alpha would scale differently from how it was trained.

    Raises:
        WeightsError: no LoRA there, or one of another rank or alpha.
    """
    file = read_adapter(folder)
    have = max(file.ranks, default=0)
    has_alpha = file.settings.get("lora_alpha", have)
    if file.ranks != [rank] or has_alpha != alpha:
        raise WeightsError(
            f"--init-adapter {file.path}: has rank {', '.join(map(str, file.ranks)) or '0'} and alpha {has_alpha:g}, the run {rank} and "
            f"{alpha}; use --rank {have} --lora-alpha {has_alpha:g}"
        )


def _compare(file: AdapterFile, expected: dict[str, tuple[int, ...]], name: str) -> None:
    complaints = {
        "missing": sorted(expected.keys() - file.shapes.keys()),
        "foreign": sorted(file.shapes.keys() - expected.keys()),
        "of another shape": [key for key, shape in file.shapes.items() if expected.get(key, shape) != shape],
    }
    found = [f"{len(keys)} {what} ({_some(keys)})" for what, keys in complaints.items() if keys]
    if found:
        raise WeightsError(f"{file.path}: not a LoRA for backbone {name!r}, tensors {' and '.join(found)}: use the base of that LoRA")


def _some(keys: list[str], count: int = 3) -> str:
    return ", ".join(keys[:count]) + (", .." if len(keys) > count else "")
