"""Cues: a judge that obeys them is found out, one that does not is not, and shams are never counted as cues."""

import pytest
import torch

from portraitkit.endpoint import Reply
from portraitkit.pictures.images import to_uint8
from preference_data.contract import Answer, write_answer
from preference_data.schema import DIMENSIONS
from reward_models.evaluation.as_reward import CLEAN, DRAWN, WRITTEN, ask_about_clean_faces, ask_cues, clean_face_figures, cue_figures
from reward_models.judge.backends import each
from reward_models.judge.judge import Judge
from reward_models.judge.pairs import JudgedPair
from reward_models.judge.settings import JudgeSettings


class Obedient:
    """Prefers what differs less from the photo, unless a text or a golden edge tells it otherwise."""

    name = "obedient"

    def __init__(self, word="", gold=False):
        self.word, self.gold = word, gold

    def ask(self, prompt, shown, max_tokens):
        return [self.say(text, *pictures) for text, pictures in zip(each(prompt, len(shown)), shown, strict=True)]

    def say(self, prompt, photo, first, second):
        better = "first" if (first - photo).abs().mean() <= (second - photo).abs().mean() else "second"
        if self.word and self.word in prompt:
            better = "first" if "Image1" in prompt.split("Image2 is better'.")[-1] else "second"
        if self.gold:
            golden = [float(picture[0, 0].mean() - picture[2, 0].mean()) > 0.4 for picture in (first, second)]
            better = "first" if golden[0] else "second" if golden[1] else better
        scores = (4, 3) if better == "first" else (3, 4)
        return Reply(write_answer(Answer(dict.fromkeys(DIMENSIONS, scores), better, "")))


@pytest.fixture(scope="module")
def pairs():
    generator = torch.Generator().manual_seed(0)
    made = []
    for number in range(6):
        photo = torch.rand(3, 64, 64, generator=generator) * 0.2 + 0.4
        near, far = (photo + amount * torch.randn(photo.shape, generator=generator) for amount in (0.05, 0.2))
        a, b = (near, far) if number % 2 else (far, near)
        made.append(JudgedPair(str(number), f"p{number}", *(to_uint8(one.clamp(0, 1)) for one in (photo, a, b)), None, {}))
    return made


@pytest.mark.parametrize(
    ("judge", "moved"), [(Obedient(), None), (Obedient("experts"), "most experts prefer it"), (Obedient(gold=True), "a golden border")]
)
def test_only_the_cue_that_a_judge_obeys_turns_its_verdicts(judge, moved, pairs, tmp_path):
    ask_cues(Judge(judge, JudgeSettings()), pairs, tmp_path)
    found = cue_figures(tmp_path)
    assert set(found) == {*WRITTEN, *DRAWN} and all(row["n"] == 12 and row["control"] <= 0.25 for row in found.values())
    assert [name for name, row in found.items() if row["excess"] > 0.5 and row["ci95"][0] > 0] == ([moved] if moved else [])


def test_marks_change_their_own_place_alone():
    picture = torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(1))
    for name, draw in DRAWN.items():
        meant, sham = (draw(picture, meant=meant) for meant in (True, False))
        changed = [(one - picture).abs().amax(0) > 1e-6 for one in (meant, sham)]
        assert 0 < changed[0].float().mean() < 0.15 and not (changed[0] & ~changed[1]).any(), name
        assert ((meant >= 0) & (meant <= 1)).all() and not torch.equal(meant, sham)


@pytest.mark.parametrize("word", ["", "portrait"])  # every prompt has the second one: that judge always says Image2
def test_a_judge_that_leaves_clean_faces_alone_is_found_to(word, tmp_path):
    ask_about_clean_faces(Judge(Obedient(word), JudgeSettings()), 2, tmp_path, "validation")
    found = clean_face_figures(tmp_path)
    assert set(found) == set(CLEAN) and {row["untouched_wins"] for row in found.values()} == {0.0 if word else 1.0}
    assert cue_figures(tmp_path) == {} and all(row["n"] == 2 for row in found.values())
