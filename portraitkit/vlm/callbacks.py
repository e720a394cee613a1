"""What we add to TRL's trainers: our metrics file, an interrupt that saves, validation, a progress line."""

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from portraitkit.runs.folder import RunFolder
from portraitkit.runs.interrupt import Interruptible
from portraitkit.vlm.load import check_frozen
from portraitkit.vlm.processes import gathered


class Say(TrainerCallback):
    """Prints the trainer's logs, a line each."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Step and figures."""
        figures = "  ".join(f"{name} {value:.4g}" for name, value in (logs or {}).items() if isinstance(value, int | float))
        self.console.print(f"{state.global_step}/{state.max_steps}  {figures}", highlight=False)


class Follow(TrainerCallback):
    """Logs every step to the run folder, shows it, validates now and then, and stops after a checkpoint when interrupted.

    Args:
        run: whose metrics.jsonl is written.
        stage: sft or grpo, for the log.
        interrupt: asked after every step.
        progress: and `bar`, the progress line.
        bar: of the progress.
        validate: gives validation figures for the log; None: no validation.
        every: training steps between two validations.
    """

    def __init__(
        self,
        run: RunFolder,
        stage: str,
        interrupt: Interruptible,
        progress: Progress,
        bar: TaskID,
        validate: Callable[[], dict[str, float]] | None = None,
        every: int = 0,
    ) -> None:
        self.run, self.stage, self.interrupt, self.progress, self.bar = run, stage, interrupt, progress, bar
        self.validate, self.every = validate, every

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """One line of metrics.jsonl for each of the trainer's logs."""
        numbers = {name: value for name, value in (logs or {}).items() if isinstance(value, int | float)}
        self.run.log(state.global_step, kind=self.stage, **numbers)
        shown = "  ".join(f"{name} {numbers[name]:.3f}" for name in ("reward", "reward_std", "kl", "loss") if name in numbers)
        self.progress.update(self.bar, description=shown or self.stage)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Validate when it is time; save and stop when interrupted, all processes after the same step."""
        self.progress.update(self.bar, completed=state.global_step)
        for number in filter(None, gathered(self.interrupt.requested)):
            self.interrupt.learn(number)
        if self.interrupt.requested:
            control.should_save = control.should_training_stop = True
        elif self.validate is not None and self.every and state.global_step % self.every == 0:
            self.run.log(state.global_step, kind="validation", stage=self.stage, **self.validate())


class StayFrozen(TrainerCallback):
    """Before the first update: the vision tower is neither to get gradients nor in the optimiser, whatever was made of the model since."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """See `portraitkit.vlm.load.check_frozen`."""
        check_frozen(given["model"], given.get("optimizer"))
