"""One file a backbone, each exporting `BACKBONE`; `load_backbone` finds them by name or by file."""

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from policies.retoucher.model.backbone import Backbone

BUILT_IN = ("tiny", "flux_kontext", "qwen_image_edit", "qwen_image_edit_plus")


def load_backbone(name: str, model: str | None, resolution: int | None, device: str, **options: Any) -> "Backbone":
    """Load a backbone by built-in name or as `my_file.py:BACKBONE`.

    Args:
        name: as given to `--backbone`.
        model: hub id or local folder; the backbone's own default if None.
        resolution: side of the pictures; the backbone's own default if None.
        device: as torch names it.
        **options: those of `policies.retoucher.model.loading.LOADING` that are not at their default.

    Raises:
        ConfigError: the name is unknown, the file exports no such object, the device is not there, or the backbone has no such option.
        WeightsError: its weights are not there.
    """
    import torch

    from portraitkit.discover import load_object
    from portraitkit.errors import ConfigError
    from portraitkit.suggest import nearest

    if ":" not in name and name not in BUILT_IN:
        raise ConfigError(f"backbone {name!r} is unknown{nearest(name, BUILT_IN)}; use {', '.join(BUILT_IN)} or my_file.py:BACKBONE")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {device}: not available here ({str(error).splitlines()[0]}); use cpu") from error
    where = name if ":" in name else f"policies.retoucher.backbones.{name}:BACKBONE"
    make = load_object(where)
    for option, value in options.items():
        if option not in inspect.signature(make).parameters:
            raise ConfigError(f"--{option.replace('_', '-')} {value}: --backbone {name} has no such option; leave it out")
    _quiet()
    return make(model, resolution, device, **options)


def _quiet() -> None:
    """Loading a pipeline is not worth a screen of progress bars."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
