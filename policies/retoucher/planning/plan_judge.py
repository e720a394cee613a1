"""What a judge takes that is a reward of the run and stands on the same device."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path

from policies.retoucher.config import RetoucherConfig
from portraitkit.errors import WeightsError
from portraitkit.memory.vlm_trace import Facts, Load, Made, facts, read_bytes
from reward_models.judge.reward import split_argument
from reward_models.judge.settings import JudgeSettings, read_settings, source_of

BATCH = 32
"""Questions that a judge answers at once (`reward_models.judge.judge.load_judge`)."""
ASSUMED = "Qwen/Qwen2.5-VL-7B-Instruct"
"""In place of a judge whose architecture is not known yet: a folder that is still to be trained, or a LoRA."""
WORDS = {"full": 600, "brief": 40}
"""Tokens of the question's text, by the form of the answer (assumed)."""
VIEW = (192, 96)
"""Height and width of each of the two pictures that `beside-difference` shows."""


@dataclass(frozen=True)
class JudgePlan:
    """Bytes that judges hold, what they take while they judge, and what is to be said of them; by name."""

    held: Mapping[str, int] = field(default_factory=dict)
    phases: Mapping[str, int] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)


def plan_judges(config: RetoucherConfig, resolution: int) -> JudgePlan:
    """The run's judges that transformers runs in its process; none with `--reward-worker`, nor one behind an address.

    Args:
        config: the run.
        resolution: side of the pictures.

    Raises:
        ConfigError: a judge's name is none.
        WeightsError: its `judge.json` is damaged.
    """
    held: dict[str, int] = {}
    phases: dict[str, int] = {}
    notes: dict[str, str] = {}
    for name in config.all_rewards:
        kind, _, argument = name.partition(":")
        if kind != "judge":
            continue
        source, _ = split_argument(argument)
        if config.reward_worker or source.startswith(("http://", "https://")):
            notes[name] = "elsewhere, not counted"
        elif source.startswith("vllm:"):
            notes[name] = "vLLM takes 9 tenths of a device: give it one of its own by --reward-worker; not counted"
        else:
            settings = read_settings(Path(source_of(source))) or JudgeSettings()
            known, made = _known(source_of(source), "float32" if config.device == "cpu" else "bfloat16", gpu=config.device != "cpu")
            if made.source == ASSUMED != source:
                notes[name] = f"not known here, planned as {ASSUMED}"
            held[f"{name}, weights"] = known.weights
            phases[f"judging, {BATCH} questions at once"] = max(
                phases.get(f"judging, {BATCH} questions at once", 0), _judging(made, known, settings, resolution)
            )
    return JudgePlan(held, phases, notes)


def _known(source: str, dtype: str, *, gpu: bool) -> tuple[Facts, Made]:
    """Sizes of a judge's model, or of the assumed one in its place."""
    for name in (source, ASSUMED):
        made = Made(name, dtype, gpu=gpu)
        with suppress(WeightsError):
            if (known := facts(made)) is not None:
                return known, made
    raise AssertionError(f"{ASSUMED}: its architecture is built in")


def _judging(made: Made, known: Facts, settings: JudgeSettings, resolution: int) -> int:
    """Answers of one batch: the prompt is read at once, then keys and values grow, one layer's old and new ones side by side."""
    side = known.token_side
    pictures, height, width = (2, *VIEW) if settings.shown == "beside-difference" else (3, resolution, resolution)
    load = Load(BATCH, pictures, ceil(height / side) * ceil(width / side), WORDS[settings.form], settings.max_tokens)
    cache = known.cache_per_token * load.rows * load.length
    return max(read_bytes(made, load, scored=False), cache + cache // known.layers + 16 * load.rows * known.vocabulary)
