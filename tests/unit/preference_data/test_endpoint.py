"""Models behind a scripted OpenAI-compatible server on this machine: what it does wrong must never become a score."""

import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from preference_data.annotate_config import AnnotateConfig
from preference_data.annotations import read_judgements
from preference_data.ask_models import ask_models
from preference_data.contract import Answer, write_answer
from preference_data.endpoint import Endpoint, EndpointError, Pace, data_url
from preference_data.io import read_pairs
from preference_data.schema import DIMENSIONS


class Script:
    """Answers chat completions by a function (request, number of times asked so far) -> (status, body)."""

    def __init__(self, answer):
        self.requests, self.answer, self.times, self.lock = [], answer, Counter(), threading.Lock()
        script = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                with script.lock:
                    script.requests.append((self.path, dict(self.headers), json.loads(body)))
                    script.times[body] += 1
                    status, reply, *headers = script.answer(json.loads(body), script.times[body])
                data = (reply if isinstance(reply, str) else json.dumps(reply)).encode()
                self.send_response(status)
                for name, value in headers:
                    self.send_header(name, value)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_port}/v1"


def says(text):
    return 200, {"choices": [{"message": {"content": text}}], "usage": {"prompt_tokens": 1000, "completion_tokens": 100}}


def prefers_larger_file(request, times):
    """A judge with a rule that does not depend on the order: it likes what takes more bytes."""
    _, one, two = [part["image_url"]["url"] for part in request["messages"][0]["content"] if part["type"] == "image_url"]
    better = 1 if len(one) > len(two) else 2
    scores = {name: (4, 2) if better == 1 else (2, 4) for name in DIMENSIONS}
    return says(write_answer(Answer(scores, better, "more bytes")))


@pytest.fixture
def quick(monkeypatch):
    """Retries without the pauses."""
    start = Endpoint.__init__
    monkeypatch.setattr(Endpoint, "__init__", lambda self, *args, **options: start(self, *args, **(options | {"pause": 0.001})))


def config(folder, script, *models, **options):
    return AnnotateConfig(folder, endpoint=script.url, model=models or ("m",), pairs="all", **({"limit": 3} | options))


def test_both_orders_of_every_pair_by_every_model(pair_set, capsys):
    with Script(prefers_larger_file) as script:
        assert ask_models(config(pair_set, script, "one", "two"), read_pairs(pair_set)[:3]) == 0
        assert len(script.requests) == 12 and {path for path, _, _ in script.requests} == {"/v1/chat/completions"}
    found, rejected = read_judgements(pair_set)
    assert len(found) == 12 and not rejected
    by_pair = {}
    for row in found:
        by_pair.setdefault(row.pair, set()).add(row.overall)
        assert row.reasoning == "more bytes" and row.scores is not None
    assert len(by_pair) == 3 and all(len(verdicts) == 1 for verdicts in by_pair.values())  # orders were undone
    out = capsys.readouterr().out
    assert "Krippendorff" in out and "1.00" in out  # both models follow one rule


def test_answered_questions_are_not_asked_again(pair_set, capsys):
    with Script(prefers_larger_file) as script:
        ask_models(config(pair_set, script, both_orders=False, limit=2), read_pairs(pair_set)[:2])
        ask_models(config(pair_set, script, limit=3), read_pairs(pair_set)[:3])
        assert len(script.requests) == 6
        for file in (pair_set / "annotations").glob("*.jsonl"):
            file.unlink()
        ask_models(config(pair_set, script, limit=3), read_pairs(pair_set)[:3])
        assert len(script.requests) == 6  # judgements lost, answers still in the cache
    assert len(read_judgements(pair_set)[0]) == 6


def test_prose_is_unreadable_counted_and_kept(pair_set, capsys):
    with Script(lambda request, times: says("Image 1 is lovely, 5 out of 5!")) as script:
        assert ask_models(config(pair_set, script, limit=1), read_pairs(pair_set)[:1]) == 1
    assert read_judgements(pair_set)[0] == []
    kept = [json.loads(line) for line in (pair_set / "annotations" / "unreadable.jsonl").read_text().splitlines()]
    assert len(kept) == 2 and kept[0]["text"].startswith("Image 1 is lovely") and "2 unreadable" in capsys.readouterr().err


def test_a_model_that_never_keeps_the_contract_is_stopped(pair_set, capsys):
    with Script(lambda request, times: says("no")) as script:
        pairs = read_pairs(pair_set) * 4
        pairs = [type(pair)(**vars(pair) | {"id": f"{pair.id}-{n}", "reasoning": str(n)}) for n, pair in enumerate(pairs)]
        assert ask_models(config(pair_set, script, workers=1), pairs) == 1
        assert len(script.requests) <= 25
    assert "break the contract" in capsys.readouterr().err


@pytest.mark.parametrize(
    "trouble", [(429, "slow down", ("retry-after", "0")), (500, "oops"), (503, {}), (200, "<html>"), (200, {"choices": []})]
)
def test_trouble_is_retried(pair_set, quick, capsys, trouble):
    with Script(lambda request, times: trouble if times < 3 else prefers_larger_file(request, times)) as script:
        assert ask_models(config(pair_set, script, limit=1), read_pairs(pair_set)[:1]) == 0
        assert set(script.times.values()) == {3}
    assert len(read_judgements(pair_set)[0]) == 2


def test_lasting_trouble_ends_the_run_and_keeps_what_was_answered(pair_set, quick, capsys):
    def answer(request, times):
        return prefers_larger_file(request, times) if request["model"] == "m" else (502, "down")

    with Script(answer) as script, pytest.raises(EndpointError, match=r"model bad after 3 tries \(HTTP 502\)"):
        ask_models(config(pair_set, script, "m", "bad", retries=2, workers=1), read_pairs(pair_set)[:1])
    assert {row.annotator for row in read_judgements(pair_set)[0]} == {"m"}


def test_refusals_are_not_retried_and_keys_not_shown(pair_set, monkeypatch, capsys):
    monkeypatch.setenv("MY_KEY", "sk-secret")
    with Script(lambda request, times: (401, "bad key")) as script:
        with pytest.raises(EndpointError, match="HTTP 401") as error:
            ask_models(config(pair_set, script, api_key_env="MY_KEY", workers=1), read_pairs(pair_set)[:1])
        assert len(script.requests) == 1 and script.requests[0][1]["Authorization"] == "Bearer sk-secret"
    assert "secret" not in str(error.value) + capsys.readouterr().err


def test_nobody_there(pair_set, quick, capsys):
    with pytest.raises(EndpointError, match="ConnectError"):
        ask_models(AnnotateConfig(pair_set, endpoint="http://127.0.0.1:9/v1", model=("m",), retries=1), read_pairs(pair_set)[:1])


def test_the_cost_limit_stops_and_goes_on(pair_set, capsys):
    with Script(prefers_larger_file) as script:
        limited = config(pair_set, script, price_in=1000.0, price_out=10000.0, max_cost=3.0, workers=1, limit=8)
        assert ask_models(limited, read_pairs(pair_set)) == 1  # an answer costs 1 + 1
        assert 2 <= len(script.requests) <= 3
    assert "--max-cost" in capsys.readouterr().err and len(read_judgements(pair_set)[0]) == len(script.requests)


def test_a_picture_that_cannot_be_read_is_skipped_and_named(pair_set, capsys):
    pair = read_pairs(pair_set)[0]
    (pair_set / pair.a).write_bytes(b"no picture")
    with Script(prefers_larger_file) as script:
        assert ask_models(config(pair_set, script, limit=1), [pair]) == 1
        assert script.requests == []
    assert "1 pairs have pictures that cannot be read" in capsys.readouterr().err


def test_the_rate_limit_spaces_requests(monkeypatch):
    now, slept = [0.0], []
    monkeypatch.setattr("preference_data.endpoint.time.monotonic", lambda: now[0])
    monkeypatch.setattr("preference_data.endpoint.time.sleep", slept.append)
    pace = Pace(30)
    for _ in range(3):
        pace.wait()
    assert slept == [0.0, 2.0, 4.0]


def test_pictures_are_made_smaller(pair_set):
    file = pair_set / read_pairs(pair_set)[0].input
    assert data_url(file, 32).startswith("data:image/png;base64,") and len(data_url(file, 32)) < len(data_url(file, 64)) == len(
        data_url(file, 999)
    )
