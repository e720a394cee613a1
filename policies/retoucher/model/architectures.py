"""Backbones without trained weights, from the built-in architectures or from a local folder's configurations.

Every part on the meta device, for plans; or transformer and autoencoder with random weights on a real one, to measure what work costs.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from policies.retoucher.backbones import BUILT_IN, PIPELINES
from policies.retoucher.backbones.pipeline import PipelineBackbone
from policies.retoucher.model.backbone import Condition
from portraitkit.errors import ConfigError, WeightsError
from portraitkit.files.jsonl import read_json

PUBLISHED: dict[str, dict[str, dict[str, Any]]] = read_json(Path(__file__).with_name("published.json"))
"""Backbone -> part -> configuration: FLUX.1-Kontext-dev's as its published files say, FLUX.2 [klein] 4B's as its authors' code has it
(`Klein4BParams` of github.com/black-forest-labs/flux2), with Qwen3-4B as text encoder. What is not named is the class's own default."""
WORDS = 96  # Tokens of the edit instruction with its template, where the text encoder reads the photo, too (assumed)
TEXT_PARTS = ("text_encoder", "text_encoder_2")


def meta_backbone(
    name: str, model: str | None, resolution: int | None, *, device: str = "meta", guidance: float | None = None, vae_tiling: bool = False
) -> Any:
    """A built-in backbone whose parts hold no data; its own code runs on meta tensors. The configurations of a local folder count, of a hub
    id or None the published architecture. Any other device holds transformer and autoencoder with random weights, and never text encoders,
    see `stand_in_condition`."""
    import diffusers

    from policies.retoucher.backbones import tiny
    from policies.retoucher.backbones.flux2_klein import KleinBackbone
    from policies.retoucher.backbones.flux_kontext import KontextBackbone
    from policies.retoucher.backbones.qwen_image_edit import QwenEditBackbone
    from policies.retoucher.backbones.qwen_image_edit_plus import PROMPT_SIDE
    from policies.retoucher.model.loading import check_multiple, check_pipeline

    if name not in BUILT_IN:
        raise ConfigError(f"--backbone {name}: --dry-run knows the architectures of {', '.join(BUILT_IN)} only; leave --dry-run out")
    folder = tiny.EMBEDDED if name == "tiny" and model is None else Path(model or "")
    from_folder = model is not None and folder.is_dir() or name == "tiny"
    if model is not None and not folder.is_dir() and (name == "tiny" or folder.is_absolute() or model.startswith(".")):
        raise WeightsError(f"--model {model}: no such folder; give a local folder or leave --model out")
    kind: Any = getattr(diffusers, PIPELINES[name])
    published, missing, wrap, options = {
        "flux_kontext": (_flux_parts, ("tokenizer", "tokenizer_2"), KontextBackbone, {"text_tokens": 512, "guidance": guidance or 2.5}),
        "flux2_klein": (_klein_parts, ("tokenizer",), KleinBackbone, {"guidance": guidance or 4.0}),
        "qwen_image_edit": (_qwen_parts, ("tokenizer", "processor"), QwenEditBackbone, {"guidance": guidance or 4.0}),
    }[{"tiny": "flux_kontext", "qwen_image_edit_plus": "qwen_image_edit"}.get(name, name)]
    if name == "qwen_image_edit_plus":
        options["prompt_side"] = PROMPT_SIDE
    if from_folder:
        check_pipeline(kind.__name__, folder)
    dtype = torch.float32 if name == "tiny" else torch.bfloat16
    makers = _parts_of_folder(folder) if from_folder else published()
    parts, before = {}, torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # 12 billion parameters in float32 would take twice what they are to take
    try:
        for part, make in makers.items():
            with torch.device("meta" if part in TEXT_PARTS else device):
                parts[part] = make()
    finally:
        torch.set_default_dtype(before)
    for part in parts.values():
        torch.nn.Module.to(part, dtype)  # not diffusers' own, which warns of data that is not there
    pipeline = kind(scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), **dict.fromkeys(missing), **parts)
    if name == "tiny":
        return tiny.wrap(pipeline)
    if vae_tiling:
        pipeline.vae.enable_tiling()
    facts: dict[str, Any] = {"name": name, "resolution": check_multiple(resolution or 512, 16), "base_model": model or name}
    return wrap(pipeline, licence="", batch=4, **facts, **options)


def stand_in_condition(backbone: Any, photos: int) -> Condition:
    """What a backbone of this file gives for so many photos, by shape and type: normal random numbers, residuals one 0 a channel."""
    transformer = backbone.transformer
    own = hasattr(backbone, "prompt_side")
    text = WORDS + (backbone.prompt_side // 28) ** 2 if own else backbone.text_tokens
    kind: dict[str, Any] = {"dtype": transformer.dtype, "device": backbone.device}
    prompt = torch.randn(photos if own else 1, text, transformer.config.joint_attention_dim, **kind)
    pooled = torch.randn(len(prompt), 0 if own else transformer.config.get("pooled_projection_dim", 0), **kind)
    negative = torch.randn_like(prompt) if backbone.forwards == 2 else None
    reference = torch.randn(photos, backbone.side**2, transformer.config.in_channels, device=backbone.device)
    return Condition(reference, torch.zeros(photos, 3, 1, 1, device=backbone.device), prompt, pooled, negative, own)


def parts_of(backbone: PipelineBackbone) -> dict[str, list[torch.nn.Module]]:
    """transformer, autoencoder and text encoders of a backbone."""
    return {"transformer": [backbone.transformer], "autoencoder": [backbone.pipeline.vae], "text encoders": backbone.text_encoders}


def _flux_parts() -> dict[str, Callable[[], Any]]:
    from diffusers import AutoencoderKL, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    known = PUBLISHED["flux_kontext"]
    return {
        "transformer": lambda: FluxTransformer2DModel(**known["transformer"]),
        "vae": lambda: AutoencoderKL(**known["vae"]),
        "text_encoder": lambda: CLIPTextModel(CLIPTextConfig(**known["text_encoder"])),
        "text_encoder_2": lambda: T5EncoderModel(T5Config(**known["text_encoder_2"])),
    }


def _klein_parts() -> dict[str, Callable[[], Any]]:
    from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
    from transformers import Qwen3Config, Qwen3ForCausalLM

    known = PUBLISHED["flux2_klein"]
    return {
        "transformer": lambda: Flux2Transformer2DModel(**known["transformer"]),
        "vae": AutoencoderKLFlux2,
        "text_encoder": lambda: Qwen3ForCausalLM(Qwen3Config(**known["text_encoder"])),
    }


def _qwen_parts() -> dict[str, Callable[[], Any]]:
    from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel

    from portraitkit.vlm.model import meta_model

    text = "Qwen/Qwen2.5-VL-7B-Instruct"
    return {"transformer": QwenImageTransformer2DModel, "vae": AutoencoderKLQwenImage, "text_encoder": lambda: meta_model(text)}


def _parts_of_folder(folder: Path) -> dict[str, Callable[[], Any]]:
    """Makers of the parts with parameters that a pipeline's folder names, from their configurations alone."""
    import diffusers
    import transformers

    def made_like(name: str, library: str, kind: str) -> Any:
        if library == "diffusers":
            made: Any = getattr(diffusers, kind)
            return made.from_config(made.load_config(folder / name))
        made = getattr(transformers, kind)
        return made(made.config_class.from_pretrained(folder / name))

    index = read_json(folder / "model_index.json")
    named = {name: entry for name, entry in index.items() if isinstance(entry, list) and (folder / name / "config.json").is_file()}
    return {name: partial(made_like, name, *entry) for name, entry in named.items()}
