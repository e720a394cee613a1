"""The judge: a photo and two retouches of it to five verdicts, scores, an overall verdict, a calibrated probability and the reasoning.

Both orders are asked. Where they agree, that is the verdict; where they do not, it is a tie, and overall a flip, which is counted. An
answer that breaks the contract in either order makes the comparison unreadable: it is counted and never scored.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean

from portraitkit.endpoint import Reply
from portraitkit.errors import ConfigError
from preference_data.contract import Answer, Unreadable, every_digit, verdicts_in_files
from preference_data.verdict import ORDERS, Order, Verdict, in_order
from reward_models.judge.backends import Backend, Certainty, HttpBackend, Picture, TransformersBackend, VllmBackend, read_certainty
from reward_models.judge.preference_task import SHOWN
from reward_models.judge.settings import JudgeSettings, fit_temperature, probability_of, read_settings, settings_from, source_of

AT_ONCE = 256  # Questions handed to the backend together: bounds the memory that their pictures take


WEIGHTS = {"skin_smoothing": 0.1, "blemish_removal": 0.4, "texture": 0.25, "clarity": 0.1, "identity": 0.15}
"""Of a dimension's scores in their mean: those of the verifiable rewards that ask the same (`reward_set.CHECKS`; that of texture is shared
by two). Of two rollouts of one policy the plain mean of the true scores prefers the better one in .93 of pairs, this one in .99: what a
policy hardly changes, as clarity, would else weigh as much as its purpose."""


@dataclass(frozen=True)
class Comparison:
    """A photo and two retouches of it, of one size, RGB in [0, 1]. The same tensor object is shown to the model once."""

    photo: Picture
    a: Picture
    b: Picture


@dataclass(frozen=True)
class Judgement:
    """What a judge says about a and b, whatever the order in which it saw them."""

    verdicts: dict[str, Verdict]  # dimension -> "a", "b", or "tie": the scores are equal, or the orders disagree
    # dimension -> scores of a and b in [1, 5], the mean over the orders; expected values where tokens' probabilities are known
    scores: dict[str, tuple[float, float]]
    overall: Verdict  # as for a dimension
    probability: float  # that a is better, in [0, 1]; .5 stands for no preference
    log_odds: float  # of the same, before the temperature
    reasoning: str  # of the first order
    orders: tuple[Order, ...]  # that were asked
    flipped: bool  # whether the overall verdicts of the orders disagree
    answers: tuple[Answer, ...]  # as they were read, one an order, about the pictures as shown

    @property
    def means(self) -> tuple[float, float]:
        """Mean scores of a and b over the dimensions, weighted by `WEIGHTS`, in [1, 5]."""
        weights = {name: WEIGHTS.get(name, 1.0) for name in self.scores}
        a, b = (sum(weights[name] * both[side] for name, both in self.scores.items()) / sum(weights.values()) for side in (0, 1))
        return a, b


@dataclass
class Counts:
    """What a judge has been asked so far."""

    asked: int = 0  # answers asked for
    unreadable: int = 0  # answers that break the contract
    failed: int = 0  # requests that brought no answer
    comparisons: int = 0  # that were judged
    flips: int = 0  # of them, those whose orders disagree overall

    def since(self, before: "Counts") -> dict[str, int]:
        """What came after `before`, a copy that was taken earlier."""
        return {name: value - getattr(before, name) for name, value in asdict(self).items()}

    def copy(self) -> "Counts":
        """The counts as they are now."""
        return replace(self)


class Judge:
    """A model that compares retouches, in both orders unless the position's effect is what is measured; `settings` say how it is shown and
    read.
    """

    def __init__(self, backend: Backend, settings: JudgeSettings, *, orders: tuple[Order, ...] = ORDERS) -> None:
        if not orders or len(set(orders)) != len(orders):
            raise ConfigError(f"orders {orders}: give ab, ba or both")
        self.backend, self.settings, self.orders = backend, settings, orders
        self.counts = Counts()

    def judge(self, comparisons: Sequence[Comparison]) -> list[Judgement | Unreadable]:
        """Judge comparisons, each with pictures of one size; those of one photo are cheapest side by side.
        ValueError: pictures of one comparison differ in size."""
        for comparison in comparisons:
            if not comparison.photo.shape == comparison.a.shape == comparison.b.shape:
                raise ValueError(f"photo {tuple(comparison.photo.shape)} and retouches differ in size; resize them first")
        judged: list[Judgement | Unreadable] = []
        step = max(AT_ONCE // len(self.orders), 1)
        for start in range(0, len(comparisons), step):
            shown = self._show(comparisons[start : start + step])
            said = self.backend.ask(self.settings.prompt, shown, self.settings.max_tokens)
            count = len(self.orders)
            judged += [self._conclude(said[place : place + count]) for place in range(0, len(said), count)]
        return judged

    def close(self) -> None:
        """Close an endpoint's connections; nothing to do for a model in this process."""
        if isinstance(self.backend, HttpBackend):
            self.backend.close()

    def _show(self, comparisons: Sequence[Comparison]) -> list[tuple[Picture, ...]]:
        """The pictures of each question, each comparison's orders together; equal views are one object."""
        show = SHOWN[self.settings.shown]
        made: dict[tuple[int, int, int], tuple[Picture, ...]] = {}
        known: dict[tuple[int, ...], Picture] = {}
        shown = []
        for comparison in comparisons:
            for order in self.orders:
                first, second = (comparison.a, comparison.b) if order == "ab" else (comparison.b, comparison.a)
                key = (id(comparison.photo), id(first), id(second))
                if key not in made:
                    pictures = show(comparison.photo, first, second)
                    sources = key[1:] if len(pictures) == 2 else key
                    made[key] = tuple(
                        known.setdefault((key[0], source), picture) for source, picture in zip(sources, pictures, strict=True)
                    )
                shown.append(made[key])
        return shown

    def _conclude(self, said: Sequence[Reply]) -> Judgement | Unreadable:
        self.counts.asked += len(said)
        answers: list[Answer] = []
        trouble: Unreadable | None = None
        for order, one in zip(self.orders, said, strict=True):
            answer = Unreadable(one.error, "") if one.text is None else self.settings.read(one.text)
            if isinstance(answer, Unreadable):
                self.counts.failed += one.text is None
                self.counts.unreadable += one.text is not None
                trouble = trouble or Unreadable(f"order {order}: {answer.reason}", answer.text)
            else:
                answers.append(answer)
        if trouble is not None:
            return trouble
        certain = [read_certainty(one.text or "", one.choices, list(answers[0].scores)) for one in said]
        judgement = self._merge(answers, certain)
        self.counts.comparisons += 1
        self.counts.flips += judgement.flipped
        return judgement

    def _merge(self, answers: Sequence[Answer], certain: Sequence[Certainty | None]) -> Judgement:
        read = [verdicts_in_files(answer, order) for answer, order in zip(answers, self.orders, strict=True)]
        names, scores, odds = list(answers[0].scores), [], []

        def agreed(verdicts: list[Verdict]) -> Verdict:
            return verdicts[0] if len(set(verdicts)) == 1 else "tie"

        for order, (_, overall, whole), sure in zip(self.orders, read, certain, strict=True):
            scores.append(whole if sure is None else {name: in_order(sure.scores[name], order) for name in names})
            odds.append({"a": 1.0, "b": -1.0}[overall] if sure is None else sure.log_odds * (1 if order == "ab" else -1))
        overalls = [overall for _, overall, _ in read]
        log_odds = sum(odds) / len(odds)
        return Judgement(
            verdicts={name: agreed([verdicts[name] for verdicts, _, _ in read]) for name in names},
            scores={name: (fmean(one[name][0] for one in scores), fmean(one[name][1] for one in scores)) for name in names},
            overall=agreed(overalls),
            probability=probability_of(log_odds, self.settings.temperature),
            log_odds=log_odds,
            reasoning=answers[0].reasoning,
            orders=self.orders,
            flipped=len(set(overalls)) > 1,
            answers=tuple(answers),
        )


def calibrate(judge: Judge, comparisons: Sequence[Comparison], truths: Sequence[Verdict]) -> JudgeSettings:
    """The judge's settings, which it uses from now on, with a temperature fitted on the overall verdicts of validation pairs, never of
    held-out ones; unreadable ones are left out. ConfigError: no comparison could be read."""
    judged = judge.judge(comparisons)
    known = [(one.log_odds, truth) for one, truth in zip(judged, truths, strict=True) if isinstance(one, Judgement)]
    if not known:
        raise ConfigError(f"none of {len(judged)} answers could be read; a temperature needs some: train the judge first")
    judge.settings = replace(judge.settings, temperature=fit_temperature([odds for odds, _ in known], [truth for _, truth in known]))
    return judge.settings


def load_judge(
    source: str, *, device: str = "cpu", dtype: str | None = None, batch_size: int = 32, untaught: type[JudgeSettings] = JudgeSettings
) -> Judge:
    """A judge by name: embedded; a folder or hub id of a vision-language model; vllm:FOLDER-OR-ID; http://host:port/v1. Device, dtype and
    batch size are those of a model that transformers runs; see `TransformersBackend.load`. A model without a judge.json is asked as
    `untaught` asks.
    ConfigError: no source, or a URL that is none.
    WeightsError: nothing can be loaded from there, or its judge.json is damaged."""
    if not source:
        raise ConfigError("judge: names no model; give embedded, a folder, a hub id, vllm:ID or http://host:port/v1")
    if source.startswith(("http://", "https://")):
        backend, card = HttpBackend.connect(source)
        settings = settings_from(card["judge"], f"judge {source}") if "judge" in card else untaught(model=backend.name)
        return Judge(backend, settings)
    name = source.removeprefix("vllm:")
    if source != name:
        return Judge(VllmBackend.load(name), read_settings(Path(name)) or untaught(model=name))
    settings = read_settings(Path(source_of(name))) or untaught(model=name)
    form = every_digit() if settings.form == "brief" else ()  # a judge that answers in short cannot break its form
    return Judge(TransformersBackend.load(name, device=device, dtype=dtype, batch_size=batch_size, form=form), settings)
