"""One file a backbone, each exporting `BACKBONE`; `load_backbone` finds them by name or by file."""

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portraitkit.errors import ConfigError, nearest

if TYPE_CHECKING:
    from policies.retoucher.model.backbone import Backbone

PIPELINES = {
    "tiny": "FluxKontextPipeline",
    "flux_kontext": "FluxKontextPipeline",
    "flux2_klein": "Flux2KleinPipeline",
    "qwen_image_edit": "QwenImageEditPipeline",
    "qwen_image_edit_plus": "QwenImageEditPlusPipeline",
}
"""The built-in backbones, and the class of diffusers' pipeline that each is made of."""
BUILT_IN = tuple(PIPELINES)


def check_backbone(name: str, model: str | None) -> None:
    """Refuse a backbone or a local folder of weights that is not there or another's, before torch is imported.
    ConfigError: the name is unknown, or there is no such file.
    WeightsError: the folder holds another pipeline."""
    if ":" in name:
        source = Path(name.rpartition(":")[0])
        if source.suffix == ".py" and not source.is_file():
            raise ConfigError(f"{source}: no such file, looked in {source.parent.resolve()}")
    elif name not in BUILT_IN:
        raise ConfigError(f"backbone {name!r} is unknown{nearest(name, BUILT_IN)}; use {', '.join(BUILT_IN)} or my_file.py:BACKBONE")
    elif model is not None:
        from policies.retoucher.model.loading import check_pipeline

        check_pipeline(PIPELINES[name], Path(model))


def load_backbone(name: str, model: str | None, resolution: int | None, device: str, **options: Any) -> "Backbone":
    """Load a backbone by name or as `my_file.py:BACKBONE`; `options` are those of `LOADING` that are not at their default."""
    check_backbone(name, model)

    import torch
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    from policies.retoucher.model.backbone import Backbone
    from portraitkit.discover import load_object
    from portraitkit.runs.checkpoint import check_weights

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {device}: not available here ({str(error).splitlines()[0]}); use cpu") from error
    where = name if ":" in name else f"policies.retoucher.backbones.{name}:BACKBONE"
    make = load_object(where)
    known = {*inspect.signature(make).parameters, *getattr(make, "keywords", ())}  # of a `functools.partial`, also what it binds
    for option, value in options.items():
        if option not in known:
            raise ConfigError(f"--{option.replace('_', '-')} {value}: --backbone {name} has no such option; leave it out")
    diffusers_logging.disable_progress_bar()  # loading a pipeline is not worth a screen of them
    transformers_logging.disable_progress_bar()
    made = make(model, resolution, device, **options)
    contract = [*Backbone.__annotations__, *(part for part in vars(Backbone) if not part.startswith("_"))]
    lacking = [part for part in contract if not hasattr(made, part)]
    adapters = ("add_adapter", "disable_adapters", "enable_adapters") if hasattr(made, "transformer") else ()
    lacking += [f"transformer.{part}" for part in adapters if not hasattr(made.transformer, part)]
    if lacking:
        raise ConfigError(f"--backbone {name}: its {type(made).__name__} lacks {', '.join(lacking)}; docs/backbones.md has the contract")
    parts = getattr(getattr(made, "pipeline", None), "components", {}) | {"transformer": made.transformer}
    for part, network in parts.items():
        if isinstance(network, torch.nn.Module):
            check_weights(f"{model or f'--backbone {name}'}, {part}", network)
    return made
