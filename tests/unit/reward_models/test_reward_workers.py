"""The client of reward workers against scripted servers: retries, waits that are asked for, failover, and when it gives up."""

import threading
import time
from contextlib import closing

import httpx
import pytest
import torch
from patience import LONGEST

from portraitkit.errors import WorkersLost
from reward_models.reward import GroupReward
from reward_models.reward_set import build_rewards
from reward_models.workers.client import BUGS, RewardWorkers, Worker
from reward_models.workers.wire import pack_answer, unpack

PRINT = "portraitkit test"


def answer(request):
    """A right answer: the mean of each candidate."""
    asked = unpack(request.content)
    values = {name: asked.candidates.mean((1, 2, 3)) for name in asked.rewards}
    return httpx.Response(200, content=pack_answer(values, {}, 0.0))


def worker(script, serves=("texture",), name="a", most=2**30):
    """A worker that answers as the script's entries say, the last one for ever: a status, an exception, or a function."""
    left, seen, lock = list(script), [], threading.Lock()

    def handle(request):
        with lock:
            seen.append(time.monotonic())
            step = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(step, Exception):
            raise step
        return step(request) if callable(step) else step

    client = httpx.Client(transport=httpx.MockTransport(handle))
    made = Worker(f"http://{name}", client, dict.fromkeys(serves, PRINT), most)
    made.seen = seen
    return made


@pytest.fixture
def unit(photos):
    return photos.source[:2] * torch.tensor([0.5, 1.0]).view(2, 1, 1, 1), photos.select(slice(0, 1))


def means(unit):
    return unit[0].mean((1, 2, 3))


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr("reward_models.workers.client.FIRST_WAIT", 0.02)


@pytest.mark.parametrize(
    "trouble",
    [
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
        httpx.RemoteProtocolError("killed"),
        httpx.Response(502, text="bad gateway"),
        httpx.Response(409, json={"error": "another reward"}),
        httpx.Response(200, text="<html>"),
        httpx.Response(200, content=pack_answer({"texture": torch.ones(5)}, {}, 0.0)),
    ],
)
def test_what_may_pass_is_tried_again(unit, trouble, monkeypatch):
    monkeypatch.setattr("reward_models.workers.client.random.uniform", lambda low, high: (low + high) / 2)
    said = []
    one = worker([trouble, trouble, answer])
    with closing(RewardWorkers([one], patience=LONGEST, say=said.append)) as workers:
        assert torch.equal(workers.score(["texture"], *unit)["texture"], means(unit))
    assert len(one.seen) == 3 and (one.scored, one.failed) == (1, 2)
    assert len(said) == 2 and "tried again" in said[0] and "answers again" in said[1]
    assert one.seen[1] - one.seen[0] >= 0.02 and one.seen[2] - one.seen[1] >= 0.04  # the wait doubles


def test_the_wait_that_a_busy_worker_asks_for_is_kept(unit):
    one = worker([httpx.Response(503, headers={"retry-after": "0.7"}, json={"error": "full"}), answer])
    with closing(RewardWorkers([one], patience=LONGEST)) as workers:
        assert torch.equal(workers.score(["texture"], *unit)["texture"], means(unit))
    assert one.seen[1] - one.seen[0] >= 0.69 and (one.busy, one.failed) == (1, 0)


@pytest.mark.parametrize("script", [[httpx.ConnectError("refused")], [httpx.Response(503, headers={"retry-after": "0.05"})]])
def test_patience_ends(unit, script):
    with closing(RewardWorkers([worker(script)], patience=0.4)) as workers:
        started = time.monotonic()
        with pytest.raises(WorkersLost, match=r"no reward worker scored anything for 0.4 s \(http://a: "):
            workers.score(["texture"], *unit)
        assert 0.4 <= time.monotonic() - started < LONGEST


@pytest.mark.parametrize(("status", "words"), [(400, "same version"), (401, "token"), (404, "URL"), (413, "--max-request-mib")])
def test_a_worker_that_refuses_for_good_is_left_out(unit, status, words):
    bad, good = worker([httpx.Response(status, json={"error": "no"})]), worker([answer], name="b")
    bad.scored = -1  # it is asked first
    with closing(RewardWorkers([bad, good], patience=LONGEST)) as workers:
        for _ in range(3):
            assert torch.equal(workers.score(["texture"], *unit)["texture"], means(unit))
    assert len(bad.seen) == 1 and words in bad.out and good.scored == 3
    with (
        closing(RewardWorkers([worker([httpx.Response(status)])], patience=LONGEST)) as workers,
        pytest.raises(WorkersLost, match="no reward worker is left"),
    ):
        workers.score(["texture"], *unit)


def test_a_request_beyond_a_workers_limit_is_not_sent(unit):
    small = worker([answer], most=1000)
    with closing(RewardWorkers([small], patience=LONGEST)) as workers, pytest.raises(WorkersLost, match="MiB"):
        workers.score(["texture"], *unit)
    assert small.seen == []


def test_a_bug_in_a_worker_ends_the_run_soon(unit):
    one = worker([httpx.Response(500, text="Internal Server Error")])
    with closing(RewardWorkers([one], patience=60)) as workers, pytest.raises(WorkersLost, match=f"failed {BUGS} times .*see its log"):
        workers.score(["texture"], *unit)
    assert len(one.seen) == BUGS


def test_a_stop_that_is_asked_for_does_not_wait_for_a_dead_worker(unit):
    with closing(RewardWorkers([worker([httpx.ConnectError("refused")])], patience=60)) as workers:
        workers.give_up = lambda: True
        with pytest.raises(WorkersLost, match="stopped while"):
            workers.score(["texture"], *unit)


def test_workers_share_the_units_and_one_takes_over(unit):
    def slow(request):
        time.sleep(0.02)
        return answer(request)

    a, b = worker([slow]), worker([slow], name="b")
    with closing(RewardWorkers([a, b], patience=LONGEST)) as workers:
        futures = [future for _ in range(12) for future in workers.submit(["texture"], *unit)]
        assert all(torch.equal(future.result()["texture"], means(unit)) for future in futures)
    assert a.scored + b.scored == 12 and min(a.scored, b.scored) >= 4
    a, b = worker([slow, httpx.ConnectError("killed")]), worker([slow], name="b")
    with closing(RewardWorkers([a, b], patience=LONGEST)) as workers:
        futures = [future for _ in range(12) for future in workers.submit(["texture"], *unit)]
        assert all(torch.equal(future.result()["texture"], means(unit)) for future in futures)
    assert a.scored == 1 and b.scored == 11 and a.failed >= 1
    assert workers.figures()["http://b"] == {"scored": 11, "failed": 0, "busy": 0}


def test_each_reward_goes_to_workers_that_serve_it(photos):
    a, b = worker([answer], serves=("texture", "clarity")), worker([answer], serves=("clarity", "judge:x:win_rate"), name="b")
    names = ("texture", "judge:x:win_rate", "clarity", "identity")
    with closing(RewardWorkers([a, b], patience=LONGEST)) as workers:
        rewards = build_rewards(names, (), "product", workers=workers)
        assert rewards.served == names[:3] and rewards.group_rewards == ["judge:x:win_rate"]
        parts = rewards.parts(photos.source, photos)
        assert list(parts) == list(names)
        for name in names[:3]:
            assert torch.equal(parts[name], photos.source.mean((1, 2, 3)))
        assert torch.equal(parts["identity"], build_rewards(("identity",), (), "product").parts(photos.source, photos)["identity"])
        judge = rewards.functions["judge:x:win_rate"]
        assert isinstance(judge, GroupReward)
        assert torch.equal(judge.of_groups(photos.source, photos, torch.arange(8)), parts["judge:x:win_rate"]) and not judge.needs_anchors


def test_what_a_judge_counted_there_is_counted_here(unit):
    def counted(request):
        return httpx.Response(200, content=pack_answer({"judge:x": means(unit)}, {"judge:x": {"asked": 4, "unreadable": 1}}, 0.0))

    with closing(RewardWorkers([worker([counted], serves=("judge:x",))], patience=LONGEST)) as workers:
        rewards = build_rewards(("judge:x",), (), "product", workers=workers)
        for _ in range(2):
            rewards.parts(*unit, torch.zeros(2, dtype=torch.int64))
        judge = rewards.functions["judge:x"]
    assert isinstance(judge, GroupReward)
    counts = judge.counts
    assert (counts.asked, counts.unreadable, counts.flips) == (8, 2, 0)
