"""`align-retoucher --dry-run`: the plan of a run, and what to change where it cannot fit; only options that a run takes are proposed."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from policies.retoucher.config import RetoucherConfig
from policies.retoucher.model.sharding import check_sharding
from policies.retoucher.planning.plan import plan_memory, planned_backbone
from policies.retoucher.rollout import check_plan
from portraitkit.errors import ConfigError
from portraitkit.memory.plan import Change, check_fits, device_limit

Apply = Callable[[RetoucherConfig], RetoucherConfig | None]


def dry_run(config: RetoucherConfig) -> int:
    """Print the plan of a run and refuse what the run would refuse, or what cannot fit; returns the exit code.

    Raises:
        ConfigError: the run cannot be divided so, or cannot fit on the device; the message names the change that makes it fit.
    """
    check_plan(config)
    if config.sharding != "none" and config.plan_devices == 1:
        raise ConfigError(
            f"--plan-devices 1: --sharding {config.sharding} divides the base among several; give --plan-devices 8, for example"
        )
    check_sharding(config, config.plan_devices)
    memory = plan_memory(config)
    table = Table(title="align-retoucher, not started", title_justify="left")
    table.add_column("")
    table.add_column("planned")
    for name, value in [*_recipe_lines(config), *memory.lines()]:
        table.add_row(name, value)
    Console().print(table)
    check_fits(config, memory, device_limit(config.device_memory, config.device), changes(config), plan_memory)
    return 0


def changes(config: RetoucherConfig) -> tuple[Change[RetoucherConfig], ...]:
    """What may be changed to make a run fit, the least painful first, more devices last. The words are options as they are typed."""
    return (
        Change("--offload-text-encoder", _to(offload_text_encoder=True)),
        *(Change(f"--micro-batch {rows}", _at_most("micro_batch", rows)) for rows in (8, 4)),
        Change("--gradient-checkpointing", _to(gradient_checkpointing=True)),
        Change("--vae-tiling", _to(vae_tiling=True)),
        Change("--optimizer adamw_8bit", _to(optimizer="adamw_8bit")),
        Change("--micro-batch 1", _at_most("micro_batch", 1)),
        Change("--quantize nf4", _to(quantize="nf4")),
        *(Change(f"--group-size {size}", _at_most("group_size", size)) for size in (8, 4)),
        *(Change(f"--resolution {side}", _at_most("resolution", side)) for side in (512, 256)),
        *(Change(_typed(config, devices), _fsdp2(devices), more_devices=True) for devices in (2, 4, 8)),
    )


def _recipe_lines(config: RetoucherConfig) -> list[tuple[str, str]]:
    base = "nf4" if config.quantize == "nf4" else "float32" if config.backbone == "tiny" else "bfloat16"
    absent = config.photos != "embedded" and not Path(config.photos).is_dir()
    evaluated = f"{config.validation_photos} and {config.held_out_photos} photos, {config.evaluation_steps} sampling steps"
    return [
        *([("photos", f"{config.photos}, which is not there yet")] if absent else []),
        ("backbone", f"{config.backbone}, {config.model or 'its own weights'}, base {base}, LoRA float32 of rank {config.rank}"),
        ("step", f"{config.photos_per_step} photos x {config.group_size} candidates, {config.num_steps} sampling steps"),
        ("validation, held-out", evaluated),
        ("pictures", f"{planned_backbone(config).resolution} px"),
    ]


def _to(**values: Any) -> Apply:
    """Set options; None where they are so already, or where the backbone or the other options do not allow it."""

    def apply(config: RetoucherConfig) -> RetoucherConfig | None:
        if config.backbone == "tiny" and values.keys() & {"quantize", "offload_text_encoder", "vae_tiling"}:
            return None
        return _allowed(config, values)

    return apply


def _at_most(name: str, value: int) -> Apply:
    def apply(config: RetoucherConfig) -> RetoucherConfig | None:
        if name == "resolution" and config.backbone == "tiny":
            return None
        now = planned_backbone(config).resolution if name == "resolution" else getattr(config, name)
        return _allowed(config, {name: value}) if now > value else None

    return apply


def _allowed(config: RetoucherConfig, values: dict[str, Any]) -> RetoucherConfig | None:
    """The configuration with other values; None where nothing would change or a run would refuse them."""
    if all(getattr(config, name) == value for name, value in values.items()):
        return None
    try:
        changed = replace(config, **values)
        check_sharding(changed, changed.plan_devices)
    except ConfigError:
        return None
    return changed


def _divided(config: RetoucherConfig, devices: int) -> dict[str, Any]:
    """The options that divide a run's base among devices, with those that must then be larger."""
    photos = -(-config.photos_per_step // devices) * devices
    larger = {name: max(getattr(config, name), devices) for name in ("validation_photos", "held_out_photos")}
    return {"sharding": "fsdp2", "photos_per_step": photos, **larger}


def _fsdp2(devices: int) -> Apply:
    def apply(config: RetoucherConfig) -> RetoucherConfig | None:
        if config.device == "cpu" or (config.sharding == "fsdp2" and config.plan_devices >= devices):
            return None
        return _allowed(config, {"plan_devices": devices, **_divided(config, devices)})

    return apply


def _typed(config: RetoucherConfig, devices: int) -> str:
    """The options of `_fsdp2` as they are typed, with the launcher."""
    new = {name: value for name, value in _divided(config, devices).items() if getattr(config, name) != value}
    options = [f"--{name.replace('_', '-')} {value}" for name, value in new.items()]
    return " ".join([*options, f"(started by torchrun --nproc_per_node {devices})"])
