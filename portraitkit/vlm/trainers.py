"""The two trainers of vision-language models, both TRL's: SFTTrainer (supervised) and GRPOTrainer (by reward); our callbacks; vLLM."""

import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from datasets import Dataset, Image, List
from rich.progress import Progress, TaskID
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from portraitkit.errors import ConfigError
from portraitkit.parallel import gathered
from portraitkit.pictures.images import read_image, to_pil
from portraitkit.runs.folder import RunFolder
from portraitkit.runs.terminal import Interruptible
from portraitkit.vlm.context import Limit, capped, limit_of, shown
from portraitkit.vlm.model import check_frozen, train_last_norm
from portraitkit.vlm.rows import Row
from portraitkit.vlm.task import Mode, Score, Task


def make_sft_trainer(
    model: Any,
    processor: Any,
    prompt: str | Sequence[str],
    rows: Sequence[Row],
    arguments: Any,
    callback: TrainerCallback,
    lora: Any = None,
    *,
    frozen: bool = False,
) -> Any:
    """TRL's SFTTrainer on the rows' targets; only the answers bear a loss. Model and processor are from `portraitkit.vlm.model`; the prompt
    is the user turn's text, or one for each row; `arguments` are a `trl.SFTConfig`; without `lora`, a `peft.LoraConfig`, all is trained
    that is not frozen.

    Raises:
        ConfigError: the vision tower must stay `frozen` and would be trained; looked at now, and with the optimiser when training begins.
    """
    from trl import SFTTrainer

    data = _dataset(rows, prompt, limit_of(processor), target=True)
    given: dict[str, Any] = {"model": model, "args": arguments, "processing_class": processor, "callbacks": [callback], "peft_config": lora}
    return _quiet(SFTTrainer(train_dataset=data, **given), frozen)


def make_grpo_trainer(
    model: Any,
    processor: Any,
    prompt: str,
    rows: Sequence[Row],
    arguments: Any,
    callback: TrainerCallback,
    task: Task,
    mode: Mode,
    lora: Any = None,
    *,
    frozen: bool = False,
    last_norm: bool = False,
    more: Sequence["RewardFunction"] = (),
) -> Any:
    """TRL's GRPOTrainer with the task's rewards, one function for each part, and `more`; `arguments` are a `trl.GRPOConfig`.

    The rest is as for `make_sft_trainer`. With `last_norm` the gains of the language part's last norm alone are trained, unless there is
    a LoRA. ConfigError: a frozen vision tower would be trained.
    """
    from peft import PeftModel
    from trl import GRPOTrainer

    if last_norm and lora is None and not isinstance(model, PeftModel):
        train_last_norm(model)
    given: dict[str, Any] = {"model": model, "args": arguments, "processing_class": processor, "callbacks": [callback], "peft_config": lora}
    data = _dataset(rows, prompt, limit_of(processor))
    return _quiet(GRPOTrainer(train_dataset=data, reward_funcs=[*reward_functions(task, rows, mode), *more], **given), frozen)


def _dataset(rows: Sequence[Row], prompt: str | Sequence[str], limit: Limit | None, *, target: bool = False) -> Dataset:
    """Columns as TRL's trainers take them: prompt, images, the row's index, and for imitation the completion.

    Pictures that are files are opened when their row's turn comes; the others are held encoded. None has more pixels than the limit.
    """
    prompts = [prompt] * len(rows) if isinstance(prompt, str) else prompt
    in_files = all(isinstance(picture, Path) for row in rows for picture in row.pictures)
    columns: dict[str, list[Any]] = {
        "prompt": [[{"role": "user", "content": text}] for text in prompts],
        "images": [[str(picture) for picture in row.pictures] if in_files else shown(row, limit) for row in rows],
    }
    if target:
        columns["completion"] = [[{"role": "assistant", "content": row.target}] for row in rows]
    else:
        columns["index"] = list(range(len(rows)))
    data = Dataset.from_dict(columns)
    return data.with_transform(partial(_open, limit)) if in_files else data.cast_column("images", List(Image()))


def _open(limit: Limit | None, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """File names to pictures, by the one decoder."""
    if "images" in batch:
        batch["images"] = [[capped(to_pil(read_image(name).pixels), limit) for name in names] for names in batch["images"]]
    return batch


def _quiet(trainer: Any, frozen: bool) -> Any:
    """Without transformers' own progress line and prints; with the check of the vision tower."""
    if frozen:
        check_frozen(trainer.model)
        trainer.add_callback(StayFrozen())
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    _load_exactly(trainer)
    return trainer


def _load_exactly(trainer: Any) -> None:
    """Resuming loads every weight of a checkpoint, or fails, and counts tokens from where it stopped.

    transformers' trainer takes a checkpoint's names as they stand in the file and ignores those that the model does not have. A
    Qwen2.5-VL is stored under its published names, which differ from its modules': it would go on from the weights it started with.
    """
    theirs = trainer._load_from_checkpoint

    def load(checkpoint: str, model: Any = None) -> None:
        history = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json")).log_history
        trainer._total_train_tokens = history[-1].get("num_tokens", 0) if history else 0
        if not (Path(checkpoint) / "config.json").is_file():
            return theirs(checkpoint, model)  # an adapter, which peft loads
        own = trainer.accelerator.unwrap_model(trainer.model if model is None else model)
        stored = type(own).from_pretrained(checkpoint, dtype=own.dtype)
        own.load_state_dict(stored.state_dict())
        return None

    trainer._load_from_checkpoint = load


RewardFunction = Callable[..., list[float | None]]


def reward_functions(task: Task, rows: Sequence[Row], mode: Mode) -> list[RewardFunction]:
    """One function `f(completions, index, **columns) -> rewards` for each part of the task's reward, named after it; their sum is the
    total. The data set's column `index` points into the training `rows`; None where a part does not apply to a row."""

    @lru_cache(maxsize=4096)
    def score(completion: str, index: int) -> Score:
        return task.score(completion, rows[index].truth, mode)

    def function(name: str) -> RewardFunction:
        def part(completions: list[Any], index: list[int], **_: Any) -> list[float | None]:
            return [score(text_of(completion), at).parts[name] for completion, at in zip(completions, index, strict=True)]

        part.__name__ = name
        return part

    return [function(name) for name in part_names(task, rows[0], mode)]


def part_names(task: Task, row: Row, mode: Mode) -> list[str]:
    """The parts that a task's reward adds up."""
    return list(task.score(task.perfect(row.truth), row.truth, mode).parts)


def text_of(completion: Any) -> str:
    """A completion as TRL hands it over, a list of messages or a string, as text."""
    if isinstance(completion, str):
        return completion
    content = completion[-1]["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


@dataclass
class Follow(TrainerCallback):
    """Logs every step to the run folder, shows it, validates now and then, and stops after a checkpoint when interrupted. `stage` is
    sft or grpo, for the log; `validate` gives figures for the log, every so many training steps; None: no validation."""

    run: RunFolder
    stage: str
    interrupt: Interruptible
    progress: Progress
    bar: TaskID
    validate: Callable[[], dict[str, float]] | None = None
    every: int = 0
    stopping: bool = False  # all processes have heard of a signal

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """One line of metrics.jsonl for each of the trainer's logs but the last, of this process alone; then a validation if due."""
        if "train_runtime" in (logs or {}):
            return
        numbers = {name: value for name, value in (logs or {}).items() if isinstance(value, int | float)}
        self.run.log(state.global_step, kind=self.stage, **numbers)
        shown = "  ".join(f"{name} {numbers[name]:.3f}" for name in ("reward", "reward_std", "kl", "loss") if name in numbers)
        self.progress.update(self.bar, description=shown or self.stage)
        self._validate(state.global_step, not self.stopping)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Save and stop when interrupted, all processes after the same step; log a step with a validation, whatever `logging_steps`."""
        self.progress.update(self.bar, completed=state.global_step)
        control.should_log |= self.every > 0 and state.global_step % self.every == 0
        for number in filter(None, gathered(self.interrupt.requested)):
            self.interrupt.learn(number)
        if self.interrupt.requested:
            control.should_save = control.should_training_stop = self.stopping = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The validation of a step at which the run is stopped: a resumed one goes on with the next step."""
        self._validate(state.global_step, self.stopping)

    def _validate(self, step: int, now: bool) -> None:
        if now and self.validate is not None and self.every and step % self.every == 0:
            self.run.log(step, kind="validation", stage=self.stage, **self.validate())


class StayFrozen(TrainerCallback):
    """Before the first update: the vision tower is neither to get gradients nor in the optimiser, whatever was made of the model since."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """See `portraitkit.vlm.model.check_frozen`."""
        check_frozen(given["model"], given.get("optimizer"))


INSTALL_VLLM = "install portraitkit[vllm] on a Linux machine with CUDA, or leave use_vllm out"


def check_vllm(arguments: Any, device: str) -> int | None:
    """Refuse vLLM where it cannot work; else the tokens of the longest sequence that it takes, None where it is not used, or does not say.

    Raises:
        ConfigError: vLLM is not installed, the device is no CUDA one, the mode is unknown, or the server does not answer.
    """
    if not arguments.use_vllm:
        return None
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(f"--trl use_vllm=true: vllm is not installed; {INSTALL_VLLM}")
    if not device.startswith("cuda"):
        raise ConfigError(f"--trl use_vllm=true: vLLM needs --device cuda, not {device}; {INSTALL_VLLM}")
    if arguments.vllm_mode not in ("colocate", "server"):
        raise ConfigError(f"--trl vllm_mode={arguments.vllm_mode}: must be colocate or server")
    if arguments.vllm_mode == "colocate":
        return arguments.vllm_max_model_length
    url = arguments.vllm_server_base_url or f"http://{arguments.vllm_server_host}:{arguments.vllm_server_port}"
    return _wait_for_server(url.rstrip("/"), arguments.vllm_server_timeout)


def _wait_for_server(url: str, timeout: float) -> int | None:
    """Until the server is up; returns the longest sequence that it takes, if it says."""
    import httpx

    end = time.monotonic() + timeout
    while True:
        try:
            if httpx.get(f"{url}/health", timeout=10).status_code == 200:
                return _longest_served(httpx.get(f"{url}/v1/models", timeout=10))
            reason = "is not ready"
        except httpx.HTTPError as error:
            reason = f"does not answer ({str(error) or type(error).__name__})"
        if time.monotonic() >= end:
            raise ConfigError(
                f"--trl vllm_mode=server: {url} {reason} after {timeout:g} s; start it with trl vllm-serve --model MODEL on other "
                "GPUs, or give vllm_server_base_url"
            )
        time.sleep(min(2.0, max(end - time.monotonic(), 0.0)))


def _longest_served(answer: Any) -> int | None:
    """`max_model_len` of the first model that a server lists."""
    try:
        found = answer.json()["data"][0]["max_model_len"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return None
    return found if isinstance(found, int) else None
