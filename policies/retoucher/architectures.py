"""Backbones without weights: every part on the meta device, from the built-in architectures or from a local folder's configurations."""

import json
from pathlib import Path
from typing import Any

import torch

from policies.retoucher.backbones import BUILT_IN
from policies.retoucher.backbones.pipeline import PipelineBackbone
from portraitkit.errors import ConfigError, WeightsError

# As the published model_index.json and config.json files say (FLUX.1-Kontext-dev); what is not named is the class's own default.
FLUX_VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 16,
    "norm_num_groups": 32,
    "sample_size": 1024,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
T5_XXL = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_ff": 10240,
    "d_kv": 64,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "projection_dim": 768}


def meta_backbone(name: str, model: str | None, resolution: int | None, *, guidance: float | None = None, vae_tiling: bool = False) -> Any:
    """A built-in backbone whose parts hold no data; its own code runs on meta tensors.

    Args:
        name: as given to `--backbone`.
        model: a local folder, whose configurations count, or a hub id or None: the published architecture.
        resolution: side of the pictures.
        guidance: scale, or None for the backbone's own.
        vae_tiling: the autoencoder works in tiles.

    Raises:
        ConfigError: no built-in backbone, or an impossible resolution.
        WeightsError: the folder holds no pipeline, or another one.
    """
    from diffusers import FluxKontextPipeline, QwenImageEditPipeline, QwenImageEditPlusPipeline

    from policies.retoucher.backbones import tiny
    from policies.retoucher.backbones.flux_kontext import KontextBackbone
    from policies.retoucher.backbones.qwen_image_edit import QwenEditBackbone
    from policies.retoucher.loading import check_multiple, check_pipeline

    if name not in BUILT_IN:
        raise ConfigError(f"--backbone {name}: --dry-run knows the architectures of {', '.join(BUILT_IN)} only; leave --dry-run out")
    folder = tiny.EMBEDDED if name == "tiny" and model is None else Path(model or "")
    from_folder = model is not None and folder.is_dir() or name == "tiny"
    if model is not None and not folder.is_dir() and (name == "tiny" or folder.is_absolute() or model.startswith(".")):
        raise WeightsError(f"--model {model}: no such folder; give a local folder or leave --model out")
    kinds = {"tiny": FluxKontextPipeline, "flux_kontext": FluxKontextPipeline, "qwen_image_edit": QwenImageEditPipeline}
    kind = kinds.get(name, QwenImageEditPlusPipeline)
    if from_folder:
        check_pipeline(kind, folder)
    parts = _parts_of_folder(folder) if from_folder else _flux_parts() if kind is FluxKontextPipeline else _qwen_parts()
    dtype = torch.float32 if name == "tiny" else torch.bfloat16
    for part in parts.values():
        torch.nn.Module.to(part, dtype)  # not diffusers' own, which warns of data that is not there
    missing = ("tokenizer", "tokenizer_2") if kind is FluxKontextPipeline else ("tokenizer", "processor")
    pipeline = kind(scheduler=_scheduler(), **dict.fromkeys(missing), **parts)
    if name == "tiny":
        return tiny.wrap(pipeline)
    if vae_tiling:
        pipeline.vae.enable_tiling()
    facts: dict[str, Any] = {"name": name, "resolution": check_multiple(resolution or 512, 16), "base_model": model or name}
    facts |= {"licence": "", "batch": 4}
    if kind is FluxKontextPipeline:
        return KontextBackbone(pipeline, text_tokens=512, guidance=guidance or 2.5, **facts)
    return QwenEditBackbone(pipeline, guidance=guidance or 4.0, prompt_side=384 if kind is QwenImageEditPlusPipeline else None, **facts)


def parts_of(backbone: PipelineBackbone) -> dict[str, list[torch.nn.Module]]:
    """transformer, autoencoder and text encoders of a backbone."""
    return {"transformer": [backbone.transformer], "autoencoder": [backbone.pipeline.vae], "text encoders": backbone.text_encoders}


def _scheduler() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler()


def _flux_parts() -> dict[str, Any]:
    from diffusers import AutoencoderKL, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    with torch.device("meta"):
        return {
            "transformer": FluxTransformer2DModel(num_layers=19, num_single_layers=38, guidance_embeds=True),
            "vae": AutoencoderKL(**FLUX_VAE),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**CLIP_L)),
            "text_encoder_2": T5EncoderModel(T5Config(**T5_XXL)),
        }


def _qwen_parts() -> dict[str, Any]:
    from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel

    from portraitkit.vlm.architectures import meta_model

    with torch.device("meta"):
        transformer, vae = QwenImageTransformer2DModel(), AutoencoderKLQwenImage()
    return {"transformer": transformer, "vae": vae, "text_encoder": meta_model("Qwen/Qwen2.5-VL-7B-Instruct")}


def _parts_of_folder(folder: Path) -> dict[str, Any]:
    """Parts with parameters that a pipeline's folder names, from their configurations alone."""
    import diffusers
    import transformers

    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    parts = {}
    for name, entry in index.items():
        if not isinstance(entry, list) or not (folder / name / "config.json").is_file():
            continue
        library, kind = entry
        with torch.device("meta"):
            if library == "diffusers":
                made: Any = getattr(diffusers, kind)
                parts[name] = made.from_config(made.load_config(folder / name))
            else:
                made = getattr(transformers, kind)
                parts[name] = made(made.config_class.from_pretrained(folder / name))
    return parts
