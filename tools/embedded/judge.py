"""The embedded judge: the embedded vision-language model, taught further on pairs of real people. About two hours on one core.

    make-preferences build FOLDER --anchors painted --resolution 128 --pairs-per-photo 4 --output-dir PAIRS \\
        --generators rollout:4 degradations degradations:gross degradations:clean
    python -m tools.embedded.judge --pairs PAIRS
    train-reward-model --data PAIRS --train-pairs 0 --stages grpo --max-train-steps 160 --output-dir GRPO
    python -m tools.embedded.judge --pairs PAIRS --reinforced GRPO/model

Tower and language part learn together, from the answers and, beside them, from the scores of each candidate by linear heads on its tokens,
which are thrown away. Half of what an answer's digits are taught is the answer, the other half the true score itself, as probabilities of
the two digits around it; and the difference of the two candidates' expected scores is taught, too, which in a policy's rollouts is a
fraction of a point. The scores before the choice are in half of the answers the true ones rounded, which leave open who is better; drawn
ones, which agree with the choice, alone taught it to read its choice off its own digits. Two fifths of the pairs are such rollouts, of
which one in four is the photo; the others have known faults, as retouchers make them, gross, or on a face that needed nothing. Only
training people are taught; validation people decide what ships.
"""

import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

from portraitkit.cli import run_command
from portraitkit.config import Options, load_config
from portraitkit.errors import DataError
from portraitkit.pictures.images import read_image
from portraitkit.processor import bf16_autocast
from portraitkit.vlm.model import load_model, load_processor
from portraitkit.vlm.rows import messages
from preference_data.contract import BRIEF_PROMPT, Answer, every_digit, write_brief
from preference_data.pair_set import read_pairs
from preference_data.schema import DIMENSIONS, Pair
from preference_data.verdict import ORDERS, Order, in_order
from reward_models.judge.judge import Comparison, Judgement, calibrate, load_judge
from reward_models.judge.pairs import stored_pair
from reward_models.judge.preference_task import answer_of, spots_view
from reward_models.judge.settings import EMBEDDED, write_settings
from tools.embedded.muon import MuonAdamW
from tools.embedded.vlm import look, write
from tools.embedded.vlm_see import Heads, patches_of

SHARES = {"rollout": 10, "photo": 3, "degradations": 9, "degradations:gross": 6, "degradations:clean": 4}
"""Pairs of an update by generator; "photo" is a rollout and its photo."""
IMPORTANCE = torch.tensor([2.0 if name == "blemish_removal" else 1.0 for name in DIMENSIONS])
"""Of a dimension's scores, those of blemishes being the hardest to see."""
CHOICE = 0.3
"""Weight of the token that names the better candidate, one of some thirty in an answer."""
CELLS = 72
"""Tokens of a candidate above its difference, 192 x 96 pixels in merged patches of 16."""
CALIBRATION = 400
"""Validation pairs that the temperature is fitted on."""


@dataclass(frozen=True)
class Teaching:
    """How the judge is taught.

    Attributes:
        steps: updates.
        muon_learning_rate: of the matrices.
        learning_rate: of the rest; both rise for 30 updates and fall in a straight line over the last `decay` of them.
        decay: share of the updates.
        heads: weight of the scores that linear heads read from the tokens, beside 2 for the answers and for the expected scores.
    """

    steps: int = 850
    muon_learning_rate: float = 0.008
    learning_rate: float = 8e-4
    decay: float = 0.9
    heads: float = 0.5


TEACHING = Teaching()
"""Three seconds an update on one core; each pair in one order, half of them in a mirror."""


@dataclass(frozen=True)
class JudgeConfig(Options):
    """Teach the embedded judge."""

    pairs: tuple[str, ...] = ()
    """Pair sets of make-preferences with what `SHARES` names."""
    note: str = ""
    """What recipe.json shall say besides."""
    reinforced: tuple[str, ...] = ()
    """What GRPO made of the judge that was taught, to be written in its place: of several, the mean of their weights, in which a folder
    named twice counts twice (Wortsman et al., 2022, arXiv 2203.05482)."""
    model_dir: str = "portraitkit/vlm/embedded"
    """The model that it is made from."""
    output_dir: str = "reward_models/embedded"
    """Where the judge goes."""
    work_dir: str = "runs/embedded-judge"
    """State and log."""
    seed: int = 0
    """Of batches."""
    scale: float = 1.0
    """Share of the updates; below 1 only to try the recipe."""


@dataclass(frozen=True, eq=False)
class Example:
    """A pair with a coherent answer.

    Attributes:
        kind: of `SHARES`.
        candidates: photo and candidate, of a and of b.
        answers: token ids in either order: with drawn scores, and with the nearest whole ones where these do not contradict the choice.
        scores: of a and of b, 2 x dimensions, 1 to 5.
    """

    kind: str
    candidates: tuple[tuple[Path, Path], tuple[Path, Path]]
    answers: dict[str, tuple[Tensor, Tensor]]
    scores: Tensor


class Teacher:
    """A model with its tower, asked about views of candidates."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor
        pictures = [torch.zeros(3, 192, 96)] * 2
        chat = processor.apply_chat_template(messages(BRIEF_PROMPT, pictures=2), tokenize=False, add_generation_prompt=True)
        asked = processor(images=pictures, text=[chat], return_tensors="pt", do_rescale=False)
        self.prompt, self.grid = asked["input_ids"][0], asked["image_grid_thw"][:1]
        positions = model.model.get_rope_index(asked["input_ids"], asked["mm_token_type_ids"], asked["image_grid_thw"])[0]
        self.positions = positions[:, 0]
        digits = torch.stack([self.tokens(answer) for answer in every_digit()])
        *places, self.choice = (digits != digits[0]).any(0).nonzero()[:, 0].tolist()
        self.places = torch.tensor(places)
        self.digits = digits[:, places[0]]

    def tokens(self, answer: str) -> Tensor:
        """Token ids of an answer and its end; all answers in the brief form are equally long."""
        return torch.tensor(self.processor.tokenizer(answer + "<|im_end|>\n")["input_ids"])

    def read(self, views: Sequence[Tensor], answers: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of each answer's tokens, and the tower's tokens of each view; two views an answer, 8-bit."""
        seen = look(self.model, patches_of(self.processor, views)[0], self.grid)
        count, length = answers.shape
        ids = torch.cat([self.prompt.expand(count, -1), answers], 1)
        later = self.positions.max() + 1 + torch.arange(length).expand(3, length)
        positions = torch.cat([self.positions, later], 1)[:, None].expand(3, count, -1)
        embedded = self.model.model.language_model.embed_tokens(ids)
        place = (ids == self.model.config.image_token_id)[..., None].expand_as(embedded)
        with bf16_autocast():
            hidden = self.model.model.language_model(
                inputs_embeds=embedded.masked_scatter(place, seen), position_ids=positions, use_cache=False
            ).last_hidden_state
            said = self.model.lm_head(hidden[:, len(self.prompt) - 1 : -1])
        return said.float(), seen


def main(argv: list[str]) -> int:
    """Teach the judge, unless that is done, and write it; returns the exit code."""
    config = load_config(JudgeConfig, argv, prog="python -m tools.embedded.judge")
    console, work = Console(stderr=True), Path(config.work_dir)
    work.mkdir(parents=True, exist_ok=True)
    random.seed(config.seed)  # draws the batches
    torch.manual_seed(config.seed)
    model, processor = load_model(config.reinforced[0] if config.reinforced else config.model_dir), load_processor(config.model_dir)
    if config.reinforced:
        weights = [load_model(folder).state_dict() for folder in config.reinforced]
        model.load_state_dict({name: torch.stack([one[name].float() for one in weights]).mean(0) for name in weights[0]})
    sets = {folder: read_pairs(Path(folder)) for folder in config.pairs}
    teaching = replace(TEACHING, steps=max(int(TEACHING.steps * config.scale), 1))
    if not config.reinforced:
        teacher = Teacher(model, processor)
        teach(teacher, list(examples(sets, "train", teacher)), teaching, work / "judge.pt", console)
    start = sha256((Path(config.model_dir) / "model.safetensors").read_bytes()).hexdigest()
    recipe = {"seed": config.seed, "start": start, "teaching": asdict(teaching), "shares": SHARES, "note": config.note, **described(sets)}
    write(model, processor, Path(config.output_dir), recipe | {"validation": {}}, console)
    write(model, processor, Path(config.output_dir), recipe | {"validation": calibrate_on(sets, Path(config.output_dir))}, console)
    return 0


def imitated(said: Tensor, answers: Tensor, scores: Tensor, teacher: Teacher) -> tuple[Tensor, Tensor]:
    """The losses of answers and of expected scores.

    Args:
        said: logits, n x tokens x vocabulary.
        answers: token ids, n x tokens.
        scores: true ones, n x 2 x dimensions, as the candidates are shown.
        teacher: knows where the digits are.
    """
    told = F.one_hot(answers, said.shape[-1]).float()
    in_turn = scores.transpose(1, 2).flatten(1)  # an answer names both candidates' scores dimension by dimension
    nearness = (1 - (in_turn[..., None] - torch.arange(1.0, 6.0)).abs()).clamp_min(0)
    true = torch.zeros_like(told[:, teacher.places]).index_copy(2, teacher.digits, nearness)
    told[:, teacher.places] = (told[:, teacher.places] + true) / 2
    expected = said[:, teacher.places][..., teacher.digits].softmax(-1) @ torch.arange(1.0, 6.0)
    lead, found = scores[:, 0] - scores[:, 1], expected[:, ::2] - expected[:, 1::2]
    apart = F.smooth_l1_loss(found, lead, beta=0.1, reduction="none") * IMPORTANCE
    wrong = -(told * said.log_softmax(-1)).sum(-1)
    return wrong.mean() + CHOICE * wrong[:, teacher.choice].mean(), apart.mean()


def seen_scores(guess: Tensor, scores: Tensor) -> Tensor:
    """The loss of scores that a head read off the candidates' tokens, 2n x dimensions, and of their difference within a pair."""
    guess, true = guess.unflatten(0, (-1, 2)), (scores - 3) / 2
    alone = F.smooth_l1_loss(guess, true, beta=0.2, reduction="none")
    apart = F.smooth_l1_loss(guess[:, 0] - guess[:, 1], true[:, 0] - true[:, 1], beta=0.05, reduction="none")
    return 3 * ((alone * IMPORTANCE).mean() + (apart * IMPORTANCE).mean())


def examples(sets: Mapping[str, Sequence[Pair]], split: str, teacher: Teacher) -> Iterator[Example]:
    """The pairs of a split that have an overall winner and an answer that does not contradict itself."""
    for folder, pairs in sets.items():
        for pair in pairs:
            if pair.split != split or pair.overall not in ("a", "b") or not pair.scores:
                continue
            judged = stored_pair(pair, Path(folder))
            answers = {order: answer_of(judged.shown(order)) for order in ORDERS}
            if not answers["ab"].coherent:
                continue
            kind = pair.origin_a.generator
            if kind == "rollout" and pair.origin_a != pair.origin_b:
                kind = "photo"
            photo, a, b = (Path(folder, name) for name in (pair.input, pair.a, pair.b))
            blunt = {order: nearest(pair, answer, order) for order, answer in answers.items()}
            tokens = {order: (teacher.tokens(write_brief(answers[order])), teacher.tokens(write_brief(blunt[order]))) for order in ORDERS}
            scores = torch.tensor([pair.scores[name] for name in DIMENSIONS]).T
            yield Example(kind, ((photo, a), (photo, b)), tokens, scores)


def nearest(pair: Pair, answer: Answer, order: Order) -> Answer:
    """The answer with the true scores rounded, as the judge itself says them, which often leaves the choice open; as it is where they would
    contradict it. Scores drawn so that they agree with the choice teach to read it off them, and not to look."""
    assert pair.scores
    scores = {name: in_order((round(a), round(b)), order) for name, (a, b) in pair.scores.items()}
    found = replace(answer, scores=scores)
    return found if found.coherent else answer


@cache
def picture_of(path: Path) -> Tensor:
    """8-bit RGB."""
    return (read_image(path).pixels * 255).round().byte()


@cache
def view_of(photo: Path, candidate: Path) -> Tensor:
    """`preference_task.spots_view`, 8-bit; kept, some gigabytes in all."""
    return (spots_view(picture_of(photo) / 255, picture_of(candidate) / 255) * 255).round().byte()


def teach(teacher: Teacher, pairs: Sequence[Example], teaching: Teaching, keep: Path, console: Console) -> None:
    """Train tower and language part.

    Args:
        teacher: whose model is trained.
        pairs: of every kind of `SHARES`.
        teaching: how long and how fast.
        keep: file for the trained weights; where it is there already, they are taken.
        console: for a line every 25 updates: losses of the answers, of expected scores and of the heads.
    """
    model = teacher.model
    if keep.is_file():
        model.load_state_dict(torch.load(keep, weights_only=True))
        return
    by_kind = {kind: [pair for pair in pairs if pair.kind == kind] for kind in SHARES}
    if lacking := [kind for kind, some in by_kind.items() if not some]:
        raise DataError(f"--pairs: hold no {lacking[0]} pair with an overall winner; see the module's first lines")
    heads = Heads(model.config.text_config.hidden_size, {"scores": CELLS}, {"scores": 1}, {"scores": len(DIMENSIONS)})
    named = [*model.named_parameters(), *((f"read.{name}", value) for name, value in heads.named_parameters())]
    optimizer = MuonAdamW(named, muon_learning_rate=teaching.muon_learning_rate, learning_rate=teaching.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / 30) * min(1.0, max(0.02, (teaching.steps - step) / (teaching.decay * teaching.steps))),
    )
    started, sums = time.monotonic(), torch.zeros(3)
    for step in range(1, teaching.steps + 1):
        views, answers, scores = [], [], []
        for pair in (pair for kind, count in SHARES.items() for pair in random.choices(by_kind[kind], k=count)):
            order, mirrored = random.choice(ORDERS), random.random() < 0.5
            shown = in_order((view_of(*pair.candidates[0]), view_of(*pair.candidates[1])), order)
            views += [view.flip(-1) if mirrored else view for view in shown]
            answers.append(random.choice(pair.answers[order]))
            scores.append(torch.stack(in_order((pair.scores[0], pair.scores[1]), order)))
        said, seen = teacher.read(views, torch.stack(answers))
        true = torch.stack(scores)
        told, apart = imitated(said, torch.stack(answers), true, teacher)
        found = torch.stack([seen_scores(guess, true) for guess in heads("scores", seen[:, None])]).sum()
        optimizer.zero_grad()
        (2 * (told + apart) + teaching.heads * found).backward()
        torch.nn.utils.clip_grad_norm_([value for _, value in named], 1.0)
        optimizer.step()
        schedule.step()
        sums = sums + torch.stack([told, apart, found]).detach() / 25
        if step % 25 == 0:
            figures = "  ".join(f"{name} {float(value):.3f}" for name, value in zip(("answers", "expected", "heads"), sums, strict=True))
            console.print(f"judge {step}/{teaching.steps}, {time.monotonic() - started:.0f} s  {figures}", highlight=False)
            sums = torch.zeros(3)
    torch.save(model.state_dict(), keep)


def described(sets: Mapping[str, Sequence[Pair]]) -> dict[str, Any]:
    """For recipe.json: pairs, photos and people of the training split, and what they belong to."""
    taught = [pair for pairs in sets.values() for pair in pairs if pair.split == "train"]
    sources = Counter(f"{pair.source}, {pair.licence}" for pair in {pair.id.rsplit("-", 1)[0]: pair for pair in taught}.values())
    return {"pairs": len(taught), "people": len({pair.identity for pair in taught}), "photos": dict(sources)}


def calibrate_on(sets: Mapping[str, Sequence[Pair]], folder: Path) -> dict[str, float]:
    """Write `judge.json` beside the judge's weights, its temperature fitted on validation pairs; the share of them, overall ties left out,
    that it judges right in both orders."""
    write_settings(folder, EMBEDDED)
    known = [stored_pair(pair, Path(name)) for name, pairs in sets.items() for pair in pairs if pair.split == "validation" and pair.overall]
    known = random.Random(0).sample(known, min(CALIBRATION, len(known)))
    comparisons, truths = [Comparison(*pair.pixels()) for pair in known], [pair.overall or "tie" for pair in known]
    judge = load_judge(str(folder))
    write_settings(folder, calibrate(judge, comparisons, truths))
    decided = [(one, truth) for one, truth in zip(judge.judge(comparisons), truths, strict=True) if truth != "tie"]
    right = sum(isinstance(one, Judgement) and one.overall == truth for one, truth in decided)
    return {"pairs": len(decided), "right in both orders": round(right / len(decided), 3)}


if __name__ == "__main__":
    sys.argv[0] = "judge"
    run_command(main)
