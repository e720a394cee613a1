"""A task's reward and a policy: probed before a long run, and evaluated on held-out rows, greedy, sampled, blind, by a constant answer.

The probe asks what can be earned without looking, by breaking the form, or not at all. No training run can mend a reward whose best
constant answer is out of reach, whose groups are all alike, or that pays more for a broken answer than for a wrong one. The probe finds out
in seconds; it prints and refuses nothing.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from rich.table import Table
from torch import Tensor

from portraitkit.stats import bootstrap_interval, paired_change
from portraitkit.vlm.context import check_lengths
from portraitkit.vlm.generate import Completion, Decoding
from portraitkit.vlm.rows import Row, shuffled
from portraitkit.vlm.task import Mode, Task

CANDIDATES = 256


@dataclass(frozen=True)
class Evaluation:
    """What a policy earned on some rows."""

    greedy: Float[Tensor, " n"]  # reward of the greedy answer
    sampled: Float[Tensor, " n"]  # mean reward of the sampled answers
    blind: Float[Tensor, " n"]  # reward of the greedy answer to another row's picture
    answers: list[Completion]  # the greedy answers
    samples: list[list[Completion]]  # the sampled answers, a list a row
    metrics: dict[str, float]  # the task's own, of the greedy answers


def evaluate(
    model: Any, decoding: Decoding, task: Task, rows: Sequence[Row], mode: Mode, *, advance: Callable[[int], object] = lambda count: None
) -> Evaluation:
    """Evaluate a policy on held-out rows, two or more; several processes divide the rows, and all get all figures. The `decoding` must
    be the same before and after training; `advance` is called with the number of rows done, in three passes over the rows."""
    greedy = [answers[0] for answers in decoding.complete(model, rows, greedy=True, advance=advance)]
    sampled = decoding.complete(model, rows, advance=advance)
    blind = [answers[0] for answers in decoding.complete(model, shuffled(rows), greedy=True, advance=advance)]
    metrics = task.metrics([answer.text for answer in greedy], [row.truth for row in rows]) if task.metrics else {}
    return Evaluation(
        score_all(task, greedy, rows, mode),
        torch.stack([score_all(task, column, rows, mode) for column in zip(*sampled, strict=True)]).mean(0),
        score_all(task, blind, rows, mode),
        greedy,
        sampled,
        metrics,
    )


def score_all(task: Task, answers: Sequence[Completion], rows: Sequence[Row], mode: Mode) -> Float[Tensor, " n"]:
    """The reward of one answer a row."""
    return torch.tensor([task.score(answer.text, row.truth, mode).reward for answer, row in zip(answers, rows, strict=True)])


def best_constant(task: Task, rows: Sequence[Row], mode: Mode, *, candidates: Sequence[str] = ()) -> tuple[str, float]:
    """The one answer that earns most when it is given to every row, and its mean reward.

    Searched among the perfect answers to up to 256 of the rows, what the task's `constants` finds for all rows, and the candidates
    given, on the very rows it is judged on. Where neither the task nor the rows know the best compromise, the floor is a lower bound.
    """
    step = max(len(rows) // CANDIDATES, 1)
    found = task.constants([row.truth for row in rows], mode) if task.constants else ()
    tried = dict.fromkeys([*(task.perfect(row.truth) for row in rows[::step]), *found, *candidates])
    mean, best = max((sum(task.score(text, row.truth, mode).reward for row in rows) / len(rows), text) for text in tried)
    return best, mean


def compare(before: Evaluation, after: Evaluation) -> dict[str, dict[str, object]]:
    """Greedy and sampled reward before and after, with bootstrap intervals over rows; the gain's is paired."""
    found: dict[str, dict[str, object]] = {}
    for name in ("greedy", "sampled"):
        old, new = getattr(before, name), getattr(after, name)
        change = paired_change(old, new)
        ends = {"ci95_before": bootstrap_interval(old), "ci95_after": bootstrap_interval(new)}
        found[name] = {"before": change.before, "after": change.after, **ends, "gain": change.gain, "gain_ci95": change.ci95}
    return found


# ---- the probe

GARBAGE = ("", "I cannot tell.", "?" * 40, "<answer></answer>", "<think></think><answer></answer>")


@dataclass(frozen=True)
class Inversion:
    """A malformed answer that earns more than a well-formed wrong one."""

    malformed: str
    reward: float
    wrong: str
    wrong_reward: float


@dataclass(frozen=True)
class Probe:
    """What was found."""

    task: str  # name
    mode: Mode  # of the rewards
    declared_range: tuple[float, float]  # smallest and largest reward that the task declares
    observed_range: tuple[float, float]  # of the sampled answers
    row_maxima: tuple[float, float]  # smallest and largest of what the rows allow; below the declared maximum where rows label only part
    perfect_share: float  # share of rows whose perfect answer earns the most that the row allows
    constant_answer: str  # the best constant answer
    constant_reward: float  # its mean reward
    inversions: float  # share of (row, malformed answer) pairs that beat that row's well-formed wrong answer
    inversion_example: Inversion | None  # the worst of them
    rows: int  # probed with the model; 0 when no model was asked
    samples: int  # answers a row
    temperature: float  # of the sampling
    mean_reward: float  # of the sampled answers
    zero_variance: float  # share of groups whose rewards are all alike, from which nothing is learned
    cut: float  # share of answers that the token limit ended
    tokens: tuple[float, int, int]  # mean, smallest and largest length of the answers
    max_tokens: int  # the limit
    image_tokens: tuple[int, int]  # smallest and largest number of tokens that a picture takes
    prompt_tokens: int  # longest prompt with its picture
    context: int | None  # tokens that the model takes

    def table(self) -> Table:
        """For the screen, with what each figure means for a run."""
        table = Table("", "measured", "what it means", title=f"Probe of {self.task} ({self.mode} rewards)", title_justify="left")
        for name, value, note in self.lines():
            table.add_row(name, value, note)
        return table

    def advice(self) -> str:
        """One line: whether to train with GRPO, and why not, or what to beware of."""
        against = [
            (self.zero_variance >= 0.9, f"{self.zero_variance:.0%} of the groups have one reward and teach nothing: begin with sft"),
            (self.inversions > 0.05, f"{self.inversions:.0%} of the malformed answers earn more than a wrong one: mend the reward"),
            (self.cut > 0.5, f"{self.cut:.0%} of the answers are cut: raise --max-tokens"),
        ]
        if reasons := [reason for found, reason in against if found]:
            return f"do not train yet: {'; '.join(reasons)}"
        below = self.mean_reward < self.constant_reward
        beware = f"; what needs no eyes earns {self.constant_reward:.3f}, more than the model now: only what is above it is a gain" * below
        return f"train: {1 - self.zero_variance:.0%} of the groups have a spread to learn from{beware}"

    def lines(self) -> list[tuple[str, str, str]]:
        """(name, value, meaning) of each figure."""
        low, high = self.declared_range
        mean, shortest, longest = self.tokens
        least, most = self.row_maxima
        span = f"{least:g}" if least == most else f"{least:g} to {most:g}"
        allowed = "" if least == most == high else f"these rows allow at most {span}"
        reached = "" if self.perfect_share == 1 else "the maximum is out of reach"
        example = self.inversion_example
        worst = (
            f"{example.malformed[:40]!r} earns {example.reward:.3f}, {example.wrong[:40]!r} {example.wrong_reward:.3f}" if example else ""
        )
        room = None if self.context is None else self.context - self.prompt_tokens - self.max_tokens
        return [
            ("reward range", f"{low:g} to {high:g}", f"sampled answers earn {self.observed_range[0]:.3f} to {self.observed_range[1]:.3f}"),
            ("perfect answers at the maximum", f"{self.perfect_share:.0%}", "; ".join(filter(None, (reached, allowed)))),
            ("best constant answer", f"{self.constant_reward:.3f}", f"{self.constant_answer[:60]!r}: what needs no eyes"),
            ("sampled answers now", f"{self.mean_reward:.3f}", f"mean of {self.rows} x {self.samples} at temperature {self.temperature:g}"),
            ("groups without variance", f"{self.zero_variance:.0%}", "nothing is learned from them" if self.zero_variance else ""),
            ("inversions", f"{self.inversions:.1%}", worst or "no malformed answer beats a well-formed wrong one"),
            ("answers cut by the limit", f"{self.cut:.0%}", f"limit {self.max_tokens} tokens" + ("; raise it" if self.cut > 0.05 else "")),
            ("answer length", f"{mean:.1f} tokens", f"{shortest} to {longest}"),
            (
                "picture",
                f"{self.image_tokens[0]} to {self.image_tokens[1]} tokens",
                f"longest prompt with its picture {self.prompt_tokens}",
            ),
            ("context left", "unknown" if room is None else str(room), "prompts will be cut" if room is not None and room < 0 else ""),
        ]


def probe_reward(task: Task, rows: Sequence[Row], mode: Mode) -> tuple[str, float, float, float, Inversion | None]:
    """The part that needs no model: constant answer and reward, share of perfect answers at the maximum, inversions and the worst."""
    constant, constant_reward = best_constant(task, rows, mode)
    perfect = [task.score(task.perfect(row.truth), row.truth, mode).reward for row in rows]
    draw = random.Random(0)
    pairs: list[Inversion] = []
    for row in rows:
        answer = task.perfect(row.truth)
        other = task.perfect(draw.choice(rows).truth)
        if other == answer:
            continue
        wrong = task.score(other, row.truth, mode).reward
        for text in malformed(other):
            pairs.append(Inversion(text, task.score(text, row.truth, mode).reward, other, wrong))
    inverted = [pair for pair in pairs if pair.reward > pair.wrong_reward + 1e-9]
    worst = max(inverted, key=lambda pair: pair.reward - pair.wrong_reward, default=None)
    share = sum(value >= most - 1e-6 for value, most in zip(perfect, row_maxima(task, rows, mode), strict=True)) / len(perfect)
    return constant, constant_reward, share, len(inverted) / max(len(pairs), 1), worst


def row_maxima(task: Task, rows: Sequence[Row], mode: Mode) -> list[float]:
    """The most that each row allows: what the task says of its truth, or the declared maximum."""
    return [task.ranges[mode][1] if task.most is None else task.most(row.truth, mode) for row in rows]


def malformed(answer: str) -> list[str]:
    """Broken variants of a well-formed answer, and garbage."""
    half = answer[: len(answer) // 2]
    bare = answer.replace("<answer>", "").replace("</answer>", "")
    return [*GARBAGE, half, bare, answer.replace("</answer>", ""), answer + answer, f"{answer} or so"]


def probe(
    model: Any, decoding: Decoding, task: Task, rows: Sequence[Row], mode: Mode, *, advance: Callable[[int], object] = lambda count: None
) -> Probe:
    """Probe a task's reward with a policy on training rows; several processes divide them. The `decoding` is as training samples, its
    `samples` the group size; `advance` is called with the number of rows done."""
    constant, constant_reward, perfect, inversions, worst = probe_reward(task, rows, mode)
    groups = decoding.complete(model, rows, advance=advance)
    rewards = torch.tensor(
        [[task.score(one.text, row.truth, mode).reward for one in group] for group, row in zip(groups, rows, strict=True)]
    )
    answers = [one for group in groups for one in group]
    maxima = row_maxima(task, rows, mode)
    lengths = [one.tokens for one in answers]
    taken = check_lengths(decoding.processor, rows, decoding.prompt, max_tokens=decoding.max_tokens, context=None)
    return Probe(
        task=task.name,
        mode=mode,
        declared_range=task.ranges[mode],
        observed_range=(float(rewards.min()), float(rewards.max())),
        row_maxima=(min(maxima), max(maxima)),
        perfect_share=perfect,
        constant_answer=constant,
        constant_reward=constant_reward,
        inversions=inversions,
        inversion_example=worst,
        rows=len(rows),
        samples=decoding.samples,
        temperature=decoding.temperature,
        mean_reward=float(rewards.mean()),
        zero_variance=float((rewards.amax(1) - rewards.amin(1) < 1e-9).float().mean()),
        cut=sum(one.cut for one in answers) / len(answers),
        tokens=(sum(lengths) / len(lengths), min(lengths), max(lengths)),
        max_tokens=decoding.max_tokens,
        image_tokens=taken.pictures,
        prompt_tokens=taken.prompt,
        context=getattr(model.config.get_text_config(), "max_position_embeddings", None),
    )
