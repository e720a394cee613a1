"""`judge.json` beside a judge's weights: how it is shown pictures, how it answers, and how sure it may be."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from portraitkit.errors import WeightsError
from portraitkit.files.atomic import write_text
from preference_data.contract import MAKEUP_TITLES, Answer, Unreadable, makeup_prompt, read_answer
from preference_data.verdict import Verdict
from reward_models.judge.pairs import View
from reward_models.judge.preference_task import SHOWN

FILE = "judge.json"
FORMS = {"full": 1024, "brief": 96}  # Forms of the answer, with the most tokens one takes
HOTTEST = 100.0


@dataclass(frozen=True)
class JudgeSettings(View):
    """What a judge's weights do not say: the view of pairs that they were taught, and how sure its answers are."""

    shown: str = "as-taken"
    form: str = "full"
    temperature: float = 1.0  # log-odds are divided by it; 1 where none was fitted
    model: str = ""  # the model's name, where it is known

    @property
    def max_tokens(self) -> int:
        """Of an answer."""
        return FORMS[self.form]


@dataclass(frozen=True)
class MakeupSettings(JudgeSettings):
    """How a model without a `judge.json` is asked about a makeup pair: which of two attempts is nearer to a made-up photo."""

    @property
    def prompt(self) -> str:
        """The user turn's text."""
        return makeup_prompt()

    def read(self, text: str) -> Answer | Unreadable:
        """Read an answer that has the one line of `preference_data.contract.MAKEUP_TITLES`."""
        return read_answer(text, MAKEUP_TITLES)


EMBEDDED = JudgeSettings("spots-and-difference", "brief", model="embedded")
"""How the embedded judge was taught to be asked, before its temperature is fitted."""
EMBEDDED_FOLDER = Path(__file__).parents[1] / "embedded"
"""The judge that ships with the package: portraitkit's embedded Qwen2.5-VL, taught further on pairs alone by `tools.embedded.judge`."""


def source_of(model: str) -> str:
    """What the loaders of `portraitkit.vlm` take: the folder of the embedded judge for `embedded`, any other model as it is."""
    return str(EMBEDDED_FOLDER) if model == "embedded" else model


def write_settings(folder: Path, settings: JudgeSettings) -> None:
    """Write `judge.json` into a judge's folder."""
    write_text(folder / FILE, json.dumps(asdict(settings), indent=2) + "\n")


def read_settings(folder: Path) -> JudgeSettings | None:
    """The settings beside a judge's weights, None where there are none; WeightsError where they are damaged."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: not valid JSON; write it again, or remove it to use the defaults") from error
    return settings_from(value, str(path))


def view_of(model: str, shown: str = "auto", form: str = "auto") -> View:
    """The view for a model: what is given, unless it is auto, else what its folder says, else a large model's."""
    settings = read_settings(Path(source_of(model))) or JudgeSettings()
    return View(settings.shown if shown == "auto" else shown, settings.form if form == "auto" else form)


def settings_from(value: Any, where: str) -> JudgeSettings:
    """Settings out of JSON; WeightsError for an impossible value."""
    known = {"shown", "form", "temperature", "model"}
    if not isinstance(value, Mapping) or not set(value) <= known:
        raise WeightsError(f"{where}: must be an object with {', '.join(sorted(known))} only")
    value = asdict(JudgeSettings()) | dict(value)
    for name, allowed in (("shown", SHOWN), ("form", FORMS)):
        if not isinstance(value[name], str) or value[name] not in allowed:
            raise WeightsError(f"{where}: {name} {value[name]!r} is unknown; use {' or '.join(allowed)}")
    temperature = value["temperature"]
    if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not 0 < temperature <= HOTTEST:
        raise WeightsError(f"{where}: temperature {temperature!r} must be a number above 0 and at most {HOTTEST:g}")
    if not isinstance(value["model"], str):
        raise WeightsError(f"{where}: model {value['model']!r} must be a name")
    return JudgeSettings(value["shown"], value["form"], float(temperature), value["model"])


def probability_of(log_odds: float, temperature: float) -> float:
    """`1 / (1 + exp(-log_odds / temperature))`."""
    scaled = log_odds / temperature
    return 1 / (1 + math.exp(-scaled)) if scaled > -700 else 0.0


def fit_temperature(log_odds: Sequence[float], truths: Sequence[Verdict]) -> float:
    """The temperature under which the probabilities are likeliest to give the true verdicts (Guo et al. 2017, arXiv 1706.04599).

    A win counts as a chance of (n + 1) / (n + 2) of n decided pairs (Platt 1999), so that a few pairs that are all right do not make a
    judge certain.

    Args:
        log_odds: of "a is better", of validation pairs, never of the held-out ones.
        truths: of the same pairs; "tie" counts as half a win of each.

    Returns:
        In [.01, 100]; 100 for a judge that is right no more often than chance.

    Raises:
        ValueError: no pairs, or not as many log-odds as truths.
    """
    import numpy as np
    from scipy.optimize import minimize_scalar

    if not log_odds or len(log_odds) != len(truths):
        raise ValueError(f"{len(log_odds)} log-odds for {len(truths)} truths; at least one pair is needed")
    decided = sum(truth != "tie" for truth in truths)
    wins = {"a": (decided + 1) / (decided + 2), "b": 1 / (decided + 2), "tie": 0.5}

    def loss(log_temperature: float) -> float:
        scale = math.exp(-log_temperature)
        return sum(float(np.logaddexp(0, odds * scale)) - wins[truth] * odds * scale for odds, truth in zip(log_odds, truths, strict=True))

    minimum: Any = minimize_scalar(loss, bounds=(math.log(0.01), math.log(HOTTEST)), method="bounded", options={"xatol": 1e-4})
    return float(min(math.exp(minimum.x), HOTTEST))
