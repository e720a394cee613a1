"""A small study of synthetic portraits, and a real server for it in a thread."""

import asyncio
import contextlib
import json
import random
import socket
import sqlite3
import ssl
import sys
import threading
from functools import partial
from pathlib import Path

import httpx
import pytest
import torch
import uvicorn
from patience import LONGEST, wait_until
from scipy.special import softmax

from benchmarks.blind_test.commands import blind_test
from benchmarks.blind_test.server import KEEP_ALIVE, build_app
from benchmarks.blind_test.study import VOTES, read_study
from benchmarks.blind_test.vote_store import VoteStore
from portraitkit.pictures.images import write_image
from preference_data.people.synthetic import make_case
from tools.embedded.labels import make_label

PHOTOS = 12
METHODS = ("input", "ours", "other")


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> Path:
    """input/ (blemished), ours/ (clean), other/ (over-smoothed), and input/metadata.jsonl; file names alike."""
    root = tmp_path_factory.mktemp("methods")
    rows = []
    for number in range(PHOTOS):
        case = make_case("held_out", number, size=96)
        smooth = make_label(case, torch.Generator().manual_seed(number), "over_smoothed")
        for method, pixels in zip(METHODS, (case.source, case.clean, smooth), strict=True):
            (root / method).mkdir(exist_ok=True)
            write_image(root / method / f"person_{number:02d}.png", pixels)
        rows.append({"file_name": f"person_{number:02d}.png", "gender": "female" if number % 2 else "male", "age_band": None})
    (root / "input" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture
def make(folders, tmp_path, command):
    """A function (more arguments) -> the folder of a new study of three methods."""

    def call(*more: object) -> Path:
        out = tmp_path / "study"
        methods = [part for method in METHODS for part in ("--method", f"{method}={folders / method}")]
        code, _, said = command(blind_test, "make", *methods, "--reference", folders / "input", "--output-dir", out, *more)
        assert code == 0, said
        return out

    return call


@contextlib.contextmanager
def running(folder: Path, **options):
    """Serve a study for a while; gives its address."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    study = read_study(folder)
    store = VoteStore(folder / VOTES, study)
    app = build_app(study, store, **options)
    server = uvicorn.Server(
        uvicorn.Config(
            app, access_log=False, log_level="warning", timeout_graceful_shutdown=2, timeout_keep_alive=KEEP_ALIVE, lifespan="off"
        )
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(0.0002)  # client and server take turns in one process: the usual 5 ms would be most of the time
    thread.start()
    wait_until(lambda: server.started, "the server")
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(LONGEST)
        sys.setswitchinterval(interval)
        store.close()


@pytest.fixture
def serve():
    """The context manager `running`."""
    return running


TLS = ssl.create_default_context()  # one for all clients: making it is the slow part of a client


class Crowd:
    """Scripted raters of a study who follow Davidson's model, and who pass attention checks."""

    strengths, tie = {"input": -0.1, "ours": 0.55, "other": -0.45}, -0.8

    def __init__(self, folder: Path) -> None:
        self.folder, self.study = folder, read_study(folder)
        self.of_token = {token: name for photo in self.study.photos for name, token in photo.versions.items()}
        self.spoiled = {photo.spoiled for photo in self.study.photos}

    def shown(self, trial: str) -> tuple[str, str]:
        """What a comparison shows: methods, or "original" and "spoiled"; asked of the server's file, as no browser could."""
        with contextlib.closing(sqlite3.connect(f"file:{self.folder / VOTES}?mode=ro", uri=True)) as db:
            cell = db.execute("SELECT photo, pair, swapped FROM trials WHERE token = ?", (trial,)).fetchone()
        left, right = self.study.shown(cell[0], cell[1], bool(cell[2]))
        check = cell[1] < 0
        names = [("spoiled" if token in self.spoiled else "original") if check else self.of_token[token] for token in (left, right)]
        return names[0], names[1]

    def answer(self, trial: str, generator: random.Random) -> str:
        """Of a careful rater."""
        left, right = self.shown(trial)
        if "spoiled" in (left, right):
            return "right" if left == "spoiled" else "left"
        a, b = self.strengths[left], self.strengths[right]
        return generator.choices(["left", "tie", "right"], softmax([a, (a + b) / 2 + self.tie, b]))[0]

    @staticmethod
    async def take_part(address: str, cookie: str, answer) -> None:
        """One rater, on a connection of their own; `answer` is called with the comparison's token."""
        async with httpx.AsyncClient(base_url=address, timeout=LONGEST, verify=TLS, trust_env=False, cookies={"rater": cookie}) as client:
            state = (await client.get("/api/trial")).json()
            while state["trial"]:
                token = state["trial"]["token"]
                reply = await client.post("/api/vote", json={"trial": token, "choice": answer(token)})
                assert reply.status_code == 200
                state = reply.json()

    def vote(self, address: str, answers) -> None:
        """As many raters at once as there are functions that answer."""
        cookies = [httpx.post(f"{address}/start", data={"agree": "yes"}, verify=TLS, timeout=LONGEST).cookies["rater"] for _ in answers]

        async def everyone() -> None:
            await asyncio.gather(*(self.take_part(address, cookie, answer) for cookie, answer in zip(cookies, answers, strict=True)))

        asyncio.run(everyone())

    def careful(self, count: int):
        """Functions that answer for as many careful raters."""
        return [partial(lambda generator, trial: self.answer(trial, generator), random.Random(number)) for number in range(count)]

    @staticmethod
    def careless(count: int):
        """Functions that answer for as many raters who do not look."""
        return [partial(lambda generator, trial: generator.choice(["left", "right", "tie"]), random.Random(n)) for n in range(count)]


@pytest.fixture
def crowd():
    """The class of scripted raters."""
    return Crowd
