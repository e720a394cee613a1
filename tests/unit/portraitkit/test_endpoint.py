"""The chat client: what is sent, what is tried again, and that a failure is a value."""

import base64
import io
import time

import pytest
from PIL import Image

from portraitkit.endpoint import Endpoint, Question
from portraitkit.errors import ConfigError
from portraitkit.scripted_endpoint import ScriptedEndpoint


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("portraitkit.endpoint.LONGEST_WAIT", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


ONE = Question("?")


def ask(script, questions=(ONE,), **options):
    with ScriptedEndpoint(script) as server:
        endpoint = Endpoint(server.url, "m", **options)
        replies = endpoint.ask(questions)
        endpoint.close()
    return replies, server


def test_a_question_with_a_picture(monkeypatch):
    monkeypatch.setenv("MY_KEY", "k")
    picture = Image.new("RGB", (3, 2), (10, 20, 30))
    replies, server = ask(lambda body: "yes", [Question("what?", picture, "be brief")], key_env="MY_KEY", max_tokens=7)
    assert replies[0].text == "yes" and replies[0].error == ""
    body = server.requests[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0, 7)
    system, user = body["messages"]
    assert system == {"role": "system", "content": "be brief"} and user["content"][1] == {"type": "text", "text": "what?"}
    data = base64.b64decode(user["content"][0]["image_url"]["url"].removeprefix("data:image/png;base64,"))
    assert Image.open(io.BytesIO(data)).getpixel((2, 1)) == (10, 20, 30)
    assert server.headers[0]["authorization"] == "Bearer k"


def test_answers_keep_the_order_of_questions():
    replies, _ = ask(lambda body: body["messages"][0]["content"][0]["text"], [Question(str(n)) for n in range(20)], workers=4)
    assert [reply.text for reply in replies] == [str(n) for n in range(20)]


def test_what_may_pass_is_tried_again():
    answers = iter([(503, "busy"), (429, "slow down"), "at last"])
    replies, server = ask(lambda body: next(answers), retries=2)
    assert replies[0].text == "at last" and len(server.requests) == 3


@pytest.mark.parametrize(
    ("answer", "words", "requests"),
    [
        ((500, "broken"), "HTTP 500", 3),
        ((401, "who are you"), "HTTP 401", 1),
        ((200, "<html>"), "not a chat completion", 1),
        ((200, '{"choices": []}'), "not a chat completion", 1),
        ((200, '{"choices": [{"message": {"content": null}}]}'), "no text", 1),
    ],
)
def test_failures_are_values(answer, words, requests):
    replies, server = ask(lambda body: answer, retries=2)
    assert replies[0].text is None and words in replies[0].error and len(server.requests) == requests


def test_silence_and_absence():
    def slow(body):
        time.sleep(0.3)
        return "late"

    assert "in time" in ask(slow, timeout=0.05, retries=0)[0][0].error
    with ScriptedEndpoint(lambda body: "x") as server:
        url = server.url
    endpoint = Endpoint(url, "m", retries=1)
    assert "no connection" in endpoint.ask([Question("?")])[0].error
    endpoint.close()


def test_the_rate_limit_spaces_requests():
    start = time.monotonic()
    ask(lambda body: "x", [Question("?")] * 4, per_minute=600, workers=4)
    assert time.monotonic() - start >= 0.3


@pytest.mark.parametrize(
    ("url", "model", "key"), [("localhost", "m", ""), ("http://", "m", ""), ("http://x/v1", "", ""), ("http://x/v1", "m", "NOT_SET_HERE")]
)
def test_mistakes(url, model, key):
    with pytest.raises(ConfigError):
        Endpoint(url, model, key_env=key)
