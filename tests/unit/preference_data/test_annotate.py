"""Models behind a scripted OpenAI-compatible server on this machine: what it does wrong must never become a score."""

import json
import os
import time
from collections import Counter

import pytest
from scripted_endpoint import ScriptedEndpoint

from portraitkit.errors import RunFolderError
from portraitkit.runs.locks import only_writer
from preference_data.annotations import read_judgements
from preference_data.commands.annotate import EndpointError, ask_models
from preference_data.commands.options import AnnotateConfig
from preference_data.contract import Answer, write_answer
from preference_data.pair_set import read_pairs
from preference_data.schema import DIMENSIONS

pytestmark = pytest.mark.usefixtures("quick_endpoint")
USAGE = (1000, 100)


def prefers_larger_file(request):
    """A judge with a rule that does not depend on the order: it likes what takes more bytes."""
    _, one, two = [part["image_url"]["url"] for part in request["messages"][0]["content"] if part["type"] == "image_url"]
    better = "first" if len(one) > len(two) else "second"
    scores = {name: (4, 2) if better == "first" else (2, 4) for name in DIMENSIONS}
    return write_answer(Answer(scores, better, "more bytes"))


def serve(script):
    return ScriptedEndpoint(script, usage=USAGE)


def config(folder, server, *models, **options):
    return AnnotateConfig(folder, endpoint=server.url, model=models or ("m",), pairs="all", **({"limit": 3} | options))


def test_both_orders_of_every_pair_by_every_model(pair_set, capsys):
    with serve(prefers_larger_file) as server:
        assert ask_models(config(pair_set, server, "one", "two"), read_pairs(pair_set)[:3]) == 0
        assert len(server.requests) == 12
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
    with serve(prefers_larger_file) as server:
        ask_models(config(pair_set, server, both_orders=False, limit=2), read_pairs(pair_set)[:2])
        ask_models(config(pair_set, server, limit=3), read_pairs(pair_set)[:3])
        assert len(server.requests) == 6
        for file in (pair_set / "annotations").glob("*.jsonl"):
            file.unlink()
        ask_models(config(pair_set, server, limit=3), read_pairs(pair_set)[:3])
        assert len(server.requests) == 6  # judgements lost, answers still in the cache
    assert len(read_judgements(pair_set)[0]) == 6


def test_prose_is_unreadable_counted_and_kept(pair_set, capsys):
    with serve(lambda request: "Image 1 is lovely, 5 out of 5!") as server:
        assert ask_models(config(pair_set, server, limit=1), read_pairs(pair_set)[:1]) == 1
    assert read_judgements(pair_set)[0] == []
    kept = [json.loads(line) for line in (pair_set / "annotations" / "unreadable.jsonl").read_text().splitlines()]
    assert len(kept) == 2 and kept[0]["text"].startswith("Image 1 is lovely") and "2 unreadable" in capsys.readouterr().err


def test_a_model_that_never_keeps_the_contract_is_stopped(pair_set, capsys):
    with serve(lambda request: "no") as server:
        pairs = read_pairs(pair_set) * 4
        pairs = [type(pair)(**vars(pair) | {"id": f"{pair.id}-{n}", "reasoning": str(n)}) for n, pair in enumerate(pairs)]
        assert ask_models(config(pair_set, server, workers=1), pairs) == 1
        assert len(server.requests) <= 25
    assert "break the contract" in capsys.readouterr().err


@pytest.mark.parametrize(
    "trouble",
    [(429, "slow down", {"retry-after": "0"}), (500, "oops"), (503, "{}"), (200, "<html>"), (200, '{"choices": []}')],
)
def test_trouble_is_retried(pair_set, capsys, trouble):
    times = Counter()

    def answer(request):
        times[key := json.dumps(request)] += 1
        return trouble if times[key] < 3 else prefers_larger_file(request)

    with serve(answer) as server:
        assert ask_models(config(pair_set, server, limit=1), read_pairs(pair_set)[:1]) == 0
    assert set(times.values()) == {3} and len(read_judgements(pair_set)[0]) == 2


def test_lasting_trouble_ends_the_run_and_keeps_what_was_answered(pair_set, capsys):
    def answer(request):
        return prefers_larger_file(request) if request["model"] == "m" else (502, "down")

    with (
        serve(answer) as server,
        pytest.raises(EndpointError, match=r"bad after 3 tries \(HTTP 502: down\); .* kept"),
    ):
        ask_models(config(pair_set, server, "m", "bad", retries=2, workers=1), read_pairs(pair_set)[:1])
    assert {row.annotator for row in read_judgements(pair_set)[0]} == {"m"}


def test_refusals_are_not_retried_and_keys_not_shown(pair_set, monkeypatch, capsys):
    monkeypatch.setenv("MY_KEY", "sk-secret")
    with serve(lambda request: (401, "bad key sk-secret")) as server:
        with pytest.raises(EndpointError, match="HTTP 401") as error:
            ask_models(config(pair_set, server, api_key_env="MY_KEY", workers=1), read_pairs(pair_set)[:1])
        assert len(server.requests) == 1 and server.headers[0]["authorization"] == "Bearer sk-secret"
    assert "secret" not in str(error.value) + capsys.readouterr().err


def test_nobody_there(pair_set, capsys):
    with pytest.raises(EndpointError, match="ConnectError"):
        ask_models(AnnotateConfig(pair_set, endpoint="http://127.0.0.1:9/v1", model=("m",), retries=1), read_pairs(pair_set)[:1])


@pytest.mark.parametrize(("limit", "asked"), [(4.0, 2), (5.0, 2), (2.0, 1), (1.0, 1)])
def test_the_cost_limit_holds_with_many_requests_under_way(pair_set, capsys, limit, asked):
    def slow(request):
        time.sleep(0.05)
        return prefers_larger_file(request)

    with serve(slow) as server:  # an answer costs 1 + 1
        limited = config(pair_set, server, price_in=1000.0, price_out=10000.0, max_cost=limit, workers=8, limit=8)
        assert ask_models(limited, read_pairs(pair_set)) == 1 and len(server.requests) == asked
        err = capsys.readouterr().err
        assert f"stopped: cost {2 * asked:.2f}: the next answer might cost 2.00 and pass --max-cost {limit:g}" in err
        assert f"cost of this run: {2 * asked:.2f}" in err
        assert ask_models(limited, read_pairs(pair_set)) == 1 and len(server.requests) == 2 * asked  # a run of its own
    assert len(read_judgements(pair_set)[0]) == 2 * asked


def test_a_limit_that_is_not_reached_changes_nothing(pair_set, capsys):
    with serve(prefers_larger_file) as server:
        limited = config(pair_set, server, price_in=1000.0, price_out=10000.0, max_cost=12.0, workers=8)
        assert ask_models(limited, read_pairs(pair_set)[:3]) == 0 and len(server.requests) == 6


def test_a_limit_needs_an_endpoint_that_tells_the_tokens(pair_set, capsys):
    with ScriptedEndpoint(prefers_larger_file) as server:
        assert ask_models(config(pair_set, server, price_in=1.0, max_cost=3.0, workers=8), read_pairs(pair_set)) == 1
        assert len(server.requests) == 1
    assert "does not say how many tokens" in capsys.readouterr().err


def test_unreadable_answers_are_kept_once(pair_set, capsys):
    with serve(lambda request: "lovely") as server:
        for _ in range(2):
            assert ask_models(config(pair_set, server), read_pairs(pair_set)[:2]) == 1
        assert len(server.requests) == 4
    rows = (pair_set / "annotations" / "unreadable.jsonl").read_text().splitlines()
    assert len(rows) == 4 and "4 unreadable" in capsys.readouterr().err


def test_a_model_is_asked_by_one_process_at_a_time(pair_set, capsys):
    with serve(prefers_larger_file) as server, only_writer(pair_set / "annotations", ".asking-m"):
        with pytest.raises(RunFolderError, match=rf"process {os.getpid()} on "):
            ask_models(config(pair_set, server), read_pairs(pair_set)[:1])
        assert server.requests == [] and ask_models(config(pair_set, server, "other"), read_pairs(pair_set)[:1]) == 0
    assert not [path for path in (pair_set / "annotations").iterdir() if path.name.startswith(".asking")]


def test_a_picture_that_cannot_be_read_is_skipped_and_named(pair_set, capsys):
    pair = read_pairs(pair_set)[0]
    (pair_set / pair.a).write_bytes(b"no picture")
    with serve(prefers_larger_file) as server:
        assert ask_models(config(pair_set, server, limit=1), [pair]) == 1
        assert server.requests == []
    assert "1 pairs have pictures that cannot be read" in capsys.readouterr().err
