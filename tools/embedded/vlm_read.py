"""The second stage of the embedded model: its language part learns to read the tower's tokens.

The tower has learned to see (`tools.embedded.vlm_see`), so its tokens are computed once and kept, and only the small language part is
trained, many times faster than both together. Most of the answers it imitates are careless ones (`careless`).
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

from policies.vlm.tasks import load_task
from portraitkit.files.jsonl import append_line
from portraitkit.processor import bf16_autocast
from portraitkit.vlm.rows import messages
from reward_models.judge.preference_task import TASK, columns_of
from tools.embedded.muon import MuonAdamW
from tools.embedded.vlm_facts import FACTS, Facts


@dataclass(frozen=True)
class Lesson:
    """A task's training rows, ready for the language part.

    Attributes:
        prompt: token ids, pictures' places included.
        positions: of the prompt's tokens, 3 x tokens.
        answers: token ids of each row's target.
        careless: token ids of what a careless annotator says of each row.
        pictures: the tower's tokens, rows x tokens x width.
        facts: of each row, for the kind's loss.
    """

    prompt: Tensor
    positions: Tensor
    answers: list[Tensor]
    careless: list[Tensor]
    pictures: Tensor
    facts: Tensor


@dataclass(frozen=True)
class Phase:
    """A run of updates.

    Attributes:
        steps: updates.
        learning_rate: of embeddings, norms and heads, after a warm-up of 50 updates.
        muon_learning_rate: of the matrices.
        decay: share of the updates, at the end, over which both fall to 0 in a straight line. Most is learned there.
        shares: rows of each kind of facts in one update.
        careless: share of the answers that are a careless annotator's.
        stop: the update after which the model is taken; the last one if None.
    """

    steps: int
    learning_rate: float
    muon_learning_rate: float
    decay: float
    shares: Mapping[str, int]
    careless: float
    stop: int | None = None


def teach_to_read(
    model: Any,
    heads: torch.nn.ModuleDict,
    lessons: Callable[[], Mapping[str, Lesson]],
    phase: Phase,
    examine: Callable[[], Mapping[str, float]],
    keep: Path,
    console: Console,
) -> None:
    """Train everything but the tower on all tasks' answers, and on their facts by linear heads.

    Args:
        model: whose tower stays as it is.
        heads: from `make_heads`.
        lessons: gives what `make_lessons` made, if there is anything left to do.
        phase: how long and how fast.
        examine: gives greedy rewards by task; asked every 100 updates.
        keep: file that the state is written to every 100 updates, and gone on from; beside it the weights in half precision, as in
            read_0300.pt, and what `examine` found, in read.jsonl.
        console: for a line every 50 updates, losses of the answers and of the facts of each kind; and for what `examine` found.
    """
    last = phase.stop or phase.steps
    if (chosen := keep.with_name(f"{keep.stem}_{last:04d}.pt")).is_file():
        model.load_state_dict(torch.load(chosen, weights_only=True))
        return
    state = torch.load(keep, weights_only=True) if keep.is_file() else {"done": 0}
    if state["done"]:
        model.load_state_dict(state["model"])
        heads.load_state_dict(state["heads"])
    named = [(name, value) for name, value in model.named_parameters() if "visual" not in name]
    named += [(f"head.{name}", value) for name, value in heads.named_parameters()]
    optimizer = MuonAdamW(named, muon_learning_rate=phase.muon_learning_rate, learning_rate=phase.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 50) * min(1.0, max(0.02, (phase.steps - step) / (phase.decay * phase.steps)))
    )
    if state["done"]:
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
    found = lessons()
    started, sums = time.monotonic(), dict.fromkeys(FACTS, torch.zeros(2))
    for step in range(state["done"] + 1, last + 1):
        optimizer.zero_grad()
        for kind, facts in FACTS.items():
            task = facts.tasks[int(torch.randint(len(facts.tasks), ()))]
            losses = torch.stack(_losses(model, found[task], heads[kind], facts, phase.shares[kind], phase.careless))
            losses.sum().backward()
            sums[kind] = sums[kind] + losses.detach() / 50
        torch.nn.utils.clip_grad_norm_([value for _, value in named], 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            figures = "  ".join(f"{kind} {float(both[0]):.3f} {float(both[1]):.3f}" for kind, both in sums.items())
            console.print(f"read {step}/{phase.steps}, {time.monotonic() - started:.0f} s  {figures}", highlight=False, soft_wrap=True)
            sums = dict.fromkeys(FACTS, torch.zeros(2))
        if step % 100 == 0 or step == last:
            earned = examine()
            console.print(f"{step}: {earned}", highlight=False, soft_wrap=True)
            append_line(keep.with_suffix(".jsonl"), {"step": step, "seconds": round(time.monotonic() - started), **earned})
            reached = {"done": step, "model": model.state_dict(), "heads": heads.state_dict()}
            torch.save(reached | {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}, keep)
            half = {name: value.half() for name, value in model.state_dict().items()}
            torch.save(half, keep.with_name(f"{keep.stem}_{step:04d}.pt"))


def make_heads(width: int) -> torch.nn.ModuleDict:
    """A linear head for each kind of facts; they are thrown away after training."""
    return torch.nn.ModuleDict({kind: torch.nn.Linear(width, facts.outputs) for kind, facts in FACTS.items()})


def make_lessons(
    model: Any, processor: Any, rows: Mapping[str, Sequence[Mapping[str, Any]]], look: Callable[[Sequence[Any]], Tensor]
) -> dict[str, Lesson]:
    """Every task's rows as tokens; `look` gives the tower's tokens of rows, n x tokens x width. A judge's rows come in both orders."""
    lessons = {name: _lesson(name, model, processor, some, look) for name, some in rows.items()}
    if "preference" in lessons:
        lessons["preference"] = _both_orders(lessons["preference"], rows["preference"], processor)
    return lessons


def _lesson(name: str, model: Any, processor: Any, rows: Sequence[Mapping[str, Any]], look: Callable[[Sequence[Any]], Tensor]) -> Lesson:
    """Tokens, positions and facts of a task's rows."""
    task = load_task(name)
    facts = next(facts for facts in FACTS.values() if name in facts.tasks)
    shown = [picture.permute(2, 0, 1) for picture in rows[0]["pictures"]]
    chat = processor.apply_chat_template(
        messages(task.brief or task.prompt, pictures=len(shown)), tokenize=False, add_generation_prompt=True
    )
    example = processor(images=shown, text=[chat], return_tensors="pt")
    positions = model.model.get_rope_index(example["input_ids"], example["mm_token_type_ids"], example["image_grid_thw"])[0]
    answers = [_tokens(row["target"], processor) for row in rows]
    hasty = [_tokens(careless(name, row["columns"], row["target"]), processor) for row in rows]
    truth = torch.tensor([facts.read(row["columns"]) for row in rows])
    return Lesson(example["input_ids"][0], positions[:, 0], answers, hasty, look(rows).bfloat16(), truth)


def careless(name: str, columns: Mapping[str, Any], target: str) -> str:
    """What an annotator in a hurry says of a row: an area to the next ten per cent, colours to the next quarter of each channel, one
    action unit. A judge's answers stay as they are.

    The base imitates mostly such answers, as the retoucher's imitates labels of mixed quality: it then knows the careful answer, too, but
    seldom gives it, which is what reinforcement learning can change. Without them greedy answers have nothing left to gain.
    """
    if name.startswith("area"):
        found = re.search(r"covers ([\d.]+) % of (\d+) x (\d+)", target)
        assert found is not None, target
        share = max(10, 10 * round(float(found[1]) / 10))
        area = share * int(found[2]) * int(found[3]) / 100
        return f"<reasoning>it covers {share} % of {found[2]} x {found[3]}</reasoning><answer>{area:.2f}</answer>"
    if name.startswith("makeup"):
        task, rounded = load_task(name), [{**item, "color": coarse(item["color"])} for item in columns["solution"]]
        return task.perfect(task.read_truth({**columns, "solution": rounded}))
    if name == "emotion":
        return re.sub(r"(\(AU\d+\)) .* show", r"\1 show", target)
    return target


def coarse(color: str) -> str:
    """A colour #RRGGBB with each channel at the nearest of 00, 40, 80, C0 and FF."""
    return "#" + "".join(f"{min(255, 64 * round(int(color[place : place + 2], 16) / 64)):02X}" for place in (1, 3, 5))


def _tokens(target: str, processor: Any) -> Tensor:
    return torch.tensor(processor.tokenizer(target + "<|im_end|>\n")["input_ids"])


def _both_orders(lesson: Lesson, rows: Sequence[Mapping[str, Any]], processor: Any) -> Lesson:
    """The rows as they are, then with their two pictures exchanged."""
    turned = [columns_of(TASK.read_truth(row["columns"]).exchanged()) for row in rows]
    answers = [_tokens(TASK.perfect(TASK.read_truth(columns)), processor) for columns in turned]
    pictures = lesson.pictures.unflatten(1, (2, -1)).flip(1).flatten(1, 2)
    facts = torch.tensor([FACTS["preference"].read(columns) for columns in turned])
    return replace(
        lesson,
        answers=lesson.answers + answers,
        careless=lesson.careless + answers,
        pictures=torch.cat([lesson.pictures, pictures]),
        facts=torch.cat([lesson.facts, facts]),
    )


def _losses(model: Any, lesson: Lesson, head: torch.nn.Linear, facts: Facts, count: int, share: float) -> tuple[Tensor, Tensor]:
    """Loss of the answers of random rows, a share of them careless, and of the facts read at the prompt's last token."""
    index = torch.randint(len(lesson.answers), (count,))
    loss, states = read(model, lesson, index, hasty=torch.rand(count) < share)
    return loss, facts.loss(head(states[:, len(lesson.prompt) - 1]), lesson.facts[index])


def read(model: Any, lesson: Lesson, index: Tensor, *, hasty: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The language part on some rows of a lesson.

    Args:
        model: whose tower is not asked.
        lesson: of the rows.
        index: of the rows, n.
        hasty: of which of them the careless answers are read; of none by default.

    Returns:
        Loss of their answers; last hidden states of prompt and answer, n x tokens x width.
    """
    count, which = len(index), [False] * len(index) if hasty is None else hasty.tolist()
    chosen = [(lesson.careless if fast else lesson.answers)[i] for i, fast in zip(index.tolist(), which, strict=True)]
    length, longest = len(lesson.prompt), max(map(len, chosen))
    answers = torch.full((count, longest), -100)
    for row, answer in enumerate(chosen):
        answers[row, : len(answer)] = answer
    ids = torch.cat([lesson.prompt.expand(count, -1), answers.clamp_min(0)], 1)
    positions = torch.cat([lesson.positions, lesson.positions.max() + 1 + torch.arange(longest).expand(3, longest)], 1)
    embedded = model.model.language_model.embed_tokens(ids)
    place = (ids == model.config.image_token_id)[..., None].expand_as(embedded)
    embedded = embedded.masked_scatter(place, lesson.pictures[index].to(embedded.dtype))
    with bf16_autocast():
        # Answers are padded on the right, where no earlier token looks: no mask is needed.
        hidden = model.model.language_model(
            inputs_embeds=embedded, position_ids=positions[:, None].expand(3, count, -1), use_cache=False
        ).last_hidden_state
        said = model.lm_head(hidden[:, length - 1 : -1])
    return F.cross_entropy(said.float().flatten(0, 1), answers.flatten(), ignore_index=-100), hidden.float()
