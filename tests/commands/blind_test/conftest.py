"""A small study of synthetic portraits, and a real server for it in a thread."""

import contextlib
import json
import socket
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import uvicorn

from benchmarks.blind_test.main import blind_test
from benchmarks.blind_test.server import build_app
from benchmarks.blind_test.store import Store
from benchmarks.blind_test.study import VOTES, read_study
from portraitkit.images import write_image
from preference_data.synthetic import make_case, make_label

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
    store = Store(folder / VOTES, study)
    app = build_app(study, store, **options)
    server = uvicorn.Server(
        uvicorn.Config(app, access_log=False, log_level="warning", timeout_graceful_shutdown=2, timeout_keep_alive=30, lifespan="off")
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(0.0002)  # client and server take turns in one process: the usual 5 ms would be most of the time
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        sys.setswitchinterval(interval)
        store.close()


@pytest.fixture
def serve():
    """The context manager `running`."""
    return running
