"""`serve-judge`'s application in this process: what it answers, what it refuses, and that requests are answered together."""

import asyncio
import base64
import json
import struct
import zlib

import pytest
import torch
from starlette.testclient import TestClient

from portraitkit.endpoint import Reply, data_url
from reward_models.judge.judge import Judge
from reward_models.judge.settings import JudgeSettings
from reward_models.workers.chat import read_request
from reward_models.workers.options import ServeJudgeConfig
from reward_models.workers.server import Batcher, judge_app

URL = data_url(torch.full((3, 8, 8), 0.5))
CONFIG = ServeJudgeConfig(allowed_hosts=("testserver",), max_request_mib=0.05, max_pictures=3)


class Echo:
    """Says how many pictures it was shown, and how many questions came together."""

    name = "echo"

    def ask(self, prompt, shown, max_tokens):
        choices = (("3", {"3": -0.1, "2": -float("inf")}),)
        return [Reply(f"{prompt} {len(pictures)} of {len(shown)}", "", 70, 4, choices=choices, cut=max_tokens < 5) for pictures in shown]


@pytest.fixture
def client():
    app = judge_app(Judge(Echo(), JudgeSettings(temperature=2.0)), CONFIG)
    with TestClient(app) as client:
        yield client


def request(**changes):
    content = [{"type": "image_url", "image_url": {"url": URL}}, {"type": "text", "text": "better?"}]
    return {"model": "echo", "messages": [{"role": "user", "content": content}]} | changes


def turn(content):
    return request(messages=[{"role": "user", "content": content}])


def picture(url):
    return turn([{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "?"}])


def test_a_request_is_answered_as_openai_would(client):
    answer = client.post("/v1/chat/completions", json=request(temperature=0.0, max_tokens=5)).json()
    assert answer["object"] == "chat.completion" and answer["choices"][0]["message"] == {"role": "assistant", "content": "better? 1 of 1"}
    assert answer["choices"][0]["logprobs"] is None
    told = client.post("/v1/chat/completions", json=request(logprobs=True, top_logprobs=1)).json()["choices"][0]["logprobs"]["content"]
    (plain,) = client.post("/v1/chat/completions", json=request(logprobs=True)).json()["choices"][0]["logprobs"]["content"]
    assert plain["token"] == "3" and plain["logprob"] == -0.1 and plain["top_logprobs"] == []
    assert told[0]["token"] == "3" and told[0]["top_logprobs"] == [{"token": "3", "logprob": -0.1, "bytes": [51]}]


def test_a_cut_answer_is_said_to_be_and_tokens_are_counted(client):
    whole, cut = (client.post("/v1/chat/completions", json=request(max_tokens=most)).json() for most in (5, 4))
    assert [answer["choices"][0]["finish_reason"] for answer in (whole, cut)] == ["stop", "length"]
    assert whole["usage"] == {"prompt_tokens": 70, "completion_tokens": 4, "total_tokens": 74}


def test_models_and_health(client):
    (card,) = client.get("/v1/models").json()["data"]
    assert card["id"] == "echo" and card["judge"] == {"shown": "as-taken", "form": "full", "temperature": 2.0, "model": ""}
    assert client.get("/health").json()["status"] == "ok"


HEAD = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
CHUNK = struct.pack(">I", 13) + HEAD + struct.pack(">I", zlib.crc32(HEAD)) + struct.pack(">I", 0) + b"IDAT"
BOMB = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + CHUNK).decode()
REFUSED = {
    "array": ([1], "is a list"),
    "other model": (request(model="gpt"), "only 'echo' is served"),
    "stream": (request(stream=True), "stream True"),
    "hot": (request(temperature=0.7), "temperature 0.7"),
    "stop": (request(stop=["."]), "stop"),
    "several": (request(n=2), "n 2"),
    "system": (request(messages=[{"role": "system", "content": "x"}]), "one turn of the user"),
    "nothing": (request(messages=[]), "one turn of the user"),
    "text": (turn("x"), "must be a list"),
    "no picture": (turn([{"type": "text", "text": "x"}]), "at least one image_url"),
    "too many": (turn([{"type": "image_url"}] * 4 + [{"type": "text", "text": "x"}]), "4 pictures"),
    "no text": (turn([{"type": "image_url"}, {"type": "text", "text": ""}]), "1 to 20000"),
    "web": (picture("http://example.org/a.png"), "nothing is fetched"),
    "file": (picture("file:///etc/passwd"), "nothing is fetched"),
    "base64": (picture("data:image/png;base64,@@"), "picture 1: is not valid base64"),
    "cut": (picture(URL[: len("data:image/png;base64,") + 40]), "picture 1: cannot be read"),
    "bomb": (picture(BOMB), "picture 1: at most 20 million pixels"),
    "tokens": (request(max_tokens=0), "max_tokens 0"),
    "tokens as text": (request(max_tokens="9"), "max_tokens 9"),
    "alternatives": (request(logprobs=True, top_logprobs=21), "top_logprobs 21"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_requests_are_400_with_one_line(client, name):
    body, words = REFUSED[name]
    answer = client.post("/v1/chat/completions", json=body)
    message = answer.json()["error"]["message"]
    assert answer.status_code == 400 and words in message and "\n" not in message


def test_what_is_no_json_or_too_large_or_elsewhere(client):
    assert client.post("/v1/chat/completions", content=b"{").status_code == 400
    assert client.post("/v1/chat/completions", content=b"[" * 20_000).status_code == 400
    assert client.post("/v1/chat/completions", content=b"x" * 60_000).status_code == 413
    assert client.get("/v1/chat/completions").status_code == 405 and client.get("/etc/passwd").status_code == 404
    assert client.get("/health", headers={"host": "evil.example"}).status_code == 400


def ask(batcher, requests):
    async def run():
        task = asyncio.create_task(batcher.run())
        answers = await asyncio.gather(*(batcher.answer(one) for one in requests), return_exceptions=True)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return answers

    return asyncio.run(run())


def read(prompt, pictures=1):
    content = [{"type": "image_url", "image_url": {"url": URL}}] * pictures + [{"type": "text", "text": prompt}]
    body = {"model": "echo", "messages": [{"role": "user", "content": content}]}
    return read_request(json.dumps(body).encode(), model="echo", max_pictures=3, max_tokens=9)


def test_requests_that_arrive_together_are_one_batch():
    batcher = Batcher(Echo(), wait=0.2, most=8)
    answers = ask(batcher, [read("a"), read("b"), read("a"), read("a", 2)])
    assert [one.text for one in answers] == ["a 1 of 2", "b 1 of 1", "a 1 of 2", "a 2 of 1"]
    assert sorted(batcher.sizes) == [1, 1, 2] and batcher.waiting == 0
    batcher = Batcher(Echo(), wait=0.2, most=2)
    ask(batcher, [read("a")] * 5)
    assert batcher.sizes == [2, 2, 1]


def test_a_bug_of_the_model_reaches_whoever_waits_and_the_next_is_answered():
    class Broken(Echo):
        def ask(self, prompt, shown, max_tokens):
            if prompt == "bad":
                raise ZeroDivisionError("bug")
            return super().ask(prompt, shown, max_tokens)

    answers = ask(Batcher(Broken(), wait=0.0, most=1), [read("bad"), read("good")])
    assert isinstance(answers[0], ZeroDivisionError) and answers[1].text == "good 1 of 1"
