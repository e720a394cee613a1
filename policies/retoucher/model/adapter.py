"""A trained LoRA put onto a backbone, its rank and alpha read from the file. The file is checked without importing torch."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from portraitkit.errors import WeightsError

FILE = "pytorch_lora_weights.safetensors"
PREFIX = "transformer."
LAYOUTS = {"base_model.model.": "peft's", "diffusion_model.": "ComfyUI's", "lora_unet_": "kohya's", "lora_transformer_": "kohya's"}
"""How names begin in the files of other trainers, and whose layout that is; what follows may be the module's own name all the same."""
PARTS = {".lora_down.weight": ".lora_A.weight", ".lora_up.weight": ".lora_B.weight"}
PARTS |= {".lora_A.default.weight": ".lora_A.weight", ".lora_B.default.weight": ".lora_B.weight"}
ALPHA = ".alpha"
DORA = (".dora_scale", ".lora_magnitude_vector", ".lora_magnitude_vector.weight")
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
        ends = (".lora_A.weight", *(theirs for theirs, ours in PARTS.items() if ours == ".lora_A.weight"))
        return sorted({shape[0] for key, shape in self.shapes.items() if key.endswith(ends) and len(shape) == 2})

    @property
    def alpha(self) -> float | None:
        """Its alpha, None where the file says nothing; the rank where alphas are tensors, which `read_tensors` multiplies in."""
        ranks, scaled = self.ranks, any(key.endswith(ALPHA) for key in self.shapes)
        return max(ranks, default=0) if scaled else self.settings.get("lora_alpha")

    @property
    def layout(self) -> str:
        """Whose layout it is in, in words; diffusers' own needs none."""
        return next((f" ({whose} layout)" for begin, whose in LAYOUTS.items() if any(key.startswith(begin) for key in self.shapes)), "")


def own_names(keys: Iterable[str], modules: Iterable[str]) -> dict[str, str]:
    """The keys of a LoRA file by the names of the transformer's own modules, whichever trainer's layout it is in.

    >>> own_names(["lora_unet_blocks_0_to_q.lora_down.weight"], ["blocks.0.to_q"])
    {'lora_unet_blocks_0_to_q.lora_down.weight': 'blocks.0.to_q.lora_A.weight'}
    """
    flat = {module.replace(".", "_"): module for module in modules}
    names = {}
    for key in keys:
        name = key
        for begin in (*LAYOUTS, PREFIX):
            name = name.removeprefix(begin)
        end = next((end for end in PARTS if name.endswith(end)), "")
        name = name.removesuffix(end) + PARTS.get(end, "")
        module, dot, part = name.partition(".")
        names[key] = flat.get(module, module) + dot + part
    return names


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
    """Load a LoRA file into a transformer's LoRA layers; WeightsError names the keys where it is of other modules or another rank."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    file = read_adapter(folder)
    own = get_peft_model_state_dict(transformer)
    tensors = read_tensors(file, {key.removesuffix(".lora_A.weight") for key in own})
    wrong = sorted(own.keys() ^ tensors.keys()) or [key for key in own if own[key].shape != tensors[key].shape]
    if wrong:
        raise WeightsError(f"{file.path}: {len(wrong)} tensors do not fit this backbone and --rank, first {wrong[0]!r}{file.layout}")
    set_peft_model_state_dict(transformer, tensors)


def read_tensors(file: AdapterFile, modules: Iterable[str]) -> dict[str, Any]:
    """The tensors of a LoRA file by the transformer's own modules; an alpha that has a tensor of its own is multiplied in."""
    from safetensors.torch import load_file

    from portraitkit.runs.checkpoint import check_weights

    stored = load_file(file.path)
    check_weights(file.path, stored)
    for key, value in stored.items():
        if value.numel() != 1 if key.endswith(ALPHA) else not (value.is_floating_point() and value.numel()):
            kind = f"{str(value.dtype)[6:]} of shape {tuple(value.shape)}; a LoRA holds floats, and one number as alpha: save it again"
            raise WeightsError(f"{file.path}: tensor {key} is {kind}")
    names = own_names(stored, modules)
    tensors = {names[key]: value for key, value in stored.items()}
    for name in [name for name in tensors if name.endswith(ALPHA) and f"{name.removesuffix(ALPHA)}.lora_B.weight" in tensors]:
        up = tensors[key := f"{name.removesuffix(ALPHA)}.lora_B.weight"]
        tensors[key] = up.float() * (float(tensors.pop(name)) / up.shape[1])  # floats of 8 bits cannot be multiplied
    return tensors


def attach_adapter(backbone: Any, folder: str | Path) -> None:
    """Add LoRA layers to a backbone and load a trained LoRA into them.

    The rank is that of the file's tensors; alpha is what the file's metadata or its own tensors of alpha say, or else the rank, as in
    diffusers. Everything is checked before the first layer is added: an error leaves the backbone as it was.

    The folder holds `pytorch_lora_weights.safetensors`, as align-retoucher and diffusers write it, or it is the file. Names may begin as
    other trainers have them (`LAYOUTS`), if modules are called as in diffusers after that.
    WeightsError: no LoRA there, an unreadable file, one that is not finite, or one made for another base; the keys are named."""
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
    _compare(file, linear, expected, backbone.name)
    read_tensors(file, linear)
    scaled = any(key.endswith(ALPHA) for key in file.shapes)
    settings = LoraConfig(
        r=rank,
        lora_alpha=rank if file.alpha is None else file.alpha,
        use_rslora=not scaled and file.settings.get("use_rslora", False),
        target_modules=backbone.lora_targets,
    )
    backbone.transformer.add_adapter(settings)
    load_lora(backbone.transformer, file.path)
    backbone.transformer.requires_grad_(False)


def read_adapter(folder: str | Path) -> AdapterFile:
    """Read the header of a LoRA file, or of `pytorch_lora_weights.safetensors` in a folder; no tensor is loaded.
    WeightsError: no such file, it is no safetensors file, a DoRA, or with alphas that cannot be followed."""
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
        alpha = settings.get("lora_alpha")
        if alpha is not None and not (isinstance(alpha, int | float) and 0 < alpha < 1e6):
            raise WeightsError(f"{path}: its {METADATA} has lora_alpha {alpha!r}; it must be a number above 0, save the LoRA again")
        if settings.get("alpha_pattern"):
            raise WeightsError(f"{path}: its {METADATA} has an alpha_pattern; one alpha for all modules, or a tensor of each, is needed")
        if magnitudes := [key for key in shapes if key.endswith(DORA)]:
            raise WeightsError(f"{path}: is a DoRA ({_some(magnitudes, 1)}), whose magnitudes are not read here; train a LoRA without them")
    except (json.JSONDecodeError, AttributeError) as error:
        raise WeightsError(f"{path}: its {METADATA} is no JSON object ({error}); save the LoRA again") from error
    return AdapterFile(path, shapes, settings)


def check_start(folder: str | Path, rank: int, alpha: int) -> None:
    """WeightsError for a LoRA to start from that a run's rank and alpha would scale differently from how it was trained."""
    file = read_adapter(folder)
    have = max(file.ranks, default=0)
    has_alpha = have if file.alpha is None else file.alpha
    if file.ranks != [rank] or has_alpha != alpha:
        raise WeightsError(
            f"--init-adapter {file.path}: has rank {', '.join(map(str, file.ranks)) or '0'} and alpha {has_alpha:g}, the run {rank} and "
            f"{alpha}; use --rank {have} --lora-alpha {has_alpha:g}"
        )


def _compare(file: AdapterFile, modules: Iterable[str], expected: dict[str, tuple[int, ...]], name: str) -> None:
    names = {key: PREFIX + own for key, own in own_names(file.shapes, modules).items()}
    counts = Counter(names.values())
    alphas = {f"{PREFIX}{module}{ALPHA}" for module in modules}
    shapes = {names[key]: shape for key, shape in file.shapes.items() if names[key] in expected}
    complaints = {
        "missing": sorted(expected.keys() - shapes.keys()),
        "foreign": sorted(key for key, own in names.items() if own not in expected and own not in alphas),
        "given twice": sorted(key for key, own in names.items() if counts[own] > 1),
        "of another shape": [key for key, shape in shapes.items() if expected[key] != shape],
    }
    found = [f"{len(keys)} {what} ({_some(keys)})" for what, keys in complaints.items() if keys]
    if found:
        raise WeightsError(
            f"{file.path}: not a LoRA for backbone {name!r}{file.layout}, tensors {' and '.join(found)}: use the base of that LoRA, and "
            "names of diffusers' modules"
        )


def _some(keys: list[str], count: int = 3) -> str:
    return ", ".join(keys[:count]) + (", .." if len(keys) > count else "")
