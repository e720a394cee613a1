"""The chat client: what is sent, what is tried again, what is kept, and that a failure is a value."""

import base64
import io
import threading
import time

import pytest
import torch
from patience import LONGEST
from PIL import Image
from scripted_endpoint import ScriptedEndpoint

from portraitkit.endpoint import Endpoint, Pace, Question, Reply, data_url
from portraitkit.errors import ConfigError, ImageError, RunFolderError
from portraitkit.pictures.images import write_image

pytestmark = pytest.mark.usefixtures("quick_endpoint")
ONE = Question("?")


def ask(script, questions=(ONE,), usage=None, **options):
    with ScriptedEndpoint(script, usage=usage) as server:
        endpoint = Endpoint(server.url, "m", **options)
        replies = endpoint.ask(questions)
        endpoint.close()
    return replies, server


def opened(url):
    return Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,"))))


@pytest.fixture
def picture(tmp_path):
    write_image(tmp_path / "p.png", torch.tensor([10, 20, 30])[:, None, None].expand(3, 20, 30) / 255)
    return tmp_path / "p.png"


def test_a_question_with_pictures(monkeypatch, picture):
    monkeypatch.setenv("MY_KEY", "k\n")
    questions = [Question("what?", (picture, picture), "be brief"), Question("who?", model="other")]
    replies, server = ask(lambda body: "yes", questions, (5, 2), key_env="MY_KEY", max_tokens=7, workers=1)
    assert replies == [Reply("yes", tokens_in=5, tokens_out=2)] * 2
    body = server.requests[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0, 7) and server.requests[1]["model"] == "other"
    system, user = body["messages"]
    assert system == {"role": "system", "content": "be brief"} and user["content"][2] == {"type": "text", "text": "what?"}
    assert len(server.requests[1]["messages"]) == len(server.requests[1]["messages"][0]["content"]) == 1
    shown = opened(user["content"][1]["image_url"]["url"])
    assert shown.size == (30, 20) and shown.getpixel((2, 1)) == (10, 20, 30)
    assert server.headers[0]["authorization"] == "Bearer k"


def test_pictures_are_made_smaller_but_never_larger(picture):
    assert opened(data_url(picture, 15)).size == (15, 10)
    assert data_url(picture) == data_url(picture, 30) == data_url(picture, 999)
    _, server = ask(lambda body: "x", [Question("?", (picture,))], max_side=15)
    assert opened(server.requests[0]["messages"][0]["content"][0]["image_url"]["url"]).size == (15, 10)
    picture.write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"p\.png"):
        ask(lambda body: "x", [Question("?", (picture,))])


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
        ((500, "broken\n<b>"), "after 3 tries (HTTP 500: broken <b>)", 3),
        ((401, "who are you"), "HTTP 401: who are you; check address, model and API key", 1),
        ((302, "elsewhere", {"location": "/v2"}), "HTTP 302", 1),
        ((200, "<html>"), "not a chat completion", 3),
        ((200, "[" * 100_000), "not a chat completion", 3),
        ((200, '{"choices": []}'), "not a chat completion", 3),
        ((200, '{"choices": [{"message": {"content": null}}]}'), "not a chat completion with a text", 3),
    ],
)
def test_failures_are_values(answer, words, requests):
    replies, server = ask(lambda body: answer, retries=2)
    assert replies[0].text is None and words in replies[0].error and len(server.requests) == requests
    assert server.url in replies[0].error and "\n" not in replies[0].error


@pytest.mark.parametrize("usage", ["null", "[]", '{"prompt_tokens": null}', '{"prompt_tokens": "many", "completion_tokens": Infinity}'])
def test_usage_that_says_nothing_is_0(usage):
    body = '{"choices": [{"message": {"content": "x"}}], "usage": ' + usage + "}"
    assert ask(lambda _: (200, body))[0] == [Reply("x")]


@pytest.mark.parametrize(("asked", "waits"), [("0.02", True), ("0", False), ("Wed, 21 Oct 2015 07:28:00 GMT", False), ("nan", False)])
def test_the_server_says_how_long_to_wait(monkeypatch, asked, waits):
    monkeypatch.setattr("portraitkit.endpoint.LONGEST_WAIT", 9)
    monkeypatch.setattr("portraitkit.endpoint.random.uniform", lambda low, high: 0.0)
    slept, wait = [], threading.Event.wait

    def counted(self, timeout=None):  # of this thread; others may wait for something else meanwhile
        return slept.append(timeout) if threading.current_thread() is threading.main_thread() else wait(self, timeout)

    monkeypatch.setattr(threading.Event, "wait", counted)
    pause = Endpoint("http://127.0.0.1:9/v1", "m")
    answers = iter([_response(429, {"retry-after": asked}), _response(400, {})])
    monkeypatch.setattr(pause.client, "post", lambda *args, **options: next(answers))
    assert "HTTP 400" in pause.ask_one(ONE).error and slept == [0.02 if waits else 0.0]


def _response(status, headers):
    import httpx

    return httpx.Response(status, headers=headers, text="")


def test_the_key_is_never_shown(monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-secret")
    replies, _ = ask(lambda body: (401, "x" * 195 + " sk-secret is bad"), key_env="MY_KEY")
    assert "HTTP 401" in replies[0].error and "sk" not in replies[0].error
    monkeypatch.setenv("MY_KEY", "two\nlines")
    with pytest.raises(ConfigError, match="MY_KEY") as error:
        Endpoint("http://x/v1", "m", key_env="MY_KEY")
    assert "two" not in str(error.value)


def test_a_key_that_is_not_needed(monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    _, server = ask(lambda body: "x", key_env="MY_KEY", key_optional=True)
    assert "authorization" not in server.headers[0]


def test_answers_are_kept_and_failures_are_not(tmp_path):
    answers = iter([(401, "no"), "one", "two", "three"])
    with ScriptedEndpoint(lambda body: next(answers), usage=(3, 4)) as server:
        endpoint = Endpoint(server.url, "m", cache=tmp_path / "kept")
        assert endpoint.ask_one(ONE).text is None and not (tmp_path / "kept").exists()
        assert endpoint.ask_one(ONE) == Reply("one", "", 3, 4)
        assert endpoint.ask_one(ONE) == Reply("one", "", 3, 4, cached=True)
        assert endpoint.ask_one(Question("?", model="n")).text == "two"
        files = list((tmp_path / "kept").iterdir())
        for file in files:
            file.write_text('{"text": null, "tokens_in": 0, "tokens_out": 0}' if file == files[0] else '{"text": "on')
        assert endpoint.ask_one(ONE).text == "three" and len(server.requests) == 4
        endpoint.close()
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match="could not be written"):
        ask(lambda body: "x", cache=tmp_path / "file")


def test_closing_ends_the_waiting(monkeypatch):
    monkeypatch.setattr("portraitkit.endpoint.LONGEST_WAIT", 60)
    came = threading.Event()

    def busy(body):
        came.set()
        return 503, "busy", {"retry-after": "60"}

    with ScriptedEndpoint(busy) as server:
        endpoint, replies = Endpoint(server.url, "m"), []
        thread = threading.Thread(target=lambda: replies.append(endpoint.ask_one(ONE)))
        thread.start()
        assert came.wait(LONGEST)
        time.sleep(0.05)
        endpoint.close()
        thread.join(LONGEST)
        assert "stopped" in endpoint.ask_one(ONE).error
    assert not thread.is_alive() and replies[0].text is None and "stopped" in replies[0].error


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


def test_the_rate_limit_spaces_requests(monkeypatch):
    start = time.monotonic()
    ask(lambda body: "x", [Question("?")] * 4, per_minute=600, workers=4)
    assert time.monotonic() - start >= 0.3
    stop, slept = threading.Event(), []
    monkeypatch.setattr("portraitkit.endpoint.time.monotonic", lambda: 0.0)
    monkeypatch.setattr(stop, "wait", slept.append)
    pace = Pace(30, stop)
    for _ in range(3):
        pace.wait()
    assert slept == [0.0, 2.0, 4.0]


@pytest.mark.parametrize(
    ("url", "model", "key"),
    [("localhost", "m", ""), ("http://", "m", ""), ("http://x:y", "m", ""), ("http://x/v1", "", "")]
    + [("http://x/v1", "m", "NOT_SET_HERE")],
)
def test_mistakes(url, model, key):
    with pytest.raises(ConfigError):
        Endpoint(url, model, key_env=key)
