"""Loading a stock pipeline's parts within a memory budget. Imports nothing heavy before it is asked to."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from portraitkit.errors import ConfigError, WeightsError, reason_of
from portraitkit.files.jsonl import read_json

LOADING = ("guidance", "negative_prompt", "quantize", "offload_text_encoder", "vae_tiling")
"""Options that are handed to a backbone when they are not at their default; a backbone need not know them all."""


def loading_options(config: Any) -> dict[str, Any]:
    """The options of `LOADING` that a configuration changes."""
    defaults = {field.name: field.default for field in fields(config)}
    return {name: getattr(config, name) for name in LOADING if getattr(config, name) != defaults[name]}


def check_multiple(resolution: int, of: int) -> int:
    """A resolution that the model can work at; ConfigError for none."""
    if resolution < of or resolution % of:
        raise ConfigError(f"--resolution {resolution}: this backbone works on multiples of {of}; try {max(of, resolution // of * of)}")
    return resolution


def load_pipeline(
    kind: Any, name: str, device: str, *, quantize: str = "none", resident: tuple[str, ...] = (), vae_tiling: bool = False
) -> Any:
    """A stock pipeline in bf16.
    ConfigError: bitsandbytes or a GPU is missing.
    WeightsError: the weights are not there, cannot be had, or are another pipeline's."""
    import torch
    from huggingface_hub.errors import HFValidationError

    extra = {}
    if quantize == "nf4":
        from diffusers import PipelineQuantizationConfig

        need_bitsandbytes("--quantize nf4", "--quantize none")
        if not has_accelerator():
            raise ConfigError("--quantize nf4: diffusers quantises on a GPU only, and there is none here; use --quantize none")
        nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16}
        parts = {"quant_kwargs": nf4, "components_to_quantize": ["transformer"]}
        extra = {"quantization_config": PipelineQuantizationConfig(quant_backend="bitsandbytes_4bit", **parts)}
    check_pipeline(kind.__name__, Path(name))
    try:
        pipeline = kind.from_pretrained(name, dtype=torch.bfloat16, **extra)
    except (OSError, HFValidationError) as error:
        advice = "accept the licence on its model page and log in, or give --model a local folder"
        raise WeightsError(f"{name}: no {kind.__name__} weights there ({reason_of(error)}); {advice}") from error
    for part in resident:
        getattr(pipeline, part).to(device)
    if vae_tiling:
        pipeline.vae.enable_tiling()
    return pipeline


def check_pipeline(kind: str, folder: Path) -> None:
    """Refuse a local folder that holds another pipeline, before its gigabytes are read."""
    index = folder / "model_index.json"
    if not index.is_file():
        return
    try:
        stored = read_json(index).get("_class_name")
    except (ValueError, AttributeError) as error:
        raise WeightsError(f"{index}: no JSON object ({error}); download the model again") from error
    if stored != kind:
        raise WeightsError(f"{folder}: holds a {stored}, but this --backbone is made for {kind}; give another --model")


def has_accelerator() -> bool:
    """Whether torch sees a GPU that bitsandbytes knows."""
    import torch

    return torch.cuda.is_available() or torch.xpu.is_available()


def need_bitsandbytes(option: str, instead: str) -> Any:
    """The module bitsandbytes; ConfigError where it is not installed."""
    try:
        import bitsandbytes
    except ImportError as error:
        raise ConfigError(f"{option}: needs bitsandbytes, which is not installed; pip install bitsandbytes, or use {instead}") from error
    return bitsandbytes
