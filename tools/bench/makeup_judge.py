"""`python -m tools.bench.makeup_judge`: whether a judge ranks renderings of makeup answers as the verifiable score does, validation rows.

Pairs of answers to one embedded row: the right look beside another row's; and two of the policy's own sampled answers that differ in score.
Which of the two is nearer is known: by the task's accuracy (a lipstick's colour score; of a look the soft F1 of colours and shapes).
A tie of the judge counts half; the pixel distance between rendering and photo is the ruler that needs no judge.
"""

import argparse
import random
from collections.abc import Callable

from rich.console import Console
from rich.table import Table
from torch import Tensor

from policies.vlm.judged import MakeupJudge, bare_faces
from policies.vlm.tasks import load_task
from portraitkit.stats import wilson_interval
from portraitkit.vlm.generate import Decoding
from portraitkit.vlm.model import be_quiet, load_model, load_processor
from portraitkit.vlm.rows import Row, make_rows
from portraitkit.vlm.task import Task
from preference_data.verdict import Verdict, winner
from reward_models.judge.judge import Comparison, Judgement, load_judge
from reward_models.judge.reward import JudgeReward
from reward_models.judge.settings import MakeupSettings

READ: dict[str, Callable[[Judgement], Verdict]] = {
    "by personal features": lambda found: winner(*found.scores["identity"]),
    "by the overall verdict": lambda found: found.overall,
    "by the mean of all scores": lambda found: winner(*found.means),
}
KINDS = ("right beside another row's", "two of the policy's", "two of the policy's, far apart")


def main() -> None:
    """Print the shares of pairs on which judge and verifiable score agree."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.makeup_judge")
    parser.add_argument("--judge", default="embedded", help="as load_judge takes it")
    parser.add_argument("--rows", type=int, default=160, help="of the validation split, for each task")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    be_quiet()
    judge = load_judge(asked.judge, untaught=MakeupSettings)
    model, processor = load_model("embedded"), load_processor("embedded")
    table = Table(title=f"{asked.judge}: agreement with the verifiable score [95 %]", title_justify="left")
    for column in ("task, pairs", "n", "pixel distance", *READ):
        table.add_column(column)
    for name in ("makeup-lips", "makeup"):
        task = load_task(name)
        rows = make_rows(task, "validation", asked.rows, asked.seed)
        sampled = Decoding(processor, task.brief, 96, 1.0, samples=4, seed=asked.seed).complete(model, rows)
        show = MakeupJudge(JudgeReward(judge, "win_rate"), bare_faces("embedded"), lips=name == "makeup-lips")
        draw = random.Random(asked.seed)
        pairs: list[tuple[str, Comparison, float, Verdict]] = []
        for row, group in zip(rows, sampled, strict=True):
            other = draw.choice([other for other in rows if other.truth != row.truth])
            answers = [one.text for one in group]
            for kind, (a, b) in (
                (KINDS[0], (task.perfect(row.truth), task.perfect(other.truth))),
                (KINDS[1], _apart(answers, row, task, show)),
            ):
                a, b = (a, b) if draw.random() < 0.5 else (b, a)
                first, second = (_accuracy(task, text, row) for text in (a, b))
                photo, (one, two) = row.pictures[0], show.render(row, [a, b]) or (None, None)
                if first != second and isinstance(photo, Tensor) and one is not None and two is not None:
                    pairs.append((kind, Comparison(photo, one, two), abs(first - second), winner(first, second)))
        judged = judge.judge([comparison for _, comparison, _, _ in pairs])
        median = sorted(gap for kind, _, gap, _ in pairs if kind == KINDS[1])
        for kind in KINDS:
            some = [
                (comparison, found, truth)
                for (of, comparison, gap, truth), found in zip(pairs, judged, strict=True)
                if isinstance(found, Judgement) and kind.startswith(of) and (kind == of or gap > median[len(median) // 2])
            ]
            near = [winner(_distance(pair.photo, pair.b), _distance(pair.photo, pair.a)) for pair, _, _ in some]
            truths = [truth for _, _, truth in some]
            reads = [[read(found) for _, found, _ in some] for read in READ.values()]
            table.add_row(f"{name}: {kind}", str(len(some)), *(_share(verdicts, truths) for verdicts in (near, *reads)))
    console = Console(width=180)
    console.print(table)
    console.print(judge.counts)


def _accuracy(task: Task, text: str, row: Row) -> float:
    """Of a fixed-mode score, the part that is not its form."""
    return next(value or 0.0 for name, value in task.score(text, row.truth, "fixed").parts.items() if name != "format")


def _apart(answers: list[str], row: Row, task: Task, show: MakeupJudge) -> tuple[str, str]:
    """The best and the worst of the answers that can be rendered; the first twice where none can."""
    known = [text for text, picture in zip(answers, show.render(row, answers) or [], strict=False) if picture is not None] or answers[:1]
    return max(known, key=lambda text: _accuracy(task, text, row)), min(known, key=lambda text: _accuracy(task, text, row))


def _distance(photo: Tensor, picture: Tensor) -> float:
    return float((photo - picture).abs().mean())


def _share(verdicts: list[Verdict], truths: list[Verdict]) -> str:
    wins = sum(1.0 if said == truth else 0.5 if said == "tie" else 0.0 for said, truth in zip(verdicts, truths, strict=True))
    low, high = wilson_interval(wins, len(truths))
    return f"{wins / max(len(truths), 1):.2f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    main()
