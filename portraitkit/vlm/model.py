"""Load a vision-language model and its processor: the embedded one, a local folder or a hub id; or make one without trained weights."""

import logging
import warnings
from pathlib import Path
from typing import Any

import torch

from portraitkit.errors import ConfigError, WeightsError, reason_of
from portraitkit.files.jsonl import read_json
from portraitkit.runs.checkpoint import check_weights
from portraitkit.vlm.rows import messages

EMBEDDED = Path(__file__).parent / "embedded"  # The tiny Qwen2.5-VL that ships with the package; `tools.embedded.vlm` builds it
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def be_quiet() -> None:
    """Without the progress bars and notices of transformers and DeepSpeed: ours says what is going on."""
    from datasets import disable_progress_bars
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    disable_progress_bar()
    disable_progress_bars()
    set_verbosity_error()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated", category=FutureWarning)


def model_path(source: str) -> str:
    """What `from_pretrained` takes for `embedded`, a folder or a hub id; WeightsError: a folder that holds no model."""
    if source == "embedded":
        if not (EMBEDDED / "config.json").is_file():
            raise WeightsError("--model embedded: its weights are not built; run make embedded (hours), or give a local folder or a hub id")
        return str(EMBEDDED)
    path = Path(source)
    if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
        raise WeightsError(f"--model {source}: the folder holds a LoRA, not a model; give its base as --model and this folder as --adapter")
    if path.is_dir() and not (path / "config.json").is_file():
        raise WeightsError(f"--model {source}: the folder holds no config.json; give a folder written by save_pretrained, or a hub id")
    if not path.is_dir() and (path.is_absolute() or source.startswith(".") or source.count("/") != 1):
        raise WeightsError(
            f"--model {source}: no such folder; give embedded, a local folder or a hub id such as Qwen/Qwen2.5-VL-7B-Instruct"
        )
    return source


def load_processor(source: str, *, max_pixels: int | None = None) -> Any:
    """The model's processor (see `model_path`), padding on the left; pictures of more than `max_pixels` are scaled down before they become
    tokens. An answer begins where the assistant's turn does: what a template would say there first, as Qwen3.5's `<think>`, is left out.

    Raises:
        WeightsError: nothing can be loaded from there.
    """
    from transformers import AutoProcessor

    for path in sorted(Path(model_path(source)).glob("*.json")):  # the libraries' own exceptions for a file cut off are of many kinds
        try:
            read_json(path)
        except ValueError as error:
            raise WeightsError(f"--model {source}: {path.name} is damaged ({error}); copy the folder again") from error
    try:
        processor = AutoProcessor.from_pretrained(model_path(source), padding_side="left", trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise WeightsError(f"--model {source}: no processor could be loaded ({reason_of(error)}); {_where(source)}") from error
    if not hasattr(processor, "image_processor"):
        raise WeightsError(f"--model {source}: that model takes no pictures; give a vision-language model")
    if "<think>" in (processor.chat_template or ""):
        plain = (EMBEDDED / "chat_template.jinja").read_text(encoding="utf-8")
        how = {"tokenize": False, "add_generation_prompt": True}
        asked, own = (processor.apply_chat_template(messages("?"), chat_template=template, **how) for template in (plain, None))
        if own != asked and own.startswith(asked):
            processor.chat_template = plain
    if max_pixels is not None:
        size = dict(processor.image_processor.size)
        if "longest_edge" not in size:
            raise ConfigError(f"--max-pixels {max_pixels}: the processor of {source} has no such limit; leave the option out")
        size["longest_edge"] = max_pixels
        size["shortest_edge"] = min(size["shortest_edge"], max_pixels // 4)  # sides are rounded down, at most to half: never enlarged again
        processor.image_processor.size = size
    return processor


def load_model(source: str, *, dtype: str = "float32", device: str = "cpu", freeze_vision: bool = False) -> Any:
    """The model (see `model_path`) in evaluation mode; with `freeze_vision` no parameter of the vision tower is trained.

    Raises:
        WeightsError: nothing can be loaded from there, or a weight is not finite.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForImageTextToText

    try:
        model: Any = AutoModelForImageTextToText.from_pretrained(model_path(source), dtype=DTYPES[dtype], trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise WeightsError(f"--model {source}: could not be loaded ({reason_of(error)}); {_where(source)}") from error
    check_weights(f"--model {source}", model)
    model = model.to(device).eval()
    if freeze_vision:
        vision_tower(model).requires_grad_(False)
        check_frozen(model)
    return model


def check_adapter(folder: str | None) -> None:
    """Refuse an adapter that is not there, before its model is loaded; None is no adapter. ConfigError: the folder holds none."""
    if folder is not None and not (Path(folder) / "adapter_config.json").is_file():
        raise ConfigError(f"--adapter {folder}: holds no adapter_config.json; give the model folder of a run with --rank")


def merge_adapter(model: Any, folder: str) -> Any:
    """The model with a LoRA merged into its weights, of which the same ones are trained as before; see `attach_adapter`."""
    trained = [parameter.requires_grad for parameter in model.parameters()]
    merged = attach_adapter(model, folder).merge_and_unload()
    for parameter, before in zip(merged.parameters(), trained, strict=True):
        parameter.requires_grad_(before)  # peft froze them all
    return merged


def attach_adapter(model: Any, folder: str, *, upcast: bool = True) -> Any:
    """A `peft.PeftModel` whose LoRA, written by a run with one, is trained on; what it saves is an adapter of the same base. With `upcast`
    a half-precision LoRA is kept in float32, as peft does; ZeRO-3 wants one type. ConfigError: the folder holds no adapter.
    WeightsError: it is damaged, not finite or of another model."""
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import SafetensorError

    check_adapter(folder)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*missing adapter keys", category=UserWarning)
            adapted = PeftModel.from_pretrained(model, folder, is_trainable=True, autocast_adapter_dtype=upcast).eval()
        if not 0 < (alpha := adapted.peft_config["default"].lora_alpha) < 1e6:  # pyright: ignore[reportAttributeAccessIssue]
            raise ValueError(f"lora_alpha {alpha} must be a number above 0")
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError, UserWarning) as error:
        raise WeightsError(
            f"--adapter {folder}: does not fit the model ({reason_of(error)}); give the --model that the adapter was trained on"
        ) from error
    check_weights(f"--adapter {folder}", get_peft_model_state_dict(adapted))
    return adapted


def check_device(device: str) -> None:
    """Refuse a device that is not there; ConfigError: torch does not know it, or cannot use it."""
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ConfigError(f"--device {device}: no such device; use cpu or cuda") from error
    if kind not in ("cpu", "cuda") or (kind == "cuda" and not torch.cuda.is_available()):
        raise ConfigError(f"--device {device}: not available here; use cpu")


def vision_tower(model: Any) -> torch.nn.Module:
    """The part of a model that sees, through a LoRA around it, too; ConfigError: it has none by a name that is known here."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    for owner in (getattr(inner, "model", None), inner):
        for name in ("visual", "vision_tower", "vision_model"):
            if isinstance(tower := getattr(owner, name, None), torch.nn.Module):
                return tower
    raise ConfigError(f"--freeze-vision: {type(inner).__name__} has no vision tower that is known here; give --no-freeze-vision")


def check_frozen(model: Any, optimizer: Any = None) -> None:
    """Refuse to train a vision tower that must stay as it is: no weight of it asks for a gradient or stands in the optimiser, if there is
    one. ConfigError: a weight of the tower would be trained, as by a LoRA of another program that adapts the tower."""
    tower = dict(vision_tower(model).named_parameters())
    trained = [name for name, value in tower.items() if value.requires_grad]
    if optimizer is not None:
        held = {id(value) for group in optimizer.param_groups for value in group["params"]}
        trained += [name for name, value in tower.items() if id(value) in held]
    if trained:
        raise ConfigError(
            f"--freeze-vision: {trained[0]} of the vision tower would be trained; give --no-freeze-vision, or leave --adapter out"
        )


def train_last_norm(model: Any) -> None:
    """Let nothing be trained but the language part's last norm, before its head: LN tuning (Qi et al. 2022, arXiv 2211.08682) of one layer.

    Raises:
        ConfigError: the norm is not where it is in the models that are known here.
    """
    text = model.get_decoder() if hasattr(model, "get_decoder") else None
    norm = getattr(text, "norm", None)
    if not isinstance(norm, torch.nn.Module):
        raise ConfigError(f"--weights last-norm: {type(model).__name__} has no norm that is known here; give --weights all, or --rank 16")
    model.requires_grad_(False)
    norm.requires_grad_(True)


def count_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """All parameters, and those that are trained; those in DeepSpeed's shards count whole."""
    sizes = [(getattr(parameter, "ds_numel", parameter.numel()), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)


def _where(source: str) -> str:
    if source == "embedded" or Path(source).is_dir():
        return "check the folder"
    return f"download it (hf download {source}) and give the local folder, or check the id and the network"


PUBLISHED: dict[str, dict[str, Any]] = read_json(Path(__file__).with_name("published.json"))
"""Configurations as published config.json files have them, for machines that cannot read these; the rest is the class's own default."""


def meta_model(source: str) -> Any:
    """The model without data, on the meta device; None where neither the files nor our table know it.

    Raises:
        WeightsError: a folder that holds no model.
    """
    from transformers import AutoModelForImageTextToText

    config = configuration_of(source)
    if config is None:
        return None
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)


def configuration_of(source: str) -> Any:
    """transformers' configuration, or None where the model is not known."""
    from transformers import AutoConfig

    if source in PUBLISHED:
        return AutoConfig.for_model(**PUBLISHED[source])
    path = model_path(source)
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError):
        if source == "embedded" or path == str(EMBEDDED):
            raise
        return None
