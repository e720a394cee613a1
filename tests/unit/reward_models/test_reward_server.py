"""`serve-rewards`' application and its wire format in this process: nothing loses a bit, nothing unreadable is scored."""

import json
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from patience import LONGEST
from safetensors.torch import load, save
from starlette.testclient import TestClient

from portraitkit.errors import DataError, WeightsError
from reward_models.reward_set import RewardSet, build_rewards
from reward_models.workers.options import ServeRewardsConfig
from reward_models.workers.server import Desk, rewards_app
from reward_models.workers.wire import PROTOCOL, fingerprint, own_version, pack, pack_answer, unpack, unpack_answer

CONFIG = ServeRewardsConfig(allowed_hosts=("testserver",), max_waiting=2, max_request_mib=4.0)
NAMES = ("texture", "identity")
PRINTS = {name: f"portraitkit {own_version()}" for name in NAMES}


@pytest.fixture(scope="session")
def group(photos, retouches):
    """Three candidates of one photo, one of them with a pixel that is not a number."""
    candidates = torch.stack([retouches[0], 0.5 * (retouches[0] + photos.source[0]), photos.source[0]])
    candidates[2, 1, 5, 5] = math.nan
    return candidates, photos.select(slice(0, 1))


@pytest.fixture
def client():
    desk = Desk(lambda: build_rewards(NAMES, (), "product"))
    with TestClient(rewards_app(desk, CONFIG)) as client:
        while not client.get("/health").json()["ready"]:
            pass
        client.desk = desk
        yield client


def post(client, body, **headers):
    return client.post("/v1/score", content=body, headers=headers)


def test_a_request_comes_back_bit_by_bit_and_sends_a_groups_photo_once(group, photos):
    candidates, photo = group
    body = pack(PRINTS, candidates, photo)
    asked = unpack(body)
    assert asked.rewards == PRINTS
    assert torch.equal(asked.candidates.view(torch.int32), candidates.view(torch.int32))
    for name, value in vars(photo).items():
        assert torch.equal(getattr(asked.photos, name).view(torch.int32), value.contiguous().view(torch.int32)), name
    apart = pack(PRINTS, candidates, photos.select(slice(0, 3)))
    assert len(apart) - len(body) == pytest.approx(2 * 4 * (9 * 128 * 128 + 468 * 2 + 128), abs=200)
    assert torch.equal(unpack(apart).photos.source, photos.source[:3])


def test_values_survive_json():
    values = torch.tensor([1 / 3, 0.1, 1e-38, math.nan, 1.0])
    parts, counts = unpack_answer(pack_answer({"a": values}, {"a": {"asked": 2}}, 0.1), ["a"], 5)
    assert (
        torch.equal(parts["a"].view(torch.int32)[:3], values.view(torch.int32)[:3])
        and parts["a"][3].isnan()
        and counts == {"a": {"asked": 2}}
    )


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"values": {}}', b'{"values": {"a": ["x"]}, "counts": {}}', b'{"values": {"a": [1]}, "counts": {}}']
)
def test_what_is_no_answer_is_refused(body):
    with pytest.raises(DataError):
        unpack_answer(body, ["a"], 5)


def spoil(body, **changes):
    head, _, data = body.partition(b"\n")
    tensors = load(data) | changes
    return head + b"\n" + save({name: value for name, value in tensors.items() if value is not None})


def two_photos(body):
    return {name: torch.cat([value, value]) for name, value in load(body.partition(b"\n")[2]).items() if name.startswith("photos.")}


SPOILT = {
    "empty": lambda body: b"",
    "no line": lambda body: b"x" * 100_000,
    "no json": lambda body: b"hello\n" + body.partition(b"\n")[2],
    "other protocol": lambda body: body.replace(b'"protocol": 2', b'"protocol": 9', 1),
    "no rewards": lambda body: json.dumps({"protocol": PROTOCOL, "rewards": {}}).encode() + b"\n" + body.partition(b"\n")[2],
    "cut off": lambda body: body[:-100],
    "tensor missing": lambda body: spoil(body, **{"photos.skin": None}),
    "tensor unknown": lambda body: spoil(body, more=torch.zeros(1)),
    "photos of no candidate": lambda body: spoil(body, candidates=torch.zeros(3, 3, 128, 128), **two_photos(body)),
    "other size": lambda body: spoil(body, candidates=torch.zeros(3, 3, 64, 64)),
    "no candidates": lambda body: spoil(body, candidates=torch.zeros(0, 3, 128, 128)),
    "grey": lambda body: spoil(body, candidates=torch.zeros(3, 1, 128, 128)),
    "bytes": lambda body: spoil(body, candidates=torch.zeros(3, 3, 128, 128, dtype=torch.uint8)),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_damaged_request_is_refused_in_words(client, group, how):
    answer = post(client, SPOILT[how](pack(PRINTS, *group)))
    assert answer.status_code == 400 and answer.json()["error"] and client.desk.scored == 0 and client.desk.waiting == 0


def test_scores_are_those_of_this_process(client, group):
    here = build_rewards(NAMES, (), "product").parts(*group, torch.zeros(3, dtype=torch.int64))
    answer = post(client, pack(PRINTS, *group))
    there, counts = unpack_answer(answer.content, NAMES, 3)
    for name in NAMES:
        assert torch.equal(here[name][:2], there[name][:2]) and there[name][2].isnan()
    assert counts == {}
    told = client.get("/health").json()
    assert told["rewards"] == PRINTS and told["scored"] == 1 and told["waiting"] == 0 and told["version"] == own_version()


def test_limits(client, group):
    body = pack(PRINTS, *group)
    assert post(client, pack({"texture": "other weights"}, *group)).status_code == 409
    assert post(client, pack({"clarity": PRINTS["texture"]}, *group)).status_code == 409
    assert post(client, body + b"x" * 2**22).status_code == 413
    assert post(client, body, host="evil.example").status_code == 400
    assert client.get("/v1/score").status_code == 405
    client.desk.waiting = CONFIG.max_waiting
    refused = post(client, body)
    assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1 and "2 requests" in refused.json()["error"]
    assert client.get("/health").json()["refused"] == 1
    client.desk.waiting = 0
    assert post(client, body).status_code == 200


def test_a_token_is_asked_for(group):
    desk = Desk(lambda: build_rewards(NAMES, (), "product"))
    with TestClient(rewards_app(desk, CONFIG, token="secret")) as client:
        while not client.get("/health").json()["ready"]:
            pass
        assert client.get("/health").json() == {"service": "portraitkit-rewards", "ready": True}
        assert "rewards" in client.get("/health", headers={"authorization": "Bearer secret"}).json()
        body = pack(PRINTS, *group)
        assert post(client, body).status_code == post(client, body, authorization="Bearer other").status_code == 401
        assert post(client, body, authorization="Bearer secret").status_code == 200


def test_a_worker_that_loads_says_so_and_one_that_cannot_ends():
    begin, ended = threading.Event(), threading.Event()

    def load():
        begin.wait(LONGEST)
        raise WeightsError("iqa:x needs y")

    desk = Desk(load, on_failure=ended.set)
    with TestClient(rewards_app(desk, CONFIG)) as client:
        told = client.get("/health")
        assert told.status_code == 503 and told.json()["ready"] is False
        answer = post(client, b"")
        assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
        begin.set()
        assert ended.wait(LONGEST)
    assert str(desk.failure) == "iqa:x needs y"


def test_requests_are_scored_one_at_a_time_and_a_mistake_of_the_users_is_told(group):
    running, most, lock = 0, 0, threading.Lock()

    def slow(candidates, photos):
        nonlocal running, most
        with lock:
            running, most = running + 1, max(most, running + 1)
        threading.Event().wait(0.05)
        with lock:
            running -= 1
        return torch.ones(len(candidates))

    def broken(candidates, photos):
        raise WeightsError("weights went away")

    desk = Desk(lambda: RewardSet({"texture": slow, "identity": broken}, {}, "sum"))
    config = ServeRewardsConfig(allowed_hosts=("testserver",), max_waiting=8)
    with TestClient(rewards_app(desk, config)) as client, ThreadPoolExecutor(4) as pool:
        while not client.get("/health").json()["ready"]:
            pass
        bodies = [pack({"texture": PRINTS["texture"]}, *group)] * 4
        assert [answer.status_code for answer in pool.map(lambda body: post(client, body), bodies)] == [200] * 4
        assert most == 1
        answer = post(client, pack({"identity": PRINTS["identity"]}, *group))
        assert answer.status_code == 500 and answer.json() == {"error": "weights went away"}


def test_fingerprints_tell_weights_apart(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"one")
    first = fingerprint(f"judge:{tmp_path}:win_rate")
    assert first == fingerprint(f"judge:{tmp_path}") != fingerprint("texture")
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert fingerprint(f"judge:{tmp_path}") != first
    assert fingerprint("judge:http://127.0.0.1:1/v1") == fingerprint("texture")
