"""The judge: both orders, ties and flips, unreadable answers, certainty from tokens, calibration, backends."""

import json
import math
import sys
from types import SimpleNamespace

import pytest
import torch
from scripted_endpoint import ScriptedEndpoint
from tiny_judge import write_tiny_judge

from portraitkit.endpoint import Reply
from portraitkit.errors import ConfigError, WeightsError
from portraitkit.vlm.generate import complete
from portraitkit.vlm.rows import Row
from preference_data.contract import Answer, Unreadable, read_brief, write_answer, write_brief
from preference_data.schema import DIMENSIONS
from reward_models.judge.backends import read_certainty
from reward_models.judge.judge import Comparison, Judge, Judgement, calibrate, load_judge
from reward_models.judge.settings import JudgeSettings, fit_temperature, probability_of, read_settings, settings_from, write_settings

FULL, BRIEF = JudgeSettings(), JudgeSettings("as-taken", "brief")


def picture(level, side=16):
    return torch.full((3, side, side), float(level))


def answer(first, second, better):
    return Answer({name: (first, second) for name in DIMENSIONS}, better, "thought")


class Scripted:
    """A backend whose answers a function of the shown pictures' levels gives; it keeps what it was asked."""

    name = "scripted"

    def __init__(self, script):
        self.script, self.shown = script, []

    def ask(self, prompt, shown, max_tokens):
        self.shown += shown
        said = [self.script(*(round(float(one.mean()), 3) for one in pictures)) for pictures in shown]
        return [one if isinstance(one, Reply) else Reply(one) for one in said]


def honest(photo, first, second):
    """The brighter one is better; its score is 5."""
    return write_answer(answer(5, 2, "first") if first > second else answer(2, 5, "second"))


def test_a_judgement_is_about_the_files_not_the_places():
    judge = Judge(Scripted(honest), FULL)
    light, dark = judge.judge([Comparison(picture(0), picture(0.9), picture(0.1)), Comparison(picture(0), picture(0.1), picture(0.9))])
    assert isinstance(light, Judgement) and isinstance(dark, Judgement)
    assert light.overall == "a" and dark.overall == "b" and set(light.verdicts.values()) == {"a"}
    assert light.scores["texture"] == (5, 2) and dark.scores["texture"] == (2, 5) and light.means == (5, 2)
    assert light.probability == pytest.approx(1 / (1 + math.exp(-1))) and dark.probability == pytest.approx(1 - light.probability)
    assert light.orders == ("ab", "ba") and light.reasoning == "thought" and not light.flipped
    assert judge.counts.asked == 4 and judge.counts.comparisons == 2 and judge.counts.flips == 0


def test_orders_that_disagree_are_a_tie_and_a_counted_flip():
    judge = Judge(Scripted(lambda photo, first, second: write_answer(answer(4, 3, "first"))), FULL)
    (one,) = judge.judge([Comparison(picture(0), picture(0.9), picture(0.1))])
    assert isinstance(one, Judgement) and one.overall == "tie" and one.flipped and one.probability == 0.5
    assert set(one.verdicts.values()) == {"tie"} and one.scores["clarity"] == (3.5, 3.5) and judge.counts.flips == 1


def test_one_order_alone_is_asked_on_request():
    backend = Scripted(lambda photo, first, second: write_answer(answer(4, 3, "first")))
    (one,) = Judge(backend, FULL, orders=("ba",)).judge([Comparison(picture(0), picture(0.9), picture(0.1))])
    assert isinstance(one, Judgement) and one.overall == "b" and one.orders == ("ba",) and len(backend.shown) == 1
    assert [round(float(shown.mean()), 2) for shown in backend.shown[0]] == [0, 0.1, 0.9]
    with pytest.raises(ConfigError, match="orders"):
        Judge(backend, FULL, orders=())


GOOD = write_answer(answer(4, 3, "first"))


@pytest.mark.parametrize("spoiled", ["I like Image1.", GOOD.replace("= 4,", "= 7,", 1), "", write_brief(answer(4, 3, "first"))])
def test_an_unreadable_answer_is_counted_and_never_a_score(spoiled):
    judge = Judge(Scripted(lambda photo, first, second: honest(photo, first, second) if first > second else spoiled), FULL)
    (one,) = judge.judge([Comparison(picture(0), picture(0.9), picture(0.1))])
    assert isinstance(one, Unreadable) and one.text == spoiled and "order ba" in one.reason
    assert (judge.counts.asked, judge.counts.unreadable, judge.counts.failed, judge.counts.comparisons) == (2, 1, 0, 0)


def test_a_failed_request_is_counted_apart():
    judge = Judge(Scripted(lambda *levels: Reply(None, "no answer in time")), FULL)
    (one,) = judge.judge([Comparison(picture(0), picture(0.9), picture(0.1))])
    assert isinstance(one, Unreadable) and "no answer in time" in one.reason
    assert judge.counts.failed == 2 and judge.counts.unreadable == 0


def test_pictures_of_different_sizes_are_refused():
    comparison = Comparison(picture(0), picture(1), picture(1))
    object.__setattr__(comparison, "b", picture(1, 8))  # past the check of annotations, which only tests have
    with pytest.raises(ValueError, match="resize"):
        Judge(Scripted(honest), FULL).judge([comparison])


def test_equal_views_are_one_object_for_the_model():
    backend = Scripted(lambda *levels: write_brief(answer(4, 3, "first")))
    photo, a, b = picture(0, 128), picture(0.5, 128), picture(1, 128)
    Judge(backend, JudgeSettings("beside-difference", "brief")).judge([Comparison(photo, a, b), Comparison(photo, a, photo)])
    assert len(backend.shown) == 4 and len({id(view) for shown in backend.shown for view in shown}) == 3
    assert backend.shown[0][0].shape == (3, 192, 96)


def chosen(text, better):
    """Tokens of single characters; the last digit 3 : 1 for what was chosen, every score 3 : 1 for what it is against 5."""
    out = []
    digits = [place for place, char in enumerate(text) if char.isdecimal()]
    for place in digits:
        char = text[place]
        other = ("2" if char == "1" else "1") if place == digits[-1] else "5"
        out.append((char, {char: math.log(0.75), other: math.log(0.25)} if other != char else {char: 0.0}))
    return [("no digit", {}), *out]


@pytest.mark.parametrize("write", [write_brief, write_answer])
def test_certainty_comes_from_the_digits_probabilities(write):
    text = write(answer(1, 3, "second"))
    sure = read_certainty(text, chosen(text, 2))
    assert sure is not None and sure.log_odds == pytest.approx(-math.log(3))
    assert sure.scores["identity"] == pytest.approx((2.0, 3.5))
    assert read_certainty(text, ()) is None
    assert read_certainty(text, [("12", {"12": 0.0})] * 40) is None


def test_probabilities_are_averaged_over_both_orders_and_tempered():
    def script(photo, first, second):
        text = write_brief(answer(4, 3, "first"))
        return Reply(text, choices=tuple((char, {char: math.log(p), "2": math.log(1 - p)} if place == 10 else {char: 0.0})
                                    for p in [0.9 if first > second else 0.6]
                                    for place, char in enumerate(c for c in text if c.isdecimal())))  # fmt: skip

    comparison = Comparison(picture(0), picture(0.9), picture(0.1))
    for temperature in (1.0, 2.0):
        (one,) = Judge(Scripted(script), JudgeSettings("as-taken", "brief", temperature)).judge([comparison])
        expected = (math.log(9) - math.log(1.5)) / 2
        assert one.log_odds == pytest.approx(expected) and one.overall == "tie"
        assert one.probability == pytest.approx(1 / (1 + math.exp(-expected / temperature)))


def test_a_temperature_makes_probabilities_match_how_often_they_are_right():
    odds = [3.0] * 100 + [-3.0] * 100
    truths = ["a"] * 80 + ["b"] * 20 + ["b"] * 80 + ["a"] * 20
    temperature = fit_temperature(odds, truths)
    assert probability_of(3.0, temperature) == pytest.approx((160 * 201 + 40) / 202 / 200, abs=1e-3)  # nearly .8
    assert probability_of(3.0, fit_temperature([3.0, 3.0], ["a", "b"])) == pytest.approx(0.5, abs=0.02)
    few, many = fit_temperature([2.0, -2.0], ["a", "b"]), fit_temperature([2.0, -2.0] * 100, ["a", "b"] * 100)
    assert probability_of(2.0, few) == pytest.approx(3 / 4, abs=1e-2) and probability_of(2.0, many) == pytest.approx(201 / 202, abs=1e-2)
    assert fit_temperature([1.0, -1.0], ["tie", "tie"]) == pytest.approx(100, rel=1e-2)
    with pytest.raises(ValueError, match="at least one"):
        fit_temperature([], [])


def test_calibration_is_kept_beside_the_model(tmp_path):
    judge = Judge(Scripted(honest), FULL)
    pairs = [Comparison(picture(0), picture(0.9), picture(0.1))] * 4
    write_settings(tmp_path, calibrate(judge, pairs, ["a", "a", "a", "b"]))
    kept = read_settings(tmp_path)
    assert kept == judge.settings and judge.judge(pairs[:1])[0].probability == pytest.approx((3 * 5 + 1) / 6 / 4, abs=1e-3)
    with pytest.raises(ConfigError, match="none of 1 answers"):
        calibrate(Judge(Scripted(lambda *levels: "?"), FULL), pairs[:1], ["a"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[", "not valid JSON"),
        ("[]", "must be an object"),
        ('{"show": 1}', "must be an object with form"),
        ('{"shown": "x"}', "as-taken"),
        ('{"form": "x"}', "full or brief"),
        ('{"temperature": 0}', "above 0"),
        ('{"temperature": NaN}', "above 0"),
    ],
)
def test_damaged_settings_are_refused_by_name(tmp_path, text, words):
    (tmp_path / "judge.json").write_text(text)
    with pytest.raises(WeightsError, match=f"judge.json.*{words}"):
        read_settings(tmp_path)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("", "names no model"),
        ("./nowhere", "judge ./nowhere: no such folder"),
        ("http://127.0.0.1:9/v1", "nothing answers there"),
        ("http://", "must be a URL"),
        ("vllm:some/model", "vLLM is not installed"),
    ],
)
def test_a_judge_that_is_not_there_is_one_line(source, words):
    with pytest.raises((ConfigError, WeightsError), match=words):
        load_judge(source)


def test_the_tiny_judge_answers_alike_alone_and_in_a_batch(judge_folder):
    judge = load_judge(str(judge_folder))
    photo = torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(0))
    tones = [photo * level for level in (0.6, 0.8, 1.0)]
    pairs = [Comparison(photo, a, b) for a in tones for b in tones]
    together = judge.judge(pairs)
    assert all(isinstance(one, Judgement) for one in together), [one for one in together if isinstance(one, Unreadable)][:1]
    assert judge.counts.asked == 18 and judge.counts.unreadable == 0
    for pair, one in zip(pairs[:3], together, strict=False):
        (alone,) = judge.judge([pair])
        assert alone.verdicts == one.verdicts and alone.log_odds == pytest.approx(one.log_odds, abs=1e-3)
    assert not float(together[1].scores["texture"][0]).is_integer()
    (mirrored,) = judge.judge([Comparison(photo, tones[1], tones[0])])
    assert mirrored.probability == pytest.approx(1 - together[1].probability, abs=1e-4)


def test_a_judge_that_answers_in_short_cannot_break_its_form(tmp_path):
    judge = load_judge(str(write_tiny_judge(tmp_path / "untaught", steps=0)))
    photo = torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(0))
    free = judge.backend.model, judge.backend.processor, judge.settings.prompt, [Row((photo, photo), None, "", {})]
    assert isinstance(read_brief(complete(*free, max_tokens=40)[0][0].text), Unreadable)
    (one,) = judge.judge([Comparison(photo, photo * 0.9, photo * 0.8)])
    assert isinstance(one, Judgement) and judge.counts.unreadable == 0


def test_the_tower_reads_each_picture_once(judge_folder):
    backend = load_judge(str(judge_folder)).backend
    tower, seen = backend.model.model.visual, []
    hook = tower.patch_embed.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    a, b = torch.rand(2, 3, 192, 96, generator=torch.Generator().manual_seed(0))
    said = backend.ask("Which retouch is better?", [(a, b), (b, a), (a, a)], 40)
    shared, alone = seen[0], []
    seen.clear()
    for pictures in ((a, b), (b, a)):
        alone += complete(backend.model, backend.processor, "Which retouch is better?", [Row(pictures, None, "", {})], max_tokens=40)[0]
    hook.remove()
    assert shared == seen[0] and [one.text for one in said[:2]] == [one.text for one in alone]


class Engine:
    """What `VllmBackend` uses of vllm.LLM."""

    def __init__(self, **options):
        self.options = options

    def chat(self, chats, sampling, chat_template, use_tqdm):
        assert chat_template == "as loaded" and sampling.logprobs == 20 and len(chats[0][0]["content"]) == 4
        text = write_answer(answer(4, 3, "first"))
        ids = list(range(len(text)))
        places = [{token: SimpleNamespace(decoded_token=char, logprob=-0.1), -1: SimpleNamespace(decoded_token="2", logprob=-2.4)}
                  for token, char in enumerate(text)]  # fmt: skip
        return [SimpleNamespace(outputs=[SimpleNamespace(text=text, token_ids=ids, logprobs=places)]) for _ in chats]


def test_vllm_is_asked_for_chats_and_log_probabilities(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=Engine, SamplingParams=lambda **options: SimpleNamespace(**options)))
    monkeypatch.setattr("reward_models.judge.backends.load_processor", lambda source: SimpleNamespace(chat_template="as loaded"))
    judge = load_judge("vllm:some/model")
    (one,) = judge.judge([Comparison(picture(0), picture(0.9), picture(0.1))])
    assert isinstance(one, Judgement) and one.flipped and one.log_odds == pytest.approx(0)
    assert judge.backend.engine.options["limit_mm_per_prompt"] == {"image": 3}
    assert judge.settings == JudgeSettings(model="some/model")


def test_an_endpoint_without_log_probabilities_gives_verdicts(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("reward_models.judge.backends.HttpBackend.connect", connect)
    with ScriptedEndpoint(lambda body: write_answer(answer(4, 3, "first"))) as server:
        judge = load_judge(server.url)
        (one,) = judge.judge([Comparison(picture(0), picture(0.9), picture(0.1))])
        judge.close()
    assert isinstance(one, Judgement) and one.flipped and server.requests[0]["top_logprobs"] == 20
    assert len(server.requests[0]["messages"][0]["content"]) == 4


def connect(url):
    """Without asking for the models: the scripted endpoint has no list of them."""
    from portraitkit.endpoint import Endpoint
    from reward_models.judge.backends import HttpBackend

    return HttpBackend(Endpoint(url, "m", top_logprobs=20, retries=0)), {"id": "m"}


def test_settings_told_by_a_server_are_checked():
    assert settings_from(json.loads('{"shown": "as-taken", "form": "brief"}'), "x") == BRIEF
    with pytest.raises(WeightsError, match="http://h/v1: shown"):
        settings_from({"shown": "no"}, "http://h/v1")
