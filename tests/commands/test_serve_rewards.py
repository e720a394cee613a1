"""serve-rewards as a user runs it: processes of their own, asked by our own client, killed, stopped and started again."""

import json
import os
import re
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
import torch
from safetensors.torch import load_file
from served import served

from policies.retoucher.main import align_retoucher
from policies.retoucher.photos import SyntheticSource
from reward_models.reward import GroupReward
from reward_models.reward_set import build_rewards
from reward_models.workers.client import RewardWorkers, connect
from reward_models.workers.serve_rewards import serve_rewards
from reward_models.workers.wire import PROTOCOL, SERVICE, own_version, pack

ENTRY = "reward_models.workers.serve_rewards:serve_rewards"
RUN = ["--photos-per-step", 2, "--group-size", 2, "--micro-batch", 2, "--max-train-steps", 2, "--validation-steps", 2]
RUN += ["--validation-photos", 1, "--held-out-photos", 2, "--num-steps", 2, "--segments", 1, "--warmup-steps", 0]
RUN += ["--rewards", "texture", "clarity", "--checkpointing-steps", 0]


@pytest.fixture(autouse=True)
def plain_machine(monkeypatch, one_thread):
    """No proxy, no token, and one thread as in the workers: the number of threads decides the last bits of a convolution."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("REWARD_WORKER_TOKEN", raising=False)


class Started:
    """A worker's process; `url` waits until it listens."""

    def __init__(self, log, rewards, *options, port=0, **environment):
        self.log = log
        self.log.touch()
        self.process = served(ENTRY, "--port", port, "--rewards", *rewards, *options, log=log, **environment)

    @property
    def url(self):
        deadline = time.monotonic() + 400
        while (found := re.search(r"at (http://\S+)", self.log.read_text())) is None:
            assert time.monotonic() < deadline and self.process.is_alive(), self.log.read_text()
            time.sleep(0.05)
        return found[1]

    def health(self):
        return httpx.get(f"{self.url}/health", timeout=60).json()

    def end(self):
        if self.process.is_alive():
            self.signal(signal.SIGCONT)
            self.process.kill()
        self.process.join()

    def signal(self, number):
        os.kill(self.process.pid, number)


@pytest.fixture(scope="module")
def pair(tmp_path_factory, judge_folder):
    """Two workers that serve the same; the second one may hold one request at once."""
    folder = tmp_path_factory.mktemp("workers")
    names = ("texture", "identity", "iqa:piqe", f"judge:{judge_folder}:win_rate")
    workers = Started(folder / "one", names), Started(folder / "two", names, "--max-waiting", 1)
    yield names, *workers
    for worker in workers:
        worker.end()


@pytest.fixture(scope="module")
def groups():
    """(candidates, photos, photo_of): two photos with three candidates each, one of them not finite."""
    photos = SyntheticSource(128).load("validation", [0, 1]).photos
    rows = torch.arange(2).repeat_interleave(3)
    noise = 0.2 * torch.rand(6, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    candidates = (photos.source[rows] + noise).clamp(0, 1)
    candidates[4, 0, 3, 3] = torch.nan
    return candidates, photos, rows


def equal(a, b):
    return all(torch.equal(values.nan_to_num(-1), b[name].nan_to_num(-1)) for name, values in a.items())


def test_the_same_values_as_in_process_shared_by_two_workers(pair, groups):
    names, one, two = pair
    here = build_rewards(names, (), "product")
    with closing(connect([one.url, two.url], names, timeout=400, patience=400)) as workers:
        there = build_rewards(names, (), "product", workers=workers)
        assert there.weights == here.weights and there.group_rewards == here.group_rewards
        ours, theirs = here.parts(*groups), there.parts(*groups)
        assert equal(ours, theirs) and ours["texture"].isfinite().sum() == 5
        alone = groups[0], groups[1].select(groups[2])  # as in evaluation
        assert equal(here.parts(*alone), there.parts(*alone))
        judges = [rewards.functions[names[-1]] for rewards in (here, there)]
        assert isinstance(judges[0], GroupReward) and isinstance(judges[1], GroupReward)
        assert judges[0].counts == judges[1].counts and judges[1].counts.asked > 0
        for _ in range(3):
            assert equal(ours, there.parts(*groups))
        shares = [figures["scored"] for figures in workers.figures().values()]
        assert sum(shares) == 9 and min(shares) >= 2
        assert [one.health()["scored"], two.health()["scored"]] == shares

        one.signal(signal.SIGSTOP)  # it hangs: the other takes over once a request has run out of time
        workers.workers[0].client.timeout = httpx.Timeout(1.0)
        assert equal(ours, there.parts(*groups))
        one.signal(signal.SIGCONT)
    deadline = time.monotonic() + 400
    while (answered := one.health())["waiting"]:  # what nobody waits for any more is dropped in its turn
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert answered["ready"] and answered["scored"] + answered["left"] >= shares[0]


def test_a_worker_that_hangs_is_asked_again(pair, groups):
    names, one, _ = pair
    said = []
    with closing(connect([one.url], names[:1], timeout=1.0, patience=400, say=said.append)) as workers:
        rewards = build_rewards(names[:1], (), "product", workers=workers)
        expected = rewards.parts(*groups)
        one.signal(signal.SIGSTOP)
        threading.Timer(2.5, one.signal, (signal.SIGCONT,)).start()
        assert equal(expected, rewards.parts(*groups))
        assert workers.figures()[one.url]["failed"] >= 1
    assert "no answer in time (ReadTimeout)" in said[0] and "answers again" in said[-1]


def test_a_full_worker_is_left_alone_and_nothing_is_lost(pair, groups):
    names, _, two = pair
    with closing(connect([two.url], names, timeout=400, patience=400)) as workers:
        rewards = build_rewards(names, (), "product", workers=workers)
        scorings = [rewards.submit(*groups) for _ in range(3)]
        results = [scoring.result() for scoring in scorings]
        assert all(equal(results[0], other) for other in results)
        assert workers.figures()[two.url]["busy"] >= 1 and workers.figures()[two.url]["failed"] == 0
    assert two.health()["refused"] >= 1


def test_what_waits_is_answered_before_the_end(pair, groups):
    names, one, _ = pair
    while not (told := one.health())["ready"]:
        time.sleep(0.02)
    fingerprints = told["rewards"]
    body = pack(
        {name: fingerprints[name] for name in names},
        groups[0][:3],
        groups[1].select(slice(0, 1)),
    )
    with ThreadPoolExecutor() as pool:
        last = [pool.submit(httpx.post, f"{one.url}/v1/score", content=body, timeout=400) for _ in range(3)]
        while one.health()["waiting"] < 3 and not last[0].done():
            time.sleep(0.002)
        one.signal(signal.SIGTERM)
        assert [future.result().status_code for future in last] == [200] * 3
    one.process.join(120)
    assert one.process.exitcode in (0, -signal.SIGTERM)
    assert "Traceback" not in one.log.read_text()


@contextmanager
def killing(worker, run, again=None):
    """Kill the worker after the first training step of the run, then do `again`."""
    over = threading.Event()

    def watch():
        while not over.is_set():
            if (run / "metrics.jsonl").is_file() and '"kind": "train"' in (run / "metrics.jsonl").read_text():
                worker.process.kill()
                worker.process.join()
                if again is not None:
                    again()
                return
            time.sleep(0.002)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def outcome(run):
    read = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    free = ("seconds", "time", "seconds_waiting_for_rewards")
    lines = [{name: value for name, value in line.items() if name not in free} for line in read]
    return lines, load_file(run / "pytorch_lora_weights.safetensors")


def test_a_worker_killed_in_a_run(command, tmp_path, monkeypatch):
    first = Started(tmp_path / "first", ["texture", "clarity"])
    code, _, err = command(align_retoucher, *RUN, "--output-dir", tmp_path / "here")
    assert code == 0, err
    lines, adapter = outcome(tmp_path / "here")
    url, started = first.url, [first]
    port = url.rpartition(":")[2]
    worker = ["--reward-worker", url, "--reward-worker-timeout", 400, "--reward-worker-patience", 400]
    missed, failed = threading.Event(), RewardWorkers._failed
    monkeypatch.setattr(RewardWorkers, "_failed", lambda *given: (failed(*given), missed.set()))

    def again():
        missed.wait(400)  # or the new one would be there before anything is asked
        started.append(Started(tmp_path / "second", ["texture", "clarity"], port=port))

    try:
        # Started again: the run goes on as if nothing had been.
        with killing(first, tmp_path / "there", again):
            code, _, err = command(align_retoucher, *RUN, *worker, "--output-dir", tmp_path / "there")
        assert code == 0, err
        assert "no connection" in err and "answers again" in err
        found, weights = outcome(tmp_path / "there")
        assert found == lines and all(torch.equal(value, weights[name]) for name, value in adapter.items())
        figures = json.loads((tmp_path / "there" / "summary.json").read_text())["reward_workers"][url]
        assert figures["failed"] >= 1 and figures["scored"] >= 9, figures

        # Never back: saved, told on one line, and resumed by another worker.
        short = [*worker[:2], "--reward-worker-timeout", 1, "--reward-worker-patience", 1]
        with killing(started[1], tmp_path / "lost"):
            code, _, err = command(align_retoucher, *RUN, *short, "--output-dir", tmp_path / "lost")
        last = err.strip().splitlines()[-1]
        assert code == 2 and last.startswith("error: no reward worker scored anything for 1 s") and url in last, err
        assert "is saved" in last and "--resume-from-checkpoint latest" in last
        assert len(list((tmp_path / "lost").glob("checkpoint-*"))) == 1 and not (tmp_path / "lost" / "summary.json").exists()
        started.append(Started(tmp_path / "third", ["texture", "clarity"]))
        worker[1] = started[-1].url
        code, _, err = command(align_retoucher, *RUN, *worker, "--output-dir", tmp_path / "lost", "--resume-from-checkpoint", "latest")
        assert code == 0, err
        found, weights = outcome(tmp_path / "lost")
        assert found == lines and all(torch.equal(value, weights[name]) for name, value in adapter.items())
    finally:
        for one in started:
            one.end()


HEALTH = {"service": SERVICE, "ready": True, "protocol": PROTOCOL, "version": own_version(), "max_request_mib": 512.0}


@contextmanager
def scripted(told):
    """The URL of a server that answers everything with this JSON, or with these bytes."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(told if isinstance(told, bytes) else json.dumps(told).encode())

        def log_message(self, format, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def refused(command, tmp_path, *options):
    code, out, err = command(align_retoucher, "--output-dir", tmp_path / "run", *options)
    lines = [line for line in err.splitlines() if line.strip()]
    assert code == 2 and out == "" and lines[-1].startswith("error: ") and not (tmp_path / "run").exists(), err
    return lines[-1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--reward-worker", "localhost:8600"], ["--reward-worker localhost:8600", "must be a URL such as http://127.0.0.1:8600"]),
        (["--reward-worker", "http://"], ["must be a URL"]),
        (["--reward-worker", "http://a:1", "http://a:1/"], ["comes 2 times"]),
        (["--reward-worker", "http://127.0.0.1:9"], ["nothing answers there", "start serve-rewards"]),
        (["--reward-worker", "http://127.0.0.1:9", "--reward-worker-timeout", "0"], ["--reward-worker-timeout 0"]),
        (
            ["--reward-worker", "http://127.0.0.1:9", "--reward-worker-patience", "5"],
            ["--reward-worker-patience 5", "--reward-worker-timeout"],
        ),
        (["--reward-worker", "http://127.0.0.1:9", "--rewards", "textur"], ["reward 'textur' is unknown", "texture"]),
    ],
)
def test_mistakes_before_a_run_are_one_line(command, tmp_path, options, words):
    line = refused(command, tmp_path, *options)
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("told", "options", "words"),
    [
        (b"<html>", [], ["is no serve-rewards"]),
        ({"status": "ok"}, [], ["is no serve-rewards"]),
        ({"service": SERVICE, "ready": True}, [], ["wants a token", "REWARD_WORKER_TOKEN"]),
        (HEALTH | {"version": "0.0.9", "rewards": {}}, [], ["is portraitkit 0.0.9", own_version(), "one version"]),
        (HEALTH | {"protocol": 99, "rewards": {}}, [], ["protocol 99"]),
        (HEALTH | {"ready": False}, ["--reward-worker-timeout", "1", "--reward-worker-patience", "1"], ["is still loading after 1 s"]),
        (HEALTH | {"rewards": {"iqa:piqe": "x"}}, [], ["serves iqa:piqe and none of the run's"]),
        (
            HEALTH | {"rewards": {"texture": "x"}},
            ["--reward", "judge:m"],
            ["'judge:m': no --reward-worker serves it", "serve-rewards --rewards"],
        ),
    ],
)
def test_workers_that_do_not_fit_are_one_line(command, tmp_path, told, options, words):
    with scripted(told) as url:
        line = refused(command, tmp_path, "--reward-worker", url, *options)
    assert all(word in line for word in words), line


def test_workers_with_different_weights_are_refused(command, tmp_path):
    with scripted(HEALTH | {"rewards": {"judge:m": "sha256 1"}}) as one, scripted(HEALTH | {"rewards": {"judge:m": "sha256 2"}}) as two:
        line = refused(command, tmp_path, "--reward", "judge:m", "--reward-worker", one, two)
    assert "its judge:m is sha256 2" in line and "serve the same weights" in line


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rewards", "textur"], ["'textur' is unknown", "'texture'"]),
        (["--rewards", "texture", "texture"], ["named 2 times"]),
        (["--rewards", "judge:./nothing", "--port", "0"], ["judge ./nothing", "no such folder"]),
        (["--rewards", "iqa:piqee", "--port", "0"], ["iqa:piqee", "piqe"]),
        (["--port", "70000"], ["--port 70000", "65535"]),
        (["--host", "no.such.host.invalid"], ["--host no.such.host.invalid"]),
        (["--max-waiting", "0"], ["--max-waiting 0", "at least 1"]),
        (["--max-request-mib", "0"], ["--max-request-mib"]),
        (["--device", "cuda:99"], ["--device cuda:99"]),
        (["--reward", "texture"], ["--reward", "--rewards"]),
    ],
)
def test_mistakes_of_a_worker_are_one_line(command, options, words):
    code, out, err = command(serve_rewards, *options)
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and out == "" and len(lines) == 1 and "Traceback" not in err, err
    assert all(word in lines[0] for word in words), lines[0]
