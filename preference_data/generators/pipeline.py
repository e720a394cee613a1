"""Any diffusers image-editing pipeline, by folder or hub id: Kontext, Qwen-Image-Edit, the embedded retoucher."""

import inspect
from pathlib import Path
from typing import Any

import torch

from portraitkit.errors import ConfigError, WeightsError, reason_of
from portraitkit.pictures.images import from_pil, resize, to_pil
from portraitkit.runs.checkpoint import check_weights
from preference_data.generators import Candidate, GeneratorOptions, Subject
from preference_data.schema import Origin


class Pipeline:
    """One candidate a seed, by a pipeline that takes `image`, `prompt`, `num_inference_steps` and `generator`, and returns an object with
    `images` (PIL). Name and model (hub id or path) are as recorded.
    """

    def __init__(self, pipeline: Any, name: str, model: str, options: GeneratorOptions) -> None:
        self.pipeline, self.name, self.model, self.options = pipeline, name, model, options
        self.accepts = set(inspect.signature(type(pipeline).__call__).parameters)

    @torch.no_grad()
    def candidates(self, subject: Subject, count: int, seed: int) -> list[Candidate]:
        """See `Generator.candidates`; seeds are `seed`, `seed + 1`, ..."""
        photo = subject.case.source
        side = photo.shape[-1]
        wanted: dict[str, Any] = {"height": side, "width": side, "max_area": side * side, "_auto_resize": False}
        candidates = []
        for number in range(seed, seed + count):
            edited = self.pipeline(
                image=to_pil(photo),
                prompt=self.options.prompt,
                num_inference_steps=self.options.num_steps,
                generator=torch.Generator().manual_seed(number),
                **{key: value for key, value in wanted.items() if key in self.accepts},
            ).images[0]
            candidates.append(Candidate(resize(from_pil(edited), (side, side)), Origin(self.name, seed=number, model=self.model)))
        return candidates


def open_pipeline(argument: str | None, options: GeneratorOptions) -> Pipeline:
    """The generator of `pipeline:PATH_OR_HUB_ID`. Nothing is fetched for a path; a hub id is looked for in the cache, then on the hub."""
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    if argument is None:
        raise ConfigError("--generators pipeline: needs a folder or hub id, as pipeline:PATH_OR_HUB_ID")
    folder = Path(argument)
    local = folder.exists() or argument.startswith((".", "/", "~")) or argument.count("/") != 1
    if local and not (folder / "model_index.json").is_file():
        raise WeightsError(f"pipeline:{argument}: holds no diffusers pipeline (model_index.json); give its folder or a hub id owner/name")
    try:
        torch.empty(0, device=options.device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {options.device}: not available here ({reason_of(error)}); use cpu") from error
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    try:
        dtype = torch.float32 if options.device == "cpu" else torch.bfloat16
        loaded = DiffusionPipeline.from_pretrained(argument, dtype=dtype, local_files_only=local, use_safetensors=True).to(options.device)
    except (OSError, ValueError) as error:
        raise WeightsError(f"pipeline:{argument}: cannot be loaded ({reason_of(error)}); download it and give its folder") from error
    for part, network in loaded.components.items():
        if isinstance(network, torch.nn.Module):
            check_weights(f"pipeline:{argument}, {part}", network)
    loaded.set_progress_bar_config(disable=True)
    generator = Pipeline(loaded, folder.resolve().name if local else argument, argument, options)
    missing = {"image", "prompt", "num_inference_steps", "generator"} - generator.accepts
    if missing:
        raise ConfigError(
            f"pipeline:{argument}: a {type(loaded).__name__} takes no {sorted(missing)[0]!r}; an image-editing pipeline is needed"
        )
    return generator


GENERATOR = open_pipeline
