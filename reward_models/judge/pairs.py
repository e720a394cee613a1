"""Judged pairs as a judge is trained and tested on them, synthetic or a user's, shown in both orders; and what it answered about them."""

import hashlib
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor

from portraitkit.errors import DataError
from portraitkit.pictures.images import from_uint8, read_image, to_uint8
from portraitkit.vlm.rows import SPLITS, Row, first_row
from preference_data.contract import BRIEF_PROMPT, Answer, Unreadable, prompt, read_answer, read_brief, write_answer, write_brief
from preference_data.pair_set import read_pairs, scan_pairs
from preference_data.schema import CHOICES, Pair, whole_scores
from preference_data.verdict import ORDERS, Order, Verdict, about_files, in_order, turned, winner
from reward_models.judge.coherence import reason
from reward_models.judge.preference_task import SHOWN, Preference, answer_of, preference_of, said

Stored = UInt8[ndarray, "h w 3"] | Path
DRAWS = 16


@dataclass(frozen=True)
class JudgedPair:
    """A photo and two retouches, with what is known about them."""

    id: str  # unique in its set
    identity: str  # who is in the photo
    photo: Stored  # 8-bit RGB, or the file that holds it
    a: Stored  # first candidate
    b: Stored  # second candidate
    overall: Verdict | None  # who is better; None where it is not known
    verdicts: Mapping[str, Verdict]  # dimension -> the same; dimensions that nobody judged are left out
    scores: Mapping[str, tuple[int, int]] | None = None  # dimension -> true scores of a and b, where they are known
    reasoning: str = ""  # in words, Image1 being a; empty where nobody gave any
    groups: Mapping[str, str] = field(default_factory=dict)  # age_band, gender, skin_tone, where they are recorded
    synthetic: bool = False  # made by code, at least in part

    def pixels(self) -> tuple[Float[Tensor, "3 h w"], Float[Tensor, "3 h w"], Float[Tensor, "3 h w"]]:
        """Photo, a and b, RGB in [0, 1]."""
        photo, a, b = (read_image(one).pixels if isinstance(one, Path) else from_uint8(one) for one in (self.photo, self.a, self.b))
        return photo, a, b

    def shown(self, order: Order) -> Preference:
        """What is known about the pair as it is shown in an order."""
        return preference_of(self.overall, self.verdicts, self.scores, order)


@dataclass(frozen=True)
class View:
    """How pairs are shown to a judge and how it answers."""

    shown: str = "as-taken"  # a key of `preference_task.SHOWN`
    form: str = "full"  # brief or full, see `preference_data.contract`

    @property
    def prompt(self) -> str:
        """The user turn's text."""
        return BRIEF_PROMPT if self.form == "brief" else prompt()

    def read(self, text: str) -> Answer | Unreadable:
        """Read an answer in the one form that was asked for."""
        return read_brief(text) if self.form == "brief" else read_answer(text)

    def write(self, answer: Answer) -> str:
        """An answer in that form."""
        return write_brief(answer) if self.form == "brief" else write_answer(answer)

    def rows(self, pair: JudgedPair) -> list[Row]:
        """The pair in both orders, a first and b first; both rows carry its id."""
        as_files = self.shown == "as-taken" and isinstance(pair.photo, Path)
        *before, a, b = (pair.photo, pair.a, pair.b) if as_files else SHOWN[self.shown](*pair.pixels())
        rows = []
        for order in ORDERS:
            truth = pair.shown(order)
            words = pair.reasoning if order == "ab" else turned(pair.reasoning)
            answer = answer_of(truth)
            target = self.write(replace(answer, reasoning=words or reason(answer)))
            columns = {"pair": pair.id, "order": order, "coherent": answer.coherent}
            rows.append(Row((*before, *in_order((a, b), order)), truth, target, columns, f"pair {pair.id}"))
        return rows


@dataclass(frozen=True)
class Judged:
    """What a judge answered about one pair."""

    pair: str  # its id
    texts: tuple[str, str]  # the answers as they came, a shown first and b shown first
    answers: tuple[Answer | Unreadable, Answer | Unreadable]  # the same, read

    def verdicts(self, name: str) -> tuple[Verdict | None, Verdict | None]:
        """Of both orders, overall or on a dimension; None where the answer cannot be read."""
        verdicts: list[Verdict | None] = [
            None if isinstance(answer, Unreadable) else about_files(said(answer, name), order)
            for answer, order in zip(self.answers, ORDERS, strict=True)
        ]
        return verdicts[0], verdicts[1]

    def difference(self, name: str) -> float | None:
        """How much higher a is scored than b, the mean of both orders (of one, where the other cannot be read), -4 to 4."""
        found = []
        for answer, sign in zip(self.answers, (1, -1), strict=True):
            if isinstance(answer, Answer):
                first, second = answer.averages if name == "overall" else answer.scores[name]
                found.append(sign * (first - second))
        return sum(found) / len(found) if found else None

    def to_row(self) -> dict[str, Any]:
        """As a JSON line."""
        return {"pair": self.pair, "ab": self.texts[0], "ba": self.texts[1]}


def judged_of(view: View, pair: str, texts: tuple[str, str]) -> Judged:
    """Read two answers about one pair."""
    return Judged(pair, texts, (view.read(texts[0]), view.read(texts[1])))


def synthetic_pair(split: str, seed: int) -> JudgedPair:
    """A pair of `preference_data.people.synthetic_pairs`, whose truth follows from known degradations."""
    from preference_data.people.synthetic_pairs import make_pair

    made = make_pair(split, seed)
    pictures = (to_uint8(made[name]) for name in ("input", "a", "b"))
    truth = (made["overall"], made["verdicts"], made["scores"])
    return JudgedPair(f"{split}-{seed}", made["identity"], *pictures, *truth, synthetic=True)


def stored_pair(pair: Pair, folder: Path) -> JudgedPair:
    """A pair of a user's set."""
    groups = {name: str(value) for name in CHOICES if (value := getattr(pair, name)) is not None}
    scores = drawn_scores(pair) if pair.scores else None
    files = (folder / pair.input, folder / pair.a, folder / pair.b)
    truth = (pair.overall, pair.verdicts or {}, scores)
    return JudgedPair(pair.id, pair.identity, *files, *truth, pair.reasoning, groups, pair.synthetic)


def drawn_scores(pair: Pair) -> dict[str, tuple[int, int]]:
    """The scores of a pair as whole numbers, which an answer has: each is rounded up with the chance of its fraction, the same in each run.

    A judge that imitates them over many pairs learns probabilities of the digits whose mean is the score (soft labels, as in DeQA-Score,
    arXiv 2501.11561, by drawing them). Both scores of a dimension are rounded by one draw, which keeps their order, and changed where they
    would not say what the verdict says. If the overall winner has the lower mean, it is drawn again, up to `DRAWS` times.
    """
    assert pair.scores
    draw = random.Random(pair.id)
    whole: dict[str, tuple[int, int]] = {}
    for _ in range(DRAWS):
        chances = {name: draw.random() for name in pair.scores}
        rounded = {name: [min(math.floor(score + chances[name]), 5) for score in both] for name, both in pair.scores.items()}
        whole = whole_scores({name: (a, b) for name, (a, b) in rounded.items()}, pair.verdicts)
        a, b = (sum(both[side] for both in whole.values()) for side in (0, 1))
        if pair.overall not in ("a", "b") or winner(a, b) in (pair.overall, "tie"):
            break
    return whole


def open_pairs(
    data: str, counts: Mapping[str, int], seed: int, *, advance: Callable[[], object] = lambda: None
) -> dict[str, list[JudgedPair]]:
    """The three splits of the embedded data or of a pair set's folder, disjoint in who is in them. `counts` are the most pairs of each; 0
    leaves a split out of the embedded data and takes all that a folder has. The seed is that of the embedded training and validation pairs;
    the held-out ones are the same for all.
    DataError: the set cannot be read, a split has no judged pair, or a person is in two splits."""
    if data == "embedded":
        pairs: dict[str, list[JudgedPair]] = {split: [] for split in SPLITS}
        for split in SPLITS:
            first = first_row(split, seed)
            for index in range(counts.get(split, 0)):
                pairs[split].append(synthetic_pair(split, (first + index) % 2**31))
                advance()
        return pairs
    folder = Path(data)
    judged = [pair for pair in read_pairs(folder) if pair.verdicts or pair.overall]
    pairs = {}
    for split in counts:
        some = [stored_pair(pair, folder) for pair in judged if pair.split == split]
        pairs[split] = some[: counts[split] or None]
        if split == "held_out":
            check_several_people(pairs[split], str(folder))
        if not any(pair.overall in ("a", "b") for pair in some):
            raise DataError(
                f"{folder}: no pair with an overall winner is in the {split} split; annotate them, or build with other --split-shares"
            )
    check_disjoint(pairs)
    return pairs


def check_several_people(pairs: Sequence[JudgedPair], where: str) -> None:
    """DataError for held-out pairs of one person: no other person's pictures could be shown in their place, and no interval be made."""
    if len(pairs) > 1 and len({pair.identity for pair in pairs}) == 1:
        raise DataError(f"{where}: all {len(pairs)} held-out pairs show one person; give photos of more people")


def check_pairs(data: str) -> None:
    """DataError for a pair set that cannot be read, its first bad row named, without opening its pictures or writing anything."""
    if data == "embedded":
        return
    found = scan_pairs(Path(data))
    if found.rejected:
        raise DataError(f"--data {data}: line {found.rejected[0].line} of its metadata.jsonl: {found.rejected[0].reason}")
    if not found.rows:
        raise DataError(f"--data {data}: its metadata.jsonl holds no row; make pairs with make-preferences build")


def check_disjoint(pairs: Mapping[str, Sequence[JudgedPair]]) -> dict[str, list[str]]:
    """The hashed identities of each split; DataError where somebody is in two splits, or a pair does not say who is in it."""
    seen: dict[str, str] = {}
    for split, pair in ((split, pair) for split, some in pairs.items() for pair in some):
        if not pair.identity and len(pairs) > 1:
            raise DataError(f"pair {pair.id}: has no identity, so that its split cannot be trusted; make-preferences build names people")
        if (first := seen.setdefault(pair.identity, split)) != split:
            raise DataError(f"identity {pair.identity!r}: is in the splits {first} and {split}; splits are by person, never by row")
    return {split: sorted({identity_hash(pair.identity) for pair in some}) for split, some in pairs.items()}


def identity_hash(name: str) -> str:
    """A name for a person that says nothing about them."""
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def exchanged(pairs: Sequence[JudgedPair], seed: int) -> list[JudgedPair]:
    """Every pair with the pictures of another person's pair: what a judge earns that cannot look. The pairs are of at least two people, see
    `check_several_people`; one that nobody else's could replace keeps its own.
    """
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed)).tolist()
    found = list(pairs)
    for place, index in enumerate(order):
        mine = pairs[index]
        turn = [order[(place + step) % len(order)] for step in range(1, len(order))]
        other = next((pairs[at] for at in turn if pairs[at].identity != mine.identity), mine)
        found[index] = replace(mine, photo=other.photo, a=other.a, b=other.b)
    return found
