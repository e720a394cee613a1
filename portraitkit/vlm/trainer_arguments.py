"""Arguments of TRL and peft, from the options of our commands: checked by name and type before a model is loaded."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter
from transformers import TrainingArguments
from transformers.trainer_utils import SchedulerType

from portraitkit.config import RECIPES, wanted
from portraitkit.errors import ConfigError, nearest
from portraitkit.report.page import plural
from portraitkit.vlm.model import check_adapter
from portraitkit.vlm.trainer_options import TrainerOptions

# transformers 5.20 renamed it; earlier ones know the old name only.
CHECKPOINTING = "activation_checkpointing" if hasattr(TrainingArguments, "activation_checkpointing") else "gradient_checkpointing"


LOSS_TYPES = ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo")  # TRL's, which it looks at in the first update only
SCHEDULERS = tuple(kind.value for kind in SchedulerType)


def start_processes(options: TrainerOptions) -> Any:
    """The processes of this run, an `accelerate.PartialState`; to be called before TRL's arguments are made.

    With DeepSpeed on the CPU they talk by gloo, which transformers would not choose by itself: each would train alone.

    Raises:
        ConfigError: DeepSpeed is asked for, and no launcher has started this process; or see `deepspeed_file`.
    """
    from accelerate import PartialState

    if deepspeed_file(options.deepspeed) is not None and "LOCAL_RANK" not in os.environ:
        raise ConfigError(
            f"--deepspeed {options.deepspeed}: needs a launcher; start the command with torchrun --nproc-per-node N, or accelerate launch "
            "--num_processes N with N of 2 or more"
        )
    if _deepspeed_on_cpu(options):
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        return PartialState(backend="gloo")
    return PartialState(cpu=options.device == "cpu")


def _deepspeed_on_cpu(options: TrainerOptions) -> bool:
    return options.deepspeed is not None and options.device == "cpu" and "LOCAL_RANK" in os.environ


def common_arguments(options: TrainerOptions, folder: str) -> dict[str, Any]:
    """What both trainers take; checkpoints go to `folder`."""
    on_cpu = options.device == "cpu"
    return {
        "output_dir": folder,
        "use_cpu": on_cpu and options.deepspeed is None,  # with it, accelerate leaves DeepSpeed out
        "bf16": options.dtype == "bfloat16" and not on_cpu,
        "fp16": False,
        CHECKPOINTING: options.gradient_checkpointing,
        "max_grad_norm": options.max_grad_norm,
        "seed": options.seed % 2**32,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": options.checkpointing_steps or 10**9,
        "save_total_limit": options.checkpoints_total_limit,
        "disable_tqdm": True,
        "report_to": "none",
        "deepspeed": deepspeed_file(options.deepspeed),
        "dataloader_pin_memory": not on_cpu,
        **({"accelerator_config": {"use_configured_state": True}} if _deepspeed_on_cpu(options) else {}),
    }


def deepspeed_file(name: str | None) -> str | None:
    """The DeepSpeed configuration: a file of the user's, or `zero2` or `zero3`, which are in the package.

    Raises:
        ConfigError: no such file, it is no JSON, or what it says would leave no model behind.
    """
    if name is None:
        return name
    if Path(name).is_file():
        try:
            zero = json.loads(Path(name).read_text(encoding="utf-8")).get("zero_optimization", {})
        except (ValueError, AttributeError) as error:
            raise ConfigError(f"--deepspeed {name}: is no JSON object ({error}); give a DeepSpeed configuration, zero2 or zero3") from error
        if isinstance(zero, dict) and zero.get("stage") == 3 and not zero.get("stage3_gather_16bit_weights_on_model_save"):
            raise ConfigError(
                f'--deepspeed {name}: stage 3 needs "stage3_gather_16bit_weights_on_model_save": true in zero_optimization, or no model '
                "could be saved"
            )
        return name
    if (path := RECIPES / "deepspeed" / f"{name}.json").is_file():
        return str(path)
    raise ConfigError(f"--deepspeed {name}: no such file; give a DeepSpeed configuration in JSON, zero2 or zero3")


def grpo_values(options: TrainerOptions, folder: str) -> dict[str, Any]:
    """The arguments of `trl.GRPOConfig`, by name; `--trl` has the last word. ConfigError: a name is unknown."""
    from trl import GRPOConfig

    for option, name, known in (("loss-type", options.loss_type, LOSS_TYPES), ("lr-scheduler", options.lr_scheduler, SCHEDULERS)):
        if name not in known:
            raise ConfigError(f"--{option} {name}: unknown{nearest(name, known)}; use {', '.join(known)}")
    values = {
        **common_arguments(options, folder),
        CHECKPOINTING: options.gradient_checkpointing and not options.last_norm,  # nothing is sent back through the layers
        "max_steps": options.max_train_steps,
        "per_device_train_batch_size": options.prompts_per_step * options.group_size // options.accumulation_steps,
        "gradient_accumulation_steps": options.accumulation_steps,
        "num_generations": options.group_size,
        "learning_rate": options.rate,
        "lr_scheduler_type": options.lr_scheduler,
        "warmup_steps": options.warmup_steps,
        "beta": options.beta,
        "loss_type": options.loss_type,
        "scale_rewards": options.scale_rewards,
        "multi_objective_aggregation": options.aggregation,
        "reward_weights": list(options.reward_weights) or None,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "max_completion_length": options.max_tokens,
    }
    return {**values, **parse_extra(options.trl, GRPOConfig)}


@dataclass(frozen=True)
class Batch:
    """What one update of GRPO takes on one device."""

    at_once: int  # Answers whose gradients are computed together
    parts: int  # Of an update, each with so many
    group: int  # Answers to one prompt

    @property
    def answers(self) -> int:
        """All of the device's."""
        return self.at_once * self.parts


def batch_of(options: TrainerOptions) -> Batch:
    """How GRPO's updates are divided, after `--trl` has had its word."""
    values = grpo_values(options, "")
    return Batch(values["per_device_train_batch_size"], values["gradient_accumulation_steps"], values["num_generations"])


def taken(stage: str, options: TrainerOptions, processes: int, rows: int | None = None, steps: int | None = None) -> str:
    """What a stage takes in all, as one line: the batch grows with the devices, and a recipe's number of updates does not shrink with
    it. `rows` are None where not known yet; `steps` are given where they are not the options' number for the stage."""
    if stage == "grpo":
        batch, steps = batch_of(options), options.max_train_steps if steps is None else steps
        each = batch.answers * processes // batch.group
        words = f"{each} prompts x {batch.group} answers an update: {batch.answers} answers"
    else:
        steps = options.sft_steps if steps is None else steps
        each = options.sft_batch * processes
        words = f"{each} rows an update: {options.sft_batch} rows"
    epochs = f", {steps * each / rows:.2g} epochs of {rows:,} rows" if rows else ""
    return f"{words} x {plural(processes, 'device')}; {steps:,} updates take {steps * each:,}{epochs}"


def grpo_arguments(options: TrainerOptions, folder: str) -> Any:
    """A checked `trl.GRPOConfig`."""
    from trl import GRPOConfig

    return build_arguments(GRPOConfig, grpo_values(options, folder))


def sft_values(options: TrainerOptions, folder: str) -> dict[str, Any]:
    """The arguments of `trl.SFTConfig`, by name."""
    return {
        **common_arguments(options, folder),
        "max_steps": options.sft_steps,
        "per_device_train_batch_size": options.sft_batch,
        "learning_rate": options.sft_learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": max(options.sft_steps // 20, 1),
        "max_length": None,
        "completion_only_loss": True,
    }


def sft_arguments(options: TrainerOptions, folder: str) -> Any:
    """A checked `trl.SFTConfig`."""
    from trl import SFTConfig

    return build_arguments(SFTConfig, sft_values(options, folder))


def lora_arguments(options: TrainerOptions) -> Any:
    """A `peft.LoraConfig` for the language part, or None for full training."""
    if options.rank == 0:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=options.rank,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules=list(options.lora_targets),
        exclude_modules=r".*(visual|vision_tower|vision_model).*",
    )


def check_continued(options: TrainerOptions, adapter: str | None) -> None:
    """Refuse to train an adapter on with other settings than its own: peft takes the adapter's, and ours would be ignored.

    Raises:
        ConfigError: --adapter holds none, or --rank and its companions differ from it.
    """
    check_adapter(adapter)
    if adapter is None or options.rank == 0:
        return
    path = Path(adapter) / "adapter_config.json"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"--adapter {adapter}: {path.name} is not JSON; give the model folder of a finished run") from error
    targets = stored.get("target_modules")
    given = {
        "rank": (options.rank, stored.get("r")),
        "lora-alpha": (options.lora_alpha, stored.get("lora_alpha")),
        "lora-dropout": (options.lora_dropout, stored.get("lora_dropout")),
        "lora-targets": (sorted(options.lora_targets), sorted(targets) if isinstance(targets, list) else targets),
    }
    for name, (asked, has) in given.items():
        if asked != has:
            raise ConfigError(
                f"--{name} {asked}: the LoRA of --adapter {adapter} has {has}; give that to train it on, or --rank 0 to merge it "
                "and train the model itself"
            )


def parse_extra(extra: Sequence[str], config: type) -> dict[str, Any]:
    """`name=value` options for TRL that we have no flag for, such as epsilon_high=0.28; values are JSON, or text where they are no JSON or
    text is asked for. `config` is `trl.GRPOConfig` or `trl.SFTConfig`, whose fields are the names that exist, with their types.

    Raises:
        ConfigError: no `=`, a name that TRL does not know, or a value of another type than its field's.
    """
    types = get_type_hints(config)
    known = {field.name: types[field.name] for field in dataclasses.fields(config)}
    values = {}
    for item in extra:
        name, equals, text = item.partition("=")
        if not equals:
            raise ConfigError(f"--trl {item}: must be name=value, such as epsilon_high=0.28")
        if name not in known:
            raise ConfigError(f"--trl {item}: {config.__name__} has no {name!r}{nearest(name, sorted(known))}")
        kind = TypeAdapter(known[name], config=ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False))
        for read in (kind.validate_json, kind.validate_python):
            with suppress(ValueError):  # pydantic's own among them
                values[name] = read(text, strict=True)
                break
        else:
            raise ConfigError(f"--trl {item}: must be {wanted(known[name]).replace('None', 'null')}")
    return values


def build_arguments(config: type, values: Mapping[str, Any]) -> Any:
    """TRL's configuration; what it refuses is the user's mistake, in one line.

    Raises:
        ConfigError: TRL or transformers refuse a value or a combination.
    """
    try:
        return config(**values)
    except (ValueError, TypeError, NotImplementedError, ImportError) as error:
        message = " ".join(str(error).split())
        raise ConfigError(f"TRL refuses these settings: {message}") from error
