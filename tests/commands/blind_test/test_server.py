"""The server over HTTP: what it tells, what it refuses, that no vote is lost."""

import contextlib
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from functools import partial
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from patience import LONGEST, wait_until
from scipy.special import softmax

from benchmarks.blind_test.commands import blind_test
from benchmarks.blind_test.study import VOTES, draw_session, read_study
from benchmarks.blind_test.vote_store import PATIENCE, VoteStore, read_votes

get, post = partial(httpx.get, timeout=LONGEST), partial(httpx.post, timeout=LONGEST)


@pytest.fixture
def study(make, serve):
    """A running study: (folder, address)."""
    folder = make()
    with serve(folder) as address:
        yield folder, address


@contextlib.contextmanager
def enter(address: str):
    """The client of one more rater."""
    with httpx.Client(base_url=address, follow_redirects=True, timeout=LONGEST) as client:
        assert client.post("/start", data={"agree": "yes"}).status_code == 200
        yield client


def test_consent_comes_first_and_answers_are_idempotent(study):
    folder, address = study
    assert get(f"{address}/vote").headers["location"] == "/"
    assert get(f"{address}/api/trial").status_code == 401
    assert post(f"{address}/start", data={}).status_code == 400
    with enter(address) as client:
        first = client.get("/api/trial").json()
        assert (first["total"], first["answered"], first["trial"]["position"]) == (22, 0, 0)
        vote = {"trial": first["trial"]["token"], "choice": "left"}
        for choice in ("left", "left", "right"):
            answer = client.post("/api/vote", json=vote | {"choice": choice}).json()
            assert (answer["stored"], answer["answered"], answer["trial"]["position"]) == ("left", 1, 1)
        assert client.get("/api/trial?position=0").json()["trial"]["choice"] == "left"
        assert client.post("/api/vote", json=vote | {"choice": "tie", "revise": True}).json()["stored"] == "tie"
        assert client.get("/api/trial?position=9").json()["trial"]["position"] == 1
        assert client.get("/api/trial?position=-1").json()["trial"]["position"] == 1
    assert [vote.choice for vote in read_votes(folder / VOTES)] == ["tie"]


def test_the_link_resumes_elsewhere_and_forged_ones_do_not(study):
    _, address = study
    with enter(address) as client:
        trial = client.get("/api/trial").json()["trial"]
        client.post("/api/vote", json={"trial": trial["token"], "choice": "tie"})
        link = re.search(r'value="(http[^"]+/r/[^"]+)"', client.get("/later").text)[1]
    with httpx.Client(base_url=address, follow_redirects=True, timeout=LONGEST) as other:
        assert other.get(link).status_code == 200
        assert other.get("/api/trial").json()["answered"] == 1
        assert "1 of 22 answered" in other.get("/").text
        assert other.get(f"{link}x").status_code == 404
        assert other.get("/r/" + "A" * 32).status_code == 404


def test_nobody_answers_for_another(study):
    folder, address = study
    with enter(address) as one, enter(address) as two:
        token = one.get("/api/trial").json()["trial"]["token"]
        assert two.post("/api/vote", json={"trial": token, "choice": "left"}).status_code == 404
        assert two.post("/api/vote", json={"trial": "forged", "choice": "left"}).status_code == 404
    assert read_votes(folder / VOTES) == []


def test_bad_requests_are_refused(study):
    folder, address = study
    with enter(address) as client:
        token = client.get("/api/trial").json()["trial"]["token"]
        vote = {"trial": token, "choice": "left"}
        malformed = (b"", b"{", b"[]", b"null", b"\xff", b"[" * 4000)
        for body in (*malformed, b'{"trial": 3, "choice": "left"}', b'{"trial": "\\ud800", "choice": "left"}'):
            assert client.post("/api/vote", content=body, headers={"content-type": "application/json"}).status_code == 400
        assert client.post("/api/vote", json=vote | {"choice": "both"}).status_code == 400
        assert client.post("/api/vote", json=vote | {"choice": ["left"]}).status_code == 400
        assert client.post("/api/vote", json=vote | {"revise": "yes"}).status_code == 400
        assert client.post("/api/vote", content=json.dumps(vote)).status_code == 415
        assert client.post("/api/vote", json=vote | {"more": "x" * 5000}).status_code == 413
        for headers in ({"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}, {"origin": "null"}):
            assert client.post("/api/vote", json=vote, headers=headers).status_code == 403
        assert client.get("/api/vote").status_code == 405
    assert read_votes(folder / VOTES) == []


def test_paths_lead_nowhere_else(study):
    _, address = study
    host, port = address.removeprefix("http://").split(":")
    for path in ("/picture/../study.json", "/picture/..%2fstudy.json", "/static/../server.py", "/static/%2e%2e/server.py", "/study.json",
                 "/votes.sqlite", "/picture/%00", "/static//etc/passwd", "/picture/....//study.json"):  # fmt: skip
        with socket.create_connection((host, int(port)), timeout=LONGEST) as raw:  # httpx would tidy the path up
            raw.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            answer = b"".join(iter(lambda raw=raw: raw.recv(65536), b""))
        assert answer.split()[1] == b"404", path
        assert b"person_" not in answer


def test_every_answer_is_guarded_and_tells_no_name(study):
    folder, address = study
    names = ["person_", "gender", str(folder)]
    with enter(address) as client:
        state = client.get("/api/trial").json()
        picture = client.get(state["trial"]["left"])
        assert picture.headers["content-type"] == "image/jpeg" and "last-modified" not in picture.headers and "etag" not in picture.headers
        for path in ("/", "/vote", "/later", "/done", "/api/trial", "/nowhere", "/static/vote.js", state["trial"]["right"]):
            answer = client.get(path)
            policy = answer.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'") and "unsafe" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            if not path.startswith(("/static", "/picture")):
                assert not [name for name in names if name in answer.text], path
                assert not re.search(r"\b(ours|input=|other=)\b", answer.text), path
        cookie = post(f"{address}/start", data={"agree": "yes"}).headers["set-cookie"].lower()
        assert "httponly" in cookie and "samesite=lax" in cookie
        token = client.cookies["rater"]
    assert token.encode() not in b"".join(path.read_bytes() for path in folder.glob("votes.sqlite*"))


def test_a_picture_address_is_the_raters_own_and_tells_nothing(study):
    """The same after a reload, another for another rater, and never the picture's name on disk, which is the same in every comparison."""
    folder, address = study
    with enter(address) as one, enter(address) as two:
        state = one.get("/api/trial").json()
        first, again = state["trial"], one.get("/api/trial").json()["trial"]
        assert first == again and one.get(first["left"]).content == one.get(again["left"]).content != one.get(first["right"]).content
        assert one.get(first["reference"]).status_code == 200
        assert two.get(first["left"]).status_code == 404 and get(address + first["left"]).status_code == 404
        assert one.get(first["left"].replace("left", "middle")).status_code == 404
        seen = set(re.findall(r"[\w-]{20,}", json.dumps([state, two.get("/api/trial").json()])))
        assert seen and not seen & read_study(folder).pictures.keys()


def test_a_connection_stays_open_between_answers(study):
    _, address = study
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=LONGEST) as raw:
        for _ in range(3):
            raw.sendall(f"GET /static/icon.svg HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            data = b""
            while b"</svg>" not in data:
                part = raw.recv(65536)
                assert part, "the server closed the connection"
                data += part
            assert data.startswith(b"HTTP/1.1 200") and b"connection: close" not in data.lower()
            time.sleep(0.1)


def test_consent_text_is_the_experimenters_and_is_escaped(study):
    folder, address = study
    (folder / "consent.txt").write_text("Hello <script>alert(1)</script>\n\nSecond paragraph")
    page = get(address).text
    assert "&lt;script&gt;" in page and "<script" not in page and "<p>Second paragraph</p>" in page


def test_what_is_stored_is_what_the_consent_text_says(study):
    folder, address = study
    before = time.time()
    with enter(address) as client:
        trial = client.get("/api/trial").json()["trial"]
        client.post("/api/vote", json={"trial": trial["token"], "choice": "left"})
    with contextlib.closing(sqlite3.connect(folder / VOTES)) as db:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        stored = {table: [row[1] for row in db.execute(f"PRAGMA table_info ({table})")] for table in tables}
        values = [value for table in tables for row in db.execute(f"SELECT * FROM {table}") for value in row]
    assert stored == {
        "raters": ["id", "token_hash"],
        "trials": ["id", "token", "rater", "position", "photo", "pair", "swapped"],
        "votes": ["trial", "choice", "seconds"],
    }
    assert not [value for value in values if isinstance(value, (int, float)) and value > before - 86400]
    said = " ".join((folder / "consent.txt").read_text().split())
    assert "the pairs that you are shown, your answers, how long each took, and a number in place of your name" in said
    assert "no time of day" in said and "only a checksum" in said
    assert "a few may only check that pictures are looked at" in said and "to have your answers removed, write to whoever sent you" in said


def test_cells_of_a_rater_who_left_are_free_again_after_two_hours(make, monkeypatch):
    """Nothing on disk says when a rater was here: patience counts from the last answer, or from the start of the server."""
    folder, now, taken = make("--photos-per-rater", "12", "--attention-checks", "0"), 0.0, []
    monkeypatch.setattr("benchmarks.blind_test.vote_store.time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(
        "benchmarks.blind_test.vote_store.draw_session", lambda cells, **how: taken.append(len(cells)) or draw_session(cells, **how)
    )
    with contextlib.closing(VoteStore(folder / VOTES, read_study(folder))) as store:
        first = store.find_rater(store.add_rater())
        now = 60.0
        store.vote(first, store.trials(first)[0].token, "left")
        now = PATIENCE + 59.0
        store.add_rater()
        now = PATIENCE + 60.0
        store.add_rater()
    with contextlib.closing(VoteStore(folder / VOTES, read_study(folder))) as store:
        store.add_rater()
        now += PATIENCE
        store.add_rater()
    assert taken == [0, 12, 1 + 12, 3 * 12, 1]


def test_other_host_names_and_too_many_raters_are_refused(make, serve):
    with serve(make(), allowed_hosts=("127.0.0.1",), max_raters=1) as address:
        assert get(address, headers={"host": "evil.example"}).status_code == 400
        with enter(address):
            assert post(f"{address}/start", data={"agree": "yes"}).status_code == 503


def test_a_crowd_of_100_gives_back_the_planted_preference(monkeypatch, request, command, crowd):
    monkeypatch.setattr("benchmarks.blind_test.vote_store.SYNCHRONOUS", "OFF")  # 2,200 times the disk's latency is no part of this test
    folder, address = request.getfixturevalue("study")
    people = crowd(folder)
    people.vote(address, people.careless(8) + people.careful(100)[8:])
    assert len(read_votes(folder / VOTES)) == 100 * 22
    code, said, _ = command(blind_test, "report", folder)
    assert code == 0 and said.startswith("ours is preferred to input")
    results = json.loads((folder / "results.json").read_text())
    assert 0 < len(results["raters"]["left_out"]) <= 8 and max(results["raters"]["left_out"]) <= 8
    for row in results["strengths"]:
        assert row["strength"]["low"] <= people.strengths[row["method"]] <= row["strength"]["high"], row
        assert row["strength"]["high"] - row["strength"]["low"] < 0.35
    for pair in results["pairs"]:
        a, b = people.strengths[pair["first"]], people.strengths[pair["second"]]
        chance = softmax([a, (a + b) / 2 + people.tie, b])
        assert pair["rate"]["low"] <= chance[0] + chance[1] / 2 <= pair["rate"]["high"]
        assert pair["votes"] == pytest.approx(2000 / 3, rel=0.12)
    assert results["position"]["p"] > 0.01 and results["agreement"]["value"] < 0.3
    left = np.mean([vote.cell.swapped for vote in read_votes(folder / VOTES)])
    assert left == pytest.approx(0.5, abs=0.01)


def test_200_raters_at_once_lose_no_vote(make, serve, crowd):
    folder = make("--photos-per-rater", "4", "--attention-checks", "1")
    with serve(folder) as address:
        crowd(folder).vote(address, crowd.careless(200))
    votes = read_votes(folder / VOTES)
    assert len(votes) == 200 * 5
    assert {rater: sum(vote.rater == rater for vote in votes) for rater in range(1, 201)} == dict.fromkeys(range(1, 201), 5)


def answers(client) -> bool:
    try:
        client.get("/")
    except httpx.TransportError:
        return False
    return True


def _heeds_interrupts():
    """A shell's background jobs, and what they start, ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_killed_in_the_middle_it_goes_on_where_it_was(make, command):
    folder = make()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    entry = [
        sys.executable,
        "-c",
        "from benchmarks.blind_test.commands import blind_test; blind_test()",
        "serve",
        str(folder),
        "--port",
        str(port),
    ]
    cookies: dict[str, str] = {}
    answered = 0
    for end in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        running = contextlib.ExitStack()
        server = subprocess.Popen(entry, stderr=subprocess.PIPE, text=True, env=os.environ, preexec_fn=_heeds_interrupts)
        try:
            options = {"cookies": cookies, "follow_redirects": True, "timeout": LONGEST}
            client = running.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", **options))
            wait_until(lambda client=client: answers(client), "the server")
            if not cookies:
                client.post("/start", data={"agree": "yes"})
                cookies = dict(client.cookies)
                code, _, said = command(blind_test, "serve", folder, "--port", port + 1 if port < 65535 else 1024)
                assert code == 2 and "another process serves" in said
            state = client.get("/api/trial").json()
            assert state["answered"] == answered
            for _ in range(5):
                state = client.post("/api/vote", json={"trial": state["trial"]["token"], "choice": "tie"}).json()
            answered += 5
        finally:
            running.close()
            server.send_signal(end)
            _, said = server.communicate(timeout=LONGEST)
        assert "warning" not in said and (end == signal.SIGKILL or "Traceback" not in said), said
        assert server.returncode == {signal.SIGKILL: -9, signal.SIGTERM: -15, signal.SIGINT: 130}[end]
    assert len(read_votes(folder / VOTES)) == 15


def test_an_open_host_is_warned_about_and_a_taken_port_named(make, command, monkeypatch):
    folder = make()
    monkeypatch.setattr("uvicorn.Server.run", lambda self, sockets: None)
    code, _, said = command(blind_test, "serve", folder, "--host", "0.0.0.0", "--port", "0")
    assert code == 0 and "warning: --host 0.0.0.0" in said
    assert "warning" not in command(blind_test, "serve", folder, "--port", "0")[2]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, said = command(blind_test, "serve", folder, "--port", taken.getsockname()[1])
    assert code == 2 and "choose another --port" in said
