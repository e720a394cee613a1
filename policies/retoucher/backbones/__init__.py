"""One file a backbone, each exporting `BACKBONE`; `load_backbone` finds them by name or by file."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from policies.retoucher.backbone import Backbone

BUILT_IN = ("tiny", "flux_kontext")


def load_backbone(name: str, model: str | None, resolution: int | None, device: str) -> "Backbone":
    """Load a backbone by built-in name or as `my_file.py:BACKBONE`.

    Raises:
        ConfigError: the name is unknown, the file exports no such object, or the device is not there.
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
    _quiet()
    return load_object(where)(model, resolution, device)


def _quiet() -> None:
    """Loading a pipeline is not worth a screen of progress bars."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
