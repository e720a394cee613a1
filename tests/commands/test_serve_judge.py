"""serve-judge as a user runs it: a process of its own, asked by our own client."""

import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import httpx
import pytest
import torch
from served import served

from portraitkit.endpoint import data_url
from reward_models.judge.judge import Comparison, Judgement, load_judge
from reward_models.workers.serve_judge import serve_judge

ENTRY = "reward_models.workers.serve_judge:serve_judge"


@pytest.fixture
def server(judge_folder, tmp_path):
    """(process, URL) of a server of the tiny judge."""
    log = tmp_path / "log"
    log.touch()
    process = served(ENTRY, "--model", judge_folder, "--port", 0, "--wait-ms", 50, log=log)
    deadline, found = time.monotonic() + 400, None
    while found is None:
        assert time.monotonic() < deadline and process.is_alive(), log.read_text()
        found = re.search(r"at (http://\S+/v1)", log.read_text())
        time.sleep(0.1)
    yield process, found[1]
    process.kill()
    process.join()


def test_the_same_judgement_as_in_process_and_a_graceful_end(server, judge_folder, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    process, url = server
    here = load_judge(str(judge_folder))
    with closing(load_judge(url)) as there:
        assert there.settings == here.settings
        photo = torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(0))
        pairs = [Comparison(photo, photo * a, photo * b) for a, b in ((0.6, 1.0), (1.0, 0.7), (0.8, 0.8))]
        for ours, theirs in zip(here.judge(pairs), there.judge(pairs), strict=True):
            assert isinstance(ours, Judgement) and isinstance(theirs, Judgement)
            assert (ours.verdicts, ours.overall, ours.reasoning) == (theirs.verdicts, theirs.overall, theirs.reasoning)
            assert ours.probability == pytest.approx(theirs.probability, abs=1e-3)
            assert ours.means == pytest.approx(theirs.means, abs=1e-3)
    health = httpx.get(url.replace("/v1", "/health")).json()
    assert health["answered"] == 6 and health["batches"] < 6

    content = [{"type": "image_url", "image_url": {"url": data_url(photo)}}] * 2 + [{"type": "text", "text": "Which retouch is better?"}]
    body = {"model": str(judge_folder), "messages": [{"role": "user", "content": content}], "max_tokens": 40}
    with ThreadPoolExecutor() as pool:
        last = pool.submit(httpx.post, f"{url}/chat/completions", json=body, timeout=60)
        while httpx.get(url.replace("/v1", "/health")).json()["waiting"] == 0 and not last.done():
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGTERM)
        assert last.result().status_code == 200  # what was under way is answered
    process.join(60)
    assert process.exitcode in (0, -signal.SIGTERM)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--port", "70000"], ["--port 70000", "65535"]),
        (["--host", "no.such.host.invalid"], ["--host no.such.host.invalid"]),
        (["--model", "./nothing", "--port", "0"], ["judge ./nothing", "no such folder"]),
        (["--model", "http://h/v1", "--port", "0"], ["is served already"]),
        (["--batch-size", "0"], ["--batch-size 0", "at least 1"]),
        (["--wait-ms", "-1"], ["--wait-ms"]),
        (["--device", "cuda:99"], ["--device cuda:99"]),
        (["--dtype", "int8"], ["--dtype int8"]),
        (["--modle", "x"], ["--modle", "--model"]),
    ],
)
def test_mistakes_are_one_line(command, options, words):
    code, out, err = command(serve_judge, *options)
    lines = [line for line in err.splitlines() if line.strip()]
    assert code == 2 and out == "" and len(lines) == 1 and lines[0].startswith("error: "), err
    assert all(word in lines[0] for word in words), lines[0]


def test_a_taken_port_is_known_before_the_model_is_loaded(command):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = command(serve_judge, "--model", "./nothing", "--port", port)
    assert code == 2 and f"--port {port}: cannot listen" in err
