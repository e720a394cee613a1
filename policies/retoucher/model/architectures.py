"""Backbones without trained weights, from the built-in architectures or from a local folder's configurations.

Every part on the meta device, for plans; or transformer and autoencoder with random weights on a real one, to measure what work costs.
"""

from functools import partial
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from policies.retoucher.backbones import BUILT_IN, PIPELINES
from policies.retoucher.backbones.pipeline import PipelineBackbone
from policies.retoucher.model.backbone import Condition
from portraitkit.errors import ConfigError, WeightsError
from portraitkit.files.jsonl import read_json

PUBLISHED: dict[str, dict[str, tuple[str, str, dict[str, Any]]]] = read_json(Path(__file__).with_name("published.json"))
"""Backbone -> part -> library, class and configuration: FLUX.1-Kontext-dev's as its published files say, FLUX.2 [klein] 4B's as its
authors' code has it (`Klein4BParams` of github.com/black-forest-labs/flux2), with Qwen3-4B as text encoder. What is not named is the
class's own default, and Qwen2.5-VL-7B, the text encoder of Qwen-Image-Edit, is `portraitkit.vlm`'s."""
WORDS = 96  # Tokens of the edit instruction with its template, where the text encoder reads the photo, too (assumed)
TEXT_PARTS = ("text_encoder", "text_encoder_2")


def meta_backbone(name: str, model: str | None, resolution: int | None, *, device: str = "meta", guidance: float | None = None) -> Any:
    """A built-in backbone whose parts hold no data; its own code runs on meta tensors. The configurations of a local folder count, of a hub
    id or None the published architecture. Any other device holds transformer and autoencoder with random weights, and never text encoders,
    see `stand_in_condition`."""
    import diffusers

    from policies.retoucher.backbones import tiny
    from policies.retoucher.model.loading import check_multiple, check_pipeline
    from portraitkit.vlm.model import meta_model

    if name not in BUILT_IN:
        raise ConfigError(f"--backbone {name}: --dry-run knows the architectures of {', '.join(BUILT_IN)} only; leave --dry-run out")
    folder = tiny.EMBEDDED if name == "tiny" and model is None else Path(model or "")
    from_folder = model is not None and folder.is_dir() or name == "tiny"
    if model is not None and not folder.is_dir() and (name == "tiny" or folder.is_absolute() or model.startswith(".")):
        raise WeightsError(f"--model {model}: no such folder; give a local folder or leave --model out")
    kind: Any = getattr(diffusers, PIPELINES[name])
    family = {"tiny": "flux_kontext", "qwen_image_edit_plus": "qwen_image_edit"}.get(name, name)
    dtype = torch.float32 if name == "tiny" else torch.bfloat16
    if from_folder:
        check_pipeline(kind.__name__, folder)
        index = read_json(folder / "model_index.json").items()
        described = {part: (*of, folder / part) for part, of in index if isinstance(of, list) and (folder / part / "config.json").is_file()}
    else:
        described = PUBLISHED[family]
    makers = {part: partial(_made_like, *of) for part, of in described.items()}
    if family == "qwen_image_edit" and not from_folder:
        makers["text_encoder"] = partial(meta_model, "Qwen/Qwen2.5-VL-7B-Instruct")
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
    parts["scheduler"] = diffusers.FlowMatchEulerDiscreteScheduler()
    needed = (part for part, parameter in signature(kind).parameters.items() if parameter.default is parameter.empty)
    pipeline = kind(**dict.fromkeys(needed) | parts)  # tokenizers and processors are None
    if name == "tiny":
        return tiny.wrap(pipeline)
    load: Any = import_module(f"policies.retoucher.backbones.{name}").BACKBONE  # a class's `load`, with what it binds
    facts = {key: value for key, value in load.keywords.items() if key not in ("kind", "hub_id")}
    facts |= {"resolution": check_multiple(resolution or 512, 16), "base_model": model or name}
    return load.func.__self__(pipeline, batch=4, **facts | ({} if guidance is None else {"guidance": guidance}))


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


def _made_like(library: str, kind: str, config: Path | dict[str, Any]) -> Any:
    """A part by the class that a pipeline's `model_index.json` names, from its configuration or the folder of one."""
    made: Any = getattr(import_module(library), kind)
    if library == "diffusers":
        return made.from_config(made.load_config(config) if isinstance(config, Path) else config)
    return made(made.config_class.from_pretrained(config) if isinstance(config, Path) else made.config_class(**config))
